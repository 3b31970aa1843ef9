"""Commands that train and use a network: train, evaluate, predict, recipes."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

import tinygrad_cnn as tg

from ..backends.precision import set_precision
from ..backends.threads import set_threads
from .options import (
    DATA_PANEL,
    MACHINE_PANEL,
    BackendOption,
    DataDirOption,
    PrecisionOption,
    ThreadsOption,
    chosen,
    complete_data,
    complete_model,
    complete_recipe,
)

TRAIN_EXAMPLES = """\
Examples:

* `tinygrad-cnn train`: a small network on built-in images, in minutes
* `tinygrad-cnn train --data cifar10 --model resnet20 --epochs 20 --validation 5000`
* `tinygrad-cnn train --data cifar10 --recipe paper`: 64,000 steps, as in the ResNet paper
* `tinygrad-cnn train --set model_settings.shortcut=B --set augment.cutout=8 --model resnet20`
* `tinygrad-cnn train --set ema=0.999 --set optimizer.weight_decay=5e-4`
* `tinygrad-cnn train --resume runs/resnet8-shapes`: go on, bit for bit as if never stopped
"""
EVALUATE_EXAMPLES = """\
Examples:

* `tinygrad-cnn evaluate runs/resnet8-shapes`
* `tinygrad-cnn evaluate model.safetensors --data cifar10 --data-dir ~/data`
"""
PREDICT_EXAMPLES = """\
Example:

