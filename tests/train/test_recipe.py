"""Recipes: what they mean, what is refused, and that a recipe trains as it does in PyTorch."""

from __future__ import annotations

import importlib
import itertools
import json
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tinygrad_cnn as tg
from tinygrad_cnn import data, models, optim, train
from tinygrad_cnn.train import recipe, run
from tinygrad_cnn.train.recipe import Recipe, RecipeError

SGD = {"name": "sgd", "lr": 0.1}


def make(**settings):
    return Recipe.from_dict({"epochs": 1, **settings})


# ---- the package's ----


def test_there_are_recipes():
    assert recipe.names() == [
        "alexnet", "paper", "paper-110", "paper-preact", "quick", "shapes", "speedrun",
    ]  # fmt: skip


@pytest.mark.parametrize("name", recipe.names())
def test_each_of_the_packages_builds(name):
    read = recipe.load(name)
    p = tg.tensor([1.0], requires_grad=True)
    optimizer = read.build_optimizer([p])
    schedule = read.build_schedule(read.total_steps(100))
    assert optimizer.lr == read.optimizer["lr"]
    assert all(0 <= schedule(step) <= optimizer.lr for step in range(read.total_steps(100)))


@pytest.mark.parametrize("name", recipe.names())
def test_each_of_the_packages_takes_a_step(name):
    tiny = recipe.load(name).override({"steps": 2, "batch_size": 2})  # a rate may begin at 0
    with tg.use_backend("numpy"):
        trainer = run.build(train.Config(tiny, backend="numpy"), data.shapes(20))
        weights = trainer.model.parameters()
        before = [p.numpy().copy() for p in weights]
        trainer.run()
    assert np.isfinite(trainer.last_loss)
    moved = [(a != p.numpy()).any() for a, p in zip(before, weights, strict=True)]
    assert np.mean(moved) > 0.9  # a unit whose ReLUs are silent may stay
    assert trainer.test_flip == tiny.test_flip


