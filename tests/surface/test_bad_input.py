"""What is wrong is refused before anything runs, with a sentence that says what to do."""

import asyncio
import threading

import pytest
from distributed import Client, LocalCluster
from helpers.files import record, recorded

import nbmap


def work(x):
    return x


@pytest.fixture(scope="module")
def dask_client():
    """A real Dask client that is not the current one."""
    with (
        LocalCluster(
            n_workers=0,
            processes=False,
            dashboard_address=None,
            scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.mark.parametrize("thing", [5, None, 1.5, work])
def test_s10_what_is_not_iterable_is_refused(transport, thing):
    """`handle.map(5)` is a TypeError at the call that names the function and the value."""
    for use in (
        lambda: nbmap.remote(work).map(thing),
        lambda: nbmap.remote(work).map([1], thing),
        lambda: nbmap.remote(work).starmap(thing),
    ):
        with pytest.raises(TypeError, match=r"work\.(star)?map was given .+ not iterable"):
            use()
    assert nbmap.status().runs == 0


def test_s10_no_iterators_are_refused(transport):
    """`.map()` and `.starmap()` of nothing name the function."""
    with pytest.raises(TypeError, match=r"work\.map needs at least one"):
        nbmap.remote(work).map()
    with pytest.raises(TypeError, match=r"starmap"):
        nbmap.remote(work).starmap()


def test_s10_a_handle_as_input_is_refused(transport):
    """A handle, or its method, where inputs are expected is a TypeError."""
    handle = nbmap.remote(work)
    for thing in (handle, handle.map):
        with pytest.raises(TypeError, match=r"work\.map"):
            handle.map(thing)


def test_s10_what_is_no_iterable_of_either_kind_is_refused(transport):
    """A coroutine, or an async generator function that was not called, holds no inputs."""

    async def inputs():
        yield 1

    async def coroutine():
        return [1]

    waiting = coroutine()
    for thing in (inputs, coroutine, waiting):
        with pytest.raises(TypeError, match=r"work\.map was given .+ not iterable"):
            nbmap.remote(work).map(thing)
        with pytest.raises(TypeError, match=r"work\.map was given .+ not iterable"):
            nbmap.remote(work).map.aio(thing)
    waiting.close()
    assert nbmap.status().runs == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"concurency": 2}, ["concurency", "concurrency"]),
        ({"retry": 2}, ["retry", "retries"]),
        ({"image": "x"}, ["image"]),
        ({"concurrency": "five"}, ["concurrency", "'five'"]),
        ({"concurrency": 0}, ["concurrency", "0"]),
        ({"concurrency": True}, ["concurrency", "True"]),
        ({"concurrency": 2, "max_containers": 3}, ["concurrency", "max_containers"]),
        ({"concurrency_limit": 2, "max_containers": 2}, ["concurrency_limit", "max_containers"]),
        ({"timeout": "soon"}, ["timeout", "'soon'"]),
        ({"timeout": 0}, ["timeout", "0"]),
        ({"timeout": -1}, ["timeout", "-1"]),
        ({"timeout": "0s"}, ["timeout", "'0s'"]),
        ({"timeout": float("nan")}, ["timeout", "nan"]),
        ({"timeout": True}, ["timeout", "True"]),
        ({"gpu": "A100:none"}, ["gpu", "A100:none"]),
        ({"retries": -1}, ["retries", "-1"]),
        ({"retries": 1.5}, ["retries", "1.5"]),
        ({"retries": True}, ["retries", "True"]),
        ({"retries": "two"}, ["retries", "'two'"]),
        ({"worker_losses": 0}, ["worker_losses", "0"]),
    ],
    ids=str,
)
def test_s17_wrong_options_are_refused_when_the_handle_is_made(options, words):
    """The error is an OptionError that names the option and the value, or the nearest match."""
    for make in (lambda: nbmap.remote(**options), lambda: nbmap.remote(work, **options)):
        with pytest.raises(nbmap.OptionError) as caught:
            make()
        assert [word for word in words if word not in str(caught.value)] == []


