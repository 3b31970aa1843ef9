"""A run: a recipe applied to data in a folder, from nothing or from its last checkpoint."""

from __future__ import annotations

import contextlib
import itertools
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy

from .. import backends, data, models, nn, report
from ..backends.precision import check_precision, use_precision
from ..backends.threads import set_threads
from ..models.pretrained import blaming
from . import folder as files
from .callbacks import Checkpoints, Plot, StopAtNaN
from .config import Config, read_config
from .folder import RunFolder
from .progress import Progress
from .recipe import Recipe, RecipeError
from .signals import heeded
from .trained import Trained
from .trainer import Interrupted, Trainer


class Stopped(RuntimeError):
    """A run was ended by a signal, at a checkpoint."""

    def __init__(self, number: signal.Signals, message: str) -> None:
        super().__init__(message)
        self.exit_status = 128 + number


@contextlib.contextmanager
def new_folder(config: Config) -> Iterator[Path]:
    """Make a folder in runs/ that wasn't there: of runs begun at the same time, each gets one.

    If an error ends the block before anything lies in it, it is taken away.
    """
    name = f"{config.recipe.model}-{config.data.replace(':', '-').replace('/', '-')}"
    names = itertools.chain([name], (f"{name}-{i}" for i in itertools.count(2)))
    folder = next(path for path in map(Path("runs").joinpath, names) if _made(path))
    try:
        yield folder
    except BaseException:
        with contextlib.suppress(OSError):  # it isn't empty
            folder.rmdir()
            folder.parent.rmdir()
        raise


