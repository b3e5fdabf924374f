"""Exemplar models against their pass written out (conftest), alone and as members; their initial weights and sites."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from icl_fast.errors import InputError
from icl_fast.models import (
    LAYER_SITES,
    ExemplarConfig,
    ExemplarTransformer,
    Intervention,
    make_clamps,
    no_clamps,
    stack_clamps,
)

Build = Callable[..., ExemplarTransformer]
Draw = Callable[..., tuple[Tensor, Tensor, Tensor]]
Plain = Callable[..., dict[str, Tensor]]

SMALL: dict[str, Any] = {"layers": 2, "width": 12, "heads": 3, "features": 7, "outputs": 8, "pairs": 2}
SITES = ["embed", *(f"{layer}.{name}" for layer in range(2) for name in LAYER_SITES), "final_norm", "logits"]


def weights_of(model: ExemplarTransformer, member: int) -> dict[str, Tensor]:
    """A member's weights, those of the labels that it does not have left out."""
    weights = {name: parameter[member] for name, parameter in model.named_parameters()}
    for name in ("embed_label.weight", "unembed.weight", "unembed.bias"):
        weights[name] = weights[name][: int(model.outputs[member])]
    return weights


def plain_logits(plain: Plain, model: ExemplarTransformer, exemplars: Tensor, labels: Tensor, **more: Any) -> Tensor:
    """[P,B,V] by the pass written out, one sequence at a time."""
    out = torch.full((*labels.shape[:2], model.config.outputs), -1e9, dtype=torch.float64)
    for p, b in itertools.product(*map(range, labels.shape[:2])):
        sites = plain(weights_of(model, p), model.config, exemplars[p, b], labels[p, b].tolist(), **more)
        out[p, b, : len(sites["logits"])] = sites["logits"]
    return out


def gradients(model: ExemplarTransformer, logits: Tensor) -> dict[str, Tensor]:
    """Of a cross-entropy that asks for label 0 or 1, which all have."""
    target = torch.arange(logits.shape[1]).expand(logits.shape[:2]) % 2
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum")
    names, weights = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, weights), strict=True))


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


# --- the forward pass ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pairs", [1, 2, 5])
@pytest.mark.parametrize("mlp", [False, True])
@pytest.mark.parametrize("layers", [1, 2, 3, 6])
@pytest.mark.parametrize("position", ["learned", "sinusoidal", "rotary", "none"])
def test_forward(
    build_exemplars: Build, draw_sequences: Draw, plain_pass: Plain, position: str, layers: int, mlp: bool, pairs: int
) -> None:
    model = build_exemplars(known=[8, 5], position=position, layers=layers, mlp=mlp, pairs=pairs)
    exemplars, labels, _ = draw_sequences(model, 2)
    with torch.no_grad():
        logits, recorded = model(exemplars, labels)
        close(logits, plain_logits(plain_pass, model, exemplars, labels))
    assert recorded == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"position": "sinusoidal", "width": 15},
        {"position": "none", "width": 9},
        {"heads": 1},
        {"heads": 6, "rotary_base": 50.0},
        {"norm_eps": 0.3},
        {"attention_bias": True, "mlp": True},
        {"position": "sinusoidal", "sinusoid_base": 30.0},
        {"layers": 18, "attention_bias": True, "width": 6},
        {"mlp": True, "mlp_ratio": 1},
    ],
)
def test_forward_with_other_knobs(
    build_exemplars: Build, draw_sequences: Draw, plain_pass: Plain, changes: dict[str, Any]
) -> None:
    model = build_exemplars(**changes)
    exemplars, labels, _ = draw_sequences(model)
    close(model(exemplars, labels)[0], plain_logits(plain_pass, model, exemplars, labels))


