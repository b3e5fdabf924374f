"""Runs: what they start from, descent against the definition, one batch of many settings, the gradient flow."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from icl_fast.errors import InputError
from icl_fast.toy import (
    Coopetition,
    TensorProduct,
    Trajectory,
    draw_runs,
    explicit_loss,
    gradient_flow,
    join_runs,
    record_at,
    simulate,
    simulate_parts,
    vector_names,
)
from icl_fast.toy.models import Model

FOUR = Coopetition().names


def test_the_plane_is_the_whole_dynamics() -> None:
    """Both forms agree to rounding over 20,000 steps: through the plateau, the phase change and the takeover."""
    model, at = Coopetition(), record_at(20_000, 100)
    plane, whole = (simulate(model, draw_runs(FOUR, (20, 160, 20, 20), [2, 5], plane=p), at) for p in (True, False))
    assert plane.runs.start.shape == (2, 4, 2)
    assert whole.runs.start.shape == (160, 4, 2)
    np.testing.assert_allclose(plane.losses(), whole.losses(), rtol=1e-9, atol=1e-13)
    first = plane.losses()[:, 1] / model.sizes(plane.runs)[0]
    assert (first.min(0) < 0.1).all()  # else the comparison would be of plateaus
    assert (first[-1] > 0.9).all()


@pytest.mark.parametrize(
    "model", [TensorProduct(vector_names(3)), Coopetition(0.05, 0.2)], ids=["3 vectors", "coopetition"]
)
@pytest.mark.parametrize("clamped", [(), ("b",), ("b", "c")])
def test_descent_is_that_on_the_explicit_tensors(model: Model, clamped: tuple[str, ...]) -> None:
    dims, lr, steps = (5, 6, 4, 3)[: len(model.names)], 0.4, 150
    runs = draw_runs(model.names, dims, [3], lr=lr, scale=0.7, clamped=clamped)
    found = simulate(model, runs, record_at(steps, 1)).losses()[:, 0, 0]
    generator, drawn = np.random.default_rng(3), {}
    for name in sorted(model.names):
        drawn[name] = torch.tensor(generator.standard_normal((2, dims[model.names.index(name)])))
    true = [drawn[name][0] for name in model.names]
    vectors = [drawn[n][0 if n in clamped else 1] * (1 if n in clamped else 0.7) for n in model.names]
    for step in range(steps + 1):
        loss = explicit_loss(model, [vector.requires_grad_() for vector in vectors], true)
        assert found[step] == pytest.approx(float(loss.detach()), rel=1e-9, abs=1e-15)
        gradients = torch.autograd.grad(loss, vectors)
        pairs = zip(model.names, vectors, gradients, strict=True)
        vectors = [(x if name in clamped else x - lr * dx).detach() for name, x, dx in pairs]


def test_settings_in_one_batch_are_what_they_are_alone() -> None:
    values = [
        {"dims": (20, 40, 20, 20)},
        {"dims": (3, 5, 4, 7), "lr": 0.3},
        {"dims": (20, 40, 20, 20), "clamped": ("c", "d")},
        {"dims": (6, 6, 6, 6), "scale": 0.5},
    ]
    parts = [draw_runs(FOUR, seeds=[1, 4], **one) for one in values]
    mu, alpha, at = np.repeat([0.1, 0.0, 0.5, 0.2], 2), np.repeat([0.1, 0.3, 0.0, 1.0], 2), record_at(500, 50)
    batch = simulate(Coopetition(mu, alpha), join_runs(parts), at)
    for index, part in enumerate(parts):
        alone = simulate(Coopetition(mu[2 * index], alpha[2 * index]), part, at)
        mine = slice(2 * index, 2 * index + 2)
        np.testing.assert_allclose(batch.along[..., mine], alone.along, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(batch.losses()[..., mine], alone.losses(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("plane", [True, False])
def test_fewer_vectors_in_one_batch(plane: bool) -> None:
    parts = [draw_runs(vector_names(count), [count + 2] * count, range(3), plane=plane) for count in (1, 2, 4)]
    batch = simulate(TensorProduct(vector_names(4)), join_runs(parts), record_at(100, 10)).losses()
    for index, part in enumerate(parts):
        alone = simulate(TensorProduct(part.names), part, record_at(100, 10)).losses()
        np.testing.assert_allclose(batch[..., 3 * index : 3 * index + 3], alone, rtol=1e-12, atol=1e-15)


def test_torch_gives_what_numpy_gives() -> None:
    runs, at = draw_runs(FOUR, (5, 9, 4, 6), range(3), clamped=("b",)), record_at(300, 30)
    for model in (Coopetition(np.array([0.0, 0.1, 0.2]), 0.1), TensorProduct(FOUR)):
        here, there = (simulate(model, runs, at, device=device) for device in ("cpu", "cpu:0"))
        np.testing.assert_allclose(here.along, there.along, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(here.across, there.across, rtol=1e-12, atol=1e-14)


def test_parts_are_the_whole() -> None:
    model, runs, at = (
        Coopetition(np.linspace(0, 0.2, 7), 0.1),
        draw_runs(FOUR, (5, 9, 4, 6), range(7)),
        record_at(40, 4),
    )
    calls: list[tuple[int, int, str]] = []
    each = 6 * 16 * 4 * len(at)
    parts = list(simulate_parts(model, runs, at, memory=3 * each, on_done=lambda *call: calls.append(call)))
    assert [len(part.runs) for part in parts] == [3, 3, 1]
    whole = simulate(model, runs, at).losses()
    np.testing.assert_array_equal(np.concatenate([part.losses() for part in parts], axis=-1), whole)
    assert calls[-1] == (120, 120, "part 3 of 3")


def test_a_seed_is_the_same_whatever_else_is_asked_for() -> None:
    one = draw_runs("abc", (4, 5, 6), [7, 2])
    other = draw_runs(("a", "d", "b", "c"), (4, 9, 5, 6), [2], lr=0.5, clamped=("c",))
    np.testing.assert_allclose(one.start[:, :2, 1], other.start[:, [0, 2], 0])
    np.testing.assert_allclose(one.power[:, 1], other.power[[0, 2, 3], 0])
    np.testing.assert_allclose(one.rate[0, 1], 2 * other.rate[0, 0])
    assert other.start[:, 3].tolist() == [[1.0], [0.0]]
    assert other.rate[3, 0] == 0


def test_steps_half_as_long_are_half_as_far_from_the_flow() -> None:
    model, times = Coopetition(), np.arange(0, 3001, 50.0)
    flow = gradient_flow(model, draw_runs(FOUR, (20, 160, 20, 20), [3]), times).losses()
    distance = []
    for per_step in (4, 8):
        runs = draw_runs(FOUR, (20, 160, 20, 20), [3], lr=1 / per_step)
        steps = simulate(model, runs, record_at(3000 * per_step, 50 * per_step)).losses()
        distance.append(np.abs(steps - flow)[1:].max())
    assert distance[0] / distance[1] == pytest.approx(2, rel=0.1)
    assert distance[0] < 0.05


def test_flow_of_one_clamped_pair_is_exponential() -> None:
    runs = draw_runs("abc", (6, 5, 4), [1], clamped=("b", "c"))
    times = np.linspace(0, 40, 9)
    rate = float(runs.rate[0, 0] * runs.power.prod(0)[0])
    flow = gradient_flow(TensorProduct(), runs, times)
    np.testing.assert_allclose(flow.losses()[:, 0, 0], flow.losses()[0, 0, 0] * np.exp(-2 * rate * times), rtol=1e-6)


def test_a_run_that_diverges_does_so_alone() -> None:
    runs = join_runs([draw_runs("abc", (4, 5, 6), [0, 1], lr=lr) for lr in (0.1, 1e4)])
    found = simulate(TensorProduct(), runs, record_at(100, 10))
    assert found.diverged().tolist() == [False, False, True, True]
    alone = simulate(TensorProduct(), runs.part(slice(0, 2)), record_at(100, 10))
    np.testing.assert_array_equal(found.losses()[..., :2], alone.losses())


def test_progress_measures() -> None:
    runs = draw_runs("abc", (4, 5, 6), [0, 1], plane=False)
    found: Trajectory = simulate(TensorProduct(), runs, record_at(20, 10))
    first = found.runs.start
    cosine = (first * runs.true).sum(0) / np.sqrt((first**2).sum(0))
    np.testing.assert_allclose(found.squared_cosine()[0], cosine**2)
    length = np.sqrt(runs.power * np.array([4, 5, 6])[:, None])
    a, a_, b_, c_ = (
        torch.tensor(x[:, v, 1] * length[v, 1]) for x, v in ((first, 0), *((runs.true, v) for v in range(3)))
    )
    true = [a_[:4], b_[:5], c_]
    losses = [float(explicit_loss(TensorProduct(), [sign * a[:4], *true[1:]], true)) for sign in (1, -1)]
    assert found.loss_others_true()[0, 0, 1] == pytest.approx(min(losses), rel=1e-12)


def test_bad_input() -> None:
    runs = draw_runs("abc", (2, 2, 2), [0])
    with pytest.raises(InputError, match="steps: must be from 1"):
        record_at(0, 1)
    with pytest.raises(InputError, match="every: must be from 1 to 5"):
        record_at(5, 6)
    with pytest.raises(InputError, match="rise from 0"):
        simulate(TensorProduct(), runs, [0, 5, 5])
    with pytest.raises(InputError, match="the model is of a, d, b, c"):
        simulate(Coopetition(), runs, [0, 1])
    with pytest.raises(InputError, match="plane=True"):
        gradient_flow(TensorProduct(), draw_runs("abc", (4, 5, 6), [0], plane=False), np.array([0.0, 1.0]))
    with pytest.raises(InputError, match="do not join"):
        join_runs([runs, draw_runs("xy", (2, 2), [0])])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dims": (1, 2)}, "one for each of the vectors a, b, c"),
        ({"dims": (1, 2, 0)}, "dims: must be 1 or more"),
        ({"seeds": []}, "seeds: one or more"),
        ({"seeds": [-1]}, "from 0 to 2"),
        ({"clamped": "ad"}, "no vector d"),
        ({"lr": 0.0}, "lr: must be positive"),
        ({"scale": float("inf")}, "scale: must be positive"),
    ],
)
def test_bad_runs(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        draw_runs(**{"names": "abc", "dims": (2, 3, 4), "seeds": [0]} | change)
