"""Runs `icl-fast` commands in forks of one process that has imported everything, and stops them at a chosen moment.

A line of JSON on standard input is a command, and a line of JSON on standard output what became of it. A moment is a
time, or one of the operations that change the file system: writes below the folder in ICL_FAST_WATCHED, counted before
they happen by an audit hook.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

_CHANGING = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.symlink"}
_FREEING = {"os.remove", "os.rmdir", "os.truncate"}  # what a full disk still allows


def _preload() -> None:
    from icl_fast.cli.main import COMMANDS

    modules = [command.target.partition(":")[0] for command in COMMANDS.values()]
    modules += ["studies.demo", "studies.collect", "studies.toy", "studies.pca", "studies.exemplar_heads"]
    modules += ["training", "measure", "report.write", "data.glyphs", "report.draw.exemplar_curves"]
    for module in modules:
        import_module(module if module.startswith("icl_fast") else f"icl_fast.{module}")
    for module in ("scipy.linalg", "safetensors.torch", "matplotlib.backends.backend_svg", "zarr", "zarr.codecs"):
        import_module(module)
    import torch

    torch.set_num_threads(1)


def _changes(event: str, arguments: tuple[Any, ...], watched: str) -> bool:
    """Whether an audited operation is about to change something below a folder."""
    if event == "open":
        path, _, flags = arguments
        if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return False
    elif event in _CHANGING:
        path = arguments[0]
    else:
        return False
    if isinstance(path, int):
        return False
    if event in ("os.remove", "os.rmdir") and arguments[-1] != -1:
        return True  # relative to a folder that is open: rmtree, which only we use
    return os.path.abspath(os.fsdecode(path)).startswith(watched)


def _fault(kind: str, number: int) -> Callable[[], None]:
    def raised() -> None:
        raise OSError(number, os.strerror(number))

    return {
        "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "interrupt": lambda: signal.raise_signal(signal.SIGINT),
        "error": raised,
    }[kind]


def _child(task: dict[str, Any], counter: mmap.mmap, output: list[Any]) -> None:
    for descriptor, file in enumerate(output, start=1):
        os.dup2(file.fileno(), descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdin = os.fdopen(0, closefd=False)
    os.chdir(task["folder"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    watched, at = task["folder"] + os.sep, task.get("at")
    fault = _fault(task.get("kind", "kill"), task.get("errno", 0))
    for variable, value in task.get("environment", {}).items():
        os.environ[variable] = value
    import resource

    for name, limit in task.get("limits", {}).items():
        resource.setrlimit(getattr(resource, name), (limit, limit))
    stays, lock = task.get("stays", False), threading.Lock()
    inside = threading.local()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if getattr(inside, "now", False):
            return
        inside.now = True
        try:
            if _changes(event, arguments, watched):
                with lock:
                    count = int.from_bytes(counter[:8], "little")
                    counter[:8] = (count + 1).to_bytes(8, "little")
                if at is not None and (count == at or (stays and count > at and event not in _FREEING)):
                    fault()
        finally:
            inside.now = False

    sys.addaudithook(hook)
    from icl_fast.cli.main import main

    sys.argv = ["icl-fast", *task["arguments"]]
    main()


def serve() -> None:
    _preload()
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        counter = mmap.mmap(-1, 8)
        output = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115 (the child has it too)
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            return _child(task, counter, output)
        if task.get("seconds") is not None:
            time.sleep(task["seconds"])
            os.kill(child, signal.SIGKILL if task.get("kind", "kill") == "kill" else signal.SIGINT)
        _, status = os.waitpid(child, 0)
        texts = []
        for file in output:
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
        answer = {
            "code": os.waitstatus_to_exitcode(status),
            "out": texts[0],
            "err": texts[1],
            "operations": int.from_bytes(counter[:8], "little"),
            "seconds": time.monotonic() - started,
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
