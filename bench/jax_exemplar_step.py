"""The training step of exemplar models as one would write it in JAX: the same model, loss and Adam, one jitted call.

    pip install jax

A stand-in for what a user has today, not a tuned program: one function of one member's weights, `jax.value_and_grad`,
Adam by hand, buffers donated; `jax.vmap` for a population; `jax.lax.scan` for many steps in one call. XLA takes as
many threads as the machine has cores, whatever torch was told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, Any]
BETAS, EPS = (0.9, 0.999), 1e-8

jax.config.update("jax_platforms", "cpu")


@dataclass(frozen=True)
class Shape:
    """What of the model its weights do not say; position is "learned" or "rotary"."""

    layers: int
    heads: int
    position: str
    rotary_base: float
    norm_eps: float


class JaxTraining:
    """P members that go on where they were."""

    def __init__(
        self,
        weights: Mapping[str, NDArray[np.float32]],
        features: Any,
        shape: Shape,
        learning_rate: float,
        *,
        scan: bool,
    ) -> None:
        """Of weights `[P,...]`, names and shapes as those of `ExemplarTransformer`, and features `[K,E,F]`.

        Args:
            features: shared by all members; anything with DLPack, so that it need not be copied.
            scan: many steps in one `lax.scan`, instead of a call for each.
        """
        first = next(iter(weights.values()))
        self.alone = len(first) == 1
        step = partial(adam_step, shape, learning_rate)
        if not self.alone:
            axes = (0, 0, 0, None)
            step = jax.vmap(step, in_axes=(axes, None, 0, 0, 0, 0), out_axes=(axes, 0))
        self.call = jax.jit(partial(scanned, step) if scan else step, donate_argnums=0)
        self.scan = scan
        self.features = jnp.from_dlpack(features)
        start = {name: self._own(value) for name, value in weights.items()}
        zeros = {name: np.zeros_like(value) for name, value in start.items()}
        # copies, as the buffers are donated; on the device of the features, else the second call would compile again
        state = jax.tree.map(jnp.array, (start, zeros, zeros, np.zeros((), np.int32)))
        self.state = jax.device_put(state, self.features.device)

    def run(self, *draws: NDArray[np.int64]) -> NDArray[np.float32]:
        """Steps on classes and exemplars `[S,P,B,n+1]`, labels `[S,P,B,n]`, target `[S,P,B]`.

        Returns:
            `[S,P]`: the loss before each, in nats.
        """
        integers = [self._own(values.astype(np.int32), axis=1) for values in draws]
        if self.scan:
            self.state, losses = self.call(self.state, self.features, *integers)
        else:
            kept = []
            for one in zip(*integers, strict=True):
                self.state, loss = self.call(self.state, self.features, *one)
                kept.append(loss)
            losses = np.stack(kept)
        return np.array(losses).reshape(len(integers[0]), -1)

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """As they are now, `[P,...]`."""
        return {name: np.array(value)[None] if self.alone else np.array(value) for name, value in self.state[0].items()}

    def _own(self, values: NDArray[Any], axis: int = 0) -> NDArray[Any]:
        return values.squeeze(axis) if self.alone else values


def adam_step(
    shape: Shape,
    learning_rate: float,
    state: Any,
    features: Any,
    classes: Any,
    exemplars: Any,
    labels: Any,
    target: Any,
) -> tuple[Any, Any]:
    """One member's next state and its loss before: Adam with bias correction, as torch.optim.Adam."""
    weights, first, second, count = state
    loss, gradients = jax.value_and_grad(partial(mean_loss, shape))(
        weights, features[classes, exemplars], labels, target
    )
    count = count + 1
    first = jax.tree.map(lambda m, g: BETAS[0] * m + (1 - BETAS[0]) * g, first, gradients)
    second = jax.tree.map(lambda v, g: BETAS[1] * v + (1 - BETAS[1]) * g * g, second, gradients)
    step_size = learning_rate / (1 - BETAS[0] ** count)
    unbiased = jnp.sqrt(1 - BETAS[1] ** count)
    weights = jax.tree.map(lambda w, m, v: w - step_size * m / (jnp.sqrt(v) / unbiased + EPS), weights, first, second)
    return (weights, first, second, count), loss


def scanned(step: Callable[..., tuple[Any, Any]], state: Any, features: Any, *draws: Any) -> tuple[Any, Any]:
    """As many steps as there are draws."""
    return jax.lax.scan(lambda carry, drawn: step(carry, features, *drawn), state, draws)


def mean_loss(shape: Shape, weights: Arrays, exemplars: Any, labels: Any, target: Any) -> Any:
    """Cross-entropy of the query's label, mean over exemplars `[B,n+1,F]`, labels `[B,n]`, target `[B]`."""
    scores = jax.nn.log_softmax(logits(shape, weights, exemplars, labels))
    return -jnp.take_along_axis(scores, target[:, None], axis=1).mean()


def logits(shape: Shape, weights: Arrays, exemplars: Any, labels: Any) -> Any:
    """Of the query, `[B,V]`."""
    batch, slots, _ = exemplars.shape
    length = 2 * slots - 1
    images = exemplars @ weights["embed_exemplar.weight"].T + weights["embed_exemplar.bias"]
    stream = jnp.zeros((batch, length, images.shape[-1]))
    stream = stream.at[:, 0::2].set(images).at[:, 1::2].set(weights["embed_label.weight"][labels])
    if shape.position == "learned":
        stream = stream + weights["position"]
    for layer in range(shape.layers):
        stream = stream + attention(shape, part(weights, f"blocks.{layer}."), stream)
    query = norm(part(weights, "final_norm."), stream[:, -1], shape.norm_eps)
    return query @ weights["unembed.weight"].T + weights["unembed.bias"]


def attention(shape: Shape, weights: Arrays, stream: Any) -> Any:
    """What a layer adds to the stream `[B,T,C]`."""
    batch, length, width = stream.shape
    normed = norm(part(weights, "norm1."), stream, shape.norm_eps)
    q, k, v = (
        (normed @ weights[f"attention.{name}.weight"].T).reshape(batch, length, shape.heads, -1)
        for name in ("q", "k", "v")
    )
    if shape.position == "rotary":
        q, k = (rotated(x, shape.rotary_base) for x in (q, k))
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
    scores = jnp.where(jnp.tril(jnp.ones((length, length), bool)), scores, -jnp.inf)
    z = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v)
    return z.reshape(batch, length, width) @ weights["attention.out.weight"].T


def rotated(x: Any, base: float) -> Any:
    """Rotary positions of x `[B,T,H,D]`, neighbouring dimensions turned together."""
    length, width = x.shape[1], x.shape[-1]
    angles = np.outer(np.arange(length), base ** (-np.arange(0, width, 2) / width)).astype(np.float32)
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    a, b = x[..., 0::2], x[..., 1::2]
    return jnp.stack((a * cos - b * sin, b * cos + a * sin), axis=-1).reshape(x.shape)


def norm(weights: Arrays, x: Any, eps: float) -> Any:
    """LayerNorm over the last dimension."""
    centred = x - x.mean(-1, keepdims=True)
    scale = jax.lax.rsqrt((centred * centred).mean(-1, keepdims=True) + eps)
    return centred * scale * weights["weight"] + weights["bias"]


def part(weights: Arrays, prefix: str) -> Arrays:
    """The weights whose names begin so, without that."""
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
