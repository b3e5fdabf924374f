"""Models on the Hugging Face hub: their revisions, and the files of one of them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from icl_fast.data.cache import cache_folder
from icl_fast.errors import InputError

PREFIX, CONFIG = "hf:", "config.json"
_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def hub_name(ckpt: str | Path) -> str | None:
    """ORG/NAME of `hf:ORG/NAME`; None: it is no name of that form."""
    text = str(ckpt)
    name = text.removeprefix(PREFIX).lstrip("/")
    return name if text.startswith(PREFIX) and _NAME.fullmatch(name) else None


class HubModel:
    """A model on the hub.

    Attributes:
        name: ORG/NAME.
        keep: whether what is downloaded stays in the hub's own cache, or goes after use.
    """

    def __init__(self, name: str, keep: bool = True) -> None:
        self.name, self.keep = name, keep
        self._files: dict[str, dict[str, str | None]] = {}

    def revisions(self) -> list[str]:
        """Its branches and tags.

        Raises:
            InputError: no such model, no network, or no `huggingface_hub`.
        """
        refs = self._asked("list_repo_refs")
        return [ref.name for ref in (*refs.branches, *refs.tags)]

    def weight_digests(self, revision: str) -> dict[str, str] | None:
        """SHA-256 by name of the weight files of a revision; None: the hub does not say."""
        files = self._listed(revision)
        digests = {name: files[name] for name in self._weights(revision)}
        return {name: digest for name, digest in digests.items() if digest} if all(digests.values()) else None

    def fetch(self, revision: str, *, weights: bool = True) -> Path:
        """The folder with the files of a revision, downloaded where they are not there yet.

        Args:
            weights: as well, not only what is said of them.

        Raises:
            InputError: as `revisions`; no weights that can be read; a full disk.
        """
        from huggingface_hub import hf_hub_download

        names = [name for name in self._listed(revision) if name.endswith(".json") and "/" not in name]
        if CONFIG not in names:
            raise InputError(f"ckpt: {PREFIX}{self.name} at {revision} holds no {CONFIG}; nothing says what it is")
        own = None if self.keep else self._own(revision)
        try:
            found = [
                hf_hub_download(self.name, name, revision=revision, local_dir=own)
                for name in (*names, *(self._weights(revision) if weights else ()))
            ]
        except Exception as error:
            raise _unreachable(self.name, error) from None
        return Path(found[0]).parent

    def drop(self, revision: str) -> None:
        """Remove what `fetch` downloaded, unless it is kept."""
        if not self.keep:
            shutil.rmtree(self._own(revision), ignore_errors=True)

    def _own(self, revision: str) -> Path:
        return cache_folder() / "downloads" / self.name.replace("/", "--") / revision.replace("/", "--")

    def _weights(self, revision: str) -> list[str]:
        """Names of the files that hold the weights: safetensors where there are any."""
        names = [name for name in self._listed(revision) if "/" not in name]
        for pattern in (r"model(-\d+-of-\d+)?\.safetensors", r"pytorch_model(-\d+-of-\d+)?\.bin"):
            if found := [name for name in names if re.fullmatch(pattern, name)]:
                return found
        raise InputError(f"ckpt: {PREFIX}{self.name} at {revision} holds no model.safetensors and no pytorch_model.bin")

    def _listed(self, revision: str) -> dict[str, str | None]:
        """The files of a revision, with the SHA-256 of those whose the hub says."""
        if revision not in self._files:
            info = self._asked("model_info", revision=revision, files_metadata=True)
            self._files[revision] = {
                file.rfilename: file.lfs.sha256 if file.lfs is not None else None for file in info.siblings or ()
            }
        return self._files[revision]

    def _asked(self, what: str, **options: Any) -> Any:
        try:
            from huggingface_hub import HfApi
        except ImportError:
            raise InputError("ckpt: models of the hub need huggingface_hub; pip install icl_fast[hf]") from None
        try:
            return getattr(HfApi(), what)(self.name, **options)
        except Exception as error:
            raise _unreachable(self.name, error) from None


def _unreachable(name: str, error: Exception) -> InputError:
    """The error of a download that failed, for which the hub's library has dozens of kinds."""
    if isinstance(error, InputError):
        return error
    reason = " ".join(str(error).split()) or type(error).__name__
    return InputError(
        f"ckpt: {PREFIX}{name} cannot be had from the hub ({reason:.200}); see that the name and the network are "
        "right, or give a folder"
    )
