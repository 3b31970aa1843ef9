"""Time inference here and elsewhere: PyTorch eager, torch.compile, ONNX Runtime.

    python benchmarks/inference.py                        # two minutes
    python benchmarks/inference.py --models resnet20 --batch-sizes 1,128
    python benchmarks/inference.py --quick --out results  # table and plot as files

Ours is nn.fold_batch_norm(model) under no_grad, as `evaluate` and `predict` use it. PyTorch runs in
evaluation mode under inference_mode. All sides have the same weights and must give the same scores.
A peer that isn't installed or can't compile here is left out, with the reason.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy
import typer
from harness import (
    BackendName,
    Call,
    Out,
    Quick,
    Rounds,
    Table,
    Timing,
    bars,
    check_equal,
    cores,
    interleave,
    milliseconds,
    progress,
    require_torch,
)  # fmt: skip
from steps import OURS, fresh_weights, our_network

import tinygrad_cnn as tg
from tinygrad_cnn import nn
from tinygrad_cnn.backends.base import nchw
from tinygrad_cnn.cli import run

TOLERANCE = 1e-4  # of the largest score: Winograd's error, layer after layer
Scores = Callable[[Any], Any]


def our_scores(model: str, weights: Sequence[Any], x: Any) -> Scores:
    """Give our inference."""
    folded = nn.fold_batch_norm(our_network(model, weights))

    def scores(x: Any) -> Any:
        with tg.no_grad():
            return folded(tg.Tensor(x)).numpy()

    return scores


def eager(model: str, weights: Sequence[Any], x: Any) -> Scores:
    """Give PyTorch's inference in its usual layout."""
    import torch_models

    return torch_models.inference(model, weights, channels_last=False)


def channels_last(model: str, weights: Sequence[Any], x: Any) -> Scores:
    """Give PyTorch's inference in the layout of its faster kernels."""
    import torch_models

    return torch_models.inference(model, weights, channels_last=True)


def compiled(model: str, weights: Sequence[Any], x: Any) -> Scores:
    """Give torch.compile's inference."""
    import torch_models

    return torch_models.inference(model, weights, channels_last=True, compiled=True)


def onnx_runtime(model: str, weights: Sequence[Any], x: Any) -> Scores:
    """Give ONNX Runtime's inference of the network that PyTorch exports."""
    import onnxruntime
    import torch_models

    if missing := [name for name in ("onnx", "onnxscript") if find_spec(name) is None]:
        raise ImportError(f"torch.onnx.export needs {' and '.join(missing)}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores()
    options.log_severity_level = 3
    with TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.onnx")
        torch_models.export(model, weights, x, path)
        session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    (argument,) = session.get_inputs()
    return lambda x: session.run(None, {argument.name: numpy.ascontiguousarray(x)})[0]


SIDES: dict[str, Callable[[str, Sequence[Any], Any], Scores]] = {
    OURS: our_scores,
    "eager": eager,
    "channels_last": channels_last,
    "compile": compiled,
    "onnxruntime": onnx_runtime,
}


def make(sides: Sequence[str], model: str, weights: Sequence[Any], x: Any) -> dict[str, Scores]:
    """Make the sides that can run here; say why another can't."""
    made = {}
    for side in sides:
        try:
            scores = SIDES[side](model, weights, x)
            scores(x)  # torch.compile compiles now
        except Exception as error:  # whatever an exporter or compiler may raise
            if side in (OURS, "eager"):
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            print(f"{side} is left out for {model}: {reason}")
            continue
        made[side] = scores
    return made


def measure(model: str, batch_size: int, sides: Sequence[str], rounds: int) -> dict[str, Timing]:
    """Check that all sides give the same scores, then time them."""
    rng, weights = numpy.random.default_rng(0), fresh_weights(model)
    x = nchw(rng.standard_normal((batch_size, 32, 32, 3), "float32"))
    made = make(sides, model, weights, x)
    wanted = made["eager"](x)
    for side, scores in made.items():
        what = f"{model}, batch {batch_size}, {side} against PyTorch eager"
        check_equal(scores(x), wanted, tolerance=TOLERANCE, what=what)
    calls: dict[str, Call] = {side: lambda f=f: f(x) for side, f in made.items()}
    return interleave(calls, rounds=rounds, calls=max(3, 32 // batch_size))


def row(timings: Mapping[str, Timing], batch_size: int) -> list[str]:
    """Write ours, then the peers with their ratio to it."""
    ours, cells = timings[OURS].median, [str(timings[OURS])]
    for side in list(SIDES)[1:]:
        found = timings.get(side)
        cells.append(f"{milliseconds(found.median)} ({found.median / ours:.2f}x)" if found else "-")
    return [*cells, f"{batch_size / ours:.0f}", str(len(timings[OURS].seconds))]


def main(
    networks: Annotated[
        str, typer.Option("--models", help="Networks, separated by commas.")
    ] = "resnet20,resnet56",
    batch_sizes: str = "1,32,128",
    peers: Annotated[str, typer.Option(help="Whom to compare with.")] = ",".join(list(SIDES)[1:]),
    backend: BackendName = "numba",
    rounds: Rounds = 5,
    quick: Quick = False,
    out: Out = None,
) -> None:
    require_torch("inference.py")
    tg.set_backend(backend)
    if quick:
        networks, batch_sizes, rounds, peers = "resnet20", "1,32", min(rounds, 2), "eager"
    sides = [OURS, *dict.fromkeys(("eager", *peers.split(",")))]
    columns = ["network", "batch", "ours, ms", *(f"{side}, ms" for side in list(SIDES)[1:])]
    table = Table("Inference: ours, and how many times longer the others take", columns)
    table.columns += ["images/s", "n"]
    cases = [(name, int(size)) for name in networks.split(",") for size in batch_sizes.split(",")]
    ratios: dict[str, list[float]] = {side: [] for side in sides[1:]}
    for model, batch_size in progress(cases, "networks"):
        timings = measure(model, batch_size, sides, rounds)
        table.add(model, batch_size, *row(timings, batch_size))
        for side, values in ratios.items():
            values.append(timings[side].median / timings[OURS].median if side in timings else 0.0)
    table.notes.append(f"backend {backend}; ours with folded batch norms, under no_grad")
    table.show()
    labels = [f"{model}, batch {size}" for model, size in cases]
    table.save(out, "inference", lambda axes: bars(axes, labels, ratios, unit="other / ours"))


if __name__ == "__main__":
    run(main)
