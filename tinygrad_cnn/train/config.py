"""What decides a run's outcome, as its config.json says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .folder import RunFolder, read_json
from .recipe import Recipe, RecipeError, load


@dataclass(frozen=True)
class Config:
    """A recipe, the data it is for, the seed and the machine's part.

    `images` takes only the first so many to train, and a fifth of that to test; `validation` is how
    many of the training images are held out. `recipe_name` and `data_dir` say where things came
    from, `threads` how many BLAS has: another number may change the last bits.
    `precision` is that in which convolutions multiply; the arrays are of the recipe's dtype.
    `checkpoint_activations` and `cuda_graphs` change memory and time, and of the outcome nothing.
    The first weights are those in the file `weights`, or fresh.
    """

    recipe: Recipe
    recipe_name: str = "quick"
    data: str = "shapes"
    data_dir: str | None = None
    images: int | None = None
    validation: int = 0
    seed: int = 0
    backend: str | None = None  # None: the current one, which TINYGRAD_CNN_BACKEND names
    threads: int | None = None
    precision: str = "fp32"
    checkpoint_activations: bool = False
    cuda_graphs: bool = False
    weights: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Give what from_dict reads."""
        return {**vars(self), "recipe": self.recipe.to_dict()}

    def on(self, data: str | None, data_dir: Path | None) -> Config:
        """Give the same with other data, all of it, or with the same data from another place."""
        place = self.data_dir if data_dir is None else str(data_dir.resolve())
        if data in (None, self.data):
            return replace(self, data_dir=place)
        return replace(self, data=data, images=None, data_dir=None if data_dir is None else place)

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Config:
        """Read what to_dict gave."""
        return cls(**{**table, "recipe": Recipe.from_dict(table["recipe"])})


def configure(
    recipe_name: str, overrides: Mapping[str, Mapping[str, Any]], *, data_dir: Path | None = None,
    **choices: Any,
) -> Config:  # fmt: skip
    """Make a configuration from a recipe, changes to it by name, and the other choices."""
    recipe = load(recipe_name).override(*overrides.values())
    folder = None if data_dir is None else str(data_dir.resolve())
    config = Config(recipe=recipe, recipe_name=recipe_name, data_dir=folder, **choices)
    if config.precision != "fp32" and recipe.dtype != "float32":
        raise RecipeError(
            f"precision {config.precision} rounds float32, but the recipe has dtype "
            f"{recipe.dtype}; leave one of them out"
        )
    return config


def read_config(folder: Path) -> Config:
    """Read what the run in a folder was started with."""
    path = RunFolder(folder).config
    if not path.exists():
        raise RecipeError(f"{folder} has no run (there is no config.json); start one with --out")
    try:
        return Config.from_dict(read_json(path))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RecipeError(f"{path} is damaged: {error}; start again with another --out") from None


def check_resumable(
    folder: Path, choices: Mapping[str, Any], overrides: Mapping[str, Mapping[str, Any]]
) -> None:
    """Refuse options that contradict what the run in a folder was started with."""
    config = read_config(folder)
    was: dict[str, Any] = {**vars(config), "out": folder}
    for name, value in choices.items():
        if value != was[name]:
            option = f"--{name.removesuffix('_name')}"
            raise _contradiction(f"{option} {value}", folder, was[name])
    for option, change in overrides.items():
        if config.recipe.override(change) != config.recipe:
            raise _contradiction(option, folder, _before(config.recipe, change))


def _contradiction(option: str, folder: Path, was: Any) -> RecipeError:
    return RecipeError(
        f"{option} contradicts the run in {folder}, which has {was}; "
        "leave the option out to go on, or start a new run with --out"
    )


def _before(recipe: Recipe, change: Mapping[str, Any]) -> Any:
    """Look up what a recipe has where a change would change it."""
    was: Any = recipe.to_dict()
    while isinstance(change, dict) and len(change) == 1 and isinstance(was, dict):
        ((key, change),) = change.items()
        was = was.get(key)
    return was
