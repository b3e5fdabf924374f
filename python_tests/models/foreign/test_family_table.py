"""Of every family: logits, and every head ablated, against transformers' own models with hooks; a table of the errors.

Sizes and options are drawn at random, with windows shorter than the context and vocabularies that are padded among
them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from icl_fast import ablate
from icl_fast.measure.heads import why_undefined
from icl_fast.models.foreign import load_foreign

from .test_families import CONFIGS, CONTEXT, VOCAB, write

EXAMPLES = 2


@dataclass
class Hooks:
    """What is done in the attention of transformers' models: patterns recorded, or forced, and one head removed."""

    patterns: dict[int, Tensor] = field(default_factory=dict)
    frozen: bool = False
    removed: tuple[int, int] | None = None

    def __call__(self, layer: int, out: Tensor, pattern: Tensor, value: Tensor) -> Tensor:
        """The results of the heads [B,T,H,D], from their pattern [B,H,T,T] and values [B,KV,T,D]."""
        if self.frozen:
            shared = self.patterns[layer].shape[1] // value.shape[1]
            out = (self.patterns[layer] @ value.repeat_interleave(shared, dim=1)).transpose(1, 2)
        elif self.removed is None:
            self.patterns[layer] = pattern
        if self.removed is not None and self.removed[0] == layer:
            out = out.clone()
            out[:, :, self.removed[1]] = 0
        return out


@contextmanager
def hooked(model: Any, hooks: Hooks, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Transformers' eager attention with these hooks in it; GPT-Neo has it in a method."""
    module = sys.modules[type(model).__module__]
    with monkeypatch.context() as patch:
        if hasattr(module, "eager_attention_forward"):
            eager = module.eager_attention_forward

            def attention(layer: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
                out, pattern = eager(layer, query, key, value, *args, **kwargs)
                return hooks(layer.layer_idx, out, pattern, value), pattern

            patch.setattr(module, "eager_attention_forward", attention)
        else:
            kind = next(type(part) for part in model.modules() if hasattr(part, "_attn"))
            inner = kind._attn

            def method(self: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any = None) -> Any:
                out, pattern = inner(self, query, key, value, mask)
                found = hooks(self.layer_id, out.transpose(1, 2), pattern, value)
                return found.transpose(1, 2), pattern

            patch.setattr(kind, "_attn", method)
        yield


def losses(model: Any, tokens: Tensor) -> Tensor:
    """Mean over examples of the losses at each position, in nats."""
    logits = model(tokens[:, :-1]).logits
    each = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    return each.view(len(tokens), -1).mean(0)


@torch.no_grad()
def errors(config: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[float, float, float, set[str]]:
    """Largest differences: of logits, of the losses of every ablation in mode full and pattern-preserving; and which
    measures are undefined."""
    theirs, tokens = write(config, folder), torch.randint(0, VOCAB, (EXAMPLES, CONTEXT))
    ours = load_foreign(folder)
    worst = [float((ours(tokens) - theirs(tokens).logits).abs().max())]
    heads = [(layer, head) for layer in range(ours.config.layers) for head in range(ours.config.heads)]
    hooks = Hooks()
    with hooked(theirs, hooks, monkeypatch):
        whole = losses(theirs, tokens)
        for mode in ("full", "pattern-preserving"):
            hooks.frozen = mode != "full"
            expected = [whole]
            for hooks.removed in heads:
                expected.append(losses(theirs, tokens))
            found = torch.from_numpy(ablate(ours, tokens, mode=mode, positions="all")["position_loss"].values)
            worst.append(float((found - torch.stack(expected)).abs().max()))
            hooks.removed = None
    return worst[0], worst[1], worst[2], set(why_undefined(ours.config))


@pytest.mark.parametrize("family", CONFIGS)
def test_every_head_of_a_family(
    family: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(family, 1, tmp_path_factory, monkeypatch)


@pytest.mark.slow
def test_the_table(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with capsys.disabled():
        print("\n| family | logits | full | pattern-preserving | undefined |\n|---|---|---|---|---|")
        for family in CONFIGS:
            worst, undefined = check(family, 25, tmp_path_factory, monkeypatch)
            print(f"| {family} | " + " | ".join(f"{error:.0e}" for error in worst) + f" | {', '.join(undefined)} |")


def check(
    family: str, examples: int, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[float], list[str]]:
    """Many models of a family, each within 1e-4 (logits) and 1e-5 nats a token (ablations)."""
    worst, undefined = [0.0] * 3, set[str]()

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(CONFIGS[family])
    def one(config: Any) -> None:
        *found, names = errors(config, tmp_path_factory.mktemp(family), monkeypatch)
        worst[:] = map(max, worst, found)
        undefined.update(names)
        assert found[0] < 1e-4
        assert max(found[1:]) < 1e-5

    one()
    return worst, sorted(undefined)
