"""Where compiled loops are kept on disk: numba refuses to compile where it finds no folder that it can write to."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

VARIABLE = "NUMBA_CACHE_DIR"
"""Environment variable with the folder; numba's."""


def keep_compiled() -> None:
    """Has compiled loops kept in a folder of this process and those it starts, if there is no place that stays.

    Such are a user without a home, and a file system that cannot be written to: there is a temporary folder at least.
    It is nobody else's, since what lies in it is executed, and it is removed at the end.
    """
    if os.environ.get(VARIABLE) or _writable(Path(__file__).parent / "embeddings" / "__pycache__"):
        return
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if _writable(Path(caches) / "numba"):
        return
    try:
        folder = tempfile.mkdtemp(prefix="recsys-compiled-")
    except FileNotFoundError:  # numba will say so where it is needed
        return
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ[VARIABLE] = folder
    if "numba" in sys.modules:
        sys.modules["numba"].config.CACHE_DIR = folder


def _writable(folder: Path) -> bool:
    """Whether a folder can be written to, or made."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return os.access(folder, os.W_OK | os.X_OK)
