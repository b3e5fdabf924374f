"""`icl-fast reproduce`: the plan, trainings, verdicts, what is kept; on claims and configs made for the purpose."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from icl_fast.analysis.claims import Chart, Curve, Measurement
from icl_fast.cli.main import cli
from icl_fast.errors import InputError
from icl_fast.models import Transformer, TransformerConfig
from icl_fast.runs import Run, RunConfig, TextRunConfig
from icl_fast.studies import reproduction
from icl_fast.studies.reproduction.claim import Claim
from icl_fast.studies.reproduction.cost import FLOPS, gpu_hours
from icl_fast.studies.reproduction.experiments import load_experiments
from icl_fast.studies.reproduction.reproduce import Reproduction
from icl_fast.studies.reproduction.table import evidence, shown, write_table
from icl_fast.studies.reproduction.trained import Trained, curve, strategies, training_loss

CONFIG = """
exemplars: {kind: gaussian, classes: 12, exemplars: 4, width: 8, encoder: none}
sequences: {}
model: {layers: 1, width: 8, heads: 2}
training: {steps: 20, log_every: 5, seed: 5}
evaluation: {every: 10, sequences: 20}
snapshots: {every: 10}
"""
EXPERIMENTS = """
alone: {config: one.yaml, tiny: {minutes: 20}}
seeds:
  config: one.yaml
  set: [training.lr=1e-3]
  tiny: {seeds: 3, minutes: 15, set: [training.steps=30]}
  small: {untested: needs 90 GPU-hours}
  paper: {seeds: 1, config: other.yaml, set: [training.batch=3, [training.steps=10, [training.lr=2e-3]]]}
grafted:
  config: one.yaml
  tiny: {set: ["graft.snapshot={alone}/snapshots/step_00000020.safetensors", "graft.parts=[embed]"]}
"""
calls: list[str] = []


def accuracy(runs: Mapping[str, Sequence[Trained]], add: float = 0.0) -> Measurement:
    calls.append("accuracy")
    found = [curve(trained, "icl") for trained in runs["run"]]
    chart = Chart("Accuracy", "sequences", "accuracy", [Curve("run", found[0][0], [values for _, values in found])])
    quantities = {"points": [float(len(values)) + add for _, values in found], "last": [of[-1] for _, of in found]}
    return Measurement(quantities, chart)


def refuses(runs: Mapping[str, Sequence[Trained]]) -> Measurement:
    raise InputError(f"{runs['run'][0].name}: has no peak")


def claim(name: str = "many-points", **changed: Any) -> Claim:
    usual = {
        "source": "Figure 1",
        "statement": "It is measured | often.",
        "runs": {"run": "seeds"},
        "measure": accuracy,
        "rule": "points > 3",
        "without": {"run": "seeds@0"},
    }
    return Claim(name, **{**usual, **changed})


@contextmanager
def silent(name: str, config: RunConfig) -> Iterator[Any]:
    yield lambda progress: None


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reproduction")
    (folder / "configs" / "reproduction").mkdir(parents=True)
    (folder / "configs" / "one.yaml").write_text(CONFIG)
    (folder / "configs" / "other.yaml").write_text(CONFIG.replace("width: 8, heads", "width: 16, heads"))
    (folder / "configs" / "reproduction" / "singh.yaml").write_text(EXPERIMENTS)
    return folder


@pytest.fixture
def made(home: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A reproduction with these claims, everything trained."""

    def make(*claims: Claim, train: bool = True, **options: Any) -> Reproduction:
        monkeypatch.setitem(reproduction.CLAIMS, "singh", claims)
        found = Reproduction("singh", "tiny", home / "out", home / "configs", **options)
        if train:
            found.train(list(found.experiments.values()), silent)
        return found

    return make


def judged(found: Reproduction, **options: Any) -> Any:
    return found.judge(lambda done, of, name: None, **options)


def test_a_claim_that_holds(made: Any) -> None:
    found = made(claim())
    (row,) = judged(found)
    assert (row.verdict, row.control_fails) == ("holds", True)
    assert row.measured.quantities["points"] == [4, 4, 4]  # evaluated at steps 0, 10, 20, 30
    assert row.control.quantities["points"] == [1, 1, 1]
    names = Run(found.home / "seeds").population.names
    assert names == ["seed 5", "seed 6", "seed 7"]
    assert "4 ± 0 (3)" in evidence(row)
    assert "where the effect is absent the rule fails (points 1 ± 0 (3))" in evidence(row)


def test_a_claim_that_does_not_hold_and_one_whose_rule_decides_nothing(made: Any) -> None:
    weak = claim("weak", rule="points > 0")
    rows = judged(made(claim("false", rule="points > 4"), weak))
    assert [row.verdict for row in rows] == ["does not hold", "holds"]
    assert [row.control_fails for row in rows] == [True, False]
    assert "NOT DECISIVE" in evidence(rows[1])


