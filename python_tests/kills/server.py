"""Runs `icl-fast` commands in forks of one process that has imported everything, and stops them at a chosen moment.

A line of JSON on standard input is a command, and a line of JSON on standard output what became of it:

- `folder`, `arguments`: where to run what;
- `kind`: what happens to it: `kill` (-9), `interrupt` (Ctrl-C), `error` (with `errno`), `halt` (it waits for `go_on`);
- `at`: before which of the operations that change something below the folder, from 0; or `seconds`: when;
- `stays`: the error comes at every operation from then on, but for those that make room;
- `limits`: of the process, such as RLIMIT_FSIZE.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import mmap
import os
import resource
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import IO, Any

_LONGEST = 300.0  # seconds, after which a command hangs
_CHANGING = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.symlink"}
_FREEING = {"os.remove", "os.rmdir", "os.truncate"}


@dataclass
class _Child:
    process: int
    counter: mmap.mmap
    output: list[IO[bytes]]
    started: float

    def answer(self) -> dict[str, Any]:
        """What became of it, once it has ended or halted."""
        limit = threading.Timer(_LONGEST, os.kill, (self.process, signal.SIGABRT))
        limit.start()
        _, status = os.waitpid(self.process, os.WUNTRACED)
        limit.cancel()
        texts = []
        for file in self.output:
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
        return {
            "code": None if os.WIFSTOPPED(status) else os.waitstatus_to_exitcode(status),
            "out": texts[0],
            "err": texts[1],
            "operations": int.from_bytes(self.counter[:8], "little"),
            "seconds": time.monotonic() - self.started,
        }


def serve() -> None:
    """Answer commands until there are no more."""
    _import()
    print(json.dumps("ready"), flush=True)
    halted: _Child | None = None
    for line in sys.stdin:
        task = json.loads(line)
        if "go_on" in task:
            assert halted is not None
            child, halted = halted, None
            os.kill(child.process, signal.SIGCONT)
        else:
            output: list[IO[bytes]] = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115
            child = _Child(0, mmap.mmap(-1, 8), output, time.monotonic())
            child.process = os.fork()
            if child.process == 0:
                return _run(task, child)
            if "seconds" in task:
                time.sleep(task["seconds"])
                os.kill(child.process, signal.SIGKILL if task["kind"] == "kill" else signal.SIGINT)
        answer = child.answer()
        if answer["code"] is None:
            halted = child
        print(json.dumps(answer), flush=True)
    if halted is not None:
        os.kill(halted.process, signal.SIGKILL)


def _import() -> None:
    from icl_fast.cli.main import COMMANDS

    modules = [command.target.partition(":")[0] for command in COMMANDS.values()]
    ours = "studies.demo studies.collect studies.toy studies.pca training measure report.write"
    modules += [f"icl_fast.{name}" for name in (*ours.split(), "report.draw.exemplar_curves")]
    modules += ["scipy.linalg", "safetensors.torch", "matplotlib.backends.backend_svg", "zarr.codecs"]
    for module in modules:
        import_module(module)
    import torch

    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # a fork need not go through all that was imported, least of all when it ends


def _run(task: dict[str, Any], child: _Child) -> None:
    """The command, in the fork."""
    for descriptor, file in enumerate(child.output, start=1):
        os.dup2(file.fileno(), descriptor)
    sys.stdin = os.fdopen(os.open(os.devnull, os.O_RDONLY))
    os.chdir(task["folder"])
    faulthandler.enable()  # says where a command hung
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name, limit in task.get("limits", {}).items():
        resource.setrlimit(getattr(resource, name), (limit, limit))
    watched, at, stays = task["folder"] + os.sep, task.get("at"), task.get("stays", False)
    fault = _fault(task.get("kind", ""), task.get("errno", 0))
    inside, lock = threading.local(), threading.Lock()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if getattr(inside, "hook", False) or not _changes(event, arguments, watched):
            return
        with lock:
            count = int.from_bytes(child.counter[:8], "little")
            child.counter[:8] = (count + 1).to_bytes(8, "little")
        if at is not None and (count == at or (stays and count > at and event not in _FREEING)):
            inside.hook = True
            try:
                fault()
            finally:
                inside.hook = False

    sys.addaudithook(hook)
    from icl_fast.cli.main import main

    sys.argv = ["icl-fast", *task["arguments"]]
    main()


def _changes(event: str, arguments: tuple[Any, ...], watched: str) -> bool:
    """Whether an audited operation is about to change something below a folder."""
    if event == "open":
        flags = arguments[2]
        if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return False
    elif event not in _CHANGING:
        return False
    if isinstance(arguments[0], int):
        return event == "os.truncate"
    if event in ("os.remove", "os.rmdir") and arguments[-1] != -1:
        return True  # relative to a folder that is open: rmtree, which only we use
    return os.path.abspath(os.fsdecode(arguments[0])).startswith(watched)


def _fault(kind: str, number: int) -> Callable[[], None]:
    def error() -> None:
        raise OSError(number, os.strerror(number))

    return {
        "": lambda: None,
        "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "halt": lambda: os.kill(os.getpid(), signal.SIGSTOP),
        "interrupt": lambda: signal.raise_signal(signal.SIGINT),
        "error": error,
    }[kind]


if __name__ == "__main__":
    serve()
