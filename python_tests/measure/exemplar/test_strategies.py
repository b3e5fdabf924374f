"""Strategy metrics against loops over sequences, in float64, and against what hand-made circuits must give."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from icl_fast.data.evaluation_sequences import EvaluationSequences, evaluation_sequences, evaluators
from icl_fast.data.exemplars import Exemplars, gaussian_classes
from icl_fast.data.sequence_config import SequenceConfig
from icl_fast.data.sequences import output_labels
from icl_fast.errors import InputError
from icl_fast.measure.exemplar.answers import StrategyMetrics
from icl_fast.measure.exemplar.embedded import default_chunk
from icl_fast.measure.exemplar.strategies import evaluate_strategies
from icl_fast.models import (
    ExemplarConfig,
    ExemplarTransformer,
    Intervention,
    make_clamps,
    no_clamps,
    stack_clamps,
)
from icl_fast.models.members import MemberLinear

FEW_PAIRS = SequenceConfig(labels_per_class=2, zipf=1.0)
MANY_PAIRS = SequenceConfig(pairs=4, burstiness=2, p_bursty=0.5, labels_per_class=2)


def world(config: SequenceConfig, classes: int = 30) -> tuple[Exemplars, list[EvaluationSequences]]:
    exemplars = gaussian_classes(classes, 3, 6, seed=1)
    sets = [evaluation_sequences(name, config, exemplars, 37) for name in evaluators(config, exemplars)]
    return exemplars, sets


def made_model(config: SequenceConfig, exemplars: Exemplars, members: int = 1, **shape: object) -> ExemplarTransformer:
    values = {"width": 16, "heads": 4, "position": "learned", **shape}
    full = ExemplarConfig(
        features=exemplars.features.shape[-1],
        outputs=output_labels(config, exemplars),
        pairs=config.pairs,
        **values,  # type: ignore[arg-type]
    )
    model = ExemplarTransformer(full, range(members)).double()
    with torch.no_grad():
        model.embed_label.weight.mul_(50)  # so that outputs differ from sequence to sequence
    return model


def naive(model: ExemplarTransformer, features: Tensor, evaluator: EvaluationSequences) -> dict[str, list[float]]:
    """Sequence by sequence and output by output, for a model of one member."""
    layers = range(model.config.layers)
    found: dict[str, list[float]] = {}

    def add(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    for i in range(len(evaluator.sequences)):
        one = evaluator.sequences[i]
        noise = 0 if evaluator.noise is None else evaluator.noise(i, 1, features.shape[-1])[0]
        with torch.no_grad():
            logits, sites = model(
                (features[one.classes, one.exemplars] + noise)[None, None],
                one.labels[None, None],
                record=[f"{layer}.pattern" for layer in layers],
            )
        outputs = logits[0, 0].tolist()
        labels, correct = one.labels.tolist(), set(evaluator.correct[i].tolist())
        weights = [math.exp(value) for value in outputs]
        add("accuracy", float(outputs.index(max(outputs)) in correct))
        add("probability", sum(weights[v] for v in correct) / sum(weights))
        add("loss", -math.log(weights[int(one.target)] / sum(weights)))
        places = [j for j, label in enumerate(labels) if label in correct]
        assert bool(evaluator.answered[i]) == bool(places)
        if places:
            add("accuracy_in_context", float(max(labels, key=lambda v: outputs[v]) in correct))
            shown = set(labels)
            add("probability_in_context", sum(weights[v] for v in shown & correct) / sum(weights[v] for v in shown))
        for layer in layers:
            for head in range(model.config.heads):
                pattern = sites[f"{layer}.pattern"][0, head].tolist()
                query = pattern[-1]
                for j in range(len(labels)):
                    add(f"previous_token {layer}.{head}", pattern[2 * j + 1][2 * j])
                    add(f"own {layer}.{head}", pattern[2 * j + 1][2 * j + 1])
                if places:
                    signs = [1 if j in places else -1 for j in range(len(labels))]
                    add(f"induction {layer}.{head}", sum(s * query[2 * j + 1] for j, s in enumerate(signs)))
                for j in places:
                    for t, weight in enumerate(query):
                        add(f"query {layer}.{head} {j} {t}", weight)
    return found


def check(found: StrategyMetrics, expected: dict[str, list[float]], member: int = 0) -> None:
    def mean(name: str) -> float:
        values = expected.get(name, [])
        return sum(values) / len(values) if values else math.nan

    for name in ("accuracy", "accuracy_in_context", "probability", "probability_in_context", "loss"):
        assert float(getattr(found, name)[member]) == pytest.approx(mean(name), abs=1e-12, nan_ok=True), name
    assert found.attention is not None
    _, layers, heads, pairs, length = found.attention.query.shape
    for layer in range(layers):
        for head in range(heads):
            for name in ("previous_token", "own", "induction"):
                value = float(getattr(found.attention, name)[member, layer, head])
                assert value == pytest.approx(mean(f"{name} {layer}.{head}"), abs=1e-12, nan_ok=True), name
            for j in range(pairs):
                for t in range(length):
                    value = float(found.attention.query[member, layer, head, j, t])
                    assert value == pytest.approx(mean(f"query {layer}.{head} {j} {t}"), abs=1e-12, nan_ok=True)


@pytest.mark.parametrize(
    ("config", "shape"),
    [(FEW_PAIRS, {}), (MANY_PAIRS, {"layers": 3, "mlp": True}), (SequenceConfig(noise=0.7), {})],
    ids=["few", "many", "noisy"],
)
def test_metrics_are_means_over_sequences(config: SequenceConfig, shape: dict[str, object]) -> None:
    exemplars, sets = world(config)
    model, features = made_model(config, exemplars, **shape), exemplars.features.double()
    found = evaluate_strategies(model, features, sets, attention=True, chunk=16)
    assert list(found) == [one.name for one in sets]
    assert len(found) >= 5
    for one in sets:
        check(found[one.name], naive(model, features, one))


def test_nothing_within_context_where_nothing_there_is_correct() -> None:
    exemplars, sets = world(FEW_PAIRS)
    model = made_model(FEW_PAIRS, exemplars)
    iwl = evaluate_strategies(model, exemplars.features.double(), sets, attention=True)["iwl"]
    assert iwl.accuracy_in_context.isnan().all()
    assert iwl.probability_in_context.isnan().all()
    assert iwl.loss.isfinite().all()
    assert iwl.attention is not None
    assert iwl.attention.induction.isnan().all()
    assert iwl.attention.query.isnan().all()
    assert iwl.attention.own.isfinite().all()


def test_members_are_measured_as_if_alone() -> None:
    config = SequenceConfig(p_icl=1.0, label_pool=5, classes=20)
    exemplars = gaussian_classes(20, 1, 6)
    features = exemplars.features.double()
    configs = [replace_seed(config, seed) for seed in range(3)]
    model = made_model(config, exemplars, members=3)
    together = [evaluation_sequences("train", configs, exemplars, 41)]
    clamps = stack_clamps(
        [
            make_clamps(model.config, ["match"], induction_heads=[1]),
            no_clamps(model.config),
            make_clamps(model.config, ["pt-attend"], previous_token_heads=[0], without_heads=[(1, 0)]),
        ]
    )
    found = evaluate_strategies(model, features, together, clamps, attention=True)["train"]
    for member in range(3):
        alone = ExemplarTransformer(model.config, [0]).double()
        alone.load_state_dict({k: v[member : member + 1] for k, v in model.state_dict().items()})
        own = [evaluation_sequences("train", configs[member], exemplars, 41)]
        of_one = evaluate_strategies(alone, features, own, clamps[member : member + 1], attention=True)["train"]
        for name in ("accuracy", "accuracy_in_context", "probability", "probability_in_context", "loss"):
            torch.testing.assert_close(getattr(found, name)[member], getattr(of_one, name)[0])
        assert found.attention is not None
        assert of_one.attention is not None
        for name in ("induction", "previous_token", "own", "query"):
            of_member, single = getattr(found.attention, name)[member], getattr(of_one.attention, name)[0]
            torch.testing.assert_close(of_member, single, equal_nan=True)


def replace_seed(config: SequenceConfig, seed: int) -> SequenceConfig:
    return config.model_copy(update={"split_seed": seed})


def test_one_set_serves_all_members() -> None:
    exemplars, sets = world(FEW_PAIRS)
    model = made_model(FEW_PAIRS, exemplars, members=2)
    shared = evaluate_strategies(model, exemplars.features.double(), sets[:1])[sets[0].name]
    doubled = replace(
        sets[0],
        sequences=type(sets[0].sequences)(*(torch.stack([part, part]) for part in vars(sets[0].sequences).values())),
        correct=torch.stack([sets[0].correct] * 2),
        answered=torch.stack([sets[0].answered] * 2),
    )
    each = evaluate_strategies(model, exemplars.features.double(), [doubled])[sets[0].name]
    assert torch.equal(shared.loss, each.loss)
    assert shared.loss[0] != shared.loss[1]


def test_perfect_patterns_have_known_strengths() -> None:
    config = SequenceConfig(p_icl=1.0, label_pool=5, classes=20)
    exemplars = gaussian_classes(20, 1, 6)
    sets = [evaluation_sequences("train", config, exemplars, 64)]
    model = made_model(config, exemplars)
    clamps = make_clamps(model.config, ["pt-attend", "match"], previous_token_heads=[0, 2], induction_heads=[1])
    attention = evaluate_strategies(model, exemplars.features.double(), sets, clamps, attention=True)["train"].attention
    assert attention is not None
    assert attention.induction[0, 1, 1] == 1
    assert attention.previous_token[0, 0, [0, 2]].tolist() == [1, 1]
    assert attention.own[0, 0, [0, 2]].tolist() == [0, 0]
    assert 0 < attention.previous_token[0, 0, 1] < 1
    perfect = attention.query[0, 1, 1]  # [n, T]
    assert torch.equal(perfect, torch.eye(5, dtype=torch.float64)[[1, 3]])


def test_a_clamped_copy_of_a_perfect_match_is_always_right() -> None:
    """With identical exemplars a head whose q and k are the identity on them matches; its logits are then copied."""
    config = SequenceConfig(p_icl=1.0, label_pool=5, classes=8)
    exemplars = Exemplars(torch.eye(8)[:, None], torch.arange(8))
    sets = [evaluation_sequences("train", config, exemplars, 50)]
    model = made_model(config, exemplars, position="none", width=8, heads=1)
    with torch.no_grad():
        model.embed_exemplar.weight.copy_(torch.eye(8))
        second = model.blocks[1].attention  # type: ignore[union-attr]
        for linear in (second.q, second.k):  # type: ignore[union-attr]
            linear.weight.copy_(torch.eye(8) * 30)  # type: ignore[union-attr]
    clamps = make_clamps(model.config, ["layer-1+copy"], previous_token_heads=[0], induction_heads=[0])
    found = evaluate_strategies(model, exemplars.features.double(), sets, clamps, attention=True)["train"]
    assert found.accuracy.item() == found.accuracy_in_context.item() == 1
    assert found.probability.item() == pytest.approx(found.probability_in_context.item())
    assert found.attention is not None
    # in "A A 0 B A" the query A also matches itself, and the first position, which no other comes before
    shared = [1 / 3 if bool(right) else 1 / 2 for right in sets[0].sequences.labels[:, 0] == sets[0].sequences.target]
    assert found.attention.induction[0, 1, 0].item() == pytest.approx(sum(shared) / 50, abs=1e-9)


def test_a_gpu_takes_more_sequences_at_a_time() -> None:
    sizes = {"features": 6, "outputs": 60, "pairs": 2, "width": 64, "heads": 8}
    one, many = (ExemplarTransformer(ExemplarConfig(**sizes), range(members)) for members in (1, 64))
    assert [default_chunk(one, device) for device in ("cpu", "cuda")] == [512, 6553]
    assert [default_chunk(many, device) for device in ("cpu", "cuda")] == [32, 102]


def test_interventions_act_in_every_chunk() -> None:
    exemplars, sets = world(FEW_PAIRS)
    model, features = made_model(FEW_PAIRS, exemplars), exemplars.features.double()
    without = make_clamps(model.config, without_heads=[(1, 0), (1, 2)])
    expected = evaluate_strategies(model, features, sets, without)
    found = evaluate_strategies(model, features, sets, interventions=[Intervention.zero("1.z", heads=[0, 2])], chunk=10)
    for name, of_one in found.items():
        torch.testing.assert_close(of_one.loss, expected[name].loss)


def test_rare_exemplars_are_embedded_where_they_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """More exemplars than slots: same numbers as one table of all, and fewer rows embedded."""
    config = SequenceConfig()
    exemplars = gaussian_classes(400, 20, 6)
    sets = [evaluation_sequences("ciwl", config, exemplars, 30)]
    model = made_model(config, exemplars)
    rows = counted_rows(model, monkeypatch)
    few = evaluate_strategies(model, exemplars.features.double(), sets)["ciwl"]
    assert sum(rows) <= 30 * 3
    rows.clear()
    small = gaussian_classes(4, 1, 6)
    sets = [evaluation_sequences("ciwl", config, small, 3000)]
    evaluate_strategies(model, small.features.double(), sets)
    assert sum(rows) <= 4
    assert few.loss.isfinite().all()


def counted_rows(model: ExemplarTransformer, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    rows: list[int] = []
    forward = MemberLinear.forward

    def counting(module: MemberLinear, x: Tensor) -> Tensor:
        if module is model.embed_exemplar:
            rows.append(x.shape[:-1].numel())
        return forward(module, x)

    monkeypatch.setattr(MemberLinear, "forward", counting)
    return rows


def test_a_diverged_model_shows() -> None:
    exemplars, sets = world(FEW_PAIRS)
    model = made_model(FEW_PAIRS, exemplars)
    with torch.no_grad():
        model.unembed.weight[0, 0, 0] = torch.nan
    found = evaluate_strategies(model, exemplars.features.double(), sets[:1])
    assert found[sets[0].name].loss.isnan().all()
    assert found[sets[0].name].accuracy.isnan().all()  # the largest of NaN is no answer


def test_what_does_not_fit_is_refused() -> None:
    exemplars, sets = world(FEW_PAIRS)
    model = made_model(FEW_PAIRS, exemplars)
    good = exemplars.features.double()
    for features in (good[..., :3], good[0], good.float(), good.long(), good.numpy(), None):
        with pytest.raises(InputError, match=r"^features: must be torch.float64 \[K,E,F=6\], got "):
            evaluate_strategies(model, features, sets)  # type: ignore[arg-type]
    for other in (None, "model", torch.nn.Linear(2, 2)):
        with pytest.raises(InputError, match=r"^model: must be a ExemplarModel"):
            evaluate_strategies(other, good, sets)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="evaluator train"):
        evaluate_strategies(model, exemplars.features.double(), world(MANY_PAIRS)[1])
    for chunk in (0, 1.5):
        with pytest.raises(InputError, match=r"^chunk: must be"):
            evaluate_strategies(model, good, sets, chunk=chunk)  # type: ignore[arg-type]
