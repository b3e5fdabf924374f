"""The training loop: snapshots on schedule, a state to resume from, and the same bits after a resume on CPU."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from icl_fast.data import load_text
from icl_fast.data.positions import icl_positions
from icl_fast.errors import InputError
from icl_fast.models import Transformer, TransformerConfig
from icl_fast.ops import linear_cross_entropy
from icl_fast.runs.devices import resolve_device
from icl_fast.runs.text_config import RunConfig, differing_keys
from icl_fast.runs.text_run import RunFolder
from icl_fast.training.interrupt import interruptible
from icl_fast.training.schedules import learning_rate, snapshot_steps, weight_decay

# the running loss by position forgets with this factor a step: about the last 100 steps count
_MEMORY = 0.99
# tokens/s are those of this many last steps
_RECENT = 50


@dataclass(frozen=True)
class TrainingProgress:
    """Where a run is: shown while it goes on and written to log.jsonl. Losses in nats per token."""

    step: int
    steps: int
    tokens: int
    loss: float
    icl_score: float
    lr: float
    weight_decay: float
    grad_norm: float
    tokens_per_second: float


def train(
    config: RunConfig,
    out: str | Path,
    *,
    resume: bool = False,
    on_step: Callable[[TrainingProgress], None] | None = None,
) -> RunFolder:
    """Train a Transformer and leave a run folder behind.

    The same config gives the same weights, bit for bit, on one CPU with one thread count, also if the run was
    interrupted and resumed any number of times. `TrainingProgress.icl_score` is a running estimate from the
    training losses (each token is new to the model when its loss is taken); scores to report come from the
    evaluation set.

    Args:
        config: what to train.
        out: the run folder; it must not exist, or be empty, unless `resume`.
        resume: go on from the last saved state of `out`, whose config must be the same.
        on_step: called after every step.

    Raises:
        InputError: the corpus is too small, `out` is taken or holds another run, the disk is full, the loss is not
            finite. The folder then holds the state of the last save.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after the state was saved.
    """
    config = config.with_absolute_corpus()
    device = resolve_device(config.training.device)
    text = load_text(config.data)
    text.check_budget(config.training.steps, config.training.batch)
    folder = RunFolder(out)
    state = _begin(folder, config, resume, text.tokenizer.to_str())
    torch.manual_seed(config.training.seed)
    model = Transformer(
        TransformerConfig(**config.model.model_dump(), vocab=text.vocab, context=config.data.context)
    ).to(device)
    trainer = _Trainer(model, config, device)
    if state is not None:
        trainer.load_state(state)
    folder.cut_log(trainer.step)
    due = set(snapshot_steps(config.training.steps, config.snapshots))
    last = config.training.steps
    with interruptible() as interrupted:
        while True:
            step = trainer.step
            fresh = state is None or step != state["step"]
            if step in due and fresh:
                folder.save_snapshot(model, step=step, tokens=trainer.tokens)
            if fresh and (step in due or step % config.training.checkpoint_every == 0 or interrupted.is_set()):
                folder.save_state(trainer.state())
            if interrupted.is_set():
                raise KeyboardInterrupt(f"stopped after step {step} of {last}, its state is saved")
            if step == last:
                break
            progress = trainer.update(*text.batch(step, config.training.batch))
            if progress.step % config.training.log_every == 0 or progress.step == last:
                folder.append_log(_record(progress))
            if on_step is not None:
                on_step(progress)
    folder.finish()
    return folder


class _Trainer:
    """Model, optimizer and the running loss by position: everything that a saved state holds."""

    def __init__(self, model: Transformer, config: RunConfig, device: torch.device) -> None:
        self.model, self.config, self.device = model, config.training, device
        matrices = [p for p in model.parameters() if p.ndim >= 2]
        others = [p for p in model.parameters() if p.ndim < 2]  # biases, gains, smear: never decayed
        groups: list[dict[str, Any]] = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(
            groups,
            lr=config.training.lr,
            betas=self.config.betas,
        )
        self.step = 0
        self.context = config.data.context
        # one batch is little: a window of positions makes the running score readable
        early, late = icl_positions(self.context, 1 + 2 * (self.context // 40))
        self.early, self.late = slice(early[0] - 1, early[-1]), slice(late[0] - 1, late[-1])
        self.position_loss = torch.zeros(self.context, dtype=torch.float64)
        self.position_weight = 0.0
        self.losses = torch.compile(self._losses) if self.config.compile else self._losses
        self.recent: deque[tuple[float, int]] = deque([(time.monotonic(), 0)], maxlen=_RECENT)

    @property
    def tokens(self) -> int:
        return self.step * self.config.batch * self.context

    def _losses(self, inputs: Tensor, targets: Tensor) -> Tensor:
        hidden, _ = self.model.hidden(inputs)
        return linear_cross_entropy(hidden, self.model.unembed.weight, targets, bias=self.model.unembed.bias)

    def update(self, inputs: Tensor, targets: Tensor) -> TrainingProgress:
        """One optimizer step on inputs and targets [B,T]."""
        config = self.config
        lr, decay = learning_rate(self.step, config), weight_decay(self.step, config)
        matrices, others = self.optimizer.param_groups
        matrices["lr"] = others["lr"] = lr
        matrices["weight_decay"] = decay
        inputs, targets = inputs.to(self.device), targets.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            losses = self.losses(inputs, targets)  # [B,T]
        loss = losses.mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        limit = math.inf if config.clip is None else config.clip
        grad_norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), limit))
        if not math.isfinite(grad_norm) or not math.isfinite(loss.item()):
            raise InputError(
                f"training.lr={config.lr}: the loss or its gradient is not finite at step {self.step}; "
                "lower training.lr, or set training.clip and a longer training.warmup"
            )
        self.optimizer.step()
        self.step += 1
        self.position_loss.mul_(_MEMORY).add_(losses.detach().double().mean(0).cpu(), alpha=1 - _MEMORY)
        self.position_weight = self.position_weight * _MEMORY + 1 - _MEMORY
        return self._progress(loss.item(), lr, decay, grad_norm)

    def _progress(self, loss: float, lr: float, decay: float, grad_norm: float) -> TrainingProgress:
        self.recent.append((time.monotonic(), self.tokens))
        (begun, before), (now, after) = self.recent[0], self.recent[-1]
        by_position = self.position_loss / self.position_weight
        return TrainingProgress(
            step=self.step,
            steps=self.config.steps,
            tokens=self.tokens,
            loss=loss,
            icl_score=float(by_position[self.late].mean() - by_position[self.early].mean()),
            lr=lr,
            weight_decay=decay,
            grad_norm=grad_norm,
            tokens_per_second=(after - before) / max(now - begun, 1e-9),
        )

    def state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "position_loss": self.position_loss,
            "position_weight": self.position_weight,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.position_loss, self.position_weight = state["position_loss"], state["position_weight"]
        self.step = state["step"]
        self.recent[0] = (time.monotonic(), self.tokens)


def _begin(folder: RunFolder, config: RunConfig, resume: bool, tokenizer_json: str) -> dict[str, Any] | None:
    if not (resume and folder.exists):
        if resume:
            raise InputError(f"--resume: {folder.path} holds no run to resume; leave --resume out to begin one")
        folder.create(config, tokenizer_json)
        return None
    if differing := differing_keys(folder.config().model_dump(), config.model_dump()):
        raise InputError(f"--resume: {folder.path} was begun with other values of {', '.join(differing)}")
    if folder.tokenizer_path.read_text(encoding="utf-8") != tokenizer_json:
        raise InputError(f"--resume: the corpus {config.data.corpus} is not the one {folder.path} was begun with")
    return folder.load_state()


def _record(progress: TrainingProgress) -> dict[str, Any]:
    record = {key: value for key, value in vars(progress).items() if key != "steps"}
    return {
        key: round(value, 6) if isinstance(value, float) and key != "lr" else value for key, value in record.items()
    }
