"""Sequences of (exemplar, label) pairs and a query, drawn as integers, for one run or a population of runs.

Sequence i of a seed is a function of the two, whatever the batch it is drawn in and whoever else is drawn with it.
Nothing is rejected and nothing is drawn over all classes: a sequence costs the same at 50 classes as at 12,800.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray

from icl_fast.arguments import whole_number
from icl_fast.data.counter_random import below, below_finely, normal, random_words
from icl_fast.data.sequence_config import SequenceConfig
from icl_fast.data.splits import ExemplarTable, Integers, Split, split
from icl_fast.errors import InputError
from icl_fast.memory import check_fits

KINDS = ("bursty", "iid", "icl", "iwl", "ciwl", "flip")
BURSTY, IID, ICL, IWL, CIWL, FLIP = range(len(KINDS))
# purposes of the random words of a sequence; none takes words of another
_KIND, _CLASSES, _OWN_LABELS, _NEW_LABELS, _PAIR, _POSITIONS, _EXEMPLARS = range(7)


@dataclass(frozen=True)
class Sequences:
    """Integer draws, all int64. `*` is `[B]`, or `[P,B]` for a population.

    Attributes:
        classes: `[*,n+1]`, first index of the features; the last position is the query.
        exemplars: `[*,n+1]`, second index of the features.
        labels: `[*,n]`: the label that follows each context exemplar.
        target: `[*]`: the query's label.
        kind: `[*]`, index into `KINDS`: how the sequence was drawn. An "iid" sequence may hold its query's class too.
    """

    classes: torch.Tensor
    exemplars: torch.Tensor
    labels: torch.Tensor
    target: torch.Tensor
    kind: torch.Tensor

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, index: int | slice | torch.Tensor) -> Sequences:
        """The sequences at an index of the first dimension."""
        return Sequences(*(getattr(self, field.name)[index] for field in fields(self)))


@dataclass(frozen=True)
class Recipe:
    """All that the draws of one member depend on; see `training_recipe` and `icl_fast.data.evaluators`.

    Attributes:
        seed, stream: sequences of two streams are independent; stream 0 is training.
        pairs, burstiness, labels_per_class, label_pool, matched, noise: as in `SequenceConfig`.
        mix: `[len(KINDS)]`, the probability of each kind.
        classes: `[C]`: the class of each rank.
        exemplars: `[K,E]`: which exemplars of each class may be drawn.
        weights: `[C]`: relative frequency of each rank.
        query_weights: `[C]`: the same for the query's class.
        label_pairs: `[M,2]`: unordered pairs that "icl" sequences take their labels from; None for any of the pool.
    """

    seed: int
    stream: int
    pairs: int
    burstiness: int
    mix: tuple[float, ...]
    classes: Integers
    exemplars: Integers
    weights: NDArray[np.float64]
    query_weights: NDArray[np.float64]
    labels_per_class: int = 1
    label_pool: int = 2
    label_pairs: Integers | None = None
    matched: bool = False
    noise: float = 0.0

    @property
    def distinct_classes(self) -> int:
        """How many different classes the most demanding kind needs."""
        bursty = self.pairs - 2 * self.burstiness + 2
        distinct = self.pairs + 1
        needs = {BURSTY: bursty, IID: 1, ICL: bursty, IWL: distinct, CIWL: distinct, FLIP: bursty}
        return max(need for kind, need in needs.items() if self.mix[kind])

    def check(self) -> None:
        """Refuse what cannot be drawn.

        Raises:
            InputError: a sequence needs more different classes than there are.
        """
        if self.distinct_classes > len(self.classes):
            raise InputError(
                f"sequences.classes {len(self.classes)}: a sequence of {self.pairs} pairs with burstiness "
                f"{self.burstiness} needs {self.distinct_classes} different classes; add classes or take fewer pairs"
            )


def zipf_weights(count: int, exponent: float) -> NDArray[np.float64]:
    """Frequency of the classes of rank 1 to `count`, `x^-exponent` (Singh 2025, equation 2.1), not normalised."""
    ranks = np.arange(1, count + 1, dtype=np.float64)
    return np.exp(-exponent * np.log(ranks))


def training_recipe(config: SequenceConfig, parts: Split) -> Recipe:
    """What training sequences are drawn from."""
    bursty, iid = config.p_fixed * config.p_bursty, config.p_fixed * (1 - config.p_bursty)
    weights = zipf_weights(len(parts.train_classes), config.zipf)
    return Recipe(
        seed=config.seed,
        stream=0,
        pairs=config.pairs,
        burstiness=config.burstiness,
        mix=(bursty, iid, config.p_icl, config.p_iwl, config.p_ciwl, 0.0),
        classes=parts.train_classes,
        exemplars=parts.train_exemplars,
        weights=weights,
        query_weights=weights,
        labels_per_class=config.labels_per_class,
        label_pool=config.label_pool,
        label_pairs=parts.train_label_pairs,
        matched=config.matched,
        noise=config.noise,
    )


def training_sequences(
    configs: SequenceConfig | Sequence[SequenceConfig], exemplars: ExemplarTable, device: torch.device | str = "cpu"
) -> SequenceSampler:
    """The training sequences of one run, or of P runs drawn as one.

    Raises:
        InputError: a config that the exemplars cannot serve, or members with contexts of different lengths.
    """
    if isinstance(configs, SequenceConfig):
        return SequenceSampler(training_recipe(configs, split(configs, exemplars)), device)
    return SequenceSampler([training_recipe(config, split(config, exemplars)) for config in configs], device)


def output_labels(config: SequenceConfig, exemplars: ExemplarTable) -> int:
    """V: how many labels a model of these sequences must tell apart.

    C times `labels_per_class` (chapter 5: 12,800) or, if larger or if every sequence draws its labels, `label_pool`
    (chapter 4: 5).
    """
    own = 0 if config.p_icl == 1 else len(split(config, exemplars).train_classes) * config.labels_per_class
    return max(own, config.label_pool)


def describe(sequences: Sequences, names: Sequence[str] | None = None) -> str:
    """Each sequence as a line of text: its kind, every pair as exemplar:label, then the query and its label.

    An exemplar is class/exemplar, the class by its name in `names` if given; `*` marks the query's class in context
    and, behind a label, the query's label.
    """
    lines = []
    last = sequences.target.ndim - 1
    columns = [getattr(sequences, field.name).flatten(0, last).tolist() for field in fields(sequences)]
    for classes, exemplars, labels, target, kind in zip(*columns, strict=True):
        shown = [f"{names[k] if names else k}/{e}" for k, e in zip(classes, exemplars, strict=True)]
        pairs = [
            f"{'*' * (k == classes[-1])}{text}:{label}{'*' * (label == target)}"
            for k, text, label in zip(classes, shown, labels, strict=False)
        ]
        lines.append(f"{KINDS[kind]:6}  {'  '.join(pairs)}  ? {shown[-1]}:{target}")
    return "\n".join(lines)


class SequenceSampler:
    """Draws of one recipe, or of P recipes as one batch, on a device.

    Attributes:
        members: P, or None for one recipe alone.
        pairs: n.
        device: where the draws are made and returned.
    """

    def __init__(self, recipes: Recipe | Sequence[Recipe], device: torch.device | str = "cpu") -> None:
        self.members = None if isinstance(recipes, Recipe) else len(recipes)
        self.device = torch.device(device)
        recipes = [recipes] if isinstance(recipes, Recipe) else list(recipes)
        if not recipes:
            raise InputError("sequences: a population needs at least one member")
        self.pairs = recipes[0].pairs
        for recipe in recipes:
            recipe.check()
            if recipe.pairs != self.pairs:
                raise InputError(
                    f"sequences.pairs: the members of a population must agree, got {self.pairs} and {recipe.pairs}"
                )
        self._knobs(recipes)

    def draw(self, start: int, count: int) -> Sequences:
        """Sequences `start` to `start + count - 1` (0-based) of every member; the fields are those of `Sequences`.

        Raises:
            InputError: a negative start or count, or more than this machine can hold.
        """
        words = self._words(start, count)
        kind = (words[_KIND] >= self._kind_limits).sum(-1, keepdim=True)  # [P,B,1]
        ranks = self._ranks(words[_CLASSES], kind)  # [P,B,n+1] by role: the query's class has role 0
        shown = self._labels_by_role(words, ranks, kind)
        order = words[_POSITIONS].argsort(dim=-1, stable=True)
        roles = self._roles(kind).gather(-1, order)
        rank = torch.cat([ranks.gather(-1, roles), ranks[..., :1]], dim=-1)
        choice = below(words[_EXEMPLARS], self._exemplar_count)
        choice = torch.where(self._matched & (rank == rank[..., -1:]), choice[..., -1:], choice)
        classes = self._class_of[self._class_offset + rank]
        exemplars = self._exemplar_of[self._exemplar_offset + classes * self._exemplar_count + choice]
        labels = shown.gather(-1, roles)
        drawn = Sequences(classes, exemplars.to(torch.int64), labels, shown[..., 0], kind[..., 0])
        return drawn if self.members is not None else drawn[0]

    def noise(self, start: int, count: int, features: int) -> torch.Tensor:
        """What to add to the features of sequences `start` to `start + count - 1`: `[*,n+1,features]` float32.

        Raises:
            InputError: as `draw`.
        """
        wanted = (self.pairs + 1) * features
        lanes = torch.arange(-(-wanted // 4), device=self.device)
        words = random_words(self._seed, self._index(start, count, len(lanes)), lanes, 2 * self._stream + 1)
        drawn = normal(words)[..., :wanted].reshape(*words.shape[:2], self.pairs + 1, features) * self._noise
        return drawn if self.members is not None else drawn[0]

    def _index(self, start: int, count: int, lanes: int) -> torch.Tensor:
        start, count = whole_number("start", start, 0, 2**62), whole_number("count", count, 0, 2**62)
        if self.device.type == "cpu":
            words = 32 * lanes * len(self._seed)  # bytes
            check_fits(3 * count * words, f"count: {count} sequences of {self.pairs} pairs")
        return torch.arange(start, start + count, device=self.device)

    def _words(self, start: int, count: int) -> dict[int, torch.Tensor]:
        """By purpose, `[P,B,words]`. Purposes that no member has a use for are left out; no other word shifts."""
        lanes = torch.cat([self._lanes[purpose] for purpose in self._lanes])
        words = random_words(self._seed, self._index(start, count, len(lanes)), lanes, 2 * self._stream)
        parts = torch.split(words, [4 * len(lane) for lane in self._lanes.values()], dim=-1)
        return {
            purpose: part[..., : self._word_counts[purpose]] for purpose, part in zip(self._lanes, parts, strict=True)
        }

    def _ranks(self, words: torch.Tensor, kind: torch.Tensor) -> torch.Tensor:
        distinct = self._distinct(words, self._most_classes, self._query_table, self._table)
        if not self._any_iid:
            return _pad(distinct, self.pairs + 1)
        high, low = words[..., 0::2], words[..., 1::2]
        alone = self._find(below_finely(high, low, self._total[self._table]), self._table)
        return torch.where(kind == IID, alone, _pad(distinct, self.pairs + 1))

    def _distinct(self, words: torch.Tensor, count: int, first: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
        """`count` different ranks, `[P,B,count]`, each by its weight among those left; the first by another table.

        A rank owns an interval of the integers below the table's total. The next draw is a point of what the ranks
        already taken leave; it is moved up past every taken interval at or below it.
        """
        point = below_finely(words[..., 0:1], words[..., 1:2], self._total[first])
        ranks = self._find(point, first)
        offset, base = self._offset[rest], self._base[rest]
        for i in range(1, count):
            at = offset + ranks
            start, order = (self._start[at] - base).sort(dim=-1)
            weight = self._weight[at].gather(-1, order)
            # the i-th taken interval moves a point that is at or past its start, less the intervals before it
            threshold = start - weight.cumsum(-1) + weight
            left = self._total[rest] - weight.sum(-1, keepdim=True)
            point = below_finely(words[..., 2 * i : 2 * i + 1], words[..., 2 * i + 1 : 2 * i + 2], left.clamp_min(1))
            point = point + (weight * (point >= threshold)).sum(-1, keepdim=True)
            ranks = torch.cat([ranks, self._find(point, rest)], dim=-1)
        return ranks

    def _find(self, point: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """The ranks whose intervals hold the points."""
        offset = self._offset[table]
        rank = torch.searchsorted(self._start, point + self._base[table], right=True) - 1 - offset
        # where fewer classes are left than the most demanding member needs, the draw is not used but must exist
        return torch.minimum(rank, self._size[table] - 1)

    def _labels_by_role(self, words: dict[int, torch.Tensor], ranks: torch.Tensor, kind: torch.Tensor) -> torch.Tensor:
        """The labels shown with the class of each role, `[P,B,n+1]`; that of the query's class is the target."""
        own = ranks * self._labels_per_class
        if _OWN_LABELS in words:
            # roles of the same class, which only "iid" sequences have, show the label of the first of them
            first = (ranks[..., None] == ranks[..., None, :]).to(torch.uint8).argmax(-1)
            own = own + below(words[_OWN_LABELS], self._labels_per_class).gather(-1, first)
        shown = own.clone()
        shown[..., 1:2] = torch.where(kind == CIWL, own[..., :1], own[..., 1:2])
        if self._any_flip:
            shown[..., :2] = torch.where(kind == FLIP, own[..., :2].flip(-1), shown[..., :2])
        if _NEW_LABELS in words:
            new = _pad(self._new_labels(words), self.pairs + 1)
            shown = torch.where(kind == ICL, new, shown)
        return shown

    def _new_labels(self, words: dict[int, torch.Tensor]) -> torch.Tensor:
        labels = self._distinct(words[_NEW_LABELS], self._most_labels, self._label_table, self._label_table)
        if _PAIR not in words:
            return labels
        pair = words[_PAIR]
        drawn = self._label_pairs[self._pair_offset + below(pair[..., :1], self._pair_count)[..., 0]]
        drawn = torch.where(pair[..., 1:] & 1 == 0, drawn, drawn.flip(-1))
        labels[..., :2] = torch.where(self._has_pairs, drawn, labels[..., :2])
        return labels

    def _roles(self, kind: torch.Tensor) -> torch.Tensor:
        """Before they are shuffled, the roles of the context positions, `[P,B,n]`."""
        place = torch.arange(self.pairs, device=self.device)
        burst = self._burstiness
        bursty = torch.where(place < burst, 0, torch.where(place < 2 * burst, 1, place - 2 * burst + 2))
        return torch.where((kind == IID) | (kind == IWL) | (kind == CIWL), place + 1, bursty)

    def _knobs(self, recipes: list[Recipe]) -> None:
        """Every number of the members as a tensor `[P,1,1]`, their tables end to end, each of them once."""
        n, members = self.pairs, len(recipes)

        def knob(values: list[int] | list[float] | list[bool]) -> torch.Tensor:
            return torch.tensor(values, device=self.device).view(members, 1, 1)

        self._seed = torch.tensor([recipe.seed for recipe in recipes], device=self.device)
        self._stream = torch.tensor([recipe.stream for recipe in recipes], device=self.device)
        self._burstiness = knob([recipe.burstiness for recipe in recipes])
        self._labels_per_class = knob([recipe.labels_per_class for recipe in recipes])
        self._matched = knob([recipe.matched for recipe in recipes])
        self._noise = knob([recipe.noise for recipe in recipes])[..., None].to(torch.float32)
        self._kind_limits = torch.tensor([_kind_limits(recipe.mix) for recipe in recipes], device=self.device)[:, None]
        self._any_iid = any(recipe.mix[IID] for recipe in recipes)
        self._any_flip = any(recipe.mix[FLIP] for recipe in recipes)
        self._most_classes = max(recipe.distinct_classes for recipe in recipes)
        relabelling = [recipe for recipe in recipes if recipe.mix[ICL]]
        self._most_labels = max((n - 2 * recipe.burstiness + 2 for recipe in relabelling), default=0)

        intervals = _Intervals()
        self._table = knob([intervals.add(_integers(recipe.weights)) for recipe in recipes])
        self._query_table = knob([intervals.add(_integers(recipe.query_weights)) for recipe in recipes])
        pools = [np.ones(recipe.label_pool if recipe.mix[ICL] else 2, np.int64) for recipe in recipes]
        self._label_table = knob([intervals.add(pool) for pool in pools])
        self._start, self._weight, self._offset, self._base, self._total, self._size = intervals.tensors(self.device)

        classes, exemplars, pairs = _Tables(np.int64), _Tables(np.int32), _Tables(np.int64)
        any_pair = np.zeros((1, 2), np.int64)  # never used, but looked up beside those of other members
        label_pairs = [any_pair if recipe.label_pairs is None else recipe.label_pairs for recipe in recipes]
        self._class_offset = knob([classes.add(recipe.classes) for recipe in recipes])
        self._exemplar_offset = knob([exemplars.add(recipe.exemplars) for recipe in recipes])
        self._exemplar_count = knob([recipe.exemplars.shape[1] for recipe in recipes])
        self._pair_offset = knob([pairs.add(pair) // 2 for pair in label_pairs])[..., 0]
        self._pair_count = knob([len(pair) for pair in label_pairs])
        self._has_pairs = knob([recipe.label_pairs is not None for recipe in recipes])
        self._class_of = classes.tensor(self.device)
        self._exemplar_of = exemplars.tensor(self.device)
        self._label_pairs = pairs.tensor(self.device).view(-1, 2)

        self._word_counts = {_KIND: 1, _CLASSES: 2 * (n + 1), _POSITIONS: n, _EXEMPLARS: n + 1}
        if any(recipe.labels_per_class > 1 for recipe in recipes):
            self._word_counts[_OWN_LABELS] = n + 1
        if relabelling:
            self._word_counts[_NEW_LABELS] = 2 * self._most_labels
        if self._has_pairs.any():
            self._word_counts[_PAIR] = 2
        self._lanes = {
            purpose: torch.arange(-(-count // 4), device=self.device) + (purpose << 16)
            for purpose, count in self._word_counts.items()
        }


class _Tables:
    """Arrays end to end; equal ones are kept once."""

    def __init__(self, dtype: type[np.signedinteger]) -> None:
        self._dtype = dtype
        self._parts: list[NDArray[np.signedinteger]] = []
        self._offsets: dict[bytes, int] = {}
        self._length = 0

    def add(self, values: Integers) -> int:
        """Where the array starts."""
        part = values.astype(self._dtype).ravel()
        key = part.tobytes()
        if key not in self._offsets:
            self._offsets[key] = self._length
            self._parts.append(part)
            self._length += len(part)
        return self._offsets[key]

    def tensor(self, device: torch.device) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(self._parts)).to(device)


class _Intervals:
    """Tables of weights as intervals of integers, all in one rising list, so that one search serves all members."""

    _SPAN = 2**32

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}
        self._weights: list[Integers] = []

    def add(self, weights: Integers) -> int:
        """The number of the table."""
        key = weights.tobytes()
        if key not in self._numbers:
            self._numbers[key] = len(self._weights)
            self._weights.append(weights)
        return self._numbers[key]

    def tensors(self, device: torch.device) -> tuple[torch.Tensor, ...]:
        """Starts and weights of all ranks; then for each table its offset, what its starts begin at, total and size."""
        sizes = np.array([len(weights) for weights in self._weights])
        bases = np.arange(len(self._weights)) * self._SPAN
        starts = [base + np.cumsum(w) - w for base, w in zip(bases, self._weights, strict=True)]
        totals = np.array([weights.sum() for weights in self._weights])
        parts = (np.concatenate(starts), np.concatenate(self._weights), np.cumsum(sizes) - sizes, bases, totals, sizes)
        return tuple(torch.from_numpy(part).to(device) for part in parts)


def _integers(weights: NDArray[np.float64]) -> Integers:
    """Integer weights with a total under 2^31, at least 1 where a weight is not 0; equal weights stay exactly equal."""
    positive = weights > 0
    if np.ptp(weights[positive]) == 0:
        return positive.astype(np.int64)
    scale = 2**31 - 1 - len(weights)
    return np.where(positive, np.maximum(1, np.floor(weights / weights.sum() * scale)), 0).astype(np.int64)


def _kind_limits(mix: tuple[float, ...]) -> list[int]:
    """Kind k is drawn when a word of 32 bits is at or past k of these limits; a kind of probability 0 never is."""
    sums = np.cumsum(mix)
    limits = [round(float(total) * 2**32) for total in sums]
    last = max(kind for kind, probability in enumerate(mix) if probability)
    return [2**32 if kind >= last else limit for kind, limit in enumerate(limits)][:-1]


def _pad(values: torch.Tensor, width: int) -> torch.Tensor:
    return torch.nn.functional.pad(values, (0, width - values.shape[-1]))
