"""Options of commands that also take other people's models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from icl_fast.cli.console import echo
from icl_fast.cli.parameters import INTEGER, PATH, STEP, distinct

if TYPE_CHECKING:
    from icl_fast.runs import ForeignOptions, Series

_OPTIONS = (
    click.option(
        "--text",
        "texts",
        multiple=True,
        help="Of other people's models: a text to evaluate on, a file, a folder, or a corpus such as stdlib; may be "
        "repeated; or repeated-random, random tokens said twice. Default stdlib, without a tokenizer repeated-random.",
    ),
    click.option("--context", type=INTEGER, help="Of other people's models: tokens an example; default at most 512."),
    click.option(
        "--text-seed", type=STEP, help="Of other people's models: seed of which examples are drawn; default 0."
    ),
    click.option(
        "--bos",
        help="Of other people's models: what begins an example: auto (as the family does), none or a token id; "
        "default auto.",
    ),
    click.option("--tokenizer", type=PATH, help="Of other people's models: a tokenizer.json; default their own."),
    click.option(
        "--revisions",
        help="Of other people's models: which folders, or revisions on the hub, by name or pattern, such as "
        "step0,step512 or 'step*000'; default all whose names say a step.",
    ),
    click.option(
        "--keep-downloads",
        type=click.Choice(["yes", "no"]),
        help="Of models on the hub (hf:ORG/NAME): no removes each snapshot after use; default yes.",
    ),
)


def foreign_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of other people's models, as one argument `foreign`, None where none is given."""

    @wraps(command)
    def called(
        texts: tuple[str, ...],
        context: int | None,
        text_seed: int | None,
        bos: str | None,
        tokenizer: Path | None,
        revisions: str | None,
        keep_downloads: str | None,
        **arguments: Any,
    ) -> None:
        text = {"sources": distinct("--text", texts) or None, "context": context, "seed": text_seed, "bos": bos}
        keep = None if keep_downloads is None else keep_downloads == "yes"
        other = {"tokenizer": tokenizer, "revisions": revisions, "keep_downloads": keep}
        command(foreign=_options(text, other), **arguments)

    for option in reversed(_OPTIONS):
        called = option(called)
    return called


def _options(text: Mapping[str, Any], other: Mapping[str, Any]) -> ForeignOptions | None:
    of_text, others = ({name: value for name, value in some.items() if value is not None} for some in (text, other))
    if not of_text and not others:
        return None
    from icl_fast.data import EvaluationText
    from icl_fast.runs import ForeignOptions

    return ForeignOptions(text=EvaluationText(**of_text), **others)


def say_notes(series: Series) -> None:
    """One line on stderr for each thing that should be known of a series before its numbers are read."""
    for note in series.notes():
        echo(f"{series.name}: {note}", err=True)
