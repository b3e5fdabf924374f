"""Training of a Transformer on text: AdamW, and a running score of its in-context learning."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from icl_fast.data import Exemplars, load_text
from icl_fast.data.positions import icl_positions
from icl_fast.errors import InputError
from icl_fast.models import Transformer, parse_transformer_config
from icl_fast.runs import Run, TextRunConfig, resolve_device
from icl_fast.runs.snapshot_schedule import snapshot_steps
from icl_fast.runs.states import check_count, check_state
from icl_fast.training.schedules import learning_rate, weight_decay
from icl_fast.training.sizes import check_text_run_fits

# the running loss by position forgets with this factor a step: about the last 100 steps count
_MEMORY = 0.99
# tokens/s are those of this many last steps
_RECENT = 50


@dataclass(frozen=True)
class TrainingProgress:
    """The state of a run, as shown while it goes on and written to log.jsonl. Losses in nats per token."""

    step: int
    steps: int
    tokens: int
    loss: float
    icl_score: float
    lr: float
    weight_decay: float
    grad_norm: float
    tokens_per_second: float


class TextTrainer:
    """Model, optimizer and the running loss by position: everything that a saved state holds."""

    exemplars: Exemplars | None = None

    def __init__(self, config: TextRunConfig, on_progress: Callable[[TrainingProgress], None] | None = None) -> None:
        """Set up what `config` says; `on_progress` is called after every step.

        Raises:
            InputError: a corpus that cannot be read or is too small, no such device, more than this machine can hold.
        """
        self.config, self.on_progress = config.training, on_progress
        self.device = resolve_device(config.training.device)
        sizes = {"vocab": config.data.vocab, "context": config.data.context}
        shape = parse_transformer_config(config.model.model_dump() | sizes, source="data")
        check_text_run_fits(config, shape, self.device)
        self.text = load_text(config.data)
        self.text.check_budget(config.training.steps, config.training.batch)
        self.tokenizer_json: str | None = self.text.tokenizer.to_str()
        self.context = config.data.context
        torch.manual_seed(config.training.seed)
        self.model = model = Transformer(shape).to(self.device)
        self.snapshots = set(snapshot_steps(config.training.steps, config.snapshots))
        self.progress: TrainingProgress | None = None
        matrices = [p for p in model.parameters() if p.ndim >= 2]
        others = [p for p in model.parameters() if p.ndim < 2]  # biases, gains, smear: never decayed
        groups: list[dict[str, Any]] = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(
            groups,
            lr=config.training.lr,
            betas=self.config.betas,
        )
        self.step = 0
        # one batch is little: a window of positions makes the running score readable
        early, late = icl_positions(self.context, 1 + 2 * (self.context // 40))
        self.early, self.late = slice(early[0] - 1, early[-1]), slice(late[0] - 1, late[-1])
        self.position_loss = torch.zeros(self.context, dtype=torch.float64)
        self.position_weight = 0.0
        self.losses = torch.compile(self._losses) if self.config.compile else self._losses
        self.recent: deque[tuple[float, int]] = deque([(time.monotonic(), 0)], maxlen=_RECENT)

    @property
    def steps(self) -> int:
        """The step at which the run ends."""
        return self.config.steps

    @property
    def tokens(self) -> int:
        """Tokens seen so far."""
        return self.step * self.config.batch * self.context

    def advance(self, interrupted: Callable[[], bool]) -> None:
        """Take one optimizer step."""
        self.progress = self.update(*self.text.batch(self.step, self.config.batch))
        if self.on_progress is not None:
            self.on_progress(self.progress)

    def record(self, run: Run) -> None:
        """Write what is due after this step: log line, snapshot, state."""
        config, step = self.config, self.step
        if self.progress is not None and (step % config.log_every == 0 or step == config.steps):
            run.append_log(_record(self.progress))
        if step in self.snapshots:
            run.save_snapshot(self.model, step=step, seen=self.tokens)
        if step in self.snapshots or step % config.checkpoint_every == 0:
            run.save_state(self.state())

    def _losses(self, inputs: Tensor, targets: Tensor) -> Tensor:
        hidden, _ = self.model.hidden(inputs)
        return self.model.token_losses(hidden, targets)

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
        (started, before), (now, after) = self.recent[0], self.recent[-1]
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
            tokens_per_second=(after - before) / max(now - started, 1e-9),
        )

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "position_loss": self.position_loss,
            "position_weight": self.position_weight,
        }

    def load_state(self, state: dict[str, Any], source: str) -> None:
        """Continue from a saved state; `source` is what messages call it.

        Raises:
            InputError: it is not one of this run.
        """
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        moment = {"step": torch.tensor(0.0)}  # AdamW has none before its first step
        moments = [moment | dict.fromkeys(("exp_avg", "exp_avg_sq"), parameter) for parameter in parameters]
        groups = self.optimizer.state_dict()["param_groups"]  # the config says all that is in them
        like = {"state": dict(enumerate(moments)) if state.get("step") else {}, "param_groups": groups}
        check_state(state, self.state() | {"optimizer": like}, source)
        check_count(state["step"], 0, self.steps, f"{source}: step")
        for number, moment in state["optimizer"]["state"].items():
            check_count(int(moment["step"]), state["step"], state["step"], f"{source}: optimizer: {number}: step")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"] | {"param_groups": groups})
        self.position_loss, self.position_weight = state["position_loss"], state["position_weight"]
        self.step = state["step"]
        self.recent[0] = (time.monotonic(), self.tokens)


def _record(progress: TrainingProgress) -> dict[str, Any]:
    record = {key: value for key, value in vars(progress).items() if key != "steps"}
    return {
        key: round(value, 6) if isinstance(value, float) and key != "lr" else value for key, value in record.items()
    }
