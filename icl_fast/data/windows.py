"""A corpus as token windows: which windows are trained on, in which order, and which are the evaluation set.

One seeded shuffle of the documents decides all: its front, up to `holdout` of the text, is held out; the rest, in that
order, is the training stream, BOS after each document. Streams are cut into disjoint windows of T tokens. A window is
the target; its input is the same shifted by one behind a BOS. So no token is ever the target of two windows.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import tokenizers
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from icl_fast.data.cache import cache_folder, cached, save_array
from icl_fast.data.config import DataConfig
from icl_fast.data.corpora import read_corpus
from icl_fast.data.tokenizer import BOS_ID, Tokens, encode_stream, load_tokenizer, save_tokenizer, train_tokenizer
from icl_fast.errors import InputError
from icl_fast.memory import check_fits

# one random stream per purpose, so that drawing more of one never shifts another
_DOCUMENTS, _TRAINING, _EVALUATION, _POSITIONS = range(4)
_FORMAT = 1  # of a cache entry: raise it when what is stored changes


@dataclass(frozen=True)
class EvaluationSet:
    """The examples every snapshot of every model of a corpus is measured on.

    Attributes:
        inputs: `[N,T]` int64, BOS then the first T - 1 tokens.
        targets: `[N,T]` int64; position i (1-based) is the i-th token.
        random_position: `[N]` int64, 1-based: the one position kept of each example.
        digest: identity of the three, to be stored with every result.
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    random_position: torch.Tensor
    digest: str


def evaluation_set(inputs: torch.Tensor, targets: torch.Tensor, positions: NDArray[np.int64]) -> EvaluationSet:
    """An evaluation set with its digest; where `inputs` follow from `targets`, which one BOS begins, of these alone."""
    shape = tuple(targets.shape)
    follows = bool((inputs[:, 0] == BOS_ID).all() and (inputs[:, 1:] == targets[:, :-1]).all())
    digest = hashlib.sha256(repr(shape).encode())
    for array in (targets.numpy(), positions, *(() if follows else (inputs.numpy(),))):
        digest.update(array.astype("<i8").tobytes())
    return EvaluationSet(inputs, targets, torch.from_numpy(positions), digest.hexdigest())


