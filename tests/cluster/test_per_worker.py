"""What each worker process loads once: loads and teardowns counted by lines of a file."""

import os
import threading

import pytest
from helpers.files import await_file, meet, record, recorded, touch, wait_until

import nbmap

pytestmark = pytest.mark.usefixtures("own")


@pytest.fixture(scope="module")
def own():
    """Nbmap's own cluster: two processes, which `concurrency=20` gives ten threads each."""
    nbmap.start(workers=2)
    yield
    nbmap.stop()


def test_s22_twenty_inputs_at_once_load_once_a_process(folder):
    """Ten threads of each of two processes ask for the object at the same moment: two loads."""

    @nbmap.per_worker
    def model():
        record(folder, os.getpid())
        wait_until(lambda: len(recorded(folder)) >= 2, "the loads of both processes")
        return object()

    @nbmap.remote(concurrency=20)
    def work(_):
        meet(folder, 20)
        one = model()
        return os.getpid(), id(one), model() is one

    out = list(work.map(range(60)))
    loads = recorded(folder)
    assert len(loads) == len(set(loads)) == 2
    assert {str(pid) for pid, _, _ in out} == set(loads)
    assert len({(pid, which) for pid, which, _ in out}) == 2
    assert all(same for _, _, same in out)
    assert str(os.getpid()) not in loads


def test_s22_later_runs_and_other_handles_use_what_is_loaded(folder):
    """The object stays from run to run, and is shared by handles that use the same loader."""

    @nbmap.per_worker
    def model():
        record(folder, os.getpid())
        return []

    one = nbmap.remote(lambda x: model().append(x), concurrency=4)
    other = nbmap.remote(lambda x: (os.getpid(), len(model())), concurrency=4)
    list(one.map(range(40)))
    list(one.map(range(40)))
    sizes = dict(other.map(range(40)))
    assert len(recorded(folder)) == len(set(recorded(folder))) <= 2
    assert sum(sizes.values()) <= 80
    assert any(sizes.values())


def test_s22_each_argument_has_an_object_of_its_own(folder):
    """Positional and by name, hashable or not."""

    @nbmap.per_worker
    def model(*args, **kwargs):
        record(folder, (os.getpid(), args, sorted(kwargs.items())))
        return [args, kwargs]

    @nbmap.remote(concurrency=1)
    def work(_):
        objects = [
            model(),
            model(1),
            model("1"),
            model(k=1, j=2),
            model([1, 2]),
            model({"a": [1]}),
            model(k=[1]),
        ]
        again = [
            model(),
            model(1),
            model("1"),
            model(j=2, k=1),
            model([1, 2]),
            model({"a": [1]}),
            model(k=[1]),
        ]
        return [a is b for a, b in zip(objects, again, strict=True)], len(set(map(id, objects)))

    assert set(map(str, work.map(range(4)))) == {str(([True] * 7, 7))}
    loads = recorded(folder)
    assert len(loads) == len(set(loads))


LOADER = """
@nbmap.per_worker
def model():
    record(folder, f"load {text} {variable}")
    yield {"text": text, "variable": variable}
    record(folder, f"drop {text} {variable}")
"""


CELL = """
import nbmap, os, weakref
from helpers.files import record

class Big:
    pass

@nbmap.per_worker
def model():
    record(FOLDER, "load TEXT")
    big = Big()
    weakref.finalize(big, record, FOLDER, "gone TEXT")
    return big

@nbmap.remote(concurrency=1)
def work(x):
    model()
    return "TEXT"
"""


def cell(folder, text):
    """Run a cell that defines a loader and a handle; return the handle."""
    space = {"__name__": "__main__", "FOLDER": folder}
    exec(compile(CELL.replace("TEXT", text), "<a cell>", "exec"), space)
    return space["work"]


def test_s22_a_cell_that_is_run_again_with_other_code(one_slot, folder):
    """The old object is gone when the new one is loaded."""
    with nbmap.connect(one_slot):
        assert list(cell(folder, "first").map(range(3))) == ["first"] * 3
        assert recorded(folder) == ["load first"]
        assert list(cell(folder, "second").map(range(3))) == ["second"] * 3
    assert recorded(folder) == ["load first", "gone first", "load second"]


