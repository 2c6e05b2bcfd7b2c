"""What a study's command line may say, and the configuration it means; what is wrong with it is one line."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from jaxkit import check

Preset = Literal["tour", "quick", "standard", "paper"]
PRESETS: tuple[str, ...] = ("tour", "quick", "standard", "paper")


@dataclasses.dataclass(frozen=True)
class Options:
    """What every study can be asked; a study's Config adds its own fields."""

    preset: Preset = "quick"
    """A whole set of defaults: tour (seconds), quick (minutes), standard (the claim), paper (needs a GPU)."""
    methods: tuple[str, ...] = ()
    """The methods to run, by name."""
    seeds: int = 8
    """How many seeds each method is run with."""
    out: Path | None = None
    """The run folder; by default runs/<study>/<time>. A folder of an earlier run of this study is added to."""
    resume: bool = False
    """Go on with the newest unfinished run of this configuration, or with the one named by --out."""
    debug: bool = False
    """Show the traceback of every error."""
    profile: bool = False
    """Write a trace of 20 training steps of each cell to <run folder>/profile."""


def choices(kind: str, given: Iterable[str], known: Iterable[str]) -> tuple[str, ...]:
    """The known names meant by ``given`` (any case, - or _, commas too), once each; UsageError offers the nearest."""
    known = tuple(known)
    words = [word for text in given for word in text.split(",") if word.strip()]
    if not words:
        raise check.UsageError(f"no {kind} given; known: {', '.join(known)}")
    return tuple(dict.fromkeys(check.choose(kind, word, known) for word in words))


def configure(study: Any, argv: Sequence[str]) -> Any:
    """The configuration that a command line means: --preset chooses the defaults, explicit options win over it."""
    name = check.choose(
        "preset", _preset(argv, next(iter(study.presets)) if "quick" not in study.presets else "quick"), PRESETS
    )
    if name not in study.presets:
        raise check.UsageError(f"{study.name} has no preset {name!r}; it has {', '.join(study.presets)}")
    default = dataclasses.replace(study.presets[name], preset=name)
    prog, text = f"python -m experiments.{study.name}", f"{study.title}. {study.one_line}"
    config = parsed(study.Config, _with_preset(argv, name), prog, default=default, description=text)
    check.count("--seeds", config.seeds)
    return config


def parsed(Config: type, argv: Sequence[str], prog: str, **more: Any) -> Any:
    """The Config that a command line means; what is wrong with it is one line, as everywhere else."""
    import tyro

    known = [f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(Config)]
    known += [f"--no-{field.name.replace('_', '-')}" for field in dataclasses.fields(Config) if field.type == "bool"]
    for word in argv:
        if word.startswith("--") and word != "--help":
            check.choose("option", word.split("=", 1)[0], known)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(Config, args=list(argv), prog=prog, **more)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        why = _unboxed(said.getvalue())
        raise check.UsageError(f"{why or 'the command line cannot be read'}; see {prog} --help") from None


def _unboxed(text: str) -> str:
    """What stands in tyro's box (drawn in Unicode or ASCII, maybe coloured) between its title and its help."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip("│╭╮╰╯| ") for line in text.splitlines()]
    kept: list[str] = []
    for line in lines[1:]:
        if line.strip("─-"):
            kept.append(line)
        elif kept:
            break
    return " ".join(kept).strip(" .")


def _preset(argv: Sequence[str], default: str) -> str:
    for place, word in enumerate(argv):
        if word == "--preset" and place + 1 < len(argv):
            return argv[place + 1]
        if word.startswith("--preset="):
            return word.split("=", 1)[1]
    return default


def _with_preset(argv: Sequence[str], name: str) -> list[str]:
    """The command line with the preset's exact spelling, since --preset Quick is accepted."""
    words = list(argv)
    for place, word in enumerate(words):
        if word == "--preset" and place + 1 < len(words):
            words[place + 1] = name
        elif word.startswith("--preset="):
            words[place] = f"--preset={name}"
    return words
