"""Training of exemplar models: the fused step against plain torch, torch.compile and JAX; and evaluation in two passes.

Every candidate makes the same steps: from the same weights, on the same sequences, with Adam. Timed is what a run
pays: drawing the sequences (for all candidates by this package's sampler, S steps at once, as the trainer does) and
gathering their features. What is compared are the losses of the first S steps. "reference" is the definition, autograd
and torch.optim.Adam, with all members stacked; on CUDA ours is the same as CUDA graphs of several steps each.

The settings are those of configs/exemplars, on Gaussian classes, since speed does not depend on what images show.
jax_exemplar_step.py is the step in JAX, on CPU, where JAX is installed.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

import harness
import torch
from baselines import module_or_none
from harness import Candidate, Case, Inputs, Maker, Options
from torch import Tensor

from icl_fast.ops import _backend

NAME = "exemplar_training"
CONFIGS = harness.ROOT / "configs" / "exemplars"
# at the thesis' rate, 1e-5, a candidate that learns nothing would agree: speed does not depend on it
RATE = "training.lr=1e-3"
TINY = ("model.width=16", "model.heads=2", "exemplars.width=8", "training.batch=4", "sequences.held_out_classes=0")
AGAIN_WITHOUT = (0, 1)  # the head that the second pass of the evaluation has not
Losses = Callable[[], Tensor]


def cases(options: Options) -> list[Case]:
    return [
        training("chapter4", 1, 50, options),
        training("chapter4", 8, 20, options),
        training("chapter4", 64, 5, options),
        training("chapter5", 1, 25, options),
        evaluation("chapter4", 2000, options),
    ]


def training(setting: str, members: int, steps: int, options: Options) -> Case:
    """So many steps of so many members in one call."""
    if options.quick:
        members, steps = min(members, 3), min(steps, 3)
    none, on_cuda = missing(), options.device == "cuda"
    # memory matters where there are 12,800 outputs
    memory = setting == "chapter5"
    compiled = none or ("" if options.compile else "torch.compile is switched off")
    jax = none or missing_jax(options)
    step_by_step = Candidate(
        "a graph a step",
        going_on("a graph a step", lambda x: Torch(x, steps, "plain", together=1)),
        memory=False,
        missing=none,
    )
    config = None if none else configured(setting, members, options)
    return Case(
        shape=f"{setting} P={members} S={steps}",
        dtype=torch.float32,
        make=lambda maker: Inputs() if none else make(maker, config),
        candidates=[
            Candidate(
                "ours",
                going_on("ours", lambda x: Torch(x, steps, "plain" if on_cuda else "fused")),
                memory=memory,
                missing=none or ("" if on_cuda or _backend.compiled() else "the kernels are not built here"),
            ),
            *([step_by_step] if on_cuda else []),
            Candidate(
                "torch.compile",
                going_on("torch.compile", lambda x: Torch(x, steps, "eager", compiled=True)),
                memory=False,
                missing=compiled,
            ),
            Candidate("JAX step", going_on("JAX step", lambda x: Jax(x, steps, scan=False)), memory=False, missing=jax),
            Candidate("JAX scan", going_on("JAX scan", lambda x: Jax(x, steps, scan=True)), memory=False, missing=jax),
            Candidate(
                "reference", going_on("reference", lambda x: Torch(x, steps, "eager")), memory=memory, missing=none
            ),
        ],
        flops=0.0 if none else members * steps * step_flops(config),
        bytes=0.0 if none else members * steps * step_bytes(config),
        counts={} if none else counts(members, steps, config.training.batch),
        headline=True,
        sets=1,
    )


def counts(members: int, steps: int, batch: int) -> dict[str, float]:
    """What a call makes."""
    found = {"steps": float(steps), "sequences": float(members * steps * batch)}
    return {"member-steps": float(members * steps), **found} if members > 1 else found


def evaluation(setting: str, sequences: int, options: Options) -> Case:
    """Losses of sequences, as they are and with a head removed while later heads keep their patterns.

    Embedding the exemplars is timed. A sequence that is read twice counts once.
    """
    sequences = 40 if options.quick else sequences
    none = missing()
    config = None if none else configured(setting, 1, options)
    return Case(
        shape=f"{setting} evaluation N={sequences}",
        dtype=torch.float32,
        make=lambda maker: Inputs() if none else make_evaluation(maker, config, sequences),
        candidates=[
            Candidate("ours", two_passes, memory=False, missing=none),
            Candidate("reference", two_passes_by_definition, memory=False, missing=none),
        ],
        flops=0.0 if none else sequences * evaluation_flops(config),
        bytes=0.0,
        counts={"sequences": float(sequences)},
        sets=1,
    )


def missing() -> str:
    """Why there are no exemplar models here; empty if there are."""
    engine = module_or_none("icl_fast.training.exemplar_engine")
    return "" if engine else "icl_fast.training needs packages that are not here"


def missing_jax(options: Options) -> str:
    """Why JAX does not run here; empty if it does."""
    if options.device != "cpu":
        return "compared on CPU"
    if options.quick:
        return "left out of a quick run, as it compiles for seconds"
    return "" if module_or_none("jax") else "jax is not installed"


def configured(setting: str, members: int, options: Options) -> Any:
    """The `ExemplarRunConfig` of a file; members differ in their weights and sequences."""
    from icl_fast.runs import load_config, parse_config

    exemplars = {"chapter4": 1, "chapter5": 3}[setting]
    tiny = (*TINY, "sequences.classes=30", f"sequences.exemplars={exemplars}") if options.quick else ()
    config = load_config(CONFIGS / f"{setting}.yaml", [RATE, *tiny])
    seeds = [
        {"name": f"seed {seed}", "set": {"training.seed": seed, "sequences.seed": seed}} for seed in range(members)
    ]
    return parse_config({**config.model_dump(mode="json"), "members": seeds})


def make(maker: Maker, config: Any) -> Inputs:
    """Exemplars and members as they begin; candidates make what else they need in their first call."""
    from icl_fast.data import Exemplars, gaussian_classes
    from icl_fast.runs import Population

    wanted = config.sequences
    drawn = gaussian_classes(wanted.classes + wanted.held_out_classes, wanted.exemplars, config.exemplars.width)
    device = maker.normal(1).device
    exemplars = Exemplars(drawn.features.to(device), drawn.base.to(device))
    population = Population(config)
    model = population.model(exemplars).to(device)
    return Inputs(exemplars=exemplars, population=population, model=model, device=device, runs={})


def going_on(name: str, begin: Callable[[Inputs], Losses]) -> Callable[[Inputs], Tensor]:
    """A candidate that begins in its first call, and in each one goes on where it was: the losses `[S,P]`."""

    @torch.enable_grad()  # the harness times forward passes without
    def call(x: Inputs) -> Tensor:
        if name not in x.runs:
            x.runs[name] = begin(x)
        losses: Tensor = x.runs[name]()
        return losses

    return call


class Drawn:
    """The next S steps' draws in every call."""

    def __init__(self, x: Inputs, steps: int) -> None:
        from icl_fast.data import training_sequences
        from icl_fast.training.exemplar_draws import Drawer

        sampler, training = (
            training_sequences(x.population.sequences, x.exemplars, x.device),
            x.population.config.training,
        )
        self.draw = Drawer(sampler, training.batch, training.steps)
        self.steps, self.step = steps, 0

    def __call__(self) -> tuple[Any, int]:
        """The draws, and the step that they begin at."""
        started, self.step = self.step, self.step + self.steps
        return self.draw(started, self.steps), started


