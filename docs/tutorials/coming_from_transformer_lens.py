# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Coming from TransformerLens
#
# Five things that one does there, done here. The models are yours: a state dict of a `HookedTransformer` loads as it
# is. What is different here is the point of view: a training with many snapshots rather than one model, and all heads
# at once rather than one hook at a time.
#
# | in TransformerLens | here |
# |---|---|
# | `HookedTransformer.from_pretrained(...)` | `icl_fast.load(folder)` |
# | `logits, cache = model.run_with_cache(tokens)` | `out = loaded.run(tokens, record="all")` |
# | `model.run_with_hooks(tokens, fwd_hooks=[...])` | `loaded.run(tokens, interventions=[...])` |
# | a loop of hooks over heads | `icl_fast.ablate(loaded.model, tokens, heads="all")` |
# | `head_detector`, `cache["pattern", 1]` | `prefix_matching_scores(loaded.model)`, `out["1.pattern"]` |

# %%
import random
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import icl_fast
from icl_fast import Intervention

# %% [markdown]
# We need a `HookedTransformer` that can do something. So we train one for a few seconds on lines of invented words that
# documents repeat, and write its state dict as TransformerLens would:

# %%
draw = random.Random(0)
syllables = ["ba", "do", "ki", "lu", "me", "no", "pa", "ri", "su", "te", "vo", "za"]
words = ["".join(draw.choices(syllables, k=draw.randint(1, 3))) for _ in range(400)]
Path("text").mkdir(exist_ok=True)
for number in range(300):
    phrases = [" ".join(draw.choices(words, k=5)) for _ in range(5)]
    Path(f"text/{number:03d}.txt").write_text("\n".join(draw.choice(phrases) for _ in range(120)))
Path("config.yaml").write_text("""
model: {layers: 2, width: 64, heads: 4}
data: {corpus: text, vocab: 384, context: 64, repeat: true}
training: {steps: 1200, batch: 16, lr: 1.2e-2}
snapshots: {every: 1200}
""")
trained = icl_fast.train(icl_fast.load_config("config.yaml"), "run")

# %% language="bash"
# icl-fast export run --to transformer-lens --out lens
# ls lens

# %% [markdown]
# ## 1. Load
#
# A folder with the config and a `.safetensors`, `.pt` or `.pth` file. Nothing in it is executed, and every tensor is
# used once. (Llama, Pythia, Qwen, Gemma, ... load from their own folders or GGUF files: [what loads](../models.md).)

# %%
loaded = icl_fast.load("lens")
model = loaded.model
loaded

tokens = torch.randperm(120, generator=torch.Generator().manual_seed(1))[:20].add(260).repeat(1, 2)  # 20 tokens, twice
with torch.no_grad():
    torch.testing.assert_close(model(tokens), icl_fast.load(trained).model(tokens))

# %% [markdown]
# ## 2. `run_with_cache`
#
# Name what you want to see: `"all"`, patterns such as `"*.z"`, or a list. Only what is named is kept. Theirs are on
# the left:
#
# | `cache["..."]` | site | shape |
# |---|---|---|
# | `blocks.1.attn.hook_pattern` | `1.pattern` | `[B,H,T,T]` |
# | `blocks.1.attn.hook_attn_scores` | `1.scores` | `[B,H,T,T]`, before the mask |
# | `blocks.1.attn.hook_q`, `hook_k`, `hook_v`, `hook_z` | `1.q`, `1.k`, `1.v`, `1.z` | `[B,H,T,D]` |
# | `blocks.1.attn.hook_result` | `1.head_out` | `[B,H,T,C]` |
# | `blocks.1.hook_resid_pre`, `hook_resid_mid`, `hook_resid_post` | `1.resid_pre`, ... | `[B,T,C]` |
# | `blocks.1.hook_attn_out`, `hook_mlp_out` | `1.attn_out`, `1.mlp_out` | `[B,T,C]` |
# | `hook_embed`, `ln_final.hook_normalized` | `embed`, `final_norm` | `[B,T,C]` |

