"""What many workers would do: a sweep of the paper's size by one driver with one store, simulated event by event.

    python bench/simulate_workers.py [--snapshots 2400] [--network 1.25e9] [--per-node 64] [--json FILE]

Measured here first: the operations a second of a task, what the driver pays for a task (submitting it, fetching its
result, writing it as a part) and for a snapshot (packing its weights, joining its parts), and what a worker pays to
unpack them.
The model is the paper's of two layers (Olsson et al. 2022, Model Details): 768 wide, a vocabulary of 65,536, 10,000
examples of 512 tokens, on which every head is ablated at the paper's positions; 12 models of 200 snapshots.

The driver does one thing at a time, as it does in `icl_fast.scale.on_ray`; weights leave its network card once for each
node. A sweep scales as long as its workers are busy half of the time.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from heapq import heapify, heappop, heappush
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import environment

from icl_fast.data import EvaluationSet
from icl_fast.files import to_json
from icl_fast.measure.ablation import AblationOptions
from icl_fast.measure.ablation.plan import SweepPlan, make_plan
from icl_fast.measure.ablation.sums import PartSums
from icl_fast.measure.store import Workspace
from icl_fast.models import Transformer, TransformerConfig
from icl_fast.models.sizes import parameter_count
from icl_fast.scale import Needs, ray_runner

PAPER = TransformerConfig(layers=2, width=768, heads=12, vocab=65536, context=512, position="shortformer")
SMALL = TransformerConfig(layers=2, width=256, heads=8, vocab=4096, context=256, position="shortformer")
WORKERS = (1, 10, 100, 300, 1000, 3000, 10_000)


@dataclass(frozen=True)
class Costs:
    """Seconds of everything.

    Attributes:
        task: one part of a snapshot.
        submit, result: of the driver, for a task.
        pack, join: of the driver, for a snapshot.
        unpack: of a worker, for a snapshot.
        send: of the driver's network card, for a snapshot and node.
        finish: of the driver, for a snapshot, at the end.
    """

    task: float
    submit: float
    result: float
    pack: float
    join: float
    unpack: float
    send: float
    finish: float


def simulate(costs: Costs, workers: int, per_node: int, snapshots: int, parts: int) -> float:
    """Seconds of a sweep."""
    idle = [(0.0, worker) for worker in range(workers)]  # when each has nothing left to do
    heapify(idle)
    ended: list[tuple[float, int]] = []
    at_node: set[tuple[int, int]] = set()
    held = [-1] * workers
    left = [parts] * snapshots
    driver = network = 0.0
    begun = pending = 0
    while begun < snapshots * parts or pending:
        while begun < snapshots * parts and pending < 2 * workers + 2:
            snapshot = begun // parts
            driver += costs.submit + (costs.pack if begun % parts == 0 else 0.0)
            free, worker = heappop(idle)
            start = max(free, driver)
            if (node := (worker // per_node, snapshot)) not in at_node:
                at_node.add(node)
                start = network = max(network, start) + costs.send
            if held[worker] != snapshot:
                held[worker] = snapshot
                start += costs.unpack
            heappush(idle, (start + costs.task, worker))
            heappush(ended, (start + costs.task, snapshot))
            begun, pending = begun + 1, pending + 1
        end, snapshot = heappop(ended)
        driver = max(driver, end) + costs.result
        pending -= 1
        left[snapshot] -= 1
        driver += 0.0 if left[snapshot] else costs.join
    return driver + snapshots * costs.finish


def seconds(call: Callable[[], Any], times: int) -> float:
    """The median."""
    found = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return float(np.median(found))


def planned(config: TransformerConfig, examples: int, context: int) -> tuple[EvaluationSet, SweepPlan]:
    """Random tokens, and the plan of a sweep of every head over them."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(config.vocab, (examples, context + 1), generator=generator)
    positions = torch.randint(1, context + 1, (examples,), generator=generator)
    evaluation = EvaluationSet(tokens[:, :-1], tokens[:, 1:], positions, "random")
    return evaluation, make_plan(config, evaluation, AblationOptions())


