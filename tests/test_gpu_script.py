"""The script for machines with a GPU, on one without: its times, its report, how parts fail."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cupy_backend.on_device import UNTOUCHED, DeviceError, DeviceModule

import tinygrad_cnn as tg
from tinygrad_cnn import backends
from tinygrad_cnn.backends import BackendUnavailable


def python(program):
    """Make a part's command of a program."""
    return lambda seconds, out: [sys.executable, "-c", program]


@pytest.fixture
def gpu(load):
    """Load the script; with a grace that tests have time for."""
    module = load("gpu")
    module.GRACE = 0.5
    return module


@pytest.fixture
def part(gpu):
    """Make a part of a program."""
    return lambda program, obstacle="": gpu.Part(1, obstacle, python(program), "a question")


@pytest.fixture
def pretend(gpu, monkeypatch):
    """Let the script find a card, and have other parts."""

    def pretend(**parts):
        found = SimpleNamespace(name="cupy")
        monkeypatch.setattr(gpu, "backends", SimpleNamespace(get=lambda name: found))
        monkeypatch.setattr(gpu.device, "card", lambda backend: "A card, 80 GiB")
        monkeypatch.setattr(gpu, "parts", lambda data_dir: parts)

    return pretend


# ---- the whole ----


def test_without_a_card_there_is_a_sentence(run_benchmark, gpu, monkeypatch, tmp_path):
    def get(name):
        raise BackendUnavailable("cupy", "no card", "another machine")

    monkeypatch.setattr(gpu, "backends", SimpleNamespace(get=get))
    status, out, err = run_benchmark("gpu", "--out", tmp_path / "results")
    assert (status, out) == (1, "")
    assert err == "gpu: backend 'cupy' can't run here: no card; try: another machine\n"
    assert not (tmp_path / "results").exists()


def test_what_goes_wrong_does_not_stop_the_rest(run_benchmark, pretend, part, tmp_path):
    (tmp_path / "last.md").write_text("### An older table\n")
    table = f"open({str(tmp_path / 'last.md')!r}, 'w').write('### A table'); print('1 row')"
    pretend(
        first=part("print('well | done ===')"),
        second=part("print('before'); 1 / 0"),
        third=part("", obstacle="it is not on the PATH"),
        last=part(table),
    )
    status, out, err = run_benchmark("gpu", "--out", tmp_path, "--minutes", 0.5)
    assert status == 1
    assert err.startswith(f"gpu: not passed: second; {tmp_path / 'log.txt'} has")
    assert "A card, 80 GiB" in out
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    cells = [line.strip("| ").split(" | ") for line in report.splitlines() if line[:2] == "| "][1:]
    assert [(c[0], c[2], c[4]) for c in cells] == [
        ("first", "passed", "well / done"),
        ("second", "failed", "ZeroDivisionError: division by zero"),
        ("third", "skipped", "it is not on the PATH"),
        ("last", "passed", "1 row"),
    ]
    assert "### A table" in report
    assert "An older table" not in report
    assert "Traceback" in report.partition("### second: failed")[2]
    assert "=== last: " in (tmp_path / "log.txt").read_text(encoding="utf-8")


def test_all_passed(run_benchmark, pretend, part, tmp_path):
    pretend(a=part("print('fine')"), b=part("", obstacle="not here"))
    status, out, err = run_benchmark("gpu", "--out", tmp_path, "--minutes", 0.5)
    assert (status, err) == (0, "")
    assert out.splitlines()[-1] == f"wrote {tmp_path / 'report.md'}"


def test_some_parts_only(run_benchmark, pretend, part, tmp_path):
    pretend(a=part("print('fine')"), b=part("1 / 0"))
    options = ["--out", tmp_path, "--minutes", 0.5]
    assert run_benchmark("gpu", *options, "--only", "a")[0] == 0
    assert "| b |" not in (tmp_path / "report.md").read_text(encoding="utf-8")
    status, _, err = run_benchmark("gpu", *options, "--only", "a,c")
    assert status == 2
    assert "no part 'c'; there are a, b" in err


def test_the_race_wants_a_folder(run_benchmark, gpu):
    status, _, err = run_benchmark("gpu", "--race")
    assert status == 2
    assert "--race wants --data-dir" in err


# ---- the parts ----