# %%
out = loaded.run(tokens, record=["*.pattern", "1.z", "final_norm"])
print({name: list(value.shape) for name, value in out.items()}, "logits", list(out.logits.shape))
torch.testing.assert_close(model.unembed(out["final_norm"]), out.logits)
print(f"losses of the first time {out.losses[0, :19].mean():.2f}, of the second {out.losses[0, 19:].mean():.2f} nats")

# %% [markdown]
# ## 3. `run_with_hooks`
#
# An intervention is a value, not a state of the model: it holds for the pass that it is given to, so there is no
# `reset_hooks`. `zero`, `set` and `apply` take heads, positions and examples; several at one site act in order.

# %%
halved = Intervention.apply("1.z", lambda z: z / 2, heads=[0, 1])
without = Intervention.zero("0.z", heads=[2])
changed = loaded.run(tokens, interventions=[halved, without])
assert not torch.allclose(changed.logits, out.logits)
torch.testing.assert_close(loaded.run(tokens).logits, out.logits)  # nothing stays behind

# %% [markdown]
# Activation patching is the same: what a site held in one run, put into another. With the stream behind the first
# layer of other tokens, all that follows is that of the other run, as nothing else is read.

# %%
other = loaded.run(tokens.flip(1), record="0.resid_post")
patched = loaded.run(tokens, interventions=[Intervention.set("0.resid_post", other["0.resid_post"])])
difference = (patched.logits - other.logits).abs().max()
print(f"largest difference from the other run's logits: {difference:.1e}")
assert difference < 1e-4

# %% [markdown]
# ## 4. Ablate heads
#
# There it is a hook for each head and a pass for each hook. Here all heads are one call, which runs the model once and
# of each ablation only what it changes, to the same numbers. The result says by how much each loss changes, with the
# standard error of the change.

# %%
many = torch.stack([torch.randperm(120)[:20].add(260).repeat(2) for _ in range(32)])
effects = icl_fast.ablate(model, many, mode="full", heads="all")
late = effects["position_loss"].sel(position=slice(22, None)).mean("position")  # of the second time
change = (late - late.sel(ablation="none")).to_series().drop("none").sort_values(ascending=False)
change

# %% [markdown]
# The same by hand, with an intervention for each head, as one would there:

# %%
with torch.no_grad():
    for name, expected in change.items():
        layer, head = map(int, name.split("."))
        passes = ([], [Intervention.zero(f"{layer}.z", heads=[head])])
        losses = []
        for interventions in passes:
            result = model(many[:, :-1], interventions=interventions)
            each = torch.nn.functional.cross_entropy(result.transpose(1, 2), many[:, 1:], reduction="none")
            losses.append(each[:, 21:].mean())
        torch.testing.assert_close(losses[1] - losses[0], torch.tensor(expected).float(), rtol=1e-3, atol=1e-4)

# %% [markdown]
# Here everything behind a removed head is computed anew (`full`). `pattern-preserving`, the paper's, keeps the
# attention patterns; there are [more modes](../design.md#ablations-by-definition), and over all snapshots of a training
# it is `icl_fast.sweep`.
#
# ## 5. Attention patterns and head scores
#
# A detector gives each head a number; here these are the paper's own (Olsson et al. 2022, Data Collection (3)).

# %%
from icl_fast.measure import copying_scores, prefix_matching_scores

induction, copying = prefix_matching_scores(model), copying_scores(model)
layer, head = divmod(int(induction.argmax()), model.config.heads)
print(f"head {layer}.{head}: prefix matching {induction[layer, head]:.2f}, copying {copying[layer, head]:.2f}")

figure, axes = plt.subplots(1, model.config.heads, figsize=(9, 2.6), layout="constrained")
for index, ax in enumerate(axes):
    ax.imshow(out["1.pattern"][0, index], cmap="Blues", vmin=0, vmax=1)
    ax.set_title(f"1.{index}")
plt.show()

assert (layer, head) == (1, int(change.drop([n for n in change.index if n[0] == "0"]).idxmax()[2:]))
assert induction[layer, head] > 0.3

# %% [markdown]
# The head that scores highest is the one whose removal costs the second layer most. And back again: `icl-fast export
# --to transformer-lens` writes what `HookedTransformer.load_state_dict` reads, from any run or model.
