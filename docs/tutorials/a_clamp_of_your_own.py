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
import math
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
# it is. Classes are Gaussian here, wide enough (`within`) to be told apart with effort; with `kind: glyphs` they are
# written characters, as in the thesis.

# %%
Path("exemplars.yaml").write_text("""
exemplars: {kind: gaussian, classes: 60, exemplars: 5, width: 64, within: 1.5, encoder: none}
sequences: {p_icl: 1.0, classes: 40, label_pool: 5, held_out_classes: 10}
model: {layers: 2, width: 32, heads: 4, position: rotary}
training: {steps: 2000, batch: 32, lr: 3e-4, log_every: 50, engine: plain}
evaluation: {every: 2000, sequences: 500}
snapshots: {every: 2000}
""")
config = icl_fast.load_config("exemplars.yaml")

# %% [markdown]
# ## The clamp
#
# An intervention puts something in the place of an activation wherever the model computes it, in training too:
# gradients flow where the values do. The thesis' `pt-attend` makes the pattern of a first-layer head that of a perfect
# previous-token head. Ours does so by degrees: a share `strength` of the head's attention goes to the token before,
# and what the rest does is learned. No named clamp says that.


# %%
def previous_token(strength: float) -> Intervention:
    """From each position this share of the attention of head 0.2 goes to the one before it."""

    def force(pattern: torch.Tensor) -> torch.Tensor:
        length = pattern.shape[-1]
        before = torch.eye(length).roll(-1, 1)
        before[0] = torch.eye(length)[0]
        return strength * before + (1 - strength) * pattern

    return Intervention.apply("0.pattern", force, heads=[2])


# %% [markdown]
# An intervention is an object that can be called, so look at what it does before a training depends on it: to a
# pattern `[B,H,T,T]` that attends evenly.

# %%
even = torch.ones(5, 5).tril()
even = (even / even.sum(-1, keepdim=True)).expand(1, 4, 5, 5)
forced = previous_token(0.5)(even)
assert torch.equal(forced[:, [0, 1, 3]], even[:, [0, 1, 3]])  # other heads are left alone
torch.testing.assert_close(forced.sum(-1), torch.ones(1, 4, 5))  # it still attends once
forced[0, 2]

# %% [markdown]
# ## Train under it
#
# `train` takes any list of interventions. Everything else is the same in the three runs: weights at the start,
# sequences, and their order.

# %%
runs = {
    strength: icl_fast.train(config, f"runs/{strength:g}", interventions=[previous_token(strength)] if strength else [])
    for strength in (0.0, 0.5, 1.0)
}

# %%
from icl_fast.measure.exemplar.curves import training_curves

curves = {strength: training_curves(run).isel(member=0) for strength, run in runs.items()}
plt.figure(figsize=(7, 3.5), layout="constrained")
for strength, curve in curves.items():
    plt.plot(curve["logged_sequences"], curve["training_loss"], label=f"{strength:g}")
plt.axhline(math.log(2), color="grey", lw=0.8, ls=":")
plt.text(0, math.log(2) - 0.07, "log 2: either label", color="grey")
plt.legend(title="strength")
plt.xlabel("sequences seen")
plt.ylabel("training loss (nats)")
plt.show()

# %% [markdown]
# First all three learn which labels stand in the context, which a loss of log 2 says. What comes after needs the
# circuit. The more of its first step is given, the sooner the rest is learned: the missing previous-token head was
# part of what the free run waits for (compare Singh 2025, Figure 4.6b, red).

# %%
late = {strength: float(curve["training_loss"][20:].mean()) for strength, curve in curves.items()}
print({strength: round(loss, 3) for strength, loss in late.items()})
assert late[1.0] < late[0.5] < late[0.0]

# %% [markdown]
# ## What is left without the clamp
#
# Interventions are not part of the weights. Run the clamped model freely, and it lacks what it was given: the head
# never had to learn to attend to the token before. `evaluate_strategies` takes the same interventions, so that both
# can be asked.

# %%
from icl_fast.measure.exemplar.strategies import evaluate_strategies

run = runs[1.0]
model = run.load_snapshot(2000).model
exemplars = icl_fast.open_series(run.path).exemplars()
sequences = run.population.evaluators(exemplars, ["icl"], 500, torch.device("cpu"))
accuracy = {}
for name, interventions in {"clamped": [previous_token(1.0)], "free": []}.items():
    metrics = evaluate_strategies(model, exemplars.features, sequences, interventions=interventions)
    accuracy[name] = float(metrics["icl"].accuracy_in_context[0])
print(accuracy)
assert accuracy["clamped"] > accuracy["free"] + 0.1

# %% [markdown]
# That is what makes it a causal experiment: we know what the circuit was given, since we gave it. The thesis' own
# figure, six clamps as one population of runs, is `icl-fast train configs/exemplars/clamps.yaml`.
