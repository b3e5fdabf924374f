"""Does the test-suite notice a missing barrier? Removes every synchronising call of csrc/cuda in turn and runs it.

    ICL_FAST_EMU=1 python setup.py build_ext --inplace    # once: the tests need icl_fast._C
    python csrc/emu/mutate.py [--files frozen_attention.cu] [--json table.json] [-- PYTEST ARGUMENTS]

Works on a copy of the repository, in which only the module _emu is built, and of it only what a change touches. The
tests of a kernel are those of its op, of a header all op tests; "-- ..." names others. Exits with 1 if a call can be
removed unnoticed and unnoticed.txt beside this file does not say why that is right.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

NAMES = r"""__sync\w+ __threadfence\w* cp_async_commit\w* cp_async_wait\w* named_barrier_\w+ mbarrier_\w+
    wgmma_fence\w* wgmma_commit\w* wgmma_wait\w* fence_\w+ (?:\w+(?:\.|->))+(?:init|acquire|release|arrive|wait)"""
# a whole statement: the name, maybe a template argument, and no namespace but icl before it
CALL = re.compile(rf"(?<![\w:.>])(?:icl::)?(?:{'|'.join(NAMES.split())})\s*(?:<[^;(){{}}]*>)?\s*\(")
# what may stand between the end of the statement before and a call that is a statement
BEFORE = re.compile(r"(?:^|[;{})]|\belse\b|\bdo\b|:)\s*$")


@dataclass(frozen=True)
class Mutant:
    file: str  # below csrc/cuda
    line: int
    call: str  # the source text
    number: int  # among the calls with the same text in the file, from 1
    start: int
    end: int

    def applied(self, text: str) -> str:
        """The source without the call; lines stay where they are."""
        return text[: self.start] + "\n" * text.count("\n", self.start, self.end) + ";" + text[self.end :]


@dataclass(frozen=True)
class Outcome:
    file: str
    line: int
    call: str
    number: int
    noticed: bool
    by: str
    seconds: float


def visible(text: str) -> str:
    """The same length, with comments and preprocessor lines blank."""

    def blank(found: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", found[0])

    text = re.sub(r"//[^\n]*|/\*.*?\*/", blank, text, flags=re.S)
    return re.sub(r"^[ \t]*#(?:\\\n|[^\n])*", blank, text, flags=re.M)


def mutants(file: str, text: str) -> Iterator[Mutant]:
    code, seen = visible(text), Counter[str]()
    for found in CALL.finditer(code):
        depth, end = 1, found.end()
        while depth and end < len(code):
            depth += {"(": 1, ")": -1}.get(code[end], 0)
            end += 1
        rest = re.compile(r"\s*;").match(code, end)
        if depth or not rest or not BEFORE.search(code[: found.start()]):
            continue  # a declaration, a definition, or part of an expression
        call = " ".join(text[found.start() : end].split())
        seen[call] += 1
        line = text.count("\n", 0, found.start()) + 1
        yield Mutant(file, line, call, seen[call], found.start(), rest.end())


def allowed(path: Path) -> dict[tuple[str, str, int], str]:
    """Lines `file | call | number | reason`."""
    reasons = {}
    for line in path.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            file, call, number, reason = (part.strip() for part in line.split("|", 3))
            if not reason:
                raise SystemExit(f"{path}: no reason: {line}")
            reasons[file, call, int(number)] = reason
    return reasons


def run(command: list[str], folder: Path, limit: float | None = None) -> tuple[int | None, str]:
    """Exit status (None: past the limit) and output. The process and its children do not outlive the call."""
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(
        command, cwd=folder, env=environment, text=True, errors="replace",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return None, process.communicate()[0]
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, output


def verdict(status: int | None, output: str) -> tuple[bool, str]:
    """Noticed or not, and by what."""
    if status is None:
        return True, "the time limit"
    if status == 0:
        return False, ""
    if status < 0 or status > 128:
        return True, f"a crash, status {status}"
    if status != 1:
        raise SystemExit(f"pytest could not run, status {status}:\n{output[-3000:]}")
    test = re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.M)
    why = re.search(r"^E\s+(?:\w+(?:\.\w+)*: )?(.+)", output, re.M)
    return True, f"{test[1].split('::', 1)[-1] if test else 'pytest'}: {why[1][:110] if why else 'failed'}"


class Copy:
    """The repository in a scratch folder, with a build of _emu alone."""

    def __init__(self, root: Path, scratch: Path, jobs: int) -> None:
        self.folder, self.build, self.jobs = scratch, scratch / "build", jobs
        ignore = shutil.ignore_patterns("__pycache__", "*.so", "build")
        for name in ("csrc", "icl_fast", "python_tests"):
            shutil.copytree(root / name, scratch / name, ignore=ignore)
        shutil.copy2(root / "pyproject.toml", scratch)
        for module in (root / "icl_fast").glob("_C*.so"):
            (scratch / "icl_fast" / module.name).symlink_to(module)
        for lists in scratch.glob("csrc/**/CMakeLists.txt"):  # a mutant may leave a variable unused
            lists.write_text(lists.read_text().replace("-Werror", "-Wno-error"))
        import pybind11

        nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
        self._must(
            ["cmake", "-G", "Ninja", "-S", "csrc", "-B", "build", "--log-level=NOTICE", "-DICL_CUDA=ON", "-DICL_EMU=ON",
             f"-DCMAKE_CUDA_COMPILER={nvcc}", f"-DPython_EXECUTABLE={sys.executable}",
             f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
        )  # fmt: skip
        name = "_emu" + sysconfig.get_config_var("EXT_SUFFIX")
        (scratch / "icl_fast" / name).symlink_to(self.build / "emu" / name)

    def _must(self, command: list[str]) -> None:
        command[0] = shutil.which(command[0], path=str(Path(sys.executable).parent)) or command[0]
        status, output = run(command, self.folder)
        if status:
            raise SystemExit(f"{' '.join(command)}: status {status}\n{output[-4000:]}")

    def compile(self) -> None:
        self._must(["cmake", "--build", "build", "--target", "_emu", "--", "-j", str(self.jobs)])

    def test(self, arguments: list[str], limit: float | None) -> tuple[int | None, str]:
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=short", "-p", "no:cacheprovider", *arguments]
        return run(command, self.folder, limit)


def tests_of(file: str, folder: Path) -> list[str]:
    """Of an op's source its tests; of anything else all op tests; with the implementations that are emulated."""
    every = sorted(folder.glob("python_tests/ops/test_*.py"))
    own = [path for path in every if file.startswith(path.stem.removeprefix("test_"))]
    return [str(p.relative_to(folder)) for p in own or every] + ["-k", "emu and not sm_80 and not sm_90"]  # race mode


