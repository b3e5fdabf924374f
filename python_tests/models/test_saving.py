"""What save_snapshot takes: wrapped, tied, parametrized models come back the same; what could not is not written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, weight_norm

from icl_fast.errors import InputError
from icl_fast.models import ExemplarTransformer, Transformer, load_snapshot, save_snapshot
from icl_fast.models.checkpoints import TEXT_FORMAT

Build = Callable[..., Transformer]
TOKENS = torch.arange(8).view(2, 4)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


class WithLoss(Transformer):
    def loss(self, tokens: Tensor) -> Tensor:
        return self(tokens).logsumexp(-1).mean()


class Halved(Transformer):
    def hidden(self, tokens: Tensor, **options: Any) -> Any:
        hidden, sites = super().hidden(tokens, **options)
        return hidden * 0.5, sites


def saved(path: Path, model: Any, **count: Any) -> Transformer:
    save_snapshot(path / "a.safetensors", model, **{"step": 1, "seen": 16, **count})
    loaded: Transformer = load_snapshot(path / "a.safetensors").model
    return loaded


def compile_block(model: Transformer) -> None:
    model.blocks[0] = torch.compile(model.blocks[0], backend="eager")
    model.blocks[1].norm1 = torch.compile(model.blocks[1].norm1, backend="eager")


def overlap(model: Transformer) -> None:
    """Two weights in one storage, one of them not contiguous."""
    both = torch.randn(12, 22)
    model.embed.weight.data, model.unembed.weight.data = both.T[:11], both.T[11:]


KEPT: dict[str, Callable[[Transformer], Any]] = {
    "compiled": lambda m: torch.compile(m, backend="eager"),
    "compiled blocks": compile_block,
    "compiled in place": lambda m: m.blocks[0].compile(backend="eager"),
    "data parallel": lambda m: nn.DataParallel(m),
    "both": lambda m: torch.compile(nn.DataParallel(m), backend="eager"),
    "tied": lambda m: setattr(m.unembed, "weight", m.embed.weight),
    "views": overlap,
    "parametrized": lambda m: parametrize.register_parametrization(m.blocks[0].attention.q, "weight", Doubled()),
    "weight norm": lambda m: parametrizations.weight_norm(m.unembed),
    "frozen": lambda m: m.requires_grad_(False),
    "forward hook": lambda m: m.blocks[0].register_forward_hook(lambda *_: None),
}


@pytest.mark.parametrize("change", KEPT.values(), ids=KEPT)
def test_comes_back_the_same(build: Build, tmp_path: Path, change: Callable[[Transformer], Any]) -> None:
    model = build()
    changed = change(model)
    wrapped = changed if isinstance(changed, (nn.DataParallel, torch._dynamo.OptimizedModule)) else model
    before = list(model.state_dict())
    loaded = saved(tmp_path, wrapped)
    torch.testing.assert_close(loaded(TOKENS), model(TOKENS), rtol=1e-6, atol=1e-6)  # strides change the last digit
    assert torch.equal(loaded.unembed.weight, model.unembed.weight)
    assert list(loaded.state_dict()) == list(build().state_dict())
    assert list(model.state_dict()) == before
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_a_subclass_that_computes_the_same(build: Build, tmp_path: Path) -> None:
    model = WithLoss(build().config)
    assert torch.equal(saved(tmp_path, model)(TOKENS), model(TOKENS))


def test_tied_weights_are_written_once_and_stay_tied(build: Build, tmp_path: Path) -> None:
    model = build()
    model.unembed.weight = model.embed.weight
    model.blocks[1].attention.q = model.blocks[0].attention.q  # a whole module twice
    loaded = saved(tmp_path, model)
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        written, header = set(file.keys()), json.loads(file.metadata()[TEXT_FORMAT])
    assert header["tied"] == {
        "unembed.weight": "embed.weight",
        "blocks.1.attention.q.weight": "blocks.0.attention.q.weight",
    }
    assert written == set(build().state_dict()) - set(header["tied"])
    assert loaded.unembed.weight is loaded.embed.weight
    assert loaded.blocks[1].attention.q.weight is loaded.blocks[0].attention.q.weight
    assert len(list(loaded.parameters())) == len(list(model.parameters()))
    for each in (model, loaded):
        each(TOKENS).pow(2).mean().backward()
        torch.optim.SGD(each.parameters(), lr=0.1).step()
    assert torch.equal(loaded(TOKENS), model(TOKENS))
    again = saved(tmp_path, loaded)
    assert torch.equal(again(TOKENS), loaded(TOKENS))


def test_weights_that_share_memory_alone_are_tied_too(build: Build, tmp_path: Path) -> None:
    model = build()
    model.unembed.weight.data = model.embed.weight.data
    loaded = saved(tmp_path, model)
    assert loaded.unembed.weight is loaded.embed.weight
    assert torch.equal(loaded(TOKENS), model(TOKENS))


def test_tied_exemplar_models(
    build_exemplars: Callable[..., ExemplarTransformer], draw_sequences: Any, tmp_path: Path
) -> None:
    model = build_exemplars(2)
    model.unembed.weight = model.embed_label.weight
    save_snapshot(tmp_path / "a", model, step=1, sequences=16)
    loaded = load_snapshot(tmp_path / "a").model
    assert loaded.unembed.weight is loaded.embed_label.weight
    assert torch.equal(loaded(*draw_sequences(model)[:2])[0], model(*draw_sequences(model)[:2])[0])


@pytest.mark.parametrize(
    "tied",
    [
        3,
        ["unembed.weight"],
        {"unembed.weight": 3},
        {"unembed.weight": "unembed.weight"},
        {"unembed.weight": "position.weight"},  # of another shape
        {"unembed.weight": "nowhere"},
        {"nowhere": "embed.weight"},
        {"unembed.weight": "embed.weight", "embed.weight": "unembed.weight"},
    ],
)
def test_damaged_ties(build: Build, tmp_path: Path, tied: Any) -> None:
    model = build()
    saved(tmp_path, model)
    path = tmp_path / "a.safetensors"
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()[TEXT_FORMAT])
    metadata = {TEXT_FORMAT: json.dumps({**header, "tied": tied})}
    save_file({n: w for n, w in model.state_dict().items() if n != "unembed.weight"}, path, metadata=metadata)
    with pytest.raises(InputError, match=r"^snapshot .*: (its header is damaged \(tied|missing or unknown)"):
        load_snapshot(path)


REFUSED: dict[str, tuple[Callable[[Transformer], Any], str]] = {
    "NaN": (lambda m: m.embed.weight.data.view(-1)[3:4].fill_(torch.nan), "embed.weight holds NaN or infinity"),
    "infinity": (lambda m: m.final_norm.bias.data.fill_(torch.inf), "final_norm.bias holds NaN or infinity"),
    "no numbers": (lambda m: m.to("meta"), "embed.weight is on the meta device"),
    "two types": (lambda m: m.final_norm.double(), "final_norm.weight is torch.float64, but weights are"),
    "replaced": (lambda m: setattr(m, "final_norm", nn.RMSNorm(12)), "final_norm is a RMSNorm"),
    "eps": (lambda m: setattr(m.final_norm, "eps", 0.5), "final_norm is not as configured"),
    "more weights": (lambda m: m.register_parameter("more", nn.Parameter(torch.zeros(2))), "weights of its own"),
    "by a hook": (lambda m: weight_norm(m.unembed), "unembed has weights of its own"),
    "layers": (lambda m: m.blocks.pop(1), "blocks has other parts"),
}


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`")
@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_what_could_not_be_read_back_is_not_written(
    build: Build, tmp_path: Path, change: Callable[[Transformer], Any], message: str
) -> None:
    model = build()
    change(model)
    with pytest.raises(InputError, match=message) as error:
        saved(tmp_path, model)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_no_models(build: Build, tmp_path: Path) -> None:
    for other in (None, nn.Linear(2, 2), build().state_dict(), "model"):
        with pytest.raises(InputError, match=r"^model: must be a Transformer or an ExemplarModel"):
            saved(tmp_path, other)
    with pytest.raises(InputError, match=r"^model: the model has a method hidden of its own"):
        saved(tmp_path, Halved(build().config))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["step", "seen"])
@pytest.mark.parametrize("value", [-1, 2**63, 1.0, "1", None, True, float("nan")])
def test_counts_are_whole_numbers(build: Build, tmp_path: Path, name: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"^{name}: "):
        saved(tmp_path, build(), **{name: value})
    assert list(tmp_path.iterdir()) == []


def test_counts_of_numpy_and_older_names(
    build: Build, build_exemplars: Callable[..., ExemplarTransformer], tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    for kind in (np.int32, np.uint64, torch.tensor):
        save_snapshot(path, build(), step=kind(7), seen=kind(16))
        assert (load_snapshot(path).step, load_snapshot(path).seen) == (7, 16)
    save_snapshot(path, build(), step=7, tokens=32)
    assert load_snapshot(path).seen == 32
    save_snapshot(path, build_exemplars(), step=7, sequences=64)
    assert load_snapshot(path).seen == 64
    for wrong in ({"sequences": 3}, {"seen": 1, "tokens": 1}, {}):
        with pytest.raises(InputError, match=r"^seen: give how many tokens"):
            save_snapshot(path, build(), step=7, **wrong)
