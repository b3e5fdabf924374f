"""Populations of runs on exemplars: members are as alone, runs resume to the same bits, failures are clean."""

from __future__ import annotations

import copy
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from torch import Tensor

from icl_fast import InputError
from icl_fast.data import training_sequences
from icl_fast.data.exemplar_source import load_exemplars
from icl_fast.measure.exemplar.curves import training_curves
from icl_fast.models import Intervention
from icl_fast.runs import Population, Run, parse_config
from icl_fast.training import ExemplarProgress, exemplar_engine, train
from icl_fast.training.exemplar_engine import FusedEngine, PlainEngine, Task, make_engine

Values = dict[str, Any]
TINY: Values = {
    "exemplars": {"kind": "gaussian", "classes": 30, "exemplars": 3, "width": 8, "encoder": "none"},
    "sequences": {"p_icl": 1.0, "classes": 20, "label_pool": 5, "held_out_classes": 6, "held_out_label_pairs": 0.2},
    "model": {"width": 16, "heads": 4},
    "interventions": {"previous_token_heads": [2], "induction_heads": [3]},
    "training": {"steps": 12, "batch": 4, "lr": 1e-2, "checkpoint_every": 5, "log_every": 4, "engine": "plain"},
    "evaluation": {"every": 6, "sequences": 40},
    "snapshots": {"every": 6},
}
MEMBERS = [
    {"name": "free"},
    {"name": "match", "set": {"interventions.clamps": ["match"]}},
    {"name": "few", "set": {"sequences.label_pool": 3, "sequences.classes": 8, "training.seed": 7}},
    {"name": "one head", "set": {"interventions.only_heads": ["1.3"], "sequences.seed": 4}},
]
ENGINES = ["plain", "fused"]


def changed(values: Values = TINY, **sections: Any) -> Values:
    result = copy.deepcopy(values)
    for section, keys in sections.items():
        if isinstance(keys, dict):
            result.setdefault(section, {}).update(keys)
        else:
            result[section] = keys
    return result


def run(values: Values, folder: Path, **options: Any) -> Run:
    return train(parse_config(values), folder, **options)


def weights(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "snapshots").iterdir())}


def log(folder: Path) -> str:
    return (folder / "log.jsonl").read_text()


