"""What is printed for people loses nothing where nobody says how wide they read."""

import os
import subprocess
import sys

from rich.console import Console

from orchestrator.cli.terminal import table

LONG = "a-name-" * 20


def test_a_word_longer_than_its_column_goes_on_in_the_next_line() -> None:
    console = Console(width=40)
    rows = table("what", "found")
    rows.add_row("image", LONG)
    with console.capture() as said:
        console.print(rows)
    found = "".join(line.split("│")[2].strip() for line in said.get().splitlines() if line.startswith("│"))
    assert found == LONG


def test_a_pipe_gets_names_uncut() -> None:
    """rich alone would break lines at 80 columns."""
    command = [sys.executable, "-c", "from orchestrator.cli.terminal import *; wide().print('x' * 150)"]
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    said = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True).stdout
    assert said == "x" * 150 + "\n"
