"""`icl-fast corpus`."""

from __future__ import annotations

import click

from icl_fast.cli.commands import Command
from icl_fast.cli.console import print_facts
from icl_fast.cli.parameters import INTEGER
from icl_fast.cli.progress import waiting


@click.command(cls=Command)
@click.argument("name", metavar="NAME|FOLDER|MIX")
@click.option("--vocab", default=512, type=INTEGER, show_default=True, help="Size of the byte-level BPE vocabulary.")
@click.option("--context", default=256, type=INTEGER, show_default=True, help="Tokens in a window.")
def corpus(name: str, vocab: int, context: int) -> None:
    """What text a corpus holds, and how many tokens.

    NAME is stdlib, stdlib+tests, docstrings, docs or books, or a mix of these and of folders,
    NAME:WEIGHT,NAME:WEIGHT,...; FOLDER holds .txt, .md and .py files. Of docs and books it says which Debian packages
    are missing.
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
    facts = {
        "corpus": name,
        "text in": "\n".join(str(folder) for folder in found.folders),
        "files": "; ".join([f"{found.files:,}", *(f"{count:,} {what}" for what, count in noticed.items() if count)]),
        "bytes": f"{found.bytes:,}",
        "mix": "\n".join(f"{part}: {size / found.bytes:.3f}, {size:,} bytes" for part, size in found.shares),
        "missing": f"apt-get install --no-install-recommends {' '.join(found.missing)}" * bool(found.missing),
        "documents": f"{len(found.documents):,}",
        "tokens": f"{text.tokens:,} at vocab {vocab}",
        "training": f"{text.train_windows:,} windows of {context} tokens ({text.train_tokens:,} tokens)",
        "evaluation": f"{len(text.evaluation().inputs):,} examples of {text.evaluation_windows:,} held-out windows",
    }
    print_facts({label: value for label, value in facts.items() if value})