@pytest.mark.parametrize(
    "changes", [{}, {"position": "learned", "mlp": True, "layers": 3}, {"position": "sinusoidal", "pairs": 5}]
)
def test_gradients(build_exemplars: Build, draw_sequences: Draw, plain_pass: Plain, changes: dict[str, Any]) -> None:
    """Of every weight, those of labels that a member does not have 0."""
    model = build_exemplars(known=[8, 5], **changes)
    exemplars, labels, _ = draw_sequences(model)
    ours = gradients(model, model(exemplars, labels)[0])
    theirs = gradients(model, plain_logits(plain_pass, model, exemplars, labels))
    for name, gradient in ours.items():
        close(gradient, theirs[name])
        assert gradient[0].any(), name
        if name.startswith(("embed_label", "unembed")):
            assert not gradient[1, 5:].any(), name


@settings(max_examples=25)
@given(st.data())
def test_any_shape(build_exemplars: Build, draw_sequences: Draw, plain_pass: Plain, data: st.DataObject) -> None:
    def draw(least: int, most: int) -> int:
        return data.draw(st.integers(least, most))

    members, heads, outputs = draw(1, 3), draw(1, 4), draw(2, 6)
    config = {"heads": heads, "width": heads * 2 * draw(1, 3), "layers": draw(1, 3), "features": draw(1, 5)}
    config |= {"outputs": outputs, "pairs": draw(1, 4), "mlp": data.draw(st.booleans())}
    known = [draw(2, outputs) for _ in range(members)]
    position = data.draw(st.sampled_from(["learned", "sinusoidal", "rotary", "none"]))
    model = build_exemplars(members, known=known, position=position, **config)
    exemplars, labels, _ = draw_sequences(model, draw(0, 3))
    logits, _ = model(exemplars, labels)
    assert logits.shape == (*labels.shape[:2], outputs)
    close(logits, plain_logits(plain_pass, model, exemplars, labels))


def test_inputs_in_any_layout(build_exemplars: Build, draw_sequences: Draw) -> None:
    model = build_exemplars()
    exemplars, labels, _ = draw_sequences(model)
    strided = torch.stack([exemplars, exemplars + 1], -1)[..., 0].transpose(1, 3).contiguous().transpose(1, 3)
    assert not strided.is_contiguous()
    assert torch.equal(model(strided, labels.mT.contiguous().mT)[0], model(exemplars, labels)[0])


def test_embedding_apart(build_exemplars: Build, draw_sequences: Draw) -> None:
    model = build_exemplars(position="learned")
    exemplars, labels, _ = draw_sequences(model)
    logits, recorded = model(exemplars, labels, record=["embed"])
    apart = model.embed_exemplar(exemplars)
    assert torch.equal(model.from_embedded(apart, labels)[0], logits)
    assert torch.equal(model.embedded(apart, labels).flatten(0, 1), recorded["embed"])


# --- members ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", ["learned", "rotary"])
def test_a_member_is_the_model_of_its_seed_and_outputs_alone(draw_sequences: Draw, position: Any) -> None:
    """Initial weights bit for bit; logits and gradients, with as many outputs as it has, as close as float64 is."""
    config = ExemplarConfig(**SMALL, position=position, mlp=True)
    seeds, outputs = [5, 0, 5, 65535], [8, 3, 2, 7]
    population = ExemplarTransformer(config, seeds, outputs)
    population_double = ExemplarTransformer(config, seeds, outputs).double()
    exemplars, labels, _ = draw_sequences(population_double)
    logits = population_double(exemplars, labels)[0]
    of_all = gradients(population_double, logits)
    for p, (seed, count) in enumerate(zip(seeds, outputs, strict=True)):
        alone = ExemplarTransformer(config.model_copy(update={"outputs": count}), [seed])
        for name, parameter in alone.named_parameters():
            assert torch.equal(weights_of(population, p)[name], parameter[0]), name
        assert not population.embed_label.weight[p, count:].any()
        assert not population.unembed.weight[p, count:].any()
        alone = alone.double()
        own, _ = alone(exemplars[p : p + 1], labels[p : p + 1])
        close(logits[p, :, :count], own[0])
        assert (logits[p, :, count:] == -1e9).all()
        for name, gradient in gradients(alone, own).items():
            of_member = of_all[name][p]
            close(of_member[: len(gradient[0])], gradient[0])
            assert not of_member[len(gradient[0]) :].any()


