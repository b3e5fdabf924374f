"""Products of bfloat16 in the delta form, what is measured of their errors, and what dtype auto makes of it."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from icl_fast import InputError, Transformer, TransformerConfig, ablate
from icl_fast.measure import open_results, plan_sweep, sweep
from icl_fast.measure.ablation import SweepProgress, exactness, products
from icl_fast.measure.ablation.exactness import Exactness
from icl_fast.ops import PackedWeight, _backend

T, V = 19, 31
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "two layers": {"layers": 2},
    "three layers": {"layers": 3, "position": "rotary"},
    "mlp": {"layers": 2, "mlp": True, "attention_bias": True, "unembed_bias": True},
    "gated mlp": {"layers": 2, "mlp": True, "gated": True, "activation": "silu", "norm": "rms", "kv_heads": 1},
    "norms after": {"layers": 2, "mlp": True, "norm_place": "both"},
}
needs_kernels = pytest.mark.skipif(not _backend.compiled(), reason=f"not compiled: {_backend.load_error()}")


@pytest.fixture
def use() -> Iterator[Callable[[str], None]]:
    """Makes the kernels those of an instruction set, until the test ends."""
    yield _backend.set_isa
    if _backend.compiled():
        _backend.set_isa(_backend.isas()[-1])


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def make(**shape: Any) -> Transformer:
    torch.manual_seed(0)
    values: dict[str, Any] = {"width": 24, "heads": 3, "position": "shortformer"} | shape
    model = Transformer(TransformerConfig(vocab=V, context=T, **values))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def tokens() -> torch.Tensor:
    return torch.randint(V, (8, T + 1), generator=torch.Generator().manual_seed(3))


@needs_kernels
@pytest.mark.parametrize("positions", ["all", "paper"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_errors_are_relative_to_the_effect(architecture: str, positions: str, use: Callable[[str], None]) -> None:
    """Also where heads do little; and the same with a unit, with another and with none, to rounding."""
    model = make(**ARCHITECTURES[architecture])
    with torch.no_grad():
        for block in model.blocks:
            block.attention.out.weight.mul_(0.02)

    def losses(dtype: str) -> np.ndarray:
        found: np.ndarray = ablate(model, tokens(), dtype=dtype, positions=positions)["position_loss"].values
        return found

    truth, single = losses("float64"), losses("float32")
    effects = truth[1:] - truth[0]
    for isa in ("baseline", *_backend.emulated_isas(), _backend.isas()[-1]):
        use(isa)
        found = losses("bfloat16-products")
        np.testing.assert_allclose(found[0], single[0], rtol=1e-6)
        error = np.square(found[1:] - found[0] - effects).mean(1) / np.square(effects).mean(1)
        assert error.max() ** 0.5 < 0.01


@needs_kernels
def test_weights_are_packed_once_and_freed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed: list[weakref.ref[Any]] = []
    alive: list[int] = []

    def pack(weight: torch.Tensor) -> Any:
        found = PackedWeight(weight, None)
        packed.append(weakref.ref(found))
        return found

    def count(_: SweepProgress) -> None:
        alive.append(sum(one() is not None for one in packed))

    monkeypatch.setattr(products, "pack_weight", pack)
    sweep(run, dtype="bfloat16-products", positions="all", examples=7, memory=200_000, on_part=count)
    of_a_snapshot = len(packed) // 3
    assert 2 <= of_a_snapshot <= 5  # its values, outputs, unembedding; three snapshots
    assert max(alive) == of_a_snapshot


@pytest.mark.parametrize(
    ("effect", "sem", "error", "exact"),
    [
        (1.0, 0.01, 0.0029, True),
        (1.0, 0.01, 0.0031, False),
        (1e-6, 0.01, 0.00009, True),
        (1e-6, 0.01, -0.00011, False),
        (0.02, 0.01, 0.00009, False),
        (1.0, float("nan"), 0.0, True),
        (0.0, float("nan"), 0.1, False),
    ],
)
def test_what_is_exact(effect: float, sem: float, error: float, exact: bool) -> None:
    found = Exactness("bfloat16", 3, 4, 5, {"0.1": effect}, {"0.1": sem}, {"0.1": error})
    assert found.exact == exact
    other = Exactness(
        "bfloat16", 3, 4, 5, {"0.0": 1.0, "0.1": effect}, {"0.0": 1.0, "0.1": sem}, {"0.0": 0, "0.1": error}
    )
    assert other.exact == exact


def test_nothing_removed_is_exact() -> None:
    assert Exactness("bfloat16", None, 4, 5, {}, {}, {}).exact


@needs_kernels
def test_errors_are_those_of_the_sample() -> None:
    model = make(layers=2)
    found = ablate(model, tokens()[:4], dtype="auto", heads="all,0.*")
    if _backend.bfloat16_unit() is None:
        assert "exactness" not in found.attrs
        return
    measured = Exactness.of(found)
    assert measured is not None
    assert (measured.dtype, measured.examples, measured.positions) == ("bfloat16-products", 4, T)
    truth, rounded = (ablate(model, tokens()[:4], dtype=d, heads="all,0.*") for d in ("float64", "bfloat16-products"))
    for name, effect in measured.effect.items():
        whole = truth["position_loss"].sel(ablation=name) - truth["position_loss"].sel(ablation="none")
        error = (rounded["position_loss"].sel(ablation=name) - rounded["position_loss"].sel(ablation="none")) - whole
        assert effect == pytest.approx(float(whole.mean()))
        assert measured.error[name] == pytest.approx(float(error.mean()), rel=1e-3, abs=1e-7)


@needs_kernels
def test_auto_takes_what_is_exact(run: Path, tmp_path: Path, use: Callable[[str], None], monkeypatch: Any) -> None:
    options: dict[str, Any] = {"dtype": "auto", "positions": "all", "examples": 7, "snapshots": "last"}
    use("baseline")
    assert plan_sweep(run, **options).plan.dtype == "float32"
    use("amx_emulated")
    monkeypatch.setattr(exactness, "OF_SEM", 1e-9)
    monkeypatch.setattr(exactness, "OF_EFFECT", 1e-9)
    planned = plan_sweep(run, **options)
    assert planned.plan.dtype == "float32"
    assert planned.exactness is not None
    assert planned.exactness.dtype == "bfloat16-products"
    monkeypatch.setattr(exactness, "OF_SEM", 1.0)
    monkeypatch.setattr(exactness, "OF_EFFECT", 1.0)
    assert plan_sweep(run, **options).plan.dtype == "bfloat16-products"
    assert plan_sweep(run, mode="full", **options).plan.dtype == "float32"  # nothing of it is carried
    assert plan_sweep(run, engine="definition", **options).plan.dtype == "float32"


@needs_kernels
def test_a_sweep_goes_on_as_it_was_begun(
    run: Path, tmp_path: Path, use: Callable[[str], None], monkeypatch: Any
) -> None:
    """Also where there is no unit, and where there is one now."""
    monkeypatch.setattr(exactness, "OF_SEM", 1.0)
    monkeypatch.setattr(exactness, "OF_EFFECT", 1.0)
    options: dict[str, Any] = {"positions": "all", "examples": 7, "dtype": "auto"}

    def stop(progress: SweepProgress) -> None:
        if progress.done == 1:
            raise KeyboardInterrupt

    for begins, goes_on, dtype in (
        ("avx512_bf16_emulated", "baseline", "bfloat16-products"),
        ("baseline", "avx512_bf16_emulated", "float32"),
    ):
        out = tmp_path / f"{begins}.zarr"
        use(begins)
        with pytest.raises(KeyboardInterrupt):
            sweep(run, out=out, on_part=stop, **options)
        use(goes_on)
        results = open_results(sweep(run, out=out, **options))
        assert json.loads(results.attrs["plan"])["dtype"] == dtype
        measured = Exactness.of(results)
        assert (None if measured is None else measured.dtype) == (None if dtype == "float32" else dtype)
        use(begins)
        monkeypatch.setattr(exactness, "measure_exactness", None)  # a finished one is not measured again
        assert sweep(run, out=out, **options) == out
        monkeypatch.undo()
        monkeypatch.setattr(exactness, "OF_SEM", 1.0)
        monkeypatch.setattr(exactness, "OF_EFFECT", 1.0)


def test_check_is_kept(run: Path, tmp_path: Path) -> None:
    """Of any dtype, at once or of what is there already."""
    out = tmp_path / "out.zarr"
    options: dict[str, Any] = {"out": out, "examples": 7, "snapshots": "last"}
    assert Exactness.of(open_results(sweep(run, **options))) is None
    found = Exactness.of(open_results(sweep(run, check=True, **options)))
    assert found is not None
    assert (found.dtype, found.step) == ("float32", 12)
    assert found.exact
    assert list(found.effect) == ["0.0", "0.1", "1.0", "1.1"]
    again = Exactness.of(open_results(sweep(run, **options)))
    assert again == found


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"dtype": "bfloat16-products", "engine": "definition"},
            "dtype: bfloat16-products are of engine fast; take",
        ),
        ({"dtype": "bfloat16products"}, "dtype: 'bfloat16products' is none of float32, bfloat16-products, .*, auto"),
    ],
)
def test_what_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ablate(make(layers=1), tokens(), **options)
