"""The tokenizer in a GGUF file, where it is a byte-level BPE that splits text in a way that is known here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from icl_fast.errors import InputError
from icl_fast.models.foreign.gguf_format import GGUFFile, gguf_file

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{%s}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class _Splits(NamedTuple):
    """How text is split before merges: as GPT-2 does where `pattern` is None; its digits first where `digits`."""

    pattern: str | None = None
    digits: bool = False
    nfc: bool = False
    whole_words: bool = False  # a word that is a token is never merged to
    begins: bool = False  # with BOS, where the file does not say


_SPLITS = {
    "gpt-2": _Splits(),
    "phi-2": _Splits(),
    "olmo": _Splits(nfc=True),
    "smollm": _Splits(digits=True),
    "llama-bpe": _Splits(_GPT4 % "1,3", whole_words=True, begins=True),
    "dbrx": _Splits(_GPT4 % "1,3"),
    "qwen2": _Splits(_GPT4 % "1", nfc=True),
}  # by `tokenizer.ggml.pre`
_CONTROL, _USER_DEFINED = 3, 4  # of `tokenizer.ggml.token_type`


def gguf_tokenizer(path: str | Path) -> Tokenizer | None:
    """The tokenizer of a GGUF file, or of the only one in a folder; None: `why_no_tokenizer` says why.

    Control tokens are special tokens of it, tokens that users defined are added ones. It adds no BOS: `gguf_bos`.

    Raises:
        InputError: no GGUF file, or one whose tokens and merges do not fit together.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    said = _metadata(path)
    if _why_not(said) is not None:
        return None
    tokens, merges, kinds = (said.get(f"tokenizer.ggml.{part}", []) for part in ("tokens", "merges", "token_type"))
    splits = _SPLITS[said["tokenizer.ggml.pre"]]
    try:
        vocab = {token: index for index, token in enumerate(tokens)}
        pairs = [tuple(merge.split(" ")) for merge in merges]
        tokenizer = Tokenizer(models.BPE(vocab, pairs, ignore_merges=splits.whole_words))
        for kind, token in zip(kinds, tokens, strict=False):
            if kind in (_CONTROL, _USER_DEFINED):
                added = AddedToken(token, normalized=False, special=kind == _CONTROL)
                tokenizer.add_special_tokens([added]) if added.special else tokenizer.add_tokens([added])
        if tokenizer.get_vocab_size() != len(tokens):
            raise ValueError("a token is there twice")
    except Exception as error:  # `tokenizers` raises a bare one
        raise InputError(f"model {path}: its tokenizer cannot be read ({error})") from None
    first: list[Any] = [] if splits.pattern is None else [pre_tokenizers.Split(Regex(splits.pattern), "isolated")]
    first += [pre_tokenizers.Digits(individual_digits=True)] if splits.digits else []
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=splits.pattern is None)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*first, last])
    tokenizer.decoder = decoders.ByteLevel()
    if splits.nfc:
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def why_no_tokenizer(path: str | Path) -> str | None:
    """Why `gguf_tokenizer` has none for a GGUF file, in a few words; None: it has one."""
    return _why_not(_metadata(path))


def gguf_bos(path: str | Path) -> int | None:
    """The id of the token with which a text begins, as a GGUF file says or llama.cpp knows; None: with none."""
    said = _metadata(path)
    of_pieces = said.get("tokenizer.ggml.model") == "llama"
    splits = _SPLITS.get(said.get("tokenizer.ggml.pre", ""), _Splits())
    bos = said.get("tokenizer.ggml.bos_token_id")
    return bos if said.get("tokenizer.ggml.add_bos_token", of_pieces or splits.begins) else None


def _why_not(said: dict[str, Any]) -> str | None:
    model, pre = said.get("tokenizer.ggml.model"), said.get("tokenizer.ggml.pre")
    if model is None:
        return "it holds none"
    if model != "gpt2":
        return f"it is of the kind {model!r}, of which only llama.cpp knows all"
    return None if pre in _SPLITS else f"how it splits text, {pre!r}, is not known"


def _metadata(path: str | Path) -> dict[str, Any]:
    found = gguf_file(path)
    if found is None:
        raise InputError(f"model: {path} is no GGUF file, and no folder with one and nothing else to load")
    return GGUFFile(found).metadata
