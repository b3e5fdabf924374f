"""The shape of an exemplar model, as data."""

from __future__ import annotations

from typing import Literal

from icl_fast.errors import InputError
from icl_fast.models.config import ModelShape
from icl_fast.models.sizes import LARGEST, MOST_LAYERS
from icl_fast.schema import Config, Field, model_validator

SEEDS = 2**16  # of a model, each with as many parameters: torch's generator on the CPU tells 2^32 seeds apart


class ExemplarShape(Config):
    """All of an exemplar model's shape that does not follow from its data; the defaults are Singh 2025, 4.2.1."""

    architecture: Literal["transformer", "rnn", "lstm"] = Field(
        "transformer", description="what is between embedding and unembedding (Singh 2025, 2.3.6)"
    )
    layers: int = Field(2, ge=1, le=MOST_LAYERS, description="number of layers")
    width: int = Field(64, ge=1, le=LARGEST, description="C, the width of the residual stream")
    heads: int = Field(8, ge=1, le=LARGEST, description="H, attention heads per layer of a transformer")
    mlp: bool = Field(False, description="an MLP after every attention layer; false: attention-only")
    mlp_ratio: int = Field(4, ge=1, le=LARGEST, description="the MLP's hidden width over the model's")
    attention_bias: bool = Field(False, description="biases on q, k, v and the output projection (chapters 2 and 3)")
    position: Literal["learned", "sinusoidal", "rotary", "none"] = Field("rotary", description="where positions enter")
    rotary_base: float = Field(10_000.0, gt=1.0, description="base of the rotary wavelengths")
    sinusoid_base: float = Field(10_000.0, gt=1.0, description="base of the wavelengths of sinusoidal positions")
    norm_eps: float = Field(1e-5, gt=0.0, description="epsilon of every LayerNorm")
    encoder: Literal["linear", "resnet"] = Field(
        "linear", description="features to the residual stream: one matrix, or a small ResNet trained jointly"
    )

    @property
    def d_head(self) -> int:
        """D, the width of one head."""
        return self.width // self.heads

    @property
    def trunk(self) -> ModelShape:
        """The same as the shape of a Transformer's blocks."""
        shared = ExemplarShape.model_fields.keys() & ModelShape.model_fields.keys()
        return ModelShape(rotary_interleaved=True, **{name: getattr(self, name) for name in shared})

    def check_attention(self, what: str) -> None:
        """Refuse what is done to attention heads, called `what`, where there are none.

        Raises:
            InputError: the architecture has no attention.
        """
        if self.architecture != "transformer":
            raise InputError(f"{what}: a model of architecture {self.architecture} has no attention")

    @model_validator(mode="after")
    def _consistent(self) -> ExemplarShape:
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} does not divide width={self.width}: choose other heads")
        if self.architecture != "transformer":
            self._check_recurrent()
        if self.position == "rotary" and self.d_head % 2:
            raise ValueError(f"rotary positions rotate pairs, but a head width of {self.d_head} is odd")
        return self

    def _check_recurrent(self) -> None:
        for key, wrong, why in (
            ("position", self.position == "rotary", "rotates queries and keys; take sinusoidal, learned or none"),
            ("mlp", self.mlp, "comes after attention; set false"),
            ("attention_bias", self.attention_bias, "is of attention; set false"),
        ):
            if wrong:
                value = str(getattr(self, key)).lower()
                raise ValueError(f"{key}={value}: {why} (architecture={self.architecture} has no attention)")


class ExemplarConfig(ExemplarShape):
    """The whole shape: what `ExemplarShape` says, and what the exemplars and sequences ask for."""

    features: int = Field(ge=1, le=LARGEST, description="F, numbers per exemplar")
    image: tuple[int, int] | None = Field(None, strict=False, description="height and width, if features are pixels")
    outputs: int = Field(ge=2, le=LARGEST, description="V, the number of labels, which are the outputs")
    pairs: int = Field(ge=1, le=LARGEST, description="n, (exemplar, label) pairs before the query")

    @property
    def length(self) -> int:
        """T = 2n + 1, tokens of a sequence."""
        return 2 * self.pairs + 1
