# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Your own checkpoints
#
# You have trained a transformer elsewhere and kept its weights along the way. What can be said about how in-context
# learning formed in it? Here the training is done with Hugging Face's transformers, in some seconds; everything from
# "Open the series" on is what you would type for yours. [Other people's models](../models.md) lists what loads.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
from transformers.utils import logging

import icl_fast

torch.manual_seed(0)
logging.disable_progress_bar()

# %% [markdown]
# ## Somebody's training
#
# A GPT-NeoX (as Pythia is one) of two layers, trained by a loop that knows nothing of icl_fast, on random tokens that
# are said again and again: the simplest text in which the context helps. It is kept every 50 steps, as
# `save_pretrained` does.

# %%
config = GPTNeoXConfig(
    vocab_size=64, max_position_embeddings=128, hidden_size=64, intermediate_size=64, num_hidden_layers=2,
    num_attention_heads=4, rotary_pct=1.0, initializer_range=0.1, use_parallel_residual=False, bos_token_id=0,
    eos_token_id=0,
)  # fmt: skip
model = GPTNeoXForCausalLM(config)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.99))


def batch() -> torch.Tensor:
    """32 sequences of 48 tokens, each of 8 to 24 random ones that repeat."""
    periods = torch.randint(8, 25, (32,)).tolist()
    return torch.stack([torch.randint(1, 64, (period,)).repeat(6)[:48] for period in periods])


for step in range(751):
    if step % 50 == 0:
        model.save_pretrained(f"mine/step{step}")
    tokens = batch()
    loss = model(tokens, labels=tokens).loss
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.param_groups[0]["lr"] = 3e-3 * min(1, (step + 1) / 50)
    optimizer.step()
sorted(path.name for path in Path("mine/step750").iterdir())

# %% [markdown]
# ## Open the series
#
# A folder with a folder for each snapshot is a series; the number in a name is its step. What one folder holds, and
# that it is computed as transformers does:

# %%
from icl_fast.models.foreign import describe, load_foreign

with torch.no_grad():
    ours = load_foreign("mine/step750")(tokens)
    theirs = GPTNeoXForCausalLM.from_pretrained("mine/step750").eval()(tokens).logits
print(f"{describe('mine/step750')}: largest difference of a logit {(ours - theirs).abs().max():.0e}")
assert (ours - theirs).abs().max() < 1e-4

# %% [markdown]
# ## Score every head: `evaluate`
#
# From a terminal; here with `%%bash` above. What models are evaluated on is in no checkpoint, so it is given: a text
# that they can read, `--text book.txt`, and how much of it at a time, `--context`. These have no tokenizer, so random
# tokens, said twice, are the text. Results go to `results/mine` in the working directory, never among the models.

# %% language="bash"
# icl-fast evaluate mine --text repeated-random --context 48 2>/dev/null

# %%
scores = icl_fast.open_results("results/mine/heads.zarr")
matching = scores["prefix_matching"].stack(h=("layer", "head"))
plt.figure(figsize=(7, 3), layout="constrained")
for layer, head in matching["h"].values:
    plt.plot(
        matching["snapshot"],
        matching.sel(h=(layer, head)),
        marker="o",
        ms=3,
        color=f"C{layer}",
        label=f"{layer}.{head}",
    )
plt.legend(title="head", ncols=2)
plt.xlabel("optimizer steps")
plt.ylabel("prefix matching")
plt.show()

# %% [markdown]
# At the start no head attends to what followed earlier copies of the present token; between steps 300 and 600 heads of
# the second layer begin to, all at once. It takes two layers: the first must write down which token came before
# (Olsson et al. 2022, Argument 5).

# %%
first, last = (scores["prefix_matching"].isel(snapshot=index) for index in (0, -1))
layer, head = (int(last.argmax(...)[dim]) for dim in ("layer", "head"))
print(f"head {layer}.{head}: {float(first[layer, head]):.2f} -> {float(last[layer, head]):.2f}")
assert layer == 1
assert last[1].max() > 0.3 > 0.1 > max(first.max(), last[0].max())

# %% [markdown]
# ## Remove every head: `ablate`
#
# All of them, of a snapshot before and one after, and the heads of the second layer together.

# %% language="bash"
# icl-fast ablate mine --text repeated-random --context 48 --examples 128 --snapshots 200,750 \
#   --heads 'all,1.*' 2>/dev/null

# %% [markdown]
# The *ICL score* is the loss late in the context less the loss early in it: far below zero at step 750, as the second
# half repeats the first. Without the induction heads it rises, and most of what the context gave is lost.

# %%
ablated = icl_fast.open_results("results/mine/ablation_pattern-preserving.zarr")
score = ablated["icl_score"].sel(ablation=["none", "1.*"]).to_pandas()
error = ablated["icl_effect_sem"].sel(ablation="1.*").to_series()
score

# %%
whole, without = score["none"], score["1.*"]
assert whole[750] < whole[200] - 0.5
assert without[750] - whole[750] > 10 * error[750]
assert without[750] > whole[750] / 2

# %% [markdown]
# ## One page of it: `report`
#
# The report measures what is missing and writes one HTML file that needs no network, with the figures beside it.

# %% language="bash"
# icl-fast report mine --text repeated-random --context 48 --examples 64 --modes pattern-preserving \
#   --snapshots 0,100,200,300,350,400,450,500,600,750 --no-static --out report 2>/dev/null

# %%
page = Path("report/index.html")
print(f"{page}: {page.stat().st_size / 2**20:.1f} MiB")
assert page.stat().st_size > 100_000

# %% [markdown]
# Open `report/index.html` in a browser. The same works on a series of the hub, where there is a network:
# `icl-fast evaluate hf:EleutherAI/pythia-70m --revisions 'step0,step512,step*000'`, with one snapshot in memory at a
# time. In Python, `icl_fast.load("mine", step=750)` gives the model with what was measured of it.
