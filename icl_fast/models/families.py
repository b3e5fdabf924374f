"""Families of other people's models: what each says of its shape, and what it calls its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from icl_fast.errors import InputError
from icl_fast.models import family_fields, family_weights
from icl_fast.models.config import TransformerConfig, parse_transformer_config
from icl_fast.models.family_fields import Fields
from icl_fast.models.family_weights import Layout, Names

_NO_WEIGHTS = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias", ".inv_freq")


@dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
        shape: fields to the values of a `TransformerConfig` (see `icl_fast.models.family_fields`).
        names: of our weights: where they are in theirs (see `icl_fast.models.family_weights`).
        prefix: of all their names but the unembedding's; a file may be without it.
    """

    shape: Callable[[Fields], dict[str, Any]]
    names: Names
    prefix: str

    def config(self, fields: Fields) -> TransformerConfig:
        """The config of one of its models.

        Raises:
            InputError: a field that is missing or not understood.
        """
        values = self.shape(fields)
        fields.check_all_read()
        return parse_transformer_config(values, fields.source)

    def weights(
        self, names: Iterable[str], config: TransformerConfig, theirs: Mapping[str, Tensor], source: str
    ) -> dict[str, Tensor]:
        """Our weights by name, each of theirs used.

        Args:
            names: of the weights of a Transformer of this config.
            theirs: their weights by name; read when asked for, so that it may be a file.

        Raises:
            InputError: weights that are missing, or that are there and not used.
        """
        prefix = self.prefix if any(name.startswith(self.prefix) for name in theirs) else ""
        used: set[str] = set()
        found: dict[str, Tensor] = {}
        for name in names:
            if name == "unembed.weight" and config.tied:
                continue
            theirs_name, layout = self._theirs(name, prefix)
            if theirs_name not in theirs:
                raise InputError(f"{source}: weight {theirs_name!r} is missing")
            used.add(theirs_name)
            weight = theirs[theirs_name]
            found[name] = weight if layout is None else layout(weight, config).contiguous()
        if config.tied:
            found["unembed.weight"] = found["embed.weight"]
            used.add("lm_head.weight")  # some files hold it twice
        for name in theirs:
            if name not in used and not name.endswith(_NO_WEIGHTS):
                raise InputError(f"{source}: weight {name!r} is not used; the model has a part that is not understood")
        return found

    def _theirs(self, name: str, prefix: str) -> tuple[str, Layout | None]:
        part, _, kind = name.rpartition(".")
        layer = ""
        if part.startswith("blocks."):
            layer, _, part = part.removeprefix("blocks.").partition(".")
        entry = self.names[part]
        theirs, layout = (entry, None) if isinstance(entry, str) else entry
        theirs = f"{theirs.format(layer)}.{kind}"
        return theirs if part == "unembed" else prefix + theirs, layout


FAMILIES: dict[str, Family] = {
    "gpt2": Family(family_fields.gpt2, family_weights.GPT2, "transformer."),
    "gpt_neo": Family(family_fields.gpt_neo, family_weights.GPT_NEO, "transformer."),
    "gptj": Family(family_fields.gptj, family_weights.GPTJ, "transformer."),
    "gpt_neox": Family(family_fields.gpt_neox, family_weights.GPT_NEOX, "gpt_neox."),
    "llama": Family(family_fields.llama, family_weights.DECODER, "model."),
    "mistral": Family(family_fields.mistral, family_weights.DECODER, "model."),
    "qwen2": Family(family_fields.qwen2, family_weights.DECODER, "model."),
    "qwen3": Family(family_fields.qwen3, family_weights.DECODER, "model."),
    "gemma": Family(family_fields.gemma, family_weights.GEMMA, "model."),
    "gemma2": Family(family_fields.gemma2, family_weights.GEMMA_BOTH, "model."),
    "gemma3_text": Family(family_fields.gemma3, family_weights.GEMMA_BOTH, "model."),
    "olmo": Family(family_fields.olmo, family_weights.DECODER, "model."),
    "olmo2": Family(family_fields.olmo2, family_weights.DECODER | family_weights.AFTER, "model."),
    "phi": Family(family_fields.phi, family_weights.PHI, "model."),
    "phi3": Family(family_fields.phi3, family_weights.PHI3, "model."),
}  # by the `model_type` of a config.json