NO_GPU = r"gpu='(A100|any)'.*(matches nothing|pip install nbmap\[cuda12\].*nbmap\[cuda13\])"


def test_s17_g20_a_gpu_where_there_is_none_is_refused_when_used(transport, folder):
    """The decorator takes it; calls and maps refuse it, and nothing runs."""
    handle = nbmap.remote(lambda x: record(folder, x), gpu="A100")
    stream = nbmap.remote(lambda x: (yield record(folder, x)), gpu=True)
    for use in (
        lambda: handle(1),
        lambda: list(handle.map([1])),
        lambda: list(handle.starmap([(1,)])),
        lambda: handle.for_each([1]),
        lambda: handle.spawn(1).get(),
        lambda: asyncio.run(handle.remote.aio(1)),
        lambda: list(stream.map([1])),
        lambda: list(stream.remote_gen(1)),
    ):
        with pytest.raises(nbmap.ClusterError, match=NO_GPU):
            use()
    assert recorded(folder) == []
    assert nbmap.status().runs == 0


def test_s17_a_choice_that_ends_with_cpu_runs_where_there_is_no_gpu(transport):
    """As it was asked for."""
    assert nbmap.remote(abs, gpu="A100|cpu").map([-1]).results() == [1]


@pytest.mark.parametrize("method", ["map", "starmap"])
def test_s17_an_unknown_keyword_of_map_is_refused(transport, method):
    """It is named, with where constant arguments go."""
    with pytest.raises(TypeError, match=r"'scale'.+kwargs="):
        getattr(nbmap.remote(work), method)([(1,)], scale=2)


@pytest.mark.parametrize("name", ["return_exception", "order_output", "max_failure"])
def test_s17_a_mistyped_keyword_of_map_gets_the_nearest(transport, name):
    """The refusal names the option that was probably meant."""
    with pytest.raises(TypeError, match=f"{name}s"):
        nbmap.remote(work).map([1], **{name: True})


def test_s17_an_option_of_the_handle_is_not_one_of_map(transport):
    """The refusal says where it belongs, unless the function has an argument of that name."""
    for name, value in (("concurrency", 3), ("timeout", "10m"), ("max_containers", 2)):
        said = rf"@nbmap\.remote\({name}={value!r}\)"
        with pytest.raises(TypeError, match=f"{name!r}; it is one of the handle: .+{said}"):
            nbmap.remote(work).map([1], **{name: value})
    with pytest.raises(TypeError, match=r"constant arguments .+kwargs=\{'timeout'"):
        nbmap.remote(lambda x, timeout: x).map([1], timeout=5)
    with pytest.raises(TypeError, match="did you mean 'concurrency'"):
        nbmap.remote(work).map([1], concurency=3)


@pytest.mark.parametrize("value", [-1, "5", "many", 1.5, "101%", True])
def test_s17_a_wrong_max_failures_is_refused(transport, value):
    """It is an OptionError when map is called."""
    with pytest.raises(nbmap.OptionError, match="max_failures"):
        nbmap.remote(work).map([1], max_failures=value)


@pytest.mark.parametrize("kwargs", [5, "text", [1], {1: 2}], ids=repr)
def test_s10_wrong_kwargs_are_refused(transport, kwargs):
    """`kwargs=` that is no mapping of names is refused at the call, not once per input."""
    with pytest.raises((TypeError, nbmap.OptionError), match="kwargs"):
        nbmap.remote(work).map([1], kwargs=kwargs)


LOCKS = {
    "lock": threading.Lock,
    "asyncio.lock": asyncio.Lock,
    "asyncio.condition": asyncio.Condition,
    "asyncio.semaphore": asyncio.Semaphore,
    "asyncio.event": asyncio.Event,
}


