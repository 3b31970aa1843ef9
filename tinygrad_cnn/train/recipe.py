"""Recipes: all that decides how a network is trained, as data.

A recipe is a TOML file, one of the package's by name or your own by path. What it leaves out is as
in the package's recipe that it names as its `base`, or has the default below; what it misspells is
an error.

>>> recipe = load("paper").override({"epochs": 2, "optimizer": {"lr": 0.05}})
>>> recipe.epochs, recipe.steps, recipe.optimizer["lr"], recipe.optimizer["momentum"]
(2, None, 0.05, 0.9)
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import json
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy

from .. import data, models, optim
from ..data.augment import Augment, Statistics
from ..optim import values
from ..optim.values import Fits, below_1, flag, from_0, list_of, number
from ..suggestion import suggestion

Settings = dict[str, Any]


class RecipeError(ValueError):
    """Say what is wrong with a recipe's settings."""

    exit_status = 2


# A section with a name calls the function of that name: its parameters are the section's keys.
NAMED: dict[str, dict[str, Callable[..., Any]]] = {
    "optimizer": {
        "sgd": optim.SGD, "rmsprop": optim.RMSprop, "adam": optim.Adam, "adamw": optim.AdamW,
    },
    "schedule": {
        "constant": optim.constant, "step": optim.step, "multistep": optim.multistep,
        "cosine": optim.cosine, "one_cycle": optim.one_cycle,
    },
}  # fmt: skip
FILLED_IN = {  # parameters that are no keys: the run gives them
    "optimizer": {"params"}, "schedule": {"lr", "steps"}, "warm_up": {"schedule"},
}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """How to train. Exactly one of `epochs` and `steps` is set; steps are the optimiser's.

    In `schedule` and `warm_up`, numbers of steps below 1 are parts of the run.
    """

    model: str = "resnet20"
    model_settings: Settings = field(default_factory=dict)  # as models.build takes them
    epochs: int | None = None
    steps: int | None = None
    batch_size: int = 128
    accumulate: int = 1  # parts that each batch is cut into, to need less memory
    label_smoothing: float = 0.0
    ema: float = 0.0  # decay of the weights' running average; 0: no average
    test_flip: bool = False  # judge an image by its scores' mean with those of its mirror image
    per_pixel_mean: bool = False  # normalise with a mean per pixel, not per channel
    dtype: str = "float32"
    optimizer: Settings = field(default_factory=lambda: {"name": "sgd", "lr": 0.1})
    schedule: Settings = field(default_factory=lambda: {"name": "constant"})
    warm_up: Settings = field(default_factory=dict)
    augment: Settings = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            section = isinstance(value, dict)
            self._check_section(name, value) if section else _check(name, value)
        if (self.epochs is None) == (self.steps is None):
            raise RecipeError(
                f"epochs is {self.epochs} and steps is {self.steps}; "
                "expected exactly one of them to be set"
            )
        if self.warm_up and not self.warm_up.get("steps"):
            raise RecipeError("warm_up has no steps; set how many, such as steps = 400")

    def _check_section(self, section: str, settings: Settings) -> None:
        if section == "model_settings":
            _check_model_settings(self.model, settings)
            return
        known = _parameters(section, settings)
        for name, value in settings.items():
            if name not in known:
                raise RecipeError(f"no setting {section}.{name}{suggestion(name, known)}")
            if name != "name":
                _check(f"{section}.{name}", value)
        missing = [p for p, needed in known.items() if needed and p not in settings]
        if missing:
            raise RecipeError(f"{section}.{missing[0]} is missing; {settings['name']} needs it")

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Recipe:
        """Read nested tables, as TOML and JSON give them."""
        known = [f.name for f in fields(cls)]
        for name, value in table.items():
            if name not in known:
                raise RecipeError(f"no setting {name}{suggestion(name, known)}")
            if isinstance(value, dict) != (name in SECTIONS):
                wanted = "a section of settings" if name in SECTIONS else "a value, not a section"
                raise RecipeError(f"{name} is {value!r}; expected {wanted}")
        return cls(**table)

    def to_dict(self) -> dict[str, Any]:
        """Give nested tables that from_dict reads; without the one of epochs and steps not set."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def override(self, *changes: Mapping[str, Any]) -> Recipe:
        """Change some settings; the changes are joined first, so their order says nothing.

        Sections are merged, unless another `name` starts a section afresh, or another model its
        settings; an empty one takes all away. Epochs replace steps. Of two changes to one setting
        the later counts.
        """
        table, new = _joined(changes), self.to_dict()
        new |= {name: {} for change in changes for name, value in change.items() if value == {}}
        if table.get("model", self.model) != self.model:
            new["model_settings"] = {}
        if {"epochs", "steps"} & table.keys():
            new = {name: value for name, value in new.items() if name not in ("epochs", "steps")}
        for name, value in table.items():
            old = new.get(name)
            new[name] = value
            if value and isinstance(value, dict) and isinstance(old, dict):
                afresh = value.get("name", old.get("name")) != old.get("name")
                new[name] = value if afresh else {**old, **value}
        return Recipe.from_dict(new)

    # ---- what it builds ----

    def total_steps(self, batches: int) -> int:
        """Count the run's steps, where an epoch has so many batches."""
        return self.steps if self.steps is not None else (self.epochs or 0) * batches

    def build_model(self, classes: int, rng: numpy.random.Generator) -> models.Classifier:
        """Make the model with fresh weights."""
        return models.build(self.model, classes=classes, rng=rng, **self.model_settings)

    def build_optimizer(self, params: list[Any]) -> optim.Optimizer:
        """Make the optimiser of `params`."""
        settings = dict(self.optimizer)
        made: optim.Optimizer = NAMED["optimizer"][settings.pop("name")](params, **settings)
        return made

    def build_schedule(self, steps: int) -> optim.Schedule:
        """Make the function from a step to its learning rate, for a run of so many steps."""
        if late := [n for n in self.schedule.get("milestones", ()) if n >= max(1, steps)]:
            raise RecipeError(
                f"schedule.milestones has {late}, but the run ends after {steps:,} steps; give "
                "parts of the run, such as 0.5, and they fit any length"
            )
        settings = _in_steps(self.schedule, steps)
        build = NAMED["schedule"][settings.pop("name")]
        if "steps" in inspect.signature(build).parameters:
            settings["steps"] = steps
        schedule: optim.Schedule = build(self.optimizer["lr"], **settings)
        return (
            optim.warm_up(schedule, **_in_steps(self.warm_up, steps)) if self.warm_up else schedule
        )

    def build_augment(
        self, images: numpy.ndarray[Any, Any], statistics: Statistics
    ) -> list[Augment]:
        """Make a loader's `augment`, for training images uint8 (n, C, H, W) and what they measure.

        Cutout comes last, so that nothing is added to what it hides.
        """
        pad, flip, jitter, size = (self.augment.get(key, 0) for key in AUGMENT)
        made: list[Augment] = []
        if pad or flip:
            made.append(data.RandomCropAndFlip(pad, bool(flip)))
        if jitter:
            made.append(data.ColourJitter(data.colour_covariance(images), statistics[1], jitter))
        if size:
            made.append(data.Cutout(size))
        return made


