"""The Transformer, its sites and interventions, and its snapshots."""

from icl_fast.models.architectures import make_exemplar_model
from icl_fast.models.checkpoints import (
    Snapshot,
    load_snapshot,
    save_snapshot,
)
from icl_fast.models.clamps import ClampName, Clamps, make_clamps, no_clamps, stack_clamps
from icl_fast.models.config import ModelShape, TransformerConfig, parse_transformer_config
from icl_fast.models.exemplar_config import ExemplarConfig, ExemplarShape
from icl_fast.models.exemplar_model import ExemplarModel
from icl_fast.models.exemplar_recurrent import ExemplarRecurrent
from icl_fast.models.exemplar_transformer import ExemplarTransformer
from icl_fast.models.interventions import LAYER_SITES, PRESERVABLE, Intervention, Preservable, site
from icl_fast.models.transformer import Transformer

__all__ = [
    "LAYER_SITES",
    "PRESERVABLE",
    "ClampName",
    "Clamps",
    "ExemplarConfig",
    "ExemplarModel",
    "ExemplarRecurrent",
    "ExemplarShape",
    "ExemplarTransformer",
    "Intervention",
    "ModelShape",
    "Preservable",
    "Snapshot",
    "Transformer",
    "TransformerConfig",
    "load_snapshot",
    "make_clamps",
    "make_exemplar_model",
    "no_clamps",
    "parse_transformer_config",
    "save_snapshot",
    "site",
    "stack_clamps",
]
