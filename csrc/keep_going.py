"""Runs nvcc on one source; where it fails, the build goes on without that source's kernels.

    python keep_going.py CXX NVCC ARGUMENTS

CMake puts it before nvcc (ICL_KEEP_GOING). What nvcc printed is then in the object's name + .log, and in place of the
object comes one that lists the source among icl_fast._C.not_built(), with the first error.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

CSRC = Path(__file__).resolve().parent


def main(cxx: str, *command: str) -> int:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    sys.stderr.write(done.stdout)
    if done.returncode == 0 or "-c" not in command:
        return done.returncode
    source, target = Path(command[command.index("-c") + 1]), command[command.index("-o") + 1]
    log = Path(f"{target}.log").resolve()
    log.write_text(f"{' '.join(command)}\n{done.stdout}exit code {done.returncode}\n")
    why = f"{first_error(done.stdout, done.returncode)} (all of it: {os.path.relpath(log, CSRC.parent)})"
    print(f"not built: {source.stem}: {why}", file=sys.stderr)
    stub = f'#include "cuda/not_built.h"\nstatic const icl::NotBuilt not_built({quoted(source.stem)}, {quoted(why)});\n'
    options = ["-x", "c++", "-std=c++20", "-fPIC", "-fvisibility=hidden", f"-I{CSRC}", "-c", "-", "-o", target]
    return subprocess.run([cxx, *options], input=stub, text=True).returncode


def first_error(text: str, code: int) -> str:
    lines = [line.strip().replace(f"{CSRC.parent}/", "") for line in text.splitlines() if line.strip()]
    wrong = [line for line in lines if re.search(r"\b(error|fatal)\b", line, re.IGNORECASE)]
    return (wrong or lines[-1:] or [f"exit code {code}"])[0][:300]


def quoted(text: str) -> str:
    return json.dumps(text.encode("ascii", "replace").decode())


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