SECTIONS = ("model_settings", "optimizer", "schedule", "warm_up", "augment")
AUGMENT = ("pad", "flip", "colour_jitter", "cutout")


def names() -> list[str]:
    """List the package's recipes."""
    found = (file.name for file in files(__package__).iterdir())
    return sorted(name.removesuffix(".toml") for name in found if name.endswith(".toml"))


def load(name: str) -> Recipe:
    """Read the package's recipe of that name, or a TOML file if `name` ends in .toml."""
    content = text(name)
    try:
        table = tomllib.loads(content)
        base = table.pop("base", None)
        if base is None:
            return Recipe.from_dict(table)
        if base not in names():
            raise RecipeError(f"no base {base!r}{suggestion(str(base), names())}")
        return load(base).override(table)
    except (RecipeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"recipe {name}: {error}") from None


def text(name: str) -> str:
    """Give a recipe's TOML as it was written, with its comments."""
    if name.endswith(".toml"):
        if not Path(name).is_file():
            raise RecipeError(f"recipe {name}: there is no such file")
        return Path(name).read_text(encoding="utf-8")
    if name not in names():
        there_are = suggestion(name, names())
        raise RecipeError(f"no recipe {name!r}{there_are}, and your own: the path of a .toml file")
    return (files(__package__) / f"{name}.toml").read_text(encoding="utf-8")


def resolved(name: str) -> str:
    """Give a recipe's TOML as it was written, or if it has a base with all its settings."""
    recipe, written = load(name), text(name)
    if "base" not in tomllib.loads(written):
        return written
    comment = itertools.takewhile(lambda line: line.startswith("#"), written.splitlines())
    table = recipe.to_dict()
    sections = {section: table.pop(section) for section in SECTIONS}
    lines = [*comment, "", *_as_toml(table)]
    for section, settings in sections.items():
        lines += ["", f"[{section}]", *_as_toml(settings)] if settings else []
    return "\n".join([*lines, ""])


def parse(setting: str) -> dict[str, Any]:
    """Read KEY=VALUE as the line of TOML that it nearly is; a value that is none is a string.

    >>> parse("optimizer.lr=0.1"), parse("schedule.name=cosine")
    ({'optimizer': {'lr': 0.1}}, {'schedule': {'name': 'cosine'}})
    """
    key, equals, value = setting.partition("=")
    for text in (f"{key} = {value}", f"{key} = {json.dumps(value)}") if equals else ():
        with contextlib.suppress(tomllib.TOMLDecodeError):
            return tomllib.loads(text)
    raise RecipeError(f"{setting!r} is no setting; expected KEY=VALUE, such as optimizer.lr=0.1")


