"""Ablation by interventions against ablation written out by hand, and against closed forms."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from icl_fast import InputError, Intervention, Transformer, TransformerConfig, ablate
from icl_fast.measure import logit_attribution, previous_token_scores
from icl_fast.measure.ablation.modes import MODES

N, T, V = 5, 11, 23


def make(**shape: Any) -> Transformer:
    torch.manual_seed(0)
    values = {"layers": 3, "width": 12, "heads": 3, "position": "shortformer"} | shape
    model = Transformer(TransformerConfig(vocab=V, context=T, **values)).double()
    with torch.no_grad():
        for parameter in model.parameters():  # biases, gains and smears that are not at their start values
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def tokens() -> tuple[Tensor, Tensor]:
    text = torch.randint(0, V, (N, T + 1), generator=torch.Generator().manual_seed(1))
    return text[:, :-1], text[:, 1:]


def by_hand(
    model: Transformer,
    inputs: Tensor,
    removed: dict[int, list[int]],
    preserve: tuple[str, ...],
    base: list[dict[str, Tensor]] | None,
    means: list[Tensor] | None = None,
    without_embedding: bool = False,
) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """The same forward pass in plain loops over heads: no sites, no interventions, no fused attention."""
    config = model.config
    x = model.embed(inputs)
    position = model.position.weight[:T] if model.position is not None else None
    if config.position == "learned":
        x = x + position
    if without_embedding:
        x = torch.zeros_like(x)
    first: list[dict[str, Tensor]] = []
    for layer, block in enumerate(model.blocks):
        attention = block.attention
        normed = F.layer_norm(x, (config.width,), block.norm1.weight, block.norm1.bias, config.norm_eps)
        keyed = normed + position if config.position == "shortformer" else normed
        written = torch.zeros_like(x)
        kept: dict[str, list[Tensor]] = {"q": [], "k": [], "v": [], "pattern": [], "z": []}
        for head in range(config.heads):
            rows = slice(head * config.d_head, (head + 1) * config.d_head)
            q, k, v = (
                source @ linear.weight[rows].T + (0 if linear.bias is None else linear.bias[rows])
                for source, linear in ((keyed, attention.q), (keyed, attention.k), (normed, attention.v))
            )
            if attention.alpha is not None:
                s = torch.sigmoid(attention.alpha[head])
                k = torch.stack([k[:, 0], *(s * k[:, j] + (1 - s) * k[:, j - 1] for j in range(1, T))], dim=1)
            if base is not None:
                q = base[layer]["q"][:, head] if "q" in preserve else q
                k = base[layer]["k"][:, head] if "k" in preserve else k
                v = base[layer]["v"][:, head] if "v" in preserve else v
            pattern = torch.zeros(len(inputs), T, T, dtype=x.dtype)
            window = T if attention.windows is None else attention.windows[head] or T
            for i in range(T):
                seen = slice(max(0, i - window + 1), i + 1)
                scores = (q[:, i, None] * k[:, seen]).sum(-1) / config.d_head**0.5
                pattern[:, i, seen] = scores.exp() / scores.exp().sum(-1, keepdim=True)
            if base is not None and "pattern" in preserve:
                pattern = base[layer]["pattern"][:, head]
            z = pattern @ v
            for name, value in (("q", q), ("k", k), ("v", v), ("pattern", pattern), ("z", z)):
                kept[name].append(value)
            if head in removed.get(layer, []):
                z = torch.zeros_like(z) if means is None else means[layer][head].expand_as(z)
            written = written + z @ attention.out.weight[:, rows].T
        x = x + written + (0 if attention.out.bias is None else attention.out.bias)
        if block.mlp is not None:
            x = x + block.mlp(F.layer_norm(x, (config.width,), block.norm2.weight, block.norm2.bias, config.norm_eps))
        first.append({name: torch.stack(values, dim=1) for name, values in kept.items()})
    final = F.layer_norm(x, (config.width,), model.final_norm.weight, model.final_norm.bias, config.norm_eps)
    logits = final @ model.unembed.weight.T + (0 if model.unembed.bias is None else model.unembed.bias)
    return logits, first


def losses(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "attention-only": {},
    "mlp": {"mlp": True, "position": "learned"},
    "smeared": {"key": "smeared"},
    "windows": {"windows": [[None, 3, 4], [2, None, 5], [1, 3, None]]},
    "biases": {"attention_bias": True, "unembed_bias": True, "mlp": True},
}
REMOVED = {
    "0.1": {0: [1]},
    "1.0+2.2": {1: [0], 2: [2]},
    "2.1": {2: [1]},
    "~0.0": {0: [1, 2], 1: [0, 1, 2], 2: [0, 1, 2]},
}


@pytest.mark.parametrize("engine", ["fast", "definition"])
@pytest.mark.parametrize(("architecture", "mode"), list(product(ARCHITECTURES, [*MODES, "pattern+k", "q+k", "v+k"])))
@torch.no_grad()
def test_against_ablation_by_hand(architecture: str, mode: str, engine: Any) -> None:
    model = make(**ARCHITECTURES[architecture])
    inputs, targets = tokens()
    preserve = MODES[mode] if mode in MODES else tuple(mode.split("+"))
    result = ablate(model, inputs, targets, mode=mode, heads=",".join(REMOVED), engine=engine)
    logits, base = by_hand(model, inputs, {}, (), None)
    np.testing.assert_allclose(
        result["position_loss"].sel(ablation="none"), losses(logits, targets).mean(0), rtol=1e-12
    )
    for name, removed in REMOVED.items():
        expected = losses(by_hand(model, inputs, removed, preserve, base)[0], targets)
        np.testing.assert_allclose(result["position_loss"].sel(ablation=name), expected.mean(0), rtol=1e-11)


@torch.no_grad()
def test_mean_ablation_by_hand() -> None:
    model = make()
    inputs, targets = tokens()
    _, base = by_hand(model, inputs, {}, (), None)
    means = [layer["z"].mean((0, 2)) for layer in base]
    expected = losses(by_hand(model, inputs, {0: [1], 2: [0]}, ("pattern",), base, means)[0], targets)
    result = ablate(model, inputs, targets, heads="0.1+2.0", replacement="mean")
    np.testing.assert_allclose(result["position_loss"].sel(ablation="0.1+2.0"), expected.mean(0), rtol=1e-11)


@torch.no_grad()
def test_embedding_ablation_by_hand() -> None:
    model = make()
    inputs, targets = tokens()
    _, base = by_hand(model, inputs, {}, (), None)
    expected = losses(by_hand(model, inputs, {}, ("pattern", "v"), base, without_embedding=True)[0], targets)
    result = ablate(model, inputs, targets, heads="embed", mode="direct")
    np.testing.assert_allclose(result["position_loss"].sel(ablation="embed"), expected.mean(0), rtol=1e-11)


@torch.no_grad()
def test_removing_all_heads_leaves_the_embedding_path() -> None:
    model = make()
    inputs, targets = tokens()
    expected = losses(model.unembed(model.final_norm(model.embed(inputs))), targets)
    for mode in MODES:
        result = ablate(model, inputs, targets, heads="*", mode=mode)
        np.testing.assert_allclose(result["position_loss"].sel(ablation="*"), expected.mean(0), rtol=1e-12)


@torch.no_grad()
def test_direct_mode_subtracts_the_head_s_output() -> None:
    """With patterns and values preserved only the head's own result is missing from the final residual stream."""
    model = make()
    inputs, targets = tokens()
    _, sites = model(inputs, record=["0.head_out", "2.resid_post"])
    stream = sites["2.resid_post"] - sites["0.head_out"][:, 2]
    expected = losses(model.unembed(model.final_norm(stream)), targets)
    result = ablate(model, inputs, targets, heads="0.2", mode="direct")
    np.testing.assert_allclose(result["position_loss"].sel(ablation="0.2"), expected.mean(0), rtol=1e-11)