def test_what_was_measured_is_kept_until_something_is_another(made: Any) -> None:
    found = made(claim("kept"))
    judged(found)
    calls.clear()
    judged(found)
    assert not calls
    judged(found, again=True)
    assert len(calls) == 2
    calls.clear()
    judged(made(claim("kept", arguments={"add": 1.0})))
    assert len(calls) == 2
    calls.clear()
    rows = judged(made(claim("kept", arguments={"add": 1.0}, rule="points > 100")))
    assert not calls
    assert rows[0].verdict == "does not hold"


def test_what_cannot_be_tested_says_why(made: Any) -> None:
    untested = claim("large", untested={"tiny": "needs 12 layers: 90 GPU-hours"})
    public = claim("public", runs={"run": "public"}, without={})
    rows = judged(made(untested, public, train=False))
    assert [row.verdict for row in rows] == ["cannot be tested"] * 2
    assert evidence(rows[0]) == "needs 12 layers: 90 GPU-hours"
    assert "--public" in evidence(rows[1])


def test_a_measurement_that_fails_leaves_the_other_rows(made: Any) -> None:
    broken = claim("broken", runs={"run": "seeds"}, measure=refuses)
    rows = judged(made(broken, claim()))
    assert [(row.verdict, row.why) for row in rows] == [("cannot be tested", "seed 5: has no peak"), ("holds", "")]


