"""S25: what a run tells afterwards, and doing what failed once more."""

import asyncio
import builtins
import sys
import time
import traceback

import pytest
from helpers.files import record, recorded
from helpers.here import in_process
from helpers.processes import wait_until

import nbmap


def failing(folder):
    """Return a handle that fails for 2 and 5 until it is mended, and records its calls."""

    @nbmap.remote
    def work(x):
        record(folder, x)
        print("working on", x)
        if x in {2, 5} and "mended" not in recorded(folder):
            raise LookupError(x)
        return 10 * x

    return work


def mend(folder):
    record(folder, "mended")


def test_s25_retry_runs_what_failed_and_takes_over_the_rest(transport, tmp_path):
    """The new run has all outputs in order; what was done is not called again."""
    run = failing(tmp_path).map(range(8))
    assert run.wait(60)
    mend(tmp_path)
    again = run.retry()
    assert list(again) == again.results() == [10 * x for x in range(8)]
    assert sorted(recorded(tmp_path)) == sorted([*map(str, range(8)), "2", "5", "mended"])
    assert [f.index for f in run.failures] == [2, 5]
    assert again.failures == []
    assert again.stdout(0) == "working on 0\n"
    assert len(again) == 8
    assert list(again.retry()) == list(again)


def test_s25_retry_runs_what_was_cancelled_or_never_read(transport, tmp_path):
    """Also the inputs that an iterator had not given yet."""

    def inputs():
        yield from range(40)

    @nbmap.remote
    def work(x):
        record(tmp_path, x)
        time.sleep(0.02)
        return x

    for source in (range(40), inputs()):
        run = work.map(source, keep=True)
        wait_until(lambda run=run: run.counts["done"] > 3)
        run.cancel()
        assert run.wait(60)
        done = run.counts["done"]
        assert done < 40
        assert list(run.retry()) == list(range(40))


def test_s25_retry_of_generators_starts_those_that_failed_again(transport, tmp_path):
    """The lists of those that ended well are taken over as they are."""

    @nbmap.remote
    def work(x):
        yield x
        if x == 1 and "mended" not in recorded(tmp_path):
            raise LookupError(x)
        yield -x

    run = work.map(range(4))
    assert run.wait(60)
    assert run.records()[1]["output"] == [1]
    mend(tmp_path)
    again = run.retry()
    assert again.results() == [[x, -x] for x in range(4)]
    assert sorted(again) == sorted([0, 0, 1, -1, 2, -2, 3, -3])


def test_s25_retry_uses_todays_function_of_that_name(transport):
    """A cell that was run again has put another handle in the place of the first."""
    module = sys.modules[__name__]

    def define(divisor):
        scope = {"__name__": __name__}
        exec(f"def divide(x): return x / {divisor}", scope)
        module.divide = nbmap.remote(scope["divide"])
        return module.divide

    run = define(0).map([1, 2])
    assert run.wait(60)
    assert len(run.failures) == 2
    define(2)
    try:
        assert list(run.retry()) == [0.5, 1.0]
        assert run.replay(1) == 1.0
    finally:
        del module.divide


def test_s25_retry_refuses_a_function_that_became_a_generators(transport):
    """Its outputs would not go with those that the run has."""
    module = sys.modules[__name__]
    try:
        module.change = nbmap.remote(lambda x: 1 / x)
        module.change.__module__, module.change.__qualname__ = __name__, "change"
        run = module.change.map([1, 0])
        assert run.wait(60)

        def change(x):
            yield x

        module.change = nbmap.remote(change)
        with pytest.raises(nbmap.RunError, match="change is a generator function, so its outputs"):
            run.retry()
    finally:
        del module.change


def test_s25_retry_may_run_on_another_cluster(tmp_path):
    """The cluster is the one that a map would run on now."""
    with in_process(1):
        run = failing(tmp_path).map(range(6))
        assert run.wait(60)
    mend(tmp_path)
    with in_process(2):
        assert list(run.retry()) == [0, 10, 20, 30, 40, 50]


