"""What lies in the folder of a run, read with patience: runs may be unfinished or damaged."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Record = dict[str, Any]


@dataclass
class Run:
    """One run; what could not be read is empty here, and `problems` says so in words."""

    path: Path
    config: Record = field(default_factory=dict)
    history: list[Record] = field(default_factory=list)
    result: Record = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def read_run(path: str | os.PathLike[str]) -> Run:
    """Read config.json, history.jsonl and result.json of a run's folder."""
    run = Run(Path(path))
    if not run.path.is_dir():
        run.problems.append("there is no such folder")
        return run
    run.config = _read_json(run, "config.json", "no run, or one that never began")
    run.history = list(_read_lines(run, "history.jsonl"))
    run.result = _read_json(run, "result.json", "unfinished")
    timings = _read_lines(run, "timings.jsonl", missing=None)
    for record, timing in zip(run.history, timings, strict=False):
        record |= timing
    return run


def row(run: Run) -> Record:
    """Sum a run up: what it was, how far it came and how well it did.

    Keys: run, model, recipe, epochs, parameters, best_validation, test_accuracy, images_per_second,
    data, backend, seed, problems. What is not known is None.
    """
    recipe = run.config.get("recipe")
    settings = {**(recipe if isinstance(recipe, dict) else {}), **run.config}
    known = {**settings, "recipe": settings.get("recipe_name"), **run.result}
    keys = ("model", "recipe", "parameters", "test_accuracy", "images_per_second", "data",
            "backend", "seed")  # fmt: skip
    found = {key: known.get(key) for key in keys}
    found["epochs"] = len(run.history) or None
    found["best_validation"] = max(_numbers(run.history, "validation_accuracy"), default=None)
    if found["images_per_second"] is None:
        found["images_per_second"] = _median(_numbers(run.history, "images_per_second"))
    return {"run": str(run.path), **found, "problems": "; ".join(run.problems)}


def differences(runs: Iterable[Run]) -> dict[str, list[Any]]:
    """Find the settings in which the configurations differ: dotted name -> one value per run.

    Runs without a readable configuration are left out, and so is what changes no result.
    """
    flat = [dict(_flat(run.config)) for run in runs if run.config]
    names = dict.fromkeys(name for settings in flat for name in settings)
    for name in ("checkpoint_activations", "cuda_graphs"):
        names.pop(name, None)
    values = {name: [settings.get(name) for settings in flat] for name in names}
    return {name: v for name, v in values.items() if any(one != v[0] for one in v)}


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _read_json(run: Run, name: str, missing: str) -> Record:
    try:
        content = json.loads((run.path / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        run.problems.append(f"no {name}: {missing}")
    except (OSError, ValueError):  # not UTF-8 and not JSON are both a ValueError
        run.problems.append(f"{name} is damaged")
    else:
        if isinstance(content, dict):
            return content
        run.problems.append(f"{name} is damaged")
    return {}


def _read_lines(run: Run, name: str, missing: str | None = "no epoch is done") -> Iterator[Record]:
    """Yield the records of a file up to its first damaged line."""
    path = run.path / name
    if not path.exists():
        run.problems += [f"no {name}: {missing}"] if missing else []
        return
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            run.problems.append(f"{name} is damaged from line {number} on")
            return
        yield record


def _numbers(history: list[Record], key: str) -> list[float]:
    values = [record.get(key) for record in history]
    return [v for v in values if isinstance(v, int | float) and math.isfinite(v)]


def _median(values: list[float]) -> float | None:
    return sorted(values)[len(values) // 2] if values else None
