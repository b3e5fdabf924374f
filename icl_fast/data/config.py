"""What text a run reads and how it is cut: the `data:` block of a config file."""

from __future__ import annotations

from icl_fast.data.tokenizer import SMALLEST_VOCAB
from icl_fast.schema import Config, Field, field_validator


class DataConfig(Config):
    """The text of a run. Everything drawn at random here follows from `seed` alone, never from the run's own seed."""

    corpus: str = Field(
        default="stdlib",
        description="stdlib, stdlib+tests, docstrings, docs, books, a folder of .txt/.md/.py files, or a mix of these, "
        "NAME:WEIGHT,NAME:WEIGHT,...",
    )
    vocab: int = Field(default=512, description="size of the byte-level BPE vocabulary, its special token included")
    context: int = Field(default=256, ge=1, description="T: tokens in a window")
    seed: int = Field(
        default=0, ge=0, description="corpus seed: document split, evaluation set and order of the windows"
    )
    evaluation_examples: int = Field(
        default=10_000, ge=1, description="at most; as many as the held-out documents give"
    )
    evaluation_context: int | None = Field(
        default=None, ge=1, description="tokens of an evaluation example; null: those of a training window"
    )
    holdout: float = Field(
        default=0.1, gt=0, lt=1, description="fraction of the text held out for evaluation, by document"
    )
    repeat: bool = Field(default=False, description="allow a token to be trained on more than once")

    @property
    def evaluation_length(self) -> int:
        """Tokens of an evaluation example."""
        return self.context if self.evaluation_context is None else self.evaluation_context

    @field_validator("corpus")
    @classmethod
    def _not_blank(cls, corpus: str) -> str:
        if not corpus.strip():
            raise ValueError("is empty: give stdlib, stdlib+tests, docstrings, docs, books, a folder, or a mix")
        return corpus

    @field_validator("vocab")
    @classmethod
    def _holds_every_byte(cls, vocab: int) -> int:
        if vocab < SMALLEST_VOCAB:
            raise ValueError(f"{vocab} is too small: every byte and the special token need {SMALLEST_VOCAB}")
        return vocab
