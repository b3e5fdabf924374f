"""A study of made-up models: right shapes, coords and attributes, values from a seed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from icl_fast.analysis import Curiosity, PhaseChange, Thresholds, attribute_heads, attribute_icl, head_types, joint_pca
from icl_fast.models import TransformerConfig
from icl_fast.report.panels.texts import viewed_snapshots
from icl_fast.report.study import Claim, EvaluationGroup, ExemplarStudy, ModelStudy, Study
from icl_fast.runs import open_series, parse_config
from icl_fast.studies.collect_exemplars import study_exemplars
from icl_fast.training import train

MadeStudy = Callable[..., Study]
OpenPage = Callable[..., Any]
SENTENCE = ("The", " cat", " sat", "\n", " <script>alert(1)</script>", " & “Ж", "\\xe2", "\t", "</style>", " sat")


@pytest.fixture(scope="session")
def made_study() -> MadeStudy:
    def make(
        layers: Sequence[int] = (1, 2),
        *,
        heads: int = 2,
        snapshots: int = 6,
        context: int = 32,
        examples: int = 20,
        length: int = 12,
        texts: Sequence[tuple[str, str]] = (("passage", "passage"), ("template", "template")),
        seed: int = 0,
    ) -> Study:
        random = np.random.default_rng(seed)
        models = {}
        for index, depth in enumerate(layers):
            name = f"{('one', 'two', 'three', 'four')[depth - 1]}_layer{'_mlp' * (index >= 3)}"
            models[name] = _model(name, depth, heads, snapshots, context, examples, length, texts, random)
        pca = joint_pca({name: model.losses for name, model in models.items()})
        claims = (Claim("Heads <b>form</b>", "Argument 1", "holds", "two_layer: yes"),)
        groups = (EvaluationGroup("made up", context, "<bos>", tuple(models), pca),)
        return Study("A made-up study", models, groups, claims)

    return make


def _model(
    name: str,
    layers: int,
    heads: int,
    snapshots: int,
    context: int,
    examples: int,
    length: int,
    texts: Sequence[tuple[str, str]],
    random: np.random.Generator,
) -> ModelStudy:
    steps = np.arange(snapshots) * 10
    time = {
        "snapshot": ("snapshot", steps),
        "tokens": ("snapshot", steps * 2048),
    }
    learned = 1 / (1 + np.exp(6 - 12 * np.arange(snapshots) / snapshots))  # [snapshot], from 0 to 1
    drop = 0.5 * (layers > 1)
    noise = random.normal(size=(1, 1, examples)) + random.normal(0, 0.05, (snapshots, 1, examples))

    def sweep(names: Sequence[str], of: Sequence[tuple[int, int]], whole: np.ndarray) -> xr.Dataset:
        dims, count = ("snapshot", "ablation"), len(names)
        effects = np.concatenate([np.zeros((snapshots, 1)), random.normal(0.1, 0.1, (snapshots, count - 1))], axis=1)
        by_position = whole[:, None] + effects[..., None]  # [snapshot, ablation, position]
        loss = whole.mean(-1)[:, None, None] + noise + effects[..., None] * random.normal(1, 0.2, (1, 1, examples))
        score = by_position[..., -2] - by_position[..., context // 10] + effects
        small = np.full(by_position.shape, 0.01)
        return xr.Dataset(
            {
                "position_loss": ((*dims, "position"), by_position),
                "position_loss_sem": ((*dims, "position"), small),
                "loss": ((*dims, "example"), loss.astype(np.float32)),
                "icl_score": (dims, score, {"long_name": "mean loss of token 31 minus token 4"}),
                "icl_score_sem": (dims, small[..., 0]),
                "icl_effect_sem": (dims, small[..., 0]),
            },
            coords={
                **time,
                "ablation": list(names),
                "layer": ("ablation", [layer for layer, _ in of]),
                "head": ("ablation", [head for _, head in of]),
                "position": np.arange(1, context + 1),
            },
        )

    positions = np.log(np.arange(1, context + 1))
    whole = 6 - 2 * learned[:, None] - drop * learned[:, None] * positions / positions[-1]
    all_heads = [(layer, head) for layer in range(layers) for head in range(heads)]
    ablated = ["none", *(f"{layer}.{head}" for layer, head in all_heads)]
    losses = sweep(["none"], [(-1, -1)], whole)
    modes = {mode: sweep(ablated, [(-1, -1), *all_heads], whole) for mode in ("pattern-preserving", "full")}

    def scores(low: float) -> tuple[tuple[str, str, str], np.ndarray]:
        start = random.uniform(low, 1, (layers, heads))
        return ("snapshot", "layer", "head"), learned[:, None, None] * start

    trace = scores(0)[1] * 10
    trace[:, 0] = np.nan
    pairs = ("snapshot", "writer_layer", "writer_head", "layer", "head")
    composition = {}
    for what in "qkv":
        values = random.uniform(0, 0.3, (snapshots, layers, heads, layers, heads))
        for reader in range(layers):
            values[:, reader:, :, reader] = np.nan
        composition[f"composition_{what}"] = (pairs, values)
    measured = xr.Dataset(
        {
            "prefix_matching": scores(0),
            "copying": scores(-1),
            "previous_token": scores(0),
            "qk_trace": (("snapshot", "layer", "head"), trace),
            "ov_copying": scores(-1),
            **composition,
        },
        coords=time,
    )
    start, end = (min(int(np.searchsorted(learned, part)), snapshots - 1) for part in (0.1, 0.9))
    change = PhaseChange(
        happened=layers > 1,
        drop=drop,
        drop_interval=(0.9 * drop, 1.1 * drop),
        prefix_matching=float(measured["prefix_matching"][-1].max()),
        start=start - 1 if drop else None,
        end=end if drop else None,
        window=(float(steps[start]) - 5, float(steps[end]) - 5) if drop else None,
        start_interval=(float(steps[start]) - 7, float(steps[start]) - 3) if drop else None,
        end_interval=(float(steps[end]) - 7, float(steps[end]) - 3) if drop else None,
        abruptness=1.9 if drop else None,
        abruptness_interval=(1.5, 2.5) if drop else None,
        smooth_abruptness=7.0 if drop else None,
        evidence=50.0 if drop else -5.0,
        support=0.98 if drop else 0.0,
        resampled="snapshots",
    )
    interval = None
    if layers > 1 and change.start is not None and change.end is not None:
        interval = (int(steps[change.start]), int(steps[change.end]))
    sweep_of_heads = modes["pattern-preserving"]
    last = measured.isel(snapshot=-1)
    return ModelStudy(
        name=name,
        config=TransformerConfig(vocab=50, context=context, layers=layers, width=4 * heads, heads=heads),
        parameters=1234 * layers,
        corpus="made up",
        left_out={10: "truncated: <i>step 10</i>"} if layers == 2 else {},
        losses=losses,
        heads=measured,
        ablations=modes,
        change=change,
        interval=interval,
        attributions=attribute_heads(sweep_of_heads, *interval) if interval else attribute_icl(sweep_of_heads),
        types=head_types(
            last["previous_token"].values,
            last["prefix_matching"].values,
            last["copying"].values,
            Thresholds(copying=-0.6),
        ),
        curiosities=(
            Curiosity("loss spike", int(steps[snapshots // 2]), None, 0.3, "+0.30 nats over those around it"),
            Curiosity("falling head", int(steps[1]), (1, 0), 0.5, "prefix matching falls from 0.60 to 0.10"),
        )
        if layers > 1 and snapshots > 1
        else (),
        texts={
            text: _text(text, kind, layers, heads, length, time, viewed_snapshots(steps.tolist(), interval, 4), random)
            for text, kind in texts
        },
    )


def _text(
    name: str,
    kind: str,
    layers: int,
    heads: int,
    length: int,
    time: dict[str, tuple[str, np.ndarray]],
    viewed: Sequence[int],
    random: np.random.Generator,
) -> xr.Dataset:
    pieces = [SENTENCE[index % len(SENTENCE)] for index in range(length)]
    shown = list(np.ndindex(layers, heads))
    pattern = np.tril(random.gamma(0.3, 1, (len(viewed), len(shown), length, length)) + 1e-6)
    pattern /= pattern.sum(-1, keepdims=True)
    logits = np.tril(random.normal(size=pattern.shape)) * pattern
    dims = ("viewed", "shown", "position", "source")
    steps = time["snapshot"][1]
    category = np.full(length, -1)
    if kind == "template":  # every third token is a label
        category[2::3] = np.resize([0, 1, 0, 0], len(category[2::3]))
    return xr.Dataset(
        {
            "loss": (("snapshot", "position"), random.gamma(3, 1, (len(steps), length)).astype(np.float32)),
            "pattern": (dims, pattern.astype(np.float32)),
            "logits": (dims, logits.astype(np.float32)),
        },
        coords={
            **time,
            "viewed": list(viewed),
            "layer": ("shown", [layer for layer, _ in shown]),
            "head": ("shown", [head for _, head in shown]),
            "position": np.arange(1, length + 1),
            "input": ("position", ["<bos>", *pieces[:-1]]),
            "target": ("position", pieces),
            "category": ("position", category),
        },
        attrs={"name": name, "title": f"A {kind}", "kind": kind, "source": "made up"},
    )


EXEMPLARS: dict[str, Any] = {
    "exemplars": {"kind": "gaussian", "classes": 30, "exemplars": 3, "width": 8, "encoder": "none"},
    "sequences": {"classes": 20, "held_out_classes": 6},
    "model": {"width": 16, "heads": 2},
    "training": {"steps": 12, "batch": 4, "lr": 1e-2, "log_every": 2, "engine": "plain"},
    "evaluation": {"every": 3, "sequences": 40},
    "snapshots": {"every": 6},
}
MEMBERS = [{"name": "free"}, {"name": "one <b>head</b>", "set": {"interventions.only_heads": ["1.1"]}}]


@pytest.fixture(scope="session")
def exemplar_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ExemplarStudy]:
    """Trained for a moment and measured: a run alone, three seeds, and two members that differ in more."""

    @contextmanager
    def silent(title: str) -> Iterator[Callable[[int, int, str], None]]:
        yield lambda done, of, text: None

    found = {}
    for name, members in ("alone", 1), ("seeds", 3), ("clamped", MEMBERS):
        run = train(parse_config({**EXEMPLARS, "members": members}), tmp_path_factory.mktemp("exemplars") / name)
        found[name] = study_exemplars(name, open_series(run.path), {}, silent, sequences=30)
    return found


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A headless Chromium: the system's own."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium on this machine: the page cannot be tried")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser: pip install -e .[dev]")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def browser_page(chromium: Any) -> Iterator[OpenPage]:
    """`open(path, width=1600, height=1000, hash="", **context)`: a Playwright page with that file, when it is ready.

    After the test: nothing went to the console as an error or warning, no script failed, and nothing but the file
    itself was asked for.
    """
    contexts, wrong = [], []

    def open_page(path: Path, width: int = 1600, height: int = 1000, hash: str = "", **options: Any) -> Any:
        context = chromium.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        url = path.resolve().as_uri()
        page.on("console", lambda said: said.type in ("error", "warning") and wrong.append(f"console: {said.text}"))
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on(
            "request",
            lambda asked: (
                asked.url.split("#")[0] == url
                or asked.url.startswith(("data:", "blob:"))
                or wrong.append(f"request: {asked.url}")
            ),
        )
        page.goto(url + (f"#{hash}" if hash else ""))
        page.evaluate("ICL.ready")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong
