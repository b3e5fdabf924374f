"""The harness measures what it says: right results only, in turns, ratios within rounds. Nothing depends on speed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import clock
import harness
import harness_options
import pytest
import torch
from clock import CpuClock, CudaClock, cpu_peak, tensors_in
from harness import Candidate, Case, Inputs, Maker, Options, run_bench, run_case
from torch import Tensor

QUICK = Options(quick=True, compile=False, memory=False)


class NotingClock:
    """Runs the call, notes whose it was, and says that it took a second."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.now = ""

    def mark(self, name: str, result: Any) -> Any:
        self.now = name
        return result

    def repeat(self, seconds: float) -> int:
        return 1

    def seconds(self, call: Callable[[], object], repeat: int) -> float:
        call()
        self.order.append(self.now)
        return 1.0


def square_case(clock: NotingClock | None = None, **others: Callable[[Inputs], Any]) -> Case:
    """`x * x`, by "ours", by the reference and by others."""
    calls = {"ours": lambda x: x.x * x.x, "reference": lambda x: x.x.square(), **others}

    def marked(name: str, call: Callable[[Inputs], Any]) -> Callable[[Inputs], Any]:
        return lambda x: clock.mark(name, call(x)) if clock else call(x)

    return Case(
        shape="N=5",
        dtype=torch.float32,
        make=lambda maker: Inputs(x=maker.normal(5), grad=maker.normal(5)),
        candidates=[Candidate(name, marked(name, call)) for name, call in calls.items()],
        flops=5.0,
        bytes=40.0,
    )


def rows_of(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in result["candidates"]}


def test_ratios_are_medians_of_ratios_within_rounds() -> None:
    # In the second round the machine is slower by 10: no ratio of medians over all rounds would survive that
    samples = {"ours": [1.0, 10.0, 3.0], "reference": [2.0, 20.0, 3.0], "torch": [4.0, 60.0, 15.0]}
    metrics = harness.ratios(samples, square_case(torch=lambda x: x.x**2).candidates)
    assert metrics["speed vs reference"] == 2
    assert metrics["speed vs torch"] == 5
    assert metrics["time vs torch"] == pytest.approx(1 / 5)
    assert metrics["microseconds"] == 3e6
    assert harness.ratios({"reference": [1.0], "torch": [1.0]}, []) == {}


def test_a_family_counts_as_its_fastest_in_each_round() -> None:
    candidates = [Candidate(name, lambda x: x, family="sdpa" * (name != "ours")) for name in ("ours", "a", "b")]
    metrics = harness.ratios({"ours": [1, 1, 1], "a": [2, 9, 3], "b": [9, 4, 9]}, candidates)
    assert metrics["speed vs fastest sdpa"] == 3  # of 2, 4, 3
    assert metrics["speed vs a"] == 3
    assert metrics["speed vs b"] == 9
    metrics = harness.ratios({"ours": [1, 1, 1], "a": [2, 9], "b": [9, 4, 9]}, candidates)
    assert metrics["speed vs fastest sdpa"] == 4  # of 2, 4, 9: one that is slow has fewer rounds


def test_candidates_take_turns_and_inputs_rotate() -> None:
    clock = NotingClock()
    seen: list[int] = []
    case = square_case(clock)
    case.candidates[0].call = lambda x: clock.mark("ours", seen.append(x.number))
    sets = [Inputs(x=torch.ones(2), number=number) for number in range(3)]
    harness.time_rounds(case, case.candidates, {"ours": 1.0, "reference": 1.0}, sets, Options(seconds=8), clock)
    assert clock.order == ["ours", "reference", "reference", "ours"] * 2 + ["ours", "reference"]
    assert seen == [0, 1, 2, 0, 1]


def test_on_cuda_a_slow_candidate_has_few_rounds() -> None:
    def order(device: str, seconds: float) -> list[str]:
        clock = NotingClock()
        case = square_case(clock)
        first, options = {"ours": 1.0, "reference": seconds}, Options(device=device, seconds=9)
        samples = harness.time_rounds(case, case.candidates, first, [harness.make_inputs(case, QUICK)], options, clock)
        assert "speed vs reference" in harness.ratios(samples, case.candidates)
        return clock.order

    assert order("cuda", 6.0).count("reference") == harness.SLOW_ROUNDS
    assert order("cuda", 6.0).count("ours") == 9  # as if the slow one took no time
    assert order("cuda", 5.0).count("reference") == order("cpu", 6.0).count("reference") == harness.LEAST_ROUNDS


