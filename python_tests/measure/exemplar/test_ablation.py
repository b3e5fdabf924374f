"""Ablations, wiring, copying and superposition against one sequence at a time, head by head, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from icl_fast.data.evaluation_sequences import EvaluationSequences, evaluation_sequences
from icl_fast.data.exemplars import Exemplars, gaussian_classes
from icl_fast.data.sequence_config import SequenceConfig
from icl_fast.data.sequences import output_labels
from icl_fast.errors import InputError
from icl_fast.measure.exemplar.ablation import (
    composition,
    cut_output_connections,
    embedding_path,
    keep_one_head,
    knock_out_each_head,
)
from icl_fast.measure.exemplar.answers import METRICS, StrategyMetrics
from icl_fast.measure.exemplar.measured_model import MeasuredModel, SecondPass
from icl_fast.measure.exemplar.single_heads import attention_weight_curve, residual_heads, single_heads
from icl_fast.measure.exemplar.strategies import evaluate_strategies
from icl_fast.measure.exemplar.superposition import attention_deltas, delta_correlations, temperature_curves
from icl_fast.measure.exemplar.wiring import PRESERVE, composition_scores, remove_sets, wiring_map
from icl_fast.models import ExemplarConfig, ExemplarTransformer, make_clamps, stack_clamps

HEADS = 3
COUNT = 23
CONFIG = SequenceConfig(labels_per_class=2)
Row = Callable[[Tensor, list[bool]], Tensor]  # the query's scores over all positions, which labels are right


@dataclass
class World:
    """A population, its exemplars, and an evaluator's sequences (the same for all members)."""

    model: ExemplarTransformer
    features: Tensor
    evaluator: EvaluationSequences

    @property
    def measured(self) -> MeasuredModel:
        return MeasuredModel(self.model, self.features, self.evaluator)


def made(name: str = "icl", config: SequenceConfig = CONFIG, count: int = COUNT, **shape: object) -> World:
    exemplars = gaussian_classes(12, 2, 6, seed=1)
    values: dict[str, Any] = {"width": 12, "heads": HEADS, **shape}
    full = ExemplarConfig(features=6, outputs=output_labels(config, exemplars), pairs=config.pairs, **values)
    model = ExemplarTransformer(full, [0, 1]).double()
    torch.manual_seed(3)
    with torch.no_grad():
        model.embed_label.weight.mul_(50)
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name or parameter_name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return World(model, exemplars.features.double(), evaluation_sequences(name, config, exemplars, count))


@pytest.fixture(scope="module")
def world() -> World:
    return made()


