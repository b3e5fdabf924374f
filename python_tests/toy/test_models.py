"""Losses and gradients of the toy models against the explicit tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from icl_fast.errors import InputError
from icl_fast.toy import Coopetition, Runs, TensorProduct, draw_runs, explicit_loss, vector_names
from icl_fast.toy.models import Model, mismatch

CASES: list[tuple[Model, tuple[int, ...]]] = [
    (TensorProduct(vector_names(1)), (5,)),
    (TensorProduct(vector_names(2)), (3, 7)),
    (TensorProduct(vector_names(3)), (4, 1, 6)),
    (TensorProduct(vector_names(5)), (2, 3, 4, 5, 3)),
    (Coopetition(), (5, 11, 3, 4)),
    (Coopetition(0.0, 0.0), (2, 3, 4, 5)),
    (Coopetition(0.3, 2.0), (7, 5, 1, 2)),
]
IDS = [f"{type(model).__name__} {dims}" for model, dims in CASES]


def as_tensors(runs: Runs, dims: tuple[int, ...], run: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The vectors of a run and their true values, as they were drawn."""
    length = np.sqrt(runs.power[:, run] * np.array(dims))
    start, true = (
        [torch.tensor(values[:dim, v, run] * length[v]) for v, dim in enumerate(dims)]
        for values in (runs.start, runs.true)
    )
    return start, true


@pytest.mark.parametrize(("model", "dims"), CASES, ids=IDS)
def test_gradient_is_autograds_on_the_explicit_tensors(model: Model, dims: tuple[int, ...]) -> None:
    runs = draw_runs(model.names, dims, range(4), plane=False)
    own, towards = model.slopes(runs, runs.start)((runs.start * runs.true).sum(0), (runs.start**2).sum(0))
    for run in range(4):
        start, true = as_tensors(runs, dims, run)
        loss = explicit_loss(model, [vector.requires_grad_() for vector in start], true)
        for v, gradient in enumerate(torch.autograd.grad(loss, start)):
            mine = (own[v, run] * start[v] - towards[v, run] * true[v]) / true[v].square().sum()
            torch.testing.assert_close(mine.detach(), gradient, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(("model", "dims"), CASES, ids=IDS)
def test_gradient_is_the_slope_of_the_loss(model: Model, dims: tuple[int, ...]) -> None:
    runs = draw_runs(model.names, dims, range(3))
    along, across = runs.start
    own, towards = model.slopes(runs, along)(along, along**2 + across**2)
    h = 1e-5
    for v in range(len(dims)):
        step = np.zeros_like(along)
        step[v] = h
        for found, moved in ((own * along - towards, (step, 0)), (own * across, (0, step))):
            up, down = (
                model.losses(runs, along + sign * moved[0], across + sign * moved[1])[0] for sign in (1.0, -1.0)
            )
            np.testing.assert_allclose((up - down) / (2 * h), found[v], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("model", "dims"), CASES, ids=IDS)
@pytest.mark.parametrize("plane", [True, False])
def test_loss_is_that_of_the_explicit_tensors(model: Model, dims: tuple[int, ...], plane: bool) -> None:
    runs, whole = (draw_runs(model.names, dims, range(4), plane=flat) for flat in (plane, False))
    along = (runs.start * runs.true).sum(0)
    across = np.sqrt(((runs.start - along * runs.true) ** 2).sum(0))
    losses = model.losses(runs, along, across)
    assert losses.shape == (len(model.terms), 4)
    for run in range(4):
        assert losses[0, run] == pytest.approx(float(explicit_loss(model, *as_tensors(whole, dims, run))), rel=1e-12)


def test_terms_of_the_coopetition_model_make_up_its_loss() -> None:
    model, dims = Coopetition(0.2, 0.7), (3, 4, 5, 2)
    runs = draw_runs(model.names, dims, range(5))
    loss, first, second, competition = model.losses(runs, *runs.start)
    np.testing.assert_allclose(loss, (first + 0.2) * second + 0.7 * competition, rtol=1e-14)
    whole = draw_runs(model.names, dims, range(5), plane=False)
    (a, d, b, c), (a_, d_, b_, c_) = as_tensors(whole, dims, 2)
    outer = torch.einsum
    for term, other, right in ((first, a, a_), (second, d, d_)):
        error = outer("i,j,k->ijk", right, b_, c_) - outer("i,j,k->ijk", other, b, c)
        assert term[2] == pytest.approx(float(error.square().mean() / 2), rel=1e-12)
    assert competition[2] == pytest.approx(float(outer("i,j->ij", a, d).square().mean() / 2), rel=1e-12)
    np.testing.assert_allclose(
        model.sizes(runs)[:, 2], [float(outer("i,j,k->ijk", x, b_, c_).square().mean() / 2) for x in (a_, d_)]
    )


def test_mismatch_is_right_to_the_last_digits_where_nearly_all_is_learned() -> None:
    along, across = np.ones((3, 2)), np.zeros((3, 2))
    across[1, 0], along[2, 1] = 1e-9, 1 + 2.0**-30
    np.testing.assert_allclose(mismatch(along, across), [1e-18, 2.0**-60], rtol=1e-15)


def test_zero_vectors_are_a_stationary_point_at_the_plateaus_loss() -> None:
    for model, dims in CASES[1:]:
        runs = draw_runs(model.names, dims, range(2))
        zero = np.zeros_like(runs.rate)
        own, towards = model.slopes(runs, zero)(zero, zero)
        assert not (own * zero - towards).any()
    model = TensorProduct()
    runs = draw_runs(model.names, (3, 4, 5), range(2))
    zero = np.zeros_like(runs.rate)
    np.testing.assert_allclose(model.losses(runs, zero, zero)[0], 0.5 * runs.power.prod(0))


@pytest.mark.parametrize("values", [{"mu": -0.1}, {"alpha": float("nan")}, {"mu": np.array([0.1, -1.0])}])
def test_bad_mu_and_alpha(values: dict[str, float]) -> None:
    with pytest.raises(InputError, match="must be 0 or more"):
        Coopetition(**values)