@pytest.fixture(scope="module", params=ENGINES)
def population(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    values = changed(members=MEMBERS, training={"engine": request.param})
    return run(values, tmp_path_factory.mktemp("runs") / "population")


def test_a_run_folder_is_complete(population: Run) -> None:
    assert population.snapshot_steps() == [0, 6, 12]
    snapshot = population.load_snapshot(12)
    assert (snapshot.step, snapshot.seen, snapshot.model.members) == (12, 48, 4)
    assert snapshot.model.outputs.tolist() == [5, 5, 3, 5]
    curves = training_curves(population)
    assert curves["logged_sequences"].values.tolist() == [16, 32, 48]
    assert curves["sequences"].values.tolist() == [0, 24, 48]
    assert curves["member"].values.tolist() == ["free", "match", "few", "one head"]
    assert {"train", "icl", "held-out-classes", "held-out-label-pairs"} == set(curves["evaluator"].values)
    assert curves["induction"].dims == ("evaluation", "evaluator", "member", "layer", "head")
    perfect = curves["induction"].sel(member="match", evaluator="train").isel(layer=1, head=3)
    assert perfect.values.tolist() == [1, 1, 1]
    expected = {"config.yaml", "exemplars.json", "log.jsonl", "optimizer.pt", "manifest.json"}
    expected |= {f"snapshots/step_{step:08d}.safetensors" for step in (0, 6, 12)}
    assert {p.relative_to(population.path).as_posix() for p in population.path.rglob("*") if p.is_file()} == expected
    assert set(population.manifest()) == expected - {"manifest.json"}


def test_members_are_what_they_are_alone(population: Run, tmp_path: Path) -> None:
    together, curves = population.load_snapshot(12).model, training_curves(population)
    engine = population.config.training.engine
    for number, member in enumerate(MEMBERS):
        values = changed(training={"engine": engine})
        for key, value in member.get("set", {}).items():  # type: ignore[attr-defined]
            section, name = key.split(".")
            values[section][name] = value
        alone = run(values, tmp_path / str(number))
        single = alone.load_snapshot(12).model
        kept = int(single.outputs)
        for name, weight in single.named_parameters():
            other = together.get_parameter(name)[number : number + 1]
            if name.startswith(("embed_label", "unembed")):
                assert not other[:, kept:].any()
                other = other[:, :kept]
            if engine == "fused":
                assert torch.equal(other, weight), name
            else:
                # Adam's first steps are nearly signs of gradients: rounding of those near 0 shows
                assert (other - weight).abs().mean() < 1e-5, name
        losses = curves["training_loss"].isel(member=number).values
        assert training_curves(alone)["training_loss"].isel(member=0).values == pytest.approx(losses, abs=1e-5)


OPTIMIZERS = [
    {"name": "as it is"},
    {"name": "seed", "set": {"training.seed": 3}},
    {"name": "fast", "set": {"training.lr": 3e-2, "training.warmup": 5}},
    {"name": "small", "set": {"training.l2": 0.02}},
    {"name": "small heads", "set": {"training.l2": 0.01, "training.l2_on": "attention", "training.seed": 2}},
]


@pytest.mark.parametrize("engine", ENGINES)
def test_members_have_rates_and_l2_of_their_own(engine: str, tmp_path: Path) -> None:
    """As alone: to the bit with the fused engine, by the plain one as closely as Adam's first steps let it be."""
    values = changed(training={"engine": engine, "decay": "inverse_sqrt", "warmup": 2}, model={"position": "learned"})
    together = run(changed(values, members=OPTIMIZERS), tmp_path / "together")
    curves = training_curves(together)
    assert [isinstance(json.loads(line).get("lr"), list) for line in log(together.path).splitlines()].count(True) == 3
    for number, member in enumerate(OPTIMIZERS):
        own = {key.removeprefix("training."): value for key, value in member.get("set", {}).items()}  # type: ignore[attr-defined]
        alone = run(changed(values, training=own), tmp_path / str(number))
        trained = together.load_snapshot(12).model
        for name, weight in alone.load_snapshot(12).model.named_parameters():
            other = trained.get_parameter(name)[number : number + 1]
            if engine == "fused":
                assert torch.equal(other, weight), name
            else:
                assert (other - weight).abs().mean() < 2e-5, name
        single = training_curves(alone)
        assert curves["training_loss"].isel(member=number).values == pytest.approx(
            single["training_loss"].isel(member=0).values, abs=2e-5
        )
        rates = [json.loads(line)["lr"] for line in log(alone.path).splitlines() if "lr" in line]
        assert rates == [json.loads(line)["lr"][number] for line in log(together.path).splitlines() if "lr" in line]
        assert ("total_loss" in single) == ("training.l2" in member.get("set", {}))  # type: ignore[operator]
        extra = (curves["total_loss"] - curves["training_loss"]).isel(logged=-1, member=number)
        weights_in = {"small": 0.02, "small heads": 0.01}.get(member["name"], 0.0)  # type: ignore[call-overload]
        part = ".attention." if member["name"] == "small heads" else ""
        squares = sum(
            float(weight[number].detach().double().square().sum())
            for name, weight in trained.named_parameters()
            if part in name and "norm" not in name
        )
        assert float(extra) == pytest.approx(weights_in * squares, rel=1e-4, abs=2e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_members_with_their_own_rates_resume_to_the_same_bits(engine: str, tmp_path: Path) -> None:
    values = changed(training={"engine": engine}, members=OPTIMIZERS)
    whole = run(values, tmp_path / "whole")

    def interrupt(progress: ExemplarProgress) -> None:
        if progress.step >= 5:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(values, tmp_path / "run", on_progress=interrupt)
    run(values, tmp_path / "run", resume=True)
    assert weights(tmp_path / "run") == weights(whole.path)
    assert log(tmp_path / "run") == log(whole.path)


def test_l2_is_on_what_it_says() -> None:
    """A fake model's names: the embedding is not the unembedding, norms are never in it."""
    values = changed(model={"layers": 1, "mlp": True, "position": "learned", "attention_bias": True})

    def weights_in(part: str) -> set[str]:
        config = parse_config(changed(values, training={"l2": 0.1, "l2_on": part}))
        population, exemplars = Population(config), load_exemplars(config.exemplars)
        task = Task(population.model(exemplars), exemplars.features, population.clamps(), {}, config.training)
        return set(task.l2)

    encoder = {"embed_exemplar.weight", "embed_exemplar.bias"}
    attention = {f"blocks.0.attention.{name}.{kind}" for name in ("q", "k", "v", "out") for kind in ("weight", "bias")}
    mlp = {f"blocks.0.mlp.{number}.{kind}" for number in (0, 2) for kind in ("weight", "bias")}
    assert weights_in("encoder") == encoder
    assert weights_in("embedding") == encoder | {"embed_label.weight"}
    assert weights_in("attention") == attention
    assert weights_in("mlp") == mlp
    rest = {"position", "embed_label.weight", "unembed.weight", "unembed.bias"}
    assert weights_in("all") == encoder | attention | mlp | rest


def test_engines_agree(tmp_path: Path) -> None:
    plain, fused = (
        run(changed(members=MEMBERS, training={"engine": engine, "lr": 1e-3}), tmp_path / engine) for engine in ENGINES
    )
    a, b = (training_curves(one)["training_loss"].values for one in (plain, fused))
    assert a == pytest.approx(b, abs=2e-5)
    for name, weight in plain.load_snapshot(12).model.named_parameters():
        assert (weight - fused.load_snapshot(12).model.get_parameter(name)).abs().mean() < 1e-5, name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("often", "noise"), [(12, 0.0), (4, 0.1)])
@pytest.mark.parametrize("impl", ["cuda"])
def test_cuda_graphs_make_the_same_steps(often: int, noise: float, impl: str, tmp_path: Path) -> None:
    """In calls of twelve steps, which are a graph of several and some of one, and in short ones."""
    others = [*MEMBERS, {"name": "slow", "set": {"training.lr": 1e-4, "training.warmup": 5, "training.l2": 0.01}}]
    values = changed(members=others, sequences={"noise": noise}, evaluation={"every": 12}, snapshots={"every": 12})
    training = {"lr": 1e-3, "log_every": often, "checkpoint_every": 12}
    cpu, cuda = (
        run(changed(values, training={**training, "device": device}), tmp_path / device) for device in ("cpu", impl)
    )
    assert training_curves(cuda)["training_loss"].values == pytest.approx(
        training_curves(cpu)["training_loss"].values, abs=1e-4
    )
    for name, weight in cpu.load_snapshot(12).model.named_parameters():
        assert (weight - cuda.load_snapshot(12).model.get_parameter(name)).abs().mean() < 1e-4, name


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_captured_steps_are_the_same(noise: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graphs of CUDA, played by the steps themselves: those that warm up or are captured must leave no trace."""
    counts = []

    def fake(update: Callable[[int], Tensor], count: int) -> tuple[Callable[[], None], Tensor]:
        losses = update(count)
        counts.append(count)

        def replay() -> None:
            losses.copy_(update(count))

        return replay, losses

    others = [*MEMBERS, {"name": "slow", "set": {"training.lr": 1e-3, "training.warmup": 5, "training.l2": 0.01}}]
    values = changed(members=others, sequences={"noise": noise}, training={"log_every": 8})
    expected = run(values, tmp_path / "expected")
    began = PlainEngine.__init__

    def begin(self: PlainEngine, task: Task) -> None:
        began(self, task)
        self.graphs, self.together = True, 3

    monkeypatch.setattr(PlainEngine, "__init__", begin)
    monkeypatch.setattr(exemplar_engine, "capture", fake)
    got = run(values, tmp_path / "got")
    assert counts == [3, 1]  # each captured once
    assert training_curves(got)["training_loss"].values == pytest.approx(
        training_curves(expected)["training_loss"].values, abs=1e-6
    )
    for name, weight in expected.load_snapshot(12).model.named_parameters():
        torch.testing.assert_close(got.load_snapshot(12).model.get_parameter(name), weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("l2_on", "weights"), [("attention", ".attention."), ("embedding", "embed_")])
def test_a_step_is_adam_written_out(l2_on: str, weights: str, tmp_path: Path) -> None:
    """The first step of a chapter 5 run with L2, from autograd on the model and Adam's formula in float64."""
    values = changed(
        sequences={"p_icl": 0.0, "held_out_label_pairs": 0.0, "classes": 12}, model={"position": "learned"}
    )
    values = changed(values, training={"l2": 0.01, "l2_on": l2_on, "steps": 1, "lr": 1e-3})
    done = run(values, tmp_path / "run")
    config, exemplars = done.config, load_exemplars(done.population.config.exemplars)
    before, after = (done.load_snapshot(step).model.double() for step in (0, 1))
    drawn = training_sequences([config.sequences], exemplars).draw(0, 4)
    logits, _ = before(exemplars.features.double()[drawn.classes, drawn.exemplars], drawn.labels)
    loss = F.cross_entropy(logits[0], drawn.target[0])
    squares = sum(w.square().sum() for name, w in before.named_parameters() if weights in name)
    (loss + 0.01 * squares).backward()
    assert training_curves(done)["training_loss"].values[0, 0] == pytest.approx(loss.item(), abs=1e-5)
    for name, weight in before.named_parameters():
        gradient = weight.grad
        assert gradient is not None
        expected = weight.detach() - 1e-3 * gradient / (gradient.abs() + 1e-8)
        sure = gradient.abs() > 1e-6  # elsewhere the step is ill-conditioned in float32
        torch.testing.assert_close(after.get_parameter(name)[sure], expected[sure], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("at", [1, 5, 7, 11])
def test_interrupted_and_resumed_gives_the_same_bits(tmp_path: Path, engine: str, at: int) -> None:
    values = changed(members=MEMBERS, training={"engine": engine})
    whole = run(values, tmp_path / "whole")

    def interrupt(progress: ExemplarProgress) -> None:
        if progress.step >= at:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match=r"stopped after step \d+ of 12, its state is saved"):
        run(values, tmp_path / "run", on_progress=interrupt)
    run(values, tmp_path / "run", resume=True)
    assert weights(tmp_path / "run") == weights(whole.path)
    assert log(tmp_path / "run") == log(whole.path)


KILLED = """
import json, os, signal, sys, torch
torch.set_num_threads(1)
from icl_fast.runs import parse_config
from icl_fast.training import train
at = int(sys.argv[3])
def kill(progress):
    if progress.step >= at:
        os.kill(os.getpid(), signal.SIGKILL)
train(parse_config(json.loads(sys.argv[1])), sys.argv[2], on_progress=kill)
"""


@pytest.mark.parametrize("at", [1, 8])
def test_killed_and_resumed_gives_the_same_bits(tmp_path: Path, at: int) -> None:
    values = changed(members=MEMBERS)
    whole = run(values, tmp_path / "whole")
    arguments = [json.dumps(values), str(tmp_path / "run"), str(at)]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with open(tmp_path / "run" / "log.jsonl", "a") as file:
        file.write('{"step": 9, "lo')  # as a kill in mid-write leaves it
    run(values, tmp_path / "run", resume=True)
    assert weights(tmp_path / "run") == weights(whole.path)
    assert log(tmp_path / "run") == log(whole.path)


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    run(TINY, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    run(TINY, tmp_path / "run", resume=True)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("engine", ENGINES)
def test_grafted_parts_stay_or_only_begin_there(tmp_path: Path, engine: str) -> None:
    donor = run(changed(training={"seed": 3}), tmp_path / "donor")
    graft = {"snapshot": str(donor.snapshot_path(12)), "parts": ["layer-2", "unembed"]}
    members = [
        {"name": "none"},
        {"name": "frozen", "set": {f"graft.{key}": value for key, value in graft.items()}},
        {"name": "begun", "set": {f"graft.{key}": value for key, value in graft.items()} | {"graft.frozen": False}},
    ]
    done = run(changed(members=members, training={"engine": engine}), tmp_path / "run")
    given = donor.load_snapshot(12).model
    first, last = (done.load_snapshot(step).model for step in (0, 12))
    for name, weight in given.named_parameters():
        a, b = first.get_parameter(name), last.get_parameter(name)
        if name.startswith(("blocks.1.", "final_norm", "unembed")):
            assert torch.equal(a[1], weight[0]), name
            assert torch.equal(a[2], weight[0]), name
            assert torch.equal(b[1], weight[0]), name
            assert not torch.equal(b[2], weight[0]), name
        else:
            assert torch.equal(a[1], a[0]), name
            assert not torch.equal(b[1], a[1]), name
        assert not torch.equal(b[0], a[0]), name


def test_noise_is_added_and_needs_the_plain_engine(tmp_path: Path) -> None:
    quiet = training_curves(run(changed(training={"engine": "auto"}), tmp_path / "quiet"))["training_loss"].values
    noisy = changed(training={"engine": "auto"}, sequences={"noise": 1.0})
    loud = training_curves(run(noisy, tmp_path / "loud"))["training_loss"].values
    assert (quiet != loud).all()
    with pytest.raises(InputError, match=r"training\.engine fused: reads features.*sequences\.noise must be 0"):
        run(changed(noisy, training={"engine": "fused"}), tmp_path / "fused")


def previous_token(pattern: Tensor) -> Tensor:
    length = pattern.shape[-1]
    return torch.eye(length).roll(-1, 1).index_copy(0, torch.tensor([0]), torch.eye(length)[:1]).expand_as(pattern)


INTERVENTIONS = {
    "pt-attend": ({"clamps": ["pt-attend"]}, [Intervention.apply("0.pattern", previous_token, heads=[2])]),
    "without heads": (
        {"without_heads": ["0.1", "1.3"]},
        [Intervention.zero("0.z", heads=[1]), Intervention.zero("1.z", heads=[3])],
    ),
    "temperature": ({"temperature": {"1.0": 0.5}}, [Intervention.apply("1.scores", lambda x: x / 0.5, heads=[0])]),
}


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_interventions_are_trained_under_as_clamps_are(tmp_path: Path, name: str) -> None:
    """The same run, to the bit, whether what is forced has a name in the config or is given from Python."""
    clamp, interventions = INTERVENTIONS[name]
    named = run(changed(interventions=clamp), tmp_path / "named")
    given = run(changed(training={"engine": "auto"}), tmp_path / "given", interventions=interventions)
    assert weights(named.path) == weights(given.path)
    xr.testing.assert_allclose(
        training_curves(named), training_curves(given), rtol=1e-4, atol=2e-6
    )  # evaluated by other passes
    assert weights(named.path) != weights(run(TINY, tmp_path / "free").path)


def test_any_intervention_can_be_trained_under(tmp_path: Path) -> None:
    """One that no clamp makes, and only where it was asked for: no gradient reaches what it replaces."""
    replaced = Intervention.apply("1.q", lambda q, k: k, reads=["0.k"])
    done = run(changed(members=MEMBERS), tmp_path / "run", interventions=[replaced])
    first, last = (done.load_snapshot(step).model for step in (0, 12))
    moved = {n for n, w in first.named_parameters() if not torch.equal(w, last.get_parameter(n))}
    assert set(dict(first.named_parameters())) - moved == {"blocks.1.attention.q.weight"}


def test_interventions_are_part_of_what_is_resumed(tmp_path: Path) -> None:
    zero = [Intervention.zero("0.z", heads=[1])]

    def interrupt(progress: ExemplarProgress) -> None:
        if progress.step >= 5:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(TINY, tmp_path / "run", interventions=zero, on_progress=interrupt)
    for others in ([], [Intervention.zero("0.z", heads=[2])]):
        with pytest.raises(InputError, match="interventions: are not those of the saved run"):
            run(TINY, tmp_path / "run", resume=True, interventions=others)
    run(TINY, tmp_path / "run", resume=True, interventions=zero)
    assert weights(tmp_path / "run") == weights(run(TINY, tmp_path / "whole", interventions=zero).path)


def test_interventions_need_the_plain_engine_and_any_batch(tmp_path: Path) -> None:
    def refused(pattern: str, intervention: Intervention, values: Values = TINY) -> None:
        with pytest.raises(InputError, match=pattern):
            run(values, tmp_path / "refused", interventions=[intervention])
        assert not (tmp_path / "refused").exists()

    zero = Intervention.zero("0.z")
    refused("fused: knows clamps alone, so there must be no", zero, changed(training={"engine": "fused"}))
    refused("interventions: no site '2.z'", Intervention.zero("2.z"))
    refused(r"'0\.z': examples is for one size of batch", Intervention.zero("0.z", examples=[1]))
    refused("mask is for one size", Intervention.zero("0.z", mask=torch.ones(4, dtype=torch.bool)))
    refused("value is for one size", Intervention.set("0.z", torch.zeros(4, 4, 5, 4)))


def test_auto_takes_the_fused_engine_where_it_can() -> None:
    def engine(values: Values) -> type:
        config = parse_config(changed(values, training={"engine": "auto"}))
        population, exemplars = Population(config), load_exemplars(config.exemplars)
        task = Task(population.model(exemplars), exemplars.features, population.clamps(), {}, config.training)
        return type(make_engine(task, population.noisy))

    assert engine(TINY) is FusedEngine
    assert engine(changed(model={"layers": 3})) is PlainEngine
    assert engine(changed(model={"mlp": True})) is PlainEngine


def test_a_resnet_on_images_is_trained(tmp_path: Path) -> None:
    """Its weights move, and the loss of one batch seen again and again falls."""
    import numpy as np

    random = np.random.default_rng(0)
    np.savez(tmp_path / "images.npz", features=random.random((12, 2, 8, 8), dtype=np.float32))
    values = changed(
        exemplars={"kind": "vectors", "path": str(tmp_path / "images.npz"), "exemplars": 2},
        sequences={"classes": 6, "held_out_classes": 4},
        model={"encoder": "resnet"},
        training={"lr": 3e-3, "steps": 6},
    )
    for key in ("classes", "width"):
        del values["exemplars"][key]
    done = run(values, tmp_path / "run")
    first, last = (done.load_snapshot(step).model for step in (0, 6))
    moved = [n for n, w in first.named_parameters() if not torch.equal(w, last.get_parameter(n))]
    assert [name for name in moved if name.startswith("embed_exemplar.")]
    assert math.isfinite(float(training_curves(done)["training_loss"][-1, 0]))


def test_bad_input(tmp_path: Path) -> None:
    def refused(pattern: str, values: Values) -> None:
        with pytest.raises(InputError, match=pattern):
            run(values, tmp_path / "refused")
        assert not (tmp_path / "refused").exists()

    refused("layers 0 to 1, heads 0 to 3", changed(interventions={"only_heads": ["1.9"]}))
    refused("head '1-3' is not understood", changed(interventions={"only_heads": ["1-3"]}))
    refused("members: wide: model.width is one for all", changed(members=[{"name": "wide", "set": {"model.width": 8}}]))
    refused(
        "member many: sequences.label_pool", changed(members=[{"name": "many", "set": {"sequences.label_pool": 1}}])
    )
    refused("sequences.classes 99: the exemplars have", changed(sequences={"classes": 99}))
    refused("training.l2_on mlp: the model has no such weights", changed(training={"l2": 0.1, "l2_on": "mlp"}))
    refused("training.engine fused: ", changed(training={"engine": "fused"}, model={"mlp": True}))
    refused("evaluator ciwl: sequences.p_icl 1", changed(evaluation={"names": ["ciwl"]}))
    refused("run: graft: snapshot: nowhere does not exist", changed(graft={"snapshot": "nowhere"}))
    refused("image None: the encoder resnet reads images", changed(model={"encoder": "resnet"}))
    with pytest.raises(InputError, match=r"config: training\.lrr: unknown key"):
        parse_config(changed(training={"lrr": 1}))
    with pytest.raises(InputError, match=r"config: members: need one or more, with different names"):
        parse_config(changed(members=[{"name": "a"}, {"name": "a"}]))
    with pytest.raises(InputError, match="holds no run to resume"):
        run(TINY, tmp_path / "nothing", resume=True)
    done = run(TINY, tmp_path / "run")
    with pytest.raises(InputError, match="exists and is not empty"):
        run(TINY, done.path)
    with pytest.raises(InputError, match=r"begun with other values of model\.heads, training\.lr"):
        run(changed(model={"heads": 2}, training={"lr": 1e-3}), done.path, resume=True)


def test_a_graft_of_another_shape(tmp_path: Path) -> None:
    donor = run(changed(model={"width": 8}), tmp_path / "donor")
    with pytest.raises(InputError, match=r"run: graft: .*: is \[8.*in the donor, \[16.*in the model"):
        run(changed(graft={"snapshot": str(donor.snapshot_path(0))}), tmp_path / "run")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_diverging_member_is_named(tmp_path: Path, engine: str) -> None:
    values = changed(members=MEMBERS, training={"lr": 1e30, "engine": engine})
    with pytest.raises(InputError, match=r"training\.lr: the loss of free is not finite at step 1; lower training\.lr"):
        run(values, tmp_path / "run")
    assert Run(tmp_path / "run").load_snapshot(0).step == 0


def test_a_full_disk(small_disk: Path) -> None:
    values = changed(model={"width": 64}, training={"steps": 100}, snapshots={"every": 1})
    with pytest.raises(InputError, match="the disk is full"):
        run(values, small_disk / "run")
    folder = Run(small_disk / "run")
    assert not list(folder.path.rglob(".tmp-*"))
    for step in folder.snapshot_steps():
        assert folder.load_snapshot(step).step == step


def test_damaged_files(tmp_path: Path) -> None:
    folder = run(TINY, tmp_path / "run")
    snapshot = folder.snapshot_path(6)
    content = bytearray(snapshot.read_bytes())
    content[-3] ^= 1
    snapshot.write_bytes(content)
    with pytest.raises(InputError, match=r"its SHA-256 is not the one in manifest\.json"):
        folder.load_snapshot(6)
    state = folder.path / "optimizer.pt"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"optimizer\.pt: is not as the run wrote it"):
        run(TINY, folder.path, resume=True)
