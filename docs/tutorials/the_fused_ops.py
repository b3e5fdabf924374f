# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # The fused ops in your code
#
# The ops of `icl_fast.ops` need torch and numpy only, and work in any model. The one that most models can use is
# [`linear_cross_entropy`][icl_fast.ops.linear_cross_entropy.linear_cross_entropy]: the last linear map and the loss in
# one, without the logits in between. For 4,096 tokens and a vocabulary of 32,768 the logits alone are half a gigabyte,
# and the usual way holds them, their softmax and their gradient.

# %%
import subprocess
import sys

import torch
import torch.nn.functional as F

import icl_fast

# %% [markdown]
# ## The same numbers
#
# `hidden` is what the last norm gives, `weight` the unembedding. Losses and gradients are those of the two plain
# lines, to rounding.

# %%
torch.manual_seed(0)
hidden = torch.randn(2, 64, 96, requires_grad=True)
weight = torch.randn(1000, 96, requires_grad=True)
targets = torch.randint(0, 1000, (2, 64))

plain = F.cross_entropy(F.linear(hidden, weight).flatten(0, 1), targets.flatten())
fused = icl_fast.linear_cross_entropy(hidden, weight, targets, reduction="mean")
torch.testing.assert_close(fused, plain)

gradients = [torch.autograd.grad(loss, (hidden, weight)) for loss in (plain, fused)]
torch.testing.assert_close(*gradients)
fused

# %% [markdown]
# ## The memory
#
# Peak memory is a property of a whole process, so each way gets a process of its own. It reports by how much one
# forward and backward pass raised the most that it ever held (`ru_maxrss`).

# %%
PROGRAM = """
import resource, sys, torch, torch.nn.functional as F
from icl_fast.ops import linear_cross_entropy

torch.set_num_threads(1)
hidden = torch.randn(4096, 128, requires_grad=True)
weight = torch.randn(32768, 128, requires_grad=True)
targets = torch.randint(0, 32768, (4096,))
ways = {
    "plain": lambda n: F.cross_entropy(F.linear(hidden[:n], weight), targets[:n]),
    "fused": lambda n: linear_cross_entropy(hidden[:n], weight, targets[:n], reduction="mean"),
}
ways[sys.argv[1]](8).backward()  # what is loaded or allocated once
hidden.grad = weight.grad = None
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ways[sys.argv[1]](4096).backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def peak(way: str) -> float:
    """MiB that one training step adds."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, way], capture_output=True, text=True, check=True)
    return float(done.stdout)


measured = {way: peak(way) for way in ("plain", "fused")}
logits = 4096 * 32768 * 4 / 2**20
print(
    f"the logits: {logits:.0f} MiB; a step adds " + ", ".join(f"{way} {mib:.0f} MiB" for way, mib in measured.items())
)

# %%
assert measured["plain"] > logits  # it holds them, and more
assert measured["fused"] < logits / 5  # it never does

# %% [markdown]
# ## In a model
#
# Stop before the unembedding, and give the op its weight. That is all:


# %%
class Model(torch.nn.Module):
    """Any model whose last layer is linear."""

    def __init__(self, vocab: int, width: int) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(vocab, width)
        layer = torch.nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.body = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.unembed = torch.nn.Linear(width, vocab, bias=False)

    def loss(self, tokens: torch.Tensor) -> torch.Tensor:
        """Mean loss of the next token, in nats."""
        mask = torch.nn.Transformer.generate_square_subsequent_mask(tokens.shape[1] - 1)
        hidden = self.body(self.embed(tokens[:, :-1]), mask=mask, is_causal=True)
        return icl_fast.linear_cross_entropy(hidden, self.unembed.weight, tokens[:, 1:], reduction="mean")


model = Model(vocab=512, width=32)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
tokens = torch.randint(0, 512, (8, 33))  # eight sequences to learn by heart
curve = []
for _ in range(60):
    optimizer.zero_grad()
    loss = model.loss(tokens)
    loss.backward()
    optimizer.step()
    curve.append(loss.item())
print(f"{curve[0]:.2f} -> {curve[-1]:.2f} nats")
assert curve[-1] < curve[0] / 2

# %% [markdown]
# ## Losses by position, over a whole evaluation
#
# In-context learning is read off the loss at each *position*. `PositionLoss` sums losses as they come, in float64, so
# that a pass over millions of tokens keeps two numbers a position, and returns means and standard errors:

# %%
totals = icl_fast.PositionLoss(32)
with torch.no_grad():
    for _ in range(4):
        hidden = torch.randn(8, 32, 32)
        icl_fast.linear_cross_entropy(
            hidden, model.unembed.weight, torch.randint(0, 512, (8, 32)), reduction="position", position_loss=totals
        )
totals.mean[:4], totals.standard_error[:4]

# %% [markdown]
# ## Which implementation ran
#
# `impl="auto"` takes the best one that is built: a CPU kernel for the widest vectors of this processor, CUDA, or plain
# torch where there is no compiled part. `impl="reference"` is the definition, which everything else is tested against.
# `icl-fast info` says the same of all ops.

# %%
from icl_fast.ops import available_impls

available_impls()["linear_cross_entropy"]

# %% [markdown]
# The [other ops](../reference/api/ops.md) compute what an ablation takes away without rounding it off:
# `layer_norm_difference`, `activation_difference`, `gated_difference` and `cross_entropy_difference`. What all of
# them reach against what one would write without them is measured in [Performance](../reference/performance.md).