def test_a_scale_that_is_not_set_up(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(reproduction.CLAIMS, "singh", (claim(runs={"run": "alone"}, without={"run": "alone@0"}),))
    found = Reproduction("singh", "paper", home / "out", home / "configs")
    assert not found.experiments
    (row,) = judged(found)
    assert (row.verdict, row.why) == ("cannot be tested", "alone: no training is set at the scale paper")
    monkeypatch.setitem(reproduction.CLAIMS, "singh", (claim(),))
    (row,) = judged(Reproduction("singh", "small", home / "out", home / "configs"))
    assert (row.verdict, row.why) == ("cannot be tested", "seeds: needs 90 GPU-hours")


def test_what_is_not_trained_yet(made: Any) -> None:
    (row,) = judged(made(claim(runs={"run": "alone"}, without={"run": "grafted"}), train=False))
    assert row.verdict == "not run yet"
    assert row.measured is None


def test_a_graft_takes_the_experiment_along_that_it_begins_from(made: Any) -> None:
    found = made(claim(runs={"run": "grafted"}, without={"run": "grafted@0"}, rule="points > 2"))
    assert list(found.experiments) == ["alone", "grafted"]
    (row,) = judged(found)
    assert row.verdict == "holds"
    grafted, alone = (Run(found.home / name).load_snapshot(20).model for name in ("grafted", "alone"))
    assert torch.equal(grafted.embed_label.weight, alone.embed_label.weight)


def test_parts_are_half_an_hour_at_most(made: Any) -> None:
    found = made(claim(), claim("b", runs={"run": "grafted"}), train=False)
    assert [[one.name for one in part] for part in found.parts()] == [["alone"], ["seeds", "grafted"]]


def test_members_and_shares(made: Any, home: Path) -> None:
    made(claim())
    seeds = load_experiments(home / "configs", "singh", "tiny", home / "out")["seeds"]
    (one,) = seeds.trained("seed 6", 0.5)
    assert (one.name, one.member, one.steps, one.last) == ("seed 6", 1, [0, 10], 10)
    assert len(curve(one, "icl")[0]) == 2
    assert training_loss(one)[0].tolist() == [160, 320, 480]
    assert strategies(one).sizes["snapshot"] == 2
    assert "member" not in strategies(one).dims
    with pytest.raises(InputError, match="has no member seed 9"):
        seeds.trained("seed 9", 1.0)
    paper = load_experiments(home / "configs", "singh", "paper", home / "out")["seeds"]
    (config,) = paper.runs.values()
    assert (paper.seeds, config.model.width) == (1, 16)
    assert (config.training.steps, config.training.batch, config.training.lr) == (10, 3, 2e-3)


@pytest.mark.parametrize("work", ["olsson", "singh"])
@pytest.mark.parametrize("scale", ["tiny", "small", "paper"])
def test_every_training_of_every_scale_has_a_config(work: Any, scale: Any, tmp_path: Path) -> None:
    for one in load_experiments(Path(__file__).parents[2] / "configs", work, scale, tmp_path).values():
        if one.untested is None:
            assert one.runs


def compares(runs: Mapping[str, Sequence[Trained]]) -> Measurement:
    seeds = {role: [float(one.member or 0) for one in of] for role, of in runs.items()}
    return Measurement(seeds, Chart("Seeds", "x", "y", [Curve("seeds", [0], [0])]))


def test_where_the_control_compares_a_training_with_itself_each_role_has_another_seed(made: Any) -> None:
    both = claim(
        "both", runs={"a": "alone", "b": "seeds", "c": "seeds"}, without={"a": "seeds"}, measure=compares, rule="a > 0"
    )
    alike = claim("alike", runs={"a": "seeds", "b": "seeds"}, without={"b": "seeds@0"}, measure=compares, rule="a > 0")
    rows = judged(made(both, alike))
    every = [0.0, 1.0, 2.0]
    assert rows[0].control.quantities == {"a": [0.0], "b": [1.0], "c": [2.0]}
    assert rows[1].control.quantities == {"a": every, "b": every}


def test_a_control_without_a_number(made: Any) -> None:
    nothing = claim("nothing", without={}, without_arguments={"add": float("nan")})
    (row,) = judged(made(nothing))
    assert (row.verdict, row.control_fails) == ("holds", True)
    assert "where the effect is absent there is nothing to measure" in evidence(row)
    assert "last" not in evidence(row)  # what the rule does not speak of


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {set: []}", "a: must have config, and may have set"),
        ("a: {config: one.yaml, huge: {}}", "a: must have config"),
        ("a: {config: one.yaml, tiny: {hours: 1}}", "a: must have config"),
        ("a: {config: one.yaml, set: ['x={b}']}", "a: there is no experiment b"),
        ("a: {config: one.yaml, set: ['x={a}']}", "a needs itself"),
    ],
)
def test_experiments_that_are_not_as_they_should_be(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "reproduction").mkdir()
    (tmp_path / "reproduction" / "singh.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        load_experiments(tmp_path, "singh", "tiny", tmp_path)


def test_a_folder_that_holds_another_run(made: Any, home: Path) -> None:
    made(claim())
    source = home / "configs" / "reproduction" / "singh.yaml"
    source.write_text(EXPERIMENTS.replace("1e-3", "2e-3"))
    try:
        with pytest.raises(InputError, match=r"^out: .*seeds was begun with other values of training.lr; remove it"):
            judged(made(claim(), train=False))
    finally:
        source.write_text(EXPERIMENTS)


def test_unknown_names(made: Any) -> None:
    with pytest.raises(InputError, match=r"^claims: singh has no claim other; there are many-points$"):
        made(claim(), train=False, names=["other"])
    with pytest.raises(InputError, match=r"^configs: singh.yaml has no experiment nowhere$"):
        made(claim(runs={"run": "nowhere"}), train=False)


def test_the_table_is_written_with_its_figures(made: Any) -> None:
    found = made(claim(), claim("large", untested={"tiny": "too large"}))
    page = write_table(found, judged(found))
    rows = json.loads((found.home / "claims.json").read_text())
    assert [row["verdict"] for row in rows] == ["holds", "cannot be tested"]
    assert rows[0]["measured"]["points"] == [4, 4, 4]
    assert rows[0]["rule fails on the control"] is True
    text = (found.home / "claims.md").read_text()
    assert "2 claims: 1 holds; 1 cannot be tested." in text
    assert "It is measured \\| often." in text
    assert (found.home / "figures" / "claim-many-points.png").stat().st_size > 5000
    assert "claim-many-points" in page.read_text()


@pytest.mark.parametrize("mlp", [False, True])
def test_the_cost_is_that_of_the_weights_and_of_attention(mlp: bool) -> None:
    shape = TransformerConfig(layers=3, width=16, heads=2, mlp=mlp, vocab=300, context=64, position="none")
    config = TextRunConfig.model_validate(
        {
            "model": shape.model_dump(exclude={"vocab", "context"}),
            "data": {"vocab": 300, "context": 64},
            "training": {"steps": 10, "batch": 4},
        }
    )
    matrices = sum(weights.numel() for weights in Transformer(shape).parameters() if weights.dim() > 1)
    matrices -= 300 * 16  # the embedding is looked up
    tokens = 10 * 4 * 64
    attention = 3 * 2 * 8 * sum(4 * keys for keys in range(1, 65)) / 64  # scores and values, of the keys that are seen
    expected = 3 * tokens * (2 * matrices + attention) / FLOPS / 3600
    assert gpu_hours([config, config]) == pytest.approx(2 * expected, rel=0.02)


def test_values_in_a_few_characters() -> None:
    assert (shown([0.123456]), shown([1.0, 2.0, 3.0])) == ("0.123", "2 ± 1 (3)")


def test_on_the_command_line(made: Any, home: Path) -> None:
    found = made(claim(), claim("large", untested={"tiny": "too large"}))
    line = ["reproduce", "singh", "--out", str(home / "out"), "--configs", str(home / "configs"), "--no-static"]
    plan = CliRunner().invoke(cli, [*line, "--plan"])
    assert plan.exit_code == 0
    assert "2 claims, of which 1 cannot be tested" in plan.output
    done = CliRunner().invoke(cli, [*line, "--claims", "many-points"])
    assert done.exit_code == 0, done.output
    assert "1 claims: 1 holds" in done.output
    assert str(found.home / "chosen" / "index.html") in done.output
    assert not (found.home / "claims.json").exists() or "large" in (found.home / "claims.json").read_text()
    wrong = CliRunner().invoke(cli, [*line, "--part", "7"])
    assert wrong.exit_code == 2
    assert "error: --part: there are 1 of them" in wrong.output
    wrong = CliRunner().invoke(cli, [*line, "--claims", "none-such"])
    assert wrong.exit_code == 2
    assert "--claims: singh has no claim none-such" in wrong.output
