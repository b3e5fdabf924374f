"""What gpu_check.py runs in processes of their own, so that one a kernel takes down is not missed.

    python bench/gpu_check_child.py probe | launch FILE | op NAME | compare FILE FOLDER FOLDER

Environment:
    GPU_CHECK_ARCH    80: on Hopper too the kernels for every GPU, instead of Hopper's own
    GPU_CHECK_IMPL    instead of "cuda", for a rehearsal on the CPU: which kernels play those of a GPU
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import source_tree  # noqa: F401 - before icl_fast
import torch
from torch import Tensor

from icl_fast import ops
from icl_fast.ops import _backend, _registry
from icl_fast.ops.activation_difference import ACTIVATIONS

IMPL = os.environ.get("GPU_CHECK_IMPL", "cuda")
DEVICE = "cuda" if IMPL == "cuda" else "cpu"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

if (_arch := int(os.environ.get("GPU_CHECK_ARCH") or 0)) and IMPL == "cuda":
    _backend._arch = lambda place, device: _arch


def probe() -> dict[str, Any]:
    """The GPU as torch sees it; in a rehearsal one that is not there."""
    versions = {"torch": torch.__version__, "torch_cuda": torch.version.cuda, "pytest": version("pytest")}
    if DEVICE == "cpu":
        return {"device": {"name": "rehearsal", "capability": [9, 0]}, "driver": None, "versions": versions}
    if not torch.cuda.is_available():
        return {"problem": f"torch {torch.__version__} finds no CUDA device"}
    properties = torch.cuda.get_device_properties(0)
    if properties.major < 8:
        return {"problem": f"{properties.name} is sm_{properties.major}{properties.minor}, the kernels need sm_80"}
    driver = "/proc/driver/nvidia/version"
    return {
        "device": {
            "name": properties.name,
            "capability": [properties.major, properties.minor],
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "multiprocessors": properties.multi_processor_count,
        },
        "driver": Path(driver).read_text().splitlines()[0] if Path(driver).exists() else None,
        "versions": versions,
    }


def launch() -> dict[str, Any]:
    """The smallest kernel on the GPU; how the module was built, the sources left out, and the ops without a kernel."""
    x, y = torch.randn(2, 10_007)
    out = _backend.axpy(0.5, x.to(DEVICE), y.to(DEVICE)).cpu()
    if not torch.allclose(out, 0.5 * x + y):
        raise SystemExit("axpy is wrong on the GPU")
    lacking = [op for op, impls in ops.available_impls().items() if IMPL not in impls]
    return {"not_built": {}, **_backend.build_info(), "lacking": lacking}


def compare(folder: str, other: str) -> dict[str, float]:
    """How far each variable of the stores in two folders is apart, relative to its values or, where larger, to 1.

    Accuracies are left out: they count which of two numbers is larger, however little.
    """
    import numpy as np

    from icl_fast.measure import open_results

    found = {}
    for store in Path(folder).glob("*.zarr"):
        one, two = open_results(store), open_results(Path(other) / store.name)
        for name in one:
            if one[name].dtype.kind == "f" and not str(name).startswith("accuracy"):
                a, b = (data[name].values.astype(np.float64) for data in (one, two))
                apart = np.abs(a - b) / np.maximum(1, np.abs(b))
                apart[np.isnan(a) & np.isnan(b)] = 0
                found[f"{store.name}: {name}"] = float(np.nan_to_num(apart, nan=np.inf).max())
    return found


# The calls of an op for the sanitizer, small but with three tiles or more of 64 in whatever is looped over, aligned to
# 16 bytes and not.
Make = Callable[..., Tensor]


def frozen_attention(make: Make, impl: str) -> None:
    for depth, width, options in (
        (64, 64, {}),
        (64, 64, {"window": 70}),
        (128, 128, {}),
        (40, 24, {}),
        (37, 31, {"window": [0, 5]}),
    ):
        say(f"depth {depth}, width {width}, {options}")
        q, k, v = make(1, 2, 136, depth), make(1, 2, 136, depth), make(3, 1, 2, 136, width)
        scale = depth**-0.5
        check(ops.frozen_attention(q, k, v, scale=scale, **options, impl=impl))
        rows = torch.arange(0, 136, 3, device=q.device)[None]
        say(f"depth {depth}, width {width}, {options}, rows")
        check(ops.frozen_attention(q, k, v, scale=scale, **options, rows=rows, impl=impl))
        say(f"depth {depth}, width {width}, a pattern")
        check(ops.frozen_attention(None, None, v, scale=1.0, pattern=make(1, 2, 136, 136).abs(), impl=impl))


def smeared_attention(make: Make, impl: str) -> None:
    for depth, window in ((64, None), (64, 70), (128, None), (40, None), (37, 5)):
        q, k, v = (make(1, 2, 136, depth).requires_grad_() for _ in range(3))
        alpha = torch.linspace(-1, 1, 2, device=q.device).requires_grad_()
        say(f"depth {depth}, window {window}, forward")
        out = ops.smeared_attention(q, k, v, alpha, scale=depth**-0.5, window=window, impl=impl)
        check(out)
        say(f"depth {depth}, window {window}, backward")
        check(*torch.autograd.grad(out.sum(), (q, k, v, alpha)))


def linear_cross_entropy(make: Make, impl: str) -> None:
    for rows, c, vocabulary, with_bias in ((200, 192, 520, False), (200, 71, 301, True), (1, 64, 1000, False)):
        hidden, weight = make(rows, c).requires_grad_(), make(vocabulary, c).requires_grad_()
        bias = make(vocabulary).requires_grad_() if with_bias else None
        targets = torch.arange(rows, device=hidden.device) * 7 % vocabulary
        say(f"{rows} x {c} x {vocabulary}, forward")
        losses = ops.linear_cross_entropy(hidden, weight, targets, bias=bias, impl=impl)
        check(losses)
        say(f"{rows} x {c} x {vocabulary}, backward")
        check(*torch.autograd.grad(losses.sum(), [x for x in (hidden, weight, bias) if x is not None]))


def head_ablation_cross_entropy(make: Make, impl: str) -> None:
    for n, h, d, c, vocabulary in ((200, 4, 64, 192, 520), (131, 3, 31, 71, 301)):
        say(f"{n} x {h} x {d} x {c} x {vocabulary}")
        resid, z, w_o, weight = make(n, c), make(h, n, d), make(h, d, c), make(vocabulary, c)
        targets = torch.arange(n, device=resid.device) * 7 % vocabulary
        norm = make(c), make(c)
        both = ops.head_ablation_cross_entropy(
            resid, z, w_o, weight, targets, norm_weight=norm[0], norm_bias=norm[1], eps=1e-5, impl=impl
        )
        check(*both)


def cross_entropy_difference(make: Make, impl: str) -> None:
    for a, n, c, vocabulary in ((3, 200, 192, 520), (2, 131, 71, 301)):
        say(f"{a} x {n} x {c} x {vocabulary}")
        hidden, removed, weight = make(n, c), make(a, n, c), make(vocabulary, c)
        targets = torch.arange(n, device=hidden.device) * 7 % vocabulary
        check(*ops.cross_entropy_difference(hidden, removed, weight, targets, bias=make(vocabulary), impl=impl))


def layer_norm_difference(make: Make, impl: str) -> None:
    for centre in (True, False):
        for a, n, c in ((3, 200, 192), (2, 131, 71)):
            say(f"{a} x {n} x {c}, {'LayerNorm' if centre else 'RMSNorm'}")
            check(ops.layer_norm_difference(make(n, c), make(a, n, c), make(c), eps=1e-5, centre=centre, impl=impl))


def activation_difference(make: Make, impl: str) -> None:
    for activation in ACTIVATIONS:
        for a, n, m in ((3, 200, 192), (2, 131, 71)):
            say(f"{a} x {n} x {m}, {activation}")
            check(ops.activation_difference(make(n, m), make(a, n, m), activation=activation, impl=impl))


def gated_difference(make: Make, impl: str) -> None:
    for activation in ACTIVATIONS:
        for a, n, m in ((3, 200, 192), (2, 131, 71)):
            say(f"{a} x {n} x {m}, {activation}")
            inputs = make(n, m), make(n, m), make(a, n, m), make(a, n, m)
            check(ops.gated_difference(*inputs, activation=activation, impl=impl))


def say(label: str) -> None:
    print(f"run {label}", flush=True)  # the sanitizer reports after it, or kills the process in it


def check(*results: Tensor) -> None:
    for result in results:
        if not result.isfinite().all():
            raise SystemExit("the result is not finite")


def run_op(name: str, dtype: torch.dtype, device: str = DEVICE, impl: str = IMPL) -> None:
    """The calls of an op in one dtype."""
    print(f"dtype {str(dtype).removeprefix('torch.')}", flush=True)
    generator = torch.Generator().manual_seed(0)

    def make(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    globals()[name](make, impl)


def main() -> None:
    what, *arguments = sys.argv[1:]
    if what == "op":
        # float16 is the same code as bfloat16, and in float32 Hopper has no kernels of its own
        dtypes = {torch.bfloat16} if _arch else {torch.bfloat16, torch.float32}
        for dtype in _registry._OPS[arguments[0]].kernels[IMPL].dtypes:
            if dtype in dtypes:
                run_op(arguments[0], dtype)
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return
    calls: dict[str, Callable[..., dict[str, Any]]] = {"probe": probe, "launch": launch, "compare": compare}
    found = calls[what](*arguments[1:])
    if arguments:
        Path(arguments[0]).write_text(json.dumps(found))
    else:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