def test_s25_an_input_that_could_not_be_pickled_is_tried_again_too(transport):
    """It may have become picklable meanwhile."""

    class Moody:
        ready = False

        def __reduce__(self):
            if not self.ready:
                raise TypeError("not now")
            return int, (7,)

    moody = Moody()
    run = nbmap.remote(lambda x: x).map([1, moody, 3])
    assert run.wait(60)
    assert [f.kind for f in run.failures] == ["unpicklable"]
    moody.ready = True
    assert list(run.retry()) == [1, 7, 3]


def test_s25_retry_is_for_runs_that_have_ended_and_kept_their_outputs(transport, tmp_path):
    """Otherwise a sentence says what to do."""
    run = nbmap.remote(lambda x: wait_until((tmp_path / "go").exists) or x).map([1])
    with pytest.raises(nbmap.RunError, match="wait for it, or cancel it"):
        run.retry()
    (tmp_path / "go").touch()
    gone = nbmap.remote(abs).map([1], keep=False)
    list(gone)
    for use in (gone.retry, gone.records, gone.results, gone.to_frame):
        with pytest.raises(nbmap.RunError, match="keep=True"):
            use()


def test_s25_replay_runs_an_input_here(transport, tmp_path):
    """In this process, so that a debugger gets at the frame that raised."""
    run = failing(tmp_path).map(range(8), return_exceptions=True)
    assert run.wait(60)
    try:
        run.replay(2)
    except LookupError as error:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    assert frames[-1].f_locals["x"] == 2  # which no frame of a worker has
    assert run.replay(3) == 30
    assert run.replay(-1) == 70
    assert [f.index for f in run.failures] == [2, 5]
    with pytest.raises(IndexError):
        run.replay(8)


def test_s25_replay_of_generators_coroutines_pairs_and_constants(transport):
    """Outputs of a generator as a list; arguments as the run had them."""

    async def coroutine(x):
        return x + nbmap.current_input().index

    async def stream(x):
        yield x
        yield -x

    def generator(x):
        yield x

    assert nbmap.remote(coroutine).map([5, 6]).replay(1) == 7
    assert nbmap.remote(stream).map([5]).replay(0) == [5, -5]
    assert nbmap.remote(generator).map([5]).replay(0) == [5]
    assert nbmap.remote(pow).starmap([(2, 3)]).replay(0) == 8
    assert nbmap.remote(pow).map([2], [3]).replay(0) == 8
    assert nbmap.remote(pow).map([2], kwargs={"exp": 3}).replay(0) == 8

    async def main():
        return nbmap.remote(coroutine).map([5, 6]).replay(1)

    assert asyncio.run(main()) == 7  # as in a notebook, whose loop runs


def test_s25_records_tell_of_each_input(transport, tmp_path):
    """Input, status, output or failure, attempts, worker and seconds."""
    run = failing(tmp_path).map(range(6))
    assert run.wait(60)
    rows = run.records()
    assert [row["index"] for row in rows] == [row["input"] for row in rows] == list(range(6))
    assert [row["status"] for row in rows] == ["done"] * 2 + ["failed"] + ["done"] * 2 + ["failed"]
    assert rows[1]["output"] == 10
    assert rows[1]["failure"] is None
    assert isinstance(rows[2]["failure"].exc, LookupError)
    assert all(row["attempts"] == 1 and row["worker"] and row["seconds"] >= 0 for row in rows)
    frame = run.to_frame()
    assert list(frame.index) == list(range(6))
    assert list(frame["status"]) == [row["status"] for row in rows]


def test_s25_without_pandas_records_still_work(transport, monkeypatch):
    """to_frame says what is missing, and what does without."""
    find = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "pandas":
            raise ImportError(name)
        return find(name, *args, **kwargs)

    run = nbmap.remote(abs).map([-1])
    assert run.wait(60)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install pandas; run.records\(\)"):
        run.to_frame()
    assert run.records()[0]["output"] == 1