def test_a_slow_case_has_few_rounds_and_a_fast_one_many() -> None:
    def rounds(first: float) -> int:
        clock = NotingClock()
        case = square_case(clock)
        inputs = [harness.make_inputs(case, QUICK)]
        return len(
            harness.time_rounds(
                case, case.candidates, {"ours": first, "reference": first}, inputs, Options(seconds=8), clock
            )["ours"]
        )

    assert rounds(100.0) == harness.LEAST_ROUNDS
    assert rounds(0.25) == 16
    assert rounds(1e-6) == harness.MOST_ROUNDS


@pytest.mark.parametrize(("seconds", "calls"), [(60.0, 2), (1.0, 3)])
def test_a_case_with_rounds_keeps_the_first(seconds: float, calls: int) -> None:
    """Two rounds of a long call are two calls, the first of them compared; a short one is warmed up as always."""

    class SlowClock(NotingClock):
        def seconds(self, call: Callable[[], object], repeat: int) -> float:
            super().seconds(call, repeat)
            return seconds + len(self.order)

    clock = SlowClock()
    case = square_case(clock)
    case.rounds = 2
    result = run_case(case, Options(memory=False, seconds=0), clock, {})
    assert result["rounds"] == 2
    assert sorted(clock.order) == ["ours"] * calls + ["reference"] * calls
    # the samples: the last call of comparing, then that of the second round
    assert rows_of(result)["reference"]["seconds"] == [seconds + calls - 1, seconds + 2 * calls]
    case.rounds = 1
    assert run_case(case, Options(memory=False, seconds=0), clock, {})["rounds"] == 1


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: x.x.square() + 1e-3,
        lambda x: x.x.square().where(torch.arange(5) < 4, 0.0),
        lambda x: x.x.square()[:4],
        lambda x: x.x.square() / torch.tensor([1.0, 1, 1, 1, 0]),
        lambda x: x.x.square() * float("nan"),
    ],
    ids=["far", "last element", "shape", "infinite", "nan"],
)
@pytest.mark.parametrize("name", ["ours", "torch"])
def test_a_wrong_result_is_not_timed_and_fails_the_case(name: str, wrong: Callable[[Inputs], Tensor]) -> None:
    case = square_case(**{name: wrong})
    result = run_case(case, QUICK, CpuClock(), {})
    row = rows_of(result)[name]
    assert row["missing"].startswith("WrongResult: ")
    assert "median_s" not in row
    assert "median_s" in rows_of(result)["reference"]
    assert len(result["errors"]) == 1
    assert "WrongResult" in result["errors"][0]


def test_a_wrong_gradient_is_noticed() -> None:
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.square()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            return 4 * x * grad

    for direction in ("backward", "forward+backward"):
        case = square_case(ours=lambda x: Doubled.apply(x.x), torch=lambda x: x.x**2)
        case.direction, case.gradients = direction, ("x",)
        rows = rows_of(run_case(case, QUICK, CpuClock(), {}))
        assert rows["ours"]["missing"].startswith("WrongResult"), direction
        assert rows["torch"]["missing"] == "", direction


def test_results_may_need_unpacking_and_yardsticks_are_not_compared() -> None:
    case = square_case(folded=lambda x: x.x.square()[None], product=lambda x: x.x + 1)
    rows = {candidate.name: candidate for candidate in case.candidates}
    rows["folded"].unpack = lambda out: out[0]
    rows["product"].compare = False
    result = run_case(case, QUICK, CpuClock(), {})
    assert result["errors"] == []
    assert all("median_s" in row for row in result["candidates"])


def test_what_cannot_run_is_a_row_that_says_why() -> None:
    def no_memory(x: Inputs) -> Tensor:
        raise RuntimeError("out of memory\nand a long story")

    case = square_case(flex=no_memory, absent=no_memory)
    case.candidates[-1].missing = "not installed"
    result = run_case(case, QUICK, CpuClock(), {})
    rows = rows_of(result)
    assert rows["flex"]["missing"] == "RuntimeError: out of memory"
    assert rows["absent"]["missing"] == "not installed"
    assert result["errors"] == []  # they are others'
    assert "speed vs reference" in result["metrics"]


