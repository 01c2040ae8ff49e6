"""The files of a bundle: which may be there, and that they are what bundle.json says of them; light to import."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from features.errors import ArtifactError

DESCRIPTION = "bundle.json"
MOST_DESCRIPTION_BYTES = 100_000_000
"""Of a bundle.json; one of a thousand features is a hundredth of it."""
KINDS = (".arrow", ".json", ".md", ".safetensors")
"""Endings of the files of a bundle."""

_MEND = "copy or download it again"


def read_description(folder: Path) -> bytes:
    """What bundle.json holds.

    Raises:
        ArtifactError: There is none, or it is no plain file.
    """
    path = folder / DESCRIPTION
    try:
        found = path.lstat()
        if stat.S_ISREG(found.st_mode) and found.st_size <= MOST_DESCRIPTION_BYTES:
            return path.read_bytes()
        problem = "no plain file" if not stat.S_ISREG(found.st_mode) else f"{DESCRIPTION} of {found.st_size:,} bytes"
    except (OSError, ValueError) as error:
        problem = str(error)
    raise ArtifactError(
        "is no model bundle",
        field=str(folder),
        found=problem,
        mend=f"give the folder that holds {DESCRIPTION}, unpacked if it came as an archive",
    )


def check_files(folder: Path, listed: Mapping[str, str]) -> None:
    """Refuses a folder whose files are not exactly those listed, byte for byte.

    Links are refused, wherever they lead: what is checked is what lies in the folder.

    Raises:
        ArtifactError: A file is missing, differs, is not listed, is none that a bundle holds, or lies elsewhere.
    """
    found = set(files_of(folder))
    for name, expected in listed.items():
        parts = PurePosixPath(name).parts
        if PurePosixPath(name).is_absolute() or ".." in parts:
            raise ArtifactError(
                "the bundle names a file outside of it", field=str(folder / DESCRIPTION), found=name, mend=_MEND
            )
        if not name.endswith(KINDS):
            raise ArtifactError(
                "the bundle lists a file that no bundle holds",
                field=str(folder / name),
                expected=f"files that end in {', '.join(KINDS)}",
                mend=_MEND,
            )
        digest = sha256_of(folder / name) if name in found else "no file of the bundle"
        if digest != expected:
            raise ArtifactError(
                "the bundle is damaged",
                field=str(folder / name),
                found=digest,
                expected=f"sha256 {expected}",
                mend=_MEND,
            )
    unlisted = sorted(found - {*listed, DESCRIPTION})
    if unlisted:
        raise ArtifactError(
            "the bundle has a file that it does not list",
            field=str(folder / unlisted[0]),
            mend="remove it, or copy or download the bundle again",
        )


def files_of(folder: Path) -> list[str]:
    """The files of a folder and of those within it, in order, as paths from there.

    Raises:
        ArtifactError: Something is neither a file nor a folder.
    """
    names = []
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode):
                names.append(path.relative_to(folder).as_posix())
            elif not stat.S_ISDIR(mode):
                raise ArtifactError(
                    "the bundle holds something that is no plain file",
                    field=str(path),
                    found="a link" if stat.S_ISLNK(mode) else "a pipe, a socket or a device",
                    mend="copy the bundle with its links followed (cp -rL), or download it again",
                )
    return sorted(names)


def sha256_of(path: Path) -> str:
    """The hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