def test_s22_the_same_cell_run_again_loads_nothing(folder):
    """Without classes of the cell in it, and with; with another line below it."""

    def run(source, more=""):
        space = {"__name__": "__main__", "FOLDER": folder}
        exec(compile(source + more, "<a cell>", "exec"), space)
        return list(space["work"].map(range(3)))

    plain = """
import nbmap, os
from helpers.files import record
SIZE = {"a": [1, 2], "b": {"x", "y", "z"}}

@nbmap.per_worker
def model():
    record(FOLDER, f"load {os.getpid()}")
    return list(SIZE)

@nbmap.remote(concurrency=1)
def work(x):
    return model()
"""
    for more in ("", "", "\nx = 3\n"):
        assert run(plain, more) == [["a", "b"]] * 3
    assert len(recorded(folder)) == len(set(recorded(folder)))


SIZES = """
import nbmap
from helpers.files import record

@nbmap.per_worker
def sized():
    record(FOLDER, f"load {SIZE}")
    yield SIZE
    record(FOLDER, f"drop {SIZE}")

@nbmap.remote
def work(x):
    return sized()
"""


def sizes(folder, size):
    """Run a cell whose loader refers to a variable; return the handle."""
    space = {"__name__": "__main__", "FOLDER": folder, "SIZE": size}
    exec(compile(SIZES, "<a cell>", "exec"), space)
    return space["work"]


def test_s22_the_generator_form_tears_down_before_the_next_version_loads(one_slot, folder):
    """With a variable of the notebook that has changed: load, drop, load; unchanged: nothing."""
    with nbmap.connect(one_slot):
        for size in (1, 1, 2):
            assert sizes(folder, size)(0) == size
    assert recorded(folder) == ["load 1", "drop 1", "load 2"]


def test_s22_an_older_run_that_goes_on_takes_nothing_from_the_newer(one_slot, folder):
    """Used in turn, two versions load once each."""
    with nbmap.connect(one_slot):
        old, new = sizes(folder, 1), sizes(folder, 2)
        for _ in range(3):
            assert (old(0), new(0)) == (1, 2)
    loads = [line for line in recorded(folder) if line.startswith("load")]
    assert len(loads) <= 3  # the old one may load once more, after the new one has dropped it
    assert set(loads) == {"load 1", "load 2"}


def test_s22_teardown_runs_when_the_worker_closes(folder):
    """`nbmap.stop()` closes the workers, and what follows the yield runs, once."""

    @nbmap.per_worker
    def model(n):
        yield n
        record(folder, f"down {n} {os.getpid()}")

    @nbmap.remote(concurrency=2)
    def work(n):
        meet(folder, 2)
        return model(n), os.getpid()

    pids = {pid for _, pid in work.map([1, 1, 1, 1])}
    assert recorded(folder) == []
    nbmap.stop()
    try:
        wait_until(lambda: len(recorded(folder)) >= len(pids), "the teardowns")
        assert sorted(recorded(folder)) == sorted(f"down 1 {pid}" for pid in pids)
    finally:
        nbmap.start(workers=2)


def test_s22_a_failing_load_is_raised_and_not_kept(folder):
    """It is the failure of the input that asked; the next one tries again, and loads once."""

    @nbmap.per_worker
    def model():
        record(folder, "try")
        if recorded(folder).count("try") == 1:
            raise OSError("no such model")
        return "loaded"

    work = nbmap.remote(lambda x: model(), concurrency=1)
    out = list(work.map(range(10), return_exceptions=True))
    failed = [x for x in out if x != "loaded"]
    assert [repr(x) for x in failed] == ["UserCodeException(OSError('no such model'))"]
    assert 2 <= recorded(folder).count("try") <= 3
    with pytest.raises(OSError, match="no such"):
        nbmap.remote(lambda: [_fails()])()


@nbmap.per_worker
def _fails():
    raise OSError("no such file")


