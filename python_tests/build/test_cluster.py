"""The scripts of docs/cluster.md: bash understands them, and those for Slurm run, on a job of one machine.

They run where they see no other process and no network but their own, as `ray stop` ends whatever Ray it sees.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from icl_fast.runs import Run

PAGE = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
SWEEP, TRAINING = (block for block in BLOCKS if block.startswith("#!/bin/bash\n#SBATCH"))
APART = ["unshare", "--mount", "--pid", "--net", "--mount-proc", "--fork", "--kill-child", "bash", "-c"]
SETTING = "ip link set lo up && mkdir -p /tmp/ray && mount -t tmpfs tmpfs /tmp/ray && exec bash job.sh"
# what `icl-fast` is here: it takes the address from its last argument
WORK = """
import sys, ray
ray.init(address=sys.argv[-1], log_to_driver=False)
square = ray.remote(lambda x: x * x)
print("squares", ray.get([square.remote(x) for x in range(4)]), "on", len(ray.nodes()), "node")
"""


def can_be_apart() -> bool:
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    return (
        subprocess.run([*APART, "ip link set lo up && mount -t tmpfs tmpfs /mnt"], capture_output=True).returncode == 0
    )


apart = pytest.mark.skipif(not can_be_apart(), reason="no right to namespaces of its own")


def run_job(folder: Path, script: str, programs: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A script as Slurm would run it on the one machine of a job, with these programs besides."""
    (folder / "job.sh").write_text(script)
    (folder / "bin").mkdir(exist_ok=True)
    programs = {"srun": 'exec "$@"', "scontrol": "echo 127.0.0.1", **programs}
    for name, text in programs.items():
        program = folder / "bin" / name
        program.write_text(text if text.startswith("#!") else f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
    root = Path(__file__).parents[2]
    job = {"SLURM_NNODES": "1", "SLURM_CPUS_ON_NODE": "1", "SLURM_GPUS_ON_NODE": "2", "SLURM_JOB_ID": "1"}
    path = os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | job | {"PATH": path, "HOME": str(folder), "PYTHONPATH": str(root)}
    return subprocess.run(
        [*APART, SETTING], cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.parametrize("block", BLOCKS)
def test_bash_understands(block: str) -> None:
    done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
@apart
def test_slurm_job_of_a_sweep(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    done = run_job(tmp_path, SWEEP, {"icl-fast": f"#!{sys.executable}\n{WORK}"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "squares [0, 1, 4, 9] on 1 node" in done.stdout
    assert "Stopped all" in done.stdout + done.stderr


@pytest.mark.slow
@apart
def test_a_cluster_asks_for_its_token(tmp_path: Path) -> None:
    """Two nodes on one machine; whoever has another token is refused."""
    pytest.importorskip("ray")
    (cluster,) = (block for block in BLOCKS if "get-auth-token" in block)
    other = "RAY_AUTH_TOKEN=ffffffffffffffffffffffffffffffff icl-fast HEAD:6379 && echo let in\nray stop\n"
    done = run_job(
        tmp_path, (cluster + other).replace("HEAD", "127.0.0.1"), {"icl-fast": f"#!{sys.executable}\n{WORK}"}
    )
    assert "squares [0, 1, 4, 9] on 2 node" in done.stdout, done.stdout + done.stderr
    assert "let in" not in done.stdout
    assert "AuthenticationError" in done.stderr


@pytest.mark.slow
@apart
def test_slurm_job_of_a_training(tiny_values: dict[str, Any], tmp_path: Path) -> None:
    """Two ranks; submitted again it goes on, and is at its end already."""
    import yaml

    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tiny_values))
    script, changes = re.subn(r"config=\S+ run=\S+", "config=config.yaml run=run", TRAINING)
    assert changes == 1
    for _ in range(2):
        done = run_job(tmp_path, script, {})
        assert done.returncode == 0, done.stdout + done.stderr
    run = Run(tmp_path / "run")
    assert run.snapshot_steps()[-1] == tiny_values["training"]["steps"]
