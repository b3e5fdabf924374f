"""What takes the optimizer steps of a population: plain torch, the definition; and the fused CPU kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icl_fast.errors import InputError
from icl_fast.models import Clamps, ExemplarModel, Intervention
from icl_fast.runs.exemplar_config import ExemplarTraining
from icl_fast.training.exemplar_draws import Draws
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
_MOMENTS = ("exp_avg", "exp_avg_sq")
_TOGETHER = 10  # steps of one CUDA graph: what is launched between graphs then takes next to no time


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
        of_members: the `training:` block of each member, which may have its own lr, warmup, l2 and l2_on; none: that of
            all.
    """

    model: ExemplarModel
    features: Tensor
    clamps: Clamps
    trainable: dict[str, Tensor]
    training: ExemplarTraining
    interventions: tuple[Intervention, ...] = ()
    of_members: tuple[ExemplarTraining, ...] = ()

    @cached_property
    def groups(self) -> list[tuple[slice, ExemplarTraining]]:
        """Members in a row with equal learning rates and L2, and what they have."""
        configs = self.of_members or (self.training,) * self.model.members
        starts = [i for i in range(len(configs)) if i == 0 or _own(configs[i]) != _own(configs[i - 1])]
        ends = [*starts[1:], len(configs)]
        return [(slice(start, end), configs[start]) for start, end in zip(starts, ends, strict=True)]

    def rates(self, step: int) -> list[float]:
        """The learning rate of each group in the update that leads from `step` to `step + 1`."""
        return [learning_rate(step, config) for _, config in self.groups]

    @cached_property
    def l2(self) -> dict[str, Tensor]:
        """Coefficients `[P]` of the squared weights in the loss, of the parameters that have any (Singh 2025, 3.2.2).

        Raises:
            InputError: a model without the weights that `l2_on` names.
        """
        found: dict[str, Tensor] = {}
        for members, config in self.groups:
            names = [name for name, _ in self.model.named_parameters() if _is_in(config.l2_on, name)]
            if config.l2 and not names:
                raise InputError(f"training.l2_on {config.l2_on}: the model has no such weights; set another, or l2=0")
            for name in names if config.l2 else ():
                found.setdefault(name, torch.zeros(self.model.members))[members] = config.l2
        return {name: coefficients.to(self.features.device) for name, coefficients in found.items()}

    def penalty(self) -> Tensor:
        """`[P]`: the L2 term of the loss, with the gradient of the weights."""
        total = torch.zeros(self.model.members, device=self.features.device)
        for name, coefficients in self.l2.items():
            total = total + coefficients * self.model.get_parameter(name).square().flatten(1).sum(1)
        return total

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


def _own(config: ExemplarTraining) -> tuple[float, int, float, str]:
    """What a member may have of its own."""
    return config.lr, config.warmup, config.l2, config.l2_on


def _is_in(part: str, name: str) -> bool:
    """Whether a parameter is one of the weights that `l2_on` calls so."""
    if "norm" in name:
        return False
    if part == "embedding":
        return name.startswith(("embed_exemplar.", "embed_label."))
    if part == "encoder":
        return name.startswith("embed_exemplar.")
    return part == "all" or f".{part}." in name


