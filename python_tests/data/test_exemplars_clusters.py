from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from icl_fast.data import cluster_embeddings
from icl_fast.data.clusters import spherical_kmeans
from icl_fast.data.exemplar_source import ExemplarSource, load_exemplars
from icl_fast.errors import InputError
from icl_fast.models import load_snapshot


def blobs(clusters: int = 6, each: int = 15, width: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Directions around some centres, with lengths that vary and say nothing, and the centre of each."""
    random = torch.Generator().manual_seed(0)
    centres = torch.nn.functional.normalize(torch.randn(clusters, width, generator=random), dim=1)
    of = torch.randint(clusters, (clusters * each,), generator=random)
    points = centres[of] + 0.05 * torch.randn(len(of), width, generator=random)
    return points * torch.rand(len(of), 1, generator=random).add(0.1).mul(30), of


def partition(labels: Any) -> set[frozenset[int]]:
    labels = np.asarray(labels)
    return {frozenset(np.flatnonzero(labels == label).tolist()) for label in np.unique(labels)}


def test_clusters_against_scikit_learn() -> None:
    points, of = blobs()
    unit = torch.nn.functional.normalize(points, dim=1)
    best = max(
        (spherical_kmeans(unit, 6, iterations=50, random=torch.Generator().manual_seed(s)) for s in range(300)),
        key=lambda found: float(found[1].sum()),
    )
    assert partition(best[0]) == partition(KMeans(6, n_init=20, random_state=0).fit_predict(unit)) == partition(of)


def test_converged_clusters_are_a_fixed_point_of_the_definition() -> None:
    random = torch.Generator().manual_seed(2)
    unit = torch.nn.functional.normalize(torch.randn(200, 5, generator=random), dim=1)
    assigned, similarity = spherical_kmeans(unit, 17, iterations=500, random=random)
    centroids = torch.stack([torch.nn.functional.normalize(unit[assigned == c].sum(0), dim=0) for c in range(17)])
    cosines = unit @ centroids.T
    torch.testing.assert_close(similarity, cosines.max(1).values)
    torch.testing.assert_close(cosines[torch.arange(200), assigned], cosines.max(1).values)


def test_more_iterations_never_fit_worse() -> None:
    unit = torch.nn.functional.normalize(torch.randn(300, 8, generator=torch.Generator().manual_seed(5)), dim=1)
    fits = [
        float(spherical_kmeans(unit, 20, iterations=n, random=torch.Generator().manual_seed(1))[1].sum())
        for n in (1, 2, 4, 8, 16)
    ]
    assert fits == sorted(fits)


def test_an_empty_cluster_takes_half_of_another() -> None:
    # two directions only, so of five centroids three start as copies that win no point
    unit = torch.eye(2).repeat_interleave(20, 0) + 0.2 * torch.rand(40, 2, generator=torch.Generator().manual_seed(0))
    unit[:10] = unit[0]
    unit[20:30] = unit[20]
    unit = torch.nn.functional.normalize(unit, dim=1)
    assigned, _ = spherical_kmeans(unit, 5, iterations=40, random=torch.Generator().manual_seed(0))
    assert len(torch.unique(assigned)) == 5


def test_classes_are_the_outermost_of_clusters_with_more_than_enough_tokens() -> None:
    points, _ = blobs()
    names = [str(token) for token in range(len(points))]
    found = cluster_embeddings(points, 4, 7, clusters=6, names=names, seed=1)
    assert found.features.shape == (4, 7, 12)
    assert found.base.tolist() == [0, 1, 2, 3]
    rows = [[int(token) for token in name.split(" | ")] for name in found.names]
    assert torch.equal(found.features, points[torch.tensor(rows)])
    assert len({token for row in rows for token in row}) == 28
    unit = torch.nn.functional.normalize(points, dim=1)
    assigned, _ = spherical_kmeans(unit, 6, iterations=25, random=torch.Generator().manual_seed(1))
    for row in rows:
        cluster = (assigned == assigned[row[0]]).nonzero().flatten().tolist()
        assert len(cluster) > 7
        centroid = unit[cluster].sum(0)
        assert row == sorted(cluster, key=lambda token: float(unit[token] @ centroid))[:7]
    assert torch.equal(found.features, cluster_embeddings(points, 4, 7, clusters=6, seed=1).features)
    largest = int(torch.bincount(assigned).max())
    with pytest.raises(InputError, match=f"0 of 6 hold more than {largest} tokens"):
        cluster_embeddings(points, 2, largest, clusters=6, seed=1)


def test_only_the_tokens_named_are_used() -> None:
    points, _ = blobs()
    points[:10] = 0  # which would be refused
    found = cluster_embeddings(points, 2, 3, tokens=(10, 69), names=[str(t) for t in range(len(points))])
    tokens = {int(token) for name in found.names for token in name.split(" | ")}
    assert tokens <= set(range(10, 70))


def test_sources(tiny_run: Path, tmp_path: Path) -> None:
    snapshot = sorted((tiny_run / "snapshots").iterdir())[-1]
    weight = load_snapshot(snapshot).model.embed.weight.detach()
    expected = cluster_embeddings(weight, 4, 3, seed=2)
    assert torch.equal(cluster_embeddings(snapshot, 4, 3, seed=2).features, expected.features)
    np.savez(tmp_path / "e.npz", embeddings=weight.numpy(), other=np.zeros((2, 2)))
    assert torch.equal(cluster_embeddings(tmp_path / "e.npz", 4, 3, seed=2).features, expected.features)
    np.savez(tmp_path / "two.npz", a=weight.numpy(), b=weight.numpy())
    with pytest.raises(InputError, match=r"needs an array embeddings \[N,F\]; it holds a \[280, 16\], b"):
        cluster_embeddings(tmp_path / "two.npz", 4, 3)


def test_a_config_says_how(tmp_path: Path) -> None:
    """Embeddings as they are: no encoder unless one is named."""
    points, _ = blobs()
    np.savez(tmp_path / "e.npz", embeddings=points.numpy())
    raw = {"kind": "clusters", "path": str(tmp_path / "e.npz"), "classes": 3, "exemplars": 4, "seed": 1}
    chosen = {"clusters": 5, "tokens": (2, 80), "iterations": 3}
    source = ExemplarSource(**raw, **chosen)  # type: ignore[arg-type]
    assert source.encoder == "none"
    expected = cluster_embeddings(points, 3, 4, seed=1, **chosen)  # type: ignore[arg-type]
    assert torch.equal(load_exemplars(source).features, expected.features)
    again = ExemplarSource.model_validate(source.model_dump(mode="json"))
    assert again == source
    assert ExemplarSource(**raw, encoder="pca", width=2).encoder == "pca"  # type: ignore[arg-type]
    assert ExemplarSource().encoder == "random-projection"
    with pytest.raises(ValueError, match=r"tokens=.*is not used with kind=auto"):
        ExemplarSource(tokens=(0, 5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embeddings": torch.rand(5)}, r"embeddings: must be \[V,F\]"),
        ({"embeddings": torch.tensor([[1.0], [float("nan")], [2.0]])}, "token 1 is not finite"),
        ({"embeddings": torch.cat([torch.rand(20, 3), torch.zeros(1, 3)])}, "token 20 is zero"),
        ({"tokens": (5, 90)}, "tokens: 5 to 90 are not among the 90 tokens"),
        ({"tokens": (9, 5)}, "tokens: 9 to 5"),
        ({"names": ["a"]}, "names: must be 90"),
        ({"classes": 1}, "classes: must be 2 or more, got 1"),
        ({"clusters": 1}, "clusters: must be at least 2 classes"),
        ({"clusters": 91}, "at most 90 tokens, got 91"),
        ({"embeddings": Path("nothing.npz")}, "does not exist"),
        ({"embeddings": Path("nothing.safetensors")}, "does not exist"),
    ],
)
def test_bad_input(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        cluster_embeddings(**{"embeddings": blobs()[0], "classes": 2, "exemplars": 3, **change})
