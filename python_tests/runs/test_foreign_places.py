"""Which step each of other people's snapshots is of, and in which order they come."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icl_fast import InputError
from icl_fast.runs.foreign_places import in_order, local_places, order_notes, place


@pytest.mark.parametrize(
    ("name", "step", "tokens"),
    [
        ("step143000", 143_000, None),
        ("checkpoint-500", 500, None),
        ("step1000-tokens4B", 1000, 4 * 10**9),
        ("stage1-step10000-tokens42B", 10_000, 42 * 10**9),
        ("step738020-tokens3094B", 738_020, 3094 * 10**9),
        ("global_step40", 40, None),
        ("global-step-40", 40, None),
        ("iter_0000100", 100, None),
        ("iteration-7", 7, None),
        ("ckpt_12", 12, None),
        ("model.step3", 3, None),
        ("run/step3", 3, None),
        ("0512", 512, None),
        ("main", -1, None),
        ("Llama-3.2-1B", -1, None),
        ("footstep3", -1, None),
        ("v2", -1, None),
        ("model-step8.gguf", 8, None),
    ],
)
def test_names(name: str, step: int, tokens: int | None) -> None:
    found = place(name, Path(name))
    assert (found.step, found.tokens) == (step, tokens)


def test_pythia_tells_its_tokens() -> None:
    assert place("step1000", None, of_pythia=True).tokens == 1000 * 2_097_152


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=30, unique=True), st.randoms())
def test_the_order_is_that_of_the_steps(steps: list[int], random: object) -> None:
    places = in_order([place(f"checkpoint-{step}", None) for step in steps], None, "x")
    assert [one.step for one in places] == sorted(steps)


def test_revisions_are_names_or_patterns(foreign: Path) -> None:
    for revisions, steps in {
        "step0,step8": [0, 8],
        " step8 , step0 ": [0, 8],
        "step*0": [0, 1000],
        "*": [0, 1, 2, 8, 64, 1000],
        "step[0-2],step1": [0, 1, 2],
    }.items():
        assert [one.step for one in local_places(foreign, revisions)] == steps
    for revisions in ("", "step3", "step0,", "Step0"):
        with pytest.raises(InputError, match=r"^revisions: .* it has step0, step1, "):
            local_places(foreign, revisions)


def test_one_model_and_a_folder_of_a_training(foreign: Path, write_llama: Callable[..., Path], tmp_path: Path) -> None:
    """The model that a training leaves at the top is that of its last snapshot."""
    alone = write_llama(tmp_path / "Llama-tiny")
    assert [(one.name, one.step) for one in local_places(alone)] == [("Llama-tiny", 0)]
    (one,) = local_places(foreign / "step8")
    assert one.step == 8
    for step in (5, 10):
        write_llama(alone / f"checkpoint-{step}", step)
    assert [one.step for one in local_places(alone)] == [5, 10]


def test_the_cache_of_the_hub(write_llama: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "models--someone--pythia-9m"
    (folder / "refs").mkdir(parents=True)
    for revision, commit in {"main": "ccc", "step0": "aaa", "step512": "ccc", "step1": "gone"}.items():
        (folder / "refs" / revision).write_text(commit)
    for seed, commit in enumerate(("aaa", "ccc")):
        write_llama(folder / "snapshots" / commit, seed)
    assert [(one.name, one.tokens) for one in local_places(folder)] == [("step0", 0), ("step512", 512 * 2_097_152)]
    assert [(one.name, one.step) for one in local_places(folder, "main")] == [("main", 0)]


def test_what_cannot_be_put_in_order(write_llama: Callable[..., Path], tmp_path: Path) -> None:
    for folder, message in {
        "empty": "holds neither a run nor a model",
        "names": r"no name in .*names says a step, such as step1000 or checkpoint-500 \(a, b\)",
        "twice": r"stage1-step5 and stage2-step5 of .* are both of step 5; choose some with --revisions",
    }.items():
        (tmp_path / folder).mkdir()
        for name in {"names": ("a", "b"), "twice": ("stage1-step5", "stage2-step5")}.get(folder, ()):
            write_llama(tmp_path / folder / name)
        with pytest.raises(InputError, match=rf"^ckpt: .*{message}"):
            local_places(tmp_path / folder)
    assert [one.name for one in local_places(tmp_path / "twice", "stage2*")] == ["stage2-step5"]


def test_what_a_training_says_of_its_own_state(write_llama: Callable[..., Path], tmp_path: Path) -> None:
    for name, state in {
        "checkpoint-10": {"global_step": 10, "num_input_tokens_seen": 640},
        "checkpoint-20": {"global_step": 15, "num_input_tokens_seen": 600},
        "checkpoint-30": {"global_step": "x"},
    }.items():
        write_llama(tmp_path / "run" / name)
        (tmp_path / "run" / name / "trainer_state.json").write_text(json.dumps(state))
    places = local_places(tmp_path / "run")
    assert [(one.step, one.tokens) for one in places] == [(10, 640), (20, 600), (30, None)]
    assert order_notes(places) == [
        "snapshot 20: its name is checkpoint-20, its trainer_state.json says step 15",
        "snapshot 20 (checkpoint-20) had seen 600 tokens, no more than snapshot 10 before it (checkpoint-10: 640); "
        "their order cannot be right",
    ]
    alone = tmp_path / "run" / "checkpoint-10"
    assert [one.step for one in local_places(alone.rename(tmp_path / "final"))] == [10]  # from its state
