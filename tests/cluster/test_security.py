"""Only you can use the cluster that nbmap starts for you."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

import nbmap

ATTACK = """
import asyncio, os, socket, ssl, sys
from concurrent.futures import ThreadPoolExecutor
from distributed import Client, Security
from distributed.comm.core import connect

SECURITY = {"tcp": None, "tls": Security.temporary()}

def run_code(scheme, port, proof):
    def evil():
        open(proof, "w").write("code ran")
    with Client(f"{scheme}://127.0.0.1:{port}", security=SECURITY[scheme], timeout=2) as client:
        client.submit(evil).result(5)

def read(scheme, port):
    async def talk():
        security = SECURITY[scheme]
        options = security.get_connection_args("client") if security else {}
        comm = await connect(f"{scheme}://127.0.0.1:{port}", timeout=2, **options)
        await comm.write({"op": "identity"})
        return await asyncio.wait_for(comm.read(), 2)
    return asyncio.run(talk())

def get(path, port):
    with socket.create_connection(("127.0.0.1", port), timeout=2) as s:
        s.sendall(f"GET {path} HTTP/1.0\\r\\n\\r\\n".encode())
        answer = s.recv(4096)
    if b" 200 " not in answer[:20]:
        raise OSError("refused")
    return answer

def attack(port, proof, schemes=tuple(SECURITY)):
    ways = [(run_code, scheme, port, proof) for scheme in schemes]
    ways += [(read, scheme, port) for scheme in schemes]
    ways += [(get, p, port) for p in ("/", "/info/main/workers.html", "/json/counts.json", "/health")]
    for way, *args in ways:
        try:
            # Dask's client goes on waiting for ever for some that say nothing.
            result = ThreadPoolExecutor(1).submit(way, *args).result(8)
            print(f"{port} {way.__name__} SUCCESS {result}\\n", end="")
        except Exception as error:
            print(f"{port} {way.__name__} refused {type(error).__name__}\\n", end="")

control, ports, proof = int(sys.argv[1]), list(map(int, sys.argv[2].split(","))), sys.argv[3]
attack(control, proof + "-rehearsal", ["tcp"])  # loads every module while this process still may
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
print("user", os.getuid())
attack(control, proof + "-control", ["tcp"])
print("control done")
with ThreadPoolExecutor(len(ports)) as pool:
    list(pool.map(attack, ports, [proof] * len(ports)))
print("tried all", flush=True)
os._exit(0)
"""


def listening():
    """Return (host, port) of every socket that this process and its children listen on."""
    me = psutil.Process()
    found = set()
    for process in [me, *me.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    found.add(tuple(connection.laddr))
    return found


def test_f18_nothing_listens_beyond_loopback(own):
    """Every port of the local cluster is bound to 127.0.0.1."""
    assert listening()
    assert {host for host, _ in listening()} == {"127.0.0.1"}


def test_f18_another_user_is_refused_at_every_port(own, existing, tmp_path):
    """A real second user can neither run code on the cluster nor read from it.

    The same attack on a plain Dask cluster, as a control, succeeds.
    """
    if os.getuid() != 0:
        pytest.fail("this test needs root, to become another user of the machine")
    nbmap.remote(abs)(-1)
    ports = sorted(port for _, port in listening())
    assert len(ports) >= 3
    plain = existing(workers=1)
    proof = tmp_path / "proof"
    port = plain.scheduler_address.rpartition(":")[2]
    done = subprocess.run(
        [sys.executable, "-c", ATTACK, port, ",".join(map(str, ports)), str(proof)],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert "tried all" in done.stdout, done.stderr
    _, _, as_nobody = done.stdout.partition("user 65534\n")
    control, _, attacks = as_nobody.partition("control done\n")
    assert "run_code SUCCESS" in control
    assert "read SUCCESS" in control
    assert (tmp_path / "proof-control").exists()
    assert attacks.count("refused") == 8 * len(ports)
    assert "SUCCESS" not in attacks
    assert not proof.exists()
    assert nbmap.remote(abs)(-1) == 1


def test_f18_key_material_is_in_no_place_that_others_see(own):
    """No private key in command lines, environments, reprs or files of the temporary folder."""
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            text = " ".join(process.cmdline()) + " ".join(process.environ().values())
            assert "PRIVATE KEY" not in text
    from nbmap.cluster import connect

    own = connect._own
    for thing in (own, own.transport, own._cluster, own._client, own._cluster.security):
        assert "PRIVATE KEY" not in repr(thing)
    assert "PRIVATE KEY" not in repr(nbmap.status())


LOOKS = """
import os, socket, sys
from pathlib import Path
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
for path in sys.stdin.read().splitlines():
    try:
        if Path(path).is_socket():
            with socket.socket(socket.AF_UNIX) as s:
                s.connect(path)
                print("connected to", path)
        elif b"PRIVATE KEY" in Path(path).read_bytes():
            print("read a key in", path)
    except OSError:
        pass
print("looked as", os.getuid())
"""


def test_f18_another_user_finds_no_key_in_a_file_and_no_socket_to_connect_to(own):
    """What the cluster's processes have open, and all that was put in the temporary folder since."""
    if os.getuid() != 0:
        pytest.fail("this test needs root, to become another user of the machine")
    nbmap.remote(abs)(-1)
    me, found = psutil.Process(), set()
    for process in [me, *me.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            found |= {file.path for file in process.open_files()}
            found |= {c.laddr for c in process.net_connections("unix") if c.laddr}
    began = me.create_time()
    for folder, _, files in os.walk(tempfile.gettempdir()):
        for path in (Path(folder, name) for name in files):
            with contextlib.suppress(OSError):
                stat = path.lstat()
                if stat.st_mtime > began and stat.st_size < 1 << 20:
                    found.add(os.fspath(path))
    control = Path(tempfile.mkdtemp()) / "key"
    try:
        control.parent.chmod(0o755)
        control.write_text("-----BEGIN PRIVATE KEY-----")
        control.chmod(0o644)
        told = subprocess.run(
            [sys.executable, "-c", LOOKS],
            input="\n".join([*found, str(control)]),
            capture_output=True,
            text=True,
            timeout=110,
            check=True,
        ).stdout
    finally:
        shutil.rmtree(control.parent)
    assert told.splitlines() == [f"read a key in {control}", "looked as 65534"]


def test_the_cluster_speaks_tls(own):
    """Scheduler and workers have tls:// addresses."""
    from nbmap.cluster import connect

    assert connect._own.transport.client.scheduler.address.startswith("tls://127.0.0.1:")
    assert all(worker.startswith("tls://127.0.0.1:") for worker in connect._own.workers())