def measured(network: float) -> tuple[Costs, int, dict[str, float]]:
    """The costs, the parts of a snapshot, and what they were found from."""
    small, small_plan = planned(SMALL, 64, SMALL.context)
    sums = PartSums(Transformer(SMALL), small, small_plan)
    part = sums.of(0)
    schedule = small_plan.schedule(SMALL, SMALL.context)
    flops = schedule.flops * (small_plan.parts[0].stop / schedule.examples)
    rate = flops / seconds(lambda: sums.of(0), 5)
    _, plan = planned(PAPER, 10_000, 512)
    schedule = plan.schedule(PAPER, 512)
    task = schedule.flops * (plan.parts[0].stop / schedule.examples) / rate
    weights = 4 * parameter_count(Transformer, PAPER)
    piece = Transformer(SMALL)
    share = weights / (4 * parameter_count(Transformer, SMALL))
    with tempfile.TemporaryDirectory() as folder, ray_runner(workers=1) as runner:
        import ray

        packed = ray.cloudpickle.dumps(piece)
        pack = share * seconds(lambda: ray.put(np.frombuffer(ray.cloudpickle.dumps(piece), np.uint8)), 5)
        unpack = share * seconds(lambda: ray.cloudpickle.loads(packed), 5)
        list(runner.run(_give, [(part, range(8))], Needs()))  # the worker starts

        def tasks() -> None:
            list(runner.run(_give, [(part, range(400))], Needs()))

        remote = seconds(tasks, 3) / 400  # of driver and worker, which wait for each other: an upper bound
        work = Workspace(Path(folder) / "out.zarr", {"snapshots": {"0": ""}}, "sweep")
        with work.begin():
            write = seconds(lambda: work.write(0, 0, vars(part)), 20)
            for number in range(len(plan.parts)):
                work.write(1, number, vars(part))
            join = seconds(lambda: work.close(1, len(plan.parts), lambda parts: parts[0]), 1)
            finish = seconds(lambda: work.read(1), 5)
    costs = Costs(task, remote / 2, remote / 2 + write, pack, join, unpack, weights / network, finish)
    return costs, len(plan.parts), {"flops a second": rate, "bytes of weights": weights}


def _give(part: Any, key: int) -> Any:
    return part


def main() -> None:
    """Print seconds and efficiency by workers, for one driver and for more, and write them with --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--snapshots", type=int, default=2400)
    parser.add_argument("--network", type=float, default=1.25e9, help="bytes a second that leave the driver's node")
    parser.add_argument("--per-node", type=int, default=64, help="workers of a node")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    costs, parts, found = measured(options.network)
    print(", ".join(f"{name} {value:.3g} s" for name, value in asdict(costs).items()))
    alone = options.snapshots * parts * costs.task
    layouts = {"one driver": 1, "4 drivers, a store each": 4, "16 drivers, a store each": 16}
    rows: dict[str, dict[int, float]] = {name: {} for name in layouts}
    print(f"{'workers':>8}" + "".join(f"{name:>34}" for name in layouts))
    for workers in WORKERS:
        line = f"{workers:>8}"
        for name, drivers in layouts.items():
            if workers < drivers:
                line += f"{'-':>34}"
                continue
            own, each = -(-options.snapshots // drivers), workers // drivers
            rows[name][workers] = took = simulate(costs, each, options.per_node, own, parts)
            busy, rate = alone / took / workers, options.snapshots * parts / took
            line += f"{took / 3600:>12.2f} h {busy:>7.0%} {rate:>7.1f}/s"
        print(line)
    if options.json:
        asked = {name: str(value) for name, value in vars(options).items() if name != "json"}
        body = {"costs": asdict(costs), "parts": parts, "found": found, "seconds": rows}
        options.json.write_text(to_json({"environment": environment({"device": "cpu"}), **asked, **body}, indent=1))


if __name__ == "__main__":
    main()
