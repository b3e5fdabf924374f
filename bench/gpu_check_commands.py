"""The stage of gpu-check that runs the command line as its users have it, on the GPU and the CPU, and compares them."""

from __future__ import annotations

import json
import math
import random
import shutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from stages import PROCESSES, REHEARSAL, Job, Verdict, append_log, child, in_parallel, last_line

GPU = "cpu" if REHEARSAL else "cuda"
NEED = (
    *("click", "matplotlib", "numcodecs", "PIL", "pydantic", "rich", "safetensors", "scipy", "sklearn", "tokenizers"),
    *("xarray", "yaml", "zarr"),
)
TEXT = (
    *("demo/two_layer", "data.vocab=280", "data.context=64", "data.evaluation_examples=64"),
    *("training.lr=1e-3", "training.warmup=5", "training.steps=20", "training.log_every=1"),
    *("snapshots.schedule=linear", "snapshots.every=20"),
)
EXEMPLARS = (
    *("exemplars/chapter4", "exemplars.kind=gaussian", "exemplars.encoder=none", "exemplars.classes=200"),
    *("exemplars.width=64", "evaluation.sequences=100", "evaluation.every=20", "members=2"),
    *("training.lr=1e-3", "training.steps=20", "training.log_every=1", "snapshots.every=20"),
)
# of a training: its device and config; the one that it is compared with; how far a loss of some nats may be from that
# one's: float32 has 24 bits, of which 20 steps and sums over hundreds lose some, bfloat16 has 8 in every product
TRAININGS = {
    "text": (GPU, TEXT, "", 0.0),
    "text on the CPU": ("cpu", TEXT, "text", 2e-4),
    "text in bfloat16": (GPU, (*TEXT, "training.precision=bfloat16"), "text", 2e-2),
    "text compiled": (GPU, (*TEXT, "training.compile=true"), "text", 2e-4),
    "exemplars": (GPU, EXEMPLARS, "", 0.0),
    "exemplars on the CPU": ("cpu", EXEMPLARS, "exemplars", 2e-4),
}
# of a run's results: the commands; they are computed on both devices from the same snapshot
MEASURED = {"text": ("ablate", "evaluate"), "exemplars": ("ablate",)}
STORE_TOLERANCE = 2e-4  # relative to the value, or to 1 where that is larger


def commands(job: Job) -> Verdict:
    """Train, ablate and evaluate on both devices; what they find may differ by rounding alone."""
    if lacking := [name for name in NEED if find_spec(name) is None]:
        return Verdict("skipped", f"for want of {', '.join(lacking)}")
    write_corpus(job.scratch / "corpus")
    ended = in_parallel(len(TRAININGS), train_and_measure, [(job, name) for name in TRAININGS])
    runs = dict(zip(TRAININGS, ended, strict=True))
    found, differences = {}, {}
    for name, (why, why_measured, apart) in runs.items():
        *_, other, tolerance = TRAININGS[name]
        found |= {name: why} if why else {}
        if other and not (why or runs[other][0]):
            differences[name] = differ(*(losses(job.scratch / run) for run in (name, other)))
            if not differences[name] <= tolerance:
                found[name] = f"its losses are {differences[name]:.2g} from those of {other}, allowed {tolerance:g}"
        if name in MEASURED and not why:
            differences[f"results of {name}"] = apart
            found |= {f"results of {name}": why_measured} if why_measured else {}
    text = ", ".join(f"{name} {apart:.2g}" for name, apart in differences.items())
    summary = "; ".join([f"largest differences: {text}", *(f"{name}: {why}" for name, why in found.items())])
    return Verdict("failed" if found else "passed", summary[:1000], {"failures": found, "differences": differences})


def train_and_measure(job: Job, name: str) -> tuple[str, str, float]:
    """Why the training failed; why what is measured of its run did, and how far that is apart on the two devices."""
    why = train(job, name)
    return why, *(measure(job, name) if name in MEASURED and not why else ("", math.nan))


def train(job: Job, name: str) -> str:
    """Train into a folder of that name. Returns why it failed; empty if it did not."""
    device, (config, *sets), *_ = TRAININGS[name]
    sets = [*sets, f"training.device={device}", *([] if "exemplars" in name else ["data.corpus=corpus"])]
    return icl_fast(job, name, "train", config, *(word for item in sets for word in ("--set", item)), "--out", name)


def measure(job: Job, run: str) -> tuple[str, float]:
    """The results of a run, measured on both devices: what is wrong, and how far they are apart."""
    copy = f"{run}, on the CPU"
    shutil.copytree(job.scratch / run, job.scratch / copy)
    whys = in_parallel(2, measure_on, [(job, run, run, GPU), (job, run, copy, "cpu")])
    if any(whys):
        return next(filter(None, whys)), math.nan
    result, log = job.scratch / f"{run}.json", job.scratch / f"{run}, compared.log"
    command = child("compare", str(result), *(str(job.scratch / folder / "results") for folder in (run, copy)))
    if PROCESSES.run(command, log, job.left(), job.environment) != 0:
        return last_line(log), math.nan
    name, apart = max(json.loads(result.read_text()).items(), key=lambda item: item[1])
    return "" if apart <= STORE_TOLERANCE else f"{name} is {apart:.2g} apart, allowed {STORE_TOLERANCE:g}", apart


def measure_on(job: Job, run: str, folder: str, device: str) -> str:
    """Every measurement of a run. Returns why one failed; empty if none did."""
    options = ("--device", device, "--snapshots", "last", *(("--sequences", "100") if run == "exemplars" else ()))
    whys = in_parallel(2, icl_fast, [(job, f"{word} {folder}", word, folder, *options) for word in MEASURED[run]])
    return next(filter(None, whys), "")


def icl_fast(job: Job, name: str, *words: str) -> str:
    """Run a command. Returns why it failed; empty if it did not."""
    log = job.scratch / f"{name}.log"
    environment = {**job.environment, "OMP_NUM_THREADS": "2", "ICL_FAST_CACHE": str(job.scratch / "cache")}
    environment["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # processes to compile in take longer to start than it does
    command = [sys.executable, "-m", "icl_fast", *words, "--quiet"]
    code = PROCESSES.run(command, log, job.left(), environment, cwd=job.scratch)
    append_log(job.log, name, log)
    if code == 0:
        return ""
    return f"{words[0]}: " + ("it took too long" if code is None else f"exit code {code}: {last_line(log)}")


def losses(run: Path) -> list[float]:
    """The training losses that a run logged, of all members."""
    lines = (json.loads(line) for line in (run / "log.jsonl").read_text().splitlines())
    return [loss for line in lines if "loss" in line for loss in flat(line["loss"])]


def flat(value: float | list[float]) -> Iterator[float]:
    yield from value if isinstance(value, list) else [value]


def differ(some: list[float], others: list[float]) -> float:
    """The largest difference of two lists of numbers; infinite where one is longer or empty or not finite."""
    if len(some) != len(others) or not some or not all(map(math.isfinite, (*some, *others))):
        return math.inf
    return max(abs(a - b) for a, b in zip(some, others, strict=True))


def write_corpus(folder: Path) -> None:
    """Some 200 kB of made-up text in which names repeat within a file."""
    draw = random.Random(0)
    words = ["".join(draw.choices("aeioustrnlmpk", k=draw.randint(2, 7))) for _ in range(300)]
    folder.mkdir()
    for index in range(40):
        names = draw.sample(words, 12)
        lines = (" ".join(draw.choices(names if draw.random() < 0.5 else words, k=9)) for _ in range(90))
        (folder / f"{index:02d}.txt").write_text("\n".join(lines))
