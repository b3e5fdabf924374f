"""Every bench at tiny shapes on CPU; and what of the CUDA side can be looked at without a device."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import harness
import pytest
import report
import run
import torch
import torch.nn.functional as F
from clock import CpuClock
from harness import Maker, Options
from torch import Tensor
from torch.nn.attention import SDPBackend

from icl_fast.ops import _backend

QUICK = Options(threads=1, quick=True, compile=False, memory=False)


@pytest.mark.parametrize("name", run.NAMES)
def test_quick(name: str) -> None:
    bench = import_module(f"bench_{name}")
    done = harness.run_bench(name, bench.cases(QUICK), QUICK, bench.__file__, lambda so_far: None)
    torch.set_num_threads(1)
    assert [case["errors"] for case in done["cases"]] == [[] for _ in done["cases"]]
    for case in done["cases"]:
        rows = {row["name"]: row for row in case["candidates"]}
        assert "median_s" in rows["reference"], case["name"]
        if _backend.compiled():
            assert rows["ours"]["missing"] == ""
            assert case["metrics"]["speed vs reference"] > 0
        absent = {name: row["missing"] for name, row in rows.items() if row["missing"] and name != "ours"}
        others = {"torch.compile", "F.linear_cross_entropy", "TransformerLens", "TransformerLens sliced"}
        others |= {"TransformerLens float32", "TransformerLens sliced float32", "JAX step", "JAX scan"}
        assert set(absent) <= others or not _backend.compiled(), absent


@pytest.mark.parametrize("name", run.NAMES)
def test_the_cuda_side_without_a_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything a CUDA run does but the device: its cases, sets of inputs, memory, and no kernels built."""
    without = {op: ("reference",) for op in ("call_overhead", *run.NAMES)}
    monkeypatch.setattr(harness, "available_impls", lambda: without)
    monkeypatch.setattr(harness, "Maker", lambda device, dtype, seed: Maker("cpu", dtype, seed))
    monkeypatch.setattr(harness, "CudaClock", CpuClock)
    monkeypatch.setattr(harness, "ceilings", lambda *others: {"matmul bfloat16": 1e12, "copy": 1e12})
    monkeypatch.setattr(harness, "cuda_peak", lambda call: (call(), {"peak_mb": 1.0}))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    options = replace(QUICK, device="cuda", memory=True)
    bench = import_module(f"bench_{name}")
    done = harness.run_bench(name, bench.cases(options), options, bench.__file__, lambda so_far: None)
    assert [case["errors"] for case in done["cases"]] == [[] for _ in done["cases"]]
    without_kernel = name in ("toy", "exemplar_training", "text_training")
    expected = "" if without_kernel else "impl='cuda' is not built here (built: reference)"
    for case in done["cases"]:
        rows = {row["name"]: row for row in case["candidates"]}
        assert rows["ours"]["missing"] == expected
        assert "median_s" in rows["reference"]
        assert name == "call_overhead" or rows["reference"]["peak_mb"] == 1.0
    report.print_bench(
        done, report.finish({"options": {"device": "cuda", "quick": False}, "benches": [done]})["targets"]
    )


@pytest.mark.parametrize("name", run.NAMES)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_target_is_of_a_case_and_a_candidate(name: str, device: str) -> None:
    cases = {case.name: case for case in import_module(f"bench_{name}").cases(Options(device=device))}
    targets = [t for t in report.read_targets() if (t["bench"], t["device"]) == (name, device)]
    for target in targets:
        case = cases[target["case"]]
        known = {"of matmul", "of roofline", "peak MB", "workspace MB", "resident MB"}  # no speed but ratios
        known |= {f"{what} vs {c.name}" for c in case.candidates for what in ("speed", "time", "peak")}
        known |= {f"speed vs fastest {c.family}" for c in case.candidates if c.family}
        assert target["metric"] in known
    # nobody has set one for these
    without = (name, device) in (
        ("cross_entropy_difference", "cpu"),
        *((op, "cuda") for op in ("layer_norm_difference", "activation_difference", "gated_difference")),
        ("head_ablation_cross_entropy", "cuda"),
        *((bench, "cuda") for bench in ("toy", "exemplar_training", "text_training", "head_scores")),
    )
    assert bool(targets) != without


@pytest.mark.parametrize("name", run.NAMES)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_quick_cases_stand_for_the_real_ones(name: str, device: str) -> None:
    """A child finds "case 3" of the quick list to warm up for case 3 of the real one."""
    bench = import_module(f"bench_{name}")
    real, quick = (bench.cases(Options(device=device, quick=quick)) for quick in (False, True))
    assert len({case.name for case in real}) == len(real)
    for one, other in zip(real, quick, strict=True):
        assert (one.dtype, one.direction) == (other.dtype, other.direction)
        assert [c.name for c in one.candidates] == [c.name for c in other.candidates]


