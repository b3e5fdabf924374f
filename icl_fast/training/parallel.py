"""A model on several ranks: the same on each (DDP), or a part of every weight on each (FSDP2).

Both average gradients over the ranks, so that ranks with equal shares of a batch take the step of the whole batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from icl_fast import ranks
from icl_fast.models import Transformer, TransformerConfig
from icl_fast.models.transformer import draw_weight
from icl_fast.runs import TextRunConfig


class Losses(nn.Module):
    """From tokens to losses in one forward: what ranks share, the unembedding in the fused loss included."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The mean loss of inputs and targets [B,T], and the mean over examples at each position [T], as float64."""
        hidden, _ = self.model.hidden(inputs)
        mean, losses = self.model.mean_loss(hidden, targets)  # [], [B,T]
        return mean, losses.double().mean(0)


def is_split(config: TextRunConfig) -> bool:
    """Whether each rank holds a part of every weight (as `DTensor`)."""
    return ranks.count() > 1 and config.training.parallel == "fsdp"


def make_losses(config: TextRunConfig, shape: TransformerConfig, device: torch.device) -> nn.Module:
    """A model with the weights that the seed gives on any number of ranks, as `Losses` that share their gradients."""
    training = config.training
    torch.manual_seed(training.seed)
    if is_split(config):
        return _split(config, shape, device)
    losses = Losses(Transformer(shape).to(device))
    losses.model.blocks.checkpointed = training.checkpoint_activations
    if training.compile:
        losses.compile()
    if ranks.count() == 1:
        return losses
    return nn.parallel.DistributedDataParallel(losses, device_ids=[device] if device.type == "cuda" else None)


def _split(config: TextRunConfig, shape: TransformerConfig, device: torch.device) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    training = config.training
    with torch.device("meta"):
        losses = Losses(Transformer(shape))
    blocks = losses.model.blocks
    blocks.checkpointed = training.checkpoint_activations
    mesh = init_device_mesh(device.type, (ranks.count(),))
    # under autocast projections read bfloat16: their weights travel as that. The weights that AdamW changes, the sum of
    # gradients, norms, tables and the residual stream are float32, as on one rank
    half = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in blocks:
        if training.compile:
            block.compile()
        for part in (block.attention, block.mlp) if training.precision == "bfloat16" else ():
            if part is not None and not any(isinstance(one, (nn.LayerNorm, nn.RMSNorm)) for one in part.modules()):
                fully_shard(part, mesh=mesh, mp_policy=half)
        fully_shard(block, mesh=mesh)
    fully_shard(losses, mesh=mesh)
    losses.to_empty(device=device)
    _draw(losses.model)
    return losses


@torch.no_grad()
def _draw(model: Transformer) -> None:
    """The weights that a model on one rank would have, of which no rank holds more than one whole at a time."""
    for module in model.modules():  # torch draws these when it makes them, before all are drawn anew
        if isinstance(module, nn.Linear):
            nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
        elif isinstance(module, nn.Embedding):
            nn.Embedding(module.num_embeddings, module.embedding_dim)
    for name, weight in model.named_parameters():
        whole = torch.empty(weight.shape)
        draw_weight(model.config, name, whole)
        weight.copy_(part_of(whole, weight))


@contextmanager
def accumulating(losses: nn.Module, *, last: bool) -> Iterator[None]:
    """Around forward and backward of a part of the batch; gradients are averaged over the ranks after the last one.

    With FSDP2 they are after each: kept until the last, they would take the memory of a whole model.
    """
    if isinstance(losses, nn.parallel.DistributedDataParallel) and not last:
        with losses.no_sync():
            yield
    else:
        yield


def part_of(whole: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a tensor that the ranks hold together, spread as `like` is; all ranks call it."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(whole.to(like.to_local().device), like.device_mesh, like.placements)


def whole_of(part: Tensor) -> Tensor:
    """A tensor that the ranks hold together, whole, on each of them; all ranks call it."""
    from torch.distributed.tensor import DTensor

    assert isinstance(part, DTensor)
    return part.full_tensor()


def gathered(value: Any) -> Any:
    """A state of tensors that the ranks hold together as one of whole ones, on the CPU; all ranks call it.

    Only the first rank is given them, one at a time, so that no other holds more than one.
    """
    from torch.distributed.tensor import DTensor

    if isinstance(value, dict):
        return {name: gathered(part) for name, part in value.items()}
    if isinstance(value, DTensor):
        whole = whole_of(value)
        return whole.cpu() if ranks.rank() == 0 else None
    return value