def test_members_never_mix(build_exemplars: Build, draw_sequences: Draw) -> None:
    """NaN in the weights and sequences of one member reaches no other, forward or backward; nor does one sequence's."""
    model = build_exemplars(3, mlp=True, position="learned")
    exemplars, labels, _ = draw_sequences(model)
    clean = model(exemplars, labels)[0]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter[1] = torch.nan
    exemplars[1] = torch.nan
    logits = model(exemplars, labels)[0]
    assert logits[1].isnan().any()
    assert torch.equal(logits[0::2], clean[0::2])
    model.zero_grad()
    logits[0::2].sum().backward()
    assert all(p.grad is not None and p.grad[0::2].isfinite().all() for p in model.parameters())
    exemplars[0, 1] = torch.nan
    assert torch.equal(model(exemplars, labels)[0][0, [0, 2]], clean[0, [0, 2]])


# --- initial weights -------------------------------------------------------------------------------------------------


def test_initial_weights_have_the_stated_distributions() -> None:
    config = ExemplarConfig(
        layers=2, width=64, heads=8, features=300, outputs=200, pairs=20, mlp=True, position="learned"
    )
    model = ExemplarTransformer(config, [0, 1])
    fan_in = {"embed_exemplar.weight": 300, "blocks.0.mlp.2.weight": 256, "blocks.1.mlp.2.weight": 256}
    for name, parameter in model.named_parameters():
        drawn = parameter.detach().double()
        if parameter.ndim == 2:
            assert (drawn == (1.0 if "norm" in name and name.endswith("weight") else 0.0)).all(), name
            continue
        if name == "position":
            truth = stats.uniform(-(32**-0.5), 2 * 32**-0.5)
            assert 0.99 * 32**-0.5 < drawn.abs().max() <= 32**-0.5 * (1 + 1e-6)
        else:
            std = 0.02 if name == "embed_label.weight" else fan_in.get(name, 64) ** -0.5
            truth = stats.truncnorm(-2, 2, scale=std)
            assert drawn.abs().max() <= 2 * std * (1 + 1e-6), name
        for member in drawn:
            assert stats.kstest(member.flatten().numpy(), truth.cdf).pvalue > 1e-3, name


def test_initial_weights_are_independent() -> None:
    """Of each other, of other members' and of torch's own random state; the same for the same seed."""
    config = ExemplarConfig(**{**SMALL, "features": 12, "outputs": 12})  # so that all matrices have one shape
    torch.manual_seed(0)
    state = torch.get_rng_state()
    model = ExemplarTransformer(config, [0, 1, 0, 256])
    assert torch.equal(torch.get_rng_state(), state)
    matrices = [p.detach() for p in model.parameters() if p.ndim == 3]
    assert len(matrices) == 11
    assert all(torch.equal(one[0], one[2]) for one in matrices)
    distinct = torch.stack(matrices)[:, [0, 1, 3]].flatten(0, 1).flatten(1)
    correlation = torch.corrcoef(distinct) - torch.eye(len(distinct))
    assert correlation.abs().max() < 5 / 12  # five standard deviations of 144 independent products
    torch.manual_seed(1)
    model.reset_parameters([1, 1, 0, 256])
    assert torch.equal(model.unembed.weight[0], model.unembed.weight[1])
    assert torch.equal(model.unembed.weight[2], matrices[-1][2])


# --- sites -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(build_exemplars: Build) -> ExemplarTransformer:
    return build_exemplars(mlp=True, position="rotary")


def recorded_by_plain(
    plain: Plain, model: ExemplarTransformer, exemplars: Tensor, labels: Tensor, **more: Any
) -> dict[str, Tensor]:
    """Every site [P*B,...] of the pass written out."""
    passes = [
        plain(weights_of(model, p), model.config, exemplars[p, b], labels[p, b].tolist(), **more)
        for p, b in itertools.product(*map(range, labels.shape[:2]))
    ]
    return {name: torch.stack([one[name] for one in passes]) for name in passes[0]}


