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
from icl_fast.measure.ablation.exactness import ATTRIBUTE, chosen_dtype
from icl_fast.measure.ablation.options import DTYPES, AblationKeywords, AblationOptions
from icl_fast.measure.ablation.plan import make_plan
from icl_fast.measure.ablation.sums import LossSums, PartSums
from icl_fast.models import Transformer
from icl_fast.models.ids import as_ids
from icl_fast.models.plain import model_of, why_not_plain

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
        tokens: [N,T] token ids, integers. Without `targets`, each is predicted from those before it: T-1 positions.
        targets: [N,T] the token to predict at each position of `tokens`.
        options: what is removed, where losses are wanted, what computes them.
        random_position: [N] 1-based position per example for `loss`; default drawn with a fixed seed.
        keywords: fields of `AblationOptions`, in the place of those of `options`.

    Returns:
        Dataset with dims (ablation, position, example): `position_loss` with its standard error `position_loss_sem`
        and that of its difference to the whole model's, paired by example, `effect_sem`; `icl_score`, `icl_score_sem`,
        `icl_effect` (the change of the score), `icl_effect_sem` and `example_icl_score`, of each example under the
        whole model (where the score's positions are among those asked for); `loss` (for `all` and `paper`).
        Ablation "none" is the whole model; the effect of one is its value minus that. All in nats.

    Raises:
        InputError: shapes that disagree, any option not understood or not in this model, a model with hooks or other
            changes that the fast engine would leave out (`engine="definition"` runs them), losses that are not finite.
    """
    model = model_of(Transformer, model)
    vocab = model.config.vocab
    tokens = as_ids("tokens", tokens, vocab, "N,T")
    if targets is None:
        tokens, targets = tokens[:, :-1], tokens[:, 1:]
    else:
        targets = as_ids("targets", targets, vocab, "N,T", sizes=(tokens.shape[0], tokens.shape[1]))
    if tokens.numel() == 0:
        raise InputError("tokens: nothing to predict; give at least one example of two tokens")
    count, length = tokens.shape
    if random_position is None:
        generator = torch.Generator().manual_seed(0)
        random_position = torch.randint(1, length + 1, (count,), generator=generator, device="cpu")
    else:
        random_position = as_ids("random_position", random_position, length + 1, "N", sizes=(count,))
        if not bool((random_position > 0).all()):
            raise InputError(f"random_position must be from 1 to {length}")
    evaluation = EvaluationSet(tokens, targets, random_position, "given")
    own = str(model.dtype).removeprefix("torch.")
    chosen = AblationOptions.of(options, keywords)
    if chosen.positions is None:
        chosen = replace(chosen, positions="all")
    if chosen.dtype is None:
        chosen = replace(chosen, dtype=own)
    changed = why_not_plain(model)
    chosen, exactness = chosen_dtype(model, evaluation, chosen, device=model.device.type)
    plan = make_plan(model.config, evaluation, chosen, device=model.device.type, whole_logits=changed is not None)
    if plan.dtype != own:
        if changed is not None:
            raise InputError(f"dtype: {changed}, so that only its own dtype, {own}, is safe; convert it yourself")
        model = copy.deepcopy(model).to(DTYPES[plan.dtype])
    sums = PartSums(model, evaluation, plan)
    whole = LossSums.total([sums.of(index) for index in range(len(plan.parts))])
    dataset = sweep_dataset([whole], plan, [0], [0]).isel(snapshot=0, drop=True).drop_vars("tokens", errors="ignore")
    return dataset if exactness is None else dataset.assign_attrs({ATTRIBUTE: exactness.as_json()})
