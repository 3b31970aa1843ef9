"""Every mistake of golden_errors.toml is answered with its sentence, word for word."""

from __future__ import annotations

import re
import shlex
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tinygrad_cnn as tg
from tinygrad_cnn import cli, data, models, nn, optim, train
from tinygrad_cnn import functional as F

BOOK = Path(__file__).with_suffix(".toml").with_name("golden_errors.toml")
MISTAKES = tomllib.loads(BOOK.read_text(encoding="utf-8"))["mistake"]
IN_PYTHON = [m for m in MISTAKES if "python" in m]
ON_THE_COMMAND_LINE = [m for m in MISTAKES if "command" in m]
NAMES = dict(np=np, tg=tg, F=F, nn=nn, data=data, models=models, optim=optim, train=train)


def titles(mistakes):
    return [re.sub(r"\W+", "-", m["title"]) for m in mistakes]


def wanted(mistake):
    return mistake["says"].replace("{models}", ", ".join(models.names()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Make the folder that the commands are typed in."""
    folder = tmp_path_factory.mktemp("golden")
    (folder / "notes.txt").write_text("not a picture")
    (folder / "empty").mkdir()
    config = train.run.configure(
        "quick", {"": {"model": "softmax", "epochs": 1}}, images=50, backend="numpy"
    )
    train.run.start(folder / "run", config)
    whole = (folder / "run" / "last.safetensors").read_bytes()
    (folder / "broken.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    for i, (name, shade) in enumerate((name, shade) for name in "ab" for shade in (0, 255)):
        (folder / "pictures" / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (shade, i, 0)).save(folder / "pictures" / name / f"{i}.png")
    return folder


@pytest.mark.parametrize("mistake", IN_PYTHON, ids=titles(IN_PYTHON))
def test_in_python(mistake):
    with tg.use_backend("numpy"), pytest.raises(Exception) as caught:  # noqa: PT011
        exec(mistake["python"], dict(NAMES))
    assert (caught.type.__name__, str(caught.value)) == (mistake["error"], wanted(mistake))


def spoken(err):
    """Take the sentence out of what stands on stderr: typer puts its own into a box."""
    if "Usage:" in err:
        err = " ".join(re.findall(r"^│ (.*) │$", err, re.MULTILINE))
    return re.sub(r"\s+", " ", err.removeprefix("tinygrad-cnn: ")).strip()


@pytest.mark.parametrize("mistake", ON_THE_COMMAND_LINE, ids=titles(ON_THE_COMMAND_LINE))
def test_on_the_command_line(mistake, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TINYGRAD_CNN_BACKEND", "numpy")
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.delenv("TINYGRAD_CNN_DATA", raising=False)
    monkeypatch.setattr(sys, "argv", ["tinygrad-cnn", *shlex.split(mistake["command"])])
    before = sorted(folder.rglob("*"))
    with pytest.raises(SystemExit) as exit, tg.use_backend("numpy"):
        cli.main()
    assert spoken(capsys.readouterr().err) == wanted(mistake)
    assert exit.value.code == mistake["status"]
    assert sorted(folder.rglob("*")) == before  # nothing half-written is left


def test_titles_are_distinct():
    keys = [(m["title"], "python" in m) for m in MISTAKES]
    assert len(set(keys)) == len(keys) >= 25