@torch.no_grad()
def test_in_the_last_layer_all_modes_agree_and_a_removed_nothing_is_exactly_nothing() -> None:
    model = make()
    inputs, targets = tokens()
    values = [
        ablate(model, inputs, targets, heads="2.0", mode=mode)["position_loss"].sel(ablation="2.0") for mode in MODES
    ]
    for value in values[1:]:
        np.testing.assert_allclose(value, values[0], rtol=1e-12)
    model.blocks[1].attention.out.weight[:, :4] = 0  # head 1.0 writes nothing
    for mode in MODES:
        result = ablate(model, inputs, targets, heads="1.0", mode=mode)
        assert (result["position_loss"].sel(ablation="1.0") == result["position_loss"].sel(ablation="none")).all()
        assert (result["effect_sem"] == 0).all()


@torch.no_grad()
def test_preserving_only_some_heads() -> None:
    model = make()
    inputs, targets = tokens()
    everything = ablate(model, inputs, targets, heads="0.1", mode="pattern-preserving")
    named = ablate(model, inputs, targets, heads="0.1", mode="pattern-preserving", preserve_heads="1.*+2.*")
    np.testing.assert_allclose(named["position_loss"], everything["position_loss"], rtol=1e-12)
    nothing = ablate(model, inputs, targets, heads="0.1", mode="full")
    some = ablate(model, inputs, targets, heads="0.1", mode="pattern-preserving", preserve_heads="1.1")
    for other in (everything, nothing):
        assert float(abs(some["position_loss"] - other["position_loss"]).max()) > 1e-4


