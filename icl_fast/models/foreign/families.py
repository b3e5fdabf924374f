"""Families of other people's models: what each says of its shape, and what it calls its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from icl_fast.models.config import TransformerConfig, parse_transformer_config
from icl_fast.models.foreign import family_fields, family_weights
from icl_fast.models.foreign.checkpoint import FoundWeights, Layout, Names, match_weights, place
from icl_fast.models.foreign.family_fields import Fields

_NO_WEIGHTS = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias", ".inv_freq")


@dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
        shape: fields to the values of a `TransformerConfig` (see `icl_fast.models.foreign.family_fields`).
        names: of our weights: where they are in theirs (see `icl_fast.models.foreign.family_weights`).
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
        with family_fields.understood(fields.source):
            values = self.shape(fields)
        fields.check_all_read()
        return parse_transformer_config(values, fields.source)

    def weights(
        self, names: Iterable[str], config: TransformerConfig, theirs: Mapping[str, Tensor], source: str
    ) -> FoundWeights:
        """Our weights by name, out of theirs: see `Checkpoint.weights`."""
        prefix = self.prefix if any(name.startswith(self.prefix) for name in theirs) else ""
        places = self.places(names, prefix)
        twice = ("lm_head.weight",) if config.tied else ()  # some files hold it twice
        return match_weights(places, theirs, config, source, passed_over=_NO_WEIGHTS + twice)

    def places(self, names: Iterable[str], prefix: str | None = None) -> dict[str, tuple[str, Layout | None]]:
        """By the names of our weights, the name of theirs that holds it, and how it lies in it."""
        prefix = self.prefix if prefix is None else prefix
        found = {}
        for name in names:
            theirs, layout = place(self.names, name)
            found[name] = (theirs if name.startswith("unembed.") else prefix + theirs), layout
        return found


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
