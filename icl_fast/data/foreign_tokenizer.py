"""Tokenizers of other people's models: any `tokenizer.json`, and which token begins a text of the family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from icl_fast.data.input_files import read_file
from icl_fast.errors import InputError


@dataclass(frozen=True, eq=False)
class ForeignTokenizer:
    """A tokenizer, and how texts of its family begin.

    Attributes:
        tokenizer: which encodes a text that spells out a special token as the characters it has.
        bos: id of the token that begins each example; None: none does.
        separator: id of the token between two texts; None: none is known.
        said: how examples begin, and why, in a few words.
    """

    tokenizer: Tokenizer
    bos: int | None
    separator: int | None
    said: str


def read_tokenizer(path: str | Path) -> Tokenizer:
    """A `tokenizer.json` of any kind.

    Raises:
        InputError: no such file, or none that `tokenizers` reads.
    """
    text = read_file(path, "tokenizer")
    try:
        tokenizer = Tokenizer.from_buffer(text)
        tokenizer.encode("a")
    except BaseException as error:  # on some files `tokenizers` raises a panic, which is no Exception
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"tokenizer: {path} cannot be read ({reason:.200}); put back a copy") from None
    return tokenizer


def foreign_tokenizer(
    tokenizer: Tokenizer, config: Mapping[str, Any], bos: str = "auto", *, begins: int | None = None
) -> ForeignTokenizer:
    """A tokenizer, with what begins a text.

    That is what the tokenizer itself puts first; else, in families whose texts stand one behind the other with one
    token between, which is both BOS and EOS (GPT-2, Pythia), that token; else nothing.

    Args:
        config: with `bos_token_id` and `eos_token_id`, where they are known.
        bos: `auto`, `none`, or an id.
        begins: what the model's file says that texts begin with, if it does.

    Raises:
        InputError: `bos` is none of these, or an id that the tokenizer does not have.
    """
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    first, ends = (_one_id(config.get(f"{name}_token_id")) for name in ("bos", "eos"))
    plain, whole = (tokenizer.encode("a", add_special_tokens=special).ids for special in (False, True))
    put_first = whole[0] if whole[:1] != plain[:1] else begins
    if bos == "none":
        chosen, why = None, "as asked"
    elif bos != "auto":
        if not (bos.isdecimal() and len(bos) < 10 and tokenizer.id_to_token(int(bos)) is not None):
            raise InputError(f"bos: {bos!r} is neither auto, none nor the id of one of the tokenizer's tokens")
        chosen, why = int(bos), "as asked"
    elif put_first is not None:
        chosen, why = put_first, "which its tokenizer puts first"
    elif first is not None and first == ends:
        chosen, why = first, "which stands between the texts of its family"
    else:
        chosen, why = None, "which its tokenizer does not add"
    said = f"no BOS ({why})" if chosen is None else f"{tokenizer.id_to_token(chosen)} (id {chosen}), {why}"
    return ForeignTokenizer(tokenizer, chosen, ends if ends is not None else chosen, f"examples begin with {said}")


def ordinary_ids(tokenizer: Tokenizer, vocab: int) -> np.ndarray:
    """The ids, below `vocab`, of tokens that stand in texts: not the special ones, and none without a token. int64."""
    special = {id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    return np.array([id for id in range(vocab) if id not in special and tokenizer.id_to_token(id) is not None])


def _one_id(value: Any) -> int | None:
    """A token id of a config.json, which may be null or (EOS) a list whose first is meant."""
    first = value[0] if isinstance(value, list) and value else value
    return first if type(first) is int and first >= 0 else None