def test_paper_is_the_papers():
    """He et al., arXiv 1512.03385, section 4.2."""
    paper = recipe.load("paper")
    assert paper.total_steps(391) == 64_000
    schedule = paper.build_schedule(64_000)
    at = [0, 31_999, 32_000, 47_999, 48_000, 63_999]
    np.testing.assert_allclose([schedule(s) for s in at], [0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    assert (paper.batch_size, paper.per_pixel_mean) == (128, True)
    assert paper.optimizer == dict(name="sgd", lr=0.1, momentum=0.9, weight_decay=1e-4)


@pytest.mark.parametrize(
    ("name", "model"), [("paper-110", "resnet110"), ("paper-preact", "preact_resnet164")]
)
def test_deep_networks_warm_up(name, model):
    """400 steps at a rate of 0.01; else it is `paper`."""
    warm = recipe.load(name)
    schedule = warm.build_schedule(64_000)
    assert [schedule(step) for step in (0, 399, 400, 31_999)] == [0.01, 0.01, 0.1, 0.1]
    assert replace(warm, warm_up={}) == recipe.load("paper").override({"model": model})


def test_alexnet_is_the_papers():
    """Krizhevsky et al. 2012, sections 4.1 and 5."""
    alexnet = recipe.load("alexnet")
    schedule = alexnet.build_schedule(1000)
    rates = sorted({round(schedule(step), 12) for step in range(1000)}, reverse=True)
    assert rates == [0.01, 0.001, 0.0001, 0.00001]
    assert alexnet.batch_size == 128
    assert alexnet.optimizer == dict(name="sgd", lr=0.01, momentum=0.9, weight_decay=5e-4)
    assert alexnet.augment["colour_jitter"] == 0.1


# ---- your own ----


def test_a_file_of_your_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("epochs = 3\n[optimizer]\nname = 'adam'\nlr = 1e-3\nbetas = [0.8, 0.9]\n")
    mine = recipe.load(str(path))
    assert (mine.model, mine.epochs, mine.batch_size) == ("resnet20", 3, 128)
    assert mine.build_optimizer([tg.tensor([1.0], requires_grad=True)]).defaults["betas"] == (
        0.8,
        0.9,
    )


def test_a_recipe_stands_on_another(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("base = 'paper-preact'\nepochs = 3\n[optimizer]\nlr = 0.05\n")
    mine, base = recipe.load(str(path)), recipe.load("paper-preact")
    assert mine == base.override({"epochs": 3, "optimizer": {"lr": 0.05}})
    assert (mine.model, mine.steps, mine.optimizer["momentum"]) == ("preact_resnet164", None, 0.9)
    assert base == recipe.load("paper-110").override({"model": "preact_resnet164"})


@pytest.mark.parametrize("base", ["papr", "mine.toml", 3])
def test_a_base_is_one_of_the_packages(tmp_path, monkeypatch, base):
    """Never a file, so that no recipe stands on itself."""
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text(f"base = {base!r}\n")
    with pytest.raises(RecipeError) as error:
        recipe.load("mine.toml")
    assert str(error.value).startswith(f"recipe mine.toml: no base {base!r}")
    assert str(error.value).endswith(f"There are: {', '.join(recipe.names())}")


@pytest.mark.parametrize("name", recipe.names())
def test_a_recipe_survives_being_shown(tmp_path, name):
    """With all it has from its base, whose changes then don't reach it."""
    path = tmp_path / "shown.toml"
    path.write_text(recipe.resolved(name))
    assert recipe.load(str(path)) == recipe.load(name)
    assert "base" not in tomllib.loads(path.read_text())
    assert path.read_text().startswith(recipe.text(name).partition("\n\n")[0])


@pytest.mark.parametrize("name", recipe.names())
def test_a_recipe_survives_json(name):
    read = recipe.load(name)
    assert Recipe.from_dict(json.loads(json.dumps(read.to_dict()))) == read


def test_every_setting_has_a_check():
    sections = {
        "optimizer": recipe.NAMED["optimizer"], "schedule": recipe.NAMED["schedule"],
        "warm_up": [""], "augment": [""],
    }  # fmt: skip
    assert sections.keys() == set(recipe.SECTIONS) - {"model_settings"}
    keys = {
        key
        for section, choices in sections.items()
        for name in choices
        for key in recipe._parameters(section, {"name": name})
    }
    plain = Recipe.__dataclass_fields__.keys() - set(recipe.SECTIONS)
    checked = {name.rpartition(".")[2] for name in recipe.VALUES}
    assert checked == plain | keys - {"name"}


def test_overriding():
    quick = recipe.load("quick")
    changed = quick.override({"model": "resnet20", "optimizer": {"lr": 1.0}, "steps": 7})
    assert (changed.model, changed.epochs, changed.steps) == ("resnet20", None, 7)
    assert changed.optimizer == quick.optimizer | {"lr": 1.0}
    assert quick.optimizer["lr"] == 0.3  # a recipe doesn't change


def test_another_name_starts_a_section_afresh():
    adam = recipe.load("quick").override({"optimizer": {"name": "adam", "lr": 1e-3}})
    assert adam.optimizer == {"name": "adam", "lr": 1e-3}


ADAM = [{"optimizer": {"lr": 0.001}}, {"optimizer": {"name": "adam"}}]


@pytest.mark.parametrize("changes", [ADAM, ADAM[::-1]])
def test_the_order_of_changes_says_nothing(changes):
    assert recipe.load("paper").override(*changes).optimizer == {"name": "adam", "lr": 0.001}


def test_of_two_changes_to_one_setting_the_later_counts():
    rates = [{"optimizer": {"lr": lr}} for lr in (1.0, 2.0)]
    assert recipe.load("paper").override(*rates).optimizer["lr"] == 2.0


EMPTIED = [{"augment": {}}, {"augment": {"pad": 2}}]


@pytest.mark.parametrize("changes", [EMPTIED, EMPTIED[::-1]])
def test_an_emptied_section_may_be_filled(changes):
    assert recipe.load("paper").override(*changes).augment == {"pad": 2}


def test_steps_below_1_are_parts_of_the_run():
    parts = make(
        schedule={"name": "multistep", "milestones": [0.5, 80]},
        warm_up={"steps": 0.1, "start": 0.05, "shape": "constant"},
    )
    schedule = parts.build_schedule(100)
    at = [schedule(step) for step in (0, 9, 10, 49, 50, 79, 80)]
    np.testing.assert_allclose(at, [0.05, 0.05, 0.1, 0.1, 0.01, 0.01, 0.001])


@pytest.mark.parametrize("name", ["paper", "paper-110", "paper-preact"])
def test_the_papers_rate_falls_in_a_run_of_any_length(name):
    """What --epochs 20 makes of 50,000 images: 7,820 steps."""
    short = recipe.load(name).override({"epochs": 20})
    steps = short.total_steps(391)
    schedule, whole = short.build_schedule(steps), recipe.load(name).build_schedule(64_000)
    for part in (0, 0.006, 0.0065, 0.49, 0.51, 0.74, 0.76, 0.999):
        assert schedule(int(part * steps)) == whole(int(part * 64_000))
    np.testing.assert_allclose(schedule(steps - 1), 0.001)


def test_milestones_after_the_end_are_refused():
    counted = make(schedule={"name": "multistep", "milestones": [0.5, 99, 100, 150]})
    assert counted.build_schedule(151)
    said = r"schedule.milestones has \[100, 150\], but the run ends after 100 steps; give parts of"
    with pytest.raises(RecipeError, match=said):
        counted.build_schedule(100)
    halved = make(schedule={"name": "multistep", "milestones": [0.5]})
    assert halved.build_schedule(1)(0) == 0.1


def test_a_part_is_below_one():
    whole = make(schedule={"name": "multistep", "milestones": [0.5, 1.0]})
    said = "^1.0 is neither a part of the run, below 1, nor a number of steps, such as 1$"
    with pytest.raises(RecipeError, match=said):
        whole.build_schedule(100)


def test_an_empty_section_takes_all_away():
    warm = recipe.load("paper-110")
    assert warm.override({"warm_up": {}}).warm_up == {}
    assert warm.override({"epochs": 1}).warm_up == warm.warm_up != {}


@pytest.mark.parametrize(
    ("name", "settings"),
    [("constant", {}), ("step", {"every": 10}), ("cosine", {"floor": 0.01}), ("one_cycle", {})],
)
def test_every_schedule_is_the_librarys(name, settings):
    steps = {"steps": 50} if name in ("cosine", "one_cycle") else {}
    theirs = getattr(optim, name)(0.1, **settings, **steps)
    ours = make(schedule={"name": name, **settings}).build_schedule(50)
    assert [ours(s) for s in range(50)] == [theirs(s) for s in range(50)]


@pytest.mark.parametrize(("pad", "flip"), list(itertools.product([0, 2, 4], [False, True])))
def test_augmentation_is_what_it_says(pad, flip):
    """A picture's one bright pixel moves by at most pad, and to the other side only by a flip."""
    made = make(augment={"pad": pad, "flip": flip}).build_augment(None, None)
    x = np.zeros((200, 1, 32, 32), np.float32)
    x[:, :, 16, 5] = 1
    if not (pad or flip):
        assert made == []
        return
    (augment,) = made
    _, _, rows, columns = np.nonzero(augment(x, np.random.default_rng(0)))
    assert set(rows) == set(range(16 - pad, 17 + pad))
    mirrored = columns > 15
    assert mirrored.any() == flip
    assert set(np.where(mirrored, 31 - columns, columns)) == set(range(5 - pad, 6 + pad))


def test_augmentations_have_an_order():
    """What is hidden stays hidden; crops come first, so that they take one pass."""
    images = data.shapes(30).images
    statistics = data.channel_statistics(images)
    made = make(augment={"cutout": 8, "colour_jitter": 0.2, "flip": True, "pad": 2}).build_augment(
        images, statistics
    )
    crop, jitter, cutout = made
    assert (crop, cutout) == (data.RandomCropAndFlip(2, flip=True), data.Cutout(8))
    assert jitter.deviation == 0.2
    np.testing.assert_array_equal(jitter.covariance, data.colour_covariance(images))
    np.testing.assert_array_equal(jitter.std, statistics[1])


def test_another_model_forgets_the_settings_of_the_first():
    narrow = make(model="resnet9", model_settings={"width": 8})
    assert narrow.override({"model": "resnet20"}).model_settings == {}
    assert narrow.override({"model": "resnet9"}).model_settings == {"width": 8}
    both = narrow.override({"model_settings": {"scale": 1.0}})
    assert both.model_settings == {"width": 8, "scale": 1.0}
    other = narrow.override({"model": "resnet20", "model_settings": {"shortcut": "B"}})
    assert other.model_settings == {"shortcut": "B"}


def test_a_recipe_builds_its_model():
    narrow = make(model="resnet9", model_settings={"width": 8})
    model = narrow.build_model(7, np.random.default_rng(0))
    twin = models.build("resnet9", classes=7, width=8, rng=np.random.default_rng(0))
    assert model.fc.weight.shape == (7, 64)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        np.testing.assert_array_equal(p.numpy(), q.numpy())


# ---- mistakes ----


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"bach_size": 3}, "no setting bach_size; did you mean 'batch_size'? There are: model, "),
        ({"optimiser": SGD}, "no setting optimiser; did you mean 'optimizer'?"),
        ({"optimizer": SGD | {"momentun": 0.9}},
         "no setting optimizer.momentun; did you mean 'momentum'? There are: name, lr, momentum, "
         "nesterov, weight_decay"),
        ({"optimizer": {"name": "adam", "lr": 1, "momentum": 0}}, "no setting optimizer.momentum"),
        ({"optimizer": {"name": "sdg", "lr": 1}},
         "no optimizer 'sdg'; did you mean 'sgd'? There are: sgd, rmsprop, adam, adamw"),
        ({"optimizer": {"name": "adam"}}, "optimizer.lr is missing; adam needs it"),
        ({"optimizer": {"lr": 1}}, "no optimizer None. There are: sgd, rmsprop, adam, adamw"),
        ({"schedule": {"name": "multistep"}}, "schedule.milestones is missing; multistep needs it"),
        ({"schedule": {"name": "cosine", "steps": 3}}, "no setting schedule.steps"),
        ({"schedule": "cosine"}, "schedule is 'cosine'; expected a section of settings"),
        ({"model": {"name": "mlp"}}, "model is {'name': 'mlp'}; expected a value, not a section"),
        ({"model": "resnet21"}, "no model 'resnet21'; did you mean 'resnet"),
        ({"batch_size": 0}, "batch_size is 0; expected a whole number, at least 1"),
        ({"batch_size": True}, "batch_size is True; expected a whole number, at least 1"),
        ({"optimizer": SGD | {"lr": "0.1"}}, "optimizer.lr is '0.1'; expected a number from 0 on"),
        ({"optimizer": SGD | {"lr": float("nan")}}, "optimizer.lr is nan; expected a number from"),
        ({"optimizer": SGD | {"momentum": 1}},
         "optimizer.momentum is 1; expected a number from 0 to below 1"),
        ({"ema": 1.0}, "ema is 1.0; expected a number from 0 to below 1"),
        ({"dtype": "float16"}, "dtype is 'float16'; expected 'float32' or 'float64'"),
        ({"warm_up": {"start": 0.1}}, "warm_up has no steps; set how many, such as steps = 400"),
        ({"warm_up": {"steps": 0}}, "warm_up.steps is 0; expected a number of steps, or below 1"),
        ({"augment": {"crop": 4}}, "no setting augment.crop. There are: pad, flip, colour_"),
        ({"augment": {"cutout": -1}}, "augment.cutout is -1; expected a whole number of pixels"),
        ({"augment": {"colour_jitter": -0.1}}, "augment.colour_jitter is -0.1; expected a number "),
        ({"augment": {"color_jitter": 0.1}},
         "no setting augment.color_jitter; did you mean 'colour_jitter'?"),
        ({"test_flip": 1}, "test_flip is 1; expected true or false"),
        ({"model": "resnet9", "model_settings": {"wdth": 32}},
         "no setting model_settings.wdth of resnet9; did you mean 'width'? There are: width, sc"),
        ({"model": "resnet20", "model_settings": {"depth": 110}},  # the name says it
         "no setting model_settings.depth of resnet20. There are: shortcut"),
        ({"model": "resnet9", "model_settings": {"classes": 5}},  # the data's affair
         "no setting model_settings.classes of resnet9. There are: width, scale"),
        ({"model": "convnet", "model_settings": {"widths": 8}},
         "model_settings.widths is 8; expected a list like [16, 32, 64]"),
        ({"model": "resnet9", "model_settings": {"width": "wide"}},
         "model_settings.width is 'wide'; expected a number like 64"),
        ({"model_settings": 3}, "model_settings is 3; expected a section of settings"),
        ({"schedule": {"name": "multistep", "milestones": 3}},
         "schedule.milestones is 3; expected a list of steps"),
        ({"steps": 5}, "epochs is 1 and steps is 5; expected exactly one of them to be set"),
        ({"epochs": None}, "epochs is None and steps is None; expected exactly one of them"),
    ],
)  # fmt: skip
def test_mistakes_are_named(table, message):
    with pytest.raises(RecipeError) as error:
        make(**table)
    assert message in str(error.value)
    assert error.value.exit_status == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("epochs = 1\nephocs = 2", "no setting ephocs; did you mean 'epochs'?"),
        ("epochs = ", "Invalid value (at end of document)"),
    ],
)
def test_a_files_mistakes_come_with_its_name(tmp_path, content, message):
    path = tmp_path / "own.toml"
    path.write_text(content)
    with pytest.raises(RecipeError) as error:
        recipe.load(str(path))
    assert str(error.value).startswith(f"recipe {path}: ")
    assert message in str(error.value)


