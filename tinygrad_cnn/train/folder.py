"""The folder of a run: what lies in it under which name."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .. import atomic
from . import checkpoint
from .recipe import RecipeError


class RunFolder:
    """Read and write a run's files; a file is replaced in one step or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config, self.result = path / "config.json", path / "result.json"
        self.history, self.timings = path / "history.jsonl", path / "timings.jsonl"
        self.last, self.previous = path / "last.safetensors", path / "previous.safetensors"
        self.best = path / "best.safetensors"
        self.curves, self.confusion = path / "curves.png", path / "confusion.png"
        self.mistakes = path / "mistakes.png"

    def refuse_taken(self) -> None:
        """Refuse a folder that already has a run."""
        if self.config.exists():
            raise FolderTaken(
                f"{self.path} already has a run; go on with it (--resume {self.path}) "
                "or choose another --out"
            )

    @contextmanager
    def held(self) -> Iterator[None]:
        """Train here alone: a second process is refused until this one lets go or dies."""
        from filelock import FileLock, Timeout

        self.path.mkdir(parents=True, exist_ok=True)
        try:
            lock = FileLock(self.path / ".lock").acquire(blocking=False)
        except Timeout:
            raise FolderTaken(
                f"another process trains in {self.path}; let it end, or stop it"
            ) from None
        with lock:
            yield

    @property
    def chosen(self) -> Path:
        """The checkpoint to use: the best on held-out images if the run had some, else the last."""
        return self.best if self.best.exists() else self.last

    def recover(self) -> tuple[checkpoint.Arrays, checkpoint.Facts] | None:
        """Read the newest checkpoint that is whole, if there is any.

        A damaged one is named on stderr and set aside, or it would soon replace the one before it.
        """
        present = [path for path in (self.last, self.previous) if path.exists()]
        for path in present:
            try:
                found = checkpoint.load(path)
            except checkpoint.CheckpointError as error:
                more = "; going on from the one before it" if path != present[-1] else ""
                print(f"{error}{more}", file=sys.stderr)
            else:
                for damaged in present[: present.index(path)]:
                    damaged.replace(damaged.with_suffix(".damaged"))
                return found
        if present:
            raise checkpoint.CheckpointError(
                f"{self.path} has no whole checkpoint left; start again with another --out"
            )
        return None


class FolderTaken(RecipeError):
    """The folder that was asked for already has a run."""


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file."""
    atomic.write(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON text per line."""
    atomic.write(path, "".join(json.dumps(record) + "\n" for record in records))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a JSON text per line; a file that isn't there has none."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]
