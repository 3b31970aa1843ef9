"""The command line: `tinygrad-cnn` or `python -m tinygrad_cnn`.

Each family of commands has its file; the commands are plain functions, registered here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from . import converting, data, diagnose, looking, runs, training

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="A small, readable and fast autograd engine for convolutional networks.",
    epilog="A start: `tinygrad-cnn train`; each command has a `--help`.",
)
TRAINING, LOOKING = "Train and use", "See what there is"
app.command(rich_help_panel=TRAINING, epilog=training.TRAIN_EXAMPLES)(training.train)
app.command(rich_help_panel=TRAINING, epilog=training.EVALUATE_EXAMPLES)(training.evaluate)
app.command(rich_help_panel=TRAINING, epilog=training.PREDICT_EXAMPLES)(training.predict)
app.command(rich_help_panel=TRAINING, epilog=converting.EXAMPLES)(converting.convert)
app.command(rich_help_panel=TRAINING)(training.recipes)
app.command(rich_help_panel=TRAINING, epilog=runs.EXAMPLES)(runs.compare)
app.command("data", rich_help_panel=LOOKING, epilog=data.EXAMPLES)(data.show_data)
app.command("models", rich_help_panel=LOOKING)(looking.list_models)
app.command(rich_help_panel=LOOKING, epilog=looking.SUMMARY_EXAMPLES)(looking.summary)
app.command("backends", rich_help_panel=LOOKING)(looking.list_backends)
app.command(rich_help_panel=LOOKING)(looking.warmup)
app.command("selftest", rich_help_panel=LOOKING)(looking.selftest)
checks = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help=diagnose.HELP)
for check in (
    diagnose.initial_loss, diagnose.overfit, diagnose.lr_range, diagnose.dead_relus,
    diagnose.update_ratios, diagnose.responses,
):  # fmt: skip
    checks.command()(check)
app.add_typer(checks, name="diagnose", rich_help_panel=LOOKING)


@app.callback()
def before_the_command(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Read the options that stand before the command."""


def main() -> None:
    """Run the command line."""
    run(app)


def run(command: Callable[..., Any]) -> None:
    """Run a typer app or function; an error is one line on stderr, with --debug a traceback.

    The exit status is 1, or what the error has as `exit_status`: 2 for a wrong setting.
    """
    if not isinstance(command, typer.Typer):
        program = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
        program.command()(command)
        command = program
    try:
        command()
    except (ValueError, TypeError, RuntimeError, OSError, MemoryError) as error:
        if "--debug" in sys.argv:
            raise
        if isinstance(error, MemoryError):  # NumPy's or CuPy's
            error.add_note("Out of memory: a smaller --batch-size needs less")
        notes = " ".join(getattr(error, "__notes__", ()))
        name = Path(sys.argv[0]).stem.replace("__main__", "tinygrad-cnn")
        print(f"{name}: {error} {notes}".rstrip(), file=sys.stderr)
        sys.exit(getattr(error, "exit_status", 1))
