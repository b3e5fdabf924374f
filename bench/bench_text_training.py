"""A step of training on text: ours against plain torch with the same weights, in bfloat16 autocast and in float32.

Timed is all of a step but the reading of text: forward, backward, clipping, AdamW. "reference" is what one writes in
plain torch: nn.Linear, scaled_dot_product_attention, cross_entropy of all logits, torch.optim.AdamW as it comes;
"torch.compile" is the same with forward and backward compiled. The model has attention alone, and positions that
queries and keys read.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import harness
import torch
import torch.nn.functional as F
from baselines import module_or_none
from harness import Candidate, Case, Inputs, Maker, Options
from torch import Tensor, nn

NAME = "text_training"
SHAPES = {  # batch, and the model
    "2 layers C=256 V=4096 T=512 B=8": (8, {"layers": 2, "width": 256, "heads": 8, "vocab": 4096, "context": 512}),
    "2 layers C=128 V=512 T=256 B=8": (8, {"layers": 2, "width": 128, "heads": 4, "vocab": 512, "context": 256}),
}
TINY = (2, {"layers": 2, "width": 16, "heads": 2, "vocab": 40, "context": 24})


def cases(options: Options) -> list[Case]:
    plain, demo = SHAPES
    found = [case(plain, key, dtype, options) for key in ("plain", "smeared") for dtype in dtypes(options)]
    return [*found, case(demo, "plain", torch.bfloat16, options)]


def dtypes(options: Options) -> tuple[torch.dtype, ...]:
    return (torch.bfloat16,) if options.device == "cuda" else (torch.bfloat16, torch.float32)


def case(name: str, key: str, dtype: torch.dtype, options: Options) -> Case:
    """`dtype` float32: without autocast."""
    batch, fields = TINY if options.quick else SHAPES[name]
    none = "" if module_or_none("icl_fast.training.text") else "icl_fast.training needs packages that are not here"
    compiled = none or ("" if options.compile else "torch.compile is switched off")
    half = dtype == torch.bfloat16

    def ours(precision: str) -> Callable[[Inputs], Tensor]:
        return going_on(f"ours {precision}", lambda x: Ours(x, precision))

    def plainly(compiled: bool) -> Callable[[Inputs], Tensor]:
        return going_on(f"plain {compiled}", lambda x: Plain(x, "bfloat16" if half else "float32", compiled))

    return Case(
        shape=f"{name} {key}",
        dtype=dtype,
        make=lambda maker: Inputs() if none else make(maker, batch, {**fields, "key": key}),
        candidates=[
            Candidate("ours", ours("bfloat16" if half else "float32"), missing=none),
            *([Candidate("ours in float32", ours("float32"), missing=none)] if half else []),
            Candidate("torch.compile", plainly(True), memory=False, missing=compiled),
            Candidate("reference", plainly(False), missing=none),
        ],
        flops=step_flops(batch, **fields),
        bytes=0.0,
        counts={"tokens": float(batch * fields["context"])},
        tolerance=0.03,  # of losses that bfloat16 or float32 led to
    )


def make(maker: Maker, batch: int, fields: dict[str, Any]) -> Inputs:
    """Random tokens; candidates make the model in their first call."""
    from icl_fast.models import parse_transformer_config

    tokens = maker.below(fields["vocab"], 2, batch, fields["context"])
    return Inputs(shape=parse_transformer_config(fields, source="bench"), tokens=tokens, runs={})


def going_on(name: str, begin: Callable[[Inputs], Callable[[], Tensor]]) -> Callable[[Inputs], Tensor]:
    """A candidate that begins in its first call, and in each takes one more step: its loss, []."""

    @torch.enable_grad()  # the harness times forward passes without
    def call(x: Inputs) -> Tensor:
        if name not in x.runs:
            x.runs[name] = begin(x)
        loss: Tensor = x.runs[name]()
        return loss

    return call


class Ours:
    """The step of `icl_fast.training`."""

    def __init__(self, x: Inputs, precision: str) -> None:
        from icl_fast.runs.text_config import OptimizerConfig
        from icl_fast.training.text import make_optimizer

        self.model, (self.inputs, self.targets) = drawn(x), x.tokens
        self.device, self.half = x.tokens.device.type, precision == "bfloat16"
        self.optimizer = make_optimizer(self.model, OptimizerConfig(precision=precision), x.tokens.device)

    def losses(self) -> Tensor:
        hidden, _ = self.model.hidden(self.inputs)
        loss: Tensor = self.model.mean_loss(hidden, self.targets)[0]
        return loss

    def __call__(self) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.half):
            loss = self.losses()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.detach()


class Plain(Ours):
    """The same in plain torch."""

    def __init__(self, x: Inputs, precision: str, compiled: bool) -> None:
        super().__init__(x, precision)
        matrices, others = self.optimizer.param_groups
        groups = [{name: group[name] for name in ("params", "lr", "weight_decay")} for group in (matrices, others)]
        self.optimizer = torch.optim.AdamW(groups, betas=matrices["betas"])
        forward = torch.compile(self.forward, dynamic=False) if compiled else self.forward
        self.losses = lambda: forward(self.inputs, self.targets)  # type: ignore[method-assign]

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        model = self.model
        resid = model.embed(inputs)
        for block in model.blocks:
            attention, normed = block.attention, block.norm1(resid)
            read = normed + model.position.weight
            q, k, v = (
                linear(of).unflatten(-1, (model.config.heads, -1)).transpose(1, 2)
                for linear, of in ((attention.q, read), (attention.k, read), (attention.v, normed))
            )
            if attention.alpha is not None:
                share = attention.alpha.sigmoid()[:, None, None].to(k.dtype)
                k = torch.cat([k[:, :, :1], share * k[:, :, 1:] + (1 - share) * k[:, :, :-1]], dim=2)
            z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            resid = resid + attention.out(z.transpose(1, 2).flatten(2))
        logits = model.unembed(model.final_norm(resid))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def drawn(x: Inputs) -> Any:
    """The model, with the same weights each time."""
    from icl_fast.models import Transformer

    torch.manual_seed(0)
    return Transformer(x.shape).to(x.tokens.device)


def step_flops(batch: int, *, layers: int, width: int, heads: int, vocab: int, context: int) -> float:
    """Forward, and twice that backward; of attention what is seen."""
    tokens = batch * context
    products = layers * 4 * width**2 + vocab * width
    return 6.0 * tokens * products + 6.0 * layers * tokens * (context + 1) * width


if __name__ == "__main__":
    sys.exit(harness.main(NAME, cases, __file__))
