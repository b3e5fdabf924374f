"""A sweep in this process, on one worker of Ray and on two, of one thread each, taking turns: what Ray costs and gains.

Beside them two processes that know nothing of each other nor of Ray, with half of the snapshots each: what this machine
gives to two of anything.

    python bench/ray_sweep.py [--rounds 5] [--examples 512] [--snapshots 8] [--json FILE]

Each sweep is of the demo's two-layer model (every head, all positions) into a new store; all stores must have the same
bytes. With the defaults one takes about a minute of one thread. Targets: two workers are 1.85 times as fast as one, and
one takes at most 5% longer than this process.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.pool import Pool
from pathlib import Path

import torch
from report import environment
from source_tree import ROOT

from icl_fast.files import to_json
from icl_fast.measure import sweep
from icl_fast.runs import load_config
from icl_fast.scale import HERE, Runner, ray_runner
from icl_fast.training import train

HERE_NAME, ONE, TWO, APART = "this process", "1 worker", "2 workers", "2 processes without Ray"


def make_run(folder: Path, snapshots: int) -> Path:
    """A run with that many snapshots, a few steps apart: how long a sweep takes does not depend on what was learned."""
    keys = [f"training.steps={snapshots - 1}", "snapshots.schedule=linear", "snapshots.every=1"]
    return train(load_config(ROOT / "configs" / "demo" / "two_layer.yaml", keys), folder).path


@contextmanager
def one_worker_less() -> Iterator[None]:
    """Reserve one of Ray's cores."""
    from ray.util import placement_group, remove_placement_group

    reserved = placement_group([{"CPU": 1}])
    reserved.wait()
    yield
    remove_placement_group(reserved)


def digest(store: Path) -> str:
    """Of all files of a store."""
    files = sorted(path for path in store.rglob("*") if path.is_file())
    text = "".join(f"{path.relative_to(store)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n" for path in files)
    return hashlib.sha256(text.encode()).hexdigest()


def seconds_of(run: Path, examples: int, runner: Runner, folder: Path) -> tuple[float, str]:
    """How long a sweep takes, and the digest of its store."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        started = time.perf_counter()
        store = sweep(
            run, out=Path(out) / "store.zarr", examples=examples, positions="all", device="cpu", runner=runner
        )
        return time.perf_counter() - started, digest(store)


def half(run: Path, examples: int, folder: Path, part: list[int]) -> None:
    """A sweep of some snapshots, in a process of its own."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=folder) as out:
        sweep(
            run,
            out=Path(out) / "store.zarr",
            examples=examples,
            positions="all",
            device="cpu",
            snapshots=",".join(map(str, part)),
        )


def seconds_apart(pool: Pool, run: Path, examples: int, snapshots: int, folder: Path) -> float:
    """How long two processes take for half of the snapshots each."""
    started = time.perf_counter()
    middle = snapshots // 2
    pool.starmap(half, [(run, examples, folder, [*part]) for part in (range(middle), range(middle, snapshots))], 1)
    return time.perf_counter() - started


def main() -> None:
    """Print medians and ratios, and write them with --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--examples", type=int, default=512)
    parser.add_argument("--snapshots", type=int, default=8)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    # Ray ends idle workers beyond the free cores: that of a reserved one would start anew while two are timed
    os.environ.update(RAY_idle_worker_killing_time_threshold_ms=str(24 * 3600 * 1000))
    spawned = get_context("spawn")
    with tempfile.TemporaryDirectory() as temporary, ray_runner(workers=2) as on_ray, spawned.Pool(2) as pool:
        folder = Path(temporary)
        run = make_run(folder / "run", options.snapshots)
        seconds_of(run, 64, on_ray, folder)  # workers start and load the program
        seconds_apart(pool, run, 64, options.snapshots, folder)

        def here() -> tuple[float, str]:
            return seconds_of(run, options.examples, HERE, folder)

        def one() -> tuple[float, str]:
            with one_worker_less():
                return seconds_of(run, options.examples, on_ray, folder)

        def two() -> tuple[float, str]:
            return seconds_of(run, options.examples, on_ray, folder)

        calls: dict[str, Callable[[], tuple[float, str]]] = {HERE_NAME: here, ONE: one, TWO: two}
        samples: dict[str, list[float]] = {name: [] for name in [*calls, APART]}
        digests, order = set(), list(calls)
        for _ in range(options.rounds):
            for name in order:
                seconds, found = calls[name]()
                samples[name].append(seconds)
                digests.add(found)
            samples[APART].append(seconds_apart(pool, run, options.examples, options.snapshots, folder))
            order = order[1:] + order[:1]
    assert len(digests) == 1, "the stores differ"
    ratios = {
        "speed of 2 workers over 1": [a / b for a, b in zip(samples[ONE], samples[TWO], strict=True)],
        "speed of 2 processes without Ray over this one": [
            a / b for a, b in zip(samples[HERE_NAME], samples[APART], strict=True)
        ],
        "time of 1 worker over this process": [a / b for a, b in zip(samples[ONE], samples[HERE_NAME], strict=True)],
    }
    for name, seconds in samples.items():
        print(f"{name:<46} {statistics.median(seconds):8.1f} s")
    for name, values in ratios.items():
        print(f"{name:<46} {statistics.median(values):8.3f}   {' '.join(f'{value:.3f}' for value in values)}")
    if options.json:
        body = {
            "environment": environment({"device": "cpu"}),
            "seconds": samples,
            "ratios": ratios,
            "examples": options.examples,
        }
        options.json.write_text(to_json(body))


if __name__ == "__main__":
    main()
