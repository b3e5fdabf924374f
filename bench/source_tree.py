"""The sources that are measured or checked: those this file is among. Needs the standard library alone.

Importing it puts them first on the path, before an icl_fast that is installed.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


def commit(root: Path = ROOT) -> str:
    """The commit of a tree, with "+changes" if something differs from it; a digest of the kernels outside a repository.

    A repository that git will not read (another user's) counts as none.
    """
    git = ("git", "-C", str(root))
    try:
        head, status = (
            subprocess.run([*git, *words], capture_output=True, text=True, check=True, timeout=20).stdout.strip()
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.SubprocessError):
        return f"no repository; sources {digest(root)[:16]}"
    return head + ("+changes" if status else "")


def digest(root: Path = ROOT) -> str:
    """SHA-256 of csrc/ and the ops, names included."""
    files = sorted(path for folder in ("csrc", "icl_fast/ops") for path in (root / folder).rglob("*") if path.is_file())
    found = hashlib.sha256()
    for file in files:
        if "__pycache__" not in file.parts:
            found.update(file.relative_to(root).as_posix().encode() + file.read_bytes())
    return found.hexdigest()
