"""What happens to an input on a GPU, and to those after it."""

import pytest
from helpers.gpus import A100, T4

DRIVER = """
    def context():
        from cuda.bindings import driver
        from cuda.core import Device

        Device().set_current()
        return driver

    def check(told):
        if told[0]:
            raise RuntimeError(f"CUDA error: {told[0].name}")
        return told[1:]
""".strip()


def test_g11_memory_that_is_full_is_told_with_the_failure(on):
    """With the GPU and what is in use of it; the other inputs succeed, and nothing stays in use."""
    code = f"""
    {DRIVER}

    def take(gigabytes):
        driver = context()
        mine, = check(driver.cuMemAlloc(30 << 30))
        try:
            more, = check(driver.cuMemAlloc(gigabytes << 30))
            check(driver.cuMemFree(more))
        finally:
            check(driver.cuMemFree(mine))
        return gigabytes

    def main():
        from nbmap.worker import gpus

        run = nbmap.remote(take, gpu="A100").map([1, 100, 2], return_exceptions=True)
        out = [x if isinstance(x, int) else [repr(x), x.exc.__notes__] for x in run]
        used = gpus.used([gpu[0] for gpu in gpus.look()["gpus"]])[0]["used"]
        return out, run.traceback(1), used
    """
    (first, (error, notes), last), text, used = on([A100], code)
    assert (first, last) == (1, 2)
    assert "CUDA_ERROR_OUT_OF_MEMORY" in error
    [note] = [note for note in notes if "GiB" in note]
    assert note.startswith("NVIDIA A100-SXM4-80GB: ")
    assert "of 80.0 GiB in use by 1 process" in note
    assert note in text
    assert used == 0


def test_g11_what_a_failed_function_had_on_the_gpu_is_given_back(on):
    """Though the failures are kept, with their tracebacks: four times 30 of 80 GB fit."""
    code = f"""
    {DRIVER}

    class Buffer:
        def __init__(self):
            self.driver = context()
            self.at, = check(self.driver.cuMemAlloc(30 << 30))

        def __del__(self):
            check(self.driver.cuMemFree(self.at))

    def work(x):
        buffer = Buffer()
        raise ValueError(f"{{x}} of mine")

    def main():
        run = nbmap.remote(work, gpu="A100").map(range(4), return_exceptions=True)
        return [str(error) for error in run]
    """
    told = on([A100], code)
    assert [text.partition(" of mine")[0] for text in told] == ["0", "1", "2", "3"]


def test_g12_a_process_whose_cuda_is_dead_is_started_anew(on):
    """It costs the input that killed it, and no other, though many wait in the same chunk."""
    code = f"""
    {DRIVER}

    def work(x):
        import ctypes
        from cuda.core import Device

        driver = context()
        uuid = Device().uuid
        if x == 40:
            ctypes.CDLL("libcuda.so.1").fake_cuda_trap()
        check(driver.cuCtxSynchronize())
        return x, os.getpid(), uuid

    def main():
        run = nbmap.remote(work, gpu="A100").map(range(100), return_exceptions=True)
        out = [x if isinstance(x, tuple) else repr(x) for x in run]
        return out, [row["attempts"] for row in run.records()]
    """
    out, attempts = on([A100], code)
    assert "CUDA_ERROR_ILLEGAL_ADDRESS" in out.pop(40)
    assert [x for x, _, _ in out] == [*range(40), *range(41, 100)]
    assert set(attempts) == {1}
    before, after = {pid for _, pid, _ in out[:40]}, {pid for _, pid, _ in out[40:]}
    assert len(before) == len(after) == 1
    assert before != after
    assert len({uuid for *_, uuid in out}) == 1


