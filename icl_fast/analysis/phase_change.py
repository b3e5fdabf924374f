"""Whether and when a model went through the phase change: a rule fixed beforehand, applied to what was measured.

The whole curve of the ICL score decides: a change with a beginning and an end, a logistic in log steps, must describe
it better than anything smooth does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import xarray as xr

from icl_fast.analysis.arrays import Floats, unablated
from icl_fast.errors import InputError

MIN_DROP = 0.2
MIN_PREFIX_MATCHING = 0.2
MIN_EVIDENCE = 10.0  # leaves the other model "essentially no support" (Burnham and Anderson 2002, 2.6)
MAX_ABRUPTNESS = 9.0  # of a straight line from step 0, which is 90% down after 9 times the steps of 10%
MIN_SNAPSHOTS = 7  # fewer leave no noise to compare the two fits by
LEVEL = 0.95  # of intervals
RESAMPLES = 400

_EDGE = np.log(9)  # a logistic is 10% and 90% done so far, in its own units, from its middle
_EXPONENTS = np.linspace(-1, 1, 21)
_RESOLUTION = 1e-3  # nats; fits that miss the curve by less are both right
_LOGISTIC, _SMOOTH = 5, 4  # parameters, the noise among them

Interval = tuple[float, float]


@dataclass(frozen=True)
class PhaseChange:
    """The verdict and what it rests on; intervals hold the middle 95% of resampled curves.

    Attributes:
        happened: `drop`, `prefix_matching` and `evidence` reach their minimum, and `abruptness` is below its maximum.
        drop: nats by which the fitted ICL score falls over the training; 0 where it rises.
        drop_interval: of it.
        prefix_matching: the best head's score at the end of training, 0 to 1.
        start: index of the last snapshot before the fitted change is 10% done; None where the score never fell.
        end: index of the first snapshot after it is 90% done.
        window: (start, end) as fitted, in steps; None where the score never fell, as all below.
        start_interval, end_interval: of its two ends.
        abruptness: the end of the window over its start: 2 in the paper, whose change takes 2.5 to 5 billion tokens.
        abruptness_interval: of it.
        smooth_abruptness: the same of the best smooth fit; None where that never falls.
        evidence: by how much the AICc of the best smooth fit exceeds that of the change.
        support: share of the resampled curves that pass the rule.
        resampled: what was drawn anew.
    """

    happened: bool
    drop: float
    drop_interval: Interval
    prefix_matching: float
    start: int | None
    end: int | None
    window: Interval | None
    start_interval: Interval | None
    end_interval: Interval | None
    abruptness: float | None
    abruptness_interval: Interval | None
    smooth_abruptness: float | None
    evidence: float
    support: float
    resampled: Literal["examples and snapshots", "snapshots"]


def find_phase_change(
    steps: Sequence[int],
    icl_scores: Sequence[float],
    prefix_matching: Sequence[float],
    example_scores: Floats | None = None,
) -> PhaseChange:
    """Apply the rule to a model's snapshots in order of training.

    A snapshot at step 0 is left out: untrained weights predict all positions equally badly, and the score's first
    change, from that to knowing how frequent tokens are, is not the one in question.

    Two descriptions of the ICL score are fitted to all other snapshots. The change is a logistic in log steps, 10%
    done at the second snapshot or later and 90% at the last but one or earlier, so that the level on either side is
    seen more than once. What is smooth is a power of the steps, with an exponent from -1 to 1 (0: their log), which has
    a straight line in it, or a parabola in their log. They are compared by AICc, whose noise is that of the curve about
    each fit. Olsson et al. 2022 mark the interval by eye ("the phase change interval"). A drop alone is not enough: any
    language model uses its context a little, so that the same change must also leave an induction head behind.

    Resampled curves are the better of the two fits with the residuals from it drawn anew, in blocks of neighbouring
    snapshots, and with what another draw of the examples adds to the measured curve. They err on the side of width: a
    part of what examples add is in the residuals too.

    Args:
        steps: optimizer steps, one a snapshot, rising.
        icl_scores: nats, one a snapshot.
        prefix_matching: the best head's prefix-matching score, one a snapshot.
        example_scores: [snapshot, example] those that `icl_scores` are the means of; None: snapshots alone are
            resampled.

    Raises:
        InputError: different lengths, fewer than `MIN_SNAPSHOTS` trained snapshots, or a value that is not finite.
    """
    scores, matching = np.asarray(icl_scores, dtype=float), np.asarray(prefix_matching, dtype=float)
    if not len(steps) == len(scores) == len(matching) or list(steps) != sorted(set(steps)):
        raise InputError(
            f"steps must rise and be as many as icl_scores and prefix_matching, "
            f"got {len(steps)}, {len(scores)} and {len(matching)}"
        )
    by_example = np.zeros((len(scores), 1)) if example_scores is None else np.asarray(example_scores, dtype=float)
    if by_example.ndim != 2 or len(by_example) != len(scores) or by_example.shape[1] == 0:
        raise InputError(
            f"example_scores must be [snapshot, example] of {len(scores)} snapshots, got {by_example.shape}"
        )
    untrained = sum(step == 0 for step in steps)
    at, curve, by_example = np.array(steps[untrained:], dtype=float), scores[untrained:], by_example[untrained:]
    if len(curve) < MIN_SNAPSHOTS:
        raise InputError(f"steps: {MIN_SNAPSHOTS} snapshots after step 0 or more are needed, got {len(curve)}")
    if not (np.isfinite(scores).all() and np.isfinite(matching).all() and np.isfinite(by_example).all()):
        raise InputError("scores and prefix_matching must be finite; leave out the snapshots that diverged")
    final, fits = float(matching[-1]), _Fits(at)
    found = fits.fit(curve[None])
    smooth, smooth_abruptness = fits.smooth(curve)
    better = found.fitted[0] if found.evidence[0] > 0 else smooth
    resampled = fits.fit(_resampled(curve, better, by_example))
    passed = resampled.passed & (final >= MIN_PREFIX_MATCHING)
    fell = found.drop[0] > 0
    lasting = resampled.drop > 0  # a resampled curve that rises has no window
    start, end = found.start[0], found.end[0]
    return PhaseChange(
        happened=bool(found.passed[0] and final >= MIN_PREFIX_MATCHING),
        drop=float(found.drop[0]),
        drop_interval=_interval(resampled.drop),
        prefix_matching=final,
        start=untrained + int(np.flatnonzero(at <= start * (1 + 1e-9))[-1]) if fell else None,
        end=untrained + int(np.flatnonzero(at >= end * (1 - 1e-9))[0]) if fell else None,
        window=(float(start), float(end)) if fell else None,
        start_interval=_interval(resampled.start[lasting]) if fell else None,
        end_interval=_interval(resampled.end[lasting]) if fell else None,
        abruptness=float(end / start) if fell else None,
        abruptness_interval=_interval((resampled.end / resampled.start)[lasting]) if fell else None,
        smooth_abruptness=smooth_abruptness if fell else None,
        evidence=float(found.evidence[0]),
        support=float(passed.mean()),
        resampled="snapshots" if example_scores is None else "examples and snapshots",
    )


def phase_change_of(sweep: xr.Dataset, prefix_matching: xr.DataArray) -> PhaseChange | None:
    """`find_phase_change` in what was measured of a run; None: it has too few snapshots.

    Args:
        sweep: of the run, with the ICL score; intervals are over examples too where it holds theirs, as stores of
            before do not.
        prefix_matching: of every head, `snapshot` among its dims.

    Raises:
        InputError: no ICL score, or a value that is not finite.
    """
    if int((sweep["snapshot"] > 0).sum()) < MIN_SNAPSHOTS:
        return None
    of_examples = sweep.get("example_icl_score")
    return find_phase_change(
        sweep["snapshot"].values.tolist(),
        unablated("sweep", sweep, "icl_score").values.tolist(),
        prefix_matching.max([dim for dim in prefix_matching.dims if dim != "snapshot"]).values.tolist(),
        None if of_examples is None else of_examples.transpose("snapshot", "example").values,
    )


@dataclass(frozen=True)
class _Found:
    """The best change of each of B curves: `fitted` [B,K], the others [B]; `start` and `end` in steps."""

    fitted: Floats
    start: Floats
    end: Floats
    drop: Floats
    evidence: Floats

    @property
    def passed(self) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Whether the curve alone passes the rule."""
        abrupt = self.end < MAX_ABRUPTNESS * self.start
        passed: np.ndarray[tuple[int], np.dtype[np.bool_]] = (
            (self.drop >= MIN_DROP) & (self.evidence >= MIN_EVIDENCE) & abrupt
        )
        return passed