def _made(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return False
    return True


def start(folder: Path, config: Config, **settings: Any) -> dict[str, Any]:
    """Train in a new folder; gives the contents of result.json. Settings are those of `train`."""
    config = replace(config, backend=_backend(config).name)
    run = RunFolder(folder)
    run.refuse_taken()
    settings |= dict(checkpoint_activations=config.checkpoint_activations)
    settings |= dict(cuda_graphs=config.cuda_graphs)
    return train(run, config, *open_data(config), threads=config.threads, **settings)


def resume(
    folder: Path, *, data_dir: Path | None = None, threads: int | None = None,
    checkpoint_activations: bool | None = None, cuda_graphs: bool | None = None, **settings: Any,
) -> dict[str, Any]:  # fmt: skip
    """Go on with the run in a folder from its newest checkpoint; gives result.json's contents.

    The data may lie elsewhere now, there may be another number of threads, activations may be
    checkpointed or not and steps be CUDA graphs or not (None: as at the start).
    """
    run, config = RunFolder(folder), read_config(folder)
    if run.result.exists():
        print(f"the run in {folder} is finished")
        return files.read_json(run.result)
    if checkpoint_activations is None:
        checkpoint_activations = config.checkpoint_activations
    if cuda_graphs is None:
        cuda_graphs = config.cuda_graphs
    settings |= dict(checkpoint_activations=checkpoint_activations, cuda_graphs=cuda_graphs)
    images = open_data(config.on(None, data_dir))
    return train(run, config, *images, threads=threads or config.threads, **settings)


def _backend(config: Config) -> backends.Backend:
    """Give the backend, if it has the precision."""
    backend = backends.get(config.backend) if config.backend else backends.current()
    check_precision(config.precision, backend)
    return backend


def open_data(config: Config, *, border: float = 0.0) -> tuple[data.Dataset, data.Dataset]:
    """Give the run's images, to train (and to hold out) and to test.

    A folder's pictures are read in the model's size; `border` is read_image's.
    """
    how: dict[str, Any] = {}
    if config.data.startswith("folder:"):
        with nn.init.skipped():
            read = config.recipe
            size = models.build(read.model, **read.model_settings).image_shape[1]
        how = dict(size=size, border=border)
    return data.open_data(config.data, config.data_dir, images=config.images, **how)


def train(
    run: RunFolder,
    config: Config,
    train_set: data.Dataset,
    test_set: data.Dataset,
    *,
    threads: int | None = None,
    checkpoint_activations: bool = False,
    cuda_graphs: bool = False,
    checkpoint_every: int | None = None,
    callbacks: Sequence[Any] = (),
) -> dict[str, Any]:
    """Train to the end from the newest checkpoint, if there is one; then test, once."""
    backend = _backend(config)
    if threads is not None:
        set_threads(threads, backend)
    with backends.use_backend(backend), use_precision(config.precision, backend):
        begun = run.last.exists() or run.previous.exists()  # then the file of weights may be gone
        weights = None if begun else config.weights
        trainer = build(replace(config, weights=weights, cuda_graphs=cuda_graphs), train_set)
        if checkpoint_activations:
            nn.checkpoint_activations(trainer.model)
        keeper = _keeper(run, config, trainer, every=checkpoint_every)
        plot = Plot(report.plot_curves, run.curves)
        trainer.callbacks = [StopAtNaN(), Progress(), keeper, plot, *callbacks]
        with run.held():
            if run.config.exists():
                go_on(run, config, trainer)
            else:
                files.write_json(run.config, config.to_dict())
            print(_opening(run, config, trainer), flush=True)
            _train_or_stop(run, trainer, keeper)
            return finish(run, config, trainer, test_set)


def _train_or_stop(run: RunFolder, trainer: Trainer, keeper: Checkpoints) -> None:
    try:
        with heeded(trainer):
            trainer.run()
    except Interrupted as interrupted:
        keeper.save(trainer)
        by: signal.Signals = trainer.interrupt
        how = f"to go on: tinygrad-cnn train --resume {run.path}"
        raise Stopped(by, f"{interrupted} by {by.name}; {how}") from None


def build(config: Config, train_set: data.Dataset) -> Trainer:
    """Make the trainer that a configuration describes, without callbacks."""
    recipe, seed = config.recipe, config.seed
    train_set, aside = _split(train_set, config)
    statistics = data.channel_statistics(train_set.images, per_pixel_mean=recipe.per_pixel_mean)
    at: dict[str, Any] = dict(seed=seed, normalize=statistics, dtype=recipe.dtype)
    augment = recipe.build_augment(train_set.images, statistics)
    loader = _loader(train_set, recipe.batch_size, augment=augment, **at)
    model = build_model(recipe, train_set, seed=seed, weights=config.weights)
    steps = recipe.total_steps(len(loader))
    return Trainer(
        model, recipe.build_optimizer(model.parameters()), loader, steps=steps,
        schedule=recipe.build_schedule(steps),
        validation=data.Loader(aside, 200, shuffle=False, **at) if aside else None,
        label_smoothing=recipe.label_smoothing, parts=recipe.accumulate, ema=recipe.ema,
        test_flip=recipe.test_flip, cuda_graphs=config.cuda_graphs,
    )  # fmt: skip


def _loader(images: data.Dataset, batch_size: int, *, augment: Any, **at: Any) -> data.Loader:
    """Make batches where they are used, if that can be done, else on the host."""
    backend = backends.current()
    if data.ResidentLoader.serves(backend, augment):
        return data.ResidentLoader(images, batch_size, backend=backend, augment=augment, **at)
    return data.Loader(images, batch_size, augment=augment, **at)


def _keeper(run: RunFolder, config: Config, trainer: Trainer, *, every: int | None) -> Checkpoints:
    """Make the callback that saves the trainer, and with it all that evaluation needs."""
    mean, std = trainer.loader.statistics
    about = {"config": config.to_dict(), **_data_facts(trainer)}
    arrays = {"normalization.mean": mean, "normalization.std": std}
    return Checkpoints(run, about=about, arrays=arrays, every=every)


def _data_facts(trainer: Trainer) -> dict[str, Any]:
    """Tell what the training images are, so that others are noticed."""
    images = trainer.loader.dataset
    return {"data": images.name, "images": len(images), "classes": list(images.classes)}


def _split(dataset: data.Dataset, config: Config) -> tuple[data.Dataset, data.Dataset | None]:
    """Set images aside for validation, if there shall be any."""
    if not config.validation:
        return dataset, None
    return data.split(dataset, config.validation, seed=config.seed)


def build_model(
    recipe: Recipe, dataset: data.Dataset, *, seed: int, weights: str | None = None
) -> models.Classifier:
    """Make the recipe's model for a data set's classes, with fresh weights or those in a file."""
    rng = numpy.random.default_rng(seed)
    model = recipe.build_model(len(dataset.classes), rng)
    _check_shape(recipe.model, model.image_shape, dataset)
    if weights:
        state = models.read_weights(weights)
        with blaming(weights, recipe.model):
            model.load_state_dict(state)
    model.astype(recipe.dtype)
    return model


def _check_shape(model: str, shape: tuple[int, ...], dataset: data.Dataset) -> None:
    got = dataset.images.shape[1:]
    if shape == got:
        return
    sized = "size" in models.signature(model).parameters
    resized = f", or --set model_settings.size={got[-1]}" if sized else ""
    raise ValueError(
        f"{model} takes images {shape}, but those of {dataset.name} are {got}; "
        f"take another model{resized}"
    )


def go_on(run: RunFolder, config: Config, trainer: Trainer) -> None:
    """Bring a trainer to the newest checkpoint, and the history back to it."""
    found = run.recover()
    if found is None:
        return
    arrays, facts = found
    if Config.from_dict(facts["config"]) != config:
        raise RecipeError(f"{run.config} has been changed since the checkpoint; put it back")
    for name, now in _data_facts(trainer).items():
        if facts[name] != now:
            raise RecipeError(
                f"the run began with {name} {facts[name]}, but now it is {now}; "
                "put back what was there, or start a new run with --out"
            )
    trainer.load_state_dict({"arrays": arrays, "facts": facts})
    trainer.timings = files.read_lines(run.timings)[: len(trainer.history)]
    files.write_lines(run.history, trainer.history)
    files.write_lines(run.timings, trainer.timings)


def _opening(run: RunFolder, config: Config, trainer: Trainer) -> str:
    images = trainer.loader.dataset
    rounded = "" if config.precision == "fp32" else f" in {config.precision}"
    where = f", from step {trainer.step} on" if trainer.step else ""
    return (
        f"{config.recipe.model} ({trainer.model.num_parameters():,} parameters) on "
        f"{len(images):,} images of {images.name}: {trainer.steps:,} steps of "
        f"{config.recipe.batch_size}{where}, on {config.backend}{rounded}, into {run.path}"
    )


def finish(
    run: RunFolder, config: Config, trainer: Trainer, test_set: data.Dataset
) -> dict[str, Any]:
    """Look at the test set, once, with the chosen checkpoint; write what was found."""
    trained = Trained.load(run.path)
    metrics, probabilities = trained.evaluate(test_set)
    seconds = sum(timing["seconds"] for timing in trainer.timings)
    images = sum(t["seconds"] * t["images_per_second"] for t in trainer.timings)
    draw(run, test_set, probabilities)
    result = {
        "test_accuracy": metrics.accuracy,
        "test_loss": metrics.loss,
        "epochs": trainer.epoch,
        "parameters": trainer.model.num_parameters(),
        "seconds": seconds,
        "images_per_second": images / max(seconds, 1e-9),
        "backend": config.backend,
        "precision": config.precision,
        "seed": config.seed,
        "data": test_set.name,
        "model": config.recipe.model,
        "recipe": config.recipe_name,
    }
    files.write_json(run.result, result)
    return result


def draw(run: RunFolder, test_set: data.Dataset, probabilities: Any) -> None:
    """Draw which classes are taken for which, and the surest mistakes."""
    classes = test_set.classes
    matrix = report.confusion_matrix(test_set.labels, probabilities.argmax(axis=1), len(classes))
    report.plot_confusion(matrix, classes, run.confusion)
    images = test_set.images, test_set.labels, probabilities
    report.plot_mistakes(*images, classes, run.mistakes)