def test_g13_a_gpu_that_falls_off_the_bus_is_left_alone(on):
    """It costs the input that was on it; one message says so, and nothing floods the terminal."""
    code = f"""
    {DRIVER}

    def work(x):
        from cuda.core import Device

        driver = context()
        for _ in range(5):
            check(driver.cuCtxSynchronize())
            time.sleep(0.05)
        return x, Device().uuid

    def main():
        run = nbmap.remote(work, gpu="A100").map(range(20), return_exceptions=True)
        while run.counts["done"] < 4:
            time.sleep(0.01)
        open(os.environ["FAKE_GPU_STATE"] + "/lost.0", "w").close()
        out = [x if isinstance(x, tuple) else repr(x) for x in run]
        again = nbmap.remote(work, gpu="A100").map(range(4)).results()
        return out, run.snapshot().note, again, refused(gpu="A100:2")
    """
    out, note, again, (kind, why) = on([A100, A100], code)
    [failed] = [x for x in out if isinstance(x, str)]
    assert "CUDA_ERROR_DEVICE_UNAVAILABLE" in failed
    assert [x for x, _ in out[:4]] == [*range(4)]
    assert len({uuid for _, uuid in out[:4]}) == 2
    assert len({uuid for _, uuid in [*out[10:], *again]}) == 1
    assert note.startswith("NVIDIA A100-SXM4-80GB (GPU-")
    assert note.endswith("does not answer any more: left alone")
    assert "Traceback" not in on.err
    assert len(on.err.splitlines()) < 20
    assert kind == "NoMatchingGPU"
    assert "this machine has 1" in why


def test_g13_a_run_ends_when_no_gpu_is_left(on):
    """It says what has become of them, and so does the next one."""
    code = f"""
    {DRIVER}

    def work(x):
        driver = context()
        check(driver.cuCtxSynchronize())
        time.sleep(0.1)
        return x

    def main():
        run = nbmap.remote(work, gpu="A100").map(range(50), return_exceptions=True)
        while run.counts["done"] < 2:
            time.sleep(0.01)
        open(os.environ["FAKE_GPU_STATE"] + "/lost.0", "w").close()
        try:
            list(run)
        except nbmap.ClusterError as error:
            return str(error), run.status, refused(gpu="A100")
    """
    told, status, (kind, why) = on([A100], code)
    assert status == "broken"
    assert told.startswith("no GPU is left for gpu='A100': NVIDIA A100-SXM4-80GB (GPU-")
    assert "does not answer any more" in told
    assert kind == "ClusterError"
    assert "none of the 1 GPU answers any more: restart the machine" in why


def test_g12_a_kernel_that_fails_after_its_function_has_returned_fails_that_input(on):
    """CUDA says so to whoever waits next; that is not the next input."""
    code = f"""
    {DRIVER}

    def work(x):
        import ctypes

        driver = context()
        check(driver.cuCtxSynchronize())
        if x in (2, 5):
            ctypes.CDLL("libcuda.so.1").fake_cuda_trap()
        return x

    def stream(x):
        yield x
        work(x)

    def main():
        out = list(nbmap.remote(work, gpu="A100").map(range(8), return_exceptions=True))
        run = nbmap.remote(stream, gpu="A100").map(range(8), return_exceptions=True)
        streamed = [x for x in run if isinstance(x, int)]
        return [str(x) for x in out], streamed, [failure.index for failure in run.failures]
    """
    out, streamed, failed = on([A100], code)
    assert [x for x in out if x.isdigit()] == [str(x) for x in (0, 1, 3, 4, 6, 7)]
    assert all("after the function had returned" in out[at] for at in (2, 5))
    assert streamed == list(range(8))
    assert failed == [2, 5]


@pytest.mark.parametrize(("seconds", "n"), [(0.3, 40), (0.02, 400)])
def test_g13_a_gpu_on_which_cuda_dies_three_times_is_left_alone(on, seconds, n):
    """Of three inputs; the others run on the other GPU. What was sent ahead counts for nothing."""
    code = f"""
    {DRIVER}

    def work(x):
        import ctypes
        from cuda.core import Device

        driver = context()
        if Device().uuid.endswith("0"):
            ctypes.CDLL("libcuda.so.1").fake_cuda_trap()
        check(driver.cuCtxSynchronize())
        time.sleep({seconds})
        return x

    def main():
        run = nbmap.remote(work, gpu="A100").map(range({n}), return_exceptions=True)
        return sum(not isinstance(x, int) for x in run), run.snapshot().note
    """
    failures, note = on([A100, A100], code)
    assert failures == 3
    assert note.startswith("NVIDIA A100-SXM4-80GB (GPU-")
    assert "CUDA has died on it in 3 processes one after the other: left alone" in note


