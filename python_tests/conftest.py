"""Settings every test shares: one torch thread (tests run side by side), no hypothesis deadline (machines differ)."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start: their bits are compared
with suppress(ImportError):  # the op tests do without
    import hypothesis

    hypothesis.settings.register_profile("ci", deadline=None)
    hypothesis.settings.load_profile("ci")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests neither read nor fill the user's caches; subprocesses inherit this.

    torch's cache of compiled graphs does not know an op's schema: a graph kept from before a change of one would fail.
    """
    os.environ["ICL_FAST_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path_factory.mktemp("inductor"))


@pytest.fixture(autouse=True)
def _own_threads() -> Iterator[None]:
    """A test may set the number of threads; the next one's sums would be rounded otherwise."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some 200 kB of made-up text in 40 files: words from a small dictionary, with names that repeat within a file."""
    random = Random(0)
    words = ["".join(random.choices("aeioustrnlmpk", k=random.randint(2, 7))) for _ in range(300)]
    folder = tmp_path_factory.mktemp("corpus")
    for index in range(40):
        names = random.sample(words, 12)
        lines = (" ".join(random.choices(names if random.random() < 0.5 else words, k=9)) for _ in range(90))
        (folder / f"{index:02d}.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="session")
def tiny_values(corpus_folder: Path) -> dict[str, dict[str, object]]:
    """The config of a run that takes about a second, as plain data."""
    return {
        "model": {"layers": 2, "width": 16, "heads": 2},
        "data": {"corpus": str(corpus_folder), "vocab": 280, "context": 24, "evaluation_examples": 40},
        "training": {"steps": 12, "batch": 2, "lr": 1e-2, "warmup": 3, "checkpoint_every": 5, "log_every": 1},
        "snapshots": {"every": 6},
    }


@pytest.fixture(scope="session")
def tiny_run(tiny_values: dict[str, dict[str, object]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run folder; tests that change it must copy it."""
    from icl_fast.runs import parse_config
    from icl_fast.training import train

    return train(parse_config(tiny_values), tmp_path_factory.mktemp("runs") / "tiny").path


@pytest.fixture(scope="session")
def write_llama() -> Callable[..., Path]:
    """Writes a small Llama with random weights as Hugging Face does, `(folder, seed, tokenizer=None, **fields)`, and a
    tokenizer.json if one is given."""
    from safetensors.torch import save_file

    def write(folder: Path, seed: int = 0, tokenizer: Any = None, **fields: Any) -> Path:
        folder.mkdir(parents=True)
        config = {
            "model_type": "llama", "vocab_size": 300, "hidden_size": 16, "intermediate_size": 24,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
            "rms_norm_eps": 1e-5, "rope_theta": 1000.0, "tie_word_embeddings": True, "hidden_act": "silu",
            "bos_token_id": 0, "eos_token_id": 0, **fields,
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config))
        width, hidden = config["hidden_size"], config["intermediate_size"]
        shared = width // config["num_attention_heads"] * config["num_key_value_heads"]
        shapes: dict[str, tuple[int, ...]] = {"embed_tokens": (config["vocab_size"], width), "norm": (width,)}
        for layer in range(config["num_hidden_layers"]):
            shapes |= {
                f"layers.{layer}.{name}": shape
                for name, shape in {
                    "input_layernorm": (width,), "post_attention_layernorm": (width,),
                    "self_attn.q_proj": (width, width), "self_attn.k_proj": (shared, width),
                    "self_attn.v_proj": (shared, width), "self_attn.o_proj": (width, width),
                    "mlp.gate_proj": (hidden, width), "mlp.up_proj": (hidden, width), "mlp.down_proj": (width, hidden),
                }.items()
            }  # fmt: skip
        random = torch.Generator().manual_seed(seed)
        weights = {f"model.{name}.weight": 0.3 * torch.randn(shape, generator=random) for name, shape in shapes.items()}
        save_file(weights, folder / "model.safetensors")
        if tokenizer is not None:
            tokenizer.save(str(folder / "tokenizer.json"))
        return folder

    return write


@pytest.fixture(scope="session")
def write_weight() -> Callable[..., None]:
    """Puts another number first in a weight of a snapshot, also what saving refuses: `(run, step, name, value)`."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    def write(run: Any, step: int, name: str, value: float) -> None:
        path = run.snapshot_path(step)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        weights = load_file(path)
        weights[name].view(-1)[0] = value
        save_file(weights, path, metadata=metadata)
        run.note(str(path.relative_to(run.path)))

    return write


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 256 KiB, to be filled; skips where mounting is not allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system is not allowed here")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture(scope="session")
def llama() -> Callable[..., Path]:
    """Writes a small random model of another library: `llama(folder, dtype=torch.float32, **fields)`, its folder."""

    from safetensors.torch import save_file  # here: the op tests do without

    def write(folder: Path, dtype: torch.dtype = torch.float32, **fields: Any) -> Path:
        config = {
            "model_type": "llama", "vocab_size": 60, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
        } | fields  # fmt: skip
        width, hidden, vocab = (config[name] for name in ("hidden_size", "intermediate_size", "vocab_size"))
        shared = width // config["num_attention_heads"] * config["num_key_value_heads"]
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator).mul_(shape[-1] ** -0.5).to(dtype)

        weights = {"model.embed_tokens.weight": normal(vocab, width), "lm_head.weight": normal(vocab, width)}
        weights["model.norm.weight"] = normal(width)
        for layer in range(config["num_hidden_layers"]):
            at = f"model.layers.{layer}"
            for name, rows in {"q": width, "k": shared, "v": shared, "o": width}.items():
                weights[f"{at}.self_attn.{name}_proj.weight"] = normal(rows, width)
            weights |= {f"{at}.mlp.{name}_proj.weight": normal(hidden, width) for name in ("gate", "up")}
            weights[f"{at}.mlp.down_proj.weight"] = normal(width, hidden)
            weights |= {f"{at}.{name}_layernorm.weight": normal(width) for name in ("input", "post_attention")}
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        save_file(weights, folder / "model.safetensors")
        return folder

    return write
