"""Tasks on Ray, which places them, moves their values, starts lost ones again and replaces workers.

Values travel through Ray's object store: they reach a node once, however many tasks there read them, and need no file
system that nodes share. A value is put there as bytes, which the workers of a node map and do not copy; each of them
unpickles a value once for all its tasks in a row.

What is one task to Ray may be several of ours, of one value: each costs this process and its worker some milliseconds,
and the worker is idle meanwhile.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import RayError, RayTaskError

from icl_fast.errors import InputError
from icl_fast.memory import in_units
from icl_fast.scale.runner import Key, Needs, Result, Runner, Value
from icl_fast.scale.starting import LOST_AT_MOST

PROGRAM_BYTES = 1 << 30  # of a worker: Python, torch and what they load
# bytes: to Ray, tasks that need nearly the same are then of one kind, which a worker goes on with
ROUNDED_TO = 64 << 20
MOST_A_GPU = 4  # tasks: each has a context of CUDA of its own
COUNTED_EVERY = 2.0  # seconds: Ray is asked which nodes there are
# seconds after which a worker gives back what it has not begun: more is not lost with it, beside the task it is at
TOGETHER = 2.0

_Task = tuple[Callable[[Sequence[Any]], Any], Sequence[Any]]  # what begins keys of a value, and which


class RayRunner(Runner):
    """Tasks on the Ray that this process is connected to.

    Args:
        own: whether it was started for this process: then what its nodes have is all that there will be.
    """

    def __init__(self, *, own: bool) -> None:
        self._own = own
        self._takes: dict[str, float] = {"CPU": 1}  # what a task takes of a node
        self._counted, self._workers = -COUNTED_EVERY, 0

    @property
    def workers(self) -> int:
        if (now := time.monotonic()) - self._counted >= COUNTED_EVERY:
            self._counted, self._workers = now, sum(self._at(node["Resources"]) for node in _nodes())
        return self._workers

    def _at(self, has: Mapping[str, float]) -> int:
        """How many tasks a node can do at a time."""
        return min(int(has.get(name, 0) / takes) for name, takes in self._takes.items())

    def run(
        self,
        compute: Callable[[Value, Key], Result],
        work: Iterable[tuple[Value, Sequence[Key]]],
        needs: Needs,
    ) -> Iterator[tuple[Key, Result]]:
        tasks, left, pending = self._tasks(compute, work, needs), deque[_Task](), dict[Any, _Task]()
        try:
            while True:
                # so many that no worker waits for this process, and few values in the store
                while len(pending) < 2 * self.workers + 2 and (task := left.popleft() if left else next(tasks, None)):
                    begin, keys = task
                    pending[begin(keys)] = task
                if not pending:
                    return
                ended, _ = ray.wait([*pending])
                begin, keys = pending.pop(ended[0])
                results = _got(ended[0], keys)
                # what takes so long is done one by one, so that others can have it
                left.extend((begin, [key]) for key in keys[len(results) :])
                yield from zip(keys, results, strict=False)
        finally:
            for result in pending if ray.is_initialized() else ():
                ray.cancel(result, force=True)

    def _tasks(
        self, compute: Callable[[Any, Any], Any], work: Iterable[tuple[Any, Sequence[Any]]], needs: Needs
    ) -> Iterator[_Task]:
        """What is begun together: the more of a value is left the more, so that its last ones keep all workers busy."""
        shared, do = _Put(compute), ray.remote(_do)
        for value, keys in work:
            if not keys:
                continue
            put = _Put(value)
            options = self._options(needs, shared.bytes + 2 * put.bytes)  # a value is also converted
            begin = partial(
                do.options(**options).remote, needs.threads, TOGETHER, shared.id, shared.ref, put.id, put.ref
            )
            begun = 0
            while begun < len(keys):
                count = -(-(len(keys) - begun) // (2 * max(self.workers, 1)))
                yield begin, keys[begun : begun + count]
                begun += count

    def _options(self, needs: Needs, values: int) -> dict[str, Any]:
        """What Ray is told of a task."""
        memory = -(-(PROGRAM_BYTES + needs.memory + values) // ROUNDED_TO) * ROUNDED_TO
        options: dict[str, Any] = {"num_cpus": needs.threads, "memory": memory, "max_retries": LOST_AT_MOST}
        if needs.device == "cuda":
            whole = torch.cuda.get_device_properties(0).total_memory
            options["num_gpus"] = min(1.0, max(1 / MOST_A_GPU, (needs.memory + values) / whole))
        self._takes = {"CPU": needs.threads, "memory": memory, "GPU": options.get("num_gpus", 0)}
        self._takes = {name: takes for name, takes in self._takes.items() if takes}
        if self._own and not any(self._at(node["Resources"]) for node in _nodes()):
            raise InputError(f"ray: a task needs {in_units(memory)}, which no worker has; ask for less memory")
        return options


class _Put:
    """A value in the object store."""

    def __init__(self, value: Any) -> None:
        packed = np.frombuffer(ray.cloudpickle.dumps(value), np.uint8)
        self.ref, self.bytes = ray.put(packed), packed.nbytes
        self.id = self.ref.hex()


_held: dict[str, tuple[str, Any]] = {}  # in a worker: what it unpickled last


def _do(
    threads: int,
    together: float,
    shared_id: str,
    shared: np.ndarray,
    value_id: str,
    value: np.ndarray,
    keys: Sequence[Any],
) -> list[Any]:
    """A task, in a worker: the results of the first keys, as many as there is time for, and of one at least."""
    torch.set_num_threads(threads)
    compute, value = _unpacked("shared", shared_id, shared), _unpacked("value", value_id, value)
    end, results = time.monotonic() + together, list[Any]()
    for key in keys:
        results.append(compute(value, key))
        if time.monotonic() >= end:
            break
    return results


def _unpacked(name: str, identity: str, packed: np.ndarray) -> Any:
    if name not in _held or _held[name][0] != identity:
        _held.pop(name, None)  # before the next one takes memory
        _held[name] = identity, ray.cloudpickle.loads(packed.data)
    return _held[name][1]


def _got(task: Any, keys: Sequence[Any]) -> list[Any]:
    """The results of a task that has ended.

    Raises:
        InputError: what it was given cannot be right, or its workers were lost again and again.
        Exception: another error that it raised.
    """
    try:
        results: list[Any] = ray.get(task)
        return results
    except RayTaskError as error:
        raise error.cause from error
    except RayError as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        named = f"task{'s' * (len(keys) > 1)} {', '.join(map(str, keys))}"
        tried = f"it was tried {LOST_AT_MOST + 1} times and lost its worker each time"
        raise InputError(f"ray: {named} cannot be done, {tried} ({reason}); see Ray's logs for why") from error


def _nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]
