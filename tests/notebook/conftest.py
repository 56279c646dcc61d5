"""A real IPython with nbmap loaded, and real kernels."""

import contextlib
import os
import sys
import uuid
from queue import Empty
from tempfile import TemporaryDirectory

import pytest
from helpers import dasks
from helpers.here import in_process
from helpers.kernels import OwnKernel
from IPython import version_info
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from traitlets.config import Config

from nbmap.cluster import connect


class Ran:
    """What a cell did: IPython's record, and what it printed."""

    def __init__(self, result, out, err):
        self.result, self.out, self.err = result, out, err
        self.error = result.error_before_exec or result.error_in_exec
        self.value = result.result
        self.text = out + err


class Notebook:
    """A shell that cells are run in; `shell` is IPython's own."""

    def __init__(self, shell):
        self.shell = shell
        self.ns = shell.user_ns

    def run(self, text):
        """Run a cell as a front end does."""
        with capture_output() as captured:
            result = self.shell.run_cell(text, store_history=True)
        return Ran(result, captured.stdout, captured.stderr)

    def refused(self, text):
        """Run a cell that has to be refused; return the message, which is short."""
        ran = self.run(text)
        assert type(ran.error).__name__ == "UsageError", ran.text
        message = str(ran.error)
        assert 0 < len(message.splitlines()) <= 3
        assert all(len(line) <= 100 for line in message.splitlines())
        assert ran.err.strip() == f"UsageError: {message}"
        return message


@pytest.fixture(scope="module")
def the_shell():
    """The process's one IPython, as a kernel has it; what it changes in `sys` is put back."""
    main, prompts = (
        sys.modules["__main__"],
        {n: getattr(sys, n, None) for n in ("ps1", "ps2", "ps3")},
    )
    config = Config()
    config.InteractiveShell.colors = "NoColor" if version_info < (9,) else "nocolor"
    config.HistoryManager.enabled = False
    shell = InteractiveShell.instance(config=config)
    yield shell
    InteractiveShell.clear_instance()
    sys.modules["__main__"] = main
    for name, prompt in prompts.items():
        if prompt is None:
            vars(sys).pop(name, None)
        else:
            setattr(sys, name, prompt)


@pytest.fixture
def bare(the_shell, monkeypatch):
    """Yield a shell without nbmap; whatever a test loads or defines is undone."""
    main = the_shell.user_module
    monkeypatch.setitem(sys.modules, "__main__", main)  # what IPython's cells define lives there
    before = dict(the_shell.user_ns)
    yield Notebook(the_shell)
    the_shell.extension_manager.unload_extension("nbmap")
    the_shell.user_ns.clear()
    the_shell.user_ns.update(before)


@pytest.fixture
def notebook(bare):
    """Yield a shell with nbmap loaded, whose handles run in this process."""
    bare.shell.extension_manager.load_extension("nbmap")
    with in_process(2):
        yield bare


@pytest.fixture
def alone(monkeypatch):
    """Nothing names a cluster, and none of our own is there."""
    monkeypatch.setattr(connect, "_chosen", [])
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)


class Kernel:
    """A kernel in a process of its own."""

    def __init__(self, client, manager):
        self.client = client
        self.manager = manager

    def run(self, text, *, page=False):
        """Run a cell; return (the reply, the messages that it published).

        With `page` it has an id, as JupyterLab's cells do: then nbmap shows widgets, and they are
        greeted as by JupyterLab's page.
        """
        if not page:
            return self.await_end(self.client.execute(text))
        content = {"code": text, "silent": False, "store_history": True, "allow_stdin": False}
        message = self.client.session.msg("execute_request", content, metadata={"cellId": "one"})
        self.client.shell_channel.send(message)
        return self.await_end(message["header"]["msg_id"], page=True)

    def await_end(self, parent, *, page=False):
        """Wait for the end of a cell that was sent; return what `run` does."""
        published = []
        while True:
            message = self.client.get_iopub_msg(timeout=60)
            if message["parent_header"].get("msg_id") != parent:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "status" and content["execution_state"] == "idle":
                break
            published.append((kind, content))
            if kind == "comm_open" and page and "run" in content["data"].get("state", {}):
                body = {"type": "hello", "rid": uuid.uuid4().hex}
                hello = {"run": content["data"]["state"]["run"], "body": body}
                message = self.client.session.msg("nbmap_request", hello)
                self.client.control_channel.send(message)
        while True:
            reply = self.client.get_shell_msg(timeout=60)
            if reply["parent_header"].get("msg_id") == parent:
                return reply["content"], published

    def printed(self, text, *, page=False):
        """Run a cell that has to succeed; return what it printed and what it showed."""
        reply, published = self.run(text, page=page)
        assert reply["status"] == "ok", reply
        parts = []
        for kind, content in published:
            if kind == "stream":
                parts.append(content["text"])
            elif kind == "execute_result":
                parts.append(content["data"]["text/plain"] + "\n")
        return "".join(parts)

    def complete(self, text, at=None):
        """Return the reply to TAB at the end of the text, or where told."""
        self.client.complete(text, len(text) if at is None else at)
        return self.client.get_shell_msg(timeout=60)["content"]


@pytest.fixture
def new_kernel(tmp_path):
    """Yield a function that starts kernels, with variables of the environment changed."""
    with contextlib.ExitStack() as stack:

        def start(**environment):
            env = {**os.environ, "IPYTHONDIR": str(tmp_path / "ipython"), **environment}
            # Not TCP, where another process may take a port before the kernel does.
            sockets = stack.enter_context(TemporaryDirectory())  # the paths have to be short
            kernel = OwnKernel(transport="ipc", ip=f"{sockets}/kernel")
            kernel.start_kernel(env=env)
            stack.callback(kernel.shutdown_kernel, now=False)
            client = kernel.blocking_client()
            client.start_channels()
            stack.callback(client.stop_channels)
            client.wait_for_ready(timeout=60)
            with contextlib.suppress(Empty):
                while True:
                    client.get_iopub_msg(timeout=0.1)
            return Kernel(client, kernel)

        yield start


@pytest.fixture(params=["own", "theirs"])
def cluster(request, tmp_path):
    """Yield what handles are given as their cluster: nbmap's own, and one that it did not start."""
    if request.param == "own":
        yield "local"
        return
    with dasks.scheduler(tmp_path) as (_, path), dasks.worker(path), dasks.worker(path):
        dasks.wait_for_workers(path, 2)
        yield str(path)