def test_without_a_reference_nothing_is_timed() -> None:
    def broken(x: Inputs) -> Tensor:
        raise ValueError("broken")

    result = run_case(square_case(reference=broken), QUICK, CpuClock(), {})
    assert all("median_s" not in row for row in result["candidates"])
    assert result["rounds"] == 0
    assert "ValueError: broken" in result["errors"][0]


def test_a_kernel_that_is_not_built_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "available_impls", lambda: {"op": ("cpu", "reference")})
    assert harness.ours("op", lambda x, impl: impl, "cpu").missing == ""
    assert harness.ours("op", lambda x, impl: impl, "cpu").call(Inputs()) == "cpu"
    missing = harness.ours("op", lambda x, impl: impl, "cuda").missing
    assert missing == "impl='cuda' is not built here (built: cpu, reference)"


def test_a_case_that_raises_does_not_stop_the_others() -> None:
    def nothing(maker: Maker) -> Inputs:
        raise MemoryError("inputs")

    first, second = square_case(), square_case()
    first.make = nothing
    done = run_bench("squares", [first, second], QUICK, "", lambda so_far: None)
    assert "MemoryError: inputs" in done["cases"][0]["errors"][0]
    assert done["cases"][1]["errors"] == []


def test_after_every_case_all_is_saved() -> None:
    saved: list[dict[str, Any]] = []
    run_bench("squares", [square_case(), square_case()], QUICK, "", lambda so_far: saved.append(copy.deepcopy(so_far)))
    assert [len(so_far["cases"]) for so_far in saved] == [1, 2]
    for so_far in saved:
        assert so_far["ceilings"]["copy"] > 0
        for case in so_far["cases"]:
            assert case["metrics"]["of matmul"] > 0
            assert rows_of(case)["ours"]["gbps"] > 0


