# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Induction heads in ten minutes
#
# An *induction head* looks for earlier copies of the present token, attends to what followed them, and raises the
# logit of that: `... A B ... A` is continued with `B`.
# [Olsson et al. 2022](https://arxiv.org/abs/2209.11895) found that such heads form within a short stretch of training,
# and that much of what a transformer learns *in context* arrives in the same stretch (their "phase change", Arguments 1
# and 2). Here you train a model small enough for that to happen in seconds, watch it,
# and take the heads away.

# %%
import random
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import icl_fast

# %% [markdown]
# ## Text that repeats itself
#
# A head can only learn to copy from text in which something is worth copying. We write 300 documents, each of which
# draws 25 words of its own out of 400 and says phrases made of them again and again. Which words these are is
# different in each document, so that they cannot be learned beforehand: they must be read from the context.

# %%
draw = random.Random(0)
syllables = ["ba", "do", "ki", "lu", "me", "no", "pa", "ri", "su", "te", "vo", "za"]
words = ["".join(draw.choices(syllables, k=draw.randint(1, 3))) for _ in range(400)]
text = Path("text")
text.mkdir(exist_ok=True)
for number in range(300):
    phrases = [" ".join(draw.choices(words, k=5)) for _ in range(5)]
    (text / f"{number:03d}.txt").write_text("\n".join(draw.choice(phrases) for _ in range(120)))

# %% [markdown]
# ## Train two models
#
# A config says all that decides a run: the model, the text, the optimizer, and when weights are kept. With two layers
# a head of the first can mark each token with the one before it, and a head of the second can search for that mark;
# with one layer there is nothing that could be searched for (Olsson et al. 2022, Argument 5). So the
# one-layer model is our control. (The longer version, on real text, is
# `icl_fast.load_config("configs/demo/two_layer.yaml")`.)

# %%
Path("two_layer.yaml").write_text("""
model: {layers: 2, width: 64, heads: 4}
data: {corpus: text, vocab: 384, context: 64, repeat: true}
training: {steps: 1200, batch: 16, lr: 1.2e-2}
snapshots: {every: 60}
""")
runs = {
    layers: icl_fast.train(icl_fast.load_config("two_layer.yaml", [f"model.layers={layers}"]), f"runs/{layers}_layer")
    for layers in (1, 2)
}
{layers: len(run.snapshot_steps()) for layers, run in runs.items()}

# %% [markdown]
# ## Watch the change
#
# `sweep` removes heads from every snapshot; with `heads="none"` it measures the whole model alone. `evaluate` scores
# every head of every snapshot. Both keep what they measured in the run folder, as xarray Datasets.

# %%
losses, scores = {}, {}
for layers, run in runs.items():
    series = icl_fast.open_series(run.path)
    losses[layers] = icl_fast.open_results(icl_fast.sweep(series, heads="none", examples=256, icl_window=9))
    scores[layers] = icl_fast.open_results(icl_fast.evaluate(series))
print(losses[2])

# %% [markdown]
# The *ICL score* is the loss late in the context less the loss early in it, in nats: the further below zero it lies,
# the more the model has got out of what it read. *Prefix matching* is how much a head attends to what followed
# earlier copies of the present token, on random tokens that are repeated: 1 is a perfect induction head.

# %%
figure, (above, below) = plt.subplots(2, 1, sharex=True, figsize=(7, 5), layout="constrained")
for layers, colour in ((1, "tab:grey"), (2, "tab:blue")):
    score = losses[layers]["icl_score"].sel(ablation="none")
    above.plot(score["tokens"], score, color=colour, label=f"{layers} layer{'s'[: layers - 1]}")
    matching = scores[layers]["prefix_matching"].stack(h=("layer", "head"))
    below.plot(matching["tokens"], matching, color=colour, lw=1)
above.set_ylabel("ICL score (nats)")
above.legend()
below.set(ylabel="prefix matching", xlabel="tokens seen", ylim=(0, 1))
plt.show()

# %% [markdown]
# In the two-layer model the ICL score falls and a head starts to match prefixes, at the same time. Whether that was a
# change or a smooth fall is not left to the eye: `phase_change_of` fits both to the curve.

# %%
from icl_fast.analysis import phase_change_of

changes = {layers: phase_change_of(losses[layers], scores[layers]["prefix_matching"]) for layers in runs}
for layers, change in changes.items():
    print(f"{layers} layer(s): change {change.happened}, drop {change.drop:.2f} nats, evidence {change.evidence:.0f}")
assert changes[2].happened
assert not changes[1].happened

# %% [markdown]
# ## The head at work
#
# Which head is it, and what does it look at? We record its attention pattern on twelve random tokens, said twice.

# %%
final = scores[2]["prefix_matching"].isel(snapshot=-1)
layer, head = (int(final.argmax(...)[dim]) for dim in ("layer", "head"))
loaded = icl_fast.load(runs[2])
tokens = torch.randperm(120, generator=torch.Generator().manual_seed(1))[:12].add(260).repeat(1, 2)
pattern = loaded.run(tokens, record="*.pattern")[f"{layer}.pattern"][0, head]
plt.figure(figsize=(4, 4), layout="constrained")
plt.imshow(pattern, cmap="Blues", vmin=0, vmax=1)
plt.title(f"head {layer}.{head}: from row to column")
plt.show()
assert layer == 1

# %% [markdown]
# The stripe is induction: from the second copy of a token (rows 12 and on) to the token *after* its first copy, eleven
# back.

# %%
stripe = pattern[torch.arange(12, 23), torch.arange(1, 12)].mean()
print(f"attention on the stripe: {stripe:.2f}, by chance {1 / 18:.2f}")
assert stripe > 3 / 18

# %% [markdown]
# On a text, before the change and after it (point at a token to see where the head attends):

# %%
icl_fast.attention(
    runs[2],
    "\n".join((text / "000.txt").read_text().splitlines()[:6]),
    heads=f"{layer}.{head}",
    steps=[600, 1200],
    height=700,
)

# %% [markdown]
# ## Take it away
#
# An association in time proves nothing yet. So remove each head in turn, keep the attention patterns of all others as
# they were (`pattern-preserving`, as in the paper), and look at the ICL score again.

# %%
series = icl_fast.open_series(runs[2].path)
ablated = icl_fast.open_results(
    icl_fast.sweep(series, snapshots="last", examples=256, icl_window=9, out="ablated.zarr")
)
score = ablated["icl_score"].isel(snapshot=0)
effect = (score - score.sel(ablation="none")).drop_sel(ablation="none").to_series().sort_values(ascending=False)
error = ablated["icl_effect_sem"].isel(snapshot=0).to_series()
for name in effect.index:
    print(f"without {name}: the ICL score changes by {effect[name]:+.3f} ± {error[name]:.3f}")

# %%
assert effect[f"{layer}.{head}"] > 3 * error[f"{layer}.{head}"] > 0

# %% [markdown]
# Without the induction head the model gets less out of its context. That is the paper's Argument 3, on a model
# that you trained a minute ago. What comes next:
#
# - all of it on one page: `icl-fast report runs/2_layer runs/1_layer --out report`, then open `report/index.html`;
# - the same on real text, in minutes: `icl-fast demo`;
# - the same on [your own checkpoints](your_own_checkpoints.md).
