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

from icl_fast import ranks
from icl_fast.data import Exemplars, load_text
from icl_fast.data.positions import icl_positions
from icl_fast.errors import InputError
from icl_fast.models import Transformer, parse_transformer_config
from icl_fast.models.shards import Shards
from icl_fast.runs import Run, TextRunConfig, resolve_device
from icl_fast.runs.snapshot_schedule import snapshot_steps
from icl_fast.runs.states import STATE_FORMAT, check_count, check_state
from icl_fast.runs.text_config import OptimizerConfig
from icl_fast.training.callbacks import NOBODY, Callback, log
from icl_fast.training.parallel import accumulating, gathered, is_split, make_losses, part_of, whole_of
from icl_fast.training.schedules import learning_rate, weight_decay
from icl_fast.training.sizes import check_text_run_fits

# the running loss by position forgets with this factor a step: about the last 100 steps count
_MEMORY = 0.99
# tokens/s are those of this many last steps, or between the last two readings
_RECENT = 50
_MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW


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
    """Model, optimizer and the running loss by position: everything that a saved state holds.

    On several ranks each has a share of every batch. Of a step nothing is read from the device but where something is
    due: there the loop waits for it.
    """

    exemplars: Exemplars | None = None

    def __init__(
        self,
        config: TextRunConfig,
        on_progress: Callable[[TrainingProgress], None] | None = None,
        told: Callback = NOBODY,
    ) -> None:
        """Set up what `config` says; `on_progress` is called whenever a step's statistics are read.

        Raises:
            InputError: a corpus that cannot be read or is too small, no such device, more than this machine can hold, a
                batch that cannot be shared out.
        """
        self.config, self.on_progress, self.told = config.training, on_progress, told
        self.split, self.sharded = is_split(config), config.snapshots.sharded
        sizes = {"vocab": config.data.vocab, "context": config.data.context}
        with ranks.together():
            self.shape = parse_transformer_config(config.model.model_dump() | sizes, source="data")
            self.rows = _rows(config.training)
            self.device = _device(config.training.device)
            check_text_run_fits(config, self.shape, self.device)
            self.text = load_text(config.data)
            self.text.check_budget(config.training.steps, config.training.batch)
        self.tokenizer_json: str | None = self.text.tokenizer.to_str()
        self.context = config.data.context
        self.losses = make_losses(config, self.shape, self.device)
        self.model = next(module for module in self.losses.modules() if isinstance(module, Transformer))
        self.snapshots = set(snapshot_steps(config.training.steps, config.snapshots))
        self.progress: TrainingProgress | None = None
        self.optimizer = make_optimizer(self.model, config.training, self.device)
        self.step = 0
        # one batch is little: a window of positions makes the running score readable
        early, late = icl_positions(self.context, 1 + 2 * (self.context // 40))
        self.early, self.late = slice(early[0] - 1, early[-1]), slice(late[0] - 1, late[-1])
        self.position_loss = torch.zeros(self.context, dtype=torch.float64, device=self.device)
        self.position_weight = 0.0
        self.loss = self.grad_norm = torch.zeros((), device=self.device)  # of the last step, as this rank has them
        self.not_finite = torch.tensor(-1, device=self.device)  # the first step that was not
        recent = 1 + max(1, _RECENT // self.config.log_every)
        self.recent: deque[tuple[float, int]] = deque([(time.monotonic(), 0)], maxlen=recent)

    @property
    def steps(self) -> int:
        """The step at which the run ends."""
        return self.config.steps

    @property
    def tokens(self) -> int:
        """Tokens seen so far."""
        return self.step * self.config.batch * self.context

    @property
    def _log_is_due(self) -> bool:
        return self.step % self.config.log_every == 0 or self.step == self.steps

    @property
    def _save_is_due(self) -> bool:
        return self.step in self.snapshots or self.step % self.config.checkpoint_every == 0

    def advance(self, interrupted: Callable[[], bool]) -> None:
        """Take one optimizer step."""
        self.update(*self.text.batch(self.step, self.config.batch, self.rows))
        if self._log_is_due or self._save_is_due:
            self.read()

    def record(self, run: Run) -> None:
        """Write what is due after this step: log line, snapshot, state."""
        if self.progress is not None and self._log_is_due:
            line = _record(self.progress)
            ranks.first(lambda: log(run, line, self.told))
        if self.step in self.snapshots:
            self._save_snapshot(run)
        if self._save_is_due:
            self.save(run)

    def update(self, inputs: Tensor, targets: Tensor) -> None:
        """One optimizer step on this rank's inputs and targets [B,T], without waiting for the device."""
        config = self.config
        lr, decay = learning_rate(self.step, config), weight_decay(self.step, config)
        matrices, others = self.optimizer.param_groups
        matrices["lr"] = others["lr"] = lr
        matrices["weight_decay"] = decay
        self.optimizer.zero_grad(set_to_none=True)
        parts = list(
            zip(*(self._on_device(tokens).chunk(config.accumulate) for tokens in (inputs, targets)), strict=True)
        )
        self.loss, by_position = torch.zeros_like(self.loss), torch.zeros_like(self.position_loss)
        for number, part in enumerate(parts, 1):
            with accumulating(self.losses, last=number == len(parts)):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
                    loss, of_positions = self.losses(*part)
                (loss / len(parts)).backward()
            self.loss += loss.detach() / len(parts)
            by_position += of_positions / len(parts)
        limit = math.inf if config.clip is None else config.clip
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        self.grad_norm = whole_of(norm) if self.split else norm
        bad = ~(torch.isfinite(self.grad_norm) & torch.isfinite(self.loss))
        self.not_finite = torch.where(bad & (self.not_finite < 0), self.step, self.not_finite)
        self.optimizer.step()
        self.step += 1
        self.position_loss.mul_(_MEMORY).add_(by_position, alpha=1 - _MEMORY)
        self.position_weight = self.position_weight * _MEMORY + 1 - _MEMORY

    def _on_device(self, tokens: Tensor) -> Tensor:
        return tokens.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tokens

    def read(self) -> None:
        """Wait for the device and put the last step's statistics, over all ranks, into `progress`; once a step.

        Raises:
            InputError: the loss or its gradient was not finite, at this step or since the last reading.
        """
        if self.step == 0 or (self.progress is not None and self.progress.step == self.step):
            return
        config, last = self.config, self.step - 1
        with ranks.together():
            if (bad := int(self.not_finite)) >= 0:
                raise InputError(
                    f"training.lr={config.lr}: the loss or its gradient is not finite at step {bad}; "
                    "lower training.lr, or set training.clip and a longer training.warmup"
                )
        loss, by_position = float(ranks.average(self.loss)), ranks.average(self.position_loss) / self.position_weight
        self.recent.append((time.monotonic(), self.tokens))
        (started, before), (now, after) = self.recent[0], self.recent[-1]
        self.progress = TrainingProgress(
            step=self.step,
            steps=config.steps,
            tokens=self.tokens,
            loss=loss,
            icl_score=float(by_position[self.late].mean() - by_position[self.early].mean()),
            lr=learning_rate(last, config),
            weight_decay=weight_decay(last, config),
            grad_norm=float(self.grad_norm),
            tokens_per_second=(after - before) / max(now - started, 1e-9),
        )
        if self.on_progress is not None:
            self.on_progress(self.progress)

    def _save_snapshot(self, run: Run) -> None:
        if self.sharded:
            run.save_sharded_snapshot(self.model, step=self.step, seen=self.tokens)
        else:
            model = self._whole_model() if self.split else self.model
            ranks.first(lambda: run.save_snapshot(model, step=self.step, seen=self.tokens))
        ranks.first(lambda: self.told.on_snapshot(self.step, run.snapshot_path(self.step)))

    def _whole_model(self) -> Transformer:
        """The model on the first rank; on the others one without numbers."""
        with torch.device("meta"):
            model = Transformer(self.shape)
        weights = gathered(dict(self.model.named_parameters()))
        if ranks.rank() == 0:
            model.load_state_dict(weights, strict=not self.shape.tied, assign=True)
            if self.shape.tied:
                model.unembed.weight = model.embed.weight
        return model

    def save(self, run: Run) -> None:
        """Write the state, after which a run can go on."""
        self.read()
        if self.sharded:
            header = {"step": self.step, "position_weight": self.position_weight}
            run.save_sharded_state(self._tensors(), header)
        else:
            state = gathered(self.state()) if self.split else self.state()
            ranks.first(lambda: run.save_state(state))

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "position_loss": self.position_loss.cpu(),
            "position_weight": self.position_weight,
        }

    def _tensors(self) -> dict[str, Tensor]:
        """The tensors of the state by names, each once; moments that there are none of before the first step."""
        names: dict[Tensor, str] = {parameter: name for name, parameter in self.model.named_parameters()}
        tensors: dict[str, Tensor] = {f"model.{name}": parameter for parameter, name in names.items()}
        for parameter, moments in self.optimizer.state.items():
            tensors |= {f"{moment}.{names[parameter]}": moments[moment] for moment in _MOMENTS}
        return tensors | {"position_loss": self.position_loss}

    def load_state(self, state: dict[str, Any] | Shards, source: str) -> None:
        """Continue from a saved state; `source` is what messages call it.

        Raises:
            InputError: it is not one of this run.
        """
        if isinstance(state, Shards):
            self._load_shards(state, source)
        else:
            self._load_whole(state, source)
        self.recent[0] = (time.monotonic(), self.tokens)

    def _load_whole(self, state: dict[str, Any], source: str) -> None:
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        with ranks.together():
            moment = {"step": torch.tensor(0.0)}  # AdamW has none before its first step
            moments = [moment | dict.fromkeys(_MOMENTS, parameter) for parameter in parameters]
            groups = self.optimizer.state_dict()["param_groups"]  # the config says all that is in them
            like = {"state": dict(enumerate(moments)) if state.get("step") else {}, "param_groups": groups}
            check_state(state, self.state() | {"optimizer": like}, source)
            check_count(state["step"], 0, self.steps, f"{source}: step")
            for number, moment in state["optimizer"]["state"].items():
                check_count(int(moment["step"]), state["step"], state["step"], f"{source}: optimizer: {number}: step")
        weights, loaded = state["model"], state["optimizer"] | {"param_groups": groups}
        if self.split:
            own = self.model.state_dict()
            weights = {name: part_of(whole, own[name]) for name, whole in weights.items()}
            loaded["state"] = {
                number: moment | {name: part_of(moment[name], parameters[number]) for name in _MOMENTS}
                for number, moment in loaded["state"].items()
            }
        self.model.load_state_dict(weights)
        self.optimizer.load_state_dict(loaded)
        self.position_loss = state["position_loss"].to(self.device)
        self.position_weight, self.step = state["position_weight"], state["step"]

    def _load_shards(self, shards: Shards, source: str) -> None:
        header = shards.kinds.get(STATE_FORMAT)
        with ranks.together():
            check_state(header, {"step": 0, "position_weight": 0.0}, source)
            assert isinstance(header, dict)
            check_count(header["step"], 0, self.steps, f"{source}: step")
            shards.check(slice(ranks.rank(), None, ranks.count()))
        if header["step"]:
            for parameter in self.model.parameters():
                at = torch.tensor(float(header["step"]), device=self.device)
                self.optimizer.state[parameter] = {"step": at} | {m: torch.zeros_like(parameter) for m in _MOMENTS}
        tensors = self._tensors()
        with ranks.together():
            shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
            check_state(shards.shapes(), shapes, source)
        shards.read_into(tensors)
        self.position_weight, self.step = header["position_weight"], header["step"]


def make_optimizer(model: nn.Module, config: OptimizerConfig, device: torch.device) -> torch.optim.AdamW:
    """AdamW of matrices, which decay, and of all others, which do not."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]  # biases, gains, smear
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    how = {"fused": True, "capturable": True} if device.type == "cuda" else {}
    # in float32 the fused one rounds otherwise than the runs of before
    if device.type == "cpu" and config.precision == "bfloat16":
        how = {"fused": True}
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, **how)


def _rows(training: OptimizerConfig) -> slice:
    """Which sequences of every batch are this rank's."""
    count, parts = ranks.count(), ranks.count() * training.accumulate
    if training.batch % parts:
        shares = f"{count} ranks x " * (count > 1) + f"training.accumulate {training.accumulate}"
        raise InputError(
            f"training.batch {training.batch}: cannot be shared out to {shares} = {parts} equal parts; "
            f"take a multiple of {parts}, or another training.accumulate" + " or number of ranks" * (count > 1)
        )
    share = training.batch // count
    return slice(ranks.rank() * share, (ranks.rank() + 1) * share)


def _device(name: str) -> torch.device:
    device = resolve_device(name)
    if ranks.count() == 1 or device.type == "cpu":
        return device
    if device.index is not None:
        raise InputError(f"training.device {name}: is one device, and there are {ranks.count()} ranks; give cuda")
    return resolve_device(f"cuda:{ranks.here()}")


def _record(progress: TrainingProgress) -> dict[str, Any]:
    record = {key: value for key, value in vars(progress).items() if key != "steps"}
    return {
        key: round(value, 6) if isinstance(value, float) and key != "lr" else value for key, value in record.items()
    }
