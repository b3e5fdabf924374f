"""What other people's models are evaluated on: text in windows of their own tokens, or random tokens said twice."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tokenizers
import torch

from icl_fast.arguments import MOST_SEED, check_different, whole_number
from icl_fast.data.cache import cache_folder, cached, save_array
from icl_fast.data.corpora import NAMES, read_text
from icl_fast.data.foreign_tokenizer import ForeignTokenizer
from icl_fast.data.tokenizer import Tokens, encode_stream
from icl_fast.data.windows import EvaluationSet, evaluation_set
from icl_fast.errors import InputError
from icl_fast.memory import check_fits

RANDOM = "repeated-random"
LONGEST_BY_DEFAULT = 512  # tokens of an example, the context of the paper's ICL score
_WINDOWS, _POSITIONS, _TOKENS = range(3)  # one random stream per purpose


@dataclass(frozen=True)
class EvaluationText:
    """What to evaluate on.

    Attributes:
        sources: texts, in this order: corpora by name, folders, files (see `icl_fast.data.read_text`); or
            `repeated-random` alone: random tokens, of which the second half of an example repeats the first. Empty:
            `stdlib` where the model has a tokenizer, else `repeated-random`.
        context: T, tokens to predict in an example. None: 512, or the model's own context where that is shorter.
        examples: how many at most.
        seed: of the choice of windows, of random positions and tokens.
        bos: what begins each example: `auto`, as the family does; `none`; or a token id.
    """

    sources: tuple[str, ...] = ()
    context: int | None = None
    examples: int = 512
    seed: int = 0
    bos: str = "auto"

    def __post_init__(self) -> None:
        if self.context is not None:
            whole_number("context", self.context, 2)
        whole_number("examples", self.examples, 1)
        whole_number("seed", self.seed, 0, MOST_SEED)
        check_different("text", self.sources)
        if RANDOM in self.sources and len(self.sources) > 1:
            raise InputError(f"text: {RANDOM} is no text that goes with others; give it alone")

    def resolved(self, made_for: int, tokenizer: ForeignTokenizer | None, ckpt: Path) -> EvaluationText:
        """The same with what was left open decided for a model.

        Args:
            made_for: the longest context of the model.
            tokenizer: of the model, if it has one.
            ckpt: its place, for messages.

        Raises:
            InputError: a longer context than the model was made for; texts, and no tokenizer.
        """
        sources = self.sources or (("stdlib",) if tokenizer is not None else (RANDOM,))
        if tokenizer is None and sources != (RANDOM,):
            raise InputError(
                f"text: {ckpt} has no tokenizer.json, so its model can read no text; put it there, give --tokenizer "
                f"FILE, or evaluate on random tokens with --text {RANDOM}"
            )
        context = self.context
        if context is None:
            context = min(LONGEST_BY_DEFAULT, made_for)
        elif context > made_for:
            raise InputError(f"context: {context} is more than the {made_for} positions that the model of {ckpt} has")
        return replace(self, sources=sources, context=context)

    @property
    def name(self) -> str:
        """What it is called in figures."""
        return ", ".join(source if source in (*NAMES, RANDOM) else Path(source).name for source in self.sources)


def text_examples(text: EvaluationText, tokenizer: ForeignTokenizer, vocab: int) -> EvaluationSet:
    """Examples from texts, all of which count as held out.

    The texts stand one behind the other in a seeded order, a separator after each where the family has one, and are cut
    into disjoint windows of T targets, of which `examples` are drawn. What is read is a window shifted by one, behind
    BOS; without BOS a window has one token more.

    Args:
        text: `resolved`.
        vocab: V of the model.

    Raises:
        InputError: a text that cannot be read, too little text for one window, tokens that the model does not have.
    """
    assert text.context is not None
    stream = _stream(text, tokenizer)
    width = text.context + (tokenizer.bos is None)
    available = len(stream) // width
    if not available:
        raise InputError(
            f"text {text.name}: holds {len(stream):,} tokens, fewer than one example of {width}; give more text, or a "
            "smaller --context"
        )
    order = _random(text.seed, _WINDOWS).permutation(available)[: text.examples]
    windows = torch.from_numpy(stream[order[:, None] * width + np.arange(width)].astype(np.int64))
    if (largest := int(windows.max())) >= vocab:
        raise InputError(
            f"tokenizer: gives token {largest}, but the model has tokens 0 to {vocab - 1}; give the model's own"
        )
    return _examples(windows, tokenizer.bos, text, available)


def random_examples(text: EvaluationText, bos: int | None, ids: np.ndarray) -> EvaluationSet:
    """Examples of T random tokens, the second half of which repeats the first, behind BOS.

    Args:
        text: `resolved`.
        bos: id of the token that begins an example; None: none, and examples read one token less.
        ids: to draw from, int64; as in the scores of heads, the most and the least common tokens, the first and last
            tenth of them, are left out.

    Raises:
        InputError: too few ids.
    """
    assert text.context is not None
    width = text.context + (bos is None)
    middle = ids[len(ids) // 10 : len(ids) - len(ids) // 10]
    if len(middle) < 2:
        raise InputError(f"text {RANDOM}: {len(ids)} tokens are too few to draw random ones from")
    check_fits(16 * text.examples * width, f"examples: {text.examples:,} of {width:,} tokens")
    half = -(-width // 2)
    drawn = middle[_random(text.seed, _TOKENS).integers(0, len(middle), size=(text.examples, half))]
    windows = torch.from_numpy(np.concatenate([drawn, drawn], axis=1)[:, :width])
    return _examples(windows, bos, text, text.examples)


def _examples(windows: torch.Tensor, bos: int | None, text: EvaluationText, available: int) -> EvaluationSet:
    inputs, targets = windows[:, :-1], windows[:, 1:]
    if bos is not None:
        inputs, targets = torch.cat([torch.full((len(windows), 1), bos), inputs], dim=1), windows
    positions = _random(text.seed, _POSITIONS).integers(1, targets.shape[1] + 1, size=available)[: len(windows)]
    return evaluation_set(inputs, targets, positions)


def _stream(text: EvaluationText, tokenizer: ForeignTokenizer) -> Tokens:
    """All tokens of the texts, memory-mapped from the cache."""
    texts = [document.text for source in text.sources for document in read_text(source).documents]
    order = np.random.default_rng(text.seed).permutation(len(texts))
    ordered = [texts[index] for index in order]
    digest = hashlib.sha256(repr((tokenizers.__version__, tokenizer.separator, len(texts))).encode())
    for one in (tokenizer.tokenizer.to_str(), *ordered):
        digest.update(len(data := one.encode()).to_bytes(8, "little") + data)

    def build(folder: Path) -> None:
        save_array(folder / "tokens.npy", encode_stream(tokenizer.tokenizer, ordered, tokenizer.separator))

    entry = cached(cache_folder() / "foreign_text" / digest.hexdigest()[:32], build)
    stream: Tokens = np.load(entry / "tokens.npy", mmap_mode="r", allow_pickle=False)
    return stream


def _random(seed: int, purpose: int) -> np.random.Generator:
    return np.random.default_rng((purpose, seed))
