"""What takes the optimizer steps of a population: plain torch, the definition; and the fused CPU kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from icl_fast.data.sequences import Sequences
from icl_fast.errors import InputError
from icl_fast.models import Clamps, ExemplarModel, Intervention
from icl_fast.runs.exemplar_config import ExemplarTraining
from icl_fast.training.exemplar_steps import (
    Architecture,
    Batches,
    Optimizer,
    Weights,
    exemplar_steps,
    exemplar_steps_supported,
)
from icl_fast.training.schedules import learning_rate
from icl_fast.training.sizes import check_step_fits

State = dict[str, Tensor]
Noise = Callable[[int], Tensor]


@dataclass(frozen=True)
class Draws:
    """S consecutive steps of P members: integers `[S,P,B,...]` as in `Sequences`; `noise` of a step, if any.

    Attributes:
        noise: given 0 to S - 1, what to add to that step's features, `[P,B,n+1,F]`.
    """

    classes: Tensor
    exemplars: Tensor
    labels: Tensor
    target: Tensor
    noise: Noise | None = None

    def __len__(self) -> int:
        return len(self.target)


def steps_of(sequences: Sequences, steps: int, noise: Noise | None = None) -> Draws:
    """Cut the sequences of P members, `[P,S*B,...]`, into steps."""
    names = ("classes", "exemplars", "labels", "target")
    cut = (getattr(sequences, name).unflatten(1, (steps, -1)).transpose(0, 1).contiguous() for name in names)
    classes, exemplars, labels, target = cut
    return Draws(classes, exemplars, labels, target, noise)


class Engine(Protocol):
    """Takes optimizer steps; `model` holds the weights at any time."""

    model: ExemplarModel

    def run(self, draws: Draws, step: int) -> Tensor:
        """Take the steps `step`, `step + 1`, ... (0-based); the losses before each, `[S,P]` nats, without L2."""

    def state(self) -> State:
        """Adam's moments."""

    def load_state(self, state: Mapping[str, Tensor], step: int) -> None:
        """Continue after `step` steps from this state; the weights are the model's."""


@dataclass(frozen=True)
class Task:
    """What is trained: all that both engines need.

    Attributes:
        features: `[K,E,F]`, on the device of the model.
        trainable: parameter name to `[P]` bool: where false, a member's parameter stays as it is; names left out are
            trained in every member.
        interventions: what is forced besides the clamps in every batch, members folded into the examples; it takes the
            plain engine.
    """

    model: ExemplarModel
    features: Tensor
    clamps: Clamps
    trainable: dict[str, Tensor]
    training: ExemplarTraining
    interventions: tuple[Intervention, ...] = ()

    def l2(self) -> dict[str, float]:
        """Coefficients of the squared weights in the loss, of the parameters that have one (Singh 2025, 3.2.2)."""
        config = self.training
        if not config.l2:
            return {}
        part = {"all": "", "embedding": "embed", "attention": ".attention.", "mlp": ".mlp."}[config.l2_on]
        names = [name for name, _ in self.model.named_parameters() if "norm" not in name and part in name]
        if config.l2_on == "embedding":
            names = [name for name in names if not name.startswith("unembed")]
        if not names:
            raise InputError(f"training.l2_on {config.l2_on}: the model has no such weights; set another, or l2=0")
        return dict.fromkeys(names, config.l2)

    def can_be_fused(self) -> bool:
        """Whether the fused kernel can take this task's steps here."""
        if self.interventions or self.features.device.type != "cpu":
            return False
        config = self.model.config
        return exemplar_steps_supported(
            layers=config.layers,
            width=config.width,
            heads=config.heads,
            pairs=config.pairs,
            position=config.position,
            mlp=config.mlp,
            attention_bias=config.attention_bias,
            encoder=config.encoder,
            architecture=config.architecture,
        )


def make_engine(task: Task, noisy: bool) -> Engine:
    """The engine that `training.engine` names; `auto` is the fused one where it can be.

    Raises:
        InputError: the fused engine was asked for and cannot do this; the message says why.
    """
    if task.training.engine == "plain":
        return PlainEngine(task)
    if not noisy and task.can_be_fused():
        return FusedEngine(task)
    if task.training.engine == "fused":
        why = (
            "needs attention-only transformers of 1 or 2 layers without biases, up to 256 wide, up to 16 pairs, the "
            "encoder linear, a CPU"
        )
        if noisy:
            why = "reads features from a table, so sequences.noise must be 0"
        elif task.interventions:
            why = "knows clamps alone, so there must be no interventions"
        raise InputError(f"training.engine fused: {why}; use auto or plain")
    return PlainEngine(task)