class Torch:
    """An engine of this package: "fused", "plain" (on CUDA a CUDA graph), or "eager", which is plain without one.

    `together`: how many steps are one CUDA graph; 0: as many as the engine would take.
    """

    def __init__(self, x: Inputs, steps: int, engine: str, *, compiled: bool = False, together: int = 0) -> None:
        from icl_fast.training import exemplar_engine

        self.draw = Drawn(x, steps)
        model = copy.deepcopy(x.model)
        clamps = x.population.clamps().to(x.device)
        task = exemplar_engine.Task(model, x.exemplars.features, clamps, {}, x.population.config.training)
        self.engine: exemplar_engine.Engine
        if engine == "fused":
            self.engine = exemplar_engine.FusedEngine(task)
        else:
            self.engine = plain = exemplar_engine.PlainEngine(task)
            plain.graphs, plain.together = plain.graphs and engine == "plain", together or plain.together
        if compiled:
            self.engine.model = torch.compile(model, dynamic=False)

    def __call__(self) -> Tensor:
        losses: Tensor = self.engine.run(*self.draw())
        return losses


class Jax:
    """The same in JAX."""

    def __init__(self, x: Inputs, steps: int, *, scan: bool) -> None:
        from jax_exemplar_step import JaxTraining, Shape

        self.draw = Drawn(x, steps)
        model = x.model
        shape = {name: getattr(model.config, name) for name in Shape.__dataclass_fields__}
        weights = {name: weight.numpy(force=True) for name, weight in model.named_parameters()}
        rate = x.population.config.training.lr
        self.run = JaxTraining(weights, x.exemplars.features, Shape(**shape), rate, scan=scan)

    def __call__(self) -> Tensor:
        draws, _ = self.draw()
        drawn = (draws.classes, draws.exemplars, draws.labels, draws.target)
        return torch.from_numpy(self.run.run(*(values.numpy() for values in drawn)))