def test_unknown_recipes():
    with pytest.raises(RecipeError, match=r"no recipe 'papr'; did you mean 'paper'\? There are: "):
        recipe.load("papr")
    with pytest.raises(RecipeError, match=r"recipe no/such\.toml: there is no such file"):
        recipe.load("no/such.toml")


@pytest.mark.parametrize("setting", ["lr", "=3", "a b=3"])
def test_settings_that_are_none(setting):
    with pytest.raises(RecipeError, match="is no setting; expected KEY=VALUE"):
        recipe.parse(setting)


def test_smoothing_needs_a_cross_entropy():
    model = models.build("svm")
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(
        ValueError, match=r"label_smoothing is 0\.1, but the loss of SVM is no cross-"
    ):
        train.Trainer(model, optimizer, None, steps=1, label_smoothing=0.1)


# ---- beside PyTorch ----

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TWENTY = {"steps": 20, "batch_size": 16, "dtype": "float64", "model": "resnet8"}
BESIDE = {
    "paper": {**TWENTY, "schedule": {"milestones": [10, 15]}},
    "shapes": {
        **TWENTY, "label_smoothing": 0.1, "warm_up": {"steps": 1, "start": 0.002},
        "schedule": {"name": "one_cycle"},
    },
}  # fmt: skip


