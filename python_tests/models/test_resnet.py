"""The jointly trained ResNet: one member at a time, one image at a time, with torch's plain convolutions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from icl_fast.errors import InputError
from icl_fast.models import ExemplarConfig, ExemplarTransformer
from icl_fast.models.resnet import MemberResNet

Build = Callable[..., ExemplarTransformer]
Draw = Callable[..., tuple[Tensor, Tensor, Tensor]]

IMAGE: dict[str, Any] = {"encoder": "resnet", "image": (9, 13), "features": 117}


def make(members: int = 3, image: tuple[int, int] = (9, 13), width: int = 10, seed: int = 0) -> MemberResNet:
    """Random gains and biases too."""
    net = MemberResNet(members, image, width).double()
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            noise = torch.randn(parameter.shape, generator=random, dtype=torch.float64)
            fan_in = parameter[0, 0].numel() if parameter.ndim > 2 else 4
            parameter.copy_(noise * fan_in**-0.5 + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
    return net


def pixels(members: int, *batch: int, size: int = 117, seed: int = 1) -> Tensor:
    return torch.rand(members, *batch, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain(w: dict[str, Tensor], image: Tensor) -> Tensor:
    """The embedding `[C]` of one image `[h, w]` by one member's weights: He et al.'s two-layer blocks, by the book."""

    def norm(name: str, x: Tensor) -> Tensor:
        x = (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt()
        return x * w[f"{name}.weight"][:, None, None] + w[f"{name}.bias"][:, None, None]

    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        kernel = w[f"{name}.weight"]
        edge = kernel.shape[-1] // 2
        windows = F.pad(x, [edge] * 4).unfold(1, kernel.shape[-1], stride).unfold(2, kernel.shape[-1], stride)
        return torch.einsum("chwij,ocij->ohw", windows, kernel)

    x = norm("norm", conv("conv", image[None], 2)).clamp_min(0)
    x = F.pad(x, [1] * 4, value=-torch.inf).unfold(1, 3, 2).unfold(2, 3, 2).amax((-2, -1))
    for number, stride in enumerate([1, 1, 2, 1, 2, 1, 2, 1]):
        block = f"blocks.{number}"
        y = norm(f"{block}.norm1", conv(f"{block}.conv1", x, stride)).clamp_min(0)
        y = norm(f"{block}.norm2", conv(f"{block}.conv2", y))
        if number % 2 == 0:
            x = norm(f"{block}.shortcut.norm", conv(f"{block}.shortcut.conv", x, stride))
        x = (x + y).clamp_min(0)
    return x.mean((1, 2))


def plain_all(net: MemberResNet, x: Tensor) -> Tensor:
    """`[P, N, C]` of x `[P, N, h * w]`."""
    members = [{name: parameter[p] for name, parameter in net.named_parameters()} for p in range(len(x))]
    return torch.stack(
        [torch.stack([plain(w, one.view(net.image)) for one in own]) for w, own in zip(members, x, strict=True)]
    )


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("image", [(9, 13), (32, 32), (33, 20), (64, 65)])
def test_against_one_image_at_a_time(image: tuple[int, int]) -> None:
    net, x = make(2, image), pixels(2, 2, size=image[0] * image[1])
    close(net(x), plain_all(net, x))


def test_gradients() -> None:
    net, x = make(2), pixels(2, 3)
    names, weights = zip(*net.named_parameters(), strict=True)
    ours = torch.autograd.grad(net(x).pow(2).sum(), weights)
    theirs = torch.autograd.grad(plain_all(net, x).pow(2).sum(), weights)
    for name, one, other in zip(names, ours, theirs, strict=True):
        assert one.any(), name
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}")


def test_size_is_the_thesis() -> None:
    """Two blocks per group, 16, 32, 32 and 64 channels, no bias but in norms; every weight has its members first."""
    net = MemberResNet(5, (105, 105), 64)
    assert [len(block.conv1.weight[0]) for block in net.blocks] == [16, 16, 32, 32, 32, 32, 64, 64]  # type: ignore[union-attr, arg-type]
    assert all(len(parameter) == 5 for parameter in net.parameters())
    for name, parameter in net.named_parameters():
        assert ("norm" in name) == (parameter.ndim == 2), name
        assert not name.endswith("bias") or "norm" in name, name


@settings(max_examples=15)
@given(
    members=st.integers(1, 3),
    batch=st.lists(st.integers(0, 3), min_size=1, max_size=3),
    image=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    width=st.integers(2, 20),
)
def test_any_shape(members: int, batch: list[int], image: tuple[int, int], width: int) -> None:
    net, x = make(members, image, width), pixels(members, *batch, size=image[0] * image[1])
    y = net(x)
    assert y.shape == (members, *batch, width)
    assert y.isfinite().all()
    if y.numel():
        close(y.flatten(1, -2)[:, -1:], plain_all(net, x.flatten(1, -2)[:, -1:]))


def test_blank_images() -> None:
    """Nothing to normalise: finite, with finite gradients."""
    net = make(1)
    y = net(torch.zeros(1, 2, 117, dtype=torch.float64))
    y.sum().backward()
    assert y.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_neither_images_nor_members_mix() -> None:
    """Not even NaN, in an image or a member's weights, reaches others; a member alone is what it is among others."""
    net, x = make(3), pixels(3, 4)
    clean = net(x)
    alone = make(1)
    alone.load_state_dict({name: value[2:] for name, value in net.state_dict().items()})
    close(alone(x[2:]), clean[2:])
    close(alone(x[2:, 1:2]), clean[2:, 1:2])
    with torch.no_grad():
        for parameter in net.parameters():
            parameter[1] = torch.nan
    x[0, 3] = torch.nan
    y = net(x)
    assert y[1].isnan().all()
    assert torch.equal(y[0, :3], clean[0, :3])
    assert torch.equal(y[2], clean[2])
    y[2].sum().backward()
    assert all(p.grad is not None and p.grad[2].isfinite().all() for p in net.parameters())


