"""Byte-level BPE, trained on the corpus itself: no download, and decoding gives back any text unchanged."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from icl_fast.data.input_files import read_file
from icl_fast.errors import InputError
from icl_fast.files import atomic_write
from icl_fast.memory import check_fits

BOS = "<|bos|>"
BOS_ID = 0
SMALLEST_VOCAB = 256 + 1
TOKENIZER_FILE = "tokenizer.json"
Tokens = NDArray[np.unsignedinteger[Any]]  # a stream of ids, as small as the vocabulary allows
# the time of training grows with the square of a word's length; the first is sooner searched for than the second
_LONG = re.compile(r"\S{1024}|\s{1024}")
_LONG_WORD = re.compile(r"([^\W\d_]{1024}|\d{1024}|(?:[^\w\s]|_){1024}|\s{1024})")
_BATCH_CHARACTERS = 2**22  # an Encoding takes far more memory than its ids, so a corpus is encoded in parts


def train_tokenizer(texts: Sequence[str], vocab: int) -> Tokenizer:
    """A byte-level BPE of exactly `vocab` tokens: `<|bos|>` (id 0), the 256 bytes, then merges.

    Raises:
        InputError: `vocab` is under 257, or the texts are too small to give that many merges.
    """
    if vocab < SMALLEST_VOCAB:
        raise InputError(f"data.vocab {vocab} is too small: every byte and the special token need {SMALLEST_VOCAB}")
    size = sum(len(text.encode()) for text in texts)
    if vocab > SMALLEST_VOCAB + size:  # `tokenizers` ends the process if it cannot allocate so many
        raise InputError(f"data.vocab {vocab}: the corpus is too small, it has {size:,} bytes; set a smaller one")
    check_fits(100 * vocab, f"data.vocab {vocab}")
    tokenizer = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        min_frequency=2,
        special_tokens=[BOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((part for text in texts for part in _short_words(text)), trainer)
    reached = tokenizer.get_vocab_size()
    if reached < vocab:
        raise InputError(
            f"data.vocab {vocab}: the corpus is too small, it gives {reached} tokens; "
            f"set data.vocab to at most {reached} or add text"
        )
    return _plain(tokenizer)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read a `tokenizer.json`, or the one in a run folder.

    Raises:
        InputError: the file is missing, is not a tokenizer, or not one that `train_tokenizer` made.
    """
    path = Path(path)
    file = path / TOKENIZER_FILE if os.path.isdir(path) else path
    text = read_file(file, "tokenizer")
    try:
        return _plain(_parsed(text))
    except Exception as error:  # `tokenizers` raises a bare Exception on a malformed file
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"tokenizer: {file} is none of ours ({reason}); copy it again from its run folder") from None


def save_tokenizer(tokenizer: Tokenizer, folder: str | Path) -> Path:
    """Write `tokenizer.json` into a run folder and return its path.

    Raises:
        InputError: the folder cannot be written.
    """
    file = Path(folder) / TOKENIZER_FILE
    with atomic_write(file) as temporary:
        temporary.write_text(tokenizer.to_str(), encoding="utf-8")
    return file


def encode_stream(tokenizer: Tokenizer, texts: Sequence[str], separator: int | None = BOS_ID) -> Tokens:
    """The texts as one stream of ids `[tokens]` with a separator after each, by default our BOS, or with nothing."""
    after = [] if separator is None else [separator]
    dtype = np.uint16 if max([0, *tokenizer.get_vocab().values(), *after]) < 2**16 else np.uint32
    parts: list[Tokens] = []
    for batch in _batches(texts):
        for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
            parts.append(np.array([*encoding.ids, *after], dtype))
    return np.concatenate(parts)


def _byte_level(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _parsed(text: bytes) -> Tokenizer:
    """A tokenizer of `train_tokenizer` from its JSON; whatever is raised says that it is none.

    Made anew from its tokens and merges: on some files `Tokenizer.from_str` prints a panic and raises what is no
    Exception.
    """
    values = json.loads(text)
    model = values.pop("model")
    vocab: dict[str, int] = model["vocab"]
    merges = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model.pop("merges")]
    parts = {
        BOS,
        *pre_tokenizers.ByteLevel.alphabet(),
        *(part for merge in merges for part in (*merge, "".join(merge))),
    }
    if parts != vocab.keys() or vocab[BOS] != BOS_ID or sorted(vocab.values()) != list(range(len(vocab))):
        raise ValueError(f"its tokens are not {BOS}, the bytes and what is merged from them")
    tokenizer = _byte_level(models.BPE(vocab, merges))
    tokenizer.add_special_tokens([BOS])
    ours = json.loads(tokenizer.to_str())
    if other := [key for key in values if ours.get(key) != values[key]]:
        raise ValueError(f"its {other[0]} is another")
    if other := [key for key in model if ours["model"].get(key) != model[key]]:
        raise ValueError(f"its model's {other[0]} is another")
    return tokenizer


def _plain(tokenizer: Tokenizer) -> Tokenizer:
    # a text that spells out "<|bos|>" must give its characters, not the separator (not kept in tokenizer.json)
    tokenizer.encode_special_tokens = True
    return tokenizer


def _short_words(text: str) -> list[str]:
    """The text, cut where a word, a number or a space in it is very long, such as a line of DNA."""
    return _LONG_WORD.split(text) if _LONG.search(text) else [text]


def _batches(texts: Sequence[str]) -> Iterable[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
