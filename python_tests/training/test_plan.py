"""What a plan says is what is there: operations as torch counts them, bytes as autograd and files hold them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from icl_fast import InputError
from icl_fast.measure.ablation.options import AblationOptions
from icl_fast.measure.ablation.plan import make_plan
from icl_fast.models import Transformer, blocks
from icl_fast.runs import TextRunConfig, open_series, parse_config
from icl_fast.training import train
from icl_fast.training.plan import GPUS, _shape, plan_training, rank_memory

MODELS: list[dict[str, Any]] = [
    {"layers": 1},
    {"layers": 3, "mlp": True},
    {"mlp": True, "gated": True, "activation": "silu", "kv_heads": 2, "position": "rotary"},
    {"tied": True, "head_width": 16, "position": "none", "mlp": True, "mlp_width": 40},
    {"windows": [[3, 3, None, 100], [7, None, None, 5]], "mlp": True},
]


def config(model: dict[str, Any], **training: Any) -> TextRunConfig:
    parsed = parse_config(
        {
            "model": {"width": 32, "heads": 4, **model},
            "data": {"vocab": 300, "context": 24},
            "training": {"steps": 10, "batch": 4, **training},
        }
    )
    assert isinstance(parsed, TextRunConfig)
    return parsed


@pytest.mark.parametrize("model", MODELS)
def test_operations_are_those_that_torch_counts(model: dict[str, Any]) -> None:
    """Capped scores are written out, and so counted: whole squares, of which the plan counts what is seen."""
    capped = config({**model, "score_cap": 50.0})
    shape, plan = _shape(capped), plan_training(capped)
    tokens = torch.randint(0, 300, (4, 24))
    with FlopCounterMode(display=False) as counter:
        logits = Transformer(shape)(tokens)
        F.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()  # type: ignore[no-untyped-call]
    windows = shape.windows or [[None] * 4] * shape.layers
    seen = sum(min(t, w or t) for row in windows for w in row for t in range(1, 25))
    squares = plan.attention_flops * 24 * 24 * 4 * shape.layers / seen
    assert 10 * counter.get_total_flops() == pytest.approx(6 * plan.multiplied * plan.tokens + squares, rel=1e-9)
    assert plan.flops == 6 * plan.multiplied * plan.tokens + plan.attention_flops


def test_matrices_are_counted_as_scaling_laws_count_them() -> None:
    """Kaplan et al. 2020, Table 1: N = 2 d_model n_layer (2 d_attn + d_ff)."""
    plan = plan_training(config({"layers": 3, "mlp": True}))
    assert plan.matrices == 2 * 32 * 3 * (2 * 32 + 128)
    assert plan.multiplied - plan.matrices == 300 * 32


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("model", [*MODELS[:2], MODELS[4], {"key": "smeared", "layers": 1}])
def test_activations_are_those_that_autograd_keeps(
    monkeypatch: pytest.MonkeyPatch, model: dict[str, Any], precision: str
) -> None:
    monkeypatch.setattr(blocks, "_BFLOAT16_UNIT", False)  # as on the GPUs that the plan is of
    planned = config(model, precision=precision)
    shape = _shape(planned)
    transformer = Transformer(shape)
    kept, parameters = {}, {weights.untyped_storage().data_ptr() for weights in transformer.parameters()}

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage().data_ptr()] = x
        return x

    tokens = torch.randint(0, 300, (4, 24))
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"),
    ):
        transformer.token_losses(transformer.hidden(tokens)[0], tokens.clone()).mean()
    held = sum(x.untyped_storage().nbytes() for place, x in kept.items() if place not in parameters)
    needed = rank_memory(planned, 1, "ddp", checkpointed=False).activations
    assert needed == held - 8 * 24 * bool(transformer.position)  # ids of positions


def test_memory_of_ranks() -> None:
    planned = config({"layers": 6, "mlp": True})
    parameters = plan_training(planned).parameters
    whole, half = (rank_memory(planned, gpus, "ddp", checkpointed=False) for gpus in (1, 2))
    assert (whole.weights, whole.gradients, whole.moments) == (4 * parameters, 4 * parameters, 8 * parameters)
    assert (half.weights, half.gradients, half.moments) == (whole.weights, 2 * whole.gradients, whole.moments)
    assert half.activations == whole.activations / 2
    assert whole.all == whole.weights + whole.gradients + whole.moments + whole.activations
    accumulated = rank_memory(config({"layers": 6, "mlp": True}, accumulate=2), 2, "ddp", checkpointed=False)
    assert accumulated.activations == whole.activations / 4
    assert rank_memory(planned, 1, "fsdp", checkpointed=False) == whole
    with pytest.raises(InputError, match=r"^gpus: 3 x training.accumulate 1 = 3 parts, and training.batch 4 is no mul"):
        rank_memory(planned, 3, "ddp", checkpointed=False)


@pytest.mark.parametrize("size", [2, 4])
def test_shares_of_ranks(size: int) -> None:
    """What is gathered travels in the precision, but for what is no layer."""
    planned = config({"layers": 6, "mlp": True}, precision="bfloat16" if size == 2 else "float32")
    blocks = Transformer(_shape(planned)).blocks
    layer, parameters = sum(weights.numel() for weights in blocks[0].parameters()), plan_training(planned).parameters
    sharded, rest = rank_memory(planned, 4, "fsdp", checkpointed=False), 4 * (parameters - 6 * layer)
    assert sharded.weights == parameters + rest + 2 * size * layer
    assert sharded.gradients == parameters + rest + size * layer
    assert sharded.moments == 2 * parameters


def test_checkpointed_activations() -> None:
    """Another layer keeps what it reads, the stream of 4 x 24 tokens; of one layer all is there, as it is computed."""
    few, more, all_of_few = (
        rank_memory(config({"layers": layers, "mlp": True}), 1, "ddp", checkpointed=checkpointed).activations
        for layers, checkpointed in ((6, True), (7, True), (6, False))
    )
    assert more - few == 4 * 24 * 32 * 4
    assert few < all_of_few / 2


def test_disk_and_sweep_are_those_of_a_run(tiny_values: dict[str, Any], tmp_path: Path) -> None:
    planned = parse_config(tiny_values)
    assert isinstance(planned, TextRunConfig)
    plan, run = plan_training(planned), train(planned, tmp_path / "run")
    assert plan.snapshots == len(run.snapshot_steps())
    for step in run.snapshot_steps():
        assert 0 < run.snapshot_path(step).stat().st_size - plan.snapshot_bytes < 10_000
    assert 0 < run.state_path.stat().st_size - plan.state_bytes < 60_000
    evaluation = open_series(run.path).evaluation_set(None)
    memory = int(GPUS["h100"].memory - plan.snapshot_bytes)
    sweep = make_plan(_shape(planned), evaluation, AblationOptions(memory=memory), device="cuda")
    flops = sweep.schedule(_shape(planned), evaluation.inputs.shape[1]).flops * plan.snapshots
    # the corpus holds fewer examples than the config allows; the smallest part of the work does not grow with them
    scale = plan.examples / len(evaluation.inputs)
    assert plan.sweep_flops == pytest.approx(flops * scale, rel=0.05)
    assert plan.ablations == len(sweep.ablations)
