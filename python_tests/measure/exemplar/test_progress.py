"""Measures over snapshots: each snapshot as it would be measured alone, under each clamp, with a donor's parts."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import xarray as xr

from icl_fast.data.evaluation_sequences import evaluation_sequences, evaluators
from icl_fast.data.exemplars import gaussian_classes
from icl_fast.data.sequence_config import SequenceConfig
from icl_fast.data.sequences import output_labels
from icl_fast.errors import InputError
from icl_fast.measure.exemplar.answers import METRICS
from icl_fast.measure.exemplar.measured_model import MeasuredModel
from icl_fast.measure.exemplar.progress import Transplant, strategies_dataset, strategy_arrays
from icl_fast.measure.exemplar.strategies import evaluate_strategies
from icl_fast.models import Clamps, ExemplarConfig, ExemplarTransformer, Snapshot, make_clamps, stack_clamps

CONFIG = SequenceConfig(labels_per_class=2)
EXEMPLARS = gaussian_classes(12, 2, 6, seed=1)
FEATURES = EXEMPLARS.features
SETS = [evaluation_sequences(name, CONFIG, EXEMPLARS, 30) for name in evaluators(CONFIG, EXEMPLARS)]


def model(seed: int, members: int = 2, **shape: Any) -> ExemplarTransformer:
    values: dict[str, Any] = {"width": 8, "heads": 2, "position": "learned", **shape}
    config = ExemplarConfig(features=6, outputs=output_labels(CONFIG, EXEMPLARS), pairs=2, **values)
    made = ExemplarTransformer(config, range(seed, seed + members))
    with torch.no_grad():
        made.embed_label.weight.mul_(50)
    return made


SNAPSHOTS = [Snapshot(model(10 * i), step, step * 32) for i, step in enumerate((0, 5, 20))]


def strategies(clamps: Mapping[str, Clamps | None], transplant: Transplant | None = None) -> xr.Dataset:
    models = [one.model if transplant is None else transplant(one.model) for one in SNAPSHOTS]
    parts = [
        strategy_arrays([MeasuredModel.on_each(model, FEATURES, SETS, forced) for forced in clamps.values()])
        for model in models
    ]
    steps, seen = [one.step for one in SNAPSHOTS], [one.seen for one in SNAPSHOTS]
    return strategies_dataset(parts, steps, seen, list(clamps), [one.name for one in SETS])


def test_every_snapshot_under_every_clamp() -> None:
    match = make_clamps(SNAPSHOTS[0].model.config, ["match"], induction_heads=[1])
    clamps = {"none": None, "match": stack_clamps([match, match])}
    found = strategies(clamps)
    assert found["snapshot"].values.tolist() == [0, 5, 20]
    assert found["sequences"].values.tolist() == [0, 160, 640]
    assert found["evaluator"].values.tolist() == [one.name for one in SETS]
    for i, snapshot in enumerate(SNAPSHOTS):
        for name, held in clamps.items():
            expected = evaluate_strategies(snapshot.model, FEATURES, SETS, held, attention=True)
            for evaluator, metrics in expected.items():
                one = found.isel(snapshot=i).sel(clamp=name, evaluator=evaluator)
                for metric in METRICS:
                    wanted = getattr(metrics, metric)
                    torch.testing.assert_close(torch.from_numpy(one[metric].values), wanted, equal_nan=True)
                assert metrics.attention is not None
                for metric in ("induction", "previous_token", "own", "query"):
                    values = torch.from_numpy(one[metric].values)
                    torch.testing.assert_close(values, getattr(metrics.attention, metric), equal_nan=True)
    strengths = found["induction"].sel(clamp="match", evaluator="train", layer=1, head=1)
    assert (strengths.values == 1).all()


def test_the_second_half_of_the_last_snapshot_in_all() -> None:
    """With everything but the embedding and layer 1 of the last one, only those two tell snapshots apart."""
    last = SNAPSHOTS[-1].model
    found = strategies({"none": None}, Transplant(last, ("layer-2", "unembed")))
    for i, snapshot in enumerate(SNAPSHOTS):
        mixed = copy.deepcopy(last)
        state = snapshot.model.state_dict()
        first = [name for name in state if name.startswith(("embed_", "position", "blocks.0."))]
        mixed.load_state_dict({**last.state_dict(), **{name: state[name] for name in first}})
        expected = evaluate_strategies(mixed, FEATURES, SETS)
        for evaluator, metrics in expected.items():
            one = found["loss"].isel(snapshot=i, clamp=0).sel(evaluator=evaluator)
            torch.testing.assert_close(torch.from_numpy(one.values), metrics.loss)
    assert SNAPSHOTS[0].model.unembed.weight.ne(last.unembed.weight).any()  # the snapshots are not touched


def test_a_donor_of_one_member_is_every_members() -> None:
    donor = model(99, members=1)
    mixed = Transplant(donor, ("embed", "layer-1", "layer-2", "unembed"))(SNAPSHOTS[1].model)
    for name, parameter in mixed.named_parameters():
        assert torch.equal(parameter[0], parameter[1]), name
        assert torch.equal(parameter[0], donor.get_parameter(name)[0]), name
    with pytest.raises(InputError, match="3 members"):
        Transplant(model(0, members=3), ("embed",))(SNAPSHOTS[0].model)
    for parts, message in (
        (["layer-3"], "layer-3"),
        (["embed", "embed"], "embed asked for more than once"),
        ([""], "''"),
    ):
        with pytest.raises(InputError, match=message):
            Transplant(donor, tuple(parts))(SNAPSHOTS[0].model)
