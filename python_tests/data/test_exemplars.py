from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from icl_fast.data import TRANSFORMS, Exemplars, encode, gaussian_classes, transformed
from icl_fast.data.encoders import ENCODERS
from icl_fast.data.exemplar_source import ExemplarSource, load_exemplars
from icl_fast.data.pixel_noise import with_pixel_noise
from icl_fast.errors import InputError

GOOD: dict[str, Any] = {"features": torch.rand(3, 2, 4), "base": torch.arange(3), "names": ("a", "b", "c")}


def images(classes: int = 4, count: int = 3, side: int = 5) -> Exemplars:
    random = torch.Generator().manual_seed(1)
    pixels = torch.rand(classes, count, side * side, generator=random)
    return Exemplars(pixels, torch.arange(classes), tuple("abcdefgh"[:classes]), (side, side), "noise")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.rand(3, 4)}, r"features: must be a float32 tensor \[K,E,F\], got torch.float32 \[3, 4\]"),
        ({"features": torch.rand(3, 2, 4).double()}, "got torch.float64"),
        ({"features": np.zeros((3, 2, 4))}, "got ndarray"),
        ({"features": torch.rand(1, 2, 4), "base": torch.arange(1), "names": ()}, "needs 2 classes"),
        ({"features": torch.rand(3, 0, 4)}, "needs 2 classes, an exemplar"),
        ({"features": torch.full((3, 2, 4), float("nan"))}, "class 0 holds NaN"),
        ({"features": torch.tensor([[[1.0]], [[2.0]], [[float("inf")]]])}, "class 2 holds NaN or infinity"),
        ({"base": torch.arange(4)}, r"base: must be an int64 tensor \[3\]"),
        ({"base": torch.arange(3).int()}, "base: must be an int64"),
        ({"base": torch.tensor([0, -1, 2])}, "base: must be 0 or more, got -1"),
        ({"names": ("a",)}, "names: must be 3"),
        ({"image": (2, 3)}, r"image: \(2, 3\) is not \(height, width\) of 4 pixels"),
    ],
)
def test_bad_exemplars(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Exemplars(**{**GOOD, **change})


def test_pixels() -> None:
    given_features = Exemplars(**GOOD, image=(1, 4))
    assert torch.equal(given_features.pixels, GOOD["features"].view(3, 2, 1, 4))
    with pytest.raises(InputError, match="are vectors"):
        _ = Exemplars(**GOOD).pixels


def test_a_transformed_class_is_its_base_class_turned_exemplar_by_exemplar() -> None:
    before = images()
    after = transformed(before)
    assert after.features.shape == (32, 3, 25)
    assert after.base.tolist() == [k for k in range(4) for _ in range(8)]
    for k in range(4):
        for t, how in enumerate(TRANSFORMS):
            assert after.names[8 * k + t] == f"{before.names[k]}, {how}"
            for e in range(3):
                image = before.pixels[k, e]
                expected = torch.rot90(image.fliplr() if how.startswith("mirrored") else image, t % 4)
                assert torch.equal(after.pixels[8 * k + t, e], expected)
    assert len(torch.unique(after.features.flatten(1), dim=0)) == 32


def test_transforms_as_exemplars_of_the_same_class() -> None:
    before = images()
    after, classes = transformed(before, "exemplars"), transformed(before)
    assert after.features.shape == (4, 24, 25)
    assert torch.equal(after.base, before.base)
    assert after.names == before.names
    for k in range(4):
        for t in range(8):
            assert torch.equal(after.features[k, 3 * t : 3 * t + 3], classes.features[8 * k + t])


@given(noise=st.floats(0.01, 3), copies=st.integers(1, 4), seed=st.integers(0, 2**31))
def test_pixel_noise(noise: float, copies: int, seed: int) -> None:
    before = images()
    after = with_pixel_noise(before, noise, copies, seed=seed)
    assert after.features.shape == (4, 3 * copies, 25)
    assert (after.image, after.names) == (before.image, before.names)
    drawn = (after.features - before.features.repeat_interleave(copies, dim=1)) / noise
    assert abs(float(drawn.std()) - 1) < 5 / (2 * drawn.numel()) ** 0.5
    assert abs(float(drawn.mean())) < 5 / drawn.numel() ** 0.5
    assert drawn.flatten(0, 1).unique(dim=0).shape[0] == 12 * copies
    assert torch.equal(with_pixel_noise(before, noise, copies, seed=seed).features, after.features)
    assert not torch.equal(with_pixel_noise(before, noise, copies, seed=seed + 1).features, after.features)


def test_pixel_noise_is_of_images() -> None:
    with pytest.raises(InputError, match=r"^pixel_noise: these exemplars are vectors"):
        with_pixel_noise(gaussian_classes(3, 2, 4), 0.1)
    with pytest.raises(InputError, match="copies: must be 1 or more"):
        with_pixel_noise(images(), 0.1, 0)
    with pytest.raises(ValueError, match="copies=3: would all be the same"):
        ExemplarSource(copies=3)


def test_a_source_has_noise_and_transforms_before_its_encoder(tmp_path: Path) -> None:
    """1,600 x 160 in small, and one image of each class as 5 with noise, through a frozen encoder."""
    np.savez(tmp_path / "images.npz", images=np.random.default_rng(0).random((4, 2, 6, 6), dtype=np.float32))
    raw = {"kind": "vectors", "path": str(tmp_path / "images.npz"), "exemplars": 2}
    plain = load_exemplars(ExemplarSource(**raw, encoder="none"))  # type: ignore[arg-type]
    made = load_exemplars(
        ExemplarSource(**raw, transforms=True, transforms_as="exemplars", pixel_noise=0.2, copies=5, width=7)  # type: ignore[arg-type]
    )
    assert made.features.shape == (4, 2 * 8 * 5, 7)
    expected = encode(with_pixel_noise(transformed(plain, "exemplars"), 0.2, 5), width=7)
    assert torch.equal(made.features, expected.features)


def test_transforms_again_keep_the_base() -> None:
    assert transformed(transformed(images(2))).base.tolist() == [0] * 64 + [1] * 64


def test_only_square_images_are_turned() -> None:
    with pytest.raises(InputError, match="not square"):
        transformed(Exemplars(torch.rand(2, 1, 6), torch.arange(2), image=(2, 3)))
    with pytest.raises(InputError, match="not images"):
        transformed(gaussian_classes(3, 2, 4))


@given(seed=st.integers(0, 2**31), noise=st.floats(0, 3))
def test_gaussian_classes_have_unit_variance_of_which_the_noise_is_a_part(seed: int, noise: float) -> None:
    made = gaussian_classes(200, 10, 20, noise=noise, seed=seed)
    within = float(made.features.var(1).mean())
    assert float(made.features.var()) == pytest.approx(1, abs=0.1)
    assert within == pytest.approx(noise**2 / (1 + noise**2), abs=0.03)
    assert torch.equal(made.features, gaussian_classes(200, 10, 20, noise=noise, seed=seed).features)


@pytest.mark.parametrize("change", [{"classes": 1}, {"exemplars": 0}, {"width": 0}, {"noise": -1}, {"noise": np.nan}])
def test_bad_gaussian_classes(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(change))):
        gaussian_classes(**change)


