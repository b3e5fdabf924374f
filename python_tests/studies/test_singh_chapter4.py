"""Claims of Singh 2025, chapter 4: what they name exists, and their measurements are right on curves that are known."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from icl_fast.analysis.claims import Rule
from icl_fast.analysis.convexity import non_convexity
from icl_fast.measure import open_measured
from icl_fast.measure.exemplar.ablation import cut_output_connections
from icl_fast.measure.exemplar.measured_run import measure_wiring
from icl_fast.measure.exemplar.single_heads import residual_heads, single_heads
from icl_fast.models import make_clamps, stack_clamps
from icl_fast.runs import Run, parse_config
from icl_fast.studies.exemplar_heads import measure_heads
from icl_fast.studies.reproduction import SCALES, singh_clamps, singh_heads, singh_induction
from icl_fast.studies.reproduction.claim import Claim
from icl_fast.studies.reproduction.experiments import load_experiments
from icl_fast.studies.reproduction.trained import Trained
from icl_fast.training import train

CONFIGS = Path(__file__).parents[2] / "configs"
CLAIMS = (*singh_induction.CLAIMS, *singh_heads.CLAIMS, *singh_clamps.CLAIMS)
SEEN = np.arange(1, 1001) * 1000.0
LOG_2 = math.log(2)


@pytest.mark.parametrize("scale", SCALES)
def test_every_training_that_is_named_exists(scale: Any, tmp_path: Path) -> None:
    every = load_experiments(CONFIGS, "singh", scale, tmp_path)
    for claim in CLAIMS:
        seeds = set()
        for which in (*claim.runs.values(), *claim.control.values()):
            name, _, member = which.partition("@")[0].partition(":")
            (config,) = every[name].runs.values()
            names = [one.name for one in config.members]  # type: ignore[union-attr]
            chosen = [one for one in names if not member or one == member or one.startswith(f"{member} | seed ")]
            assert len(chosen) == (every[name].seeds or 1), which
            seeds.add(len(chosen))
        if len(claim.runs) > 1:  # roles are compared seed by seed
            assert len(seeds) == 1, claim.name


def test_there_are_37_with_rules_and_controls() -> None:
    assert len(CLAIMS) == len({claim.name for claim in CLAIMS}) == 37
    for claim in CLAIMS:
        assert Rule(claim.rule).conditions
        assert claim.without or claim.without_arguments, claim.name


def made_up(monkeypatch: pytest.MonkeyPatch, curves: dict[str, np.ndarray], **metrics: np.ndarray) -> dict[str, Any]:
    """Roles whose trainings have these losses, a seed each; the metrics are those of every one."""
    runs = {role: [SimpleNamespace(loss=loss, name=role)] for role, loss in curves.items()}
    for module in (singh_induction, singh_clamps, singh_heads):
        monkeypatch.setattr(module, "training_loss", lambda trained: (SEEN, trained.loss))

    def curve(trained: Any, evaluator: str, metric: str = "accuracy") -> tuple[np.ndarray, np.ndarray]:
        return SEEN, trained.loss if metric == "loss" else metrics[metric]

    monkeypatch.setattr(singh_induction, "curve", curve)
    return runs


def fall(middle: float, scale: float) -> np.ndarray:
    """From log 5 to log 2 at once, and on to 0 at some time (in sequences)."""
    first = (math.log(5) - LOG_2) * np.exp(-SEEN / 10_000)
    return np.asarray(first + LOG_2 / (1 + np.exp((SEEN - middle) / scale)))


def test_plateau_and_change(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = made_up(monkeypatch, {"run": fall(500_000, 30_000)})
    found = singh_induction.change(runs).quantities
    # a logistic is at 0.9 and 0.4 of its height ln 9 and ln 1.5 time constants from its middle
    begin, end = 500_000 - math.log(9) * 30_000, 500_000 + math.log(1.5) * 30_000
    near = -10_000 * math.log(0.1 * LOG_2 / (math.log(5) - LOG_2))
    assert found["change_over_plateau"][0] == pytest.approx((end - begin) / (begin - near), abs=0.01)
    assert found["non_convexity"] == [pytest.approx(non_convexity(SEEN, fall(500_000, 30_000)))]
    share = singh_induction.plateau(runs).quantities
    assert share["learned_after"][0] == pytest.approx(end, abs=1500)
    assert share["plateau_share"][0] == pytest.approx((begin - near) / (end - near), abs=0.01)
    never = made_up(monkeypatch, {"run": fall(1e9, 1e6)})
    assert math.isnan(singh_induction.plateau(never).quantities["plateau_share"][0])
    assert math.isnan(singh_induction.change(never).quantities["change_over_plateau"][0])


def test_strength(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = fall(500_000, 30_000)
    rising = 1 - loss / loss[0]
    of_heads = np.stack([np.stack([rising * 0, rising * 0], 1), np.stack([0.2 * rising, 0.9 * rising], 1)], 1)
    found = singh_induction.strength(made_up(monkeypatch, {"run": loss}, induction=of_heads)).quantities
    assert found["correlation"][0] == pytest.approx(-1)
    assert found["strongest"][0] == pytest.approx(0.9, abs=1e-3)
    assert found["weakest"][0] == pytest.approx(0.2, abs=1e-3)
    assert found["strong_heads"] == [1]
    start = np.flatnonzero(loss < 1.1 * LOG_2)[0]
    assert found["rise"][0] == pytest.approx(0.9 * (rising[-1] - rising[start]))


def test_clamps(monkeypatch: pytest.MonkeyPatch) -> None:
    smooth = math.log(5) * np.exp(-SEEN / 40_000)
    curves = {"free": fall(500_000, 30_000), "clamped": fall(200_000, 10_000), "learned": smooth}
    runs = made_up(monkeypatch, curves)
    sharp = singh_clamps.sharpness({role: runs[role] for role in ("free", "clamped")}).quantities
    assert sharp["duration_ratio"][0] == pytest.approx(1 / 3, abs=0.02)
    slow = made_up(monkeypatch, {"free": fall(1_000_000, 30_000), "clamped": curves["clamped"]})
    begun = 1_000_000 - math.log(9) * 30_000  # and not over at the end
    at_most = singh_clamps.sharpness(slow).quantities["duration_ratio"][0]
    assert at_most == pytest.approx(10_000 * math.log(9 * 1.5) / (1_000_000 - begun), abs=0.03)
    assert singh_clamps.speed(slow).quantities["largest_ratio"][0] == pytest.approx(0.204, abs=0.002)
    swapped = {"free": slow["clamped"], "clamped": slow["free"]}
    assert math.isnan(singh_clamps.sharpness(swapped).quantities["duration_ratio"][0])
    assert singh_clamps.shape({"run": runs["learned"]}).quantities["non_convexity"][0] < 1e-9
    time = 40_000 * math.log(math.log(5) / (0.4 * LOG_2))
    fast = singh_clamps.speed(runs).quantities
    assert fast["smallest_ratio"][0] == pytest.approx(time / 512_164, abs=0.01)
    assert fast["largest_ratio"][0] == pytest.approx(204_055 / 512_164, abs=0.01)


def test_delays_of_what_is_not_learned_are_at_least_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    curves = {"match": fall(200_000, 10_000), "match of more": fall(400_000, 10_000)}
    curves |= {"copy": fall(200_000, 10_000), "copy of more": fall(1e9, 1e6)}
    found = singh_clamps.delays(made_up(monkeypatch, curves)).quantities
    assert found["match_delay"][0] == pytest.approx(404_055 / 204_055, abs=0.02)
    assert found["copy_delay"][0] == pytest.approx(1_000_000 / 204_055, abs=0.03)
    none = {"free": curves["match"], "0.1": curves["match of more"], "all": curves["copy of more"]}
    heads = singh_clamps.previous_token_clamps(made_up(monkeypatch, none)).quantities
    assert heads["few_largest"] == heads["few_smallest"] == found["match_delay"]
    assert heads["all_ratio"] == found["copy_delay"]


def test_layer_1_of_other_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    curves = {"own 5": fall(100_000, 10_000), "other 5 6": fall(300_000, 10_000), "other 5 7": fall(200_000, 10_000)}
    curves |= {"own 6": fall(400_000, 10_000), "other 6 5": fall(1e9, 1e6), "other 6 7": fall(300_000, 10_000)}
    found = singh_clamps.layer_1_of_seeds(made_up(monkeypatch, curves)).quantities["own_over_other"]
    assert found == pytest.approx([104_055 / 204_055, 404_055 / 304_055], abs=0.01)


VALUES: dict[str, Any] = {
    "exemplars": {"kind": "gaussian", "classes": 30, "exemplars": 2, "width": 8, "encoder": "none"},
    "sequences": {"p_icl": 1.0, "classes": 20, "exemplars": 1, "label_pool": 4},
    "model": {"width": 16, "heads": 4},
    "interventions": {"induction_heads": [1]},
    "training": {"steps": 12, "batch": 4, "lr": 1e-2, "log_every": 4, "engine": "plain"},
    "evaluation": {"every": 6, "sequences": 20},
    "snapshots": {"every": 6},
    "members": 2,
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Trained]]:
    path = train(parse_config(VALUES), tmp_path_factory.mktemp("runs") / "two").path
    return {"run": [Trained(f"seed {number}", Run(path), number) for number in range(2)]}


def test_heads_are_those_of_each_member(runs: dict[str, list[Trained]]) -> None:
    measured = open_measured(runs["run"][0].run.path, snapshots="last", evaluators=["train"], sequences=2000)
    chosen = ("strongest_alone", "strongest_drop", "other_drop", "correlation")
    found, heads = singh_heads.removed_and_alone(runs, chosen).quantities, measure_heads(measured)
    assert list(found) == list(chosen)
    for member in range(2):
        one = heads.isel(member=member)
        best = int(one["induction"].argmax("head"))
        alone = one["overall"].sel(patterns="as it is").values
        assert found["strongest_alone"][member] == alone[best]
        assert found["strongest_drop"][member] == float(one["whole"] - one["without"][best])
        others = [float(one["whole"] - one["without"][head]) for head in range(4) if head != best]
        assert found["other_drop"][member] == max(others)
        assert found["correlation"][member] == pytest.approx(np.corrcoef(one["induction"], alone)[0, 1])
    (model,) = measured.on_each(measured.snapshot(12).model)
    table = residual_heads(single_heads(model))
    differences = singh_heads.others_on_mistakes(runs).quantities["difference"]
    for member in range(2):
        others = [head for head in range(4) if head != int(table.reference[member])]
        expected = (table.on_mistakes[member, others] - table.overall[member, others]).mean()
        assert differences[member] == pytest.approx(float(expected))
    wiring = measure_wiring(measured)
    accuracy = wiring["accuracy"].sel(kind="single-pair", preserve="value-preserving")
    readers = (accuracy > singh_heads.ABOVE_CHANCE).sum("reader").max("writer")
    assert singh_heads.pairs_of_heads(runs).quantities["most_readers"] == readers.values.tolist()
    without = wiring["accuracy_without"].sel(set="all", preserve="pattern-preserving")
    assert singh_heads.layer_1_sets(runs).quantities["no_layer_1_patterns_kept"] == without.values.tolist()


def test_a_layer_cut_from_the_output(runs: dict[str, list[Trained]]) -> None:
    measured = open_measured(runs["run"][0].run.path, evaluators=["train"], sequences=1000)
    for layer in range(2):
        found = singh_heads.cut_from_output(runs, layer)
        for step, place in ((0, 0), (12, 2)):
            (model,) = measured.on_each(measured.snapshot(step).model)
            cut, whole = cut_output_connections(model), model.means()
            change = cut.loss[layer] - whole.loss
            for member in range(2):
                assert np.asarray(found.chart.curves[0].y)[member][place] == pytest.approx(float(change[member]))
        drop = whole.accuracy - cut.accuracy[layer]
        assert found.quantities["accuracy_drop"] == pytest.approx(drop.tolist())


def test_the_match_clamped_in_snapshots(runs: dict[str, list[Trained]]) -> None:
    measured = open_measured(runs["run"][0].run.path, evaluators=["train"], sequences=1000)
    seen, loss = singh_clamps._clamped(runs["run"][1], "match")
    assert seen.tolist() == [0, 24, 48]
    clamps = make_clamps(measured.series.population.config.model, ["match"], induction_heads=[1])
    for step, value in zip((0, 6, 12), loss, strict=True):
        (model,) = measured.on_each(measured.snapshot(step).model, stack_clamps([clamps, clamps]))
        assert value == pytest.approx(float(model.means().loss[1]))


def test_no_claim_is_measured_without_its_control() -> None:
    both: list[Claim] = [claim for claim in CLAIMS if claim.runs == claim.control and not claim.without_arguments]
    assert not both