class Losses(train.Callback):
    """Remember every loss."""

    def on_start(self, trainer):
        self.losses = []

    def on_step(self, trainer):
        self.losses.append(trainer.last_loss)


def ours(read, loader, model):
    seen = Losses()
    trainer = train.Trainer(
        model, read.build_optimizer(model.parameters()), loader, steps=20,
        schedule=read.build_schedule(20), label_smoothing=read.label_smoothing, callbacks=[seen],
    )  # fmt: skip
    trainer.run()
    return seen.losses


def theirs(torch, read, loader, model):
    """Train in PyTorch with its own optimiser, schedule and loss."""
    settings = {k: v for k, v in read.optimizer.items() if k != "name"}
    optimizer, lr = torch.optim.SGD(model.parameters(), **settings), torch.optim.lr_scheduler
    if read.schedule["name"] == "multistep":
        schedule = lr.MultiStepLR(optimizer, read.schedule["milestones"])
    else:
        schedule = lr.OneCycleLR(optimizer, settings["lr"], 20, cycle_momentum=False)
    criterion, losses = torch.nn.CrossEntropyLoss(label_smoothing=read.label_smoothing), []
    for x, y in loader.epoch(0):
        loss = criterion(model(torch.tensor(x)), torch.tensor(y))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("name", BESIDE)
def test_a_recipe_trains_as_in_pytorch(monkeypatch, real_cifar10, name):
    torch = pytest.importorskip("torch")
    monkeypatch.syspath_prepend(BENCHMARKS)
    read = recipe.load(name).override(BESIDE[name])
    images, _ = data.load(real_cifar10, images=320)
    statistics = data.channel_statistics(images.images, per_pixel_mean=read.per_pixel_mean)
    loader = data.Loader(
        images, read.batch_size, seed=0, normalize=statistics,
        augment=read.build_augment(images.images, statistics), dtype=read.dtype,
    )  # fmt: skip
    with tg.use_backend("numpy"):
        model = models.build(read.model, rng=np.random.default_rng(0)).astype(read.dtype)
        state = {n: torch.tensor(a) for n, a in model.state_dict().items()}
        twin = importlib.import_module("torch_models").build(read.model).double()
        twin.load_state_dict(state, strict=False)
        losses = ours(read, loader, model)
    assert len(set(losses)) == 20
    np.testing.assert_allclose(losses, theirs(torch, read, loader, twin), rtol=1e-9)
