"""The loop that all runs share: what fails on it ends them."""

import pytest
from helpers.files import await_file, touch

import nbmap
from nbmap.engine.transport import InProcess, engine_loop


def test_what_fails_on_the_engines_loop_ends_the_runs(tmp_path):
    """They would wait for ever; what was done stays on them, and the next map works."""

    def work(x):
        if x:
            await_file(tmp_path, "go")
        return x

    def fail():
        msg = "as nobody foresaw"
        raise LookupError(msg)

    with nbmap.connect(InProcess(slots=1)):
        run = nbmap.remote(work).map(range(3))
        assert run[0] == 0
        engine_loop().call(fail)
        with pytest.raises(nbmap.RunError, match=r"nbmap has failed \(LookupError\('as nobody"):
            list(run)
        touch(tmp_path, "go")
        assert run.status == "broken"
        assert run[0] == 0
        assert list(nbmap.remote(abs).map([-1])) == [1]
