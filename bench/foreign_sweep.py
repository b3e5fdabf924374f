"""Every head of a model of SmolLM2-135M's shape ablated with patterns frozen, by us and by hooks on transformers.

    python bench/foreign_sweep.py [--positions all|paper] [--theirs 10] [--threads 2] [--quick] [--json FILE]

Seconds are those of the clock and of the processor: on a machine that others use too only the latter can be compared.
Weights are random, the same in both. Ours computes all heads. Theirs takes as long for one head as for another, and
is run for some, spread over the layers, in between ours; their mean times the number of heads is what all would take.
"from its layer" is a more careful loop: it begins at the removed head's layer and unembeds only the wanted positions.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hooked_transformers import HookedSweep
from report import environment
from rich.console import Console
from rich.table import Table
from torch import Tensor

from icl_fast.files import to_json
from icl_fast.measure.ablation.engine import ablation_effects
from icl_fast.measure.ablation.memory import parse_memory
from icl_fast.measure.ablation.modes import AblationMode
from icl_fast.measure.ablation.names import parse_ablations
from icl_fast.measure.ablation.positions import parse_positions
from icl_fast.measure.ablation.schedule import Schedule, make_schedule
from icl_fast.models.foreign import load_foreign

SMOLLM2 = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "vocab_size": 49152, "rope_theta": 100000.0,
}  # fmt: skip
TINY = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 300, "rope_theta": 100000.0,
}  # fmt: skip
MODE = AblationMode.parse("pattern-preserving")


@dataclass(frozen=True)
class Batch:
    """[n,T] token ids, what they are to predict, and [n,R] the positions whose losses are wanted."""

    inputs: Tensor
    targets: Tensor
    rows: Tensor


def make_model(shape: dict[str, Any], context: int) -> Any:
    """A Llama of transformers whose heads matter: matrices wide enough for peaked attention and large outputs."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(**shape, max_position_embeddings=context, tie_word_embeddings=True)
    config._attn_implementation = "eager"
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    for weight in model.parameters():
        if weight.ndim == 1:
            weight.normal_(1, 0.1)
        else:
            weight.normal_(0, 1.2 * weight.shape[1] ** -0.5)
    return model


def make_batch(vocab: int, examples: int, context: int, positions: str) -> Batch:
    tokens = torch.randint(vocab, (examples, context + 1))
    rows = torch.arange(context).expand(examples, -1)
    if positions == "paper":
        rows = parse_positions("paper", context).rows(1 + torch.randint(context, (examples,)))
    return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), rows)


class Ours:
    """The engine on a batch, a chunk of examples at a time."""

    def __init__(self, model: Any, batch: Batch, memory: int) -> None:
        self.model, self.batch = model, batch
        self.ablations = parse_ablations("all", model.config)
        count, context = batch.inputs.shape
        self.schedule: Schedule = make_schedule(
            model.config,
            examples=count,
            context=context,
            rows=batch.rows.shape[1],
            ablations=self.ablations,
            mode=MODE,
            memory=memory,
            itemsize=model.dtype.itemsize,
        )
        step = self.schedule.examples
        self.chunks = [slice(start, start + step) for start in range(0, count, step)]

    def chunk(self, examples: slice) -> Tensor:
        """Losses of the whole model and without each head, [1+A,n,R], of some examples."""
        batch = self.batch.inputs[examples], self.batch.targets[examples], self.batch.rows[examples]
        base, effects = ablation_effects(self.model, *batch, self.ablations, MODE, schedule=self.schedule)
        return torch.cat((base[None], base + effects))


def spread(layers: int, heads: int, count: int) -> list[tuple[int, int]]:
    """So many heads, evenly over the layers."""
    return [(int((i + 0.5) * layers / count), i % heads) for i in range(count)]


def timed(call: Any, *arguments: Any) -> tuple[Any, Tensor]:
    """What a call returns, and its [seconds, processor seconds]."""
    clocks = time.perf_counter, time.process_time
    started = [clock() for clock in clocks]
    result = call(*arguments)
    return result, torch.tensor([clock() - start for clock, start in zip(clocks, started, strict=True)])


def mm_rate(size: int) -> float:
    """FLOP a processor second of torch.mm at an MLP's shape, the best of five."""
    x, weight = torch.randn(size, 576), torch.randn(1536, 576)
    return (
        2
        * size
        * 576
        * 1536
        * 10
        / min(float(timed(lambda: [torch.mm(x, weight.T) for _ in range(10)])[1][1]) for _ in range(5))
    )