class PlainEngine:
    """Autograd and `torch.optim.Adam`: what the fused engine is compared with.

    On CUDA steps are CUDA graphs, unless there are interventions: they may wait for the device.
    """

    def __init__(self, task: Task) -> None:
        self.task, self.model = task, task.model
        self.parameters = dict(task.model.named_parameters())
        self.cuda = task.features.device.type == "cuda"
        self.graphs, self.together = self.cuda and not task.interventions, _TOGETHER
        if not self.cuda:
            check_step_fits(task.training, task.model.config, task.model.members)
        # of each group of members its part of every parameter: the same numbers, with a learning rate of their own
        self.parts = [
            {name: nn.Parameter(parameter.detach()[members]) for name, parameter in self.parameters.items()}
            for members, _ in task.groups
        ]
        self.adam = torch.optim.Adam(
            [{"params": list(parts.values())} for parts in self.parts],
            betas=task.training.betas,
            fused=True,
            capturable=self.cuda,
        )
        _ = task.l2  # refuse what cannot be, before the first step
        self.masks = {
            name: mask.to(task.features.device).view(-1, *[1] * (self.parameters[name].ndim - 1))
            for name, mask in task.trainable.items()
            if not bool(mask.all())
        }
        self.captured: dict[int, _Captured] = {}

    def run(self, draws: Draws, step: int) -> Tensor:
        """See `Engine`."""
        rates = [self.task.rates(step + i) for i in range(len(draws))]
        if self.graphs:
            # all rates at once: to copy something there waits for the device
            return self._replay(draws, step, torch.tensor(rates, device=self.task.features.device))
        losses = [self._update(rates[i], *(value[0] for value in _inputs(draws, i, 1))) for i in range(len(draws))]
        return torch.stack(losses).cpu()

    def _update(
        self,
        rates: Sequence[float] | Tensor,
        classes: Tensor,
        exemplars: Tensor,
        labels: Tensor,
        target: Tensor,
        noise: Tensor | None = None,
    ) -> Tensor:
        features = self.task.features[classes, exemplars]
        if noise is not None:
            features = features + noise
        logits, _ = self.model(features, labels, target, clamps=self.task.clamps, interventions=self.task.interventions)
        losses = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view(target.shape).mean(-1)
        # a sum over members, so that the gradient of each is what it would be alone
        total = losses.sum() + self.task.penalty().sum()
        for parameter in self.parameters.values():
            parameter.grad = None
        total.backward()  # type: ignore[no-untyped-call]
        for name, mask in self.masks.items():
            gradient = self.parameters[name].grad
            assert gradient is not None
            gradient.mul_(mask)
        for (members, _), parts in zip(self.task.groups, self.parts, strict=True):
            for name, part in parts.items():
                gradient = self.parameters[name].grad  # None: an intervention cut the weight off
                part.grad = None if gradient is None else gradient[members]
        for group, rate in zip(self.adam.param_groups, rates, strict=True):
            group["lr"] = rate
        self.adam.step()
        return losses.detach()

    def _replay(self, draws: Draws, step: int, rates: Tensor) -> Tensor:
        """The steps as graphs of several, then of one each."""
        losses = rates.new_empty(len(draws), self.model.members)
        at = 0
        while at < len(draws):
            count = self.together if len(draws) - at >= self.together else 1
            inputs = [rates[at : at + count], *_inputs(draws, at, count)]
            if count not in self.captured:
                self._capture(inputs, step + at)
            captured = self.captured[count]
            for static, value in zip(captured.inputs, inputs, strict=True):
                static.copy_(value)
            captured.replay()
            losses[at : at + count] = captured.losses
            at += count
        return losses.cpu()

    def _capture(self, inputs: list[Tensor], step: int) -> None:
        weights = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        moments, static = self.state(), [value.clone() for value in inputs]

        def update(count: int) -> Tensor:
            return torch.stack([self._update(*(value[i] for value in static)) for i in range(count)])

        self.captured[len(inputs[0])] = _Captured(static, *capture(update, len(inputs[0])))
        # warming up moved the weights
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(weights[name])
        self._restore(moments, step)

    def state(self) -> State:
        """See `Engine`."""
        state: State = {}
        for name in self.parameters:
            for key in _MOMENTS:
                kept = [self.adam.state[part[name]].get(key, torch.zeros_like(part[name])) for part in self.parts]
                state[f"{key}.{name}"] = torch.cat(kept).detach()
        return state

    def load_state(self, state: Mapping[str, Tensor], step: int) -> None:
        """See `Engine`."""
        for (members, _), parts in zip(self.task.groups, self.parts, strict=True):
            for name, part in parts.items():
                moments = {key: state[f"{key}.{name}"][members].to(part.device, copy=True) for key in _MOMENTS}
                self.adam.state[part] = {"step": torch.tensor(float(step), device=part.device), **moments}

    def _restore(self, state: State, step: int) -> None:
        # in place: a captured graph knows the tensors, not their names
        for (members, _), parts in zip(self.task.groups, self.parts, strict=True):
            for name, part in parts.items():
                self.adam.state[part]["step"].fill_(step)
                for key in _MOMENTS:
                    self.adam.state[part][key].copy_(state[f"{key}.{name}"][members])


@dataclass(frozen=True)
class _Captured:
    """Steps as a CUDA graph: where it reads rates and draws, what runs it, and where it leaves the losses."""

    inputs: list[Tensor]
    replay: Callable[[], None]
    losses: Tensor


def capture(update: Callable[[int], Tensor], count: int) -> tuple[Callable[[], None], Tensor]:
    """So many steps as a CUDA graph: what runs it, and the tensor that then has the losses. Warming up takes steps."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            update(1)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        losses = update(count)
    return graph.replay, losses


def _inputs(draws: Draws, at: int, count: int) -> list[Tensor]:
    """The draws of some steps, `[S,P,B,...]`."""
    some = slice(at, at + count)
    inputs = [draws.classes[some], draws.exemplars[some], draws.labels[some], draws.target[some]]
    if draws.noise is not None:
        inputs.append(torch.stack([draws.noise(i) for i in range(at, at + count)]))
    return inputs


class FusedEngine:
    """`exemplar_steps`: forward, backward and Adam of many steps in one call for each group of members.

    Their bits do not depend on other members, so that it does not matter which are in one call.
    """

    def __init__(self, task: Task) -> None:
        self.task, self.model = task, task.model
        self.parameters = {name: parameter.detach() for name, parameter in task.model.named_parameters()}
        self.first = {name: torch.zeros_like(parameter) for name, parameter in self.parameters.items()}
        self.second = {name: torch.zeros_like(parameter) for name, parameter in self.parameters.items()}
        _ = task.l2  # refuse what cannot be, before the first step

    def run(self, draws: Draws, step: int) -> Tensor:
        """See `Engine`."""
        rates = torch.tensor([self.task.rates(step + i) for i in range(len(draws))], dtype=torch.float64)
        losses = [self._run(draws, step, members, rates[:, i]) for i, (members, _) in enumerate(self.task.groups)]
        return torch.cat(losses, dim=1)

    def _run(self, draws: Draws, step: int, members: slice, rates: Tensor) -> Tensor:
        """The same of members with one learning rate, `[S]`."""
        config = self.model.config

        def of_members(tensors: Mapping[str, Tensor]) -> State:
            return {name: tensor[members] for name, tensor in tensors.items()}

        integers = (draws.classes, draws.exemplars, draws.labels, draws.target)
        return exemplar_steps(
            Weights(of_members(self.parameters), of_members(self.first), of_members(self.second), step),
            Batches(self.task.features, *(drawn[:, members] for drawn in integers)),
            Architecture(
                heads=config.heads,
                position=config.position,
                outputs=self.model.outputs[members],
                clamps=self.task.clamps[members],
                rotary_base=config.rotary_base,
                sinusoid_base=config.sinusoid_base,
                norm_eps=config.norm_eps,
            ),
            Optimizer(
                learning_rates=rates.contiguous(),
                trainable=of_members(self.task.trainable),
                l2={name: float(coefficients[members][0]) for name, coefficients in self.task.l2.items()},
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
