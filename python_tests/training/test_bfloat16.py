"""Training on a CPU in bfloat16, with kernels on its bfloat16 units or, where it has none, on emulated ones."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from icl_fast.models import Transformer, blocks
from icl_fast.ops import _backend
from icl_fast.runs import Run, TextRunConfig, parse_config
from icl_fast.training import TrainingProgress, train
from icl_fast.training.text import TextTrainer

Values = dict[str, Any]


@pytest.fixture(params=_backend.emulated_isas())
def _unit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    _backend.set_isa(request.param)
    monkeypatch.setattr(blocks, "_BFLOAT16_UNIT", True)
    yield
    _backend.set_isa(_backend.isas()[-1])


@pytest.fixture(params=[{"key": "smeared"}, {"windows": [[None, 7], [5, 5]]}])
def values(request: pytest.FixtureRequest, tiny_values: Values) -> Values:
    values = copy.deepcopy(tiny_values)
    values["model"] |= request.param
    values["training"] |= {"steps": 6, "precision": "bfloat16", "checkpoint_every": 2}
    values["snapshots"] = {"every": 3}
    return values


def plain_losses(model: Transformer, inputs: Tensor, targets: Tensor) -> Tensor:
    """In plain torch, from the weights of a model with positions that queries and keys read."""
    config = model.config
    length, resid = inputs.shape[1], model.embed(inputs)
    distance = torch.arange(length)[:, None] - torch.arange(length)
    for layer, block in enumerate(model.blocks):
        attention, normed = block.attention, block.norm1(resid)
        assert model.position is not None
        read = normed + model.position.weight
        pairs = ((attention.q, read), (attention.k, read), (attention.v, normed))
        q, k, v = (linear(of).unflatten(-1, (config.heads, -1)).transpose(1, 2) for linear, of in pairs)
        if attention.alpha is not None:
            share = attention.alpha.sigmoid()[:, None, None].to(k.dtype)
            k = torch.cat([k[:, :, :1], share * k[:, :, 1:] + (1 - share) * k[:, :, :-1]], dim=2)
        widths = torch.tensor([window or length for window in config.windows[layer]] if config.windows else [length])
        seen = (distance >= 0) & (distance < widths[:, None, None])
        z = F.scaled_dot_product_attention(q, k, v, seen)
        resid = resid + attention.out(z.transpose(1, 2).flatten(2))
    logits = model.unembed(model.final_norm(resid))
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


@pytest.mark.usefixtures("_unit")
def test_losses_are_those_of_plain_torch_to_rounding(values: Values) -> None:
    config = parse_config(values)
    assert isinstance(config, TextRunConfig)
    trainer = TextTrainer(config, None)
    plain = copy.deepcopy(trainer.model)
    optimizer = torch.optim.AdamW(plain.parameters(), betas=trainer.config.betas)
    for step in range(6):
        inputs, targets = trainer.text.batch(step, trainer.config.batch)
        trainer.update(inputs, targets)
        matrices, others = trainer.optimizer.param_groups
        optimizer.param_groups[0]["lr"] = matrices["lr"]
        with torch.autocast("cpu", torch.bfloat16):
            loss = plain_losses(plain, inputs, targets)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        assert others["weight_decay"] == 0
        assert (
            abs(float(trainer.loss) - float(loss.detach())) < 3e-3
        )  # of about 6 nats: half a unit of bfloat16 is 8e-3
    for name, parameter in trainer.model.named_parameters():
        assert (parameter - plain.get_parameter(name)).norm() < 0.05 * parameter.norm() + 0.01


@pytest.mark.usefixtures("_unit")
def test_interrupted_and_resumed_gives_the_same_bits(values: Values, tmp_path: Path) -> None:
    config = parse_config(values)
    whole = train(config, tmp_path / "whole")

    def interrupt(progress: TrainingProgress) -> None:
        if progress.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="stopped after step 3"):
        train(config, tmp_path / "run", on_progress=interrupt)
    train(config, tmp_path / "run", resume=True)
    one, other = (Run(path).load_snapshot(6).model.state_dict() for path in (whole.path, tmp_path / "run"))
    assert all(torch.equal(one[name], other[name]) for name in one)
