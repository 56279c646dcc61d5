"""Two sides that do not fit: another Python, another cloudpickle, no scheduler, TLS on one side."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import threading

import cloudpickle
import pytest
from helpers.processes import ROOT, wait_until

import nbmap

HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"
BARE = ROOT / ".venv-bare" / "bin" / "python"
ANOTHER_CLOUDPICKLE = {"PYTHONPATH": os.fspath(ROOT / ".venv-bare" / "cloudpickle-2")}
GUARD = 60.0  # seconds; each of these is said in less than 15

pytestmark = [
    pytest.mark.timeout(90),
    pytest.mark.filterwarnings("ignore::distributed.versions.VersionMismatchWarning"),
]


@contextlib.contextmanager
def dask_processes(python, folder, *, env=None):
    """Run a scheduler and one worker in another environment; yield the scheduler's file."""
    path = folder / "scheduler.json"
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | (env or {})
    started = []

    def start(*arguments):
        started.append(
            subprocess.Popen(
                [os.fspath(python), "-m", *arguments],
                cwd=folder,
                env=env,
                stderr=subprocess.DEVNULL,
            )
        )

    try:
        common = ("--host", "127.0.0.1", "--scheduler-file", os.fspath(path))
        start("distributed.cli.dask_scheduler", *common, "--port", "0", "--no-dashboard")
        wait_until(path.exists, 60)
        start(
            "distributed.cli.dask_worker",
            *common,
            "--nthreads",
            "1",
            "--no-dashboard",
            "--no-nanny",
        )
        yield os.fspath(path)
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(30)


def refused(what):
    """Call something that has to raise a ClusterError, and not to hang; return the error."""
    caught = []

    def call():
        try:
            what()
        except nbmap.ClusterError as error:
            caught.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(GUARD)
    assert not thread.is_alive(), "it hangs"
    assert caught, "it was not refused"
    return caught[0]


def check_versions(path, theirs):
    """A map, a second map and a call are refused, both sides named, and no slot stays held."""
    from distributed import Client

    with nbmap.connect(path):
        handle = nbmap.remote(abs)
        for use in (
            lambda: list(handle.map([-1, -2])),
            lambda: list(handle.map([-1])),
            lambda: handle.remote(-1),
        ):
            error = refused(use)
            assert isinstance(error, nbmap.VersionMismatch)
            assert f"Python {HERE} with cloudpickle {cloudpickle.__version__}" in str(error)
            assert theirs in str(error)
            assert "127.0.0.1" in str(error)
    with Client(scheduler_file=path, set_as_default=False) as client:
        wait_until(lambda: not any(client.processing().values()), 20)
        assert client.submit(lambda: 1 + 1, workers=None, pure=False).key


