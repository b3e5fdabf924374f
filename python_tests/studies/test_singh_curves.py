"""What the claims of Singh's chapters 2, 3 and 5 read off curves, on curves made for the purpose; the toy models."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from icl_fast.analysis.claims import Rule
from icl_fast.runs import ExemplarRunConfig, Run
from icl_fast.studies.reproduction import singh_curves, singh_data, singh_strategies
from icl_fast.studies.reproduction.claim import Claim, Scale
from icl_fast.studies.reproduction.experiments import load_experiments
from icl_fast.studies.reproduction.trained import Trained

CONFIGS = Path(__file__).parents[2] / "configs"
SEEN = np.arange(11) * 1e5
RISE_AND_FALL = [0.5, 0.5, 0.6, 0.8, 0.9, 0.9, 0.9, 0.8, 0.7, 0.6, 0.6]
Curves = dict[tuple[str, str], list[float]]


@pytest.fixture
def given_curves(monkeypatch: pytest.MonkeyPatch) -> Callable[[Curves], None]:
    """Makes (training, evaluator) -> accuracy the curves of trainings of these names."""

    def make(curves: Curves) -> None:
        def curve(trained: Trained, evaluator: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
            assert metric == ("accuracy" if evaluator.startswith("iwl") else "accuracy_in_context")
            values = np.array(curves[trained.name, evaluator])
            return SEEN[: len(values)], values

        monkeypatch.setattr(singh_curves, "curve", curve)

    return make


def training(name: str) -> Trained:
    return Trained(name, Run("nowhere"), 0)


def test_strategies_of_a_rise_and_fall(given_curves: Callable[[Curves], None]) -> None:
    given_curves({("a", "icl"): RISE_AND_FALL, ("a", "iwl"): [0.0] * 10 + [0.3]})
    found = singh_curves.strategies_learned({"run": [training("a")]}, ("icl", "iwl")).quantities
    assert found["icl_highest"] == [0.9]
    assert found["icl_end"] == pytest.approx([(0.7 + 0.6 + 0.6) / 3])
    assert found["icl_lost"] == pytest.approx([0.3 / 0.4])  # of the smoothed curve: 0.9 to 0.6, from chance 0.5
    assert found["iwl_highest"] == pytest.approx([0.3])  # the median of the last three repeats the last
    assert "iwl_lost" not in found  # its chance is no half


def test_how_many_times_later(given_curves: Callable[[Curves], None]) -> None:
    never = [0.5] * 11
    given_curves({("a", "icl"): RISE_AND_FALL, ("b", "icl"): [0.5, 0.9, *never[2:]], ("c", "icl"): never})
    a, b, c = training("a"), training("b"), training("c")
    found = singh_curves.later({"run": [a, c, c, b], "other": [b, b, c, c]}).quantities
    assert found["times_later"][:2] == [3.0, 10.0]  # one that never does counts as the end, a lower bound
    assert np.isnan(found["times_later"][2:]).all()
    assert found["run_reached"][0] == 3e5
    assert np.isnan(found["run_reached"][1])
    assert singh_curves.later({"run": [a], "other": [a]}).quantities["times_later"] == [1.0]


@pytest.mark.parametrize(
    ("at", "expected"),
    [("highest", 0.9), ("end", 1.9 / 3), ("peak", 0.4), ("lost", 0.75)],
)
def test_what_is_compared(at: str, expected: float, given_curves: Callable[[Curves], None]) -> None:
    given_curves({("a", "icl"): RISE_AND_FALL})
    found = singh_curves.compared({"only": [training("a")], "again": [training("a")]}, "icl", at).quantities
    assert found["only"] == pytest.approx([expected])
    assert found["rise"] == pytest.approx([0.0])


def test_decay_is_the_slope_after_the_peak(given_curves: Callable[[Curves], None]) -> None:
    given_curves({("a", "icl"): [0.5, 0.9, 0.8, 0.7, 0.6], ("b", "icl"): [0.5, 0.9, 0.9, 0.9, 0.9]})
    found = singh_curves.compared({"fast": [training("a")], "slow": [training("b")]}, "icl", "decay").quantities
    smoothed = [0.8, 0.8, 0.7, 0.6]  # medians of three, of which the first is the highest
    assert found["fast"] == pytest.approx([np.polyfit(SEEN[1:5] / 1e6, smoothed, 1)[0]])
    assert found["slow"] == pytest.approx([0.0])


def test_a_divot_is_a_rise_that_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = {"a": [5.0, 5.0, 3.0, 3.0, 3.4, 3.4, 1.0, 1.0], "b": [5.0, 4.0, 3.0, 1.0, 1.0, 2.0, 2.0, 2.0]}
    monkeypatch.setattr(
        singh_strategies, "curve", lambda trained, evaluator, metric: (SEEN[:8], np.array(losses[trained.name]))
    )
    found = singh_strategies.divot({"run": [training("a"), training("b")]}).quantities
    assert found["rise"] == pytest.approx([0.1, 0.0])  # 0.4 of a fall of 4; what rises to the end is no divot


def test_the_best_of_a_sweep_is_compared(given_curves: Callable[[Curves], None]) -> None:
    given_curves({(name, "iwl"): [level] * 4 for name, level in {"a": 0.1, "b": 0.3, "c": 0.5}.items()})
    runs = {"rnn": [training("a"), training("b")], "transformer": [training("c"), training("a")]}
    assert singh_curves.best_end(runs, "iwl").quantities["rnn_behind"] == pytest.approx([0.2])
    assert singh_curves.highest_of(runs, "iwl").quantities == {"rnn": [0.1, 0.3], "transformer": [0.5, 0.1]}


@given(levels=st.lists(st.floats(0.5, 1.0), min_size=2, max_size=5))
def test_steps_from_role_to_role(levels: list[float]) -> None:
    def flat(trained: Trained, evaluator: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
        return SEEN, np.full(len(SEEN), levels[int(trained.name)])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(singh_curves, "curve", flat)
        runs = {f"role{i}": [training(str(i))] for i in range(len(levels))}
        found = singh_curves.compared(runs, "icl", "end").quantities
    assert found["rise"] == pytest.approx([levels[-1] - levels[0]])
    assert found["least_step"] == pytest.approx([min(b - a for a, b in itertools.pairwise(levels))])
    assert found["greatest_step"] == pytest.approx([max(b - a for a, b in itertools.pairwise(levels))])


def test_layer_1_from_the_peak_of_icl(monkeypatch: pytest.MonkeyPatch, given_curves: Callable[[Curves], None]) -> None:
    given_curves({("a", "icl"): RISE_AND_FALL})
    per_head = np.zeros((11, 2, 2))
    per_head[:, 0] = [[0.9, 0.1]] * 4 + [[0.6, 0.2]] * 6 + [[0.1, 0.1]]  # higher before the peak, which does not count
    per_head[:, 1] = 0.7  # layer 2 does not either
    values = {"previous_token": per_head, "own": 1 - per_head}
    monkeypatch.setattr(singh_strategies, "curve", lambda trained, evaluator, metric: (SEEN, values[metric]))
    found = singh_strategies.layer_1({"run": [training("a")]}).quantities
    assert found["previous_lost"] == pytest.approx([1 - 0.1 / 0.4])
    assert found["own_gained"] == pytest.approx([0.3])


def test_given_the_end_counts_from_the_peak_on(
    monkeypatch: pytest.MonkeyPatch, given_curves: Callable[[Curves], None]
) -> None:
    given_curves({("a", "icl"): RISE_AND_FALL})

    def strategies(trained: Trained, graft: str | None = None) -> xr.Dataset:
        assert graft in (None, "last:layer-2")
        flip = [0.0, 0.8, 0.5, 0.1] if graft is None else [1.0, 0.6, 0.5, 0.1]
        values = ("clamp", "evaluator", "snapshot"), np.array([[flip]])
        coords = {"evaluator": ["flip"], "sequences": ("snapshot", [0, 4e5, 8e5, 1e6])}
        return xr.Dataset({"accuracy_in_context": values}, coords=coords)

    monkeypatch.setattr(singh_strategies, "strategies", strategies)
    found = singh_strategies.given_the_end({"run": [training("a")]}, "layer-2").quantities
    assert found["difference"] == pytest.approx([0.2 / 3])


@pytest.mark.parametrize("claim", [c for c in singh_strategies.CLAIMS if not c.runs], ids=lambda claim: claim.name)
def test_claims_of_the_toy_models(claim: Claim, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(singh_strategies, "SEEDS", 12)
    rule = Rule(claim.rule)
    assert rule.holds(claim.measured(lambda which: []).quantities)
    assert not rule.holds(claim.measured(lambda which: [], control=True).quantities)


@pytest.mark.parametrize("scale", ["tiny", "small", "paper"])
def test_every_claim_has_its_trainings(scale: Scale, tmp_path: Path) -> None:
    experiments = load_experiments(CONFIGS, "singh", scale, tmp_path)
    for claim in (*singh_data.CLAIMS, *singh_strategies.CLAIMS):
        for which in (*claim.runs.values(), *claim.without.values()):
            name, _, member = which.partition("@")[0].partition(":")
            for config in experiments[name].runs.values():
                assert isinstance(config, ExemplarRunConfig)
                names = [config.members] if isinstance(config.members, int) else [m.name for m in config.members]
                assert not member or any(str(one).startswith(member) for one in names), (claim.name, which)
