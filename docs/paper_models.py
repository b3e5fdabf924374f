"""Writes the two tables of paper_models.md anew, from what `icl-fast plan` says of every config in configs/paper."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from icl_fast.cli.plan import collect
from icl_fast.memory import in_units
from icl_fast.runs import TextRunConfig, load_config

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "paper_models.md"
GPUS = 8
# Olsson et al. 2022, Model Details and the Model Analysis Table: parameters, width, heads, tokens, snapshots
SMALL = ("", "768", "12", "~10 billion", "200")
FULL = {
    4: ("13M", "512", "8 of 64", "", "15"),
    6: ("42M", "768", "12 of 64", "", "15"),
    10: ("200M", "1280", "20 of 64", "", "15"),
    16: ("810M", "2048", "32 of 64", "", "15"),
    24: ("2.7B", "3072", "48 of 64", "", "15"),
    40: ("13B", "5120", "", "", "14"),
}


def configs() -> dict[str, TextRunConfig]:
    """Every config of the paper's models by its name, small ones first, then by layers."""
    loaded = {path.stem: load_config(path) for path in ROOT.glob("configs/paper/*.yaml")}
    texts = {name: config for name, config in loaded.items() if isinstance(config, TextRunConfig)}
    return dict(sorted(texts.items(), key=lambda item: (is_full(item[0]), item[1].model.layers, item[0])))


def is_full(name: str) -> bool:
    """Whether it is one of the full-scale models."""
    return name.endswith("_full")


def of_paper(name: str, config: TextRunConfig) -> tuple[str, ...]:
    """What the paper says of this model: parameters, width, heads, tokens, snapshots; "" where it says nothing."""
    return FULL[config.model.layers] if is_full(name) else SMALL


def tables() -> list[str]:
    """The two tables, in Markdown."""
    shapes: list[tuple[str, ...]] = []
    costs: list[tuple[str, ...]] = []
    for name, config in configs().items():
        facts, paper = collect(config, GPUS), of_paper(name, config)
        model = config.model
        pairs = (
            (rounded(facts["matrices"]), paper[0]),
            (str(model.width), paper[1]),
            (f"{model.heads} of {model.d_head}", paper[2]),
            (f"{facts['tokens'] / 1e9:.1f} billion", paper[3]),
            (str(facts["snapshots"]), paper[4]),
        )
        shapes.append((f"`{name}`", *(cell for pair in pairs for cell in pair)))
        costs.append((f"`{name}`", *cost(facts)))
    ours = ("parameters", "width", "heads", "tokens", "snapshots")
    titles = [title for name in ours for title in (name, "paper")]
    heads = "all parameters, FLOP, of it attention, hours of one H100, snapshots, state, memory of a rank, ablations"
    return [
        table(["config", *titles], shapes),
        table(["config", *heads.split(", "), "FLOP of the sweep"], costs),
    ]


def cost(facts: dict[str, Any]) -> tuple[str, ...]:
    """The cells of the second table."""
    configured = next(needed for kind, needed in facts["memory_of_a_rank"].items() if kind.endswith("as configured"))
    return (
        f"{facts['parameters']:,}",
        f"{facts['flops']:.2e}",
        f"{facts['attention_flops'] / facts['flops']:.0%}",
        f"{facts['gpu_hours']:,.3g}" if facts["gpu_hours"] < 1000 else f"{facts['gpu_hours']:,.0f}",
        in_units(facts["snapshots"] * facts["snapshot_bytes"]),
        in_units(facts["state_bytes"]),
        in_units(configured["all"]),
        f"{facts['ablations'] * facts['snapshots']:,}",
        f"{facts['sweep_flops']:.2e}",
    )


def rounded(count: float) -> str:
    """A count in two digits, as the paper's table has them: 13M, 2.7B."""
    unit, power = next((unit, power) for unit, power in (("B", 1e9), ("M", 1e6)) if count >= power)
    two = float(f"{count / power:.2g}")
    return f"{two:g}{unit}"


def table(titles: list[str], rows: list[tuple[str, ...]]) -> str:
    """In Markdown."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def page(text: str) -> str:
    """The page with its tables as they are now."""
    found = iter(tables())
    return re.sub(r"(?:^\|.*\n)+", lambda _: next(found), text, flags=re.MULTILINE)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