def test_s22_under_local_and_in_the_notebook_it_caches_in_this_process(folder):
    """The notebook, `.local` and several of its threads load once; the workers each once more."""

    @nbmap.per_worker
    def model(x):
        record(folder, os.getpid())
        return [x]

    work = nbmap.remote(lambda x: model(x)[0])
    one = model(1)
    assert model(1) is one
    assert work.local(1) == 1
    threads = [threading.Thread(target=model, args=(1,)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert recorded(folder) == [str(os.getpid())]
    assert list(work.map([1] * 10)) == [1] * 10
    loads = recorded(folder)
    assert len(loads) == len(set(loads)) >= 2
    assert loads.count(str(os.getpid())) == 1


def test_s22_loaders_call_other_loaders(folder):
    """Each is loaded once; a change of the inner one is a change of the outer one too."""

    def define(version):
        @nbmap.per_worker
        def tokens():
            record(folder, f"tokens {version} {os.getpid()}")
            return [version]

        @nbmap.per_worker
        def model():
            record(folder, f"model {version} {os.getpid()}")
            return [*tokens(), "model"]

        return nbmap.remote(lambda x: (model(), tokens()), concurrency=4)

    for version in (1, 1, 2):
        assert list(define(version).map(range(12))) == [([version, "model"], [version])] * 12
    loads = recorded(folder)
    assert len(loads) == len(set(loads))
    assert {line[:7] for line in loads} == {"tokens ", "model 1", "model 2"}


def test_s22_a_loader_that_calls_itself(folder):
    """With other arguments: each of them is loaded once."""

    @nbmap.per_worker
    def tower(n):
        record(folder, (n, os.getpid()))
        return [n, *(tower(n - 1) if n else [])]

    assert tower(2) == [2, 1, 0]
    assert nbmap.remote(lambda: tower(3))() == [3, 2, 1, 0]
    assert len(recorded(folder)) == len(set(recorded(folder)))


def test_s22_two_loaders_of_one_text_are_two_loaders(folder):
    """What a factory makes twice, with other variables, is used in turn without loading again."""

    def make(name):
        @nbmap.per_worker
        def model():
            record(folder, (name, os.getpid()))
            return [name]

        return model

    left, right = make("left"), make("right")
    work = nbmap.remote(lambda x: (left()[0], right()[0]), concurrency=1)
    assert list(work.map(range(10))) == [("left", "right")] * 10
    loads = recorded(folder)
    assert len(loads) == len(set(loads))


def test_s22_loads_of_different_arguments_do_not_wait_for_each_other(folder):
    """While one load waits for a file another argument's object is loaded."""

    @nbmap.per_worker
    def model(name):
        if name == "slow":
            touch(folder, "slow-loads")
            await_file(folder, "fast-loaded")
        return name

    @nbmap.remote(concurrency=20)
    def work(name):
        if name == "fast":
            await_file(folder, "slow-loads")
        out = model(name)
        if name == "fast":
            touch(folder, "fast-loaded")
        return out

    assert list(work.map(["slow"] * 10 + ["fast"] * 10)) == ["slow"] * 10 + ["fast"] * 10


def test_s22_a_killed_worker_loads_again(folder):
    """A new process has loaded nothing."""
    import signal

    @nbmap.per_worker
    def model():
        record(folder, os.getpid())
        return os.getpid()

    work = nbmap.remote(lambda x: model(), concurrency=2, worker_losses=10)
    first = set(work.map(range(20)))
    os.kill(next(iter(first)), signal.SIGKILL)
    out = set(work.map(range(20)))
    loads = recorded(folder)
    assert len(loads) == len(set(loads))
    assert {str(pid) for pid in first | out} == set(loads)


async def _coroutine():
    pass


@pytest.mark.parametrize("thing", [_coroutine, 3, None, "name"], ids=str)
def test_s22_what_is_no_plain_function_is_refused(thing):
    """With a sentence, when it is decorated."""
    with pytest.raises(TypeError, match="per_worker"):
        nbmap.per_worker(thing)


def test_s22_a_teardown_that_raises_does_not_hurt_the_new_version(one_slot, folder):
    """The new object is loaded and used all the same."""
    source = """
import nbmap
from helpers.files import record

@nbmap.per_worker
def fragile():
    record(FOLDER, f"load {VERSION}")
    yield VERSION
    raise ValueError("in the teardown")

work = nbmap.remote(lambda x: fragile())
"""
    with nbmap.connect(one_slot):
        for version in (1, 2):
            space = {"__name__": "__main__", "FOLDER": folder, "VERSION": version}
            exec(compile(source, "<a cell>", "exec"), space)
            assert list(space["work"].map(range(3))) == [version] * 3
    assert recorded(folder) == ["load 1", "load 2"]
