"""Which exemplars a run uses: the `exemplars:` block of a config file."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from icl_fast.arguments import MOST_SEED
from icl_fast.data.clusters import cluster_embeddings
from icl_fast.data.encoders import ENCODERS, Encoder, encode
from icl_fast.data.exemplar_files import read_exemplars
from icl_fast.data.exemplars import Exemplars, gaussian_classes
from icl_fast.data.input_files import read_file
from icl_fast.data.pixel_noise import with_pixel_noise
from icl_fast.data.transforms import transformed
from icl_fast.errors import InputError
from icl_fast.schema import Config, Field, model_validator


class ExemplarSource(Config):
    """Classes and their exemplars, and the frozen encoder that makes vectors of them (Singh 2025, 2.2.1, 4.2.1)."""

    kind: Literal["auto", "glyphs", "strokes", "images", "vectors", "clusters", "gaussian"] = Field(
        "auto",
        description="glyphs: rendered from installed fonts; strokes: characters from a seeded generator; auto: glyphs, "
        "or strokes where the fonts are too few, which a run's own config then says; images: a folder of CLASS/IMAGE; "
        "vectors: an .npz or .h5 file; clusters: of the token embeddings in a file; gaussian: synthetic",
    )
    path: str | None = Field(None, description="the folder or file of images, vectors or clusters")
    classes: int = Field(1623, ge=2, description="characters, clusters, or Gaussian classes")
    exemplars: int = Field(20, ge=1, description="exemplars of each class")
    size: int = Field(28, ge=1, le=256, description="pixels of a side of characters and images")
    transforms: bool = Field(False, description="every image in 8 ways: 4 rotations, mirrored or not")
    transforms_as: Literal["classes", "exemplars"] = Field(
        "classes", description="what those are: 8 classes of each, or 8 exemplars of each in the same class"
    )
    pixel_noise: float = Field(
        0.0, ge=0, le=1e6, description="deviation of Gaussian noise on every pixel, before the encoder, drawn once"
    )
    copies: int = Field(1, ge=1, description="exemplars made of each image, each with pixel noise of its own")
    clusters: int | None = Field(None, ge=2, description="clusters that classes are chosen from; default 3/2 of them")
    tokens: tuple[int, int] | None = Field(
        None, strict=False, description="first and last token id to cluster; default all"
    )
    iterations: int = Field(25, ge=1, description="of clustering, at most")
    within: float = Field(0.5, ge=0, le=1e6, description="gaussian: deviation within a class")
    encoder: str = Field(
        "",
        description="random-projection, pca, random-convolutions, none, or a TorchScript file: images to vectors; "
        "default random-projection, of clusters none",
    )
    width: int = Field(512, ge=1, description="features that a named encoder gives")
    seed: int = Field(
        0, ge=0, le=MOST_SEED, description="of strokes, Gaussian classes, clusters, pixel noise and encoders"
    )

    @model_validator(mode="after")
    def _consistent(self) -> ExemplarSource:
        from_file = self.kind in ("images", "vectors", "clusters")
        if from_file != (self.path is not None):
            raise ValueError(f"path={self.path}: {'is needed' if from_file else 'is not used'} with kind={self.kind}")
        of_clusters = {"clusters": self.clusters, "tokens": self.tokens}
        if self.kind != "clusters" and (given := [key for key, value in of_clusters.items() if value is not None]):
            raise ValueError(f"{given[0]}={of_clusters[given[0]]}: is not used with kind={self.kind}")
        if self.copies > 1 and not self.pixel_noise:
            raise ValueError(f"copies={self.copies}: would all be the same; set pixel_noise, or copies=1")
        if not self.encoder:  # written out, so that a run's config says it
            object.__setattr__(self, "encoder", "none" if self.kind == "clusters" else "random-projection")
        return self


def settled(source: ExemplarSource, progress: Callable[[int, int, str], None] | None = None) -> ExemplarSource:
    """What is taken where it is `auto`: glyphs, or strokes where the fonts of this machine are too few.

    Args:
        source: what to load.
        progress: as in `load_exemplars`.
    """
    if source.kind != "auto":
        return source
    from icl_fast.data.glyphs import promise_glyphs, render_glyphs  # here: text and vectors do without images

    if promise_glyphs(source.classes, source.exemplars):
        with suppress(InputError):
            render_glyphs(source.classes, source.exemplars, source.size, progress=progress)  # kept for the next time
            return source.model_copy(update={"kind": "glyphs"})
    return source.model_copy(update={"kind": "strokes"})


def load_exemplars(source: ExemplarSource, progress: Callable[[int, int, str], None] | None = None) -> Exemplars:
    """The exemplars of a run, encoded.

    Args:
        source: what to load.
        progress: called while characters are drawn, with how many are done, of how many, which.

    Raises:
        InputError: as the functions that read or make them.
    """
    network = _network(source.encoder)  # before anything that takes long
    source = settled(source, progress)
    try:
        exemplars = _raw(source, progress)
        if source.transforms:
            exemplars = transformed(exemplars, source.transforms_as)
        if source.pixel_noise:
            exemplars = with_pixel_noise(exemplars, source.pixel_noise, source.copies, seed=source.seed)
        if network is not None:
            return encode(exemplars, network, width=source.width, seed=source.seed)
    except InputError as error:
        raise InputError(f"exemplars: {error}") from None
    return exemplars


def _network(encoder: str) -> Encoder | None:
    """What makes vectors of the exemplars; None: nothing."""
    if encoder == "none":
        return None
    for name in ENCODERS:
        if encoder == name:
            return name
    try:
        script = io.BytesIO(read_file(os.path.expanduser(encoder), "exemplars.encoder"))
        network: Callable[[Tensor], Tensor] = torch.jit.load(script, map_location="cpu").eval()  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).removeprefix("exemplars.encoder: ").splitlines()[0]
        raise InputError(
            f"exemplars.encoder {encoder}: must be {', '.join(ENCODERS)}, none or a TorchScript file ({reason})"
        ) from None
    return network


def _raw(source: ExemplarSource, progress: Callable[[int, int, str], None] | None) -> Exemplars:
    if source.kind == "glyphs":
        from icl_fast.data.glyphs import render_glyphs  # here: text and vectors do without images

        return render_glyphs(source.classes, source.exemplars, source.size, progress=progress)
    if source.kind == "strokes":
        from icl_fast.data.strokes import draw_strokes

        return draw_strokes(source.classes, source.exemplars, source.size, seed=source.seed, progress=progress)
    if source.kind == "gaussian":
        return gaussian_classes(source.classes, source.exemplars, source.width, noise=source.within, seed=source.seed)
    path = Path(os.path.expanduser(source.path or ""))
    if source.kind == "images":
        from icl_fast.data.image_folder import read_images

        return read_images(path, exemplars=source.exemplars, size=source.size)
    if source.kind == "vectors":
        return read_exemplars(path, exemplars=source.exemplars)
    return cluster_embeddings(
        path,
        source.classes,
        source.exemplars,
        clusters=source.clusters,
        tokens=source.tokens,
        iterations=source.iterations,
        seed=source.seed,
    )
