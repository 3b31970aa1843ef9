"""Checkpoints: one safetensors file each, in which damage is noticed.

Arrays lie in it under their names. The metadata has one entry: the SHA-256 of a JSON text, a space,
and that text, which holds the facts and the SHA-256 of every array. (One entry, because safetensors
writes several in random order, and equal states shall give equal files.)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy

from .. import atomic

FORMAT = 1
ENTRY = "tinygrad_cnn"

Arrays = dict[str, numpy.ndarray[Any, Any]]
Facts = dict[str, Any]


class CheckpointError(RuntimeError):
    """Say what is wrong with a checkpoint file."""


def save(path: Path, arrays: Mapping[str, Any], facts: Facts, *, keep: Path | None = None) -> None:
    """Write a checkpoint in one step; `keep` is what an older one is called from then on."""
    from safetensors.numpy import save as serialize

    whole = {name: numpy.asarray(a, order="C") for name, a in arrays.items()}
    sums = {name: _sum(a) for name, a in whole.items()}
    text = json.dumps({"format": FORMAT, "facts": facts, "sha256": sums})
    entry = f"{hashlib.sha256(text.encode()).hexdigest()} {text}"
    atomic.write(path, serialize(whole, {ENTRY: entry}), keep=keep)


def load(path: Path) -> tuple[Arrays, Facts]:
    """Read a checkpoint's arrays and facts; CheckpointError if it isn't as it was saved."""
    if not path.is_file():
        raise CheckpointError(
            f"{path}: there is no such file; expected a run's folder or a .safetensors file of one"
        )
    arrays, entry = _read(path)
    stated, _, text = entry.partition(" ")
    if hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest() != stated:
        raise CheckpointError(f"{path} is damaged: its metadata doesn't match its checksum")
    content = json.loads(text)
    if content["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has format {content['format']}; this version reads format {FORMAT}. "
            "Use the version of tinygrad_cnn that wrote it"
        )
    wrong = [n for n, stated in content["sha256"].items() if _sum(arrays.get(n)) != stated]
    if wrong or arrays.keys() != content["sha256"].keys():
        raise CheckpointError(f"{path} is damaged: {[*wrong, 'the list of arrays'][0]} has changed")
    return arrays, content["facts"]


def _read(path: Path) -> tuple[Arrays, str]:
    from safetensors import safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            entry = (file.metadata() or {}).get(ENTRY)
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except MemoryError:
        raise
    except Exception as error:  # the library's own, and NumPy's for types it doesn't know
        raise CheckpointError(f"{path} is damaged or no checkpoint: {error}") from None
    if entry is None:
        raise CheckpointError(f"{path} holds arrays, but is no checkpoint of tinygrad_cnn")
    return arrays, entry


def _sum(array: Any) -> str | None:
    """Give the SHA-256 of an array's type, shape and values."""
    if array is None:
        return None
    digest = hashlib.sha256(f"{array.dtype} {array.shape} ".encode())
    digest.update(array.tobytes())
    return digest.hexdigest()
