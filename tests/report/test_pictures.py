"""The pictures: what they show, that they are whole, and that nothing else changes."""

from __future__ import annotations

import math
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib import style
from PIL import Image

from tinygrad_cnn import atomic, report
from tinygrad_cnn.report import figure as drawing

NAN = math.nan


def record(epoch, train_loss=1.0, validation_loss=None, **more):
    validation_accuracy = None if validation_loss is None else 1 - validation_loss / 10
    return {
        "epoch": epoch, "lr": 0.1, "train_loss": train_loss, "train_accuracy": 0.8,
        "validation_loss": validation_loss, "validation_accuracy": validation_accuracy, **more,
    }  # fmt: skip


def lines(axes):
    return {line.get_label(): list(line.get_ydata()) for line in axes.lines}


def texts(axes):
    return [text.get_text() for text in axes.texts]


# ---- curves ----


def test_curves_show_loss_error_and_rate(tmp_path, drawn):
    history = [record(1, 2.0, 3.0), record(2, 1.5, 2.0), record(3, 1.0, 2.5, lr=0.01)]
    report.plot_curves(history, tmp_path / "curves.png")
    loss, error, rate = drawn[0].axes
    assert lines(loss) == {"train": [2, 1.5, 1], "validation": [3, 2, 2.5]}
    assert lines(error)["validation"] == pytest.approx([30, 20, 25])
    assert lines(error)["train"] == pytest.approx([20] * 3)
    assert [list(line.get_ydata()) for line in rate.lines] == [[0.1, 0.1, 0.01]]
    assert texts(error) == ["20.0 %"]  # the best, of validation
    assert [axes.get_ylim()[0] for axes in drawn[0].axes] == [0, 0, 0]
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.format == "PNG"
        assert picture.getpixel((0, 0))[:3] == (255, 255, 255)
        assert len(picture.getcolors(100_000)) > 50


def test_curves_without_validation(tmp_path, drawn):
    report.plot_curves([record(1), record(2)], tmp_path / "curves.png")
    loss, error, _ = drawn[0].axes
    assert lines(loss) == {"train": [1, 1]}
    assert texts(error) == ["20.0 %"]


def test_a_single_epoch_is_a_point_inside_the_picture(tmp_path, drawn):
    report.plot_curves([record(7, 0.5, 0.6)], tmp_path / "curves.png")
    for axes in drawn[0].axes:
        (low, high), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        assert low < 7 < high
        assert all(bottom <= line.get_ydata()[0] < top for line in axes.lines)
        assert all(line.get_marker() == "o" for line in axes.lines)


@pytest.mark.parametrize("lost", [NAN, None, math.inf], ids=str)
def test_an_epoch_without_a_number_is_marked(tmp_path, drawn, lost):
    history = [record(1, 1.0), record(2, lost), record(3, lost)]
    report.plot_curves(history, tmp_path / "curves.png")
    loss = drawn[0].axes[0]
    assert texts(loss) == ["shaded: the loss was no number"]
    assert len(loss.patches) == 2
    assert loss.get_ylim() == (0, 1.08)


BARE = {"none": [], "bare": [{"epoch": 1}], "nan": [record(1, NAN)]}


