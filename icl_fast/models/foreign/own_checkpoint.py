"""A folder with our own config as config.json and our own weights as model.safetensors."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from icl_fast.files import read_json
from icl_fast.models.config import parse_transformer_config
from icl_fast.models.foreign.checkpoint import CONFIG, Checkpoint, FoundWeights, match_weights, read_safetensors

WEIGHTS = "model.safetensors"


class OwnCheckpoint(Checkpoint):
    """Whatever its training was, its config and names are ours."""

    kind = "Transformer (icl_fast)"

    def __init__(self, folder: Path) -> None:
        self.source, self.files = f"model {folder}", [folder / WEIGHTS]
        self.config = parse_transformer_config(read_json(folder / CONFIG, "model"), f"model {folder / CONFIG}")

    def weights(self, names: Iterable[str]) -> FoundWeights:
        places = {name: (name, None) for name in names}
        twice = ("unembed.weight",) if self.config.tied else ()
        theirs = read_safetensors(*self.files)
        return match_weights(places, theirs, self.config, self.source, passed_over=twice)
