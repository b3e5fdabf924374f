"""The shape of a Transformer, as data."""

from __future__ import annotations

from typing import Any, Literal

from icl_fast.errors import InputError
from icl_fast.models.sizes import LARGEST, MOST_LAYERS
from icl_fast.schema import Config, Field, ValidationError, model_validator, validation_message

PositionKind = Literal["learned", "sinusoidal", "shortformer", "rotary", "none"]
KeyKind = Literal["plain", "smeared"]


class ModelShape(Config):
    """All of a Transformer's shape that does not follow from the data it reads.

    Windows are given per layer and head: `windows[l][h]` is the number of latest positions, its own
    included, that head h of layer l may attend to; None means a dense head (Olsson et al. 2022, Model
    Details, "local attention head").
    """

    layers: int = Field(2, ge=1, le=MOST_LAYERS, description="number of layers")
    width: int = Field(128, ge=1, le=LARGEST, description="C, the width of the residual stream")
    heads: int = Field(4, ge=1, le=LARGEST, description="H, attention heads per layer")
    head_width: int | None = Field(
        None, ge=1, le=LARGEST, description="D, the width of one head; default width / heads"
    )
    mlp: bool = Field(False, description="an MLP after every attention layer; false: attention-only")
    mlp_ratio: int = Field(4, ge=1, le=LARGEST, description="the MLP's hidden width over the model's")
    activation: Literal["gelu", "gelu_tanh"] = Field("gelu", description="exact GeLU or its tanh approximation")
    position: PositionKind = Field("shortformer", description="where positions enter")
    rotary_base: float = Field(10_000.0, gt=1.0, description="base of the rotary wavelengths")
    rotary_fraction: float = Field(1.0, gt=0.0, le=1.0, description="fraction of the head width that is rotated")
    rotary_interleaved: bool = Field(False, description="rotate (0,1),(2,3),… instead of (0,D/2),(1,D/2+1),…")
    key: KeyKind = Field("plain", description="smeared: keys interpolate with the previous position's")
    windows: list[list[int | None]] | None = Field(None, description="local attention windows, [layers][heads]")
    norm_eps: float = Field(1e-5, gt=0.0, description="epsilon of every LayerNorm")
    norm_affine: bool = Field(True, description="LayerNorms have a gain and a bias")
    attention_bias: bool = Field(False, description="biases on q, k, v and the output projection")
    unembed_bias: bool = Field(False, description="a bias on the logits")
    init_std: float | None = Field(None, gt=0.0, description="std of normal initial weights; default: see Transformer")

    @property
    def d_head(self) -> int:
        """D, the width of one head."""
        return self.head_width if self.head_width is not None else self.width // self.heads

    @property
    def rotary_width(self) -> int:
        """How many of a head's D dimensions are rotated (0 where positions are not rotary)."""
        return int(self.d_head * self.rotary_fraction) if self.position == "rotary" else 0

    @model_validator(mode="after")
    def _consistent(self) -> ModelShape:
        if self.head_width is None and self.width % self.heads:
            raise ValueError(
                f"heads={self.heads} does not divide width={self.width}: choose other heads, or set head_width"
            )
        if self.position == "rotary" and not self.rotary_width:
            raise ValueError(
                f"rotary_fraction={self.rotary_fraction} of a head width of {self.d_head} leaves nothing to rotate"
            )
        if self.rotary_width % 2:
            raise ValueError(f"rotary positions rotate pairs, but {self.rotary_width} dimensions of a head is odd")
        if self.windows is not None:
            shape = [len(row) for row in self.windows]
            if shape != [self.heads] * self.layers:
                raise ValueError(f"windows must be {self.layers} lists of {self.heads} entries, got lists of {shape}")
            if not all(w is None or 1 <= w <= LARGEST for row in self.windows for w in row):
                raise ValueError(f"windows: a window counts the position itself, so it is 1 to {LARGEST} (null: dense)")
        return self


class TransformerConfig(ModelShape):
    """The whole shape: what `ModelShape` says, the vocabulary and the longest context."""

    vocab: int = Field(ge=1, le=LARGEST, description="V, the number of tokens")
    context: int = Field(ge=1, le=LARGEST, description="T, the longest context that positions are made for")


def parse_transformer_config(values: dict[str, Any], source: str = "model") -> TransformerConfig:
    """A config from plain data.

    Raises:
        InputError: an unknown key, a wrong type or an impossible shape; the message names the key.
    """
    try:
        return TransformerConfig.model_validate(values)
    except ValidationError as error:
        raise InputError(validation_message(error, source)) from None