def test_f21_a_worker_of_another_python_is_refused(tmp_path):
    """A second CPython: the error names both versions and the worker, for each use of a handle."""
    python = ROOT / ".venv-next" / "bin" / "python"
    if not python.exists():
        pytest.skip("this machine has one CPython only; the comparison is tested by itself")
    theirs = subprocess.run(
        [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert theirs != HERE
    with dask_processes(python, tmp_path) as path:
        check_versions(path, f"Python {theirs} with cloudpickle")


def test_f21_a_worker_with_another_cloudpickle_is_refused(tmp_path):
    """Another major version of cloudpickle on the workers: the error names both."""
    with dask_processes(BARE, tmp_path, env=ANOTHER_CLOUDPICKLE) as path:
        check_versions(path, "cloudpickle 2.")


def test_f21_doctor_names_the_versions_of_both_sides(tmp_path):
    """`doctor` says which versions differ, before anything is run."""
    from nbmap import doctor

    with (
        dask_processes(BARE, tmp_path, env=ANOTHER_CLOUDPICKLE) as path,
        nbmap.connect(path),
    ):
        wait_until(lambda: nbmap.status().workers == 1, 30)
        problems = "\n".join(doctor.examine().problems)
        major = cloudpickle.__version__.partition(".")[0]
        assert re.search(rf"cloudpickle is {major} here and 2\.\S+ at ", problems), problems


@pytest.mark.parametrize(
    ("python", "pickler", "fits"),
    [
        (HERE, cloudpickle.__version__, True),
        (HERE, cloudpickle.__version__.partition(".")[0] + ".99.9", True),
        ("3.10", cloudpickle.__version__, False),
        (f"{sys.version_info[0]}.{sys.version_info[1] + 1}", cloudpickle.__version__, False),
        (HERE, "2.2.1", False),
        (HERE, "99.0", False),
    ],
)
def test_f21_the_comparison(python, pickler, fits):
    """Python's minor and cloudpickle's major version have to be the same, nothing else."""
    from nbmap.engine.model import Hello
    from nbmap.engine.transport import mismatch

    error = mismatch(Hello(1, "boot", "tcp://there:1", python, pickler, []))
    if fits:
        assert error is None
        return
    assert isinstance(error, nbmap.VersionMismatch)
    assert f"the worker tcp://there:1 has Python {python} with cloudpickle {pickler}" in str(error)
    assert f"Python {HERE} with cloudpickle {cloudpickle.__version__}" in str(error)


# --- addresses ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def security():
    """Certificates of one Dask cluster."""
    from distributed import Security

    return Security.temporary()


@pytest.fixture(scope="module")
def tls_cluster(security):
    """A Dask cluster that speaks TLS only."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=1,
        threads_per_worker=1,
        dashboard_address=None,
        scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
        silence_logs=50,
        security=security,
        host="tls://127.0.0.1",
    ) as cluster:
        yield cluster


def port_of(cluster):
    return cluster.scheduler_address.rpartition(":")[2]


def test_f21_tcp_to_a_scheduler_that_speaks_tls(tls_cluster):
    """The error names the address and says that there is TLS on the other side."""
    address = f"tcp://127.0.0.1:{port_of(tls_cluster)}"
    error = refused(lambda: nbmap.connect(address))
    assert address in str(error)
    assert "tls://" in str(error)


def test_f21_tls_without_certificates(tls_cluster):
    """The error says what to connect with."""
    address = f"tls://127.0.0.1:{port_of(tls_cluster)}"
    error = refused(lambda: nbmap.connect(address))
    assert address in str(error)
    assert "certificates" in str(error)


def test_f21_tls_to_a_scheduler_that_speaks_tcp(one_slot):
    """The error names the address, and that the other side may not speak TLS."""
    address = f"tls://127.0.0.1:{port_of(one_slot)}"
    error = refused(lambda: nbmap.connect(address))
    assert address in str(error)
    assert "tcp://" in str(error)


@pytest.mark.parametrize("there", ["tcp", "tls"])
def test_f21_certificates_that_do_not_fit(one_slot, tls_cluster, there):
    """A cluster object whose security is another one than its scheduler's is refused."""
    from distributed import Security

    cluster = one_slot if there == "tcp" else tls_cluster

    class Wrong:
        scheduler_address = f"tls://127.0.0.1:{port_of(cluster)}"
        security = Security.temporary()

    error = refused(lambda: nbmap.connect(Wrong()))
    assert Wrong.scheduler_address in str(error)
    assert "tcp://" in str(error)
    assert "certificates" in str(error)


def test_f21_a_cluster_that_speaks_tls_is_used_with_its_own_security(tls_cluster):
    """The control: with the right certificates it works."""
    with nbmap.connect(tls_cluster):
        assert nbmap.remote(abs)(-1) == 1


@contextlib.contextmanager
def server(answer):
    """Listen on a port, take every connection and send `answer`; yield the port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        taken = []

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    taken.append(listening.accept()[0])
                    taken[-1].sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(5)
        for connection in taken:
            connection.close()


@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", os.urandom(1000)],
    ids=["silent", "http", "noise"],
)
def test_f21_what_listens_is_no_scheduler(answer):
    """A server that says nothing, or something else, is named as none, in time."""
    with server(answer) as port:
        error = refused(lambda: nbmap.connect(f"tcp://127.0.0.1:{port}"))
    assert f"127.0.0.1:{port}" in str(error)
    assert "scheduler" in str(error)


@pytest.mark.parametrize(
    "address",
    [
        "tcp://no-such-host.invalid:8786",
        "tls://no-such-host.invalid:8786",
        "tcp://127.0.0.1:99999",
        "tcp://127.0.0.1:port",
        "tcp://127.0.0.1",
        "tcp://",
        "://",
        "http://127.0.0.1:1",
        "gateway://127.0.0.1:1",
        "nonsense://127.0.0.1:1",
        "tcp://[::1:8786",
        "tcp://\x1b[2J:1",
        "tcp://127.0.0.1:1\n",
    ],
)
def test_f21_a_wrong_address_is_named(address):
    """The error has the address, says what is wrong, is one line, and leaves no loop running."""
    before = set(threading.enumerate())
    error = refused(lambda: nbmap.connect(address))
    assert [t.name for t in set(threading.enumerate()) - before if t.is_alive()] == []
    shown = str(error)
    assert "\n" not in shown
    assert shown.isprintable()
    assert address.strip().partition("://")[2].lstrip("\x1b[2J") in shown


def test_f21_a_scheduler_file_of_a_cluster_that_is_gone(tmp_path):
    """The address in it is named."""
    path = tmp_path / "scheduler.json"
    path.write_text('{"address": "tcp://127.0.0.1:1"}')
    assert "127.0.0.1:1" in str(refused(lambda: nbmap.connect(str(path))))
    for text in ("", "[]", '{"address": 5}', "\0", '{"address": "x"}'):
        path.write_text(text)
        error = refused(lambda: nbmap.connect(str(path)))
        assert "scheduler.json" in str(error)