@pytest.mark.parametrize(("image", "width"), [((0, 5), 8), ((5, -1), 8), ((5, 5), 1)])
def test_bad_size(image: tuple[int, int], width: int) -> None:
    with pytest.raises(InputError, match="the image needs a pixel, the width must be 2 or more"):
        MemberResNet(1, image, width)


# --- as the encoder of exemplar models -------------------------------------------------------------------------------


def test_encoder(build_exemplars: Build, draw_sequences: Draw) -> None:
    model = build_exemplars(2, position="learned", **IMAGE)
    assert isinstance(model.embed_exemplar, MemberResNet)
    exemplars, labels, _ = draw_sequences(model)
    embedded = plain_all(model.embed_exemplar, exemplars.flatten(1, 2)).view(2, 3, 3, model.config.width)
    logits, recorded = model(exemplars, labels, record=["embed"])
    close(recorded["embed"].view(2, 3, 5, -1)[:, :, 0::2], embedded + model.position[:, None, 0::2])  # type: ignore[index]
    close(logits, model.from_embedded(embedded, labels)[0])


def test_trained_jointly_a_member_is_its_model_alone(draw_sequences: Draw) -> None:
    """Initial weights bit for bit, then three steps of Adam, as close as float64 is."""
    config = ExemplarConfig(layers=1, width=8, heads=2, outputs=4, pairs=1, **IMAGE)
    population, alone = ExemplarTransformer(config, [3, 7]), ExemplarTransformer(config, [7])
    for one, other in zip(population.parameters(), alone.parameters(), strict=True):
        assert torch.equal(one[1:], other)
    population, alone = population.double(), alone.double()
    exemplars, labels, target = draw_sequences(population)
    for model, own in ((population, slice(0, 2)), (alone, slice(1, 2))):
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-3)
        for _ in range(3):
            optimizer.zero_grad()
            logits, _ = model(exemplars[own], labels[own])
            F.cross_entropy(logits.flatten(0, 1), target[own].flatten(), reduction="sum").backward()
            optimizer.step()
        for name, parameter in model.named_parameters():
            assert not torch.equal(parameter, before[name]), name
    for one, other in zip(population.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(one[1:], other, rtol=1e-7, atol=1e-9)


def test_initial_weights() -> None:
    """Convolutions by their fan-in, channels times pixels of the kernel; gains 1, biases 0."""
    model = ExemplarTransformer(ExemplarConfig(outputs=4, pairs=1, **IMAGE), [0, 1])
    for name, parameter in model.embed_exemplar.named_parameters():
        if parameter.ndim == 2:
            assert (parameter == (1.0 if name.endswith("weight") else 0.0)).all(), name
            continue
        truth = stats.truncnorm(-2, 2, scale=parameter[0, 0].numel() ** -0.5)
        for member in parameter.detach().double():
            assert stats.kstest(member.flatten().numpy(), truth.cdf).pvalue > 1e-3, name


@pytest.mark.parametrize("image", [None, (9, 12), (-9, -13)])
def test_an_encoder_of_images_needs_images(image: Any) -> None:
    with pytest.raises(InputError, match="image"):
        ExemplarTransformer(ExemplarConfig(outputs=4, pairs=1, encoder="resnet", features=117, image=image))
