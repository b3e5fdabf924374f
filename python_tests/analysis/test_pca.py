"""Joint PCA against the singular vectors and the eigenvectors that define it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from icl_fast import InputError
from icl_fast.analysis import joint_pca


def runs_of(seed: int, snapshots: list[int], examples: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    stretch = np.linspace(1, 3, examples)
    return {f"run {i}": 5 + random.normal(size=(n, examples)) * stretch for i, n in enumerate(snapshots)}


def test_equals_the_singular_value_decomposition() -> None:
    runs = runs_of(0, [7, 4, 9], 31)
    pca = joint_pca(runs, components=3)
    stacked = np.concatenate([*runs.values()])
    u, s, vt = np.linalg.svd(stacked - stacked.mean(0), full_matrices=False)
    coordinates = np.concatenate([*pca.coordinates.values()])
    for k in range(3):
        sign = np.sign(vt[k][np.abs(vt[k]).argmax()])
        np.testing.assert_allclose(pca.components[k], sign * vt[k], atol=1e-12)
        np.testing.assert_allclose(coordinates[:, k], sign * u[:, k] * s[k], atol=1e-11)
    np.testing.assert_allclose(pca.explained_variance, s[:3] ** 2 / (len(stacked) - 1))
    np.testing.assert_allclose(pca.explained_variance_ratio, s[:3] ** 2 / (s**2).sum())
    np.testing.assert_allclose(pca.mean, stacked.mean(0))
    assert [len(of_run) for of_run in pca.coordinates.values()] == [7, 4, 9]


@given(
    st.integers(0, 10**6),
    st.lists(st.integers(1, 6), min_size=2, max_size=4).filter(lambda n: sum(n) > 3),
    st.randoms(),
)
def test_the_order_of_runs_and_snapshots_does_not_matter(seed: int, snapshots: list[int], random: object) -> None:
    runs = runs_of(seed, snapshots, 12)
    pca, again = joint_pca(runs), joint_pca(dict(runs))
    turned = joint_pca({name: runs[name][::-1] for name in reversed([*runs])})
    for name in runs:
        np.testing.assert_array_equal(pca.coordinates[name], again.coordinates[name])
        assert pca.coordinates[name].shape == (len(runs[name]), 2)
    np.testing.assert_allclose(turned.explained_variance, pca.explained_variance, rtol=1e-9)
    gap = 1 - pca.explained_variance[1:] / pca.explained_variance[:-1]
    largest = np.sort(np.abs(pca.components), axis=1)[:, -2:]
    if gap.min() > 1e-3 and np.diff(largest, axis=1).min() > 1e-6:  # else directions or signs are not determined
        np.testing.assert_allclose(turned.components[0], pca.components[0], atol=1e-9)
        for name in runs:
            np.testing.assert_allclose(turned.coordinates[name][::-1, 0], pca.coordinates[name][:, 0], atol=1e-8)


@given(st.integers(0, 10**6), st.floats(-5, 5))
def test_a_constant_added_to_all_snapshots_changes_nothing(seed: int, by: float) -> None:
    runs = runs_of(seed, [4, 5], 9)
    pca, moved = joint_pca(runs), joint_pca({name: losses + by for name, losses in runs.items()})
    np.testing.assert_allclose(moved.explained_variance, pca.explained_variance, rtol=1e-9)
    np.testing.assert_allclose(
        np.abs(moved.coordinates["run 1"][:, 0]), np.abs(pca.coordinates["run 1"][:, 0]), atol=1e-6
    )


def test_the_sign_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    class Turned(PCA):  # as another version of the library may choose them
        def fit(self, losses: np.ndarray) -> Turned:
            super().fit(losses)
            self.components_ = self.components_ * np.array([[-1.0], [1.0]])
            return self

    runs = runs_of(3, [4, 5], 9)
    pca = joint_pca(runs)
    monkeypatch.setattr("sklearn.decomposition.PCA", Turned)
    turned = joint_pca(runs)
    np.testing.assert_array_equal(turned.components, pca.components)
    np.testing.assert_array_equal(turned.coordinates["run 1"], pca.coordinates["run 1"])


def test_as_many_components_as_examples() -> None:
    runs = runs_of(2, [4, 5], 3)
    pca = joint_pca(runs, components=3)
    np.testing.assert_allclose(pca.components @ pca.components.T, np.eye(3), atol=1e-12)
    assert pca.explained_variance_ratio.sum() == pytest.approx(1)
    for name, losses in runs.items():
        np.testing.assert_allclose(pca.coordinates[name] @ pca.components + pca.mean, losses)


def test_a_straight_line_is_one_component() -> None:
    direction = np.array([3.0, 0.0, -4.0]) / 5
    pca = joint_pca({"a": np.outer([0.0, 1, 2], direction), "b": np.outer([5.0, 7], direction)}, components=1)
    assert pca.explained_variance_ratio[0] == pytest.approx(1)
    np.testing.assert_allclose(pca.components[0], -direction, atol=1e-12)  # the largest entry, -0.8, becomes positive
    np.testing.assert_allclose(pca.coordinates["b"][:, 0], [-2, -4], atol=1e-12)
    two = joint_pca({"a": np.outer([0.0, 1, 2], direction), "b": np.outer([5.0, 7], direction)})
    np.testing.assert_allclose(two.explained_variance_ratio, [1, 0], atol=1e-12)
    np.testing.assert_allclose(two.coordinates["b"], [[-2, 0], [-4, 0]], atol=1e-7)


def test_sweeps_give_the_losses_of_the_whole_model(
    made_sweep: Callable[..., xr.Dataset], token_losses: np.ndarray
) -> None:
    sweeps = {"a": made_sweep(token_losses, [0, 5, 9]), "b": made_sweep(token_losses[:2] + 0.1, [0, 7])}
    of_sweeps = joint_pca(sweeps)
    of_arrays = joint_pca({name: sweep["loss"].values[:, 0] for name, sweep in sweeps.items()})
    for name in sweeps:
        np.testing.assert_array_equal(of_sweeps.coordinates[name], of_arrays.coordinates[name])


def test_bad_input(made_sweep: Callable[..., xr.Dataset], token_losses: np.ndarray) -> None:
    losses = np.random.default_rng(1).normal(size=(4, 6))
    with pytest.raises(InputError, match="at least one run"):
        joint_pca({})
    with pytest.raises(InputError, match=r"number of examples of b is not that of a \(5, 6\)"):
        joint_pca({"a": losses, "b": losses[:, :5]})
    sweep, other = (made_sweep(token_losses, [0, 5, 9], text=text) for text in ("text", "other"))
    with pytest.raises(InputError, match="evaluation set of b is not that of a"):
        joint_pca({"a": sweep, "b": other})
    broken = losses.copy()
    broken[2, 3:] = np.nan
    with pytest.raises(
        InputError, match="losses of b: 3 of 24 values are not finite, the first at snapshot index 2, exa"
    ):
        joint_pca({"a": losses, "b": broken})
    sweep["loss"][1, 0, 4] = np.inf
    with pytest.raises(InputError, match="the first at snapshot 5, example index 4; leave out the snapshots"):
        joint_pca({"a": sweep})
    with pytest.raises(InputError, match="3 need more snapshots than that"):
        joint_pca({"a": losses[:3]}, components=3)
    with pytest.raises(InputError, match="equal losses"):
        joint_pca({"a": np.ones((4, 6))})
    with pytest.raises(InputError, match=r"must be \[snapshot, example\]"):
        joint_pca({"a": losses[0]})
    with pytest.raises(InputError, match="holds no loss"):
        joint_pca({"a": other.drop_vars("loss")})
    with pytest.raises(InputError, match="holds no ablation 'none'"):
        joint_pca({"a": other.isel(ablation=slice(1, None))})