@dataclass
class Naive:
    """One member, one sequence at a time: what is removed, preserved and forced."""

    world: World
    member: int
    removed: set[tuple[int, int]] = field(default_factory=set)
    preserve: tuple[str, ...] = ()
    embedding: float = 1.0
    rows: dict[int, Row] = field(default_factory=dict)

    def logits(self, number: int) -> Tensor:
        kept = self._pass(number, {}, whole=True)[1]
        return self._pass(number, kept, whole=False)[0]

    def scores(self, number: int) -> tuple[dict[tuple[str, int, int], Tensor], list[bool]]:
        return self._pass(number, {}, whole=True)[1], self._right(number)

    def _right(self, number: int) -> list[bool]:
        correct = set(self.world.evaluator.correct[number].tolist())
        return [label in correct for label in self.world.evaluator.sequences.labels[number].tolist()]

    def _pass(
        self, number: int, kept: dict[tuple[str, int, int], Tensor], *, whole: bool
    ) -> tuple[Tensor, dict[tuple[str, int, int], Tensor]]:
        weights = {name: value[self.member] for name, value in self.world.model.state_dict().items()}
        config, one = self.world.model.config, self.world.evaluator.sequences[number]
        stream = torch.zeros(config.length, config.width, dtype=torch.float64)
        for i in range(config.pairs + 1):
            exemplar = self.world.features[one.classes[i], one.exemplars[i]]
            stream[2 * i] = weights["embed_exemplar.weight"] @ exemplar + weights["embed_exemplar.bias"]
        for i in range(config.pairs):
            stream[2 * i + 1] = weights["embed_label.weight"][one.labels[i]]
        if config.position == "learned":
            stream = stream + weights["position"]
        if not whole:
            stream = stream * self.embedding
        seen: dict[tuple[str, int, int], Tensor] = {}
        width = config.d_head
        for layer in range(config.layers):
            prefix = f"blocks.{layer}."
            normed = self._norm(weights, prefix + "norm1", stream)
            out = torch.zeros_like(stream)
            for head in range(config.heads):
                part = slice(head * width, (head + 1) * width)
                found = {name: normed @ weights[f"{prefix}attention.{name}.weight"][part].T for name in "qkv"}
                if config.position == "rotary":
                    found["q"], found["k"] = turned(found["q"]), turned(found["k"])
                for name in "qkv":
                    if not whole and name in self.preserve:
                        found[name] = kept[name, layer, head]
                scores = found["q"] @ found["k"].T / math.sqrt(width)
                pattern = torch.zeros_like(scores)
                for t in range(config.length):
                    pattern[t, : t + 1] = scores[t, : t + 1].softmax(0)
                if not whole and "pattern" in self.preserve:
                    pattern = kept["pattern", layer, head]
                if not whole and layer == config.layers - 1 and head in self.rows:
                    pattern = pattern.clone()
                    pattern[-1] = self.rows[head](kept["scores", layer, head][-1], self._right(number))
                seen |= {(name, layer, head): value for name, value in found.items()}
                seen["pattern", layer, head], seen["scores", layer, head] = pattern, scores
                if whole or (layer, head) not in self.removed:
                    out += pattern @ found["v"] @ weights[f"{prefix}attention.out.weight"][:, part].T
            stream = stream + out
            if config.mlp:
                hidden = self._norm(weights, prefix + "norm2", stream) @ weights[prefix + "mlp.0.weight"].T
                hidden = F.gelu(hidden + weights[prefix + "mlp.0.bias"])
                stream = stream + hidden @ weights[prefix + "mlp.2.weight"].T + weights[prefix + "mlp.2.bias"]
        final = self._norm(weights, "final_norm", stream)[-1]
        return weights["unembed.weight"] @ final + weights["unembed.bias"], seen

    def _norm(self, weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        scale = (centred.square().mean(1, keepdim=True) + self.world.model.config.norm_eps).sqrt()
        return centred / scale * weights[name + ".weight"] + weights[name + ".bias"]

    def correct(self, number: int) -> bool:
        return int(self.logits(number).argmax()) in self.world.evaluator.correct[number].tolist()

    def means(self) -> dict[str, float]:
        rows: dict[str, list[float]] = {name: [] for name in METRICS}
        for number in range(len(self.world.evaluator.sequences)):
            logits, sequence = self.logits(number), self.world.evaluator.sequences[number]
            correct = sorted(set(self.world.evaluator.correct[number].tolist()))
            shown, weights = sorted(set(sequence.labels.tolist())), logits.softmax(0)
            rows["accuracy"].append(float(int(logits.argmax()) in correct))
            rows["probability"].append(float(weights[correct].sum()))
            rows["loss"].append(-float(weights[sequence.target].log()))
            if set(shown) & set(correct):
                best = max(shown, key=lambda label: float(logits[label]))
                rows["accuracy_in_context"].append(float(best in correct))
                right = sum(float(weights[label]) for label in shown if label in correct)
                rows["probability_in_context"].append(right / float(weights[shown].sum()))
        return {name: sum(values) / len(values) if values else math.nan for name, values in rows.items()}


def turned(x: Tensor) -> Tensor:
    """Neighbouring dimensions are a complex number, turned by the position over base^(2i/width)."""
    length, width = x.shape
    numbers = torch.view_as_complex(x.reshape(length, width // 2, 2))
    planes = torch.arange(0, width, 2, dtype=torch.float64) / width
    angles = torch.arange(length)[:, None] / 10_000**planes
    return torch.view_as_real(numbers * torch.polar(torch.ones_like(angles), angles)).reshape(length, width)


def check(found: StrategyMetrics, index: tuple[int, ...], expected: dict[str, float]) -> None:
    for name in METRICS:
        value = float(getattr(found, name)[index])
        assert value == pytest.approx(expected[name], abs=1e-9, nan_ok=True), (name, index)


def all_but(layer: int, head: int, heads: int = HEADS) -> set[tuple[int, int]]:
    return {(layer, other) for other in range(heads) if other != head}


def layer_heads(*layers: int) -> set[tuple[int, int]]:
    return {(layer, head) for layer in layers for head in range(HEADS)}


@pytest.mark.parametrize("shape", [{}, {"layers": 3, "position": "learned", "mlp": True}, {"layers": 1}])
def test_knocking_out_and_keeping(shape: dict[str, object]) -> None:
    world = made("ciwl", count=11, **shape)
    layers = world.model.config.layers
    each, only = knock_out_each_head(world.measured), keep_one_head(world.measured)
    assert each.loss.shape == (layers, HEADS, 2)
    assert only.loss.shape == (HEADS, 2)
    for layer in range(layers):
        for head in range(HEADS):
            check(each, (layer, head, 1), Naive(world, 1, {(layer, head)}).means())
    for head in range(HEADS):
        check(only, (head, 0), Naive(world, 0, all_but(layers - 1, head)).means())
    if layers > 1:
        first = keep_one_head(world.measured, layer=0)
        check(first, (2, 1), Naive(world, 1, all_but(0, 2)).means())


@pytest.mark.parametrize("shape", [{}, {"layers": 3, "position": "none"}])
def test_connections_to_the_output(shape: dict[str, object]) -> None:
    world = made(count=11, **shape)
    found = cut_output_connections(world.measured)
    for layer in range(world.model.config.layers):
        expected = Naive(world, 1, layer_heads(layer), ("pattern", "v")).means()
        check(found, (layer, 1), expected)


def test_composition_preserves_all_but_one_kind(world: World) -> None:
    found = composition(world.measured)
    whole = evaluate_strategies(world.model, world.features, [world.evaluator])["icl"]
    assert torch.allclose(found["whole"].loss, whole.loss)
    preserved = {
        "all preserved": ("q", "k", "v"),
        "all but q": ("k", "v"),
        "all but k": ("q", "v"),
        "all but v": ("q", "k"),
        "none preserved": (),
    }
    assert list(found) == ["whole", *preserved]
    for name, kinds in preserved.items():
        check(found[name], (0,), Naive(world, 0, layer_heads(0), kinds).means())
    cut = cut_output_connections(world.measured)
    assert torch.allclose(found["all preserved"].loss, cut.loss[0])


@pytest.mark.parametrize("shape", [{}, {"layers": 1, "position": "learned"}])
def test_the_path_without_heads_and_the_heads_without_it(shape: dict[str, object]) -> None:
    world = made("iwl", count=9, **shape)
    found = embedding_path(world.measured)
    layers = range(world.model.config.layers)
    check(found["alone"], (0,), Naive(world, 0, layer_heads(*layers)).means())
    check(found["removed"], (1,), Naive(world, 1, set(), ("pattern", "v"), 0.0).means())
    assert found["whole"].accuracy_in_context.isnan().all()


def test_wiring_map_is_a_pass_for_every_pair() -> None:
    world = made(count=7)
    found = wiring_map(world.measured)
    assert dict(found["loss"].sizes) == {"kind": 2, "preserve": 2, "writer": HEADS, "reader": HEADS, "member": 2}
    for preserve in PRESERVE:
        for writer in range(HEADS):
            for reader in range(HEADS):
                for kind, gone in (("single", {(0, writer)}), ("single-pair", all_but(0, writer))):
                    expected = Naive(world, 1, gone | all_but(1, reader), PRESERVE[preserve]).means()
                    one = found.sel(kind=kind, preserve=preserve, writer=f"0.{writer}", reader=f"1.{reader}", member=1)
                    for name in METRICS:
                        assert float(one[name]) == pytest.approx(expected[name], abs=1e-9), (kind, preserve)
    for reader in range(HEADS):
        alone = found.sel(reader=f"1.{reader}", member=0)
        expected = Naive(world, 0, all_but(1, reader)).means()
        assert float(alone["loss_alone"]) == pytest.approx(expected["loss"], abs=1e-9)


def test_wiring_between_any_two_layers() -> None:
    world = made(count=5, layers=3)
    found = wiring_map(world.measured, writers=-2, readers=2).sel(kind="single", preserve="pattern-preserving")
    assert found["writer"].values.tolist() == ["1.0", "1.1", "1.2"]
    expected = Naive(world, 0, {(1, 2), *all_but(2, 1)}, ("pattern",)).means()
    assert float(found["loss"].sel(writer="1.2", reader="2.1", member=0)) == pytest.approx(expected["loss"], abs=1e-9)
    for wrong in ({"readers": 0}, {"writers": 2}, {"readers": 3}):
        with pytest.raises(InputError, match="the first one earlier"):
            wiring_map(world.measured, **wrong)
    with pytest.raises(InputError, match=r"^writers: must be a whole number, got 0.0"):
        wiring_map(world.measured, writers=0.0)  # type: ignore[arg-type]
    for layer in (3, -4, 1.5):  # nothing wraps around
        with pytest.raises(InputError, match=r"^layer: must be "):
            keep_one_head(world.measured, layer=layer)  # type: ignore[arg-type]


def test_sets_of_heads_removed(world: World) -> None:
    sets = {"previous token": [(0, 1)], "rest": [(0, 0), (0, 2)], "across": [(0, 0), (1, 1)]}
    found = remove_sets(world.measured, sets)
    for name, heads in sets.items():
        for preserve, kinds in PRESERVE.items():
            expected = Naive(world, 1, set(heads), kinds).means()
            one = found.sel(set=name, preserve=preserve, member=1)
            assert {key: float(one[key]) for key in METRICS} == pytest.approx(expected, abs=1e-9)
    for wrong, message in (([(2, 0)], r"head 2\.0"), ([(0, 1), (0, 1)], "more than once"), ([0], r"\(layer, head\)")):
        with pytest.raises(InputError, match=message):
            remove_sets(world.measured, {"none such": wrong})  # type: ignore[dict-item]
    with pytest.raises(InputError, match="sets"):
        remove_sets(world.measured, {})


def test_planted_wiring_is_found() -> None:
    """Writer 0.1 copies the exemplar before a label; reader 1.2 matches it and copies the label; the rest is zero."""
    model, exemplars = planted()
    config = SequenceConfig(p_icl=1.0, label_pool=8)
    evaluator = evaluation_sequences("train", config, exemplars, 60)
    clamps = make_clamps(model.config, ["pt-attend"], previous_token_heads=[1])
    whole = evaluate_strategies(model, exemplars.features.double(), [evaluator], clamps, attention=True)["train"]
    assert float(whole.accuracy) == 1
    assert whole.attention is not None
    # the first position attends to itself, so that it holds the same as the label after it
    first = evaluator.sequences.labels[:, 0] == evaluator.sequences.target
    assert float(whole.attention.induction[0, 1, 2]) == pytest.approx(1 - float(first.double().mean()) / 2, abs=1e-3)
    measured = MeasuredModel(model, exemplars.features.double(), evaluator, clamps)
    found = wiring_map(measured).isel(member=0)
    values = found.sel(preserve="value-preserving")
    loss = values["loss"].sel(kind="single-pair").values
    assert loss[1, 2] < 0.05
    assert np.allclose(np.delete(loss[:, 2], 1), math.log(2), atol=0.1)  # attends to both labels alike
    assert np.allclose(np.delete(loss, 2, axis=1), math.log(8), atol=1e-9)  # writes nothing
    change = values["loss"].sel(kind="single").values - found["loss_alone"].values
    assert change[1, 2] > 0.5
    change[1, 2] = 0
    assert np.abs(change).max() < 1e-9
    patterns = found.sel(preserve="pattern-preserving")["loss"]
    assert float(patterns.sel(reader="1.2").max()) < 0.05  # its values do not come from the first layer
    for name in ("composition", "composition_folded"):
        composed = found[name].sel(matrix="k").values
        assert composed[1, 2] > 0.3
        assert np.nansum(composed) == pytest.approx(composed[1, 2])
    paths = composition(measured)
    for name in ("all but q", "all but v"):
        assert float(paths[name].accuracy) == 1, name
    assert float(paths["all but k"].accuracy) < 0.8


def planted() -> tuple[ExemplarTransformer, Exemplars]:
    """Eight numbers each for: the exemplar, the label, the exemplar before, the output."""
    exemplars = Exemplars(torch.eye(8)[:, None], torch.arange(8))
    config = ExemplarConfig(features=8, outputs=8, pairs=2, width=32, heads=4, position="none")
    model = ExemplarTransformer(config).double()
    this, label, before, output = (slice(start, start + 8) for start in range(0, 32, 8))
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if not parameter_name.endswith(("norm1.weight", "final_norm.weight")):
                parameter.zero_()
        identity = torch.eye(8, dtype=torch.float64)
        parts = dict(model.named_parameters())
        parts["embed_exemplar.weight"][0, this] = identity
        parts["embed_label.weight"][0, :, label] = identity
        writer, reader = slice(8, 16), slice(16, 24)
        parts["blocks.0.attention.v.weight"][0, writer, this] = identity
        parts["blocks.0.attention.out.weight"][0, before, writer] = identity
        parts["blocks.1.attention.q.weight"][0, reader, this] = 3 * identity
        parts["blocks.1.attention.k.weight"][0, reader, before] = 3 * identity
        parts["blocks.1.attention.v.weight"][0, reader, label] = identity
        parts["blocks.1.attention.out.weight"][0, output, reader] = 4 * identity
        parts["unembed.weight"][0, :, output] = 4 * identity
    return model, exemplars


@pytest.mark.parametrize("folded", [False, True])
def test_composition_scores_are_products_of_weights(world: World, folded: bool) -> None:
    found = composition_scores(world.model, folded=folded)
    weights = world.model.state_dict()
    width = world.model.config.d_head
    for member in range(2):
        for writer in range(HEADS):
            columns = slice(writer * width, (writer + 1) * width)
            w_o = weights["blocks.0.attention.out.weight"][member][:, columns].T
            w_o = w_o - w_o.mean(1, keepdim=True) * folded
            for reader in range(HEADS):
                rows = slice(reader * width, (reader + 1) * width)
                for name in "qkv":
                    read = weights[f"blocks.1.attention.{name}.weight"][member][rows]
                    if folded:
                        read = read * weights["blocks.1.norm1.weight"][member]
                        read = read - read.mean(1, keepdim=True)
                    read = read.T
                    expected = (w_o @ read).norm() / (w_o.norm() * read.norm())
                    assert float(found[name][member, 0, writer, 1, reader]) == pytest.approx(float(expected))
        assert found["q"][member, 1].isnan().all()


@pytest.mark.parametrize("perfect", [False, True])
def test_heads_alone_by_label(world: World, perfect: bool) -> None:
    found = single_heads(world.measured, perfect=perfect)
    sequences = world.evaluator.sequences

    def row(_: Tensor, right: list[bool]) -> Tensor:
        weights = torch.zeros(5, dtype=torch.float64)
        weights[1::2] = torch.tensor(right).double() / max(1, sum(right))
        return weights

    for member in range(2):
        for head in range(HEADS):
            rows: dict[int, Row] = dict.fromkeys(range(HEADS), row) if perfect else {}
            naive = Naive(world, member, all_but(1, head), rows=rows)
            correct = [naive.correct(number) for number in range(COUNT)]
            assert found.correct[member, head].tolist() == correct
            assert float(found.accuracy[member, head]) == pytest.approx(sum(correct) / COUNT)
            for label in range(world.model.config.outputs):
                of_label = [c for c, t in zip(correct, sequences.target.tolist(), strict=True) if t == label]
                accuracy = float(found.label_accuracy[member, head, label])
                assert accuracy == pytest.approx(sum(of_label) / len(of_label) if of_label else math.nan, nan_ok=True)
                mistakes = float(found.label_mistakes[member, head, label])
                wrong = COUNT - sum(correct)
                expected = (len(of_label) - sum(of_label)) / wrong if wrong else math.nan
                assert mistakes == pytest.approx(expected, nan_ok=True)


def test_residual_heads_are_counted_on_the_mistakes_of_one(world: World) -> None:
    heads = single_heads(world.measured)
    for reference in (None, 1, [0, 2]):
        found = residual_heads(heads, reference)
        for member in range(2):
            chosen = int(found.reference[member])
            if reference is None:
                assert found.overall[member, chosen] == found.overall[member].max()
            else:
                assert chosen == (reference if isinstance(reference, int) else reference[member])
            subset = [number for number in range(COUNT) if not heads.correct[member, chosen, number]]
            assert int(found.mistakes[member]) == len(subset) > 0
            for head in range(HEADS):
                expected = sum(bool(heads.correct[member, head, number]) for number in subset) / len(subset)
                assert float(found.on_mistakes[member, head]) == pytest.approx(expected)
            assert float(found.on_mistakes[member, chosen]) == 0
    for wrong in (HEADS, [0], [0, -1], 0.5, "0"):
        with pytest.raises(InputError, match=r"^reference"):
            residual_heads(heads, wrong)  # type: ignore[arg-type]
    for same in (np.int8(1), torch.tensor([1, 1])):
        assert torch.equal(residual_heads(heads, same).mistakes, residual_heads(heads, 1).mistakes)  # type: ignore[arg-type]


def test_clamped_attention_weights(world: World) -> None:
    found = attention_weight_curve(world.measured, [0.0, 0.3, 1.0])
    for number, weight in enumerate((0.0, 0.3, 1.0)):
        for head in range(HEADS):

            def row(_: Tensor, right: list[bool], weight: float = weight) -> Tensor:
                shares = [weight / sum(right) if r else (1 - weight) / (len(right) - sum(right)) for r in right]
                return torch.tensor([0, shares[0], 0, shares[1], 0], dtype=torch.float64)

            check(found, (number, head, 1), Naive(world, 1, all_but(1, head), rows={head: row}).means())
    for wrong in ([], [1.2], [-0.1], [math.nan], ["1"], None, 0.5):
        with pytest.raises(InputError, match=r"^weights: "):
            attention_weight_curve(world.measured, wrong)  # type: ignore[arg-type]


def test_clamped_weights_in_longer_contexts() -> None:
    config = SequenceConfig(pairs=4, burstiness=2)
    world = made("icl", config, 9)
    found = attention_weight_curve(world.measured, [0.6])

    def row(_: Tensor, right: list[bool]) -> Tensor:
        weights = torch.zeros(9, dtype=torch.float64)
        weights[1::2] = torch.tensor([3 / sum(right) if r else 2 / (4 - sum(right)) for r in right]).double() / 5
        return weights

    check(found, (0, 2, 0), Naive(world, 0, all_but(1, 2), rows={2: row}).means())


def test_perfect_attention_of_the_whole_weight_is_the_clamp_match(world: World) -> None:
    curve = attention_weight_curve(world.measured, [1.0])
    assert torch.equal(curve.accuracy[0].T, single_heads(world.measured, perfect=True).accuracy)


def test_attention_deltas_by_sequence(world: World) -> None:
    deltas = attention_deltas(world.measured)
    for member in range(2):
        for number in range(COUNT):
            kept, right = Naive(world, member).scores(number)
            for head in range(HEADS):
                query = kept["pattern", 1, head][-1, 1::2].tolist()
                expected = sum(w if r else -w for w, r in zip(query, right, strict=True))
                assert float(deltas[member, head, number]) == pytest.approx(expected, abs=1e-12)
    means = evaluate_strategies(world.model, world.features, [world.evaluator], attention=True)["icl"].attention
    assert means is not None
    assert torch.allclose(deltas.mean(-1), means.induction[:, 1])
    correlations = delta_correlations(deltas)
    expected_matrix = np.corrcoef(deltas[1].numpy())
    assert np.allclose(correlations[1].numpy(), expected_matrix)
    assert attention_deltas(made("iwl").measured).isnan().all()


def test_temperatures_of_heads_that_attend_to_labels_only(world: World) -> None:
    temperatures = [0.25, 1.0, 3.0]
    found = temperature_curves(world.measured, temperatures)
    for number, temperature in enumerate(temperatures):
        for head in range(HEADS):

            def row(scores: Tensor, _: list[bool], temperature: float = temperature) -> Tensor:
                weights = torch.zeros(5, dtype=torch.float64)
                weights[1::2] = (scores[1::2] / temperature).softmax(0)
                return weights

            check(found.among_all, (number, head, 0), Naive(world, 0, rows={head: row}).means())
            check(found.alone, (number, head, 1), Naive(world, 1, all_but(1, head), rows={head: row}).means())
    for wrong in ([], [0.0], [-1.0], [math.nan], [math.inf], [1e-300], ["1"], None):
        with pytest.raises(InputError, match=r"^temperatures: "):
            temperature_curves(world.measured, wrong)  # type: ignore[arg-type]


def test_clamps_hold_in_both_passes(world: World) -> None:
    """Removing heads by clamp or by pass is the same; a clamped-out head stays out whatever else is removed."""
    config = world.model.config
    one = make_clamps(config, without_heads=[(1, 0)])
    clamps = stack_clamps([one, one])
    found = keep_one_head(world.measured.with_clamps(clamps))
    check(found, (1, 0), Naive(world, 0, {(1, 0), (1, 2)}).means())
    check(found, (0, 1), Naive(world, 1, layer_heads(1)).means())


def test_chunks_and_answers_agree(world: World) -> None:
    passes = [SecondPass(), SecondPass(torch.zeros(2, HEADS)), SecondPass(embedding=0.5)]
    means = MeasuredModel(world.model, world.features, world.evaluator, chunk=4).second_pass_means(passes)
    answers = MeasuredModel(world.model, world.features, world.evaluator, chunk=9).second_pass_answers(passes)
    assert answers.correct.shape == (3, 2, COUNT)
    assert torch.allclose(answers.loss.mean(-1), means.loss)
    assert torch.allclose(answers.correct.mean(-1), means.accuracy)
    with pytest.raises(InputError, match="passes"):
        world.measured.second_pass_means([])