def test_parts_that_need_what_is_missing_are_skipped(gpu, monkeypatch):
    there = {"torch", "xdist"}
    monkeypatch.setattr(gpu, "find_spec", lambda name: name in there or None)
    monkeypatch.setattr(gpu.shutil, "which", lambda name, path: None)
    found = {name: part.obstacle for name, part in gpu.parts(None).items() if part.obstacle}
    no_tests = "not installed; pip install pytest hypothesis"
    assert found == {
        "kernels": no_tests, "backend": no_tests,
        "memcheck": gpu.NO_SANITIZER, "racecheck": gpu.NO_SANITIZER,
    }  # fmt: skip
    there |= {"pytest", "hypothesis"}
    assert not gpu.parts(None)["kernels"].obstacle


def test_commands_of_the_parts(gpu, load):
    """Each is one that exists: a file, a function, a marker."""
    known, out = load("gpu_parts").PARTS, Path("results")
    markers = (gpu.ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for part in gpu.parts(Path("data")).values():
        command = [*map(str, part.command(100, out))]
        if "pytest" in command:
            assert f'"{command[command.index("-m", 3) + 1]}: ' in markers
        elif any(word.endswith("gpu_parts.py") for word in command):
            name = next(i for i, word in enumerate(command) if word.endswith("gpu_parts.py")) + 1
            assert command[name] in known
            assert command[name + 1 : name + 5] == ["--seconds", "99.0", "--out", "results"]
    assert gpu.parts(Path("data"))["race"].command(1, out)[-2:] == ["--data-dir", Path("data")]
    assert "race" not in gpu.parts(None)


def test_the_table_of_parts_takes_its_time_in_order(gpu, part, monkeypatch, tmp_path):
    """A part may take its share of what is left, so that what one leaves is the others'."""
    given, now = {}, [100.0]

    def run_part(name, part, seconds, **settings):
        given[name] = seconds
        now[0] += 2.0 if name == "quick" else seconds
        return gpu.Result(name, "passed", 0, "")

    monkeypatch.setattr(gpu, "run_part", run_part)
    monkeypatch.setattr(gpu.time, "monotonic", lambda: now[0])
    shares = dict(quick=1, long=2, last=1)
    chosen = {name: part("")._replace(share=share) for name, share in shares.items()}
    gpu.run_all(chosen, [], end=140.0, out=tmp_path)
    assert given == pytest.approx(dict(quick=10.0, long=38 * 2 / 3, last=38 / 3))


# ---- a process and its time ----

STARTS_ANOTHER = """
import subprocess, sys, time
another = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(another.pid, flush=True)
try:
    time.sleep(600)
except KeyboardInterrupt:
    print("asked to end", flush=True)
    {}
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no sessions of processes")
@pytest.mark.parametrize("then", ["pass", "time.sleep(600)"], ids=["polite", "stubborn"])
def test_out_of_time(gpu, part, tmp_path, then):
    """It is asked first, then ended, and what it has started with it."""
    slow = part(STARTS_ANOTHER.format(then))
    result = gpu.run_part("slow", slow, 3.0, out=tmp_path, env=os.environ)
    pid, said = result.said.split("\n", 1)
    assert (result.outcome, said) == ("out of time", "asked to end\n")
    for _ in range(500):  # it is dead at once, but whoever inherits it must take note
        if not alive(int(pid)):
            break
        time.sleep(0.02)
    assert not alive(int(pid))


def alive(pid):
    """Tell whether a process runs; a dead one that nobody has waited for does not."""
    stat = Path(f"/proc/{pid}/stat")
    if stat.exists():
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return not Path("/proc/self").exists()


def test_a_sanitizer_that_knows_no_such_device_is_no_failure(gpu):
    assert gpu.outcome(1, "Error: Device not supported. Please ...") == "skipped"
    assert gpu.outcome(9, "ERROR SUMMARY: 2 errors") == "failed"
    assert gpu.outcome(0, "") == "passed"


def test_where_the_processes_write(gpu, monkeypatch, tmp_path):
    monkeypatch.setenv("CUPY_CACHE_DIR", "mine")
    monkeypatch.setenv("PYTHONPATH", "other")
    env = gpu.environment(tmp_path)
    assert env["CUPY_CACHE_DIR"] == "mine"
    assert env["TRITON_CACHE_DIR"] == str(tmp_path / "triton")
    assert env["PYTHONPATH"].split(os.pathsep) == [str(gpu.ROOT), "other"]
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    assert gpu.cache_folder() == tmp_path / ".gpu_cache"
    monkeypatch.setattr(gpu, "ROOT", tmp_path / "nowhere")
    elsewhere = gpu.cache_folder()
    assert elsewhere.is_dir()
    assert tmp_path not in elsewhere.parents
    elsewhere.rmdir()


def test_the_driver_is_asked_for(gpu, monkeypatch):
    answers = iter([SimpleNamespace(stdout="580.1\n580.1\n"), SimpleNamespace(stdout="")])
    monkeypatch.setattr(gpu.subprocess, "run", lambda *args, **settings: next(answers))
    assert gpu.driver() == "driver 580.1"
    assert gpu.driver() == "driver "
    monkeypatch.undo()
    monkeypatch.setenv("PATH", "")
    assert gpu.driver() == "nvidia-smi doesn't answer"


# ---- what the processes do ----


@pytest.fixture
def inner(load, monkeypatch, tmp_path):
    """Load gpu_parts and give a setting with time, on numpy."""
    parts = load("gpu_parts")
    monkeypatch.setattr(load("harness"), "PAUSE", 0)
    with tg.use_backend("numpy"):
        yield parts, parts.Setting(backends.get("numpy"), tmp_path, time.monotonic() + 600)


def test_a_row_that_fails_leaves_the_others(inner, load, tmp_path):
    parts, at = inner
    table = load("harness").Table("Numbers", ["n", "1 / n"], [])
    with pytest.raises(RuntimeError, match=r"^1 rows of 3 failed; the first: 0: ZeroDivisionError"):
        parts.fill(table, [1, 0, 2], lambda n: [n, 1 / n], lambda: ["noted"], name="n", at=at)
    text = (tmp_path / "n.md").read_text(encoding="utf-8")
    assert "| 1 | 1.0 |\n| 2 | 0.5 |\n\n0: ZeroDivisionError: division by zero  \nnoted" in text


def test_rows_until_time_is_up(inner, load, monkeypatch, tmp_path):
    parts, at = inner
    hours = iter([0, 1, 1, 4, 4])
    monkeypatch.setattr(parts.time, "monotonic", lambda: next(hours))
    table = load("harness").Table("Numbers", ["n"], [])
    at = at._replace(deadline=6.5)  # the longest took three hours
    assert parts.fill(table, "abcd", lambda n: [n], list, name="n", at=at) == "2 rows of 4"
    assert "time was up after 2 rows of 4" in (tmp_path / "n.md").read_text(encoding="utf-8")


def growing(parts, monkeypatch, used, taken=lambda step: 0):
    """Let a pool hold what `used` says after a step, and others what `taken` does."""
    steps = []
    trainer = SimpleNamespace(step=lambda *batch: steps.append(batch), place=lambda *batch: batch)
    monkeypatch.setattr(parts.steps, "our_trainer", lambda model, weights: trainer)
    pool = SimpleNamespace(used_bytes=lambda: used(len(steps)), total_bytes=lambda: 4096)
    runtime = SimpleNamespace(memGetInfo=lambda: (10**9 - taken(len(steps)), 10**9))
    cuda = SimpleNamespace(runtime=runtime)
    xp = SimpleNamespace(get_default_memory_pool=lambda: pool, cuda=cuda)
    return steps, SimpleNamespace(name="cupy", xp=xp)


def test_memory_that_stays(inner, monkeypatch, tmp_path):
    parts, at = inner
    steps, backend = growing(parts, monkeypatch, lambda step: 10**6 * min(step, 50))
    said = parts.memory(at._replace(backend=backend))
    assert said == "50.0 MB in use after 100 steps, and no more after 1,000"
    assert len(steps) == 1000
    assert {len(targets) for _, targets in steps} == {17, 32}
    assert (tmp_path / "memory.md").read_text(encoding="utf-8").count(
        "| 50.000 | 0.004 | 0.000 |"
    ) == 10


def test_memory_that_grows(inner, monkeypatch):
    parts, at = inner
    _, backend = growing(parts, monkeypatch, lambda step: 8 * step)
    with pytest.raises(RuntimeError, match=r"in use grew by 7200 bytes, what the pool holds by 0"):
        parts.memory(at._replace(backend=backend))
    with pytest.raises(RuntimeError, match=r"^time was up after 1 steps of 1,000"):
        parts.memory(at._replace(backend=backend, deadline=0.0))
    _, backend = growing(parts, monkeypatch, lambda step: 0, lambda step: 10**4 * step)
    told = r"by 0 bytes, what the pool holds by 0, what is taken of the device by 9000000$"
    with pytest.raises(RuntimeError, match=told):
        parts.memory(at._replace(backend=backend))


def test_every_kernel_is_run(inner, monkeypatch):
    parts, at = inner
    own = backends.get("numba")
    with tg.use_backend(own):
        calls = len([*parts.kernels.cases(2, np.random.default_rng(0))])
        assert parts.exercise(at._replace(backend=own)).startswith(f"{calls} calls of kernels")
        right = type(own).relu
        monkeypatch.setattr(type(own), "relu", lambda self, x: 1.01 * right(self, x))
        with pytest.raises(RuntimeError, match=r"^relu 16@32x32 on numba: results differ by 1"):
            parts.exercise(at._replace(backend=own))


@pytest.mark.emulated
def test_products_are_run_in_every_precision(inner, emulated, monkeypatch):
    parts, at = inner
    assert parts.precisions(emulated, "conv2d_weight_grad") == ["fp32", "tf32", "bf16", "fp16"]
    assert parts.precisions(emulated, "relu") == ["fp32"]
    assert parts.precisions(backends.get("numba"), "matmul") == ["fp32"]
    step = SimpleNamespace(step=lambda *batch: 1.0)
    monkeypatch.setattr(parts.steps, "our_trainer", lambda model, weights: step)
    calls = [case.kernel for case in parts.kernels.cases(2, np.random.default_rng(0))]
    rounded = sum(name == "matmul" or name.startswith("conv2d") for name in calls)
    said = parts.exercise(at._replace(backend=emulated))
    assert said.startswith(f"{len(calls) + 3 * rounded} calls of kernels")
    monkeypatch.setattr(type(emulated), "precision_of", lambda self, dtype: "fp16")
    said = f"^conv2d 16@32x32 on {emulated.name}: results differ by"
    with pytest.raises(RuntimeError, match=said):
        parts.exercise(at._replace(backend=emulated))


@pytest.mark.usefixtures("_torch")
def test_layers_on_any_backend(inner, monkeypatch, tmp_path):
    parts, at = inner
    small = [layer._replace(N=1, size=8) for layer in parts.convolutions.LAYERS[:2]]
    monkeypatch.setattr(parts.convolutions, "LAYERS", small)
    monkeypatch.setattr(parts.convolutions, "limits", lambda backend: "no ceilings")
    assert parts.layers(at) == "2 rows of 2"
    text = (tmp_path / "layers.md").read_text(encoding="utf-8")
    assert text.count("1 images | reference |") == 2
    assert "n = 6; no ceilings" in text


@pytest.mark.usefixtures("_torch")
def test_steps_on_any_backend(inner, monkeypatch, tmp_path):
    """The first network has no peer: its row fails, the next is there."""
    parts, at = inner
    monkeypatch.setattr(parts.steps, "limits", lambda backend: "no ceilings")
    cases = [parts.Row(parts.steps.Case(name, 2), parts.EAGER) for name in ("mlp", "resnet8")]
    with pytest.raises(RuntimeError, match=r"1 rows of 2 failed; the first: Row\(case=.*'mlp'"):
        parts.training_steps(cases, name="eager", at=at)
    text = (tmp_path / "eager.md").read_text(encoding="utf-8")
    assert "| network | batch | ours, ms | PyTorch NCHW, ms | PyTorch channels_last, ms |" in text
    assert "| resnet8 | 2 | " in text
    assert "ours reads each step's loss" in text
    assert "images: noise; backend numpy; no ceilings" in text


@pytest.mark.emulated
@pytest.mark.usefixtures("_torch")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_steps_as_graphs(inner, load, recording, monkeypatch, tmp_path, precision):
    (parts, at), harness = inner, load("harness")

    def once(timed, **settings):
        return {side: harness.Timing([harness.stopwatch(call)]) for side, call in timed.items()}

    monkeypatch.setattr(parts.steps, "limits", lambda backend: "no ceilings")
    monkeypatch.setattr(parts.steps, "interleave", once)
    row = parts.Row(parts.steps.Case("resnet8", 2), ["bf16"])
    rounded = precision == "bf16"
    side = parts.steps.BF16_GRAPHS if rounded else parts.steps.GRAPHS
    with tg.use_backend(recording), tg.use_precision(precision, recording):
        named = dict(name="graphs", ours=side, at=at._replace(backend=recording))
        assert parts.training_steps([row], **named) == "1 rows of 1"
    text = (tmp_path / "graphs.md").read_text(encoding="utf-8")
    assert f"| batch | {side}, ms | PyTorch bf16, ms | best PyTorch / ours |" in text
    assert "reads each step's loss" not in text
    assert ("keeps activations in bfloat16" in text) == rounded


def steady(at, do, *, name, pieces):
    return f"{do(1)}, {do(50)}: {name}"


@pytest.mark.emulated
def test_replays_are_compared_with_usual_steps(inner, recording, monkeypatch):
    parts, at = inner
    monkeypatch.setattr(parts, "HALF_BATCH", 1)
    monkeypatch.setattr(parts, "STEPS", 7)
    monkeypatch.setattr(parts, "precisions", lambda backend, kernel: ["fp32", "fp16"])
    monkeypatch.setattr(parts, "steady_memory", steady)
    with tg.use_backend(recording):
        said = parts.replays(at._replace(backend=recording))
    assert said == "after 7 steps the same bits; None, None: replays"


@pytest.mark.emulated
def test_the_first_step_of_a_graph_is_a_replay(inner, recording):
    """And one from the weights that were given."""
    parts, at = inner
    weights, batch = parts.steps.fresh_weights("resnet8"), parts.noise(1)
    with tg.use_backend(recording):
        by_graph, usual = (
            parts.steps.our_trainer("resnet8", weights, graphs=graphs) for graphs in (True, False)
        )
        losses = [float(trainer.step(*batch)) for trainer in (by_graph, usual)]
        assert losses[0] == losses[1]
        for ours, theirs in zip(by_graph.parameters(), usual.parameters(), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        with pytest.raises(RuntimeError, match="a step of 2 images was not replayed as a CUDA gr"):
            by_graph.step(*parts.noise(2))


def test_replays_that_go_wrong(inner, monkeypatch):
    parts, at = inner

    def trainer(weight, graph="a graph"):
        return SimpleNamespace(
            run=lambda: None, recorded=SimpleNamespace(graph=graph),
            state_dict=lambda: {"arrays": {"fc.weight": np.float32([weight, 1])}},
        )  # fmt: skip

    trainers = iter([trainer(1.0), trainer(1.0000001), trainer(1.0, graph=None), trainer(1.0)])
    monkeypatch.setattr(parts, "resident_training", lambda backend, *, graphs: next(trainers))
    with pytest.raises(RuntimeError, match=r"^fc.weight after 20 steps in fp32: results differ by"):
        parts.replays(at)
    with pytest.raises(RuntimeError, match=r"^in fp32 the steps were not recorded$"):
        parts.replays(at)


def test_the_race(inner, load, monkeypatch):
    parts, at = inner
    monkeypatch.setattr(parts.data, "load", lambda folder, images: [None, tg.data.shapes(2)])
    monkeypatch.setattr(load("accuracy"), "ours", lambda recipe, images, seed: (0.945, 43.21))
    assert parts.race(at) == "94.50% on shapes's test images after 43.2 s of training"
    monkeypatch.setattr(load("accuracy"), "ours", lambda recipe, images, seed: (0.93, 43.21))
    with pytest.raises(RuntimeError, match=r"^93.00% on .* of training; expected 94%$"):
        parts.race(at)


def test_a_part_that_is_not_there(run_benchmark):
    status, _, err = run_benchmark("gpu_parts", "speed")
    assert status == 2
    assert "no part 'speed'; there are memory, replays, exercise," in err


# ---- a GPU's clock and ceilings ----


class FakeEvent:
    """An event of a GPU on which each call takes a millisecond."""

    now = 0.0

    def record(self):
        self.at = FakeEvent.now

    def synchronize(self):
        FakeEvent.now += 7  # no part of what is timed


@pytest.fixture
def fake():
    """Imitate the backend cupy; give it and the list of its launches."""
    launches = []

    def kernel(grid, block, args):
        launches.append(args)
        FakeEvent.now += 5

    def product(a, b, out):
        FakeEvent.now += 1

    def copyto(target, source):
        FakeEvent.now += 1

    properties = {"name": b"Card", "totalGlobalMem": 80 * 2**30, "multiProcessorCount": 132}
    runtime = SimpleNamespace(
        getDeviceProperties=lambda number: properties,
        driverGetVersion=lambda: 13010, runtimeGetVersion=lambda: 12090,
    )  # fmt: skip
    cuda = SimpleNamespace(
        Event=FakeEvent, get_elapsed_time=lambda begin, end: end.at - begin.at,
        Device=lambda: SimpleNamespace(id=0), runtime=runtime,
    )  # fmt: skip
    xp = type("fake", (), {})()
    vars(xp).update(
        cuda=cuda, ones=np.ones, empty_like=np.empty_like, matmul=product, copyto=copyto,
        RawKernel=lambda text, name: kernel,
    )  # fmt: skip
    return SimpleNamespace(name="cupy", xp=xp, launches=launches)


class Hashable(SimpleNamespace):
    """A namespace that a cache can hold."""

    __hash__ = object.__hash__


def test_a_gpu_is_timed_by_its_own_clock(load, fake):
    device, calls = load("device"), []

    def call():
        calls.append(len(fake.launches))
        FakeEvent.now += 1

    assert device.clock(fake, calls=4)(call) == pytest.approx(1e-3)
    assert calls == [1] * 4  # asked for behind a kernel that waits
    assert fake.launches == [(5_000_000,)]
    assert device.clock(fake, calls=2, queued=False)(call) == pytest.approx(1e-3)
    assert len(fake.launches) == 1
    assert device.clock(backends.get("numpy")) is load("harness").stopwatch


def test_a_gpu_and_its_ceilings_are_described(load, fake):
    device, backend = load("device"), Hashable(**vars(fake))
    found = device.ceilings(backend, n=100, megabytes=1)
    assert found == pytest.approx((2e6 / 1e-3, 2 * 2**20 / 1e-3))
    assert str(device.Ceilings(51.2e12, 2.97e12)) == (
        "measured here: sgemm 51.2 TFLOP/s, copy 2.97 TB/s"
    )
    assert device.card(backend) == (
        "Card, 80 GiB, 132 multiprocessors, driver for CUDA 13.1, CuPy for CUDA 12.9"
    )


def test_the_roofline_of_a_layer(load, monkeypatch):
    layers, device = load("layers"), load("device")
    monkeypatch.setattr(layers, "ceilings", lambda backend: device.Ceilings(1e12, 1e11))
    layer = layers.Layer("1x1", "64 to 64", 1, 64, 100, 64, 1)
    assert layers.gflop(layer) == pytest.approx(2 * 64 * 64 * 1e4 / 1e9)
    assert layers.gigabytes(layer) == pytest.approx(4 * (2 * 64e4 + 64 * 64) / 1e9)
    seconds = [layers.gflop(layer) / 1e3, 2 * layers.gigabytes(layer) / 1e2]
    cells = layers.rates(layer, SimpleNamespace(name="cupy"), seconds)
    assert cells[0] == f"1000, {layers.gflop(layer) / seconds[1]:.0f}"
    assert cells[2] == "100%, 80%"  # of sgemm, for a copy would take 51 us and it 82


# ---- the tests' arrays on a device ----


def module(kernel):
    """Imitate a CuPy that has one kernel; its arrays are NumPy's."""
    raw = SimpleNamespace(get_function=lambda name: kernel)
    cupy = SimpleNamespace(asarray=np.array, asnumpy=np.array, RawModule=lambda **module: raw)
    return DeviceModule(cupy, code="", options=(), name_expressions=("double",)).get_function("it")


def test_arrays_go_to_the_device_and_back():
    seen = []

    def double(grid, block, args, *, shared_mem):
        seen.append((grid, block, args[2], shared_mem))
        x, y = (a.view(np.float32) for a in args[:2])
        seen.extend(a.ctypes.data % 16 for a in args[:2])
        y[:] = 2 * x

    whole = np.arange(9, dtype=np.float32)
    x, y = whole[1:].reshape(2, 4), np.zeros((2, 4), np.float32)
    x.flags.writeable = False
    module(double)((1,), (32,), (x, y, np.int32(8)), shared_mem=4)
    np.testing.assert_array_equal(y, 2 * x)
    assert seen[0] == ((1,), (32,), 8, 4)
    assert seen[1] % 8 == 4  # as far from a multiple of eight bytes as here
    module(double)((1,), (32,), (y, y, None))
    np.testing.assert_array_equal(y, 4 * x)  # given twice, it is one array


@pytest.mark.parametrize("byte", [-1, 32])
def test_a_write_beyond_an_array_is_noticed(byte):
    def wrong(grid, block, args, *, shared_mem):
        inside = args[0].base if args[0].base is not None else args[0]
        begin = args[0].ctypes.data - inside.ctypes.data
        inside[begin + byte] = UNTOUCHED + 1

    with pytest.raises(DeviceError, match=r"^it: argument 0 was written beyond its ends$"):
        module(wrong)((1,), (32,), (np.zeros(8, np.float32),))
