"""Each clamp against its definition (Singh 2025, 4.4 and C.5.2), written out with plain passes of one sequence.

Logits, and the gradient of every weight; by table, which weights get none; and members with any mix of clamps.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from icl_fast.errors import InputError
from icl_fast.models import (
    Clamps,
    ExemplarShape,
    ExemplarTransformer,
    Intervention,
    make_clamps,
    no_clamps,
    stack_clamps,
)
from icl_fast.models.clamps import clamp_interventions

Build = Callable[..., ExemplarTransformer]
Draw = Callable[..., tuple[Tensor, Tensor, Tensor]]
Plain = Callable[..., dict[str, Tensor]]

H = 3  # heads of the models here
THESIS = [["pt-attend"], ["layer-1"], ["match"], ["copy"], ["layer-1+copy"], ["no-previous-token"]]


@dataclass
class Forced:
    """What is forced, in words: as arguments of make_clamps, and read by `clamped`."""

    names: list[str] = field(default_factory=list)
    previous: list[int] = field(default_factory=lambda: [2])
    induction: list[int] = field(default_factory=lambda: [1])
    removed: list[tuple[int, int]] = field(default_factory=list)
    temperature: dict[tuple[int, int], float] = field(default_factory=dict)

    def clamps(self, shape: ExemplarShape) -> Clamps:
        return make_clamps(
            shape,
            self.names,  # type: ignore[arg-type]
            previous_token_heads=self.previous,
            induction_heads=self.induction,
            without_heads=self.removed,
            temperature=list(self.temperature.items()),
        )


def clamped(
    plain: Plain, model: ExemplarTransformer, member: int, exemplars: Tensor, labels: list[int], target: int, to: Forced
) -> Tensor:
    """The logits [V] of one sequence."""
    weights, config = {name: w[member] for name, w in model.named_parameters()}, model.config
    names = "+".join(to.names).split("+")
    last, length = config.layers - 1, 2 * len(labels) + 1
    at_labels = range(1, length, 2)

    def edit(name: str, value: Tensor) -> Tensor:
        layer, _, local = name.partition(".")
        value = value.clone()
        if local == "scores":
            for (where, head), temperature in to.temperature.items():
                if where == int(layer):
                    value[head] = value[head] / temperature
            if "no-previous-token" in names and layer == "0":
                for t in at_labels:
                    value[:, t, t - 1] = -torch.inf
        if local == "pattern" and layer == "0" and "pt-attend" in names:
            for head, t in itertools.product(to.previous, range(length)):
                value[head, t] = 0
                value[head, t, max(t - 1, 0)] = 1
        if local == "pattern" and layer == str(last) and "match" in names:
            right = [t for t, label in zip(at_labels, labels, strict=True) if label == target]
            value[to.induction, -1] = 0
            for head, t in itertools.product(to.induction, right):
                value[head, -1, t] = 1 / len(right)
        if local == "z":
            for where, head in to.removed:
                if where == int(layer):
                    value[head] = 0
        return value

    if "layer-1" in names:  # two passes, the second with the patterns of the first
        x = plain(weights, config, exemplars, labels)["embed"]
        moved = torch.stack([x[0], *(x[t - 1] for t in range(1, length - 1)), x[-1]])  # A 0 B 1 A: A A 0 B A

        def first_pass(name: str, value: Tensor) -> Tensor:
            return moved if name == "1.resid_pre" else edit(name, value)

        cached = plain(weights, config, exemplars, labels, first_pass)
        forced = {"1.resid_pre": x, "1.pattern": cached["1.pattern"], "1.scores": cached["1.scores"]}
        seen = plain(weights, config, exemplars, labels, lambda name, value: forced.get(name, edit(name, value)))
    else:
        seen = plain(weights, config, exemplars, labels, edit)
    logits = seen["logits"].clone()
    logits[int(model.outputs[member]) :] = -1e9
    if "copy" in names:
        attention = seen[f"{last}.scores"][to.induction[0], -1]
        logits = torch.full_like(logits, -1e9)
        for label in set(labels):
            mine = [attention[t] for t, other in zip(at_labels, labels, strict=True) if other == label]
            logits[label] = torch.stack(mine).logsumexp(0)
    return logits


def check(
    plain: Plain, model: ExemplarTransformer, sequences: tuple[Tensor, Tensor, Tensor], members: list[Forced]
) -> None:
    """Logits and all gradients of a population against the definition."""
    exemplars, labels, target = sequences
    clamps = stack_clamps([forced.clamps(model.config) for forced in members])
    logits, _ = model(exemplars, labels, target, clamps=clamps)
    expected = torch.stack(
        [
            torch.stack(
                [
                    clamped(plain, model, p, x, own.tolist(), int(right), forced)
                    for x, own, right in zip(exemplars[p], labels[p], target[p], strict=True)
                ]
            )
            for p, forced in enumerate(members)
        ]
    )
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-10)
    ours, theirs = gradients(model, logits, target), gradients(model, expected, target)
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-8, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def gradients(model: ExemplarTransformer, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum")
    names, weights = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, weights, allow_unused=True)
    return {
        name: torch.zeros_like(weight) if gradient is None else gradient
        for name, weight, gradient in zip(names, weights, found, strict=True)
    }


# --- each clamp against its definition -------------------------------------------------------------------------------


CHANGES: list[dict[str, Any]] = [
    {},
    {"position": "learned", "pairs": 4},
    {"position": "sinusoidal", "pairs": 1},
    {"layers": 3, "mlp": True},
    {"layers": 1, "position": "none", "pairs": 4},
]
ONE_BY_ONE = [
    *(Forced(names) for names in THESIS),
    Forced(["pt-attend"], previous=[0, 1, 2]),
    Forced(["match"], induction=[0, 2]),
    Forced(["match", "layer-1"], induction=[0, 1, 2]),
    Forced(["pt-attend", "no-previous-token", "copy"], previous=[0]),
    Forced(removed=[(0, 1), (0, 2)]),
    Forced(temperature={(0, 2): 0.25, (0, 0): 4.0}),
]


@pytest.mark.parametrize(
    ("forced", "changes"),
    [
        pytest.param(forced, changes, id=f"{'+'.join(forced.names) or 'heads'} {changes}")
        for forced, changes in itertools.product(ONE_BY_ONE, CHANGES)
        if changes.get("layers") != 1 or "layer-1" not in "+".join(forced.names)  # which replaces one of two
    ],
)
def test_definition(
    build_exemplars: Build, draw_sequences: Draw, plain_pass: Plain, forced: Forced, changes: dict[str, Any]
) -> None:
    """Labels repeat in some contexts; members may have other outputs."""
    model = build_exemplars(known=[8, 3], **changes)
    check(plain_pass, model, draw_sequences(model), [forced, forced])


@settings(max_examples=30)
@given(st.data())
def test_any_mix(build_exemplars: Build, draw_sequences: Draw, plain_pass: Plain, data: st.DataObject) -> None:
    """Members of all kinds side by side, each with any number of clamps, heads and temperatures."""
    layers, members = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    names = [name for (name,) in THESIS if layers > 1 or not name.startswith("layer-1")]
    head = st.integers(0, H - 1)
    place = st.tuples(st.integers(0, layers - 1), head)
    some = st.lists(head, min_size=1, max_size=H, unique=True)

    def draw_member() -> Forced:
        chosen = data.draw(st.lists(st.sampled_from(names), unique=True, max_size=4))
        one = "copy" in "+".join(chosen)  # takes the outputs from one head
        return Forced(
            chosen,
            previous=data.draw(some),
            induction=[data.draw(head)] if one else data.draw(some),
            removed=data.draw(st.lists(place, unique=True, max_size=4)),
            temperature=data.draw(st.dictionaries(place, st.sampled_from([0.25, 0.5, 2.0, 8.0]), max_size=3)),
        )

    model = build_exemplars(
        members,
        layers=layers,
        pairs=data.draw(st.integers(1, 4)),
        mlp=data.draw(st.booleans()),
        position=data.draw(st.sampled_from(["learned", "rotary", "none"])),
        known=[data.draw(st.integers(2, 8)) for _ in range(members)],
    )
    check(plain_pass, model, draw_sequences(model, 2), [draw_member() for _ in range(members)])


@pytest.mark.parametrize("names", [*THESIS, ["pt-attend", "match", "no-previous-token"]], ids="+".join)
def test_clamps_are_a_list_of_interventions(build_exemplars: Build, draw_sequences: Draw, names: list[str]) -> None:
    """The model knows nothing of them but this list."""
    model = build_exemplars(known=[8, 5])
    exemplars, labels, target = draw_sequences(model)
    free, forced = no_clamps(model.config), Forced(names, removed=[(0, 0)], temperature={(1, 1): 0.5})
    clamps = stack_clamps([free, forced.clamps(model.config)])
    positions = model.positions(model.embed_exemplar(exemplars))
    interventions = clamp_interventions(clamps, model.blocks, positions, labels, target)
    assert interventions
    assert all(isinstance(one, Intervention) for one in interventions)
    by_list, _ = model(exemplars, labels, interventions=interventions)
    assert torch.equal(by_list, model(exemplars, labels, target, clamps=clamps)[0])
    assert torch.equal(by_list[0], model(exemplars, labels)[0][0])
    assert not torch.equal(by_list[1], model(exemplars, labels)[0][1])
    assert clamp_interventions(no_clamps(model.config, 2), model.blocks, positions, labels, None) == []


def test_clamps_written_by_hand(build_exemplars: Build, draw_sequences: Draw) -> None:
    """With what a user has: sites, heads and functions."""
    model = build_exemplars(1)
    exemplars, labels, target = draw_sequences(model)
    shift = torch.eye(5, dtype=torch.float64).roll(-1, 1)
    shift[0] = torch.eye(5)[0]
    by_hand = {
        "pt-attend": [Intervention.apply("0.pattern", lambda value: shift.expand_as(value), heads=[2])],
        "layer-1": [
            Intervention.apply("1.resid_pre", lambda _, embedded: embedded, reads=["embed"]),
            *(Intervention.set(name, value) for name, value in _seen_when_moved(model, exemplars, labels).items()),
        ],
    }
    for name, interventions in by_hand.items():
        clamps = make_clamps(model.config, [name])  # type: ignore[list-item]
        torch.testing.assert_close(
            model(exemplars, labels, interventions=interventions)[0],
            model(exemplars, labels, target, clamps=clamps)[0],
            rtol=1e-10,
            atol=1e-11,
        )


def _seen_when_moved(model: ExemplarTransformer, exemplars: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Queries and keys of the second layer where it reads "A A 0 B A" in place of "A 0 B 1 A"."""
    move = Intervention.apply("1.resid_pre", lambda _, x: x[:, [0, 0, 1, 2, 4]], reads=["embed"])
    return model(exemplars, labels, record=["1.q", "1.k"], interventions=[move])[1]


