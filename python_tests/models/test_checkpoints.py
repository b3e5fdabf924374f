"""Snapshots: what is written comes back bit for bit, what is damaged is refused, what is interrupted leaves the old."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from icl_fast.errors import InputError
from icl_fast.models import Snapshot, Transformer, load_snapshot, save_snapshot
from icl_fast.models.checkpoints import TEXT_FORMAT

Build = Callable[..., Transformer]


@pytest.fixture
def model(build: Build) -> Transformer:
    return build(key="smeared", mlp=True, windows=[[None, 3, 2], [1, None, None]], rotary_base=123.456789012345678)


@pytest.fixture
def saved(model: Transformer, tmp_path: Path) -> Path:
    path = tmp_path / "step_00000007.safetensors"
    save_snapshot(path, model, step=7, seen=3_584)
    return path


def header_of(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        header: dict[str, Any] = json.loads(file.metadata()[TEXT_FORMAT])
    return header


def rewrite(path: Path, weights: dict[str, torch.Tensor | None] | None = None, header: object = None) -> None:
    """The same snapshot with some other weights (None: taken out), or another header (text: as it is)."""
    metadata = header if isinstance(header, str) else json.dumps(header or header_of(path))
    kept = {name: weight for name, weight in {**load_file(path), **(weights or {})}.items() if weight is not None}
    save_file(kept, path, metadata={TEXT_FORMAT: metadata})


# --- round trip ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"position": "learned", "attention_bias": True, "unembed_bias": True, "head_width": 5},
        {"position": "rotary", "rotary_fraction": 0.5, "rotary_interleaved": True, "key": "smeared", "mlp": True},
        {"position": "none", "norm_affine": False, "init_std": 0.1, "norm_eps": 1e-12},
        {"position": "sinusoidal", "windows": [[None, 3, 2], [1, None, None]], "mlp": True, "activation": "gelu_tanh"},
    ],
)
def test_round_trip(build: Build, tmp_path: Path, changes: dict[str, Any], dtype: torch.dtype) -> None:
    model = build(dtype=dtype, **changes)
    save_snapshot(tmp_path / "a.safetensors", model, step=2**40, seen=2**60 + 1)
    snapshot = load_snapshot(str(tmp_path / "a.safetensors"))
    assert isinstance(snapshot, Snapshot)
    assert (snapshot.step, snapshot.seen) == (2**40, 2**60 + 1)
    assert snapshot.model.config == model.config
    loaded, original = snapshot.model.state_dict(), model.state_dict()
    assert list(loaded) == list(original)
    for name, weight in original.items():
        assert loaded[name].dtype == dtype
        assert torch.equal(loaded[name], weight)
    tokens = torch.arange(8).view(1, 8)
    assert torch.equal(snapshot.model(tokens), model(tokens))


def test_loaded_model_can_be_trained_and_saved_again(saved: Path) -> None:
    """It owns its weights: changing them changes no file, and overwriting the file changes no weight."""
    before = saved.read_bytes()
    first = load_snapshot(saved).model
    assert not first.training
    first(torch.zeros(1, 4, dtype=torch.int64)).square().mean().backward()
    assert all(p.requires_grad and p.grad is not None for p in first.parameters())
    torch.optim.SGD(first.parameters(), lr=0.1).step()
    assert saved.read_bytes() == before
    trained = torch.nn.utils.parameters_to_vector(first.parameters()).detach().clone()
    save_snapshot(saved, first, step=8, seen=0)
    again = load_snapshot(saved)
    save_snapshot(saved, load_snapshot(saved).model.float(), step=9, seen=0)
    saved.write_bytes(b"\0" * len(before))
    assert again.step == 8
    assert torch.equal(torch.nn.utils.parameters_to_vector(again.model.parameters()), trained)
    assert torch.equal(torch.nn.utils.parameters_to_vector(first.parameters()), trained)


def test_folders_are_made_and_nothing_else_is_left(model: Transformer, tmp_path: Path) -> None:
    path = tmp_path / "run" / "snapshots" / "step_1.safetensors"
    save_snapshot(path, model, step=1, seen=1)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]


def test_a_model_on_other_weights_after_saving_is_not_what_was_saved(saved: Path, model: Transformer) -> None:
    """The file holds a copy, with rows in order also where a weight was not contiguous."""
    with torch.no_grad():
        model.unembed.weight.set_(torch.randn(12, 11).T)
    assert not model.unembed.weight.is_contiguous()
    save_snapshot(saved, model, step=1, seen=1)
    assert torch.equal(load_snapshot(saved).model.unembed.weight, model.unembed.weight)


def test_safetensors_alone_can_read_it(saved: Path, model: Transformer) -> None:
    """The format is plain: weights by name, the config as JSON text in the header."""
    weights = load_file(saved)
    assert weights.keys() == model.state_dict().keys()
    assert header_of(saved) == {"config": model.config.model_dump(mode="json"), "step": 7, "tokens": 3_584}


def test_same_model_same_bytes(saved: Path, model: Transformer) -> None:
    """A manifest's checksum means something: nothing in the file depends on the moment it was written."""
    before = saved.read_bytes()
    for _ in range(5):
        save_snapshot(saved, model, step=7, seen=3_584)
        assert saved.read_bytes() == before