def check(copy: Copy, files: list[Path], arguments: list[str]) -> Iterator[Outcome]:
    baseline: dict[tuple[str, ...], float] = {}
    copy.compile()
    for path in files:
        original = path.read_text()
        name = path.relative_to(copy.folder / "csrc" / "cuda").as_posix()
        tests = arguments or tests_of(name, copy.folder)
        for mutant in mutants(name, original):
            if tuple(tests) not in baseline:
                start = time.monotonic()
                status, output = copy.test(tests, None)
                if status:
                    raise SystemExit(f"the tests fail with nothing removed:\n{output[-4000:]}")
                baseline[tuple(tests)] = time.monotonic() - start
            start = time.monotonic()
            path.write_text(mutant.applied(original))
            copy.compile()
            noticed, by = verdict(*copy.test(tests, 60 + 5 * baseline[tuple(tests)]))
            seconds = round(time.monotonic() - start, 1)
            yield Outcome(name, mutant.line, mutant.call, mutant.number, noticed, by, seconds)
            path.write_text(original)
        copy.compile()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(__file__).resolve().parents[2]
    parser.add_argument("--files", nargs="+", default=["*.h", "*.cu"], help="patterns below csrc/cuda")
    parser.add_argument("--json", type=Path, help="also write the table here")
    parser.add_argument("--allow", type=Path, default=Path(__file__).with_name("unnoticed.txt"))
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time")
    parser.add_argument("pytest", nargs="*", help="pytest arguments in place of the op's tests")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that what runs is stopped and the copy deleted

    reasons = allowed(options.allow)
    outcomes, unexplained = [], 0
    with tempfile.TemporaryDirectory(prefix="icl-mutate-") as scratch:
        copy = Copy(root, Path(scratch), options.jobs)
        files = sorted({path for p in options.files for path in (copy.folder / "csrc" / "cuda").glob(p)})
        for outcome in check(copy, files, options.pytest):
            outcomes.append(outcome)
            reason = reasons.get((outcome.file, outcome.call, outcome.number))
            if outcome.noticed:
                text = f"noticed by {outcome.by}"
            else:
                text = f"NOT noticed; {reason or 'and nothing says why that is right'}"
                unexplained += not reason
            print(f"{outcome.file}:{outcome.line}: {outcome.call}: {text} ({outcome.seconds} s)", flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1) + "\n")
    done = {outcome.file for outcome in outcomes}
    seen = {(o.file, o.call, o.number) for o in outcomes if not o.noticed}
    stale = [key for key in reasons if key[0] in done and key not in seen]
    for file, call, number in stale:
        print(f"{options.allow.name}: {file}: {call} ({number}) is noticed, or gone: delete the line")
    noticed = sum(outcome.noticed for outcome in outcomes)
    print(f"{len(outcomes)} calls removed in turn, {noticed} noticed, {unexplained} unnoticed with no reason given")
    return int(bool(unexplained or stale))


if __name__ == "__main__":
    sys.exit(main())
