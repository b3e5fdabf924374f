"""Byte-level BPE, trained on the corpus itself: no download, and decoding gives back any text unchanged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from icl_fast.errors import InputError
from icl_fast.files import atomic_write

BOS = "<|bos|>"
BOS_ID = 0
SMALLEST_VOCAB = 256 + 1
TOKENIZER_FILE = "tokenizer.json"
Tokens = NDArray[np.unsignedinteger[Any]]  # a stream of ids, as small as the vocabulary allows
_BATCH_CHARACTERS = 2**22  # an Encoding takes far more memory than its ids, so a corpus is encoded in parts


def train_tokenizer(texts: Iterable[str], vocab: int) -> Tokenizer:
    """A byte-level BPE of exactly `vocab` tokens: `<|bos|>` (id 0), the 256 bytes, then merges.

    Raises:
        InputError: `vocab` is under 257, or the texts are too small to give that many merges.
    """
    if vocab < SMALLEST_VOCAB:
        raise InputError(f"data.vocab {vocab} is too small: every byte and the special token need {SMALLEST_VOCAB}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        min_frequency=2,
        special_tokens=[BOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
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
        InputError: the file is missing or is not a tokenizer.
    """
    path = Path(path)
    file = path / TOKENIZER_FILE if path.is_dir() else path
    try:
        tokenizer = Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); give a run folder or a tokenizer.json") from error
    except Exception as error:  # `tokenizers` raises a bare Exception on a malformed file
        raise InputError(f"{file}: is not a tokenizer ({error}); copy it again from its run folder") from error
    return _plain(tokenizer)


def save_tokenizer(tokenizer: Tokenizer, folder: str | Path) -> Path:
    """Write `tokenizer.json` into a run folder and return its path.

    Raises:
        InputError: the folder cannot be written.
    """
    file = Path(folder) / TOKENIZER_FILE
    with atomic_write(file) as temporary:
        temporary.write_text(tokenizer.to_str(), encoding="utf-8")
    return file


def encode_stream(tokenizer: Tokenizer, texts: Sequence[str]) -> Tokens:
    """The texts as one stream of ids `[tokens]` with BOS after each and nowhere else, so that it marks their ends."""
    dtype = np.uint16 if tokenizer.get_vocab_size() <= 2**16 else np.uint32
    parts: list[Tokens] = []
    for batch in _batches(texts):
        for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
            parts.append(np.array([*encoding.ids, BOS_ID], dtype))
    return np.concatenate(parts)


def _plain(tokenizer: Tokenizer) -> Tokenizer:
    # a text that spells out "<|bos|>" must give its characters, not the separator (not kept in tokenizer.json)
    tokenizer.encode_special_tokens = True
    return tokenizer


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
