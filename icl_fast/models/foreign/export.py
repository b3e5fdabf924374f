"""Models written as other programs read them, and as `load_foreign` does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from torch import Tensor

from icl_fast.arguments import shown
from icl_fast.errors import InputError
from icl_fast.files import atomic_write
from icl_fast.memory import check_fits
from icl_fast.models.config import TransformerConfig, parse_transformer_config
from icl_fast.models.foreign.checkpoint import CONFIG, join_weights, place
from icl_fast.models.foreign.equivalence import differences, widened
from icl_fast.models.foreign.families import FAMILIES
from icl_fast.models.foreign.family_fields import Fields
from icl_fast.models.foreign.family_writers import WRITERS
from icl_fast.models.foreign.lens_checkpoint import GROUPED, NAMES
from icl_fast.models.foreign.lens_fields import hooked_transformer, lens_config
from icl_fast.models.plain import why_not_plain
from icl_fast.models.transformer import Transformer
from icl_fast.models.weight_files import save_tensors

Kind = Literal["hf", "transformer-lens", "safetensors"]
WEIGHTS, TOKENIZER = "model.safetensors", "tokenizer.json"


class _Written(NamedTuple):
    config: dict[str, Any]
    weights: Mapping[str, Tensor]
    what: str


def export_model(
    model: Transformer, to: Kind, folder: str | Path, *, tokenizer: str | None = None, bos: int | None = None
) -> str:
    """Write a model into a folder, which appears whole or not at all: config.json, model.safetensors, tokenizer.json.

    Args:
        model: with weights on the CPU.
        to: `hf`: of the family of Hugging Face's transformers that has all its options, by reading the family's
            config.json back; `transformer-lens`: the state dict of a HookedTransformer, without buffers, and its
            config; `safetensors`: our own names and config.
        folder: must not exist, or be empty.
        tokenizer: the text of its tokenizer.json.
        bos: id of the token between its texts, which `hf` says in config.json.

    Returns:
        What was written, such as `GPT2LMHeadModel (Hugging Face)`.

    Raises:
        InputError: an unknown `to`; no family has the model's options, which are named; a model that is more than its
            config and weights; the folder holds something, or cannot be written.
    """
    if to not in get_args(Kind):
        raise InputError(f"to: must be one of {', '.join(get_args(Kind))}, got {shown(to)}")
    if reason := why_not_plain(model, hooks=False):
        raise InputError(f"model: {reason}, which no file can hold; undo it, or make it part of the weights")
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"out: {folder} exists and is not an empty folder; choose another")
    writers = {"hf": _hugging_face, "transformer-lens": _lens, "safetensors": _own}
    written = writers[to](model.config, _weights(model))
    ids = {"bos_token_id": bos, "eos_token_id": bos, "pad_token_id": None}
    config = written.config | ids if to == "hf" else written.config
    with atomic_write(folder) as temporary:
        temporary.mkdir()
        save_tensors(temporary / WEIGHTS, written.weights, {"format": "pt"})
        (temporary / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        if tokenizer is not None:
            (temporary / TOKENIZER).write_text(tokenizer, encoding="utf-8")
    return written.what


def _weights(model: Transformer) -> dict[str, Tensor]:
    """All of them in memory, those of blocks that are read layer by layer too."""
    weights = {name: weight.detach() for name, weight in model.state_dict().items()}
    if model.blocks.stream is not None:
        check_fits(sum(weight.nbytes for weight in weights.values()), "model: all of its weights at once")
        for layer, block in enumerate(model.blocks):
            weights |= {f"blocks.{layer}.{name}": weight.detach() for name, weight in block.named_parameters()}
    return weights


def _own(config: TransformerConfig, weights: dict[str, Tensor]) -> _Written:
    if config.tied:
        del weights["unembed.weight"]
    return _Written(config.model_dump(mode="json"), weights, "Transformer (icl_fast)")


def _hugging_face(config: TransformerConfig, weights: dict[str, Tensor]) -> _Written:
    lacking: dict[str, list[str]] = {}
    for kind, (name, write) in WRITERS.items():
        fields = {"model_type": kind, **write(config)}
        try:
            theirs = FAMILIES[kind].config(Fields(fields, kind))
        except InputError:  # of a head's width, or of what is rotated, that the family cannot have
            continue
        lacking[kind] = differences(config, theirs)
        if not lacking[kind]:
            ours = widened(weights, theirs)
            if theirs.tied:
                del ours["unembed.weight"]
            found = join_weights(FAMILIES[kind].places(ours), ours, theirs)
            dtype = str(next(iter(weights.values())).dtype).removeprefix("torch.")
            said = {"architectures": [name], **fields, "torch_dtype": dtype}
            return _Written(said, found, f"{name} (Hugging Face)")
    raise InputError(f"to: hf: {_why_none(config, lacking)}; transformer-lens or safetensors may hold it")


def _why_none(config: TransformerConfig, lacking: Mapping[str, list[str]]) -> str:
    """Which option no family has; or what the nearest lacks."""
    if not lacking:
        return f"no family has head_width {config.d_head} with width {config.width}"
    of_all = set.intersection(*map(set, lacking.values()))
    nearest, names = min(lacking.items(), key=lambda item: len(item[1]))
    chosen = [name for name in names if name in of_all] or names
    said = ", ".join(f"{name} {getattr(config, name)}" if hasattr(config, name) else name for name in chosen)
    return f"no family has {said}" if of_all else f"no family has all of its options; {nearest} lacks {said}"


def _lens(config: TransformerConfig, weights: dict[str, Tensor]) -> _Written:
    if config.embed_scale != 1.0 or config.tied:  # then it is one tensor with the unembedding no more
        weights = weights | {"embed.weight": weights["embed.weight"] * config.embed_scale}
    scaled = config.model_copy(update={"embed_scale": 1.0, "tied": False})
    said = lens_config(scaled)
    fields = Fields(said, "to: transformer-lens")
    theirs = parse_transformer_config(hooked_transformer(fields, {"unembed.b_U"}), fields.source)
    if lacking := differences(scaled, theirs):
        names = ", ".join(f"{name} {getattr(config, name, None)}" for name in lacking)
        raise InputError(f"to: transformer-lens: HookedTransformer has no {names}; safetensors may hold it")
    ours = widened(weights, theirs)
    names_of_theirs = NAMES | GROUPED if theirs.kv != theirs.heads else NAMES
    found = join_weights({name: place(names_of_theirs, name) for name in ours}, ours, theirs)
    return _Written(said, found, "HookedTransformer (TransformerLens)")
