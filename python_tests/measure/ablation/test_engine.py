"""The fast engine against the definition: every method, architecture, mode, kind of ablation, all positions and few."""

from __future__ import annotations

from itertools import product
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from torch import Tensor

from icl_fast import InputError, Transformer, TransformerConfig, ablate
from icl_fast.measure.ablation.costs import METHODS
from icl_fast.measure.ablation.definition import ablated_losses
from icl_fast.measure.ablation.engine import ablation_effects
from icl_fast.measure.ablation.means import mean_activations, replacement_sites
from icl_fast.measure.ablation.modes import MODES, AblationMode
from icl_fast.measure.ablation.names import parse_ablations
from icl_fast.measure.ablation.schedule import make_schedule

N, T, V = 3, 19, 31
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "two layers": {"layers": 2},
    "two layers, biases": {"layers": 2, "attention_bias": True, "norm_affine": True, "position": "learned"},
    "two layers, windows, plain norm": {"layers": 2, "norm_affine": False, "windows": [[None, 3, 4], [2, None, 5]]},
    "smeared, rotary": {"layers": 2, "key": "smeared", "position": "rotary"},
    "three layers": {"layers": 3, "position": "sinusoidal"},
    "one layer": {"layers": 1},
    "mlp": {"layers": 3, "mlp": True, "position": "none", "attention_bias": True, "unembed_bias": True},
    "mlp, tanh": {"layers": 2, "mlp": True, "activation": "gelu_tanh", "head_width": 5, "key": "smeared"},
}


def make(dtype: torch.dtype = torch.float64, **shape: Any) -> Transformer:
    torch.manual_seed(0)
    values = {"width": 24, "heads": 3, "position": "shortformer"} | shape
    model = Transformer(TransformerConfig(vocab=V, context=T, **values)).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def everything(model: Transformer) -> str:
    last = model.config.layers - 1
    sets = f"all,*,embed,embed+0.1+{last}.0,{last}.0+{last}.1,0.0+{last}.1+{last}.2,~{last}.0"
    return sets if last == 0 else f"{sets},0.*,{last}.*,~0.0"


def compare(
    model: Transformer, mode: AblationMode, heads: str, rows: Tensor, replacement: str = "zero", memory: int = 1 << 30
) -> tuple[Tensor, Tensor, set[str]]:
    """Effects by the definition and by the engine [A,n,R], and the methods that it took."""
    inputs, targets = torch.randint(V, (2, len(rows), T))
    ablations = parse_ablations(heads, model.config)
    means = mean_activations(model, iter([inputs]), replacement_sites(ablations)) if replacement == "mean" else None
    runs = torch.stack(list(ablated_losses(model, inputs, targets, rows, ablations, mode, means)))
    schedule = make_schedule(
        model.config,
        examples=len(rows),
        context=T,
        rows=min(T, rows.shape[1]),
        ablations=ablations,
        mode=mode,
        memory=memory,
        itemsize=model.embed.weight.dtype.itemsize,
    )
    base, effects = ablation_effects(model, inputs, targets, rows, ablations, mode, means, schedule=schedule)
    torch.testing.assert_close(base, runs[0], rtol=1e-5, atol=1e-5)
    return runs[1:] - runs[0], effects, set(schedule.methods)


def all_rows() -> Tensor:
    return torch.cat((torch.arange(T), torch.tensor([4]))).expand(N, -1)


def few_rows() -> Tensor:
    return torch.tensor([[4, 17, 2], [0, 17, 2], [18, 17, 2]])


@pytest.mark.parametrize("rows", [all_rows(), few_rows()], ids=["all", "few"])
@pytest.mark.parametrize(("architecture", "mode"), list(product(ARCHITECTURES, [*MODES, "pattern+k", "q+k", "v+k"])))
@torch.no_grad()
def test_is_the_definition(architecture: str, mode: str, rows: Tensor) -> None:
    model = make(**ARCHITECTURES[architecture])
    last = model.config.layers - 1
    for some in (None, ((0, 1), (last, 0), (last, 2))):
        for replacement in ("zero", "mean"):
            chosen = AblationMode.parse(mode, some)
            expected, effects, _ = compare(model, chosen, everything(model), rows, replacement)
            torch.testing.assert_close(effects, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("architecture", "mode", "rows", "methods"),
    [
        ("two layers", "pattern-preserving", few_rows(), {"source sums", "delta"}),
        ("two layers", "pattern-preserving", all_rows(), {"low rank", "delta"}),
        ("two layers", "full", all_rows(), {"low rank", "rerun"}),
        ("mlp", "pattern-preserving", few_rows(), {"delta"}),
        ("mlp", "value-preserving", few_rows(), {"rerun"}),
    ],
)
@torch.no_grad()
def test_methods_are_chosen_by_cost(architecture: str, mode: str, rows: Tensor, methods: set[str]) -> None:
    model = make(**ARCHITECTURES[architecture])
    assert compare(model, AblationMode.parse(mode), "all", rows)[2] == methods


