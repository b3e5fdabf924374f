"""What the engine is said to cost: the products that torch counts while it runs, but for those inside the fused ops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from icl_fast.measure.ablation.costs import Costs
from icl_fast.measure.ablation.engine import ablation_effects
from icl_fast.measure.ablation.modes import AblationMode
from icl_fast.measure.ablation.names import parse_ablations
from icl_fast.measure.ablation.schedule import make_schedule
from icl_fast.models import Transformer, parse_transformer_config

SHAPES: dict[str, dict[str, Any]] = {
    "grouped, gated": {"kv_heads": 2, "mlp": True, "gated": True, "mlp_width": 40, "norm": "rms", "position": "rotary"},
    "one group": {"kv_heads": 1, "mlp": True, "head_width": 8},
    "attention only": {"layers": 5},
}


def added(_: Any, x: list[int], weight: list[int], **__: Any) -> int:
    """x [N,C] times weight [C,M]."""
    return 2 * x[0] * x[1] * weight[1]


@pytest.mark.parametrize("rows", [32, 3])
@pytest.mark.parametrize("mode", ["pattern-preserving", "direct", "full"])
@pytest.mark.parametrize("shape", SHAPES)
def test_operations_are_those_that_are_done(shape: str, mode: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"vocab": 30, "context": 32, "layers": 4, "width": 24, "heads": 6}
    config = parse_transformer_config(sizes | SHAPES[shape])
    model = Transformer(config).double().requires_grad_(False)  # float64: the products are torch's
    ablations, parsed = parse_ablations("all", config), AblationMode.parse(mode)
    monkeypatch.setattr(Costs, "_attention_flops", lambda *_: 0.0)
    schedule = make_schedule(
        config, examples=2, context=32, rows=rows, ablations=ablations, mode=parsed, memory=1 << 30, itemsize=8
    )
    inputs, targets = torch.randint(30, (2, 2, 32))
    chosen = torch.arange(32 - rows, 32).expand(2, -1)
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: added}) as counter:
        ablation_effects(model, inputs, targets, chosen, ablations, parsed, schedule=schedule)
    said = sum(stage.flops for stage in schedule.stages if not stage.name.startswith("losses"))
    assert counter.get_total_flops() == pytest.approx(said, rel=0.03)
