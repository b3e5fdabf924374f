"""Random numbers as a function of (seed, index): the Philox4x32-10 generator on tensors.

Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3". The i-th draw depends on no earlier one, so it is the
same in any batch, in any population, after any resume, and, being integer arithmetic, on any device.
"""

from __future__ import annotations

import math

import torch

_LOW = 0xFFFFFFFF
_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)


def philox(
    counter: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], key: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """Four words of 32 random bits for each counter and key, `[*,4]` int64, each in [0, 2^32).

    Args:
        counter: four tensors of 32-bit words, int64.
        key: two tensors of 32-bit words, int64. All six are broadcast against each other to `[*]`.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # the product of two 32-bit words wraps in int64: its bits are right, its sign is not, hence the mask
        first, second = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1 = ((second >> 32) & _LOW) ^ c1 ^ k0, second & _LOW
        c2, c3 = ((first >> 32) & _LOW) ^ c3 ^ k1, first & _LOW
        k0, k1 = (k0 + _KEY_STEPS[0]) & _LOW, (k1 + _KEY_STEPS[1]) & _LOW
    # after so many rounds each word depends on all six arguments, and has their common shape
    return torch.stack([c0, c1, c2, c3], dim=-1)


def random_words(seed: torch.Tensor, index: torch.Tensor, lanes: torch.Tensor, stream: torch.Tensor) -> torch.Tensor:
    """Words of 32 random bits, `[P,B,4*lanes]` int64: row (p, b) depends on nothing but its seed, index and stream.

    Args:
        seed: `[P]` int64, 0 or more.
        index: `[B]` int64, 0 or more: which sequence.
        lanes: `[lanes]` int64 below 2^32: which blocks of four words.
        stream: `[P]` int64 below 2^32: what the words are for; streams never meet.
    """
    seed, stream, index = seed[:, None, None], stream[:, None, None], index[None, :, None]
    counter = (index & _LOW, index >> 32, lanes, stream)
    return philox(counter, (seed & _LOW, seed >> 32)).flatten(-2)


def below(words: torch.Tensor, limit: torch.Tensor | int) -> torch.Tensor:
    """Uniform integers in [0, limit) from words of 32 bits, limit at most 2^31; no bias beyond limit / 2^32."""
    return words * limit >> 32


def below_finely(high: torch.Tensor, low: torch.Tensor, limit: torch.Tensor) -> torch.Tensor:
    """The same from 64 bits, limit under 2^31: no bias beyond limit / 2^64, whatever the weights behind the limit."""
    return high * limit + (low * limit >> 32) >> 32


def normal(words: torch.Tensor) -> torch.Tensor:
    """Standard normal numbers, float32, as many as words (an even number in the last dimension): Box and Muller."""
    radius_word, angle_word = words[..., 0::2], words[..., 1::2]
    radius = ((radius_word + 1).to(torch.float64) * 2.0**-32).log_().mul_(-2).sqrt_()
    angle = angle_word.to(torch.float64) * (2 * math.pi * 2.0**-32)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1).flatten(-2).to(torch.float32)
