"""Running the benches: each in a process of its own, whatever that one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import run
from harness import BENCH, Options

from icl_fast.errors import InputError

QUICK = Options(threads=1, quick=True, compile=False, memory=False)

GOOD = """
import json, sys
where = sys.argv[sys.argv.index("--json") + 1]
case = {"name": "c", "metrics": {}, "errors": [], "candidates": []}
bench = {"name": "good", "device": "cpu", "error": "", "ceilings": {}, "cases": [case]}
open(where, "w").write(json.dumps({"benches": [bench]}))
print("working", file=sys.stderr, flush=True)
"""


def test_select() -> None:
    assert run.select([]) == list(run.NAMES)
    assert run.select(["smeared_attention", "frozen_attention"]) == ["frozen_attention", "smeared_attention"]
    with pytest.raises(InputError, match="names: 'fast' is no bench; there are linear_cross_entropy, frozen_"):
        run.select(["smeared_attention", "fast"])


def test_every_bench_file_is_in_the_list() -> None:
    assert sorted(f"bench_{name}" for name in run.NAMES) == sorted(path.stem for path in BENCH.glob("bench_*.py"))


def benches(folder: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> None:
    for name, script in scripts.items():
        (folder / f"bench_{name}.py").write_text(script)
    monkeypatch.setattr(run, "BENCH", folder)
    monkeypatch.setattr(run, "NAMES", tuple(scripts))


def test_one_that_crashes_or_hangs_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    crash = "import os, sys; print('about to', file=sys.stderr, flush=True); os.abort()"
    partial = GOOD + "import os; os._exit(9)"
    raises = "raise RuntimeError('no such op')"
    hangs = GOOD + "import time; time.sleep(60)"
    benches(tmp_path, monkeypatch, crash=crash, raises=raises, partial=partial, hangs=hangs, good=GOOD)
    shown: list[str] = []
    where = tmp_path / "results.json"
    report = run.run([], QUICK, str(where), timeout=4, show=lambda bench, targets: shown.append(bench["name"]))
    errors = [bench["error"] for bench in report["benches"]]
    assert "about to" in errors[0]
    assert "exit code -6" in errors[0]
    assert "RuntimeError: no such op" in errors[1]
    assert errors[2] == "working\nexit code 9\n"
    assert report["benches"][2]["cases"], "what it had saved is kept"
    assert errors[3] == "ended after 4 s\n"
    assert errors[4] == ""
    assert shown == ["crash", "raises", "good", "good", "good"]
    assert json.loads(where.read_text()) == json.loads(json.dumps(report))
    assert "working" in capsys.readouterr().err


def command(*arguments: str, file: str = "run.py", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BENCH / file), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        timeout=120,
    )


def test_a_bad_name_or_device() -> None:
    done = command("smeared")
    assert done.returncode == 2
    assert done.stderr.startswith("error: names: 'smeared' is no bench; there are ")
    assert done.stderr.count("\n") == 1
    done = command("--device", "cuda", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert "error: device: cuda: torch finds no CUDA device here" in done.stderr


def test_a_bench_file_alone_measures_memory_too(tmp_path: Path) -> None:
    """`python bench/bench_x.py` with a peak taken in a child, at the tiny shapes (memory is off in a quick run)."""
    script = tmp_path / "bench_tiny.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(BENCH)!r})\n"
        "import torch, harness\n"
        "from harness import Candidate, Case, Inputs\n"
        "def cases(options):\n"
        "    n = 10 if options.quick else 4_000_000\n"
        "    def wide(x): return (x.x.double() * 2).float()\n"
        "    return [Case(f'N={n}', torch.float32, lambda m: Inputs(x=m.normal(n)),\n"
        "        [Candidate('ours', lambda x: x.x * 2), Candidate('reference', wide)], n, 8.0 * n)]\n"
        "sys.exit(harness.main('tiny', cases, __file__))\n"
    )
    where = tmp_path / "tiny.json"
    options = f"--threads 1 --seconds 0 --no-compile --json {where}"
    done = command(*options.split(), file=str(script))
    assert done.returncode == 0, done.stderr
    assert "float32 N=4000000 forward (5 rounds)" in done.stdout
    (case,) = json.loads(where.read_text())["benches"][0]["cases"]
    rows: dict[str, dict[str, Any]] = {row["name"]: row for row in case["candidates"]}
    if "peak_mb" not in rows["ours"]:
        pytest.skip("this system does not tell the high-water mark of memory")
    assert rows["ours"]["peak_mb"] == pytest.approx(16, abs=4)
    assert rows["ours"]["workspace_mb"] == pytest.approx(0, abs=4)
    assert rows["reference"]["peak_mb"] == pytest.approx(64, abs=4)
    assert case["metrics"]["peak vs reference"] == pytest.approx(0.25, abs=0.1)


def test_what_a_bench_has_measured_outlives_it(tmp_path: Path) -> None:
    """It is ended in its second case, at once: what the first one gave is in the file, with rates."""
    script = tmp_path / "bench_tiny.py"
    script.write_text(
        "import sys, time\n"
        f"sys.path.insert(0, {str(BENCH)!r})\n"
        "import torch, harness\n"
        "from harness import Candidate, Case, Inputs\n"
        "def case(n, call, headline):\n"
        "    both = [Candidate('ours', call), Candidate('reference', lambda x: x.x * 2)]\n"
        "    make = lambda m: Inputs(x=m.normal(n))\n"
        "    return Case(f'N={n}', torch.float32, make, both, n, 8.0 * n, headline=headline)\n"
        "def cases(options):\n"
        "    return [case(3, lambda x: time.sleep(1000), False), case(2, lambda x: x.x * 2, True)]\n"
        "sys.exit(harness.main('tiny', cases, __file__))\n"
    )
    where = tmp_path / "tiny.json"
    process = subprocess.Popen([sys.executable, str(script), "--quick", "--json", str(where)])
    try:
        while process.poll() is None and not where.exists():
            time.sleep(0.1)
    finally:
        process.kill()
        process.wait()
    bench = json.loads(where.read_text())["benches"][0]
    (first,) = bench["cases"]
    assert (first["name"], first["headline"], first["errors"]) == ("float32 N=2 forward", True, [])
    assert first["metrics"]["of matmul"] > 0
    assert bench["ceilings"]["copy"] > 0


@pytest.mark.slow
def test_all_with_torch_and_numpy_alone(tmp_path: Path) -> None:
    """On a CUDA machine there is no rich and no click."""
    for package in ("rich", "click", "pydantic", "xarray"):
        (tmp_path / f"{package}.py").write_text(f"raise ImportError('no {package} here')")
    where = tmp_path / "results.json"
    done = command("--quick", "--json", str(where), PYTHONPATH=f"{tmp_path}:{BENCH.parent}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "call_overhead on cpu\n--------------------" in done.stdout
    assert [bench["name"] for bench in json.loads(where.read_text())["benches"]] == list(run.NAMES)
