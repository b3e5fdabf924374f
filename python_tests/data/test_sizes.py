"""Sizes beyond what a machine can hold are refused before anything is built; other numbers that cannot be, too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from icl_fast.data import (
    DataConfig,
    Exemplars,
    SequenceConfig,
    cluster_embeddings,
    encode,
    evaluation_sequences,
    gaussian_classes,
    split,
    training_sequences,
    transformed,
)
from icl_fast.data.exemplar_source import ExemplarSource, load_exemplars
from icl_fast.errors import InputError
from icl_fast.schema import ValidationError

HUGE = [10**9, 10**12, 10**15, 10**30]
IMAGES = Exemplars(torch.rand(4, 3, 64), torch.arange(4), image=(8, 8))
POINTS = torch.rand(50, 3, generator=torch.Generator().manual_seed(0))
SEQUENCES = SequenceConfig(classes=4)


def source(**changes: Any) -> ExemplarSource:
    return ExemplarSource(**{"kind": "gaussian", "classes": 4, "exemplars": 3, "width": 8, **changes})


MAKERS: dict[str, Callable[[int], object]] = {
    "Gaussian classes": lambda size: gaussian_classes(size),
    "Gaussian exemplars": lambda size: gaussian_classes(exemplars=size),
    "Gaussian width": lambda size: gaussian_classes(width=size),
    "clusters": lambda size: cluster_embeddings(POINTS, 2, 1, clusters=size),
    "classes of clusters": lambda size: cluster_embeddings(POINTS, size, 1),
    "exemplars of clusters": lambda size: cluster_embeddings(POINTS, 2, size),
    "projection": lambda size: encode(IMAGES, "random-projection", width=size),
    "PCA": lambda size: encode(IMAGES, "pca", width=size),
    "convolutions": lambda size: encode(IMAGES, "random-convolutions", width=size),
    "evaluation": lambda size: evaluation_sequences("icl", SEQUENCES, IMAGES, size),
    "sequences": lambda size: training_sequences(SEQUENCES, IMAGES).draw(0, size),
    "noise": lambda size: training_sequences(SEQUENCES, IMAGES).noise(0, size, 64),
    "classes": lambda size: split(SequenceConfig(classes=size), IMAGES),
    "held-out classes": lambda size: split(SequenceConfig(held_out_classes=size), IMAGES),
    "exemplars": lambda size: split(SequenceConfig(exemplars=size), IMAGES),
    "exemplars.classes": lambda size: load_exemplars(source(classes=size)),
    "exemplars.exemplars": lambda size: load_exemplars(source(exemplars=size)),
    "exemplars.width": lambda size: load_exemplars(source(width=size)),
    "exemplars.classes of glyphs": lambda size: load_exemplars(source(kind="glyphs", classes=size, exemplars=1)),
}


@pytest.mark.parametrize("size", HUGE)
@pytest.mark.parametrize("maker", MAKERS)
def test_refused_before_anything_is_built(maker: str, size: int) -> None:
    with pytest.raises(InputError, match=r"needs .* of memory|there are|have|a class has|at most") as error:
        MAKERS[maker](size)
    assert f"{size}" in str(error.value).replace(",", "") or "must be at most" in str(error.value)
    assert str(error.value).startswith("exemplars: ") == maker.startswith("exemplars.")


def test_eight_times_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("icl_fast.memory.available", lambda: 10_000)
    with pytest.raises(InputError, match=r"^transforms of 4 classes: needs"):
        transformed(IMAGES)


@pytest.mark.parametrize(
    ("key", "values"),
    {
        "labels_per_class": [2**21, 10**15],
        "burstiness": [257, 10**15, 10**30],
        "noise": [1e7, 1e300],
        "label_pool": [10**15],
        "pairs": [10**15],
    }.items(),
)
def test_what_sequences_can_be(key: str, values: list[float]) -> None:
    for value in values:
        with pytest.raises(ValidationError, match=rf"(?s){key}.*less than or equal to"):
            SequenceConfig(**{key: value, "p_bursty": 0.0})


@pytest.mark.parametrize(("key", "value"), [("within", 1e7), ("seed", 2**63), ("seed", 10**30), ("size", 257)])
def test_what_exemplars_can_be(key: str, value: float) -> None:
    with pytest.raises(ValidationError, match=rf"(?s){key}.*less than or equal to"):
        source(**{key: value})


@pytest.mark.parametrize("vocab", [-1, 0, 256])
def test_vocabularies_smaller_than_the_bytes(vocab: int) -> None:
    with pytest.raises(ValidationError, match=r"too small: every byte and the special token need 257"):
        DataConfig(vocab=vocab)


@pytest.mark.parametrize("wrong", [2.5, "3", None, True, float("nan"), [3]])
def test_what_is_no_whole_number(wrong: Any) -> None:
    for name, make in {
        "classes": lambda: gaussian_classes(wrong),
        "seed": lambda: gaussian_classes(seed=wrong),
        "width": lambda: encode(IMAGES, "pca", width=wrong),
        "exemplars": lambda: cluster_embeddings(POINTS, 2, wrong),
        "count": lambda: evaluation_sequences("icl", SEQUENCES, IMAGES, wrong),
    }.items():
        with pytest.raises(InputError, match=f"^{name}: must be a whole number"):
            make()


def test_numbers_of_numpy_and_torch_are_numbers() -> None:
    made = gaussian_classes(np.int32(4), torch.tensor(3), np.uint8(5), noise=np.float32(0.5), seed=np.int64(7))
    assert torch.equal(made.features, gaussian_classes(4, 3, 5, seed=7).features)


@pytest.mark.parametrize("noise", [-1.0, 1e7, 1e300, float("nan"), float("inf"), "1"])
def test_noise_that_cannot_be(noise: Any) -> None:
    with pytest.raises(InputError, match=r"^noise: must be"):
        gaussian_classes(noise=noise)


@pytest.mark.parametrize("seed", [-1, 2**63, 10**30])
def test_seeds_that_no_generator_takes(seed: int) -> None:
    for make in (
        lambda: gaussian_classes(seed=seed),
        lambda: encode(IMAGES, seed=seed),
        lambda: cluster_embeddings(POINTS, 2, 1, seed=seed),
    ):
        with pytest.raises(InputError, match=r"^seed: must be"):
            make()
