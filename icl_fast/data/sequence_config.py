"""Which sequences of exemplars and labels a run sees: the `sequences:` block of a config file."""

from __future__ import annotations

from icl_fast.schema import Config, Field, model_validator

LARGEST_SPLIT_POOL = 2048  # its pairs are listed: two million of them


class SequenceConfig(Config):
    """Sequences of `pairs` (exemplar, label) pairs and a query exemplar (Singh 2025, 2.2.1, 3.2.1, 4.2.1, 5.2.2).

    A share `p_icl` of the training sequences can be solved in context only, `p_iwl` in weights only, `p_ciwl` in
    weights given that the label is in context; of the rest, a share `p_bursty` is bursty, the others are independent
    draws. Every class has `labels_per_class` labels of its own, fixed through training; only in `p_icl` sequences are
    labels drawn anew, from the first `label_pool` of all.

    What is held out follows from `split_seed` and the exemplars alone; what is drawn, from `seed` too.
    The defaults are chapter 5's (with `held_out_*` at nothing); chapter 4's are `p_icl=1, classes=50, exemplars=1,
    label_pool=5, held_out_classes=100, held_out_label_pairs=0.2`.
    """

    pairs: int = Field(default=2, ge=1, le=256, description="n: (exemplar, label) pairs before the query")
    p_bursty: float = Field(
        default=1.0, ge=0, le=1, description="share of bursty sequences among those with fixed labels"
    )
    burstiness: int = Field(
        default=1,
        ge=1,
        le=256,
        description="times that the query's class, and a second class, appear in a bursty context",
    )
    p_icl: float = Field(default=0.0, ge=0, le=1, description="share of bursty sequences with labels drawn anew")
    p_iwl: float = Field(default=0.0, ge=0, le=1, description="share of sequences of different classes throughout")
    p_ciwl: float = Field(
        default=0.0, ge=0, le=1, description="the same, but one of the other classes shows the query's label"
    )
    classes: int | None = Field(default=None, ge=1, description="C: classes trained on; all that are not held out")
    exemplars: int | None = Field(
        default=None, ge=1, description="E: exemplars of a class trained on; all that are not held out"
    )
    noise: float = Field(
        default=0.0,
        ge=0,
        le=1e6,
        description="deviation of Gaussian noise on every exemplar, drawn anew: on vectors, or pixels if read",
    )
    labels_per_class: int = Field(
        default=1, ge=1, le=2**20, description="labels of a class, one of them drawn per sequence"
    )
    label_pool: int = Field(default=2, ge=2, le=2**20, description="L: labels that p_icl sequences draw from")
    zipf: float = Field(default=0.0, ge=0, le=10, description="exponent: class of rank x has frequency x^-zipf")
    matched: bool = Field(default=False, description="context exemplars of the query's class are the query's exemplar")
    held_out_classes: int = Field(
        default=0, ge=0, description="classes held out, with every other class of the same base characters"
    )
    held_out_exemplars: int = Field(default=0, ge=0, description="exemplars held out of every class")
    held_out_label_pairs: float = Field(
        default=0.0, ge=0, lt=1, description="fraction of the unordered pairs of pool labels held out"
    )
    split_seed: int = Field(default=0, ge=0, lt=2**63, description="what is held out, and the evaluation sets")
    seed: int = Field(default=0, ge=0, lt=2**63, description="the training sequences")

    @property
    def p_fixed(self) -> float:
        """Share of the sequences with fixed labels that are bursty or independent draws."""
        rest = 1 - self.p_icl - self.p_iwl - self.p_ciwl
        return rest if rest > 1e-9 else 0.0

    @property
    def relabelled_classes(self) -> int:
        """Distinct classes in a bursty context: the query's, the second, and one for each pair left."""
        return self.pairs - 2 * self.burstiness + 2

    @model_validator(mode="after")
    def _possible(self) -> SequenceConfig:
        if self.p_icl + self.p_iwl + self.p_ciwl > 1 + 1e-9:
            raise ValueError(
                f"p_icl={self.p_icl} + p_iwl={self.p_iwl} + p_ciwl={self.p_ciwl} are more than 1: lower one of them"
            )
        bursty = self.p_fixed * self.p_bursty or self.p_icl
        if bursty and 2 * self.burstiness > self.pairs:
            raise ValueError(
                f"burstiness={self.burstiness}: two classes that often do not fit into pairs={self.pairs}; lower it, "
                "or draw no bursty sequences (p_bursty=0 and no p_icl)"
            )
        if self.p_icl and self.label_pool < self.relabelled_classes:
            raise ValueError(
                f"label_pool={self.label_pool}: a context of pairs={self.pairs} with burstiness={self.burstiness} "
                f"needs {self.relabelled_classes} different labels; enlarge the pool"
            )
        if self.held_out_label_pairs:
            self._check_label_pairs()
        if self.matched and self.noise:
            raise ValueError(f"noise={self.noise}: matched exemplars would differ by it; set noise=0 or matched=false")
        return self

    def _check_label_pairs(self) -> None:
        key = f"held_out_label_pairs={self.held_out_label_pairs}"
        if not self.p_icl:
            raise ValueError(f"{key}: no training sequence draws its labels (p_icl=0), so none can be held out")
        if self.relabelled_classes != 2:
            raise ValueError(f"{key}: a context must hold two labels, so burstiness must be half of pairs={self.pairs}")
        if not 3 <= self.label_pool <= LARGEST_SPLIT_POOL:
            raise ValueError(f"{key}: label_pool must be 3 to {LARGEST_SPLIT_POOL}, got {self.label_pool}")