def make_evaluation(maker: Maker, config: Any, sequences: int) -> Inputs:
    """A model whose heads matter: label embeddings as large as those of exemplars, peaked attention."""
    x = make(maker, config)
    x.model.requires_grad_(False)
    x.model.embed_label.weight *= 50
    for block in x.model.blocks:
        for matrix in (block.attention.q, block.attention.k, block.attention.out):
            matrix.weight *= 2
    (x.evaluator,) = x.population.evaluators(x.exemplars, ["train"], sequences, x.device)
    return x


@torch.inference_mode()
def two_passes(x: Inputs) -> Tensor:
    """Losses of both passes, `[2,P,N]`."""
    from icl_fast.measure.exemplar.answers import score_answers
    from icl_fast.measure.exemplar.measured_model import MeasuredModel
    from icl_fast.models.exemplar_inference import ExemplarInference

    inference, heads, found = ExemplarInference(x.model), torch.ones(heads_of(x.model), device=x.device), []
    heads[(slice(None), *AGAIN_WITHOUT)] = 0
    for part, whole in MeasuredModel(x.model, x.exemplars.features, x.evaluator).first_passes():
        logits = whole.logits, inference.second(whole, heads=heads, preserve=["pattern"])
        found.append(torch.stack([score_answers(each, part).loss for each in logits]))
    return torch.cat(found, dim=-1)


@torch.inference_mode()
def two_passes_by_definition(x: Inputs) -> Tensor:
    """The same by interventions."""
    from icl_fast.measure.exemplar.answers import score_answers
    from icl_fast.measure.exemplar.measured_model import MeasuredModel
    from icl_fast.models import Intervention, site

    layer, head = AGAIN_WITHOUT
    patterns, found = [site("pattern", layer) for layer in range(x.model.config.layers)], []
    for part in MeasuredModel(x.model, x.exemplars.features, x.evaluator).chunks():
        first, sites = x.model.from_embedded(part.exemplars, part.labels, record=patterns)
        preserved = [Intervention.set(name, sites[name]) for name in patterns]
        removed = Intervention.zero(site("z", layer), heads=[head])
        again, _ = x.model.from_embedded(part.exemplars, part.labels, interventions=[*preserved, removed])
        found.append(torch.stack([score_answers(each, part).loss for each in (first, again)]))
    return torch.cat(found, dim=-1)


def heads_of(model: Any) -> tuple[int, int, int]:
    """[P,L,H]"""
    return model.members, model.config.layers, model.config.heads


def sequence_flops(config: Any) -> tuple[float, float]:
    """The products of one sequence's pass: of its exemplars' embedding, and of the rest.

    In the last layer only the query needs q, what it attends to and what is written.
    """
    shape, pairs = config.model, config.sequences.pairs
    width, length = shape.width, 2 * pairs + 1
    encoder = 2 * (pairs + 1) * config.exemplars.width * width
    everywhere = 2 * length * 4 * width**2 + 2 * length * (length + 1) * width
    query = 2 * (2 * length + 2) * width**2 + 4 * length * width
    return float(encoder), float((shape.layers - 1) * everywhere + query + 2 * width * outputs(config))


def step_flops(config: Any) -> float:
    """Of one member's step: forward, and twice that backward but for features, which need no gradient."""
    encoder, rest = sequence_flops(config)
    return config.training.batch * (2 * encoder + 3 * rest)


def evaluation_flops(config: Any) -> float:
    """Of a sequence that is embedded once and read twice."""
    encoder, rest = sequence_flops(config)
    return encoder + 2 * rest


def step_bytes(config: Any) -> float:
    """The traffic of one member's step: Adam reads and writes each weight and its two moments; features are read."""
    shape, pairs, features = config.model, config.sequences.pairs, config.exemplars.width
    width, length = shape.width, 2 * pairs + 1
    learned = length * width if shape.position == "learned" else 0
    layers = shape.layers * (4 * width**2 + 2 * width) + 2 * width
    parameters = (features + 1) * width + layers + learned + outputs(config) * (2 * width + 1)
    return 4.0 * (6 * parameters + config.training.batch * (pairs + 1) * features)


def outputs(config: Any) -> int:
    """V."""
    return int(config.sequences.label_pool if config.sequences.p_icl == 1 else config.sequences.classes)


if __name__ == "__main__":
    sys.exit(harness.main(NAME, cases, __file__))