class PlainEngine:
    """Autograd and `torch.optim.Adam`: what the fused engine is compared with.

    On CUDA a step is one CUDA graph, unless there are interventions: they may wait for the device.
    """

    def __init__(self, task: Task) -> None:
        self.task, self.model = task, task.model
        self.parameters = dict(task.model.named_parameters())
        self.cuda = task.features.device.type == "cuda"
        if not self.cuda:
            check_step_fits(task.training, task.model.config, task.model.members)
        rate: float | Tensor = torch.zeros((), device=task.features.device) if self.cuda else 0.0
        self.adam = torch.optim.Adam(
            self.parameters.values(), lr=rate, betas=task.training.betas, fused=not self.cuda, capturable=self.cuda
        )
        self.l2 = task.l2()
        self.masks = {
            name: mask.to(task.features.device).view(-1, *[1] * (self.parameters[name].ndim - 1))
            for name, mask in task.trainable.items()
            if not bool(mask.all())
        }
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: list[Tensor] = []

    def run(self, draws: Draws, step: int) -> Tensor:
        """See `Engine`."""
        losses = []
        for i in range(len(draws)):
            rate = learning_rate(step + i, self.task.training)
            inputs = [draws.classes[i], draws.exemplars[i], draws.labels[i], draws.target[i]]
            if draws.noise is not None:
                inputs.append(draws.noise(i))
            group = self.adam.param_groups[0]
            if self.cuda:
                group["lr"].fill_(rate)
                losses.append(self._update(*inputs) if self.task.interventions else self._replay(inputs, step + i))
            else:
                group["lr"] = rate
                losses.append(self._update(*inputs))
        return torch.stack(losses).cpu()

    def _update(
        self, classes: Tensor, exemplars: Tensor, labels: Tensor, target: Tensor, noise: Tensor | None = None
    ) -> Tensor:
        features = self.task.features[classes, exemplars]
        if noise is not None:
            features = features + noise
        logits, _ = self.model(features, labels, target, clamps=self.task.clamps, interventions=self.task.interventions)
        losses = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view(target.shape).mean(-1)
        # a sum over members, so that the gradient of each is what it would be alone
        total = losses.sum() + sum(
            coefficient * self.parameters[name].square().sum() for name, coefficient in self.l2.items()
        )
        self.adam.zero_grad(set_to_none=not self.cuda)
        total.backward()  # type: ignore[no-untyped-call]
        for name, mask in self.masks.items():
            gradient = self.parameters[name].grad
            assert gradient is not None
            gradient.mul_(mask)
        self.adam.step()
        return losses.detach()

    def _replay(self, inputs: list[Tensor], step: int) -> Tensor:
        if self.graph is None:
            self._capture(inputs, step)
        assert self.graph is not None
        for static, value in zip(self.inputs, inputs, strict=True):
            static.copy_(value)
        self.graph.replay()
        return self.losses.clone()

    def _capture(self, inputs: list[Tensor], step: int) -> None:
        self.inputs = [value.clone() for value in inputs]
        weights = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        moments = self.state()
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._update(*self.inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.losses = self._update(*self.inputs)
        # warming up and capturing moved the weights
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(weights[name])
        self._restore(moments, step)

    def state(self) -> State:
        """See `Engine`."""
        state: State = {}
        for name, parameter in self.parameters.items():
            for key in ("exp_avg", "exp_avg_sq"):
                kept = self.adam.state[parameter].get(key, torch.zeros_like(parameter))
                state[f"{key}.{name}"] = kept.detach().clone()
        return state

    def load_state(self, state: Mapping[str, Tensor], step: int) -> None:
        """See `Engine`."""
        for name, parameter in self.parameters.items():
            moments = {key: state[f"{key}.{name}"].to(parameter.device).clone() for key in ("exp_avg", "exp_avg_sq")}
            self.adam.state[parameter] = {"step": torch.tensor(float(step), device=parameter.device), **moments}

    def _restore(self, state: State, step: int) -> None:
        # in place: a captured graph knows the tensors, not their names
        for name, parameter in self.parameters.items():
            self.adam.state[parameter]["step"].fill_(step)
            for key in ("exp_avg", "exp_avg_sq"):
                self.adam.state[parameter][key].copy_(state[f"{key}.{name}"])


class FusedEngine:
    """`exemplar_steps`: forward, backward and Adam of many steps in one call."""

    def __init__(self, task: Task) -> None:
        self.task, self.model = task, task.model
        self.parameters = {name: parameter.detach() for name, parameter in task.model.named_parameters()}
        self.first = {name: torch.zeros_like(parameter) for name, parameter in self.parameters.items()}
        self.second = {name: torch.zeros_like(parameter) for name, parameter in self.parameters.items()}
        self.l2 = task.l2()

    def run(self, draws: Draws, step: int) -> Tensor:
        """See `Engine`."""
        config = self.model.config
        rates = [learning_rate(step + i, self.task.training) for i in range(len(draws))]
        return exemplar_steps(
            Weights(self.parameters, self.first, self.second, step),
            Batches(self.task.features, draws.classes, draws.exemplars, draws.labels, draws.target),
            Architecture(
                heads=config.heads,
                position=config.position,
                outputs=self.model.outputs,
                clamps=self.task.clamps,
                rotary_base=config.rotary_base,
                sinusoid_base=config.sinusoid_base,
                norm_eps=config.norm_eps,
            ),
            Optimizer(
                learning_rates=torch.tensor(rates, dtype=torch.float64),
                trainable=self.task.trainable,
                l2=self.l2,
                betas=self.task.training.betas,
            ),
        )

    def state(self) -> State:
        """See `Engine`."""
        moments = {"exp_avg": self.first, "exp_avg_sq": self.second}
        return {f"{key}.{name}": value.clone() for key, kept in moments.items() for name, value in kept.items()}

    def load_state(self, state: Mapping[str, Tensor], step: int) -> None:
        """See `Engine`."""
        for name in self.parameters:
            self.first[name].copy_(state[f"exp_avg.{name}"])
            self.second[name].copy_(state[f"exp_avg_sq.{name}"])


def check_losses(losses: Tensor, names: list[str], step: int) -> None:
    """Stop a run that diverged.

    Raises:
        InputError: a loss `[S,P]` that is not finite; it names the step and the member.
    """
    bad = ~torch.isfinite(losses)
    if bool(bad.any()):
        at, member = (int(i) for i in bad.nonzero()[0])
        raise InputError(
            f"training.lr: the loss of {names[member]} is not finite at step {step + at}; lower training.lr, or set a "
            "longer training.warmup"
        )
