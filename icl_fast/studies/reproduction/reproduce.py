"""The plan of a reproduction, its trainings part by part, and the verdict on every claim that they allow."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch

from icl_fast import __version__
from icl_fast.analysis.claims import Chart, Curve, Measurement, Rule
from icl_fast.errors import InputError
from icl_fast.files import atomic_write, locked, read_json, sha256, to_json
from icl_fast.runs import Run, RunConfig, open_series
from icl_fast.runs.run import MANIFEST
from icl_fast.studies.reproduction import CLAIMS
from icl_fast.studies.reproduction.claim import Claim, Scale, Work
from icl_fast.studies.reproduction.experiments import Experiment, is_finished, load_experiments
from icl_fast.studies.reproduction.trained import Trained
from icl_fast.training import train

PART_MINUTES = 30.0
PUBLIC = "public"  # in the place of an experiment: other people's models
UNKNOWN_MINUTES = 10.0  # counted for an experiment whose time was not measured

Verdict = Literal["holds", "does not hold", "cannot be tested", "not run yet"]
Training = Callable[[str, RunConfig], AbstractContextManager[Callable[[Any], None]]]


@dataclass(frozen=True)
class Row:
    """A claim and what was found.

    Attributes:
        claim: the row of data.
        verdict: by its rule.
        measured: None: it was not.
        control: the same of trainings without the effect; None: not measured.
        control_fails: whether the rule does not hold there, as it must.
        seconds: that measuring took.
        why: of what cannot be tested.
    """

    claim: Claim
    verdict: Verdict
    measured: Measurement | None = None
    control: Measurement | None = None
    control_fails: bool | None = None
    seconds: float = 0.0
    why: str = ""


class Reproduction:
    """A work at a scale: which claims, which trainings they need, in which parts.

    Attributes:
        claims: those chosen, in order.
        experiments: those that the claims need, by name, in an order in which they can be trained.
        home: the folder of all of it.
    """

    def __init__(
        self,
        work: Work,
        scale: Scale,
        out: str | Path,
        configs: str | Path,
        names: Sequence[str] = (),
        public: str | Path | None = None,
        overrides: Sequence[str] = (),
    ) -> None:
        """
        Args:
            out: the folder of all reproductions.
            configs: the folder `configs` of a checkout.
            names: of claims; none: all of the work.
            public: other people's models, for the claims that speak of them (see `icl_fast.open_series`).
            overrides: of the config of every training, such as `data.corpus=FOLDER`.

        Raises:
            InputError: an unknown claim, or an experiment file that is missing or not as it should be.
        """
        known = {claim.name: claim for claim in CLAIMS[work]}
        if unknown := [name for name in names if name not in known]:
            raise InputError(f"claims: {work} has no claim {unknown[0]}; there are {', '.join(known)}")
        self.work, self.scale = work, scale
        self.claims = [known[name] for name in names] if names else list(known.values())
        every = load_experiments(configs, work, scale, out, overrides)
        self.public, self.chosen = public, bool(names)
        self._untested = {one.name: one.untested for one in every.values() if one.untested is not None}
        needed = {name for claim in self.testable() for name in claim.experiments} - {PUBLIC}
        if missing := needed - every.keys():
            raise InputError(f"configs: {work}.yaml has no experiment {min(missing)}")
        for one in reversed(every.values()):
            needed |= set(one.needs) if one.name in needed else set()
        self.experiments = {name: one for name, one in every.items() if name in needed}
        self.home = Path(out) / f"{work}-{scale}"

    def testable(self) -> Iterator[Claim]:
        """The chosen claims that can be tested."""
        return (claim for claim in self.claims if self.why_not(claim) is None)

    def why_not(self, claim: Claim) -> str | None:
        """Why a claim cannot be tested at this scale, or None if it can."""
        if PUBLIC in claim.experiments and self.public is None:
            return "other people's models are needed: give --public FOLDER, FILE.gguf or hf:ORG/NAME"
        if self.scale in claim.untested:
            return claim.untested[self.scale]
        return next((f"{name}: {self._untested[name]}" for name in claim.experiments if name in self._untested), None)

    def parts(self) -> list[list[Experiment]]:
        """The experiments in order, in parts of at most `PART_MINUTES` where one alone does not take longer."""
        parts: list[list[Experiment]] = []
        spent = PART_MINUTES
        for one in self.experiments.values():
            minutes = UNKNOWN_MINUTES if one.minutes is None else one.minutes
            if spent + minutes > PART_MINUTES:
                parts.append([])
                spent = 0.0
            parts[-1].append(one)
            spent += minutes
        return parts

    def train(self, experiments: Sequence[Experiment], show: Training) -> None:
        """Train what is not trained yet; what was interrupted goes on.

        Raises:
            InputError: as `icl_fast.training.train`.
            KeyboardInterrupt: after the state was saved.
        """
        for one in experiments:
            for folder, config in one.runs.items():
                run = Run(folder)
                if is_finished(run, config):
                    continue
                with show(str(folder.relative_to(self.home)), config) as on_progress:
                    train(config, folder, resume=run.exists, on_progress=on_progress)

    def judge(self, on_claim: Callable[[int, int, str], None], *, again: bool = False) -> list[Row]:
        """Measure every claim whose trainings are finished, and apply its rule.

        What was measured is kept in `home/claims`, and measured again where a training is another, or `again`.

        Raises:
            InputError: as the measurements.
        """
        self._found: dict[str, list[Trained]] = {}
        with locked(self.home / ".lock-claims", f"out: {self.home}", wait=True):  # parts may go on side by side
            return self._rows(on_claim, again)

    def _rows(self, on_claim: Callable[[int, int, str], None], again: bool) -> list[Row]:
        finished = {name for name, one in self.experiments.items() if one.finished()}
        rows = []
        for number, claim in enumerate(self.claims):
            on_claim(number, len(self.claims), claim.name)
            if (why := self.why_not(claim)) is not None:
                rows.append(Row(claim, "cannot be tested", why=why))
            elif not finished.issuperset(set(claim.experiments) - {PUBLIC}):
                rows.append(Row(claim, "not run yet"))
            else:
                rows.append(self._row(claim, again))
        on_claim(len(self.claims), len(self.claims), "")
        return rows

    def _row(self, claim: Claim, again: bool) -> Row:
        try:
            kept = self._measured(claim, again)
        except InputError as error:  # of one measurement: the other rows are none the worse
            return Row(claim, "cannot be tested", why=str(error))
        measured, control = _measurement(kept["measured"]), _measurement(kept["control"])
        rule = Rule(claim.rule)
        verdict: Verdict = "holds" if rule.holds(measured.quantities) else "does not hold"
        return Row(claim, verdict, measured, control, not rule.holds(control.quantities), kept["seconds"])

    def _measured(self, claim: Claim, again: bool) -> Mapping[str, Any]:
        path = self.home / "claims" / f"{claim.name}.json"
        identity = {
            "measure": f"{claim.measure.__module__}.{claim.measure.__qualname__}",
            "source": _source_hash(),
            "runs": [dict(claim.runs), dict(claim.control)],
            "arguments": [repr(claim.arguments), repr(claim.without_arguments)],
            "trained": {name: self._weights(name) for name in claim.experiments},
        }
        if path.exists() and not again and (kept := read_json(path, "claim")).get("identity") == identity:
            return dict(kept)
        began = time.monotonic()
        measured, control = (claim.measured(self._trained, control=which) for which in (False, True))
        found = {
            "identity": identity,
            "seconds": time.monotonic() - began,
            "machine": f"{platform.machine()}, torch {torch.__version__}, icl_fast {__version__}",
            "measured": asdict(measured),
            "control": asdict(control),
        }
        with atomic_write(path) as temporary:
            temporary.write_text(to_json(found, indent=1), encoding="utf-8")
        return dict(read_json(path, "claim"))  # as it will be read again: infinity is not a number there

    def _weights(self, name: str) -> list[str]:
        """SHA-256 (hex) of all that an experiment's measurements read."""
        if name == PUBLIC:
            return list(map(str, open_series(self.public or "", "last").hashes().items()))
        return [sha256(folder / MANIFEST) for folder in self.experiments[name].runs]

    def _trained(self, which: str) -> list[Trained]:
        if which not in self._found:  # the same ones for every claim, so that what is read off them is read once
            named, _, share = which.partition("@")
            name, _, member = named.partition(":")
            self._found[which] = (
                [Trained(PUBLIC, Run(self.public or ""))]
                if which == PUBLIC
                else self.experiments[name].trained(member or None, float(share) if share else 1.0)
            )
        return self._found[which]


@cache
def _source_hash() -> str:
    """SHA-256 (hex) of the code that measures claims and of the analyses that it calls."""
    package = Path(__file__).parents[2]
    files = sorted([*package.glob("studies/reproduction/*.py"), *package.glob("analysis/*.py")])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _measurement(kept: Mapping[str, Any]) -> Measurement:
    """What was written as JSON, in which a number that is not finite is null."""
    quantities = {name: [_number(value) for value in values] for name, values in kept["quantities"].items()}
    chart = dict(kept["chart"])
    chart["curves"] = [Curve(**curve) for curve in chart["curves"]]
    return Measurement(quantities, Chart(**chart))


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)