# --- damage ----------------------------------------------------------------------------------------------------------


def header_length(path: Path) -> int:
    return int(struct.unpack("<Q", path.read_bytes()[:8])[0])


def test_truncated_anywhere(saved: Path) -> None:
    whole = saved.read_bytes()
    header = 8 + header_length(saved)
    lengths = {0, 1, 7, 8, 9, header - 1, header, header + 1, len(whole) - 4, len(whole) - 1}
    for length in sorted(lengths | set(range(0, len(whole), 997))):
        saved.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"^snapshot .*: cannot be read, it is damaged or no safetensors file"):
            load_snapshot(saved)
    saved.write_bytes(whole + b"\0")
    with pytest.raises(InputError, match="cannot be read"):
        load_snapshot(saved)


@pytest.mark.parametrize("flip", [0x01, 0x80])
def test_flipped_header_bytes(saved: Path, flip: int) -> None:
    """A snapshot or one clear line: never another exception, never a wrong number of weights."""
    whole = bytearray(saved.read_bytes())
    refusals: list[str] = []
    for index in range(0, 8 + header_length(saved), 2):
        damaged = whole.copy()
        damaged[index] ^= flip
        saved.write_bytes(damaged)
        try:
            snapshot = load_snapshot(saved)
        except InputError as error:
            refusals.append(str(error))
        else:  # such as another digit of the step
            assert snapshot.model(torch.zeros(1, 3, dtype=torch.int64)).shape == (1, 3, 11)
    assert len(refusals) > header_length(saved) // 4
    assert all(str(saved) in message and "\n" not in message for message in refusals)


@pytest.mark.parametrize("content", [b"", b"not a snapshot", b"\xff" * 64, b"PK\x03\x04" + b"\0" * 64])
def test_other_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"^snapshot .*x\.safetensors: cannot be read, it is damaged"):
        load_snapshot(path)


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}, {"icl_fast.snapshot.2": "{}"}])
def test_foreign_safetensors(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    save_file({"w": torch.zeros(2)}, tmp_path / "x.safetensors", metadata=metadata)
    with pytest.raises(InputError, match=r"not written by icl_fast \(its header has no 'icl_fast.snapshot.1'\)$"):
        load_snapshot(tmp_path / "x.safetensors")


def test_no_such_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^snapshot: .*nowhere does not exist$"):
        load_snapshot(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"^snapshot: .* is a folder; give a file$"):
        load_snapshot(tmp_path)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"unembed.weight": None}, r"missing or unknown weights: unembed.weight$"),
        ({"unembed.bias": torch.zeros(11)}, r"missing or unknown weights: unembed.bias$"),
        ({"unembed.weight": torch.zeros(12, 11)}, r"unembed.weight is \[12, 11\], its config says \[11, 12\]$"),
        ({"position.weight": torch.zeros(15, 12)}, r"position.weight is \[15, 12\], its config says \[16, 12\]$"),
        ({"final_norm.weight": torch.tensor([1.0] * 11 + [torch.nan])}, r"final_norm.weight holds NaN or infinity"),
        ({"final_norm.bias": torch.tensor([0.0] * 11 + [-torch.inf])}, r"final_norm.bias holds NaN or infinity"),
        ({"final_norm.bias": torch.zeros(12, dtype=torch.int64)}, r"final_norm.bias is torch.int64, .* floating"),
        ({"final_norm.bias": torch.zeros(12, dtype=torch.bool)}, r"final_norm.bias is torch.bool, .* floating"),
    ],
)
def test_wrong_weights(saved: Path, weights: dict[str, torch.Tensor | None], message: str) -> None:
    rewrite(saved, weights)
    with pytest.raises(InputError, match=r"^snapshot .*: " + message):
        load_snapshot(saved)


