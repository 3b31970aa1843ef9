"""The command `data`: where data sets lie, how to get them, what is in them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..data import Dataset, channel_statistics, cifar, data_folder, open_data
from ..data.archives import ARCHIVES, Archive
from .options import DataDirOption, complete_data

EXAMPLES = """\
Examples:

* `tinygrad-cnn data`: which data sets there are, and where they lie
* `tinygrad-cnn data cifar10 --download`
* `tinygrad-cnn data folder:photos --show sheet.png`
"""

NameArgument = Annotated[
    str | None,
    typer.Argument(
        help="cifar10, cifar100, shapes or folder:PATH (a subfolder of pictures for each class).",
        autocompletion=complete_data,
    ),
]
DownloadOption = Annotated[
    bool, typer.Option("--download", help="Fetch what is not there (cifar10, cifar100).")
]
VerifyOption = Annotated[
    bool,
    typer.Option(
        "--verify", help="Compare each file with the official one; exit with 1 if they differ."
    ),
]
ShowOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE.png", help="Draw some images of each class into this file."),
]


def show_data(
    name: NameArgument = None, data_dir: DataDirOption = None, download: DownloadOption = False,
    verify: VerifyOption = False, show: ShowOption = None,
) -> None:  # fmt: skip
    """Say where data lie, whether they are the official files, and what is in them."""
    if name is None:
        _list(data_dir)
        return
    archive = ARCHIVES.get(name)
    if archive is None and (download or verify):
        raise typer.BadParameter(f"{name} has no official files; --download and --verify need some")
    train, test = open_data(name, data_dir, fetch=download)
    if archive is not None:
        print(f"in {cifar.where(archive, data_dir)}")
    _describe(train, test)
    if show is not None:
        from .. import report

        report.plot_sheet(train, show)
    if archive is not None and verify:
        _verify(archive, data_dir)


def _list(data_dir: Path | None) -> None:
    for name, archive in ARCHIVES.items():
        place = cifar.where(archive, data_dir)
        missing = f"not in {data_folder(data_dir)}; tinygrad-cnn data {name} --download"
        print(f"{name:12} {missing if place is None else f'in {place}'}")
    print(f"{'shapes':12} drawn when needed")
    print(f"{'folder:PATH':12} your own pictures, a subfolder for each class")


def _verify(archive: Archive, data_dir: Path | None) -> None:
    official = cifar.verify(archive, data_dir)
    print()
    for file, same in official.items():
        print(f"{file:20} {'official' if same else 'not the official file'}")
    if not all(official.values()):
        raise typer.Exit(1)


def _describe(train: Dataset, test: Dataset) -> None:
    """Print what two sets hold, and the training set's statistics on the scale 0 to 1."""
    size = "x".join(map(str, train.images.shape[1:]))
    print(f"{train.name}: {len(train):,} training and {len(test):,} test images {size}")
    for what, numbers in zip(("mean", "deviation"), channel_statistics(train.images), strict=True):
        print(f"{what:10} {' '.join(f'{number:.4f}' for number in numbers.ravel())}")
    print(f"\n{'class':20} training    test")
    for k, name in enumerate(train.classes):
        print(f"{name:20} {(train.labels == k).sum():8,} {(test.labels == k).sum():7,}")
