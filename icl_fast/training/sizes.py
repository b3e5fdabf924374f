"""What a training run needs at least, compared with this machine's memory before anything of it is built."""

from __future__ import annotations

import torch

from icl_fast import ranks
from icl_fast.memory import check_fits
from icl_fast.models import ModelShape, Transformer, TransformerConfig, make_exemplar_model
from icl_fast.models.exemplar_config import ExemplarConfig
from icl_fast.models.sizes import dimensions, parameter_count
from icl_fast.runs import ExemplarRunConfig, TextRunConfig
from icl_fast.runs.exemplar_config import ExemplarTraining

_NUMBER = 4  # bytes of a float32
_COPIES = 4  # of the weights: themselves, their gradients, and two moments


def check_text_run_fits(config: TextRunConfig, shape: TransformerConfig, device: torch.device) -> None:
    """Refuse a run on text whose weights, or whose step, this machine cannot hold for the ranks that it runs.

    Raises:
        InputError: it names the keys.
    """
    training, count = config.training, ranks.count()
    keys = f"{dimensions(config.model, 'model.')}, data.vocab {config.data.vocab}, data.context {config.data.context}"
    if device.type == "cuda":
        copies: float = 0 if training.parallel == "fsdp" and count > 1 else 1  # weights are drawn on the CPU
    else:
        copies = _COPIES / count if training.parallel == "fsdp" else _COPIES
    weights = ranks.count_here() * copies * _NUMBER * parameter_count(Transformer, shape)
    check_fits(weights, keys)
    if device.type == "cpu":
        tokens = ranks.count_here() * config.data.context * (training.batch // (count * training.accumulate))
        number = 2 if training.precision == "bfloat16" else 4
        kept = config.model.layers * config.model.width if training.checkpoint_activations else _kept(config.model)
        check_fits(weights + number * tokens * kept, f"training.batch {training.batch}, {keys}")


def check_exemplar_run_fits(config: ExemplarRunConfig, features: int, device: torch.device) -> None:
    """The same of a run on exemplars, with `features` numbers an exemplar."""
    training, pairs, model, members = config.training, config.sequences.pairs, config.model, config.member_count
    shape = ExemplarConfig(**{**model.model_dump(), "encoder": "linear"}, features=features, outputs=2, pairs=pairs)
    copies = 1 if device.type == "cuda" else _COPIES
    keys = f"{dimensions(model, 'model.')}, {members} members"
    weights = copies * _NUMBER * members * parameter_count(lambda one: make_exemplar_model(one, seeds=[0]), shape)
    check_fits(weights, keys)
    sequence = 8 * (4 * pairs + 3)  # bytes of the integers that make it
    sequences = f"sequences.pairs {pairs}, {keys}"
    check_fits(weights + members * training.batch * sequence, f"training.batch {training.batch}, {sequences}")
    count = config.evaluation.sequences
    check_fits(weights + members * count * sequence, f"evaluation.sequences {count}, {sequences}")


def check_step_fits(training: ExemplarTraining, config: ExemplarConfig, members: int) -> None:
    """Refuse a batch whose step, by autograd on the CPU, this machine cannot hold.

    Raises:
        InputError: it names the keys.
    """
    tokens = members * training.batch * config.length
    keys = f"training.batch {training.batch}, {dimensions(config.trunk, 'model.')}, {members} members"
    check_fits(_NUMBER * tokens * _kept(config.trunk), keys)


def _kept(model: ModelShape) -> int:
    """Numbers kept of a token for the backward pass, at the least: what the norms and projections of a layer read."""
    return model.layers * 2 * (model.width + model.heads * model.d_head)