def closing_over(kind, folder, client):
    if kind == "file":
        thing = (folder / "open.txt").open("w")
    else:
        thing = client if kind == "client" else LOCKS[kind]()

    def use(x):
        record(str(folder), x)
        return thing

    return use, thing


@pytest.mark.parametrize("kind", ["file", "client", *LOCKS])
def test_f4_what_cannot_be_sent_is_named_when_map_is_called(transport, tmp_path, dask_client, kind):
    """A function closing over a lock, an open file or a Dask client names the variable.

    So does one of asyncio, which could be pickled: each copy would lock out nobody but itself.
    """
    function, thing = closing_over(kind, tmp_path, dask_client)
    handle = nbmap.remote(function)
    try:
        for use in (lambda: handle.map([1, 2]), lambda: handle(1)):
            with pytest.raises(nbmap.Unpicklable, match=r"use can't be sent .+'thing'"):
                use()
    finally:
        if kind == "file":
            thing.close()
    assert recorded(tmp_path) == []
    assert nbmap.status().runs == 0


def test_f4_a_global_a_default_and_a_constant_are_named_too(transport):
    """Whatever way it is brought along."""
    lock = threading.Lock()

    def default(x, held=lock):
        return held

    with pytest.raises(nbmap.Unpicklable, match="default"):
        nbmap.remote(default).map([1])
    with pytest.raises(nbmap.Unpicklable, match="LOCK"):
        nbmap.remote(of_main("def use(x):\n    return LOCK", LOCK=lock)).map([1])
    with pytest.raises(nbmap.Unpicklable, match="held"):
        nbmap.remote(work).map([1], kwargs={"held": lock})


def test_f4_a_decorator_that_makes_what_cannot_be_sent_is_blamed(transport):
    """A cached function of a notebook goes by its name, which is the handle's now."""
    text = "import functools\n@functools.lru_cache\ndef use(x):\n    return x"
    with pytest.raises(nbmap.Unpicklable, match=r"use can't be sent .+ decorators .+Take them off"):
        nbmap.remote(of_main(text)).map([1])


def of_main(text, **names):
    """Return the function `use` of a text, as if it were written in a cell."""
    names["__name__"] = "__main__"
    exec(text, names)
    return names["use"]


@pytest.mark.parametrize(
    "address", ["tcp://127.0.0.1:9", "127.0.0.1:9", "nonsense", "/no/such/file.json"]
)
def test_s17_an_address_where_nobody_listens(address):
    """A cluster that can't be reached is a ClusterError that names it, at once."""
    with pytest.raises(nbmap.ClusterError, match=r"127\.0\.0\.1:9|nonsense|no/such"):
        nbmap.connect(address)
    with pytest.raises(nbmap.ClusterError):
        nbmap.remote(work, cluster=address).map([1])


@pytest.mark.parametrize("thing", [5, object(), ["tcp://a:1"]], ids=["int", "object", "list"])
def test_s17_what_is_no_cluster_is_refused(thing):
    """`connect` of something else says what it takes."""
    with pytest.raises(nbmap.OptionError, match="scheduler"):
        nbmap.connect(thing)


@pytest.mark.parametrize(
    "option", ["order_outputs", "return_exceptions", "wrap_returned_exceptions", "keep"]
)
@pytest.mark.parametrize("value", ["no", 1, []])
def test_s17_flags_are_true_or_false(transport, option, value):
    """A text such as "no" would count as true, so it is refused."""
    with pytest.raises(nbmap.OptionError, match=option):
        nbmap.remote(abs).map([1], **{option: value})


def test_s11_starmap_takes_one_iterable(transport):
    """Two are refused by the function's name, with what to write instead."""
    with pytest.raises(TypeError, match=r"pow\.starmap takes one iterable.*pow\.map"):
        nbmap.remote(pow).starmap([1], [2])


def test_s10_a_function_may_have_an_argument_named_self(transport):
    """A handle's own argument names are nobody's business."""
    assert nbmap.remote(lambda self: self + 1)(self=1) == 2