class TextData:
    """Training windows by step and the evaluation set of one corpus; see `load_text`.

    Attributes:
        config: what it was made from.
        tokenizer: byte-level BPE; `<|bos|>` is id 0.
        tokens: all tokens, training and held-out, the BOS after each document included.
        train_windows: disjoint training windows of T tokens.
        evaluation_windows: disjoint held-out windows of `evaluation_length` tokens, of which `evaluation()` takes
            `evaluation_examples` at most.
    """

    def __init__(self, config: DataConfig, tokenizer: Tokenizer, train: Tokens, held_out: Tokens) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self._train = train
        self._held_out = held_out
        self.tokens = len(train) + len(held_out)
        self.train_windows = len(train) // config.context
        self.evaluation_windows = len(held_out) // config.evaluation_length
        of_evaluation = "context" if config.evaluation_context is None else "evaluation_context"
        for kind, tokens, key, length in (
            ("training", train, "context", config.context),
            ("held-out", held_out, of_evaluation, config.evaluation_length),
        ):
            if len(tokens) < length:
                raise InputError(
                    f"data.corpus {config.corpus}: its {kind} documents hold {len(tokens):,} tokens, fewer than one "
                    f"window of data.{key} {length}; add text, or set a smaller {key} or another holdout"
                )

    @property
    def vocab(self) -> int:
        """V, the special token included."""
        return self.config.vocab

    @property
    def train_tokens(self) -> int:
        """Tokens that can be trained on once: windows times T."""
        return self.train_windows * self.config.context

    def check_budget(self, steps: int, batch_size: int) -> None:
        """Refuse a run that would see a token twice, unless the config allows it.

        Raises:
            InputError: `steps * batch_size` windows are more than there are (the message shows the sum), or a batch is
                more than memory holds.
        """
        if steps * batch_size <= self.train_windows:
            return
        context = self.config.context
        if self.config.repeat:
            if batch_size > self.train_windows:  # a smaller one is no more than the text is
                check_fits(24 * batch_size * context, f"training.batch {batch_size} x data.context {context}")
            return
        most = self.train_windows // batch_size
        advice = f"at most {most:,} steps" if most else f"a batch of at most {self.train_windows:,}"
        raise InputError(
            f"training.steps {steps} x training.batch {batch_size} x data.context {context} = "
            f"{steps * batch_size * context:,} tokens, but corpus {self.config.corpus} has {self.train_tokens:,} "
            f"training tokens at vocab {self.vocab}: use {advice}, or data.repeat=true"
        )

    def batch(self, step: int, batch_size: int, rows: slice = slice(None)) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets `[B,T]` int64 of a 0-based step: training windows `step * B` to `step * B + B - 1`, or
        `rows` of them.

        The k-th window depends on corpus, vocabulary, context and corpus seed alone. With `repeat`, every epoch goes
        through all windows in an order of its own.

        Raises:
            InputError: the windows are used up and `repeat` is off.
        """
        if step < 0 or batch_size < 1:
            raise InputError(f"step {step}, batch {batch_size}: a step is 0 or more, a batch 1 or more")
        self.check_budget(step + 1, batch_size)
        epochs, places = np.divmod(np.arange(step * batch_size, (step + 1) * batch_size), self.train_windows)
        windows = np.empty(batch_size, np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            windows[here] = _order(self.config.seed, _TRAINING, int(epoch), self.train_windows)[places[here]]
        return self._cut(self._train, windows[rows], self.config.context)

    def evaluation(self) -> EvaluationSet:
        """The fixed evaluation set; with fewer `evaluation_examples` it is the front of the same set."""
        seed, available = self.config.seed, self.evaluation_windows
        count = min(self.config.evaluation_examples, available)
        length = self.config.evaluation_length
        inputs, targets = self._cut(self._held_out, _order(seed, _EVALUATION, 0, available)[:count], length)
        positions = _random(seed, _POSITIONS).integers(1, length + 1, size=available)[:count]
        return evaluation_set(inputs, targets, positions)

    def _cut(self, stream: Tokens, windows: NDArray[np.int64], length: int) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = stream[windows[:, None] * length + np.arange(length)].astype(np.int64)
        targets = torch.from_numpy(tokens)
        inputs = torch.cat([torch.full((len(windows), 1), BOS_ID), targets[:, :-1]], dim=1)
        return inputs, targets


def load_text(config: DataConfig) -> TextData:
    """Read a corpus and tokenise it, or take its tokens from the cache (`icl_fast.data.cache`).

    The token ids are memory-mapped.

    Raises:
        InputError: the corpus is missing or unreadable, or too small for the vocabulary or the context; a full disk.
    """
    documents = read_corpus(config.corpus).documents
    train, held_out = _split([document.text for document in documents], config)

    def build(folder: Path) -> None:
        tokenizer = train_tokenizer(train, config.vocab)
        save_array(folder / "train.npy", encode_stream(tokenizer, train))
        save_array(folder / "held_out.npy", encode_stream(tokenizer, held_out))
        save_tokenizer(tokenizer, folder)

    entry = cached(cache_folder() / "text" / _key(train, held_out, config.vocab), build)
    streams = [np.load(entry / name, mmap_mode="r", allow_pickle=False) for name in ("train.npy", "held_out.npy")]
    return TextData(config, load_tokenizer(entry), *streams)


def _split(texts: list[str], config: DataConfig) -> tuple[list[str], list[str]]:
    """Training and held-out texts, both in the seeded order."""
    if len(texts) < 2:
        raise InputError(f"data.corpus {config.corpus}: has one document, and training and evaluation need one each")
    sizes = np.array([len(text.encode()) for text in texts])
    order = _order(config.seed, _DOCUMENTS, 0, len(texts))
    reached = np.cumsum(sizes[order]) >= config.holdout * sizes.sum()
    count = min(int(reached.argmax()) + 1, len(texts) - 1)
    return [texts[i] for i in order[count:]], [texts[i] for i in order[:count]]


def _key(train: list[str], held_out: list[str], vocab: int) -> str:
    """Everything that the files of a cache entry depend on, and nothing else."""
    digest = hashlib.sha256(repr((_FORMAT, tokenizers.__version__, vocab, len(train), len(held_out))).encode())
    for text in (*train, *held_out):
        data = text.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:32]


@lru_cache(maxsize=8)
def _order(seed: int, purpose: int, epoch: int, count: int) -> NDArray[np.int64]:
    order: NDArray[np.int64] = _random(seed, purpose, epoch).permutation(count).astype(np.int64)
    order.flags.writeable = False
    return order


def _random(seed: int, purpose: int, epoch: int = 0) -> np.random.Generator:
    return np.random.default_rng((purpose, epoch, seed))
