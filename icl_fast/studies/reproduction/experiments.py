"""The trainings that claims rest on: `configs/reproduction/<work>.yaml`, a config and what each scale changes of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from icl_fast.errors import InputError
from icl_fast.runs import ExemplarRunConfig, Run, RunConfig, load_config
from icl_fast.runs.config import differing_keys, parse_config
from icl_fast.runs.config_files import read_yaml
from icl_fast.studies.reproduction.claim import SCALES, Scale, Work
from icl_fast.studies.reproduction.trained import Trained

_FOLDER = re.compile(r"\{([a-z0-9_]+)\}")  # in overrides: the folder of another experiment
_KEYS, _SCALE_KEYS = {"config", "set", *SCALES}, {"config", "set", "seeds", "minutes", "untested"}


@dataclass(frozen=True)
class Experiment:
    """One training, some seeds of it, or a population, at one scale.

    Attributes:
        name: of it.
        config: the config file.
        overrides: on top, as `--set` takes them.
        seeds: how many of each; None: those that the config lists.
        minutes: that it takes on the machine that the plan names; None: not measured.
        folder: where it goes.
        needs: experiments whose snapshots it begins from.
        untested: why it cannot be trained at this scale; None: it can.
    """

    name: str
    config: Path
    overrides: tuple[str, ...]
    seeds: int | None
    minutes: float | None
    folder: Path
    needs: tuple[str, ...]
    untested: str | None

    @cached_property
    def runs(self) -> dict[Path, RunConfig]:
        """The run folders and their configs: on text one for each seed, on exemplars one population.

        Raises:
            InputError: a config that is missing or wrong.
        """
        config = load_config(self.config, self.overrides)
        if isinstance(config, ExemplarRunConfig):
            return {self.folder: config if self.seeds is None else _with_seeds(config, self.seeds)}
        first = config.training.seed
        return {
            self.folder / f"seed{seed}": load_config(self.config, [*self.overrides, f"training.seed={seed}"])
            for seed in range(first, first + (self.seeds or 1))
        }

    def finished(self) -> bool:
        """Whether all of it is trained."""
        return all(is_finished(Run(folder), config) for folder, config in self.runs.items())

    def trained(self, member: str | None, share: float) -> list[Trained]:
        """One of each seed: all of them, or those of the population's member of that name.

        Raises:
            InputError: no member of that name.
        """
        found = []
        for folder, config in self.runs.items():
            run = Run(folder)
            if not isinstance(config, ExemplarRunConfig):
                found.append(Trained(self.name, run, None, share))
                continue
            chosen = [
                index
                for index, name in enumerate(run.population.names)
                if member is None or name == member or name.startswith(f"{member} | seed ")
            ]
            found += [Trained(run.population.names[index], run, index, share) for index in chosen]
        if not found:
            raise InputError(f"experiment {self.name}: has no member {member}")
        return found


def is_finished(run: Run, config: RunConfig) -> bool:
    """Whether a run folder holds its last snapshot.

    Raises:
        InputError: it holds a run with another config.
    """
    if not run.exists:
        return False
    wanted = config if isinstance(config, ExemplarRunConfig) else config.with_absolute_corpus()
    if differing := differing_keys(run.config, wanted):
        raise InputError(
            f"out: {run.path} was begun with other values of {', '.join(differing)}; remove it, or take another folder"
        )
    return config.training.steps in run.snapshot_steps()


def load_experiments(
    configs: str | Path, work: Work, scale: Scale, out: str | Path, overrides: Sequence[str] = ()
) -> dict[str, Experiment]:
    """All experiments of a work at a scale, those that others need first.

    Args:
        configs: the folder `configs` of a checkout.
        out: the folder that their run folders go to, `out/<work>-<scale>/<name>`.
        overrides: on top of those of every experiment.

    Raises:
        InputError: a file that is missing or not as it should be.
    """
    source = Path(configs) / "reproduction" / f"{work}.yaml"
    rows, home = read_yaml(source), Path(out) / f"{work}-{scale}"
    for name, row in rows.items():
        _check(source, name, row)
    found = {name: _experiment(name, row, scale, Path(configs), home, overrides) for name, row in rows.items()}
    for one in found.values():
        if unknown := [name for name in one.needs if name not in found]:
            raise InputError(f"config {source}: {one.name}: there is no experiment {unknown[0]}")
    ordered: dict[str, Experiment] = {}

    def add(one: Experiment, above: tuple[str, ...] = ()) -> None:
        if one.name in above:
            raise InputError(f"config {source}: {one.name} needs itself")
        for name in one.needs:
            add(found[name], (*above, one.name))
        ordered[one.name] = one

    for one in found.values():
        add(one)
    return ordered


def _check(source: Path, name: str, row: Any) -> None:
    whole = isinstance(row, dict) and "config" in row and row.keys() <= _KEYS
    scales = [row.get(scale, {}) for scale in SCALES] if whole else []
    if not whole or not all(isinstance(at, dict) and at.keys() <= _SCALE_KEYS for at in scales):
        raise InputError(
            f"config {source}: {name}: must have config, and may have set, {', '.join(SCALES)} (each with config, set, "
            "seeds, minutes, untested)"
        )


def _experiment(
    name: str, row: Mapping[str, Any], scale: Scale, configs: Path, home: Path, more: Sequence[str]
) -> Experiment:
    at = row.get(scale, {"untested": f"no training is set at the scale {scale}"})
    overrides = [*row.get("set", []), *_flat(at.get("set", [])), *more]
    config = configs / at.get("config", row["config"])
    needs = tuple(dict.fromkeys(_FOLDER.findall("\n".join(overrides))))
    filled = tuple(_FOLDER.sub(lambda match: str(home / match[1]), one) for one in overrides)
    return Experiment(name, config, filled, at.get("seeds"), at.get("minutes"), home / name, needs, at.get("untested"))


def _flat(overrides: Sequence[Any]) -> list[str]:
    """What a list holds, and what the lists in it hold: of YAML's aliases."""
    return [one for part in overrides for one in ([part] if isinstance(part, str) else _flat(part))]


def _with_seeds(config: ExemplarRunConfig, seeds: int) -> ExemplarRunConfig:
    """The population of every member of the config with each of so many seeds, the config's own first."""
    values = config.model_dump(mode="json") | {"seeds": 1}
    members: Sequence[tuple[str, dict[str, Any]]] = [("", {})]
    if not isinstance(config.members, int):
        members = [(f"{member.name} | ", member.set) for member in config.members]
    values["members"] = [
        {"name": f"{name}seed {seed}", "set": {**changed, "training.seed": seed}}
        for name, changed in members
        for seed in range(config.training.seed, config.training.seed + seeds)
    ]
    parsed = parse_config(values)
    assert isinstance(parsed, ExemplarRunConfig)
    return parsed
