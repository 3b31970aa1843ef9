"""The command `convert`: weights that others trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .options import complete_model

EXAMPLES = """\
Examples:

* `tinygrad-cnn convert resnet50.pth resnet50.safetensors --classes imagenet.txt`
* `tinygrad-cnn predict resnet50.safetensors photo.jpg`
* `tinygrad-cnn convert resnet20.th resnet20.safetensors`: of akamaster's pytorch_resnet_cifar10
* `tinygrad-cnn evaluate resnet20.safetensors --data cifar10`
* `tinygrad-cnn train --weights resnet20.safetensors --data cifar10 --model resnet20`
"""
Colours = str | None  # numbers with commas between

SourceArgument = Annotated[
    Path, typer.Argument(help="A PyTorch checkpoint or a .safetensors file.", show_default=False)
]
DestArgument = Annotated[
    Path, typer.Argument(metavar="DEST.safetensors", help="File to write.", show_default=False)
]
ModelOption = Annotated[
    str | None,
    typer.Option(help="Network; default: what fits.", autocompletion=complete_model),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A setting of it, such as shortcut=B."),
]
ClassesOption = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        dir_okay=False,
        help="Text with a class's name on each line; default: CIFAR's, or numbers.",
    ),
]
MeanOption = Annotated[
    Colours,
    typer.Option(
        metavar="R,G,B",
        help="Mean of each channel in training, 0 to 1; default: ImageNet's.",
    ),
]
StdOption = Annotated[
    Colours,
    typer.Option(metavar="R,G,B", help="Their standard deviations; default: ImageNet's."),
]


def convert(
    source: SourceArgument, dest: DestArgument, model: ModelOption = None,
    settings: SetOption = None, classes: ClassesOption = None, mean: MeanOption = None,
    std: StdOption = None,
) -> None:  # fmt: skip
    """Turn weights from PyTorch into a file that evaluate and predict take.

    Names are torchvision's, those of akamaster's CIFAR networks, or our own; what a run left needs
    no converting. Nothing that a checkpoint's pickle names is run.
    """
    from ..train import convert, recipe

    labels = classes and classes.read_text(encoding="utf-8").rstrip().splitlines()
    own = {key: value for text in settings or [] for key, value in recipe.parse(text).items()}
    choices: dict[str, Any] = dict(
        model=model, classes=labels, settings=own,
        mean=mean and _numbers("mean", mean), std=std and _numbers("std", std),
    )  # fmt: skip
    name = convert(source, dest, **{k: v for k, v in choices.items() if v is not None})
    print(f"{dest} holds the weights of {name}")
    print(f"next: tinygrad-cnn predict {dest} IMAGE.png")


def _numbers(option: str, text: str) -> list[float]:
    """Read a number for each channel."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"--{option} is {text!r}; expected a number for each channel, such as 0.5,0.5,0.5"
        ) from None