@pytest.mark.parametrize("history", BARE.values(), ids=BARE)
def test_a_history_without_anything_to_draw(tmp_path, history):
    report.plot_curves(history, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_a_spike_makes_the_loss_logarithmic(tmp_path, drawn):
    report.plot_curves([record(1, 2.0), record(2, 1e5), record(3, 1.0)], tmp_path / "curves.png")
    assert [axes.get_yscale() for axes in drawn[0].axes] == ["log", "linear", "linear"]


# ---- how they are drawn and saved ----


def test_users_settings_neither_matter_nor_change(tmp_path):
    report.plot_curves([record(1)], tmp_path / "a.png")
    with style.context("dark_background"):
        before = matplotlib.rcParams.copy()
        report.plot_curves([record(1)], tmp_path / "b.png")
        assert matplotlib.rcParams.copy() == before
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_pyplot_is_not_needed(tmp_path):
    probe = (
        "import sys; from tinygrad_cnn import report; report.plot_curves([], sys.argv[1]); "
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    command = [sys.executable, "-c", probe, str(tmp_path / "curves.png")]
    assert subprocess.run(command, check=False).returncode == 0


def test_a_picture_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "curves.png"
    path.write_bytes(b"old")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as error:
        report.plot_curves([record(1)], path)
    assert error.value.__notes__ == [f"(in writing {path})"]
    assert [p.name for p in tmp_path.iterdir()] == ["curves.png"]
    assert path.read_bytes() == b"old"


def test_colours_can_be_told_apart_without_colour():
    """Train and validation differ in lightness too."""
    grey = [Image.new("RGB", (1, 1), c).convert("L").getpixel((0, 0)) for c in drawing.COLOURS[:2]]
    assert abs(grey[0] - grey[1]) > 25


# ---- confusion ----


def test_a_confusion_matrix_counts_true_by_predicted():
    matrix = report.confusion_matrix([0, 0, 1, 2], [0, 2, 1, 1], 3)
    assert matrix.tolist() == [[1, 0, 1], [0, 1, 0], [0, 1, 0]]
    assert report.confusion_matrix([], [], 2).tolist() == [[0, 0], [0, 0]]
    with pytest.raises(ValueError, match=r"targets are \(2,\), predictions \(3,\); expected"):
        report.confusion_matrix([0, 1], [0, 1, 1], 2)


def test_ten_classes_have_their_numbers(tmp_path, drawn):
    matrix = np.diag(np.full(10, 96)) + np.eye(10, k=1, dtype=int) * 4
    names = [f"class {i}" for i in range(10)]
    report.plot_confusion(matrix, names, tmp_path / "confusion.png")
    (axes,) = drawn[0].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == names
    assert sorted(texts(axes)) == sorted(["96"] * 9 + ["4"] * 9 + ["100"])  # each row in %
    assert axes.get_title(loc="left") == "96.4% of 996 images right; rows in %"


def test_a_hundred_classes_have_a_list(tmp_path, drawn):
    matrix = np.eye(100, dtype=int) * 70
    matrix[8, 48], matrix[35, 98] = 20, 30
    names = [f"c{i}" for i in range(100)]
    report.plot_confusion(matrix, names, tmp_path / "confusion.png")
    (axes,) = drawn[0].axes
    assert texts(axes) == ["commonest mistakes\n\n  30  c35 as c98\n  20  c8 as c48"]
    heights = [label.get_window_extent().height for label in axes.get_yticklabels()]
    step = np.diff(axes.transData.transform([(0, 0), (0, 1)])[:, 1])
    assert max(heights) < abs(step[0])  # so no label covers its neighbour


def test_a_matrix_of_another_size_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"the matrix is \(2, 2\); expected \(3, 3\)"):
        report.plot_confusion(np.eye(2, dtype=int), "abc", tmp_path / "confusion.png")


# ---- mistakes ----

PROBABILITIES = np.array([[0.9, 0.1], [0.3, 0.7], [0.2, 0.8], [0.9996, 0.0004]])


def test_the_surest_mistakes_come_first():
    targets = np.array([1, 1, 0, 1])
    assert report.most_confident_mistakes(targets, PROBABILITIES, 9).tolist() == [3, 0, 2]
    assert report.most_confident_mistakes(targets, PROBABILITIES, 2).tolist() == [3, 0]


@pytest.mark.parametrize("channels", [1, 3])
def test_mistakes_are_drawn_with_what_was_said(tmp_path, drawn, channels):
    images = np.random.default_rng(0).integers(0, 256, (4, channels, 6, 6), np.uint8)
    report.plot_mistakes(
        images, [1, 1, 0, 1], PROBABILITIES, ("cat", "dog"), tmp_path / "mistakes.png"
    )
    first, second, third, *rest = drawn[0].axes
    assert texts(first) == ["cat 99.9 %", "is dog"]
    assert texts(second) == ["cat 90.0 %", "is dog"]
    assert texts(third) == ["dog 80.0 %", "is cat"]
    assert not any(axes.images or axes.texts for axes in rest)
    shown = np.asarray(second.images[0].get_array())
    assert (shown == (images[0, 0] if channels == 1 else images[0].transpose(1, 2, 0))).all()
    assert drawn[0].get_suptitle().startswith("3 of 4 images wrong")


def test_no_mistakes(tmp_path, drawn):
    images = np.zeros((2, 3, 4, 4), np.uint8)
    report.plot_mistakes(images, [0, 1], PROBABILITIES[:2], "ab", tmp_path / "mistakes.png")
    assert drawn[0].get_suptitle().startswith("0 of 2 images wrong")
    with pytest.raises(ValueError, match="got 2 images, 3 targets and 2 rows"):
        report.plot_mistakes(images, [0, 1, 1], PROBABILITIES[:2], "ab", tmp_path / "x.png")


# ---- diagnoses ----


def test_the_range_test_shows_the_suggestion(tmp_path, drawn):
    report.plot_lr_range([0.001, 0.01, 0.1], [2, 1, 9], [2, 1.5, 4], 0.003, tmp_path / "lr.png")
    (axes,) = drawn[0].axes
    assert "lr 0.003" in lines(axes)
    assert axes.get_ylim()[1] < 9  # the divergence does not flatten the rest
    report.plot_lr_range([0.001], [2.0], [2.0], None, tmp_path / "lr.png")


def test_responses_are_shown_in_order_and_sorted(tmp_path, drawn):
    report.plot_responses({"resnet8": [0.1, 0.3, 0.2], "plain": [1.0]}, tmp_path / "responses.png")
    ordered, ranked = drawn[0].axes
    assert lines(ordered) == {"resnet8": [0.1, 0.3, 0.2], "plain": [1.0]}
    assert lines(ranked)["resnet8"] == [0.3, 0.2, 0.1]
