"""What a program finds around it: streams and variables that would trip a command are put right before it begins."""

from __future__ import annotations

import io
import os
import re
import signal
import sys
import warnings
from types import FrameType

from icl_fast.errors import InputError

_RETRY = 0.02  # seconds
_ALARM: int | None = getattr(signal, "SIGALRM", None)  # not on Windows
_received: list[int] = []  # signals that are to end the process
_STREAMS = {"stdin": "r", "stdout": "w", "stderr": "w"}


def settle() -> None:
    """Make streams and variables usable; also those that a caller has put in their places."""
    for name, mode in _STREAMS.items():
        if getattr(sys, name) is None:  # closed: else the next file that is opened takes its number, and its output
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))
    # a sign that the terminal does not have must stop nothing; in messages it is spelled out, in tables of its width
    for stream, errors in (sys.stdout, "replace"), (sys.stderr, "backslashreplace"):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)
    for name in ("COLUMNS", "LINES"):
        if not re.fullmatch("[1-9][0-9]{0,3}", os.environ.get(name, "1")):
            del os.environ[name]  # rich takes any for a size; without, it asks the terminal
    if os.environ.get("HOME") == "":
        del os.environ["HOME"]  # else ~ means the root folder


def own_process() -> None:
    """What only a process that does nothing else may change.

    SIGTERM ends it as Ctrl-C does, no warning is an error, and threads that wait for each other leave the core soon.
    """
    for number in (signal.SIGINT, signal.SIGTERM, _ALARM):
        # ignored it is in the background of some shells
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)
    if any(action == "error" for action, *_ in warnings.filters):
        warnings.simplefilter("default")  # packages warn of what nobody can put right here
    if "OMP_WAIT_POLICY" not in os.environ:
        # some 20 microseconds; libgomp's own 300,000 last longer than the time slice of another program on the core
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def require_folder() -> None:
    """Raises InputError where the working directory was removed: torch cannot be loaded then."""
    try:
        os.getcwd()
    except OSError:
        raise InputError("the working directory is not there any more; change to another one") from None


def flush() -> None:
    """Write out what the streams still hold; what nobody can take any more is dropped without a word."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _end(signum: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, but not into an import: that would leave its lock taken, or a module half there."""
    retried = signum == _ALARM
    if not retried:
        _received.append(signum)
    if _ALARM is not None and (retried or len(_received) == 1) and _importing(frame):
        signal.setitimer(signal.ITIMER_REAL, _RETRY)
        return
    raise KeyboardInterrupt("terminated" if _received[0] == signal.SIGTERM else "")


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_globals.get("__name__") == "importlib._bootstrap":
            return True
        frame = frame.f_back
    return False