def entry(dtype: str, shape: list[Any], start: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("tensors", "body"),
    [
        ({"w": entry("F4", [2], 0, 1)}, 1), ({"w": entry("F6_E2M3", [4], 0, 3)}, 3), ({"w": entry("XX", [1], 0, 1)}, 1),
        ({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 2, 6)}, 6), ({"a": entry("F32", [1], 4, 8)}, 8),
        ({"a": entry("F32", [-1], 0, 4)}, 4), ({"a": entry("F32", [2**40, 2**40], 0, 4)}, 4),
        ({"a": entry("F32", [2**62, 0], 0, 0)}, 0), ({"a": entry("F32", [2**64], 0, 4)}, 4),
        ({"a": entry("F32", [1], 4, 0)}, 4), ({"a": entry("F32", [2], 0, 8)}, 4), ({"a": [[]]}, 0), ([], 0), (None, 0),
        ({f"blocks.{i}.norm1.weight": entry("F32", [0], 0, 0) for i in range(20_000)}, 0),
    ],
)  # fmt: skip
def test_forged_files(saved: Path, tensors: Any, body: int) -> None:
    """Headers that claim what is not there, or of what no weights are, are refused before anything is made of them."""
    if isinstance(tensors, dict):
        tensors = {"__metadata__": {TEXT_FORMAT: json.dumps(header_of(saved))}, **tensors}
    header = json.dumps(tensors).encode()
    saved.write_bytes(struct.pack("<Q", len(header)) + header + bytes(body))
    with pytest.raises(InputError, match=r"^snapshot .*: (cannot be read|missing or unknown weights)"):
        load_snapshot(saved)
    saved.write_bytes(struct.pack("<Q", 2**60) + header)
    with pytest.raises(InputError, match=r"^snapshot .*: cannot be read"):
        load_snapshot(saved)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.complex64, torch.float64, torch.int32, torch.uint16])
def test_other_types(saved: Path, dtype: torch.dtype) -> None:
    rewrite(saved, {"final_norm.bias": torch.zeros(12).to(dtype)})
    with pytest.raises(InputError, match=rf"^snapshot .*: final_norm.bias is {dtype}, but weights are floating-point"):
        load_snapshot(saved)


def test_pipes_and_devices_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path / "pipe", "pipe"), (Path("/dev/zero"), "device")):
        with pytest.raises(InputError, match=f"^snapshot: {path} is a {kind}; give a file$"):
            load_snapshot(path)


def test_a_file_larger_than_memory(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("icl_fast.memory.available", lambda: 1000)
    with pytest.raises(InputError, match=r"^snapshot .*: needs .* KiB of memory and 1e\+03 bytes are free"):
        load_snapshot(saved)


def test_many_wrong_weights_are_named_in_one_short_line(saved: Path) -> None:
    rewrite(saved, {**dict.fromkeys(load_file(saved)), "other": torch.zeros(1)})
    with pytest.raises(InputError, match=r"missing or unknown weights: blocks.0.attention.alpha") as caught:
        load_snapshot(saved)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "changes",
    [
        {"config": None}, {"config": 3}, {"config": [1]}, {"config": "{}"}, {"step": "one"}, {"step": None},
        {"step": [7]}, {"tokens": ""}, {"tokens": float("inf")}, {"tokens": float("nan")}, {"step": -1}, {"step": True},
        {"step": 2**63}, {"tokens": "9" * 10**6}, {"config": "9" * 10**6},
    ],
)  # fmt: skip
def test_damaged_header(saved: Path, changes: dict[str, Any]) -> None:
    rewrite(saved, header={**header_of(saved), **changes})
    with pytest.raises(InputError, match=r"^snapshot .*: its header is damaged \("):
        load_snapshot(saved)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '"x"', "[" * 10**5, '{"a": 1, "a": 2}', "1" * 5000])
def test_header_that_is_no_object(saved: Path, text: str) -> None:
    rewrite(saved, header=text)
    with pytest.raises(InputError, match=r"^snapshot .*: its header(: is not JSON| is damaged \()"):
        load_snapshot(saved)