* `tinygrad-cnn predict runs/resnet8-shapes photo.png another.jpg`
"""

in_recipe, in_data, in_run = (
    partial(typer.Option, rich_help_panel=panel) for panel in ("Recipe", DATA_PANEL, "Run")
)

ModelOption = Annotated[
    str | None,
    in_recipe(help="Network (see the command models); default: the recipe's.",
              autocompletion=complete_model),
]  # fmt: skip
DataOption = Annotated[
    str | None,
    in_data(help="shapes (built in), cifar10, cifar100 or folder:PATH; default: shapes.",
            autocompletion=complete_data),
]  # fmt: skip
EvaluationDataOption = Annotated[
    str | None,
    in_data(help="Default: what it was trained on.", autocompletion=complete_data),
]
ImagesOption = Annotated[
    int | None,
    in_data(help="Take the first so many to train, a fifth of that to test; default: all.", min=5),
]
ValidationOption = Annotated[
    int | None,
    in_data(metavar="N", min=0,
            help="Hold N training images out and keep the epoch that is best on them."),
]  # fmt: skip
RecipeOption = Annotated[
    str | None,
    in_recipe(help="shapes (the default on those), quick (on other data), paper, ... (see the "
              "command recipes), or the path of your own .toml.",
              autocompletion=complete_recipe),
]  # fmt: skip
EpochsOption = Annotated[int | None, in_recipe(help="How often to see every image.")]
BatchOption = Annotated[int | None, in_recipe(help="Images in a step.")]
RateOption = Annotated[float | None, in_recipe(help="Learning rate, at its highest.")]
SetOption = Annotated[
    list[str] | None,
    in_recipe("--set", metavar="KEY=VALUE", help="Any setting of the recipe, such as "
              "optimizer.momentum=0.8; as often as needed."),
]  # fmt: skip
WeightsOption = Annotated[
    Path | None,
    in_run(
        help="Start from the weights in this file: a run's last.safetensors, a converted "
        "one or PyTorch's. Images are normalised as the recipe says."
    ),
]
SeedOption = Annotated[int | None, in_recipe(help="What all randomness comes from; default: 0.")]
OutOption = Annotated[Path | None, in_run(help="A new folder for the run; default: in runs/.")]
ResumeOption = Annotated[
    Path | None,
    in_run(metavar="DIR", help="Go on with the run in this folder, exactly as if it had not "
           "stopped."),
]  # fmt: skip
EveryOption = Annotated[
    int | None,
    in_run(metavar="STEPS", min=1,
           help="Save a checkpoint after so many steps, not only after each epoch."),
]  # fmt: skip
ActivationsOption = Annotated[
    bool | None,
    typer.Option(
        "--checkpoint-activations/--no-checkpoint-activations", rich_help_panel=MACHINE_PANEL,
        show_default=False,
        help="Forget most activations and compute them again in the backward pass: memory grows "
             "with the square root of the depth, steps take a third longer, nothing else changes.",
    ),
]  # fmt: skip
GraphsOption = Annotated[
    bool | None,
    typer.Option(
        "--cuda-graphs/--no-cuda-graphs", rich_help_panel=MACHINE_PANEL, show_default=False,
        help="Let the GPU (--backend cupy) repeat whole steps by itself. Not tried on one yet.",
    ),
]  # fmt: skip
CheckpointArgument = Annotated[
    Path, typer.Argument(help="A .safetensors file, or a run's folder.", show_default=False)
]
ImagesArgument = Annotated[
    list[Path], typer.Argument(metavar="IMAGE...", help="PNG, JPEG, ...", show_default=False)
]
RecipeArgument = Annotated[
    str | None,
    typer.Argument(help="A recipe's name or .toml file.", autocompletion=complete_recipe),
]


def train(
    data: DataOption = None, data_dir: DataDirOption = None, images: ImagesOption = None,
    validation: ValidationOption = None, recipe: RecipeOption = None, model: ModelOption = None,
    epochs: EpochsOption = None, batch_size: BatchOption = None, lr: RateOption = None,
    settings: SetOption = None, seed: SeedOption = None, out: OutOption = None,
    weights: WeightsOption = None, resume: ResumeOption = None,
    checkpoint_every: EveryOption = None, backend: BackendOption = None,
    threads: ThreadsOption = None, precision: PrecisionOption = None,
    checkpoint_activations: ActivationsOption = None, cuda_graphs: GraphsOption = None,
) -> None:  # fmt: skip
    """Train a network.

    Ctrl-C ends at a checkpoint, from which --resume goes on. The folder of the run holds the
    checkpoints, the history of loss and accuracy, and in the end the result on the test images.
    """
    from ..train import config, run

    overrides = _overrides(settings or [], model, epochs, batch_size, lr)
    choices: dict[str, Any] = dict(
        data=data, images=images, validation=validation, seed=seed, backend=backend,
        precision=precision, weights=str(weights.resolve()) if weights else None,
    )  # fmt: skip
    choices = {name: value for name, value in choices.items() if value is not None}
    if resume is None:
        choices |= dict(data_dir=data_dir, threads=threads)
        choices |= dict(checkpoint_activations=bool(checkpoint_activations))
        choices |= dict(cuda_graphs=bool(cuda_graphs))
        usual = "shapes" if data in (None, "shapes") else "quick"
        chosen = config.configure(recipe or usual, overrides, **choices)
        with nullcontext(out) if out else run.new_folder(chosen) as folder:
            result = run.start(folder, chosen, checkpoint_every=checkpoint_every)
    else:
        folder = resume
        choices |= {n: v for n, v in dict(recipe_name=recipe, out=out).items() if v is not None}
        config.check_resumable(folder, choices, overrides)
        result = run.resume(
            folder, data_dir=data_dir, threads=threads, checkpoint_every=checkpoint_every,
            checkpoint_activations=checkpoint_activations, cuda_graphs=cuda_graphs,
        )  # fmt: skip
    _tell(folder, result)


def _overrides(
    settings: list[str], model: str | None, epochs: int | None, batch: int | None, lr: float | None
) -> dict[str, Any]:
    """Map each option that changes the recipe to the change."""
    from ..train import recipe

    given = {
        f"--model {model}": ({"model": model}, model),
        f"--epochs {epochs}": ({"epochs": epochs}, epochs),
        f"--batch-size {batch}": ({"batch_size": batch}, batch),
        f"--lr {lr}": ({"optimizer": {"lr": lr}}, lr),
    }
    changes: dict[str, Any] = {
        o: change for o, (change, value) in given.items() if value is not None
    }
    return changes | {f"--set {text}": recipe.parse(text) for text in settings}


def _tell(folder: Path, result: dict[str, Any]) -> None:
    print(f"test accuracy {result['test_accuracy']:.2%}, loss {result['test_loss']:.3f}")
    print(f"the run is in {folder}: checkpoints, history, curves.png, confusion.png, mistakes.png")
    print(f"next: tinygrad-cnn predict {folder} IMAGE.png")


def evaluate(
    checkpoint: CheckpointArgument, data: EvaluationDataOption = None,
    data_dir: DataDirOption = None, backend: BackendOption = None, threads: ThreadsOption = None,
    precision: PrecisionOption = None,
) -> None:  # fmt: skip
    """Measure a trained network on the test images.

    A run's folder stands for its best checkpoint on held-out images, or without those its last.
    """
    from .. import train
    from ..train import run

    with tg.use_backend(_set_up(backend, threads, precision)):
        trained = train.Trained.load(checkpoint)
        config = train.Config.from_dict(trained.facts["config"])
        _, test_set = run.open_data(config.on(data, data_dir), border=trained.border)
        metrics, _ = trained.evaluate(test_set)
    print(f"{config.recipe.model} on {len(test_set):,} test images of {test_set.name}:")
    print(f"test accuracy {metrics.accuracy:.2%}, loss {metrics.loss:.3f}")


def predict(
    checkpoint: CheckpointArgument, images: ImagesArgument,
    backend: BackendOption = None, threads: ThreadsOption = None,
    precision: PrecisionOption = None,
) -> None:  # fmt: skip
    """Say what is on pictures: the five likeliest classes of each.

    Pictures of any size and kind are resized to what the network was trained on.
    """
    from .. import train

    with tg.use_backend(_set_up(backend, threads, precision)):
        trained = train.Trained.load(checkpoint)
        for path in images:
            (probabilities,) = trained.probabilities(trained.read_image(path)[None])
            print(path)
            for k in probabilities.argsort()[::-1][:5]:
                print(f"  {probabilities[k]:7.2%}  {trained.classes[k]}")


def _set_up(backend: str | None, threads: int | None, precision: str | None) -> tg.backends.Backend:
    on = chosen(backend)
    set_precision(precision or "fp32", on)
    if threads is not None:
        set_threads(threads, on)
    return on


def recipes(name: RecipeArgument = None) -> None:
    """List the recipes, or show one as the TOML file that it is: a start for your own."""
    from ..train import recipe

    if name is not None:
        print(recipe.resolved(name), end="")
        return
    width = max(map(len, recipe.names()))
    for each in recipe.names():
        told = recipe.load(each)
        length = f"{told.epochs} epochs" if told.epochs else f"{told.steps:,} steps"
        print(f"{each:{width}} {told.model}, {length} of batches of {told.batch_size}: ", end="")
        print(f"{told.optimizer['name']}, lr {told.optimizer['lr']:g}, {told.schedule['name']}")