def test_recorded_values(model: ExemplarTransformer, draw_sequences: Draw, plain_pass: Plain) -> None:
    """Alone and together; recording alters no bit but by the sum over heads."""
    exemplars, labels, _ = draw_sequences(model)
    expected = recorded_by_plain(plain_pass, model, exemplars, labels)
    bare, _ = model(exemplars, labels)
    logits, together = model(exemplars, labels, record=SITES)
    assert set(together) == set(SITES) == set(expected)
    close(logits, bare)
    for name in SITES:
        alone, recorded = model(exemplars, labels, record=[name])
        assert list(recorded) == [name]
        close(recorded[name], expected[name])
        close(together[name], expected[name])
        assert torch.equal(alone, bare) or name.endswith("head_out")


@pytest.mark.parametrize("site", SITES)
def test_interventions(model: ExemplarTransformer, draw_sequences: Draw, plain_pass: Plain, site: str) -> None:
    """What is forced at a site goes on from there, to all that reads it, in the examples named (members folded)."""
    exemplars, labels, _ = draw_sequences(model)  # 2 members of 3 sequences

    def edit(name: str, value: Tensor) -> Tensor:
        return torch.sin(value) * 0.7 + 0.1 if name == site else value

    edited = recorded_by_plain(plain_pass, model, exemplars, labels, edit=edit)
    untouched = recorded_by_plain(plain_pass, model, exemplars, labels)
    intervention = Intervention.apply(site, lambda x: torch.sin(x) * 0.7 + 0.1, examples=[1, 5])
    logits, recorded = model(exemplars, labels, record=SITES, interventions=[intervention])
    for name in SITES:
        expected = untouched[name].clone()
        expected[[1, 5]] = edited[name][[1, 5]]
        close(recorded[name], expected)
    close(logits.flatten(0, 1), recorded["logits"])
    assert not torch.allclose(logits.flatten(0, 1)[[1, 5]], untouched["logits"][[1, 5]])


@pytest.mark.parametrize("site", SITES)
def test_gradients_reach_what_was_recorded_and_not_what_was_replaced(
    model: ExemplarTransformer, draw_sequences: Draw, site: str
) -> None:
    exemplars, labels, _ = draw_sequences(model)
    logits, recorded = model(exemplars, labels, record=[site])
    assert torch.autograd.grad(logits.pow(3).sum(), recorded[site])[0].any()
    fixed = recorded[site].detach()
    again, _ = model(exemplars, labels, interventions=[Intervention.set(site, fixed)])
    close(again, logits)
    if site in ("logits", "final_norm"):  # nothing before them is needed
        assert again.requires_grad == (site == "final_norm")
        return
    reached = {
        name
        for name, parameter in model.named_parameters()
        if (grad := torch.autograd.grad(again.pow(3).sum(), parameter, retain_graph=True, allow_unused=True)[0])
        is not None and grad.any()
    }  # fmt: skip
    assert {"final_norm.weight", "unembed.weight"} <= reached
    layer, _, name = site.partition(".")
    if name in ("resid_pre", "resid_mid", "resid_post") or site == "embed":
        assert not any(name.startswith("embed") for name in reached)
    if name == "pattern":
        assert not {f"blocks.{layer}.attention.{part}.weight" for part in "qk"} & reached
        assert f"blocks.{layer}.attention.v.weight" in reached


def test_no_clamps_is_the_default(model: ExemplarTransformer, draw_sequences: Draw) -> None:
    exemplars, labels, target = draw_sequences(model)
    expected = model(exemplars, labels)[0]
    assert torch.equal(model(exemplars, labels, target, clamps=no_clamps(model.config, 2))[0], expected)


