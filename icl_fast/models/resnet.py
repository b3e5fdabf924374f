"""A small ResNet that reads exemplar images, P of them as one: trained jointly with what reads its output."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icl_fast.errors import InputError

_STEM = 64  # channels of the first convolution (He et al. 2015)
_GROUPS = (16, 32, 32)  # channels of all groups of blocks but the last, which has as many as the output
_BLOCKS = 2  # of each group


class MemberConv(nn.Module):
    """P convolutions without bias: weight `[P,out,in,k,k]`."""

    def __init__(self, members: int, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(members, outputs, inputs, kernel, kernel))
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """x `[N,P*in,h,w]` to `[N,P*out,ceil(h / stride),ceil(w / stride)]`."""
        members, kernel = len(self.weight), self.weight.shape[-1]
        return F.conv2d(x, self.weight.flatten(0, 1), stride=self.stride, padding=kernel // 2, groups=members)


class MemberImageNorm(nn.Module):
    """P norms over channels and pixels of one image (GroupNorm with one group): gain and bias by channel `[P,C]`."""

    def __init__(self, members: int, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(members, channels))
        self.bias = nn.Parameter(torch.empty(members, channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x `[N,P*C,h,w]` to the same."""
        return F.group_norm(x, len(self.weight), self.weight.flatten(), self.bias.flatten(), self.eps)


class ResidualBlock(nn.Module):
    """Two convolutions of 3 x 3, and what they read added to what they give."""

    def __init__(self, members: int, inputs: int, channels: int, stride: int, *, first: bool) -> None:
        super().__init__()
        self.conv1 = MemberConv(members, inputs, channels, 3, stride)
        self.norm1 = MemberImageNorm(members, channels)
        self.conv2 = MemberConv(members, channels, channels, 3, 1)
        self.norm2 = MemberImageNorm(members, channels)
        # the first block of a group changes channels or size, so that its input must be projected to be added
        self.shortcut: nn.Sequential | None = None
        if first:
            self.shortcut = nn.Sequential()
            self.shortcut.add_module("conv", MemberConv(members, inputs, channels, 1, stride))
            self.shortcut.add_module("norm", MemberImageNorm(members, channels))

    def forward(self, x: Tensor) -> Tensor:
        """x `[N,P*in,h,w]` to `[N,P*channels,h',w']`."""
        inner = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        return F.relu(inner + (x if self.shortcut is None else self.shortcut(x)))


class MemberResNet(nn.Module):
    """P ResNets from pixels to vectors, for images of any size (Singh 2025, 2.2.2 and 3.2.2).

    The thesis' size: four groups of two blocks with 16, 32, 32 and 64 channels (the last here: `width`, which is its
    64), after He et al.'s (2015) first layers, a 7 x 7 convolution of 64 channels and a maximum, which halve the image
    twice; the groups but the first halve it again. The output is the mean over what pixels are left.

    Where the thesis has batch norm, every image is normalised on its own, over channels and pixels (GroupNorm with one
    group, Wu and He 2018). Batch norm would make what one sequence shows depend on which others are in the batch, and
    would need other statistics to evaluate than to train.
    """

    def __init__(self, members: int, image: tuple[int, int], width: int) -> None:
        """Weights are left to be drawn, as in `ExemplarTransformer.reset_parameters`.

        Raises:
            InputError: an image without pixels, or a width below 2 (one channel of one pixel is its own mean).
        """
        super().__init__()
        if min(image) < 1 or width < 2:
            raise InputError(f"image {image}, width {width}: the image needs a pixel, the width must be 2 or more")
        self.image, self.width = image, width
        self.conv = MemberConv(members, 1, _STEM, 7, 2)
        self.norm = MemberImageNorm(members, _STEM)
        blocks, inputs = [], _STEM
        for group, channels in enumerate((*_GROUPS, width)):
            for block in range(_BLOCKS):
                stride = 2 if group > 0 and block == 0 else 1
                blocks.append(ResidualBlock(members, inputs, channels, stride, first=block == 0))
                inputs = channels
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Pixels, row by row, x `[P,*,h*w]` to `[P,*,C]`."""
        flat = x.flatten(1, -2)  # [P,N,h*w]
        images = flat.view(*flat.shape[:2], *self.image).transpose(0, 1)  # members are groups of channels
        y: Tensor = F.max_pool2d(self.norm(self.conv(images)).relu(), 3, stride=2, padding=1)
        y = self.blocks(y).mean((-2, -1))  # [N,P*C]
        return y.view(flat.shape[1], len(x), self.width).transpose(0, 1).reshape(*x.shape[:-1], self.width)
