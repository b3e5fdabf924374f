"""The model of an exemplar config, by its architecture."""

from __future__ import annotations

from collections.abc import Sequence

from icl_fast.models.exemplar_config import ExemplarConfig
from icl_fast.models.exemplar_model import ExemplarModel
from icl_fast.models.exemplar_recurrent import ExemplarRecurrent
from icl_fast.models.exemplar_transformer import ExemplarTransformer


def make_exemplar_model(
    config: ExemplarConfig, seeds: Sequence[int] = (0,), outputs: Sequence[int] | None = None
) -> ExemplarModel:
    """A model with one member for each seed.

    Raises:
        InputError: as `ExemplarModel`.
    """
    kind = ExemplarTransformer if config.architecture == "transformer" else ExemplarRecurrent
    return kind(config, seeds, outputs)