@pytest.mark.parametrize("names", [[], ["no-previous-token"], ["match"], ["copy"], ["layer-1", "pt-attend"]])
@pytest.mark.parametrize("keys", [[0], [1, 3], [0, 1, 2, 3, 4]])
@pytest.mark.parametrize("layer", [0, 1])
def test_rows_that_see_nothing(
    model: ExemplarTransformer, draw_sequences: Draw, names: list[Any], keys: list[int], layer: int
) -> None:
    """Scores of -inf for all that a row could see: zeros, not NaN, under every clamp, and finite gradients."""
    exemplars, labels, target = draw_sequences(model)
    heads = {"previous_token_heads": [0], "induction_heads": [1]}
    clamps = stack_clamps([make_clamps(model.config, names, **heads)] * 2)
    hide = Intervention.apply(f"{layer}.scores", lambda s: s.index_fill(-1, torch.tensor(keys), -torch.inf))
    logits, sites = model(exemplars, labels, target, clamps=clamps, record=["1.z"], interventions=[hide])
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten())
    model.zero_grad()
    loss.backward()
    assert loss.isfinite()
    assert sites["1.z"].isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"exemplars": (2, 3, 3, 6)}, r"exemplars: .*F=7.*\[2, 3, 3, 6\]"),
        ({"exemplars": (2, 3, 2, 7)}, r"exemplars: .*n \+ 1 = 3"),
        ({"exemplars": (1, 3, 3, 7)}, "exemplars: .*P=2"),
        ({"exemplars": (6, 3, 7)}, "exemplars: "),
        ({"labels": (2, 3, 3)}, r"labels must be integers \[P=2,B=3,n=2\], got torch.int64 \[2, 3, 3\]"),
        ({"labels": (2, 4, 2)}, "labels must"),
        ({"labels": (3, 2)}, "labels must"),
        ({"target": (3,)}, r"target must be integers \[P=2,B=3\]"),
        ({"target": (2, 3, 1)}, "target must"),
    ],
)
def test_bad_shapes(model: ExemplarTransformer, change: dict[str, tuple[int, ...]], message: str) -> None:
    shapes = {"exemplars": (2, 3, 3, 7), "labels": (2, 3, 2), "target": (2, 3)} | change
    exemplars = torch.zeros(shapes["exemplars"], dtype=torch.float64)
    with pytest.raises(InputError, match=message):
        model(exemplars, torch.zeros(shapes["labels"], dtype=torch.int64), torch.zeros(shapes["target"]).long())


def test_bad_arguments(model: ExemplarTransformer, draw_sequences: Draw) -> None:
    exemplars, labels, _ = draw_sequences(model)
    for bad, message in ((labels.float(), "must be integers"), (labels - 9, "holds -"), (labels + 8, "there are 8")):
        with pytest.raises(InputError, match=f"^labels {message}|^labels holds .*{message}"):
            model(exemplars, bad)
    with pytest.raises(InputError, match=r"^target holds 8, but there are 8 \(0 to 7\)$"):
        model(exemplars, labels, torch.full(labels.shape[:2], 8))
    for bad in (exemplars.long(), exemplars.tolist()):
        with pytest.raises(InputError, match=r"^exemplars must be floats"):
            model(bad, labels)
    with pytest.raises(InputError, match="clamps: are for 3 members, the model has 2"):
        model(exemplars, labels, clamps=no_clamps(model.config, 3))
    with pytest.raises(InputError, match=r"record: no site '2\.z'"):
        model(exemplars, labels, record=["2.z"])
    with pytest.raises(InputError, match="interventions: no site 'z'"):
        model(exemplars, labels, interventions=[Intervention.zero("z")])


@pytest.mark.parametrize(
    ("seeds", "outputs", "message"),
    [
        ([], None, "outputs"),
        ([0, 1], [8], "outputs"),
        ([0], [9], "outputs .*2 to 8"),
        ([0], [1], "outputs"),
        ([0, -1], None, "seeds .*0 to 65535"),
        (3, None, "seeds: must be a list, one for each member, got 3"),
        ([0, 1], 3, "outputs: must be a list, got 3"),
        ([0.5], None, "seeds: must be a whole number, got 0.5"),
        ([0], [2.5], "outputs: must be a whole number, got 2.5"),
        ([65536], None, "seeds"),
    ],
)
def test_bad_members(seeds: list[int], outputs: list[int] | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ExemplarTransformer(ExemplarConfig(**SMALL), seeds, outputs)


def test_seeds_of_other_members(model: ExemplarTransformer) -> None:
    with pytest.raises(InputError, match=r"seeds .* each of 2 members"):
        model.reset_parameters([0])
