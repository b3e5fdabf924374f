"""What others are told while a model trains: callbacks, and those that write for TensorBoard and Weights & Biases."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from icl_fast.arguments import listed, shown
from icl_fast.errors import InputError
from icl_fast.runs import Run


class Callback:
    """Told what happens in a training; a subclass has the methods that it cares for.

        class Printing(icl_fast.training.Callback):
            def on_log(self, step, values):
                print(step, values["loss"])

        icl_fast.train(config, "runs/short", callbacks=[Printing()])

    All of them are called in the process that writes the run folder, of several ranks the first, after what they tell
    of is on disk. What one raises ends the training as any other error does: the folder holds the state of the last
    save, from which `resume=True` goes on.
    """

    def on_start(self, run: Run) -> None:
        """Training begins, or goes on from a saved state."""

    def on_log(self, step: int, values: dict[str, Any]) -> None:
        """A line of log.jsonl was written: what it holds besides the step (docs/design.md, "Run folders")."""

    def on_snapshot(self, step: int, path: Path) -> None:
        """A snapshot was written, the one of step 0 included."""

    def on_end(self, run: Run) -> None:
        """Training is finished, or was stopped by Ctrl-C after its state was saved; not called after an error."""


NOBODY = Callback()


class TensorBoardCallback(Callback):
    """Writes what is logged for TensorBoard, in a folder of the run's name in `folder`; needs the package tensorboard.

    Raises:
        InputError: it cannot be imported.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._writer_class = _imported("torch.utils.tensorboard", "tensorboard").SummaryWriter

    def on_start(self, run: Run) -> None:
        lines = run.read_log()
        # what was written after the state that a resumed run goes on from is not shown twice
        after = {"purge_step": lines[-1]["step"] + 1} if lines else {}
        self._writer = self._writer_class(str(self.folder / run.path.resolve().name), **after)

    def on_log(self, step: int, values: dict[str, Any]) -> None:
        for name, value in scalars(values):
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def on_end(self, run: Run) -> None:
        self._writer.close()


class WandbCallback(Callback):
    """Logs to Weights & Biases what is logged, with the run's config; needs the package wandb.

    Args:
        project: the project's name there.
        mode: `online`, or `offline`: into the folder wandb/, to be sent by `wandb sync`; None: as WANDB_MODE says.
        options: others of `wandb.init`.

    Raises:
        InputError: it cannot be imported; when training begins, it cannot log there.
    """

    def __init__(self, project: str, *, mode: str | None = None, **options: Any) -> None:
        self._wandb = _imported("wandb", "wandb")
        self.options = {"project": project, "mode": mode, **options}

    def on_start(self, run: Run) -> None:
        described = {"name": run.path.resolve().name, "config": run.config.model_dump(mode="json")}
        try:
            self._run = self._wandb.init(**described | self.options)
        except self._wandb.Error as error:
            raise InputError(f"wandb: {error}; or set WANDB_MODE=offline") from error

    def on_log(self, step: int, values: dict[str, Any]) -> None:
        self._run.log(dict(scalars(values)), step=step)

    def on_end(self, run: Run) -> None:
        self._run.finish()


def scalars(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a line of log.jsonl by names such as `loss`, of several members `loss/0`, `loss/1`."""
    if isinstance(value, list) and len(value) == 1:
        yield from scalars(value[0], name)
    elif isinstance(value, (list, dict)):
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from scalars(one, f"{name}/{key}" if name else str(key))
    else:
        yield name, float(value)


class AllOf(Callback):
    """Tells several.

    Raises:
        InputError: something that is no callback is among them.
    """

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.callbacks = listed("callbacks", callbacks)
        if other := [one for one in self.callbacks if not isinstance(one, Callback)]:
            raise InputError(f"callbacks: must be instances of icl_fast.training.Callback, got {shown(other[0])}")

    def on_start(self, run: Run) -> None:
        for callback in self.callbacks:
            callback.on_start(run)

    def on_log(self, step: int, values: dict[str, Any]) -> None:
        for callback in self.callbacks:
            callback.on_log(step, values)

    def on_snapshot(self, step: int, path: Path) -> None:
        for callback in self.callbacks:
            callback.on_snapshot(step, path)

    def on_end(self, run: Run) -> None:
        for callback in self.callbacks:
            callback.on_end(run)


def log(run: Run, line: dict[str, Any], told: Callback) -> None:
    """Write a line of log.jsonl, and tell of it."""
    run.append_log(line)
    told.on_log(line["step"], {name: value for name, value in line.items() if name != "step"})


def _imported(module: str, package: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise InputError(f"{package}: cannot be imported ({error}); pip install 'icl_fast[{package}]'") from None
