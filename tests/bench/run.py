"""Measure nbmap beside a process pool and Client.map, in one run on as many processes each."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import work  # noqa: E402 - found by the line above

SYSTEMS = {"nbmap": "nbmap_", "pool": "pool", "dask": "dask_"}


def sizes(system: str, rows: list[str], *, quick: bool) -> dict[str, int]:
    """How many inputs each row has for this system."""
    chosen = {}
    for name in rows:
        row = work.ROWS[name]
        n = row.quick if quick else row.inputs
        chosen[name] = min(n, row.dask) if system == "dask" and row.dask else n
    return chosen


def child(system: str, processes: int, rows: dict[str, int]) -> dict:
    """Run one system in a process of its own and return what it measured."""
    command = [sys.executable, str(HERE / "measure.py"), SYSTEMS[system], str(processes)]
    done = subprocess.run([*command, json.dumps(rows)], capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise SystemExit(f"{system} failed:\n{done.stderr[-5000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def advantage(row: str, ours: float, theirs: float) -> float:
    """How many times better ours is."""
    ours, theirs = max(ours, 1e-9), max(theirs, 1e-9)
    return ours / theirs if work.ROWS[row].better == "more" else theirs / ours


def table(results: dict, systems: list[str]) -> list[str]:
    """Lay the medians out, with nbmap's advantage over each of the others."""
    others = [s for s in systems if s != "nbmap"] if "nbmap" in systems else []
    lines = ["".join([f"{'':24}{'':12}", *[f"{s:>12}" for s in systems]])]
    lines[0] += "".join(f"{'vs ' + s:>12}" for s in others)
    for name, row in results.items():
        medians = {s: row["systems"][s]["median"] for s in systems}
        line = f"{row['title']:24}{row['unit']:12}"
        line += "".join(f"{medians[s]:>12,.{2 if medians[s] < 100 else 0}f}" for s in systems)
        for s in others:
            better = advantage(name, medians["nbmap"], medians[s])
            line += f"{better:>11,.{2 if better < 100 else 0}f}x"
        lines.append(line)
    return lines


def judge(results: dict, systems: list[str]) -> list[dict]:
    """Hold the medians against goals.toml, as far as they were measured."""
    verdicts = []
    for goal in tomllib.loads((HERE / "goals.toml").read_text())["goal"]:
        versus = goal.get("versus")
        if goal["row"] not in results or not {"nbmap", versus or "nbmap"} <= set(systems):
            continue
        medians = results[goal["row"]]["systems"]
        figure = medians["nbmap"]["median"]
        if versus:
            figure = advantage(goal["row"], figure, medians[versus]["median"])
        verdicts.append({**goal, "figure": figure, "reached": figure >= goal["at_least"]})
    return verdicts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="+", choices=work.ROWS, default=list(work.ROWS))
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path, help="where to write figures, samples and versions")
    parser.add_argument("--quick", action="store_true", help="small and once: does it work?")
    options = parser.parse_args()
    repeats = 1 if options.quick else options.repeats

    began = time.perf_counter()
    timed = [name for name in options.rows if name != "memory"]
    samples: dict[str, dict[str, list[float]]] = {
        name: {s: [] for s in options.systems} for name in options.rows
    }
    versions = {"numpy": importlib.metadata.version("numpy")}
    for repeat in range(repeats):
        for system in options.systems:
            print(f"round {repeat + 1} of {repeats}: {system}", file=sys.stderr, flush=True)
            # Memory has a process of its own: a peak never sinks again.
            for rows in (timed, [name for name in options.rows if name == "memory"]):
                if not rows:
                    continue
                chosen = sizes(system, rows, quick=options.quick)
                measured = child(system, options.processes, chosen)
                versions |= measured["versions"]
                for name, figure in measured["figures"].items():
                    samples[name][system].append(figure)

    results = {
        name: {
            "title": work.ROWS[name].title,
            "unit": work.ROWS[name].unit,
            "systems": {
                system: {
                    "inputs": sizes(system, [name], quick=options.quick)[name],
                    "median": statistics.median(samples[name][system]),
                    "samples": samples[name][system],
                }
                for system in options.systems
            },
        }
        for name in options.rows
    }
    verdicts = judge(results, options.systems)
    print("\n".join(table(results, options.systems)))
    for v in verdicts:
        word = "reached" if v["reached"] else "missed"
        print(f"{word}: {v['says']}: {v['figure']:,.2f} (at least {v['at_least']})")
    print(f"took {time.perf_counter() - began:.0f} s")
    if options.json:
        about = {
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
            "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
            "load": os.getloadavg()[0],
            "processes": options.processes,
            "repeats": repeats,
            "quick": options.quick,
            "versions": versions,
        }
        report = {"about": about, "rows": results, "goals": verdicts}
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