@torch.no_grad()
def compare(theirs: Any, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Both sweeps in turns, and how far apart their losses are."""
    config = theirs.config
    batch = make_batch(config.vocab_size, options.examples, options.context, options.positions)
    ours = Ours(load_foreign(folder), batch, parse_memory(options.memory))
    heads = spread(config.num_hidden_layers, config.num_attention_heads, options.theirs)
    hooked, recording = timed(HookedSweep, theirs, batch.inputs, batch.targets, batch.rows)
    runs: dict[str, list[Tensor]] = {"theirs": [], "theirs, from its layer": []}
    expected: list[Tensor] = []
    careful: list[Tensor] = []
    found, own = [], []
    turns = len(ours.chunks) + 1
    for turn in range(turns):  # of theirs some, then a chunk of ours
        for head in heads[turn * len(heads) // turns : (turn + 1) * len(heads) // turns]:
            for name, call, kept in zip(
                runs, (hooked.without, hooked.without_from_layer), (expected, careful), strict=True
            ):
                losses, seconds = timed(call, *head)
                runs[name].append(seconds)
                kept.append(losses)
        if turn < len(ours.chunks):
            losses, seconds = timed(ours.chunk, ours.chunks[turn])
            found.append(losses)
            own.append(seconds)
            print(f"chunk {turn + 1}/{turns - 1}: {seconds[0]:.1f} s", file=sys.stderr, flush=True)
    losses = torch.cat(found, 1)
    index = [1 + layer * config.num_attention_heads + head for layer, head in heads]
    total = config.num_hidden_layers * config.num_attention_heads
    schedule = ours.schedule
    whole = {"ours": torch.stack(own).sum(0)}
    whole |= {name: recording + total * torch.stack(times).mean(0) for name, times in runs.items()}
    flops = schedule.flops * options.examples / schedule.examples
    return {
        "heads": total,
        "heads_timed": {"ours": total, **{name: len(times) for name, times in runs.items()}},
        "seconds, processor_seconds": {name: both.tolist() for name, both in whole.items()},
        "times ours": {name: (both / whole["ours"]).tolist() for name, both in whole.items()},
        "by_run": {name: torch.stack(times).tolist() for name, times in {"ours": own, **runs}.items()},
        "largest_difference": float((losses[index] - torch.stack(expected)).abs().max()),
        "largest_difference_of_base": float((losses[0] - hooked.losses).abs().max()),
        "careful_is_theirs": float((torch.stack(careful) - torch.stack(expected)).abs().max()),
        "largest_effect": float((losses[1:] - losses[0]).abs().max()),
        "gflops_per_processor_s": flops / float(whole["ours"][1]) / 1e9,
        "mm_gflops_per_processor_s": mm_rate(256 if options.quick else 2048) / 1e9,
        "schedule": {"examples": schedule.examples, "variants": schedule.variants, "bytes": schedule.bytes},
        "stages_tflop": {stage.name: stage.flops / 1e12 for stage in schedule.stages},
    }


@torch.no_grad()
def in_float64(theirs: Any, folder: Path, options: argparse.Namespace) -> float:
    """The largest difference of losses in nats, of some heads on one short example, in float64 but for their norms and
    rotations, which are float32 in any dtype."""
    config = theirs.config
    batch = make_batch(config.vocab_size, 1, min(64, options.context), options.positions)
    ours = Ours(load_foreign(folder, dtype=torch.float64), batch, parse_memory("2GiB"))
    heads = spread(config.num_hidden_layers, config.num_attention_heads, 3)
    ours.ablations = [ours.ablations[layer * config.num_attention_heads + head] for layer, head in heads]
    ours.schedule = make_schedule(
        ours.model.config,
        examples=1,
        context=batch.inputs.shape[1],
        rows=batch.rows.shape[1],
        ablations=ours.ablations,
        mode=MODE,
        memory=parse_memory("2GiB"),
        itemsize=8,
    )
    hooked = HookedSweep(theirs.double(), batch.inputs, batch.targets, batch.rows)
    expected = torch.stack([hooked.losses, *(hooked.without(*head) for head in heads)])
    return float((ours.chunk(slice(None)) - expected).abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", choices=("all", "paper"), default="all")
    parser.add_argument("--examples", type=int, default=8)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--theirs", type=int, default=10, help="how many of their runs are timed")
    parser.add_argument("--memory", default="2GiB", help="for our activations")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a tiny model: does it work at all?")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.quick:
        options.context, options.examples, options.theirs = 24, 2, 4
    theirs = make_model(TINY if options.quick else SMOLLM2, options.context)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        result = compare(theirs, Path(folder), options)
        result["largest_difference_float64"] = in_float64(theirs, Path(folder), options)
    columns = ("", "seconds", "times ours", "processor seconds", "times ours")
    table = Table(*columns, title=f"{result['heads']} heads, {options.positions} positions")
    for name, both in result["seconds, processor_seconds"].items():
        ratios = result["times ours"][name]
        table.add_row(name, *(f"{x:.2f}" for pair in zip(both, ratios, strict=True) for x in pair))
    console = Console(soft_wrap=True)
    console.print(table)
    console.print(
        f"ours at {result['gflops_per_processor_s']:.0f} GFLOP a processor second, "
        f"torch.mm at {result['mm_gflops_per_processor_s']:.0f}; largest difference "
        f"{result['largest_difference']:.1e} nats ({result['largest_difference_float64']:.1e} in float64), "
        f"effects up to {result['largest_effect']:.2f}"
    )
    if options.json is not None:
        asked = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
        asked.pop("json")
        head = environment({"device": "cpu", "threads": options.threads})
        options.json.write_text(to_json({"environment": head, "options": asked, **result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
