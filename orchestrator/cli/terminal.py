"""Text of strangers, a box's above all, as a terminal may show it; and tables that lose none of it."""

import sys

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

PIPED_COLUMNS = 200
"""Where nothing says how wide the reader is: a log, a pipe, a CI. Tables are only as wide as their contents need."""


def wide() -> Console:
    """For standard output. rich would take 80 columns for a pipe, and cut names there."""
    return Console() if sys.stdout.isatty() else Console(width=PIPED_COLUMNS)


def table(*headers: str, title: str | None = None) -> Table:
    """Words that are longer than their column go on in the next line: none is cut."""
    return Table(*(Column(header, overflow="fold") for header in headers), title=title)


def plain(text: str) -> str:
    """No escape sequence, control character, or mark that turns text around survives: each becomes U+FFFD, but newline and tab.

    What is left is printable by Unicode's word, so that a sequence's harmless rest shows as the letters that it is made of (C29).
    """
    return "".join(c if c in "\n\t" or c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def printable(text: str) -> str:
    """The same for rich, whose markup it shall not be either."""
    return escape(plain(text))