def test_g20_figures_of_the_gpus_while_a_run_goes_on(on):
    """Name, memory and load of each, in what views show and in the status; gone with the run."""
    code = """
    def work(x):
        while not os.path.exists(os.environ["FAKE_GPU_STATE"] + "/go"):
            time.sleep(0.02)
        return [[d.index, d.uuid, d.name, d.memory] for d in nbmap.devices()]

    def main():
        state = os.environ["FAKE_GPU_STATE"]
        for name, figure in {"used.0": 40 << 30, "util.0": 77}.items():
            with open(f"{state}/{name}", "w") as file:
                file.write(str(figure))
        run = nbmap.remote(work, gpu=True).map(range(2))
        while not run.snapshot().gpus:
            time.sleep(0.05)
        shown = [[use.name, use.used, use.total, use.busy] for use in run.snapshot().gpus]
        status = repr(nbmap.status())
        open(f"{state}/go", "w").close()
        devices = run.results()
        return shown, status, devices, [d.name for d in nbmap.devices()], len(run.snapshot().gpus)
    """
    shown, status, devices, here, after = on([A100, "NVIDIA GB10:131072:nomem"], code)
    assert shown == [
        ["NVIDIA A100-SXM4-80GB", 40 << 30, 80 << 30, 77],
        ["NVIDIA GB10", None, None, 0],
    ]
    assert status.splitlines()[1:] == [
        "GPU 0: NVIDIA A100-SXM4-80GB · 40.0 of 80.0 GiB · 77 % busy",
        "GPU 1: NVIDIA GB10 · memory n/a · 0 % busy",
    ]
    assert {name: (at, memory) for [[at, _, name, memory]] in devices} == {
        "NVIDIA A100-SXM4-80GB": (0, 80 << 30),
        "NVIDIA GB10": (0, None),
    }
    assert here == ["NVIDIA A100-SXM4-80GB", "NVIDIA GB10"]
    assert after == 0


def test_nbmap_devices_are_those_of_the_input_alone(on):
    """Of four GPUs two inputs have two each; without gpu= there are none."""
    code = """
    def work(x):
        time.sleep(0.3)
        return [(d.index, d.uuid) for d in nbmap.devices()]

    def main():
        return (
            nbmap.remote(work, gpu="A100:2").map(range(2)).results(),
            nbmap.remote(work).map([1]).results(),
        )
    """
    (first, second), [none] = on([A100] * 4, code)
    assert [at for at, _ in first] == [at for at, _ in second] == [0, 1]
    assert len({uuid for _, uuid in [*first, *second]}) == 4
    assert none == []


def test_g19_what_is_loaded_per_worker_is_loaded_once_on_each_gpu(on):
    """And again in a process that was started anew, or when its code has changed."""
    code = """
    def note(word):
        with open(os.environ["FAKE_GPU_STATE"] + "/loads", "a") as file:
            file.write(f"{os.getpid()} {word}\\n")

    def noted():
        with open(os.environ["FAKE_GPU_STATE"] + "/loads") as file:
            return [line.split() for line in file]

    @nbmap.per_worker
    def model():
        note("first")
        return os.getpid()

    @nbmap.remote(gpu="A100")
    def use(x):
        dies = os.environ["FAKE_GPU_STATE"] + "/died"
        if x == 9 and not os.path.exists(dies):
            open(dies, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.05)
        assert model() == os.getpid()
        while x >= 20 and len(noted()) < 3:  # until the process that was started anew is there
            time.sleep(0.05)
        return x

    def main():
        global model
        assert use.map(range(8)).results() == [*range(8)]
        before = noted()
        assert use.map(range(8, 30)).results() == [*range(8, 30)]
        restarted = noted()

        @nbmap.per_worker
        def model():
            note("second")
            return os.getpid()

        assert use.map(range(8)).results() == [*range(8)]
        return before, restarted, noted()
    """
    before, restarted, changed = on([A100, A100], code)
    assert len(before) == len({pid for pid, _ in before}) == 2
    assert len(restarted) == len({pid for pid, _ in restarted}) == 3
    assert [word for _, word in changed] == ["first"] * 3 + ["second"] * 2


def test_g13_the_second_gpu_of_a_pair_is_lost(on):
    """Its process has a dead context, and is no place for others."""
    code = f"""
    {DRIVER}

    def work(x):
        from cuda.bindings import driver
        from cuda.core import Device

        for index in range(2):
            Device(index).set_current()
            check(driver.cuCtxSynchronize())
        time.sleep(0.1)
        return x

    def main():
        run = nbmap.remote(work, gpu="A100:2").map(range(80), return_exceptions=True)
        while run.counts["done"] < 4:
            time.sleep(0.01)
        open(os.environ["FAKE_GPU_STATE"] + "/lost.1", "w").close()
        return sum(not isinstance(x, int) for x in run), run.snapshot().note
    """
    failures, note = on([A100] * 4, code)
    assert failures <= 2
    assert "left alone" in note


