"""gated_difference: how much a gated activation changes when something is removed from both of its inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from icl_fast.ops import _backend
from icl_fast.ops._library import register
from icl_fast.ops._registry import Kernel, Kernels
from icl_fast.ops._validate import (
    accumulate_dtype,
    autocast_promote,
    check_floating,
    check_one_of,
    check_shapes,
)
from icl_fast.ops.activation_difference import ACTIVATIONS, change, value

OP = "gated_difference"


def gated_difference(
    gate: Tensor, up: Tensor, gate_removed: Tensor, up_removed: Tensor, *, activation: str, impl: str = "auto"
) -> Tensor:
    """What the product of a gated MLP loses when each of A variants is taken from its gate and from what it gates.

    `out[a] = act(gate) up - act(gate - dg) (up - du)`, dg = gate_removed[a], du = up_removed[a], in one pass as
    `da up + (act(gate) - da) du` with da = act(gate) - act(gate - dg) as in `activation_difference`. So errors are a
    few units in the last place of dg times the larger of up and up - du, and of du times the larger activation (which
    is known to a rounding of its input).

    Autocast does not touch this op, but that inputs of several dtypes are taken in the widest.

    The delta form of an ablation, at a gated MLP (Shazeer 2020: SwiGLU, GeGLU). Equivalent to, but for rounding:

        act(gate) * up - act(gate - gate_removed) * (up - up_removed)

    Args:
        gate: [N,M], before the activation; float32, bfloat16, float16, float64.
        up: [N,M], what the activation is multiplied by.
        gate_removed: [A,N,M], what each variant takes from gate.
        up_removed: [A,N,M], what it takes from up.
        activation: "gelu", "gelu_tanh", "silu" or "relu".
        impl: "auto" (the best built one), "reference", "cpu" or "cuda"; one that is named is never replaced by another.

    Returns:
        [A,N,M], in the dtype of gate; computed in float32 (float64 for float64). NaN where gate or gate_removed is not
        finite.

    Raises:
        ValueError: shapes or devices that disagree; an unknown activation or impl.
        TypeError: dtypes that disagree or are not taken.
        RuntimeError: a derivative is asked (an input requires grad in grad mode, or carries a forward-mode tangent);
            `impl` is not built.
    """
    check_shapes(
        OP,
        gate=(gate, "N M"),
        up=(up, "N M"),
        gate_removed=(gate_removed, "A N M"),
        up_removed=(up_removed, "A N M"),
    )
    gate, up, gate_removed, up_removed = autocast_promote(gate, up, gate_removed, up_removed)
    check_floating(OP, gate=gate, up=up, gate_removed=gate_removed, up_removed=up_removed)
    check_one_of(OP, "activation", activation, ACTIVATIONS)
    result: Tensor = _forward_op(gate, up, gate_removed, up_removed, activation, KERNELS.choose(impl, gate))
    return result


def reference_forward(
    gate: Tensor,  # [N,M]
    up: Tensor,  # [N,M]
    gate_removed: Tensor,  # [A,N,M]
    up_removed: Tensor,  # [A,N,M]
    activation: str,
) -> Tensor:
    """[A,N,M], variant by variant."""
    wide, out = accumulate_dtype(gate.dtype), torch.empty_like(gate_removed, memory_format=torch.contiguous_format)
    gate, up = gate.to(wide), up.to(wide)
    activated = value(activation, gate)
    for a in range(len(gate_removed)):
        of_gate = change(activation, gate, gate_removed[a].to(wide))
        out[a] = of_gate * up + (activated - of_gate) * up_removed[a].to(wide)
    return out


def compiled_forward(
    place: str,
    gate: Tensor,  # [N,M]
    up: Tensor,  # [N,M]
    gate_removed: Tensor,  # [A,N,M]
    up_removed: Tensor,  # [A,N,M]
    activation: str,
) -> Tensor:
    """`reference_forward` by a kernel of csrc."""
    (a, n, m), out = gate_removed.shape, torch.empty_like(gate_removed, memory_format=torch.contiguous_format)
    inputs = {"gate": gate, "up": up, "gate_removed": gate_removed, "up_removed": up_removed}
    _backend.run(OP, place, {"out": out}, inputs, gate.dtype, a=a, n=n, m=m, activation=ACTIVATIONS.index(activation))
    return out


KERNELS = Kernels(OP, reference=Kernel(reference_forward))
KERNELS.add_compiled(compiled_forward)


def _forward(gate: Tensor, up: Tensor, gate_removed: Tensor, up_removed: Tensor, activation: str, impl: str) -> Tensor:
    result: Tensor = KERNELS[impl].forward(gate, up, gate_removed, up_removed, activation)
    return result


def _empty(gate: Tensor, up: Tensor, gate_removed: Tensor, *rest: object) -> Tensor:
    return torch.empty_like(gate_removed, memory_format=torch.contiguous_format)


_forward_op = register(
    "gated_difference(Tensor gate, Tensor up, Tensor gate_removed, Tensor up_removed, str activation, str impl) "
    "-> Tensor",
    _forward,
    _empty,
)
