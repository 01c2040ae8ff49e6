"""Which torch, fbgemm-gpu and torchrec releases load together, checked once with one clear message.

The C++ libraries of the three are tied to one another release by release: a wrong pair fails deep inside a
shared library with an undefined symbol.  Only torch is required; the other two are optional.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata

from features.errors import ConfigError

# torch minor release -> the fbgemm-gpu / torchrec minor release built against it
PAIRS: Mapping[str, str] = {"2.13": "1.8", "2.14": "1.9"}
FBGEMM_DISTRIBUTIONS = ("fbgemm-gpu-cpu", "fbgemm-gpu")


def check_versions(installed: Mapping[str, str] | None = None) -> dict[str, str]:
    """Checks that the installed torch, fbgemm-gpu and torchrec were built for one another.

    Args:
        installed: distribution name -> version; read from the environment when left out.

    Returns:
        The versions found, by distribution name.

    Raises:
        ConfigError: the releases do not fit together, or torch is absent.

    >>> check_versions({"torch": "2.13.0+cpu", "torchrec": "1.8.0", "fbgemm-gpu-cpu": "1.8.0"})["torch"]
    '2.13.0+cpu'
    >>> check_versions({"torch": "2.13.0", "fbgemm-gpu-cpu": "1.9.0"})
    Traceback (most recent call last):
        ...
    features.errors.ConfigError: fbgemm-gpu-cpu: built for another torch. Found: fbgemm-gpu-cpu 1.9.0 beside \
torch 2.13.0. Expected: fbgemm-gpu-cpu 1.8.x. Mend: run `make setup`, or `pip install 'fbgemm-gpu-cpu==1.8.*'`
    """
    found = _installed() if installed is None else dict(installed)
    torch = found.get("torch")
    if torch is None:
        raise ConfigError("torch is not installed", field="torch", mend="run `make setup`")
    wanted = PAIRS.get(_minor(torch))
    for name in (*FBGEMM_DISTRIBUTIONS, "torchrec"):
        version = found.get(name)
        if version is None or wanted is None or _minor(version) == wanted:
            continue
        raise ConfigError(
            "built for another torch",
            field=name,
            found=f"{name} {version} beside torch {torch}",
            expected=f"{name} {wanted}.x",
            mend=f"run `make setup`, or `pip install '{name}=={wanted}.*'`",
        )
    return found


def _installed() -> dict[str, str]:
    versions = {}
    for name in ("torch", "torchrec", *FBGEMM_DISTRIBUTIONS):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _minor(version: str) -> str:
    return ".".join(version.split("+")[0].split(".")[:2])
