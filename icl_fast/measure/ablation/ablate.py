"""Ablations of one model on given tokens: the public call."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import xarray as xr
from torch import Tensor

from icl_fast.data import EvaluationSet
from icl_fast.errors import InputError
from icl_fast.measure.ablation.dataset import sweep_dataset
from icl_fast.measure.ablation.options import DTYPES, AblationKeywords, AblationOptions
from icl_fast.measure.ablation.plan import make_plan
from icl_fast.measure.ablation.sums import LossSums, part_sums
from icl_fast.models import Transformer

if TYPE_CHECKING:
    from typing_extensions import Unpack


def ablate(
    model: Transformer,
    tokens: Tensor,
    targets: Tensor | None = None,
    options: AblationOptions | None = None,
    *,
    random_position: Tensor | None = None,
    **keywords: Unpack[AblationKeywords],
) -> xr.Dataset:
    """Losses of a model with heads removed, one ablation after the other.

        ablate(model, tokens, mode="full", heads="0.3,1.*")

    Args:
        model: the model.
        tokens: [N,T] token ids. Without `targets`, every token is predicted from those before it: T-1 positions.
        targets: [N,T] the token to predict at each position of `tokens`.
        options: what is removed, where losses are wanted, what computes them.
        random_position: [N] 1-based position per example for `loss`; default drawn with a fixed seed.
        keywords: fields of `AblationOptions`, in the place of those of `options`.

    Returns:
        Dataset with dims (ablation, position, example): `position_loss` with its standard error `position_loss_sem` and
        that of its difference to the whole model's, paired by example, `effect_sem`; `icl_score`, `icl_score_sem`,
        `icl_effect_sem` (where the score's positions are among those asked for); `loss` (for `all` and `paper`).
        Ablation "none" is the whole model; the effect of one is its value minus that. All in nats.

    Raises:
        InputError: shapes that disagree, or any option not understood or not in this model.
    """
    if tokens.ndim != 2 or tokens.is_floating_point():
        raise InputError(f"tokens must be integers [N,T], got {tokens.dtype} {list(tokens.shape)}")
    if targets is None:
        tokens, targets = tokens[:, :-1], tokens[:, 1:]
    if targets.shape != tokens.shape:
        raise InputError(f"targets must be {list(tokens.shape)} as tokens, got {list(targets.shape)}")
    if tokens.numel() == 0:
        raise InputError("tokens: nothing to predict; give at least one example of two tokens")
    if random_position is None:
        random_position = torch.randint(
            1, tokens.shape[1] + 1, (len(tokens),), generator=torch.Generator().manual_seed(0)
        )
    elif random_position.shape != tokens.shape[:1] or not bool(
        ((random_position >= 1) & (random_position <= tokens.shape[1])).all()
    ):
        raise InputError(f"random_position must be [{len(tokens)}] with values from 1 to {tokens.shape[1]}")
    evaluation = EvaluationSet(tokens, targets, random_position, "given")
    own = str(model.embed.weight.dtype).removeprefix("torch.")
    chosen = AblationOptions.of(options, keywords)
    chosen = replace(
        chosen, positions="all" if chosen.positions is None else chosen.positions, dtype=chosen.dtype or own
    )
    plan = make_plan(model.config, evaluation, chosen, device=model.embed.weight.device.type)
    if plan.dtype != own:
        model = copy.deepcopy(model).to(DTYPES[plan.dtype])
    whole = LossSums.total([part for _, part in part_sums(model, evaluation, plan)])
    return sweep_dataset([whole], plan, [0], [0]).isel(snapshot=0, drop=True).drop_vars("tokens", errors="ignore")
