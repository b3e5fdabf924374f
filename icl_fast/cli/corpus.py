"""`icl-fast corpus`."""

from __future__ import annotations

import click

from icl_fast.cli.console import echo
from icl_fast.cli.parameters import INTEGER
from icl_fast.cli.progress import waiting


@click.command()
@click.argument("name", metavar="NAME|FOLDER")
@click.option("--vocab", default=512, type=INTEGER, show_default=True, help="Size of the byte-level BPE vocabulary.")
@click.option("--context", default=256, type=INTEGER, show_default=True, help="Tokens in a window.")
def corpus(name: str, vocab: int, context: int) -> None:
    """What text a corpus holds, and how many tokens.

    NAME is stdlib, stdlib+tests, docs or books; FOLDER holds .txt, .md and .py files. For a named corpus that is not on
    this machine it says which Debian packages to install.
    """
    from icl_fast.data import DataConfig, load_text, read_corpus
    from icl_fast.errors import InputError
    from icl_fast.schema import ValidationError, validation_message

    try:
        config = DataConfig(corpus=name, vocab=vocab, context=context)
    except ValidationError as error:
        raise InputError(validation_message(error, "")) from None
    found = read_corpus(name)
    with waiting(f"tokenising {name}"):
        text = load_text(config)
    noticed = {"binary, left out": found.binary, "with bytes that are not UTF-8": found.not_utf8}
    for label, value in {
        "corpus": name,
        "text in": "\n".join(str(folder) for folder in found.folders),
        "files": "; ".join([f"{found.files:,}", *(f"{count:,} {what}" for what, count in noticed.items() if count)]),
        "bytes": f"{found.bytes:,}",
        "documents": f"{len(found.documents):,}",
        "tokens": f"{text.tokens:,} at vocab {vocab}",
        "training": f"{text.train_windows:,} windows of {context} tokens ({text.train_tokens:,} tokens)",
        "evaluation": f"{len(text.evaluation().inputs):,} examples of {text.evaluation_windows:,} held-out windows",
    }.items():
        echo(f"{label:<12}" + value.replace("\n", "\n" + 12 * " "))
