"""Comparing runs, the unfinished and the damaged among them."""

from __future__ import annotations

import json

import pytest

from tinygrad_cnn import report

CONFIG = {
    "recipe": {"model": "resnet8", "epochs": 2, "optimizer": {"name": "sgd", "lr": 0.1}},
    "recipe_name": "quick", "data": "shapes", "seed": 3, "backend": "numpy",
}  # fmt: skip
RESULT = {
    "test_accuracy": 0.81, "test_loss": 0.5, "epochs": 2, "parameters": 75_290, "seconds": 12.5,
    "images_per_second": 640.0, "backend": "numpy", "seed": 3, "data": "shapes",
    "model": "resnet8", "recipe": "quick",
}  # fmt: skip
HISTORY = [
    {"epoch": 1, "step": 10, "train_loss": 2.0, "validation_loss": 2.1, "validation_accuracy": 0.7},
    {"epoch": 2, "step": 20, "train_loss": 1.0, "validation_loss": 1.4, "validation_accuracy": 0.6},
]


@pytest.fixture
def run(tmp_path):
    """Write the folder of a run."""

    def write(name="run", *, config=CONFIG, history=HISTORY, result=RESULT):
        folder = tmp_path / name
        folder.mkdir()
        if config is not None:
            (folder / "config.json").write_text(json.dumps(config))
        if history is not None:
            (folder / "history.jsonl").write_text("".join(json.dumps(r) + "\n" for r in history))
        if result is not None:
            (folder / "result.json").write_text(json.dumps(result))
        return folder

    return write


def rows(*folders):
    return [report.row(report.read_run(folder)) for folder in folders]


def test_a_row_sums_a_finished_run_up(run):
    folder = run()
    assert rows(folder) == [
        {
            "run": str(folder), "model": "resnet8", "recipe": "quick", "parameters": 75_290,
            "test_accuracy": 0.81, "images_per_second": 640.0, "data": "shapes",
            "backend": "numpy", "seed": 3, "epochs": 2, "best_validation": 0.7, "problems": "",
        }
    ]  # fmt: skip


def test_an_unfinished_run_shows_how_far_it_came(run):
    folder = run(result=None)
    timings = [{"epoch": e, "images_per_second": v} for e, v in ((1, 500.0), (2, 700.0))]
    (folder / "timings.jsonl").write_text("".join(json.dumps(t) + "\n" for t in timings))
    (row,) = rows(folder)
    assert (row["model"], row["recipe"], row["epochs"]) == ("resnet8", "quick", 2)
    assert (row["test_accuracy"], row["images_per_second"]) == (None, 700.0)
    assert row["problems"] == "no result.json: unfinished"


DAMAGE = {
    "folder": (None, None, "there is no such folder"),
    "config": ("config.json", b"{", "config.json is damaged"),
    "bytes": ("config.json", b"\xff\xfe", "config.json is damaged"),
    "list": ("result.json", b"[1]", "result.json is damaged"),
    "cut": ("history.jsonl", b'{"epoch": 1}\n{"epo', "history.jsonl is damaged from line 2 on"),
    "number": ("history.jsonl", b"1\n", "history.jsonl is damaged from line 1 on"),
}


@pytest.mark.parametrize(("name", "content", "problem"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named_and_the_rest_compared(run, tmp_path, name, content, problem):
    if name:
        (run("damaged") / name).write_bytes(content)
    damaged, whole = rows(tmp_path / "damaged", run("whole"))
    assert damaged["problems"] == problem
    assert whole["problems"] == ""
    assert whole["test_accuracy"] == 0.81


def test_an_empty_folder_has_three_problems(run):
    (row,) = rows(run(config=None, history=None, result=None))
    assert row["problems"] == (
        "no config.json: no run, or one that never began; no history.jsonl: no epoch is done; "
        "no result.json: unfinished"
    )


def test_nothing_validated_has_no_best(run):
    history = [{"epoch": 1, "validation_accuracy": None}, {"epoch": 2}]
    (row,) = rows(run(history=history))
    assert row["best_validation"] is None


def test_differing_settings_are_found(run):
    recipe = {**CONFIG["recipe"], "optimizer": {"name": "sgd", "lr": 0.2, "momentum": 0.9}}
    folders = run("a"), run("b", config={**CONFIG, "recipe": recipe, "seed": 4})
    runs = [report.read_run(folder) for folder in folders]
    assert report.differences(runs) == {
        "recipe.optimizer.lr": [0.1, 0.2], "recipe.optimizer.momentum": [None, 0.9], "seed": [3, 4]
    }  # fmt: skip
    assert report.differences(runs[:1]) == report.differences([]) == {}


@pytest.mark.parametrize("validated", [True, False])
def test_the_curves_of_all_are_drawn(run, tmp_path, drawn, validated):
    history = HISTORY if validated else [{"epoch": 1, "train_loss": 5.0, "train_accuracy": 0.5}]
    folders = run("plain"), run("residual", history=history)
    report.plot_comparison([report.read_run(f) for f in folders], tmp_path / "compare.png")
    loss, error = drawn[0].axes
    assert [line.get_label() for line in loss.lines] == ["plain", "residual"]
    assert loss.lines[0].get_ydata().tolist() == ([2.1, 1.4] if validated else [2, 1])
    assert error.get_ylabel() == ("validation" if validated else "train")
    assert (tmp_path / "compare.png").stat().st_size > 1000


def test_many_runs_stay_distinct():
    looks = [(c, d) for d in report.comparison.DASHES for c in report.comparison.COLOURS]
    assert len(set(looks)) == 28
