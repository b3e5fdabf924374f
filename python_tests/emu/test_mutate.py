"""mutate.py: which calls it finds, what is left when one is removed, and how it reads pytest."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

PATH = Path(__file__).parents[2] / "csrc" / "emu" / "mutate.py"


@pytest.fixture(scope="module")
def mutate() -> Any:
    spec = importlib.util.spec_from_file_location("mutate", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutate"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["mutate"]


SOURCE = """
__device__ void cp_async_wait(int keep) {
  other::cp_async_wait(keep);  // of another namespace
}
#ifdef WAITS
#define WAIT \\
  cp_async_wait(1);
#endif
void mbarrier_wait(uint64_t* bar, int parity);
__global__ void k() {
  __syncthreads();  // not __syncwarp();
  if (x) __syncwarp(mask(1));
  for (;;) {
    cp_async_wait<kStages - 1>();
    icl::mbarrier_wait(&full[s],
                       parity);
    if (y)
      wgmma_fence();
    else
      __syncthreads();
  }
  const int any = __syncthreads_or(1);
  case 1: named_barrier_sync(1, 64);
  pipeline.full->wait(at);
  return mbarrier_parity(x);
}
"""
FOUND = [
    (11, "__syncthreads()", 1), (12, "__syncwarp(mask(1))", 1), (14, "cp_async_wait<kStages - 1>()", 1),
    (15, "icl::mbarrier_wait(&full[s], parity)", 1), (18, "wgmma_fence()", 1), (20, "__syncthreads()", 2),
    (23, "named_barrier_sync(1, 64)", 1), (24, "pipeline.full->wait(at)", 1),
]  # fmt: skip


def test_calls_that_are_found(mutate: Any) -> None:
    assert [(m.line, m.call, m.number) for m in mutate.mutants("k.cu", SOURCE)] == FOUND


def test_a_call_is_removed_and_lines_stay(mutate: Any) -> None:
    for mutant in mutate.mutants("k.cu", SOURCE):
        lines, before = mutant.applied(SOURCE).splitlines(), SOURCE.splitlines()
        assert len(lines) == len(before)
        changed = [i for i, (a, b) in enumerate(zip(lines, before, strict=True), 1) if a != b]
        assert changed[0] == mutant.line
        assert len(changed) == 1 + ("\n" in SOURCE[mutant.start : mutant.end].strip())
        rest = sorted((m.call for m in mutate.mutants("k.cu", mutant.applied(SOURCE))), key=str)
        assert rest == sorted(call for line, call, _ in FOUND if line != mutant.line)


def test_the_zoo_is_full_of_them(mutate: Any) -> None:
    text = "".join(path.read_text() for path in Path(__file__).parent.glob("zoo*.cu")).replace("emu::", "")
    calls = {mutant.call.split("(")[0].split("<")[0] for mutant in mutate.mutants("zoo.cu", text)}
    assert calls >= {
        "__syncthreads", "__syncwarp", "cp_async_commit", "cp_async_wait", "named_barrier_sync", "named_barrier_arrive",
        "mbarrier_init", "mbarrier_arrive", "mbarrier_arrive_expect_tx", "mbarrier_wait", "wgmma_fence",
        "wgmma_commit", "wgmma_wait", "fence_proxy_async", "fence_mbarrier_init",
    }  # fmt: skip


def test_a_call_inside_a_comment_or_a_definition_is_none(mutate: Any) -> None:
    text = "/* __syncthreads(); */ void __syncthreads() {}\n#define S \\\n __syncwarp();"
    assert list(mutate.mutants("k.cu", text)) == []


@pytest.mark.parametrize(
    ("status", "output", "noticed", "by"),
    [
        (0, "3 passed", False, ""),
        (None, "", True, "the time limit"),
        (-11, "", True, "a crash, status -11"),
        (1, "E   RuntimeError: race: write\nFAILED a/t.py::test_x[emu] - R", True, "test_x[emu]: race: write"),
    ],
)
def test_what_counts_as_noticed(mutate: Any, status: int | None, output: str, noticed: bool, by: str) -> None:
    assert mutate.verdict(status, output) == (noticed, by)


def test_tests_that_do_not_run_are_no_evidence(mutate: Any) -> None:
    with pytest.raises(SystemExit, match="could not run"):
        mutate.verdict(4, "no such file")


def test_reasons(mutate: Any, tmp_path: Path) -> None:
    path = tmp_path / "unnoticed.txt"
    path.write_text("# comment\n\na.cu | __syncthreads() | 2 | because | really\n")
    assert mutate.allowed(path) == {("a.cu", "__syncthreads()", 2): "because | really"}
    path.write_text("a.cu | __syncthreads() | 2 |\n")
    with pytest.raises(SystemExit, match="no reason"):
        mutate.allowed(path)


def test_an_op_has_its_own_tests_and_a_header_all(mutate: Any) -> None:
    own = mutate.tests_of("smeared_attention_bwd.cu", PATH.parents[2])
    assert own == ["python_tests/ops/test_smeared_attention.py", "-k", "emu and not sm_80 and not sm_90"]
    assert len(mutate.tests_of("tile.h", PATH.parents[2])) > 4