def case_of(name: str, direction: str = "forward") -> harness.Case:
    cases: list[harness.Case] = import_module(f"bench_{name}").cases(Options(device="cuda", quick=True))
    return next(case for case in cases if case.direction == direction and case.dtype == torch.bfloat16)


def agree(case: harness.Case, names: list[str], dtype: torch.dtype = torch.float32) -> None:
    """On CPU, candidates of a CUDA case compute what the reference does."""
    case.dtype = dtype
    inputs = case.make(Maker("cpu", dtype, 0))
    for leaf in case.gradients:
        getattr(inputs, leaf).requires_grad_(True)
    candidates = {candidate.name: candidate for candidate in case.candidates}
    truth = harness.tensors_in(harness.prepare(case, candidates["reference"], inputs)())
    for name in names:
        result = harness.prepare(case, candidates[name], inputs)()
        found = candidates[name].unpack(result) if case.direction == "forward" else result
        harness.check(found, truth, dtype)


def test_flex_attention_is_called_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    flex = import_module("torch.nn.attention.flex_attention")
    create = flex.create_block_mask
    monkeypatch.setattr(flex, "create_block_mask", lambda *a, **named: create(*a, **{**named, "device": "cpu"}))
    with torch.no_grad():
        agree(case_of("frozen_attention"), ["FlexAttention", "sdpa batched", "sdpa folded", "torch.compile"])
        agree(case_of("smeared_attention"), ["FlexAttention", "smear + sdpa", "torch.compile"])


def test_a_named_sdpa_backend_is_the_one_used() -> None:
    smeared = import_module("bench_smeared_attention")
    enabled: list[tuple[bool, bool]] = []

    def call(x: Any) -> Tensor:
        enabled.append((torch.backends.cuda.math_sdp_enabled(), torch.backends.cuda.flash_sdp_enabled()))
        return x

    smeared.on(SDPBackend.MATH, call)(torch.ones(1))
    smeared.on(SDPBackend.FLASH_ATTENTION, call)(torch.ones(1))
    assert enabled == [(True, False), (False, True)]


@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
def test_other_packages_are_called_right(direction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins with the signatures of cut_cross_entropy 25.x and liger_kernel 0.5."""

    def linear_cross_entropy(e: Tensor, c: Tensor, targets: Tensor, *, reduction: str = "mean") -> Tensor:
        return F.cross_entropy(e @ c.T, targets, reduction=reduction)

    class LigerFusedLinearCrossEntropyLoss:
        def __init__(self, *, reduction: str = "mean") -> None:
            self.reduction = reduction

        def __call__(self, lin_weight: Tensor, _input: Tensor, target: Tensor) -> Tensor:
            return F.cross_entropy(_input @ lin_weight.T, target, reduction=self.reduction)

    bench = import_module("bench_linear_cross_entropy")
    packages = {
        "cut_cross_entropy": SimpleNamespace(linear_cross_entropy=linear_cross_entropy),
        "liger_kernel.transformers": SimpleNamespace(LigerFusedLinearCrossEntropyLoss=LigerFusedLinearCrossEntropyLoss),
    }
    monkeypatch.setattr(bench, "module_or_none", packages.get)
    with torch.set_grad_enabled(direction != "forward"):
        agree(case_of("linear_cross_entropy", direction), ["cut_cross_entropy", "liger_kernel", "mm + cross_entropy"])
    monkeypatch.setattr(bench, "module_or_none", {}.get)
    rows = {candidate.name: candidate for candidate in case_of("linear_cross_entropy", direction).candidates}
    assert rows["cut_cross_entropy"].missing == rows["liger_kernel"].missing == "not installed"


def test_the_kernel_is_put_back_after_another_instruction_set() -> None:
    if len(_backend.isas()) < 2:
        pytest.skip("there is one instruction set only")
    bench = import_module("bench_linear_cross_entropy")
    case = bench.cases(QUICK)[-1]
    names = [candidate.name for candidate in case.candidates]
    assert names[:2] == ["ours", f"ours on {_backend.isas()[0]}"]
    used: list[str] = []
    mine = SimpleNamespace(set_isa=used.append, isas=_backend.isas)
    bench._backend, real = mine, bench._backend
    try:
        case.candidates[1].call(case.make(Maker("cpu", torch.float32, 0)))
    finally:
        bench._backend = real
    assert used == [_backend.isas()[0], _backend.isas()[-1]]
