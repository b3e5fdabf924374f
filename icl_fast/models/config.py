"""The shape of a Transformer, as data."""

from __future__ import annotations

from typing import Any, Literal

from icl_fast.errors import InputError
from icl_fast.models.sizes import LARGEST, MOST_LAYERS
from icl_fast.schema import Config, Field, ValidationError, model_validator, validation_message

PositionKind = Literal["learned", "sinusoidal", "shortformer", "rotary", "alibi", "none"]
KeyKind = Literal["plain", "smeared"]
ActivationKind = Literal["gelu", "gelu_tanh", "silu", "relu", "solu", "solu_plain"]


class RotaryScaling(Config):
    """How the frequencies of rotary positions are stretched to a context longer than that of the pretraining.

    `linear`: all divided by the factor (Chen et al. 2023). `llama3`: the low ones divided, the high ones kept, between
    them interpolated (Llama 3.1). `yarn`: so with another ramp, and rotated vectors made longer (Peng et al. 2023).
    """

    kind: Literal["linear", "llama3", "yarn"] = Field(description="which frequencies are stretched")
    factor: float = Field(ge=1.0, description="by how much")
    original_context: int = Field(8192, ge=1, le=LARGEST, description="context of the pretraining (llama3, yarn)")
    low: float = Field(1.0, gt=0.0, description="fewer turns than this in that context: stretched (llama3, yarn)")
    high: float = Field(4.0, gt=0.0, description="more turns than this in that context: kept (llama3, yarn)")
    length: float = Field(1.0, gt=0.0, description="by which rotated vectors are multiplied (yarn)")
    truncate: bool = Field(True, description="round the ends of the ramp outwards to whole frequencies (yarn)")


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
    mlp_width: int | None = Field(
        None, ge=1, le=LARGEST, description="the MLP's hidden width; default mlp_ratio * width"
    )
    mlp_bias: bool = Field(True, description="biases on the MLP's projections")
    gated: bool = Field(False, description="the MLP's hidden layer times a second projection (SwiGLU, GeGLU)")
    activation: ActivationKind = Field(
        "gelu",
        description="gelu: exact GeLU; gelu_tanh: its tanh approximation; solu_plain: x softmax(x); solu: then a norm",
    )
    position: PositionKind = Field("shortformer", description="where positions enter")
    rotary_base: float = Field(10_000.0, gt=1.0, description="base of the rotary wavelengths")
    rotary_fraction: float = Field(1.0, gt=0.0, le=1.0, description="fraction of the head width that is rotated")
    rotary_interleaved: bool = Field(False, description="rotate (0,1),(2,3),… instead of (0,D/2),(1,D/2+1),…")
    rotary_scaling: RotaryScaling | None = Field(None, description="frequencies stretched to a longer context")
    rotary_local_base: float | None = Field(
        None, gt=1.0, description="base in layers with windows, which are not stretched; default: as in the others"
    )
    key: KeyKind = Field("plain", description="smeared: keys interpolate with the previous position's")
    windows: list[list[int | None]] | None = Field(None, description="local attention windows, [layers][heads]")
    norm: Literal["layer", "rms", "none"] = Field(
        "layer", description="LayerNorm, RMSNorm (no centring, no bias), or no norm anywhere"
    )
    norm_eps: float = Field(1e-5, gt=0.0, description="epsilon of every norm")
    norm_affine: bool = Field(True, description="norms have a gain and, LayerNorms, a bias")
    norm_place: Literal["before", "after", "both"] = Field(
        "before", description="norms of what attention and MLP read, of what they write, or of both"
    )
    parallel: bool = Field(False, description="the MLP reads the stream before attention, not after it")
    shared_norm: bool = Field(False, description="parallel attention and MLP read through one norm")
    kv_heads: int | None = Field(
        None, ge=1, le=LARGEST, description="key/value heads; default: heads; fewer: grouped queries"
    )
    qk_norm: Literal["none", "head", "all"] = Field(
        "none", description="an RMSNorm of queries and keys: of each head's, or of all heads' together"
    )
    qkv_clip: float | None = Field(None, gt=0.0, description="queries, keys and values are clipped to +- this")
    score_scale: float | None = Field(None, gt=0.0, description="factor on the scores; default 1 / sqrt(D)")
    score_scale_by_layer: bool = Field(False, description="and 1 / (layer + 1) besides")
    score_cap: float | None = Field(None, gt=0.0, description="scores s become cap * tanh(s / cap)")
    logit_cap: float | None = Field(None, gt=0.0, description="logits l become cap * tanh(l / cap)")
    attention_bias: bool = Field(False, description="biases on q, k, v and the output projection")
    out_bias: bool | None = Field(None, description="a bias on the output projection; default: attention_bias")
    unembed_bias: bool = Field(False, description="a bias on the logits")
    tied: bool = Field(False, description="the unembedding is the embedding")
    embed_scale: float = Field(1.0, gt=0.0, description="factor on token embeddings")
    init_std: float | None = Field(None, gt=0.0, description="std of normal initial weights; default: see Transformer")

    @property
    def d_head(self) -> int:
        """D, the width of one head."""
        return self.head_width if self.head_width is not None else self.width // self.heads

    @property
    def rotary_width(self) -> int:
        """How many of a head's D dimensions are rotated (0 where positions are not rotary)."""
        return int(self.d_head * self.rotary_fraction + 1e-6) if self.position == "rotary" else 0

    @property
    def kv(self) -> int:
        """Key/value heads."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def hidden_width(self) -> int:
        """M, the MLP's hidden width; 0 without one."""
        if not self.mlp:
            return 0
        return self.mlp_ratio * self.width if self.mlp_width is None else self.mlp_width

    @model_validator(mode="after")
    def _consistent(self) -> ModelShape:
        if self.head_width is None and self.width % self.heads:
            raise ValueError(
                f"heads={self.heads} does not divide width={self.width}: choose other heads, or set head_width"
            )
        if self.heads % self.kv:
            raise ValueError(f"kv_heads={self.kv_heads} does not divide heads={self.heads}: every group has as many")
        unlike = self.kv != self.heads or self.qk_norm != "none" or self.score_cap is not None
        if self.key == "smeared" and (unlike or self.position == "alibi"):
            raise ValueError("key=smeared goes with as many key as query heads, no qk_norm, score_cap and alibi")
        if self.shared_norm and not (self.parallel and self.norm_place == "before"):
            raise ValueError("shared_norm: only parallel blocks with norms before attention and MLP can share one")
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