@torch.no_grad()
def test_small_effects_are_right_in_float32() -> None:
    """A head that writes 1e-5 of the others: the difference of two losses would have no digit left."""
    for architecture, rows in product(("two layers", "three layers", "mlp", "mlp, tanh"), (all_rows(), few_rows())):
        model = make(**ARCHITECTURES[architecture])
        model.blocks[0].attention.w_o[1].mul_(1e-5)
        mode = AblationMode.parse("pattern-preserving")
        torch.manual_seed(1)
        expected, _, _ = compare(model, mode, "0.1", rows)
        torch.manual_seed(1)
        by_definition, effects, _ = compare(model.float(), mode, "0.1", rows)
        size = expected.abs().max()
        assert size < 1e-3
        assert (effects - expected).abs().max() < 1e-5 * size
        assert (by_definition - expected).abs().max() > 1e-3 * size


@torch.no_grad()
def test_little_left_of_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that wrote nearly all of the stream: the source sums' variances would be differences of like numbers."""
    model = make(**ARCHITECTURES["two layers"])
    model.blocks[0].attention.w_o[1].mul_(300)
    mode = AblationMode.parse("pattern-preserving")

    def error(model: Transformer) -> float:
        torch.manual_seed(1)
        _, effects, methods = compare(model, mode, "0.1", few_rows())
        assert methods == {"source sums"}
        return float((effects - expected).abs().max())

    torch.manual_seed(1)
    expected, _, _ = compare(model, mode, "0.1", few_rows())
    single = model.float()
    eps = torch.finfo(torch.float32).eps
    assert error(single) < 300 * 4 * eps * expected.abs().max()  # what is left has the rounding of what was there
    guarded = error(single)
    monkeypatch.setattr("icl_fast.measure.ablation.source_sums.LEAST_VARIANCE", 0.0)
    assert error(single) > 5 * guarded


@torch.no_grad()
def test_ablations_in_several_waves() -> None:
    model, mode = make(**ARCHITECTURES["mlp"]), AblationMode.parse("pattern-preserving")
    ablations = parse_ablations("all", model.config)
    inputs, targets = torch.randint(V, (2, N, T))
    rows, waves, results = all_rows(), set(), []
    for memory in (100_000, *range(352_000, 420_000, 8_000), 900_000, 1 << 30):
        try:
            schedule = make_schedule(
                model.config, examples=N, context=T, rows=T, ablations=ablations, mode=mode, memory=memory, itemsize=8
            )
        except InputError as error:
            assert "memory: one example of 19 tokens needs about" in str(error)  # noqa: PT017
            continue
        waves.add(len(schedule.waves()))
        results.append(ablation_effects(model, inputs, targets, rows, ablations, mode, schedule=schedule)[1])
        torch.testing.assert_close(results[-1], results[0], rtol=1e-9, atol=1e-12)
    assert {1, 2, 3} <= waves


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(st.data())
def test_schedules(data: Any) -> None:
    """Every ablation has one place, in an order in which those that start below come first, within the budget."""
    layers, heads = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 6))
    context = data.draw(st.integers(1, 600))
    config = TransformerConfig(
        layers=layers, heads=heads, width=8 * heads, mlp=data.draw(st.booleans()), vocab=100, context=context
    )
    ablations = parse_ablations(
        data.draw(st.sampled_from(["all", "all,*,embed", "none", "~0.0" if heads > 1 else "*"])), config
    )
    memory, examples = data.draw(st.integers(10**5, 10**9)), data.draw(st.integers(1, 50))
    try:
        schedule = make_schedule(
            config,
            examples=examples,
            context=context,
            rows=data.draw(st.integers(1, context)),
            ablations=ablations,
            mode=AblationMode.parse(data.draw(st.sampled_from(list(MODES)))),
            memory=memory,
        )
    except InputError as error:
        assert "memory: one example" in str(error)  # noqa: PT017
        return
    assert set(schedule.methods) <= set(METHODS)
    waves = schedule.waves()
    assert sorted([index for wave in waves for index in wave] + schedule.of("low rank")) == list(range(len(ablations)))
    assert all(len(wave) <= schedule.variants for wave in waves)
    for method in ("delta", "rerun"):
        for wave in waves:
            firsts = [schedule.first_layers[index] for index in wave if schedule.methods[index] == method]
            assert firsts == sorted(firsts)
    assert 1 <= schedule.examples <= examples
    assert schedule.flops > 0
    assert all(stage.flops >= 0 and stage.bytes > 0 for stage in schedule.stages)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@torch.no_grad()
def test_narrow_numbers_keep_small_effects(dtype: str) -> None:
    """Effects of heads that do little: right to some percent where two narrow passes lose all digits."""
    model = make(torch.float32, **ARCHITECTURES["two layers"])
    for block in model.blocks:
        block.attention.out.weight.mul_(0.02)
    tokens = torch.randint(V, (8, T + 1), generator=torch.Generator().manual_seed(3))
    truth, fast, by_definition = (
        ablate(model, tokens, dtype=wanted, engine=engine)["position_loss"].values
        for wanted, engine in (("float64", "definition"), (dtype, "fast"), (dtype, "definition"))
    )

    def error(losses: np.ndarray) -> float:
        """Of the worst head: rms over positions, relative to that of its effects."""
        wrong = (losses - losses[0]) - (truth - truth[0])
        return float((np.square(wrong[1:]).mean(1) / np.square(truth - truth[0])[1:].mean(1)).max() ** 0.5)

    assert error(fast) < 0.03
    assert error(by_definition) > 10 * error(fast)