def test_when_the_gpu_is_lost_no_case_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is this CPU, and every call that is waited for after an error fails."""
    monkeypatch.setattr(harness, "CudaClock", CpuClock)
    monkeypatch.setattr(harness, "Maker", lambda device, dtype, seed: Maker("cpu", dtype, seed))
    monkeypatch.setattr(harness, "ceilings", lambda *others: {})

    def gone() -> None:
        raise RuntimeError("CUDA error: an illegal memory access\nand a long story")

    def wrong(x: Inputs) -> Tensor:
        return x.x * 3

    on_cuda = replace(QUICK, device="cuda")
    monkeypatch.setattr(torch.cuda, "synchronize", gone)
    cases = [square_case(), square_case(ours=wrong), square_case()]
    done = run_bench("squares", cases, on_cuda, "", lambda so_far: None)
    assert len(done["cases"]) == 2  # the first had no error
    assert done["lost"] == "the GPU is lost to this process: CUDA error: an illegal memory access"
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    done = run_bench("squares", cases, on_cuda, "", lambda so_far: None)
    assert (len(done["cases"]), done["lost"]) == (3, "")


def test_headline_cases_come_first() -> None:
    cases = [square_case() for _ in range(4)]
    for number, case in enumerate(cases):
        case.shape, case.headline = f"N={number}", number in (1, 3)

    def shapes(**options: Any) -> list[str]:
        return [case.shape for case in harness.selected(cases, replace(QUICK, **options))]

    assert shapes() == ["N=1", "N=3", "N=0", "N=2"]
    assert shapes(only="=3") == ["N=3"]


def test_rates_and_their_fraction_of_the_ceiling() -> None:
    case = square_case()
    case.candidates.append(Candidate("product alone", lambda x: x.x, compare=False))
    found = {"matmul float32": 1.0, "copy": 80.0}
    result = run_case(case, QUICK, CpuClock(), found)
    result["candidates"][0] |= {"median_s": 2.0, "peak_mb": 3.0, "workspace_mb": 1.0}
    result["candidates"][1] |= {"peak_mb": 12.0}
    product = rows_of(result)["product alone"]
    assert found["matmul float32"] == 5.0 / product["median_s"]  # it was faster than the ceiling found before
    harness.add_rates(result, {"matmul float32": 10.0, "copy": 80.0})
    mine = rows_of(result)["ours"]
    assert mine["tflops"] == 2.5e-12
    assert mine["of_matmul"] == 0.25
    assert mine["of_copy"] == 0.25
    metrics = result["metrics"]
    assert (metrics["of matmul"], metrics["peak MB"], metrics["workspace MB"]) == (0.25, 3.0, 1.0)
    harness.add_rates(result, {"matmul float32": 10.0, "copy": 40.0})
    assert mine["of_copy"] == mine["of_roofline"] == metrics["of roofline"] == 0.5
    assert metrics["peak vs reference"] == 0.25
    assert "rates" not in mine


def test_rates_of_what_a_call_makes() -> None:
    case = square_case()
    case.counts = {"steps": 6.0}
    result = run_case(case, QUICK, CpuClock(), {})
    result["candidates"][0] |= {"median_s": 2.0}
    result["candidates"][1] |= {"median_s": 12.0}
    harness.add_rates(result, {})
    assert [row["rates"] for row in result["candidates"]] == [{"steps/s": 3.0}, {"steps/s": 0.5}]
    assert result["metrics"]["steps/s"] == 3.0


def test_cpu_clock_repeats_what_is_short() -> None:
    clock, calls = CpuClock(), []
    assert clock.repeat(1.0) == 1
    assert clock.repeat(1e-4) == 20
    assert clock.seconds(lambda: calls.append(1), 7) > 0
    assert len(calls) == 7
    assert CpuClock(cold=True).repeat(1e-4) == 1


def test_cuda_clock_empties_the_cache_before_the_first_event() -> None:
    log: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("record")

        def synchronize(self) -> None:
            log.append("synchronize")

        def elapsed_time(self, end: object) -> float:
            return 1.5

    flush: Any = SimpleNamespace(zero_=lambda: log.append("flush"))
    clock = CudaClock(SimpleNamespace(Event=Event), flush)
    assert clock.seconds(lambda: log.append("call"), 1) == 1.5e-3
    assert log == ["flush"] * 4 + ["record", "call", "record", "synchronize"]
    assert clock.repeat(1e-6) == 1
    warm = CudaClock(SimpleNamespace(Event=Event), warm=True)
    log.clear()
    assert warm.seconds(lambda: log.append("call"), 2) == 0.75e-3
    assert log == ["call"] * 4 + ["record", "call", "call", "record", "synchronize"]
    assert warm.repeat(1e-3) == 2


def test_ceilings_are_of_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    spread: list[float] = []
    mm = torch.mm

    def noted(a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
        spread.extend((float(a.float().std()), float(b.float().std())))
        return mm(a, b, out=out)

    monkeypatch.setattr(torch, "mm", noted)
    found = clock.ceilings("cpu", {torch.float32, torch.bfloat16}, CpuClock(), quick=True)
    assert set(found) == {"matmul float32", "matmul bfloat16", "copy"}
    assert all(0.9 < value < 1.1 for value in spread)


def test_a_ceiling_is_a_median() -> None:
    class Clock(NotingClock):
        def seconds(self, call: Callable[[], object], repeat: int) -> float:
            super().seconds(call, repeat)
            return {1: 0.5, 2: 1.0, 3: 2.0, 4: 90.0}[len(self.order)]

    assert clock.median_seconds(Clock(), lambda: None, 3) == 2.0  # of 1, 2 and 90; the first says how often to repeat


def test_tensors_in() -> None:
    a, b = torch.ones(1), torch.ones(2)
    assert [len(t) for t in tensors_in([a, (b, [a])])] == [1, 2, 1]
    assert tensors_in(None) == []


def test_cpu_peak_counts_what_a_call_touches() -> None:
    def call() -> Tensor:
        torch.ones(10_000_000)
        return torch.ones(5_000_000)

    peak = cpu_peak(call)
    if peak is None:
        pytest.skip("this system does not tell the high-water mark of memory")
    # within 5 MB: other threads of the test process come and go
    assert peak["peak_mb"] == pytest.approx(40, abs=5)
    assert peak["workspace_mb"] == pytest.approx(20, abs=5)
    assert peak["resident_mb"] > 60 + peak["peak_mb"]  # torch alone is more


def test_options_survive_the_command_line() -> None:
    import argparse

    parser = argparse.ArgumentParser()
    harness_options.add_options(parser)
    for options in (
        Options(),
        Options(device="cuda", threads=3, cold=True, compile=False, memory=False, seconds=1.5, only="T=512"),
        Options(quick=True, compile=False, memory=False),
    ):
        assert harness_options.parsed_options(parser.parse_args(harness_options.option_flags(options))) == options