@pytest.mark.parametrize("key", ["config", "step", "tokens"])
def test_header_without_an_entry(saved: Path, key: str) -> None:
    rewrite(saved, header={k: v for k, v in header_of(saved).items() if k != key})
    with pytest.raises(InputError, match=f"its header is damaged .*{key}"):
        load_snapshot(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"swiglu": True}, "config.swiglu: unknown key"),
        ({"heads": 5}, r"config: heads=5 does not divide width=12"),
        ({"layers": "2"}, r"config.layers: .*integer, got '2'"),
        ({"layers": 1, "windows": None}, r"missing or unknown weights: blocks.1"),
        ({"width": 24}, r"is \[.*\], its config says \["),
        ({"vocab": 10**9}, r"embed.weight is \[11, 12\], its config says \[1000000000, 12\]"),
        ({"vocab": 10**12}, r"config.vocab: input should be less than or equal to 2147483647, got 1000000000000"),
        ({"layers": 10**6, "windows": None}, r"config.layers: input should be less than or equal to 1000, got"),
        ({"layers": 50, "windows": None}, r"missing or unknown weights: blocks.10.attention"),
        ({"width": 3 * 2**29, "mlp_ratio": 2**31 - 1}, r"its config is of no model that could be in a file \("),
    ],
)
def test_config_that_does_not_fit(saved: Path, changes: dict[str, Any], message: str) -> None:
    header = header_of(saved)
    rewrite(saved, header={**header, "config": {**header["config"], **changes}})
    with pytest.raises(InputError, match=r"^snapshot .*: .*" + message):
        load_snapshot(saved)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    """A pickle in a snapshot's place is refused, not run."""
    path = tmp_path / "x.safetensors"
    torch.save({"w": torch.zeros(2)}, path)
    with pytest.raises(InputError, match="cannot be read"):
        load_snapshot(path)


# --- writing that fails ----------------------------------------------------------------------------------------------


def test_full_disk(small_disk: Path, model: Transformer, build: Build) -> None:
    """A disk that really is full: one line, the old snapshot untouched, no half file."""
    path = small_disk / "step_1.safetensors"
    save_snapshot(path, model, step=1, seen=1)
    before = path.read_bytes()
    big = build(vocab=10_000)
    for target in (path, small_disk / "step_2.safetensors"):
        with pytest.raises(InputError, match=rf"^{target}: the disk is full; free some space or write elsewhere"):
            save_snapshot(target, big, step=2, seen=2)
    assert [p.name for p in small_disk.iterdir()] == [path.name]
    assert path.read_bytes() == before
    save_snapshot(path, model, step=3, seen=3)
    assert load_snapshot(path).step == 3


def test_a_folder_in_the_way(tmp_path: Path, model: Transformer) -> None:
    target = tmp_path / "step_1.safetensors"
    target.mkdir()
    (target / "kept").write_text("x")
    with pytest.raises(InputError, match=rf"^{target}: cannot be written \(Is a directory\); choose another place$"):
        save_snapshot(target, model, step=1, seen=1)
    assert [p.name for p in tmp_path.rglob("*")] == ["step_1.safetensors", "kept"]


def test_a_file_as_the_folder(tmp_path: Path, model: Transformer) -> None:
    (tmp_path / "run").write_text("x")
    with pytest.raises(InputError, match=r"run/a: cannot be written \(.*\); choose another place$"):
        save_snapshot(tmp_path / "run" / "a", model, step=1, seen=1)


KILLED = """
import os, signal, sys
import safetensors.torch, torch
from safetensors.torch import save_file
from icl_fast.models import Transformer, TransformerConfig, checkpoints

def half(weights, path, metadata):
    save_file(weights, path, metadata=metadata)
    os.truncate(path, os.path.getsize(path) // 2)
    os.kill(os.getpid(), signal.SIGKILL)

model = Transformer(TransformerConfig(layers=1, width=8, heads=2, vocab=5, context=4))
checkpoints.save_snapshot(sys.argv[1], model, step=1, seen=1)
safetensors.torch.save_file = half
checkpoints.save_snapshot(sys.argv[int(sys.argv[3])], model, step=2, seen=2)
"""


@pytest.mark.parametrize("which", [1, 2], ids=["over-an-old-one", "in-a-new-place"])
def test_killed_in_mid_write(tmp_path: Path, which: int) -> None:
    """SIGKILL with half of the bytes written: the old snapshot is whole, a new one is not there at all."""
    old, new = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    run = subprocess.run([sys.executable, "-c", KILLED, old, new, str(which)], cwd=os.getcwd(), capture_output=True)
    assert run.returncode == -signal.SIGKILL, run.stderr.decode()
    assert load_snapshot(old).step == 1
    assert not new.exists()
    assert any(p.name.startswith(".tmp-") for p in tmp_path.iterdir())  # it did die in the middle
    save_snapshot(new, load_snapshot(old).model, step=3, seen=3)
    assert load_snapshot(new).step == 3
