# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # A clamp of your own
#
# Induction needs several parts to meet: a head that attends to the token before, one that copies what it finds there,
# and one that matches and copies the answer. While they are all missing, none of them pays, and the loss stays on a
# plateau. Singh 2025 (4.4) takes the puzzle apart by *clamping*: a part of the circuit is held perfect throughout
# training, and one sees how the rest learns. The thesis' clamps have names (`icl-fast train --clamp match`). Here you
# write one that has none.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import icl_fast
from icl_fast import Intervention

# %% [markdown]
# ## The task
#
# A sequence is an exemplar, its label, another exemplar, its label, and a query, which shows the class of one of the
# two; the model says its label. Labels are drawn anew for every sequence (`p_icl: 1`), so only the context says which
# it is. Classes are Gaussian here; with `kind: glyphs` they are written characters, as in the thesis.

# %%
Path("exemplars.yaml").write_text("""
exemplars: {kind: gaussian, classes: 60, exemplars: 5, width: 32, encoder: none}
sequences: {p_icl: 1.0, classes: 40, label_pool: 4, held_out_classes: 10}
model: {layers: 2, width: 32, heads: 4, position: rotary}
training: {steps: 3000, batch: 32, lr: 1e-3, log_every: 25, engine: plain}
evaluation: {every: 1000, sequences: 200}
snapshots: {every: 3000}
""")
config = icl_fast.load_config("exemplars.yaml")

# %% [markdown]
# ## The clamp
#
# An intervention puts a tensor in the place of an activation, wherever the model computes it, and while it trains too:
# gradients flow around what is replaced. `pt-attend` of the thesis makes the pattern of a first-layer head that of a
# perfect previous-token head. Ours does it by degrees: a share `strength` of the head's attention goes to the token
# before, and the head may use the rest as it likes. No named clamp can say that.

# %%
def previous_token(strength: float) -> Intervention:
    """A share of the attention of head 0.2 goes from each position to the one before it (of the first, to itself)."""

    def force(pattern: torch.Tensor) -> torch.Tensor:
        length = pattern.shape[-1]
        before = torch.eye(length).roll(-1, 1)
        before[0] = torch.eye(length)[0]
        return strength * before + (1 - strength) * pattern

    return Intervention.apply("0.pattern", force, heads=[2])


# %% [markdown]
# First see that it does what it should, on any weights:

# %%
from icl_fast.models import ExemplarConfig, ExemplarTransformer

run_config = config.model
length = 2 * config.sequences.pairs + 1

# %% [markdown]
# ## Train under it
#
# `train` takes any list of interventions. Four runs: none, and three strengths.

# %%
strengths = (0.0, 0.5, 1.0)
runs = {
    strength: icl_fast.train(
        config, f"runs/{strength}", interventions=[previous_token(strength)] if strength else []
    )
    for strength in strengths
}

# %%
from icl_fast.analysis import learning_time
from icl_fast.measure.exemplar.curves import training_curves

plt.figure(figsize=(7, 3.5), layout="constrained")
times = {}
for strength, run in runs.items():
    curve = training_curves(run)["training_loss"].isel(member=0)
    sequences = training_curves(run)["logged_sequences"]
    plt.plot(sequences, curve, label=f"{strength:g}")
    times[strength] = curve
plt.axhline(torch.log(torch.tensor(2.0)), color="grey", lw=0.8, ls=":")
plt.legend(title="strength")
plt.xlabel("sequences seen")
plt.ylabel("training loss (nats)")
plt.show()
