"""Which snapshots of a run can be used, and in a few words why the others cannot."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from icl_fast import InputError
from icl_fast.runs import Run, RunSeries, open_series

HASH = "damaged: its SHA-256 is not the one in manifest.json"


@pytest.fixture
def folder(tiny_run: Path, tmp_path: Path) -> Run:
    return Run(shutil.copytree(tiny_run, tmp_path / "run"))


def readable(folder: Run, steps: list[int]) -> tuple[list[int], dict[int, str]]:
    """Which of these steps can be used, and why each other cannot."""
    series, left_out = RunSeries(folder, steps).readable()
    return series.steps, left_out


def forget_hashes(folder: Run) -> None:
    (folder.path / "manifest.json").unlink()


def test_whole_ones_are_loaded_once(folder: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["icl_fast.runs.run_series"]
    load, loaded = module.load_snapshot, []
    monkeypatch.setattr(module, "load_snapshot", lambda path: (loaded.append(path), load(path))[1])
    assert readable(folder, [12, 0, 6]) == ([0, 6, 12], {})
    assert sorted(loaded) == [folder.snapshot_path(step) for step in (0, 6, 12)]
    assert readable(folder, [6]) == ([6], {})


def test_missing_ones_are_those_in_the_manifest(folder: Run) -> None:
    assert RunSeries(folder).missing() == {}
    folder.snapshot_path(6).unlink()
    assert open_series(folder.path).steps == [0, 12]
    assert RunSeries(folder).missing() == {6: "missing"}
    assert readable(folder, [0, 12]) == ([0, 12], {6: "missing"})
    forget_hashes(folder)
    assert readable(folder, [0, 12]) == ([0, 12], {})
    assert readable(folder, [0, 6, 12]) == ([0, 12], {6: "missing"})


def test_cut_off_anywhere(folder: Run) -> None:
    path = folder.snapshot_path(6)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for length in (0, 1, 8, 9, header // 2, header - 1, header, header + 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert readable(folder, [0, 6]) == ([0], {6: "truncated"}), length
    path.write_bytes(whole)
    assert readable(folder, [0, 6]) == ([0, 6], {})


def test_a_changed_byte(folder: Run) -> None:
    path = folder.snapshot_path(12)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert readable(folder, [0, 6, 12]) == ([0, 6], {12: HASH})
    forget_hashes(folder)
    assert readable(folder, [0, 6, 12]) == ([0, 6, 12], {})  # one bit of a weight: only the hash shows it


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_not_finite(folder: Run, value: float, write_weight: Callable[..., None]) -> None:
    write_weight(folder, 6, "embed.weight", value)
    usable, why = readable(folder, [0, 6, 12])
    assert usable == [0, 12]
    assert why == {6: "weights not finite: embed.weight holds NaN or infinity"}


@pytest.mark.parametrize(
    "content", [b"this is no safetensors file", b"\x02" + bytes(7) + b"{]", b"\x02" + bytes(7) + b"[]"]
)
def test_another_format(folder: Run, content: bytes) -> None:
    folder.snapshot_path(6).write_bytes(content)
    assert readable(folder, [0, 6]) == ([0], {6: HASH})
    forget_hashes(folder)
    usable, why = readable(folder, [0, 6])
    assert usable == [0]
    assert why[6].startswith("cannot be read, it is damaged or no safetensors file")
    assert str(folder.path) not in why[6]


def test_somebody_elses_weights(folder: Run) -> None:
    forget_hashes(folder)
    save_file({"weight": torch.zeros(3)}, folder.snapshot_path(6))
    assert readable(folder, [6]) == (
        [],
        {6: "not written by icl_fast (its header has no 'icl_fast.snapshot.1')"},
    )


def test_a_damaged_manifest(folder: Run) -> None:
    (folder.path / "manifest.json").write_text("{")
    with pytest.raises(InputError, match=r"manifest.json: is not JSON"):
        readable(folder, [0])


def test_reading_ahead_keeps_the_order(folder: Run) -> None:
    def steps(wanted: list[int]) -> list[Any]:
        return [(snapshot.step, snapshot.seen) for snapshot in RunSeries(folder, wanted)]

    assert steps([]) == []
    assert steps([12]) == [(12, 12 * 48)]
    assert steps([0, 6, 12]) == [(0, 0), (6, 6 * 48), (12, 12 * 48)]
    manifest = json.loads((folder.path / "manifest.json").read_text())
    manifest["snapshots/step_00000006.safetensors"] = "0" * 64
    (folder.path / "manifest.json").write_text(json.dumps(manifest))
    ahead = iter(RunSeries(folder, [0, 6, 12]))
    assert next(ahead).step == 0  # the next one is damaged, but it is not its turn yet
    with pytest.raises(InputError, match="SHA-256"):
        next(ahead)
