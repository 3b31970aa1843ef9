"""Tables: drawn in a terminal, plain columns where the output goes elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence

Row = Sequence[str]


def print_table(headers: Row, rows: Sequence[Row], *, words: int = 1) -> None:
    """Print rows of text under headers; the first `words` columns are words, the rest numbers."""
    if sys.stdout.isatty():
        _draw(headers, rows, words)
        return
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    for row in (headers, *rows):
        cells = [
            text.ljust(width) if i < words else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def _draw(headers: Row, rows: Sequence[Row], words: int) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, header in enumerate(headers):
        table.add_column(header, justify="left" if i < words else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # not markup: a path may have brackets
    Console().print(table)


def quantity(n: float, unit: str = "") -> str:
    """Round to four digits with a prefix.

    >>> quantity(40_551_040), quantity(1_556_776, "B"), quantity(40, "B")
    ('40.55 M', '1.557 MB', '40 B')
    """
    for size, prefix in (1e9, "G"), (1e6, "M"), (1e3, "k"):
        if n >= size:
            return f"{n / size:.4g} {prefix}{unit}"
    return f"{n:.0f} {unit}".rstrip()
