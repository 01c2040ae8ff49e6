"""Peers live in environments of their own, with pinned versions, so that a comparison can be repeated.

`prepare` makes the environment once (it is reused while its requirements stay the same), `call` runs a
script of `benchmarks/scripts` in it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import child

SCRIPTS = Path(__file__).resolve().parent / "scripts"


@dataclass(frozen=True)
class Peer:
    """Another library: its name, the pinned packages to install in order, and the script that measures it."""

    name: str
    requirements: tuple[str, ...]
    script: str
    bare: tuple[str, ...] = ()
    """Packages installed last, as they are: without what they ask for, whatever Python they were made for."""


DEEPCTR_TORCH = Peer(
    name="deepctr-torch",
    # requests is imported by the package but not among its declared needs.
    requirements=(
        "torch==2.13.0",
        "deepctr-torch==0.3.0",
        "numpy==2.4.6",
        "requests==2.34.2",
        "scikit-learn==1.9.1",
        "tqdm==4.70.1",
    ),
    script="deepctr_torch_dcn.py",
)

FUXICTR = Peer(
    name="fuxictr",
    # Its reader passes an argument that Polars 2 no longer takes: the last 1.x is the newest that it works with.
    requirements=(
        "torch==2.13.0",
        "fuxictr==2.3.10",
        "h5py==3.16.0",
        "numpy==2.4.6",
        "pandas==3.1.1",
        "polars==1.44.2",
        "pyarrow==26.0.1",
        "ray[data]==2.60.0",
        "scikit-learn==1.9.1",
    ),
    script="fuxictr_data.py",
)

OBP = Peer(
    name="obp",
    # Its last release allows no Python above 3.10 and pins scikit-learn 1.0.2; its estimators need no more than these.
    requirements=("numpy==2.4.6", "pandas==3.1.1", "scikit-learn==1.9.1", "scipy==1.17.1"),
    bare=("obp==0.5.7",),
    script="obp_estimators.py",
)

METRICS = Peer(
    name="metrics",
    # TorchRec asks for the CUDA package of FBGEMM and a torchmetrics of 2023; its functions need neither.
    requirements=(
        "torch==2.13.0",
        "fbgemm-gpu-cpu==1.8.0",
        "numpy==2.4.6",
        "pyre-extensions==0.0.32",
        "scikit-learn==1.9.1",
        "tensordict==0.15.3",
        "torchmetrics==1.9.0",
        "tqdm==4.70.1",
    ),
    bare=("torchrec==1.8.0",),
    script="metric_values.py",
)


def cache_folder() -> Path:
    """Where the environments are: RECSYS_PEERS, or a folder of the user's cache."""
    if given := os.environ.get("RECSYS_PEERS"):
        return Path(given)
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "recsys-embeddings" / "peers"


def prepare(peer: Peer, log: Callable[[str], None] = lambda text: None) -> Path:
    """Make the peer's environment unless it is there.

    Returns:
        The Python of the environment.

    Raises:
        RuntimeError: The installation failed; nothing is left of it.
    """
    folder = cache_folder() / peer.name
    python = folder / "bin" / "python"
    stamp = folder / "ready"
    wanted = _digest(peer)
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    log(f"{peer.name}: making an environment in {folder} (once)")
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, stdout=sys.stderr)
        install = [str(python), "-m", "pip", "install", "--quiet"]
        if peer.requirements:
            subprocess.run([*install, *peer.requirements], check=True, stdout=sys.stderr)
        if peer.bare:
            as_they_are = ["--no-deps", "--ignore-requires-python"]
            subprocess.run([*install, *as_they_are, *peer.bare], check=True, stdout=sys.stderr)
    except (OSError, subprocess.CalledProcessError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise RuntimeError(
            f"{peer.name}: the environment could not be made ({error}); is the package index reachable?"
        ) from error
    stamp.write_text(wanted, encoding="utf-8")
    return python


def call(peer: Peer, request: Mapping[str, Any], *, threads: int) -> dict[str, Any]:
    """Run the peer's script once with a request and return its answer."""
    return child([str(prepare(peer)), str(SCRIPTS / peer.script)], request, threads=threads)


def _digest(peer: Peer) -> str:
    text = "\n".join((sys.version, *peer.requirements, *peer.bare))
    return hashlib.sha256(text.encode()).hexdigest()
