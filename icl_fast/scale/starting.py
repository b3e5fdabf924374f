"""Ray as a command needs it: started here for as long as the command runs, or found where it runs already."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from icl_fast.errors import InputError
from icl_fast.scale.runner import Runner

LOST_AT_MOST = 20  # times that a task may lose its worker: then it is the task that kills them
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else it warns that it will be so
    "RAY_task_oom_retries": str(LOST_AT_MOST),  # else tasks that Ray ends for want of memory begin anew without end
    # In workers glibc would give large arrays back to the system after each use, to be mapped and cleared again
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
}
_REACHED_IN = 10.0  # seconds


@contextmanager
def ray_runner(address: str | None = None, workers: int | None = None) -> Iterator[Runner]:
    """A runner on Ray, which must be installed.

    Args:
        address: `HOST:PORT` of a running Ray, or `auto`, the one of this machine; None: Ray is started here and stopped
            at the end, whatever ends it. Where this process is connected to Ray already, that is taken.
        workers: of a Ray that is started here, one thread each; None: as many as there are cores.

    Ray runs whatever it is sent. The one that is started here takes work from this process alone, by a token (Ray's
    `RAY_AUTH_MODE=token`, since 2.52); for another one, that of the environment is taken, as Ray does.

    Raises:
        InputError: Ray is not installed, does not start, or there is none at `address`.
    """
    os.environ.update(_SETTINGS)
    if address is None and "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"  # which Ray reads when it is imported
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # else it writes one into the home folder
    try:
        import ray
    except ImportError:
        raise InputError("ray: is not installed; pip install 'icl_fast[ray]'") from None
    from icl_fast.scale.on_ray import RayRunner

    if ray.is_initialized():
        yield RayRunner(own=False)
        return
    own: dict[str, Any] = {"num_cpus": workers, "include_dashboard": False} if address is None else {}
    try:
        try:
            if address not in (None, "auto"):  # Ray would try for minutes
                host, _, port = address.rpartition(":")
                socket.create_connection((host, int(port)), _REACHED_IN).close()
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.CRITICAL, **own)
        except Exception as error:  # Ray has many for what it does not find, and for what refuses it
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            where = "did not start here" if address is None else f"at {address}: no connection"
            raise InputError(f"ray: {where} ({reason})") from error
        yield RayRunner(own=address is None)
    finally:
        ray.shutdown()
