"""Fetch an archive from the first mirror that has it, and leave all of it behind or nothing."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from .archives import Archive
from .cifar import data_folder, read_members
from .dataset import DataError

if TYPE_CHECKING:
    import requests

ROUNDS = 2  # through the list of mirrors: who was busy may answer the second time
TIMEOUT = 30  # seconds without a byte
# Some hosts turn unknown programs away; some would unpack a .gz on its way.
HEADERS = {"User-Agent": "tinygrad_cnn (through pooch)", "Accept-Encoding": "identity"}


def download(archive: Archive, data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Fetch an archive and unpack its files into its folder under data_folder(data_dir).

    Two processes may do so at once: what one has written, the other replaces by the same. Raises
    DataError where the network or the disk refuses.
    """
    root = data_folder(data_dir)
    names = [*archive.train, *archive.test]
    with _disk_errors(root), _workplace(root) as part:
        tar = part / archive.tar
        _fetch_from_any(archive, tar)
        members = read_members(tar, [f"{archive.folder}/{name}" for name in names])
        for name, (_, raw) in zip(names, members, strict=True):
            (part / name).write_bytes(raw)
        folder = root / archive.folder
        folder.mkdir(exist_ok=True)
        for name in names:  # each appears in one step; it is used when the last one is there
            (part / name).replace(folder / name)
    return folder


@contextmanager
def _workplace(root: Path) -> Iterator[Path]:
    """Make a folder on the same disk that goes away with all that is in it."""
    root.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".download-", dir=root) as part:
        yield Path(part)


@contextmanager
def _disk_errors(root: Path) -> Iterator[None]:
    """Turn what a disk can refuse into one sentence."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None))  # or the quota used up
        why = "has no room left" if full else f"cannot be written to ({error.strerror or error})"
        what = "free 400 MB there or choose" if full else "choose"
        raise DataError(
            f"{root} {why}; {what} another folder with data_dir or TINYGRAD_CNN_DATA"
        ) from error


def _fetch_from_any(archive: Archive, path: Path) -> None:
    failures = {}
    for url in archive.urls * ROUNDS:
        failure = _fetch(url, path, md5=archive.md5)
        if failure is None:
            return
        failures[urlsplit(url).netloc] = failure
    raise DataError(
        f"{archive.name}: no mirror gave {archive.tar} "
        f"({', '.join(f'{host} {failure}' for host, failure in failures.items())}); look after "
        f"the connection, or put the file into a folder and name it with data_dir or "
        f"TINYGRAD_CNN_DATA"
    )


def _fetch(url: str, path: Path, *, md5: str) -> str | None:
    """Download one file; says what went wrong, if the network is to blame."""
    import pooch
    import requests

    print(f"downloading {url}", file=sys.stderr)
    with closing(_Progress(path.name)) as bar:
        get = pooch.HTTPDownloader(bar, chunk_size=2**16, timeout=TIMEOUT, headers=HEADERS)
        try:
            get(url, str(path), None)
        except requests.RequestException as error:
            return _blame(error)
        if path.stat().st_size < (bar.total or 0):  # urllib3 1 does not mind
            return "broke off"
    found = pooch.file_hash(str(path), alg="md5")
    return None if found == md5 else f"gave another file (MD5 {found}, not {md5})"


def _blame(error: requests.RequestException) -> str:
    import requests

    match error:
        case requests.HTTPError(response=requests.Response(status_code=code)):
            return f"answered {code}"
        case requests.Timeout():
            return f"was silent for {TIMEOUT} s"
        case requests.exceptions.ChunkedEncodingError():
            return "broke off"
    return "could not be reached"


class _Progress:
    """Show a download by rich; the methods are those that pooch calls."""

    def __init__(self, name: str) -> None:
        from rich import progress as rich
        from rich.console import Console

        console = Console(stderr=True)
        self.bar = rich.Progress(
            rich.TextColumn("{task.description}"),
            rich.BarColumn(),
            rich.DownloadColumn(),
            rich.TransferSpeedColumn(),
            rich.TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task(name, total=None)
        self.bar.start()

    @property
    def total(self) -> float | None:
        """How many bytes there will be, once it is known."""
        return self.bar.tasks[0].total

    @total.setter
    def total(self, n: int) -> None:
        self.bar.update(self.task, total=n or None)

    def update(self, n: int) -> None:
        """Count n more bytes."""
        self.bar.advance(self.task, n)

    def reset(self) -> None:
        """Count from nothing."""
        self.bar.update(self.task, completed=0)

    def close(self) -> None:
        """Leave the bar as it is."""
        self.bar.stop()