@torch.no_grad()
def test_positions_chunks_and_statistics() -> None:
    model = make()
    inputs, targets = tokens()
    where = torch.tensor([1, 11, 4, 4, 7])
    whole = ablate(model, inputs, targets, random_position=where)
    per_token = losses(model(inputs), targets)
    base = whole.sel(ablation="none")
    np.testing.assert_allclose(base["position_loss_sem"], per_token.std(0) / N**0.5, rtol=1e-6)
    np.testing.assert_allclose(base["loss"], per_token[torch.arange(N), where - 1], rtol=1e-6)
    listed = ablate(model, inputs, targets, positions="3,9")
    np.testing.assert_allclose(listed["position_loss"], whole["position_loss"].sel(position=[3, 9]), rtol=1e-10)
    assert "loss" not in listed
    paper = ablate(model, inputs, targets, positions="paper", random_position=where)
    np.testing.assert_allclose(paper["loss"], whole["loss"], rtol=1e-6)
    np.testing.assert_allclose(paper["icl_score"], whole["icl_score"], rtol=1e-10)
    assert paper["position"].values.tolist() == [1, 11]
    scores = per_token[:, 10] - per_token[:, 0]
    np.testing.assert_allclose(paper["icl_score"].sel(ablation="none"), scores.mean(), rtol=1e-12)
    np.testing.assert_allclose(paper["icl_score_sem"].sel(ablation="none"), scores.std() / N**0.5, rtol=1e-10)
    np.testing.assert_allclose(paper["example_icl_score"], scores, rtol=1e-6)
    assert "example_icl_score" not in listed
    wide = ablate(model, inputs, targets, icl_window=3)
    scores = per_token[:, 9:].mean(1) - per_token[:, :2].mean(1)
    np.testing.assert_allclose(wide["icl_score"].sel(ablation="none"), scores.mean(), rtol=1e-12)
    np.testing.assert_allclose(wide["icl_score_sem"].sel(ablation="none"), scores.std() / N**0.5, rtol=1e-10)
    np.testing.assert_allclose(wide["example_icl_score"], scores, rtol=1e-6)
    assert wide["icl_score"].attrs["long_name"] == "mean loss of tokens 10 to 11 minus tokens 1 to 2"
    for pair in ("3, 8", (3, 8), np.array([3, 8])):
        other = ablate(model, inputs, targets, icl_positions=pair)
        np.testing.assert_allclose(
            other["icl_score"].sel(ablation="none"), (per_token[:, 7] - per_token[:, 2]).mean(), rtol=1e-12
        )
        assert other["icl_score"].attrs["long_name"] == "mean loss of token 8 minus token 3"
        planned = json.loads(other.attrs["plan"])["positions"]
        assert (planned["early"], planned["late"]) == ([3], [8])
    removed = losses(model(inputs, interventions=[Intervention.zero("2.z", heads=[1])]), targets)
    changes = (removed - per_token)[:, 9:].mean(1) - (removed - per_token)[:, :2].mean(1)
    np.testing.assert_allclose(wide["icl_effect_sem"].sel(ablation="2.1"), changes.std() / N**0.5, rtol=1e-8)
    assert float(whole["effect_sem"].sel(ablation="none").max()) == 0


