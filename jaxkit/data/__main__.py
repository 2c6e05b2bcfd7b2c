"""``python -m jaxkit.data``: the data sets, where they are found, and how to get them."""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn

from jaxkit import check, fetch
from jaxkit.data.cards import CARDS
from jaxkit.data.loading import get, missing
from jaxkit.data.records import Card


def where(card: Card) -> str:
    """Where the data is on this machine, or the command that gets it."""
    if not card.files and card.wheel is None:
        return f"inside {card.source.split(',')[0]}"
    absent = [split for split in ("train", "test") if missing(card, split)]
    if not absent:
        return "data folder"
    part = "" if len(absent) == 2 else f"{'test' if absent == ['train'] else 'train'} is in the data folder; "
    if card.wheel is None and not all(file.urls for file in card.files):
        return part + "not to be downloaded"
    return part + f"get {card.name}" + (f" (wheel {card.wheel.package})" if card.wheel else "")


def show() -> None:
    """Print the cards as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"data folder: {fetch.data_folder()}", title_justify="left")
    table.add_column("name", no_wrap=True)
    for heading in ("what", "rows", "classes", "licence", "where"):
        table.add_column(heading)
    for card in CARDS.values():
        rows = " + ".join(str(number) for number in card.rows.values())
        table.add_row(card.name, card.title, rows, str(len(card.classes)), card.licence, where(card))
    console = Console(soft_wrap=False, highlight=False)
    if not console.is_terminal:  # a file or a pipe has no width that the table must be squeezed into
        console.width = max(console.width, 160)
    console.print(table)
    for card in CARDS.values():
        if card.note:
            console.print(f"{card.name}: {card.note}")
    console.print("rows: training + test. `python -m jaxkit.data get NAME` fetches; `jaxkit.data.load(NAME)` loads.")


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with the command line as everything else here does, in one line."""

    def error(self, message: str) -> NoReturn:
        raise check.UsageError(f"{message}; see {self.prog} --help")


def main(arguments: list[str] | None = None) -> int:
    """List the data sets, or ``get NAME``; the exit code: 0, or 2 after one line that says what was wrong."""
    parser = _Parser(prog="python -m jaxkit.data", description=__doc__)
    parser.add_argument("command", nargs="?", default="list", help="list (default) or get")
    parser.add_argument("names", nargs="*", metavar="NAME", help="with get: the data sets to fetch")
    try:
        given = parser.parse_args(arguments)
        command = check.choose("command", given.command, ("list", "get"))
        if command == "get" and not given.names:
            raise check.UsageError(f"get needs the name of a data set, one of {', '.join(CARDS)}")
        if command == "list" and given.names:
            raise check.UsageError(f"list takes no names, got {given.names[0]!r}; did you mean 'get {given.names[0]}'?")
        if command == "list":
            show()
        for name in given.names:
            paths = [str(path) for path in get(name)]
            print("\n".join(paths) if paths else f"{name} is inside a dependency; nothing to fetch")
    except check.UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
