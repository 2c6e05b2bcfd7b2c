"""``python -m experiments``: the studies, one line each. ``python -m experiments NAME ...`` runs one."""

from __future__ import annotations

import runpy
import sys

from experiments import catalogue
from jaxkit import check

USAGE = """
python -m experiments.NAME [--preset tour|quick|standard|paper] [--help]   run one study
python -m experiments.tour                                                every study, briefly, on one page"""


def main() -> int:
    """Print the list, or hand over to the study that is named."""
    words = sys.argv[1:]
    if words and not words[0].startswith("-"):
        name = "tour" if check.fold(words[0]) == "tour" else None
        try:
            name = name or catalogue.find(words[0]).name
        except check.UsageError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        sys.argv = [f"experiments.{name}", *words[1:]]
        runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=True)
        return 0
    known = catalogue.studies()
    width = max((len(name) for name in known), default=0)
    print("Studies:")
    for entry in known.values():
        print(f"  {entry.name:<{width}}  {entry.one_line}")
    print(USAGE)
    if words and words[0] not in ("-h", "--help"):
        print(f"unknown option {words[0]!r} before a study's name", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
