"""Classes made of a language model's token embeddings: clusters of like direction (Singh 2025, appendix B.1)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from icl_fast.arguments import MOST_SEED, whole_number
from icl_fast.data.exemplar_files import read_array
from icl_fast.data.exemplars import Exemplars
from icl_fast.data.input_files import printable
from icl_fast.errors import InputError
from icl_fast.memory import check_fits
from icl_fast.models import Transformer, load_snapshot

_CHUNK = 4096  # points whose similarities to all centroids are held at once
_SPLIT = 1 / 1024  # how far, relatively, the two halves of a split cluster move apart


def cluster_embeddings(
    embeddings: Tensor | str | Path,
    classes: int = 1600,
    exemplars: int = 10,
    *,
    clusters: int | None = None,
    tokens: tuple[int, int] | None = None,
    names: Sequence[str] = (),
    iterations: int = 25,
    seed: int = 0,
) -> Exemplars:
    """Cluster token embeddings by cosine and take the outermost tokens of each cluster as a class.

    The procedure of B.1: k-means by cosine into half as many clusters again as there are to be classes; of the clusters
    with MORE than `exemplars` tokens a random choice of `classes`; of each the `exemplars` tokens furthest from the
    centroid, furthest first. The thesis uses 1,600 classes of 10 (from 2,400 clusters) and 3,200 of 5 (from 4,800), and
    tokens (259, 29870) of LLaMA 1, whose others are bytes and characters of other scripts. The features are the
    embeddings as they are.

    Args:
        embeddings: `[V,F]`, a snapshot of a run (`RUN/snapshots/*.safetensors`), or an .npz or .h5 file with one
            matrix, or one called `embeddings`.
        clusters: for k-means; `classes * 3 // 2` by default.
        tokens: the first and the last id to use, both inclusive; all by default.
        names: `[V]`, what the tokens say; a class is then named by its tokens.
        iterations: of k-means; it stops earlier where nothing moves.
        seed: of the first centroids and of the choice of clusters.

    Raises:
        InputError: embeddings of another shape, not finite or zero; too few tokens, or too few clusters that are large
            enough.
    """
    classes, exemplars = whole_number("classes", classes, 2), whole_number("exemplars", exemplars, 1)
    iterations, seed = whole_number("iterations", iterations, 1), whole_number("seed", seed, 0, MOST_SEED)
    count = classes * 3 // 2 if clusters is None else whole_number("clusters", clusters)
    matrix, source = _matrix(embeddings)
    first, last = tokens or (0, len(matrix) - 1)
    if not 0 <= first <= last < len(matrix):
        raise InputError(f"tokens: {first} to {last} are not among the {len(matrix)} tokens 0 to {len(matrix) - 1}")
    if names and len(names) != len(matrix):
        raise InputError(f"names: must be {len(matrix)}, one a token, got {len(names)}")
    used = matrix[first : last + 1]
    if not classes <= count <= len(used):
        raise InputError(f"clusters: must be at least {classes} classes and at most {len(used)} tokens, got {count}")
    if classes * (exemplars + 1) > len(used):
        raise InputError(
            f"classes {classes} of more than {exemplars} exemplars: there are {len(used)} tokens; lower one"
        )
    check_fits(8 * count * (_CHUNK + used.shape[1]), f"clusters: {count}")
    lengths = used.norm(dim=1, keepdim=True)
    if bool((lengths == 0).any()):
        token = first + int((lengths == 0).flatten().nonzero()[0])
        raise InputError(f"embeddings: token {token} is zero, so has no direction; leave it out with tokens=")
    random = torch.Generator().manual_seed(seed)
    points = used / lengths
    assigned, similarity = spherical_kmeans(points, count, iterations=iterations, random=random)
    sizes = torch.bincount(assigned, minlength=count)
    large = (sizes > exemplars).nonzero().flatten()
    if len(large) < classes:
        raise InputError(
            f"clusters: {len(large)} of {count} hold more than {exemplars} tokens, {classes} are needed; "
            f"use fewer classes or exemplars, or another seed"
        )
    chosen = large[torch.randperm(len(large), generator=random)[:classes]]
    members = torch.stack([_outermost(assigned, similarity, int(cluster), exemplars) for cluster in chosen])  # [K,E]
    return Exemplars(
        used[members],
        torch.arange(classes),
        tuple(" | ".join(names[first + int(token)] for token in row) for row in members) if names else (),
        source=f"{source}, {count} clusters by cosine, seed {seed}",
    )


def spherical_kmeans(
    points: Tensor, clusters: int, *, iterations: int, random: torch.Generator
) -> tuple[Tensor, Tensor]:
    """k-means by cosine: each point goes to the centroid of the largest cosine; a centroid is the normalised mean.

    The first centroids are points drawn at random. A cluster left empty takes half of another, drawn by size, by moving
    apart two copies of that one's centroid, as FAISS does.

    Args:
        points: `[N,F]` float32, of unit length.

    Returns:
        Each point's cluster `[N]` int64, and its cosine to that centroid `[N]`.
    """
    centroids = points[torch.randperm(len(points), generator=random)[:clusters]].clone()
    assigned, similarity = _assign(points, centroids)
    for _ in range(iterations):
        sums = torch.zeros_like(centroids).index_add_(0, assigned, points)
        sizes = torch.bincount(assigned, minlength=clusters)
        _fill_empty(sums, sizes, random)
        centroids = torch.nn.functional.normalize(sums, dim=1)
        before = assigned
        assigned, similarity = _assign(points, centroids)
        if torch.equal(assigned, before):
            break
    return assigned, similarity


def _assign(points: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    parts = [(part @ centroids.T).max(1) for part in torch.split(points, _CHUNK)]
    return torch.cat([part.indices for part in parts]), torch.cat([part.values for part in parts])


def _fill_empty(sums: Tensor, sizes: Tensor, random: torch.Generator) -> None:
    signs = torch.ones(sums.shape[1])
    signs[1::2] = -1
    for empty in (sizes == 0).nonzero().flatten():
        giver = int(torch.multinomial((sizes - 1).clamp(min=0).double(), 1, generator=random))
        sums[empty] = sums[giver] * (1 + _SPLIT * signs)
        sums[giver] *= 1 - _SPLIT * signs
        sizes[empty] = sizes[giver] // 2
        sizes[giver] -= sizes[empty]


def _outermost(assigned: Tensor, similarity: Tensor, cluster: int, count: int) -> Tensor:
    members = (assigned == cluster).nonzero().flatten()
    return members[similarity[members].argsort(stable=True)[:count]]


def _matrix(embeddings: Tensor | str | Path) -> tuple[Tensor, str]:
    source = "token embeddings"
    if isinstance(embeddings, Tensor):
        matrix = embeddings
    else:
        source += f" of {printable(Path(Path(embeddings).name))}"
        matrix = _of_file(embeddings)
    matrix = matrix.detach().cpu().float()
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise InputError(f"embeddings: must be [V,F], got {list(matrix.shape)}")
    if not bool(torch.isfinite(matrix).all()):
        raise InputError(f"embeddings: token {int((~torch.isfinite(matrix)).any(1).nonzero()[0])} is not finite")
    return matrix, source


def _of_file(path: str | Path) -> Tensor:
    if Path(path).suffix != ".safetensors":
        return torch.from_numpy(read_array(path, "embeddings"))
    model = load_snapshot(path).model
    if not isinstance(model, Transformer):
        raise InputError(f"snapshot {path}: is of a model on exemplars, which has no token embeddings")
    return model.embed.weight