def test_g13_a_lost_gpu_among_those_that_are_visible(on, state):
    """The others are used, by number or by UUID; none runs on the CPU by mistake."""
    (state / "lost.0").touch()
    code = """
    def main():
        out = nbmap.remote(where, gpu="A100|cpu").map(range(4)).results()
        return len({x["uuid"] for x in out}), len({x["pid"] for x in out})
    """
    assert on([A100] * 3, code, CUDA_VISIBLE_DEVICES="0,1,2") == [2, 2]
    assert "Traceback" not in on.err


def test_g8_an_input_that_waited_for_another_goes_on_alone_on_its_gpu(on):
    """Nested calls on GPUs: two inputs are never on one at a time."""
    code = """
    def log(name, began):
        return name, os.environ["CUDA_VISIBLE_DEVICES"], began, time.time()

    @nbmap.remote(gpu="A100")
    def short(x):
        began = time.time()
        time.sleep(0.2)
        return log("short", began)

    @nbmap.remote(gpu="A100")
    def outer(x):
        began = time.time()
        time.sleep(0.2)
        first = log("outer", began)
        child = short.remote(x)
        began = time.time()
        time.sleep(1)
        return [first, child, log("outer again", began)]

    @nbmap.remote(gpu="A100")
    def longer(x):
        began = time.time()
        time.sleep(2)
        return [log("longer", began)]

    def main():
        short(0)
        first = outer.map(range(2))
        time.sleep(0.15)
        second = longer.map(range(3))
        return [event for out in [*first, *second] for event in out]
    """
    events = on([A100, A100], code)
    assert len(events) == 9
    for at, (name, gpu, began, ended) in enumerate(events):
        for other, its, start, stop in events[at + 1 :]:
            assert gpu != its or began >= stop - 0.02 or start >= ended - 0.02, (name, other)


def test_a_process_that_cannot_use_its_gpu_is_refused_each_time(on, libraries, tmp_path):
    """Not only at the first call; another request works meanwhile."""
    (tmp_path / "half").mkdir()
    nvml = libraries / "libnvidia-ml.so.1"
    (tmp_path / "half" / nvml.name).symlink_to(nvml)
    code = """
    def main():
        return [refused(gpu="T4") for _ in range(2)]
    """
    told = on([T4], code, LD_LIBRARY_PATH=str(tmp_path / "half"))
    for kind, text in told:
        assert kind == "ClusterError"
        assert "a process can't use its GPU: CUDA does not start" in text
    assert "Traceback" not in on.err


def test_processes_on_gpus_share_the_machines_memory(on):
    """Also where a second division comes after a first one."""
    code = """
    def limit(x):
        from distributed import get_worker

        time.sleep(0.2)
        return get_worker().memory_manager.memory_limit

    def main():
        from nbmap.engine.memory import memory_limit

        one = nbmap.remote(limit, gpu="T4:0.5").map(range(8)).results()
        two = nbmap.remote(limit, gpu="A100").map(range(2)).results()
        return memory_limit(), one, two
    """
    whole, one, two = on([A100, T4, T4], code)
    assert len(set(one)) == 1
    assert 4 * one[0] <= whole
    assert whole // 8 < two[0] <= whole // 5


def test_gpus_of_a_run_that_goes_on_are_not_divided_anew(on):
    """Not between two of its inputs either: it would wait for its processes for ever."""
    code = """
    def slow_inputs():
        for x in range(6):
            time.sleep(0.5)
            yield x

    def main():
        run = nbmap.remote(where, gpu="A100").map(slow_inputs(), keep=True)
        while run.counts["done"] < 1:
            time.sleep(0.05)
        time.sleep(0.2)
        kind, text = refused(gpu="A100:0.5")
        out = [x["x"] for x in run]
        halves = nbmap.remote(where, gpu="A100:0.5").map([1]).results()
        return kind, text, out, len(halves)
    """
    kind, text, out, halves = on([A100], code)
    assert kind == "ClusterError"
    assert "another division" in text
    assert out == [0, 1, 2, 3, 4, 5]
    assert halves == 1