@pytest.mark.parametrize("engine", ["fast", "definition"])
@torch.no_grad()
def test_chunks_give_the_same_numbers(engine: Any) -> None:
    model = make()
    inputs, targets = tokens()
    where = torch.tensor([1, 11, 4, 4, 7])
    whole = ablate(model, inputs, targets, random_position=where, engine=engine)
    assert json.loads(whole.attrs["plan"])["chunk"] == N
    chunks = set()
    for budget in range(20_000, 400_000, 20_000):
        try:
            few = ablate(model, inputs, targets, random_position=where, memory=budget, engine=engine)
        except InputError:
            continue
        chunks.add(json.loads(few.attrs["plan"])["chunk"])
        np.testing.assert_allclose(few["position_loss"], whole["position_loss"], rtol=1e-12)
        np.testing.assert_allclose(few["loss"], whole["loss"], rtol=1e-6)
    assert {1, 2} <= chunks


@torch.no_grad()
def test_without_targets_every_token_is_predicted_from_those_before() -> None:
    model = make()
    inputs, targets = tokens()
    text = torch.cat((inputs, targets[:, -1:]), dim=1)
    np.testing.assert_array_equal(ablate(model, text)["position_loss"], ablate(model, inputs, targets)["position_loss"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "frozen"}, "mode: 'frozen' is neither one of full, pattern-preserving"),
        ({"mode": "pattern+pattern"}, "mode: 'pattern\\+pattern'"),
        ({"heads": "3.0"}, "heads: '3.0' is not in this model"),
        ({"heads": "0.-1"}, "is not understood"),
        ({"positions": "0,3"}, "positions: 0 is outside the context, which has positions 1 to 11"),
        ({"positions": "12"}, "positions: 12 is outside"),
        ({"positions": "2,2"}, "names a position twice"),
        ({"positions": "some"}, "neither all, paper nor a list"),
        ({"positions": []}, "neither all, paper nor a list"),
        ({"replacement": "noise"}, "neither zero nor mean"),
        ({"memory": "lots"}, "not an amount of memory"),
        ({"memory": "1KiB"}, r"memory: one example of 11 tokens needs about \d+ MiB, the budget is 0 MiB"),
        ({"random_position": torch.tensor([0, 1, 1, 1, 1])}, "random_position"),
        ({"positions": [1.0]}, "positions: must be a whole number, got 1.0"),
        ({"positions": "1" * 5000}, "neither all, paper nor a list"),
        ({"heads": ["0.0", "0.0"]}, "heads: 0.0 asked for more than once"),
        ({"heads": []}, "heads: names none"),
        ({"mode": ""}, "mode: '' is neither one of"),
        ({"mode": None}, "mode: None is neither one of"),
        ({"mode": ["full"]}, "is neither one of"),
        ({"memory": "-1GiB"}, "memory: '-1GiB' is not an amount"),
        ({"memory": "1e99"}, "memory: '1e99' is not an amount"),
        ({"memory": ""}, "memory: '' is not an amount"),
        ({"memory": "9" * 400}, "is not an amount of memory"),
        ({"memory": float("nan")}, "memory: nan is not an amount"),
        ({"dtype": ""}, "dtype: '' is none of"),
        ({"dtype": torch.float32}, "dtype: torch.float32 is none of"),
        ({"icl_window": 1.0}, "icl_window: must be a whole number, got 1.0"),
        ({"icl_window": float("nan")}, "icl_window: must be a whole number, got nan"),
        ({"random_position": [1, 2, 3]}, r"random_position must be integers \[N=5\]"),
        ({"preserve_heads": "7.7"}, "preserve_heads: '7.7' is not in this model"),
        ({"preserve_heads": "0.0,0.0"}, "preserve_heads: 0.0 asked for more than once"),
        ({"icl_window": 2}, "icl_window: must be odd"),
        ({"icl_window": 11}, "leave room between positions 1 and 11"),
        ({"icl_window": 3, "icl_positions": "4,6"}, "leave room between positions 4 and 6"),
        ({"icl_positions": "8,3"}, "icl_positions: '8,3' must be two of the context's positions, 1 to 11, the earlier"),
        ({"icl_positions": "3"}, "icl_positions: '3' must be two"),
        ({"icl_positions": "0,3"}, "icl_positions: '0,3' must be two"),
        ({"icl_positions": (3, 12)}, "icl_positions: .3, 12. must be two"),
        ({"icl_positions": "3,x"}, "icl_positions: '3,x' must be two"),
        ({"icl_positions": 3}, "icl_positions: must be a list, got 3"),
        ({"icl_positions": [3, 4.0]}, "icl_positions: must be a whole number, got 4.0"),
        ({"icl_positions": [3, 4], "positions": "5"}, "icl_positions: changes nothing at positions 5"),
    ],
)
def test_bad_input(arguments: dict[str, Any], message: str) -> None:
    inputs, targets = tokens()
    with pytest.raises(InputError, match=message):
        ablate(make(), inputs, targets, **arguments)