class _Fits:
    """Least squares at given steps [K], on grids: a level and a shape's height are solved for, so that the residual of
    a curve is its length less its product with the centred shape of length 1."""

    def __init__(self, at: Floats) -> None:
        self.at, log = at, np.log(at)
        # what one snapshot alone shows, first or last, may be chance
        index, even = np.linspace(1, len(at) - 2, 48), np.linspace(log[1], log[-2], 48)
        times = np.unique(np.concatenate([np.interp(index, np.arange(len(at)), log), even]))
        first, last = np.triu_indices(len(times), 1)
        self.start, self.end = times[first], times[last]
        middle, width = (self.start + self.end) / 2, (self.end - self.start) / (2 * _EDGE)
        rising = 1 / (1 + np.exp(-np.clip((log - middle[:, None]) / width[:, None], -700, 700)))  # [grid,K]
        self.changes = _shapes(rising)
        scaled = (log - log[0]) / (log[-1] - log[0])
        self.powers = _shapes(_powers(at / at[-1]))
        self.parabola = np.linalg.qr(np.vander(scaled, 3, increasing=True))[0][:, 1:].T  # [2,K]

    def fit(self, curves: Floats) -> _Found:
        """The best change of curves [B,K], and the evidence for it."""
        count = curves.shape[1]
        level = curves.mean(1, keepdims=True)
        centred = curves - level
        length = (centred**2).sum(1)
        along = -centred @ self.changes.T  # [B,grid], positive where the curve falls
        best = along.argmax(1)
        height = np.maximum(along[np.arange(len(curves)), best], 0)
        shape = self.changes[best]
        smooth = length - np.maximum(((centred @ self.powers.T) ** 2).max(1), ((centred @ self.parabola.T) ** 2).sum(1))
        drop = height * (shape[:, -1] - shape[:, 0])
        return _Found(
            fitted=level - height[:, None] * shape,
            start=np.exp(self.start[best]),
            end=np.exp(self.end[best]),
            drop=np.where(drop < _RESOLUTION, 0.0, drop),
            evidence=_aicc(smooth, count, _SMOOTH) - _aicc(length - height**2, count, _LOGISTIC),
        )

    def smooth(self, curve: Floats) -> tuple[Floats, float | None]:
        """The best smooth fit to a curve [K], and the steps after which it is 90% down over those of 10%; None where it
        does not fall."""
        centred, log = curve - curve.mean(), np.log(self.at)
        products = self.powers @ centred
        best = int(np.abs(products).argmax())
        fine = np.linspace(log[0], log[-1], 2001)
        if products[best] ** 2 >= ((self.parabola @ centred) ** 2).sum():
            exponent = _EXPONENTS[[best]]
            of_steps, of_fine = (_powers(np.exp(x - log[-1]), exponent)[0] for x in (log, fine))
            line = np.polyfit(of_steps, curve, 1)
            fitted, values = np.polyval(line, of_steps), np.polyval(line, of_fine)
        else:
            parabola = np.polyfit(log, curve, 2)
            fitted, values = np.polyval(parabola, log), np.polyval(parabola, fine)
        low = int(values.argmin())
        high = int(values[: low + 1].argmax())
        fallen = values[high] - values[high : low + 1]
        if fallen[-1] <= 0:
            return fitted, None
        first, last = (fine[high + np.flatnonzero(fallen >= part * fallen[-1])[0]] for part in (0.1, 0.9))
        return fitted, float(np.exp(last - first))