@pytest.mark.parametrize("encoder", [*ENCODERS, torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(25, 6))])
def test_encoded_features_have_unit_mean_square(encoder: Any) -> None:
    after = encode(images(), encoder, width=6)
    flat = after.features.flatten(0, 1)
    assert flat.shape == (12, 6)
    assert after.image is None
    assert after.names == images().names
    assert not flat.requires_grad
    assert (float(flat.mean(0).abs().max()) < 1e-5) == (encoder in ("random-projection", "pca"))
    assert float(flat.square().mean()) == pytest.approx(1, abs=1e-4)


def test_random_projection_is_linear_and_keeps_proportions() -> None:
    before, after = images(8, 8, 20), encode(images(8, 8, 20), width=4000, seed=3)
    ratio = torch.pdist(after.features.flatten(0, 1)) / torch.pdist(before.features.flatten(0, 1))
    assert float(ratio.std() / ratio.mean()) < 0.03
    assert torch.equal(after.features, encode(before, width=4000, seed=3).features)
    assert not torch.equal(after.features, encode(before, width=4000, seed=4).features)


def test_pca_against_scikit_learn() -> None:
    from sklearn.decomposition import PCA

    before = images()
    flat = before.features.flatten(0, 1).numpy()
    expected = PCA(5, svd_solver="full").fit_transform(flat)
    found = encode(before, "pca", width=5).features.flatten(0, 1).numpy()
    expected = expected / np.sqrt(expected.var(0).mean())
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-4)
    with pytest.raises(InputError, match="gives at most 11"):
        encode(before, "pca", width=12)


def test_a_network_is_given_images_in_order() -> None:
    before = images()
    found = encode(before, lambda pixels: pixels[:, :, 0]).features
    expected = before.pixels[..., 0]
    torch.testing.assert_close(found, expected / expected.square().mean().sqrt())


def test_random_convolutions_written_out() -> None:
    """Two layers on 9 x 9 pixels: 3 x 3 sums at every other pixel, ReLU, mean; the weights are those of the seed."""
    before = images(3, 2, 9)
    random = torch.Generator().manual_seed(5)
    values = before.pixels.flatten(0, 1)[:, None].double()
    for inputs, outputs in ((1, 7), (7, 7)):
        kernel = torch.randn(outputs, inputs, 3, 3, generator=random).double() * (2 / (9 * inputs)) ** 0.5
        side = (values.shape[-1] + 1) // 2
        padded = torch.zeros(len(values), inputs, values.shape[-1] + 2, values.shape[-1] + 2, dtype=torch.float64)
        padded[..., 1:-1, 1:-1] = values
        values = torch.stack(
            [
                (padded[:, None, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3] * kernel).sum((2, 3, 4)).clamp_min(0)
                for i in range(side)
                for j in range(side)
            ],
            dim=-1,
        ).unflatten(-1, (side, side))
    expected = values.mean((2, 3)).view(*before.features.shape[:2], 7)
    found = encode(before, "random-convolutions", width=7, seed=5).features
    torch.testing.assert_close(found, (expected / expected.square().mean().sqrt()).float())


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        ("resnet", "'resnet' is not known"),
        (lambda x: x[:3].flatten(1), r"must return a tensor \[12, F\]"),
        (lambda x: None, "got NoneType"),
        (lambda x: x @ torch.ones(7, 7), "fails on images"),
        (lambda x: x.flatten(1) * float("nan"), "returns NaN or infinity"),
        (lambda x: torch.ones(len(x), 3), "all exemplars become the same vector"),
    ],
)
def test_bad_encoders(encoder: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        encode(images(), encoder)


def test_bad_width() -> None:
    with pytest.raises(InputError, match="width: must be 1 or more"):
        encode(images(), width=0)