def test_bad_tokens() -> None:
    inputs, targets = tokens()
    for wrong in (inputs.double(), inputs[0], inputs > 3, "text", None, [[0, 1], [2]], [[0.0, 1.0]]):
        with pytest.raises(InputError, match=r"^tokens must be integers"):
            ablate(make(), wrong)
    for wrong in (targets[:2], targets.float(), targets[:, 0], "text"):
        with pytest.raises(InputError, match=r"^targets must be integers"):
            ablate(make(), inputs, wrong)
    for wrong in (inputs - V, inputs + V):
        for argument, given in (("tokens", (wrong,)), ("targets", (inputs, wrong))):
            with pytest.raises(InputError, match=rf"^{argument} holds -?\d+, but there are {V} \(0 to {V - 1}\)$"):
                ablate(make(), *given)
    with pytest.raises(InputError, match="nothing to predict"):
        ablate(make(), inputs[:0])
    with pytest.raises(InputError, match=f"^tokens: {T + 1} positions, but the model's position table holds {T}"):
        ablate(make(), torch.zeros(2, T + 2, dtype=torch.int64))


INTEGERS: list[Callable[[Tensor], Any]] = [
    *(lambda x, kind=kind: x.to(kind) for kind in (torch.int32, torch.int16, torch.int8, torch.uint8)),
    *(lambda x, kind=kind: x.numpy().astype(kind) for kind in (np.int32, np.uint8, np.uint64)),
    lambda x: np.broadcast_to(x.numpy(), x.shape),  # which may not be written to
    lambda x: x.tolist(),
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", INTEGERS)
def test_integers_of_any_kind(kind: Callable[[Tensor], Any]) -> None:
    model, (inputs, targets), where = make(layers=1), tokens(), torch.tensor([1, 11, 4, 4, 7])
    expected = ablate(model, inputs, targets, random_position=where, icl_window=np.int64(1), positions=np.array([2, 3]))
    found = ablate(model, kind(inputs), kind(targets), random_position=kind(where), positions=(np.int8(2), 3))
    np.testing.assert_array_equal(found["position_loss"], expected["position_loss"])
    assert torch.equal(model(kind(inputs)), model(inputs))
    assert torch.equal(
        previous_token_scores(model, kind(inputs), examples=np.int32(3)),
        previous_token_scores(model, inputs, examples=3),
    )
    attributions = (
        logit_attribution(model, *given, np.int64(0), torch.tensor(1))
        for given in ((kind(inputs), kind(targets)), (inputs, targets))
    )
    assert torch.equal(*(one.logits for one in attributions))


@pytest.mark.parametrize("engine", ["fast", "definition"])
def test_losses_that_are_not_finite_are_named(engine: Any) -> None:
    """A weight, or the dtype, or the ablation that makes them; never NaN in a table."""
    inputs, targets = tokens()
    model = make()
    model.blocks[1].attention.v.weight.data[0, 0] = torch.nan
    with pytest.raises(InputError, match=r"^model: blocks.1.attention.v.weight holds NaN or infinity in float64"):
        ablate(model, inputs, targets, engine=engine)
    model = make().float()
    model.unembed.weight.data.mul_(1e38)
    with pytest.raises(InputError, match=r"^dtype: in float32 losses of the whole model are NaN or infinite"):
        ablate(model, inputs, targets, engine=engine)
    assert np.isfinite(ablate(model, inputs, targets, engine=engine, dtype="float64")["position_loss"]).all()


def test_an_ablation_whose_losses_are_not_finite_is_named() -> None:
    model, (inputs, targets) = make(), tokens()

    def divide(module: object, given: Any, output: Tensor) -> Tensor:
        return output / (output[..., :1] != 0)  # nothing that the head wrote: 0 / 0

    model.blocks[0].attention.out.weight.data[:, 4:] = 0  # only head 0 writes
    model.blocks[0].attention.register_forward_hook(divide)
    with pytest.raises(InputError, match=r"^dtype: .* losses of the model without 0.0 are NaN or infinite"):
        ablate(model, inputs, targets, heads="0.1,0.0", mode="full", engine="definition")