def _powers(at: Floats, exponents: Floats = _EXPONENTS) -> Floats:
    """[exponent,K] powers of the steps, their log for exponent 0."""
    flat = np.abs(exponents) < 1e-9
    powers: Floats = np.where(flat[:, None], np.log(at), at ** exponents[:, None])
    return powers


def _shapes(values: Floats) -> Floats:
    """Rows [..,K], centred and of length 1; zeros where one is constant."""
    centred = values - values.mean(1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    shapes: Floats = centred / np.where(length > 1e-9, length, np.inf)
    return shapes


def _aicc(squares: Floats, count: int, parameters: int) -> Floats:
    """Akaike's criterion, corrected for few points (Hurvich and Tsai 1989), of a least-squares fit."""
    noise = np.maximum(squares / count, _RESOLUTION**2)
    penalty = 2 * parameters + 2 * parameters * (parameters + 1) / (count - parameters - 1)
    criterion: Floats = count * np.log(noise) + penalty
    return criterion


def _resampled(curve: Floats, fitted: Floats, by_example: Floats) -> Floats:
    """[RESAMPLES,K] curves that might have been measured."""
    random = np.random.default_rng(0)
    count, examples = by_example.shape
    residuals = (curve - fitted) * np.sqrt(count / (count - _LOGISTIC + 1))
    block = round(count ** (1 / 3))
    begins = random.integers(count, size=(RESAMPLES, -(-count // block)))
    drawn = (begins[..., None] + np.arange(block)).reshape(RESAMPLES, -1)[:, :count] % count
    weights = random.multinomial(examples, np.full(examples, 1 / examples), size=RESAMPLES) / examples
    others: Floats = fitted + residuals[drawn] + weights @ by_example.T - by_example.mean(1)
    return others


def _interval(values: Floats) -> Interval:
    low, high = np.quantile(values, ((1 - LEVEL) / 2, (1 + LEVEL) / 2)) if len(values) else (np.nan, np.nan)
    return float(low), float(high)