@pytest.fixture(scope="module")
def model(build_exemplars: Build) -> ExemplarTransformer:
    return build_exemplars(1, position="none")


A0B1A = torch.tensor([[[0, 1]]])  # labels of "A 0 B 1 A"


@pytest.fixture(scope="module")
def letters(model: ExemplarTransformer) -> Tensor:
    """Exemplars of "A 0 B 1 A"."""
    a, b = torch.randn(2, model.config.features, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return torch.stack([a, b, a])[None, None]


def patterns(
    model: ExemplarTransformer, letters: Tensor, name: str, target: int | None = None, **heads: Any
) -> dict[str, Tensor]:
    clamps = make_clamps(model.config, [name], **heads)  # type: ignore[list-item]
    sites = [f"{layer}.{site}" for layer in range(2) for site in ("k", "scores", "pattern")]
    logits, recorded = model(
        letters, A0B1A, None if target is None else torch.tensor([[target]]), clamps=clamps, record=sites
    )
    return {name: value[0] for name, value in recorded.items()} | {"logits": logits[0, 0]}


def test_previous_token_pattern(model: ExemplarTransformer, letters: Tensor) -> None:
    """The head's whole pattern is exact, "with post-softmax value 1"; others keep theirs."""
    free = patterns(model, letters, "pt-attend", previous_token_heads=[])["0.pattern"]
    pattern = patterns(model, letters, "pt-attend", previous_token_heads=[1])["0.pattern"]
    perfect = torch.tensor(
        [[1, 0, 0, 0, 0], [1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0]], dtype=torch.float64
    )
    assert torch.equal(pattern[1], perfect)
    assert torch.equal(pattern[[0, 2]], free[[0, 2]])


def test_match_pattern(model: ExemplarTransformer, letters: Tensor) -> None:
    """1 to the right label from the query, shared if it is there twice, none if it is not there; nothing else moves."""
    free = patterns(model, letters, "match", 0, induction_heads=[])["1.pattern"]
    for target, row in ((0, [0, 1, 0, 0, 0]), (1, [0, 0, 0, 1, 0]), (5, [0, 0, 0, 0, 0])):
        pattern = patterns(model, letters, "match", target, induction_heads=[2])["1.pattern"]
        assert pattern[2, -1].tolist() == row
        assert torch.equal(pattern[2, :-1], free[2, :-1])
        assert torch.equal(pattern[:2], free[:2])
    _, recorded = model(
        letters,
        torch.tensor([[[4, 4]]]),
        torch.tensor([[4]]),
        clamps=make_clamps(model.config, ["match"], induction_heads=[2]),
        record=["1.pattern"],
    )
    assert recorded["1.pattern"][0, 2, -1].tolist() == [0, 0.5, 0, 0.5, 0]


def test_copied_logits(model: ExemplarTransformer, letters: Tensor) -> None:
    """Of the two labels the head's attention logits, of all others -1e9."""
    seen = patterns(model, letters, "copy", induction_heads=[1])
    assert torch.equal(seen["logits"][:2], seen["1.scores"][1, -1, [1, 3]])
    assert (seen["logits"][2:] == -1e9).all()


def test_keys_of_a_perfect_first_layer(model: ExemplarTransformer, letters: Tensor) -> None:
    """Those of the second layer on "A A 0 B A", so that the query, A, equals the key of its label's position."""
    k = patterns(model, letters, "layer-1")["1.k"]
    torch.testing.assert_close(k[:, 0], k[:, 1])  # A A
    torch.testing.assert_close(k[:, 4], k[:, 1])  # A
    assert not torch.isclose(k[:, 3], k[:, 1]).any()  # B
    other = letters.clone()
    other[0, 0, 1] += 1  # another B: only the position of its label and its own value change
    moved = patterns(model, other, "layer-1")["1.k"]
    assert [t for t in range(5) if not torch.allclose(moved[:, t], k[:, t])] == [3]


def test_no_label_attends_to_its_exemplar(model: ExemplarTransformer, letters: Tensor) -> None:
    free = patterns(model, letters, "pt-attend", previous_token_heads=[])
    seen = patterns(model, letters, "no-previous-token")
    pattern, before = seen["0.pattern"], free["0.pattern"].clone()
    assert torch.equal(seen["0.scores"], free["0.scores"])
    before[:, [1, 3], [0, 2]] = 0
    torch.testing.assert_close(pattern, before / before.sum(-1, keepdim=True), rtol=1e-12, atol=0)
    assert (pattern[:, [1, 3], [0, 2]] == 0).all()
    assert (seen["1.pattern"][:, [1, 3], [0, 2]] > 0).all()  # the second layer may


def test_temperature(model: ExemplarTransformer, letters: Tensor) -> None:
    """The pattern is that of scores divided by it: nearly even when hot, on the largest when cold."""
    shape = model.config
    free = model(letters, A0B1A, record=["1.scores", "1.pattern"])[1]
    for temperature in (1e9, 1e-9, 3.0):
        clamps = make_clamps(shape, temperature=[((1, 0), temperature)])
        seen = model(letters, A0B1A, clamps=clamps, record=["1.scores", "1.pattern"])[1]
        value = float(clamps.temperature[0, 1, 0])  # float32
        expected = (free["1.scores"][0, 0, -1] / value).softmax(-1)
        torch.testing.assert_close(seen["1.pattern"][0, 0, -1], expected, rtol=1e-9, atol=1e-12)
        assert torch.equal(seen["1.pattern"][0, 1:], free["1.pattern"][0, 1:])
        if temperature == 1e9:
            torch.testing.assert_close(expected, torch.full((5,), 0.2, dtype=torch.float64), rtol=1e-6, atol=0)
        if temperature == 1e-9:
            assert expected.max() == 1


def test_heads_that_write(build_exemplars: Build, draw_sequences: Draw) -> None:
    """Only these, without those: as with the columns of the others in the output projections set to 0."""
    model = build_exemplars(1, layers=3)
    exemplars, labels, _ = draw_sequences(model)
    width = model.config.d_head
    cases = [
        ({"only_heads": [(1, 2)]}, [(1, 0), (1, 1)]),
        ({"only_heads": [(0, 1), (2, 0), (2, 2)]}, [(0, 0), (0, 2), (2, 1)]),
        ({"without_heads": [(0, 0), (2, 1)]}, [(0, 0), (2, 1)]),
        ({"only_heads": [(1, 0), (1, 1)], "without_heads": [(1, 1), (0, 2)]}, [(1, 1), (1, 2), (0, 2)]),
    ]
    for arguments, removed in cases:
        weights = {name: w.clone() for name, w in model.state_dict().items()}
        for layer, head in removed:
            weights[f"blocks.{layer}.attention.out.weight"][..., head * width : (head + 1) * width] = 0
        expected, _ = torch.func.functional_call(model, weights, (exemplars, labels))
        clamps = make_clamps(model.config, **arguments)  # type: ignore[arg-type]
        torch.testing.assert_close(model(exemplars, labels, clamps=clamps)[0], expected, rtol=1e-10, atol=1e-11)


# --- gradients -------------------------------------------------------------------------------------------------------

FIRST, SECOND = "blocks.0.", "blocks.1."
LATE = [SECOND + "attention.v", SECOND + "attention.out", SECOND + "norm2", SECOND + "mlp", "final_norm", "unembed"]
QK = ["attention.q", "attention.k"]
NO_GRADIENT: list[tuple[dict[str, Any], list[str]]] = [  # what is forced: the weights (by their beginning) without any
    ({}, []),
    ({"names": ["pt-attend"]}, []),
    ({"names": ["pt-attend"], "previous_token_heads": [0, 1, 2]}, [FIRST + part for part in QK]),
    ({"names": ["no-previous-token"]}, []),
    ({"names": ["layer-1"]}, [FIRST]),
    ({"names": ["match"]}, []),
    ({"names": ["match"], "induction_heads": [0, 1, 2]}, [SECOND + part for part in QK]),
    ({"names": ["match", "layer-1"], "induction_heads": [0, 1, 2]}, [FIRST, *(SECOND + part for part in QK)]),
    ({"names": ["copy"]}, LATE),
    # keys at labels are those of exemplars, so that the labels are not read either
    ({"names": ["layer-1+copy"]}, [FIRST, "embed_label", *LATE]),
    ({"without_heads": [(0, 0), (0, 1), (0, 2)]}, [FIRST + "norm1", FIRST + "attention"]),
    ({"without_heads": [(1, 0), (1, 1), (1, 2)]}, [SECOND + "norm1", SECOND + "attention"]),
    ({"without_heads": [(1, 1)]}, []),
    ({"only_heads": [(1, 1)]}, []),
    ({"temperature": [((0, 0), 2.0), ((1, 1), 0.5)]}, []),
]
QK_AND_OTHERS = {"1.q": {0, 1, 2}, "1.k": {0, 1, 2}, "1.v": {0, 2}, "1.out": {0, 2}}
NO_GRADIENT_BY_HEAD: list[tuple[dict[str, Any], dict[str, set[int]]]] = [  # layer and weight: heads without any
    ({}, {}),
    ({"names": ["pt-attend"]}, {"0.q": {2}, "0.k": {2}}),
    ({"names": ["no-previous-token"]}, {}),
    ({"names": ["match"]}, {"1.q": {1}, "1.k": {1}}),
    ({"names": ["copy"]}, {"1.q": {0, 2}, "1.k": {0, 2}, "1.v": {0, 1, 2}, "1.out": {0, 1, 2}}),
    ({"names": ["layer-1"]}, {f"0.{part}": {0, 1, 2} for part in ("q", "k", "v", "out")}),
    ({"without_heads": [(1, 1)]}, {f"1.{part}": {1} for part in ("q", "k", "v", "out")}),
    ({"only_heads": [(1, 1)]}, {f"1.{part}": {0, 2} for part in ("q", "k", "v", "out")}),
    ({"only_heads": [(1, 1)], "names": ["match"]}, QK_AND_OTHERS),
]


def gradients_under(model: ExemplarTransformer, draw: Draw, forced: dict[str, Any]) -> dict[str, Tensor]:
    exemplars, labels, target = draw(model, 6)
    clamps = make_clamps(model.config, **{"previous_token_heads": [2], "induction_heads": [1], **forced})
    return gradients(model, model(exemplars, labels, target, clamps=clamps)[0], target)


@pytest.mark.parametrize(("forced", "beginnings"), NO_GRADIENT, ids=str)
def test_which_weights_get_no_gradient(
    build_exemplars: Build, draw_sequences: Draw, forced: dict[str, Any], beginnings: list[str]
) -> None:
    """Exactly 0, in all of the weight; every other weight gets some."""
    model = build_exemplars(1, position="learned", mlp=True)
    for name, gradient in gradients_under(model, draw_sequences, forced).items():
        assert bool(gradient.any()) != name.startswith(tuple(beginnings)), name


@pytest.mark.parametrize(("forced", "without"), NO_GRADIENT_BY_HEAD, ids=str)
def test_which_heads_get_no_gradient(
    build_exemplars: Build, draw_sequences: Draw, forced: dict[str, Any], without: dict[str, set[int]]
) -> None:
    model = build_exemplars(1)
    found = gradients_under(model, draw_sequences, forced)
    for layer, part in itertools.product(range(2), ("q", "k", "v", "out")):
        gradient = found[f"blocks.{layer}.attention.{part}.weight"][0]
        by_head = (gradient if part != "out" else gradient.T).unflatten(0, (H, -1)).flatten(1).any(-1)
        none = {head for head in range(H) if not by_head[head]}
        assert none == without.get(f"{layer}.{part}", set()), (layer, part)


def test_layer_1_gradients_of_positions(build_exemplars: Build, draw_sequences: Draw) -> None:
    """With the copy clamp only those of exemplars are read, where they stood before they were moved on."""
    model = build_exemplars(1, position="learned", pairs=3)
    gradient = gradients_under(model, draw_sequences, {"names": ["layer-1+copy"]})["position"][0]
    assert gradient.any(-1).tolist() == [True, False, True, False, True, False, True]


# --- members ---------------------------------------------------------------------------------------------------------


def test_a_member_is_its_model_alone(build_exemplars: Build, draw_sequences: Draw) -> None:
    """With clamps and outputs of its own: logits and gradients of training alone."""
    members = [Forced(names, induction=[p % H]) for p, names in enumerate([*THESIS, [], ["match", "pt-attend"]])]
    members[-2].removed, members[0].temperature = [(1, 0), (0, 2)], {(1, 1): 0.5}
    known = [8, 2, 5, 7, 3, 8, 4, 6]
    population = build_exemplars(len(members), known=known, mlp=True, position="learned")
    exemplars, labels, target = draw_sequences(population)
    clamps = stack_clamps([forced.clamps(population.config) for forced in members])
    logits, _ = population(exemplars, labels, target, clamps=clamps)
    found = gradients(population, logits, target)
    for p, forced in enumerate(members):
        alone = build_exemplars(1, known=[known[p]], mlp=True, position="learned")
        alone.load_state_dict({name: value[p : p + 1] for name, value in population.state_dict().items()})
        one = slice(p, p + 1)
        own, _ = alone(exemplars[one], labels[one], target[one], clamps=forced.clamps(alone.config))
        torch.testing.assert_close(logits[one], own, rtol=1e-10, atol=1e-11)
        for name, gradient in gradients(alone, own, target[one]).items():
            torch.testing.assert_close(found[name][one], gradient, rtol=1e-9, atol=1e-10)


def test_interventions_act_after_clamps(model: ExemplarTransformer, letters: Tensor) -> None:
    target = torch.tensor([[0]])
    match = make_clamps(model.config, ["match"], induction_heads=[0, 1, 2])
    even = torch.full((1, H, 5, 5), 0.2, dtype=torch.float64)
    again = [Intervention.set("1.pattern", even)]
    assert torch.equal(
        model(letters, A0B1A, target, clamps=match, interventions=again)[0],
        model(letters, A0B1A, interventions=again)[0],
    )
    copy = make_clamps(model.config, ["copy"], induction_heads=[1])
    logits, _ = model(letters, A0B1A, clamps=copy, interventions=[Intervention.apply("1.scores", lambda x: 0 * x + 7)])
    assert logits[0, 0].tolist() == [7, 7, *[-1e9] * 6]
    # what layer-1 goes on with is the embedded sequence after what is forced there
    layer_1 = make_clamps(model.config, ["layer-1+copy"], induction_heads=[1])
    zero = [Intervention.zero("embed")]
    _, seen = model(letters, A0B1A, clamps=layer_1, interventions=zero, record=["1.resid_pre", "1.k"])
    assert not seen["1.resid_pre"].any()
    torch.testing.assert_close(seen["1.k"], seen["1.k"][:, :, :1].expand(-1, -1, 5, -1))


def test_one_layer_has_none_before_it_in_clamps_made_elsewhere(build_exemplars: Build, draw_sequences: Draw) -> None:
    model = build_exemplars(1, layers=1)
    clamps = replace(no_clamps(model.config), first_layer=torch.tensor([True]))
    with pytest.raises(InputError, match=r"clamps: layer-1 .*only one"):
        model(*draw_sequences(model), clamps=clamps)


def test_match_needs_the_target(model: ExemplarTransformer, letters: Tensor) -> None:
    with pytest.raises(InputError, match="target: the clamp match"):
        model(letters, A0B1A, clamps=make_clamps(model.config, ["match"], induction_heads=[0]))
