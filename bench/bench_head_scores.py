"""Head scores against reading transformers' eager attentions, on a model of SmolLM2-135M's shape with random weights.

All 270 heads: prefix matching on 10 sequences of 101 tokens, previous token on windows of 1,024, one by one. The other
way runs transformers' own model with `output_attentions=True` and takes the same formulas of the patterns it returns:
with the logits that such a call gives ("reference"), or of the model without its unembedding ("without logits").
"""

from __future__ import annotations

import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import harness
import torch
from baselines import module_or_none
from harness import Candidate, Case, Inputs, Maker, Options
from torch import Tensor

NAME = "head_scores"
SMOLLM2 = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 8192, "rope_theta": 100000.0,
}  # fmt: skip
TINY = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 256,
}  # fmt: skip
TOLERANCE = 1e-4  # of scores between 0 and 1, of the largest of them


def cases(options: Options) -> list[Case]:
    return [case("prefix_matching", 10, 101, options), case("previous_token", 2, 1024, options)]


def case(score: str, examples: int, length: int, options: Options) -> Case:
    """One score of all heads."""
    if options.quick:
        examples, length = 10, 101  # as many as prefix matching draws
    shape = TINY if options.quick else SMOLLM2
    rows, width = examples * length, shape["hidden_size"]
    shared = width * shape["num_key_value_heads"] // shape["num_attention_heads"]
    layer = width * (2 * width + 2 * shared + 3 * shape["intermediate_size"])
    pairs = examples * length * (length + 1) // 2
    without, no_kernel = missing(), harness.not_built("frozen_attention", options.device)
    return Case(
        shape=f"{score} {examples} x {length} tokens",
        dtype=torch.float32,
        make=lambda maker: Inputs() if without else make(maker, shape, examples, length),
        candidates=[
            Candidate("ours", lambda x: ours(x, score), missing=without or no_kernel),
            Candidate("reference", lambda x: theirs(x.theirs, x.tokens, score), missing=without),
            Candidate("without logits", lambda x: theirs(x.theirs.model, x.tokens, score), missing=without),
        ],
        flops=2.0 * shape["num_hidden_layers"] * (rows * layer + 2 * pairs * width),
        bytes=4.0 * shape["num_hidden_layers"] * layer,
        rounds=3,
        headline=options.device == "cpu",
        tolerance=TOLERANCE,
    )


def missing() -> str:
    """Why there is nothing to compare here; empty if there is."""
    if not module_or_none("icl_fast.measure"):
        return "icl_fast.measure needs packages that are not here"
    return "" if module_or_none("transformers") else "transformers is not here"


@cache
def models(shape: tuple[tuple[str, Any], ...]) -> tuple[Any, Any]:
    """A Llama of transformers, random but with peaked attention, and the same as ours."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from icl_fast.models.foreign import load_foreign

    torch.manual_seed(0)
    config = LlamaConfig(**dict(shape), tie_word_embeddings=True, attn_implementation="eager")
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    for name, weight in model.named_parameters():
        if "q_proj" in name or "k_proj" in name:
            weight.mul_(4)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(Path(folder) / "model")
        return model, load_foreign(Path(folder) / "model").requires_grad_(False)


def make(maker: Maker, shape: dict[str, Any], examples: int, length: int) -> Inputs:
    from icl_fast.measure.heads import repeated_random_tokens

    theirs, ours = (model.to(maker.device) for model in models(tuple(shape.items())))
    tokens = repeated_random_tokens(shape["vocab_size"], 1, examples=examples).to(maker.device)
    if length != tokens.shape[1]:
        tokens = maker.below(shape["vocab_size"], examples, length)
    return Inputs(ours=ours, theirs=theirs, tokens=tokens)


def ours(x: Inputs, score: str) -> Tensor:
    """The public calls; prefix matching draws the same sequences anew."""
    from icl_fast.measure import prefix_matching_scores, previous_token_scores

    if score == "previous_token":
        found: Tensor = previous_token_scores(x.ours, x.tokens, examples=len(x.tokens))
        return found
    scores: Tensor = prefix_matching_scores(x.ours, bos=1)
    return scores


def theirs(model: Any, tokens: Tensor, score: str) -> Tensor:
    """The score's formula of the patterns that a run returns, as many windows of 1,024 at a time as fit: one."""
    from icl_fast.measure.heads import prefix_matching, previous_token

    if score == "prefix_matching":
        return torch.stack([prefix_matching(p) for p in model(tokens, output_attentions=True).attentions])
    runs = (model(window[None], output_attentions=True).attentions for window in tokens)
    return torch.stack([torch.stack([previous_token(p) for p in run]) for run in runs]).mean(0)


if __name__ == "__main__":
    sys.exit(harness.main(NAME, cases, __file__))