def _as_toml(settings: Settings) -> list[str]:
    return [f"{key} = {json.dumps(value)}" for key, value in settings.items()]


def _parameters(section: str, settings: Settings) -> dict[str, bool]:
    """Map the keys that a section may have to whether it must have them."""
    if section == "augment":
        return dict.fromkeys(AUGMENT, False)
    if section == "warm_up":
        known: Callable[..., Any] = optim.warm_up
    else:
        choices, name = NAMED[section], settings.get("name")
        if name not in choices:
            raise RecipeError(f"no {section} {name!r}{suggestion(str(name), choices)}")
        known = choices[name]
    taken = inspect.signature(known).parameters.items()
    keys = {k: p.default is p.empty for k, p in taken if k not in FILLED_IN[section]}
    if section == "warm_up":
        return dict.fromkeys(keys, False)
    return {"name": True, **keys, **({"lr": True} if section == "optimizer" else {})}


def _joined(changes: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Make one change of several."""
    table = dict[str, Any]()
    for name, value in itertools.chain.from_iterable(change.items() for change in changes):
        old = table.get(name)
        sections = isinstance(value, dict) and isinstance(old, dict)
        table[name] = {**old, **value} if sections else value  # type: ignore[dict-item]
    return table


def _in_steps(settings: Settings, steps: int) -> Settings:
    """Turn parts of the run into numbers of steps, at least one."""

    def whole(value: Any) -> Any:
        if isinstance(value, list):
            return [whole(v) for v in value]
        if isinstance(value, float) and value >= 1:
            raise RecipeError(
                f"{value} is neither a part of the run, below 1, nor a number of steps, such as "
                f"{round(value)}"
            )
        return max(1, round(value * steps)) if value < 1 else value

    return {
        k: whole(v) if k in ("steps", "every", "milestones") else v for k, v in settings.items()
    }


# ---- the settings' values ----


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _above_0(value: Any) -> bool:
    return number(value) and value > 0


def _one_of(*choices: str) -> tuple[Fits, str]:
    return lambda value: value in choices, " or ".join(map(repr, choices))


def _or_none(fits: Fits) -> Fits:
    return lambda value: value is None or fits(value)


VALUES: dict[str, tuple[Fits, str]] = {
    **values.VALUES,
    "model": (lambda value: isinstance(value, str), "the name of a model"),
    **dict.fromkeys(("epochs", "steps"), (_or_none(_count), "a whole number, at least 1")),
    **dict.fromkeys(("batch_size", "accumulate"), (_count, "a whole number, at least 1")),
    "dtype": _one_of("float32", "float64"),
    **dict.fromkeys(
        ("warm_up.steps", "every"), (_above_0, "a number of steps, or below 1 a part of the run")
    ),
    "milestones": (list_of(_above_0), "a list of steps, or below 1 of parts of the run"),
    "shape": _one_of("linear", "constant"),
    "anneal_strategy": _one_of("cos", "linear"),
    **dict.fromkeys(
        ("pad", "cutout"),
        (lambda value: _count(value) or value == 0, "a whole number of pixels, from 0 on"),
    ),
    **dict.fromkeys(("per_pixel_mean", "test_flip", "nesterov", "flip"), (flag, "true or false")),
    **dict.fromkeys(("start", "floor", "colour_jitter"), (from_0, "a number from 0 on")),
    **dict.fromkeys(("gamma", "div_factor", "final_div_factor"), (_above_0, "a number above 0")),
    **dict.fromkeys(
        ("label_smoothing", "ema", "pct_start"),
        (below_1, "a number from 0 to below 1"),
    ),
}


def _check_model_settings(model: str, settings: Settings) -> None:
    """Refuse what the model doesn't take, and words for numbers; the rest it refuses itself."""
    known = models.signature(model).parameters
    own = [name for name in known if name not in ("classes", "rng")]  # these the run gives
    for name, value in settings.items():
        if name not in own:
            raise RecipeError(f"no setting model_settings.{name} of {model}{suggestion(name, own)}")
        usual = known[name].default
        if number(usual) and not number(value):
            raise RecipeError(f"model_settings.{name} is {value!r}; expected a number like {usual}")
        if isinstance(usual, tuple) and not isinstance(value, list | tuple):
            like = [*usual]
            raise RecipeError(f"model_settings.{name} is {value!r}; expected a list like {like}")


def _check(name: str, value: Any) -> None:
    fits, wanted = VALUES.get(name) or VALUES[name.rpartition(".")[2]]
    if not fits(value):
        raise RecipeError(f"{name} is {value!r}; expected {wanted}")
    if name == "model" and value not in models.names():
        raise RecipeError(f"no model {value!r}{suggestion(value, models.names())}")
