"""Files that are either the old ones or the new ones, whatever happens while they are written."""

from __future__ import annotations

import os
from pathlib import Path


def write(path: Path, content: bytes | str, *, keep: Path | None = None) -> None:
    """Replace a file in one step; `keep` is what the old one is called from then on.

    The content is on the disk before the name points at it. Killed between two renames, only
    `keep` exists, and is whole. The folder is made if it isn't there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            path.replace(keep)
        part.replace(path)
    except BaseException as error:
        error.add_note(f"(in writing {path})")  # a full disk doesn't say
        part.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make the renames last through a power cut, where folders can be opened (not on Windows)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
