# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Your own checkpoints
#
# You have trained a transformer elsewhere and kept its weights along the way. What can be said about how in-context
# learning formed in it? Here the training is done with Hugging Face's transformers, in half a minute; everything from
# "Open the series" on is what you would type for yours. [Other people's models](../models.md) lists what loads.

# %%
import json
import random
import subprocess
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Config, GPT2LMHeadModel

import icl_fast

torch.manual_seed(0)

# %% [markdown]
# ## Somebody's training
#
# A GPT-2 of two layers, trained by a loop that knows nothing of icl_fast, on lines of invented words of which every
# document says its own again and again. It is kept every so many steps, as `save_pretrained` does, with its tokenizer.

# %%
draw = random.Random(0)
syllables = ["ba", "do", "ki", "lu", "me", "no", "pa", "ri", "su", "te", "vo", "za"]
words = ["".join(draw.choices(syllables, k=draw.randint(1, 3))) for _ in range(400)]
Path("text").mkdir(exist_ok=True)
for number in range(300):
    phrases = [" ".join(draw.choices(words, k=5)) for _ in range(5)]
    Path(f"text/{number:03d}.txt").write_text("\n".join(draw.choice(phrases) for _ in range(120)))

tokenizer = ByteLevelBPETokenizer()
tokenizer.train([str(path) for path in sorted(Path("text").iterdir())], 384, special_tokens=["<|endoftext|>"])
documents = [tokenizer.encode(path.read_text()).ids for path in sorted(Path("text").iterdir())]

# %%
config = GPT2Config(
    vocab_size=384, n_positions=64, n_embd=64, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0,
    resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
)  # fmt: skip
model = GPT2LMHeadModel(config)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
kept = {0, 50, 100, 150, 200, 250, 300, 350, 400, 500, 600}
for step in range(601):
    if step in kept:
        model.save_pretrained(f"mine/step{step}")
        tokenizer.save(f"mine/step{step}/tokenizer.json")
    windows = []
    for document in draw.choices(documents, k=16):
        start = draw.randrange(len(document) - 64)
        windows.append([0, *document[start : start + 63]])
    tokens = torch.tensor(windows)
    loss = model(tokens, labels=tokens).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"loss {loss:.2f} nats")
sorted(path.name for path in Path("mine/step600").iterdir())

# %% [markdown]
# ## Open the series
#
# A folder with a folder for each snapshot is a series; the number in a name is its step. `icl_fast.models` says what a
# single folder holds, and computes the same logits as transformers.

# %%
from icl_fast.models.foreign import describe, load_foreign

ours = load_foreign("mine/step600")
with torch.no_grad():
    difference = (ours(tokens) - model.eval()(tokens).logits).abs().max()  # after one more step of theirs
    theirs = GPT2LMHeadModel.from_pretrained("mine/step600").eval()
    difference = (ours(tokens) - theirs(tokens).logits).abs().max()
print(f"{describe('mine/step600')}: largest difference of a logit {difference:.0e}")
assert difference < 1e-4

# %% [markdown]
# ## Score every head: `evaluate`
#
# From a terminal, or from here with `!` in front. What the models are evaluated on is not in a checkpoint, so it is
# given: `--text` and `--context`. Results go to `results/mine` in the working directory, never among the models.

# %% language="bash"
# icl-fast evaluate --ckpt mine --text text --context 63

# %%
scores = icl_fast.open_results("results/mine/heads.zarr")
matching = scores["prefix_matching"].stack(h=("layer", "head"))
plt.figure(figsize=(6, 3), layout="constrained")
plt.plot(matching["snapshot"], matching, marker="o", ms=3)
plt.legend([f"{layer}.{head}" for layer, head in matching["h"].values], title="head", ncols=2)
plt.xlabel("optimizer steps")
plt.ylabel("prefix matching")
plt.show()

# %% [markdown]
# At the start no head matches prefixes; at the end one of the second layer does. It takes two layers to make one:
# a head of the first must first write down which token came before (Olsson et al. 2022, Argument 5).

# %%
first, last = (scores["prefix_matching"].isel(snapshot=index) for index in (0, -1))
layer, head = (int(last.argmax(...)[dim]) for dim in ("layer", "head"))
print(f"head {layer}.{head}: {float(first[layer, head]):.2f} -> {float(last[layer, head]):.2f}")
assert layer == 1
assert last[layer, head] > 0.3 > first.max()

# %% [markdown]
# ## Remove every head: `ablate`

# %% language="bash"
# icl-fast ablate --ckpt mine --text text --context 63 --examples 128 --snapshots 0,200,600

# %%
ablated = icl_fast.open_results("results/mine/ablation_pattern-preserving.zarr")
score = ablated["icl_score"].sel(snapshot=600)
effect = (score - score.sel(ablation="none")).to_series().drop("none").sort_values(ascending=False)
effect.head(3)

# %% [markdown]
# The *ICL score* is the loss late in the context less the loss early in it. Without the induction head it rises more
# than without any other: the model gets less out of what it has read.

# %%
assert effect.index[0] == f"{layer}.{head}"
assert effect.iloc[0] > 3 * float(ablated["icl_effect_sem"].sel(snapshot=600, ablation=effect.index[0]))

# %% [markdown]
# ## One page of it: `report`
#
# The report measures what is missing and writes one HTML file that needs no network, with the figures beside it.

# %% language="bash"
# icl-fast report mine --text text --context 63 --examples 64 --modes pattern-preserving --snapshots 0,100,200,300,400,500,600 --no-static --out report

# %%
page = Path("report/index.html")
print(f"{page}: {page.stat().st_size / 2**20:.1f} MiB")
assert page.stat().st_size > 100_000

# %% [markdown]
# Open `report/index.html` in a browser. The same works on a series of the hub, where there is a network:
# `--ckpt hf:EleutherAI/pythia-70m --revisions 'step0,step512,step*000'`, with a snapshot in memory at a time.
