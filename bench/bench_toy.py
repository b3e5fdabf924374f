"""The coopetition model: steps of many seeds at once in closed form, against torch autograd on the explicit tensors.

Every candidate takes the same steps of the same seeds, so that a ratio of times is one per seed and step. The thesis'
setting: dims 20, 20, 20, 160, mu = alpha = 0.1, lr 1.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import harness
import torch
from baselines import module_or_none
from harness import Candidate, Case, Inputs, Maker, Options
from torch import Tensor

NAME = "toy"
DIMS = (20, 160, 20, 20)  # of a, d, b, c
TOGETHER = 2**20  # elements of the largest tensor of a batch, that of 16 seeds: 65 and 400 were slower


def cases(options: Options) -> list[Case]:
    # On CUDA a step is launches, so that fewer say the same
    steps, seeds = (2_000, 500) if options.device == "cuda" else (20_000, 10_000)
    return [case(12, steps, options, against_autograd=False), case(seeds, 2, options, against_autograd=True)]


def case(seeds: int, steps: int, options: Options, against_autograd: bool) -> Case:
    """So many steps of so many seeds, against autograd, or else the same descent on whole vectors."""
    if options.quick:
        seeds, steps = min(seeds, 3), min(steps, 3)
    missing = "" if module_or_none("icl_fast.toy") else "icl_fast.toy needs packages that are not here"
    if against_autograd:
        others = [
            Candidate(
                "autograd batched", lambda x: descend(x, steps, max(1, TOGETHER // (160 * 20 * 20))), missing=missing
            ),
            Candidate("reference", lambda x: descend(x, steps, 1), missing=missing),
        ]
    else:
        others = [Candidate("reference", lambda x: ours(x.whole, steps, x.device), missing=missing)]
    return Case(
        shape=f"R={seeds} steps={steps}",
        dtype=torch.float64,
        make=lambda maker: Inputs() if missing else make(maker, seeds),
        candidates=[Candidate("ours", lambda x: ours(x.plane, steps, x.device), missing=missing), *others],
        flops=0.0,
        bytes=0.0,
        threads=1,
        sets=1,
        rounds=1 if (against_autograd or options.device == "cuda") and not options.quick else None,
    )


def make(maker: Maker, seeds: int) -> Inputs:
    from icl_fast.toy import Coopetition, draw_runs

    names, device = Coopetition().names, str(maker.normal(1).device)
    plane, whole = (draw_runs(names, DIMS, range(seeds), plane=flat) for flat in (True, False))
    length = (whole.power * torch.tensor(DIMS)[:, None].numpy()) ** 0.5
    start, true = (
        [torch.tensor(values[:dim, v] * length[v], device=device).T.contiguous() for v, dim in enumerate(DIMS)]
        for values in (whole.start, whole.true)
    )
    return Inputs(plane=plane, whole=whole, start=start, true=true, device=device)


def ours(runs: Any, steps: int, device: str) -> Tensor:
    """The losses after the steps: [terms, R]."""
    from icl_fast.toy import Coopetition, simulate_parts

    ends = simulate_parts(Coopetition(), runs, [0, steps], memory=2**30, device=device)
    return torch.cat([torch.tensor(part.losses()[-1], device=device) for part in ends], dim=1)


def descend(x: Inputs, steps: int, together: int) -> Tensor:
    """The same by autograd, so many seeds at a time."""
    seeds = len(x.start[0])
    return torch.cat(
        [descend_some(x, steps, slice(first, first + together)) for first in range(0, seeds, together)], dim=1
    )


@torch.enable_grad()  # the harness times forward passes without
def descend_some(x: Inputs, steps: int, some: slice) -> Tensor:
    vectors, true = ([values[some] for values in those] for those in (x.start, x.true))
    for _ in range(steps):
        vectors = [vector.detach().requires_grad_() for vector in vectors]
        loss = losses(vectors, true)[0].sum()
        gradients = torch.autograd.grad(loss, vectors)
        vectors = [vector - gradient for vector, gradient in zip(vectors, gradients, strict=True)]
    return torch.stack(losses(vectors, true)).detach()


def losses(vectors: Sequence[Tensor], true: Sequence[Tensor]) -> list[Tensor]:
    """The loss and its terms, each [R], on the explicit tensors."""
    (a, d, b, c), (a_, d_, b_, c_) = vectors, true
    first, second = (
        (torch.einsum("ri,rj,rk->rijk", y, b_, c_) - torch.einsum("ri,rj,rk->rijk", x, b, c)).square().mean((1, 2, 3))
        / 2
        for x, y in ((a, a_), (d, d_))
    )
    competition = torch.einsum("ri,rj->rij", a, d).square().mean((1, 2)) / 2
    return [(first + 0.1) * second + 0.1 * competition, first, second, competition]


if __name__ == "__main__":
    sys.exit(harness.main(NAME, cases, __file__))
