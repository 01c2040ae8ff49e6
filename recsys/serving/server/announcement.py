"""What the process that looks into the registry tells the workers: the version to serve. A small file in a folder."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from features.files import read_json, write_json

CHALLENGER, SHADOW = "challenger", "shadow"
"""Models beside the served one: the first answers a share of the requests, the second scores unseen what was answered.
What is announced of them lies in folders of these names."""
_FILE = "announcement.json"


@dataclass(frozen=True)
class Announcement:
    """A version that was tested and is to be served.

    Attributes:
        name: Name of the model.
        version: Its version.
        alias: The alias that is followed, if one is.
        run_id: MLflow run that trained it.
        folder: Its bundle.
        checked: When the registry was last asked, in seconds since 1970.
        reachable: Whether it answered.
        reached: When it last did.
        refused: A version that the alias points to and that is not served, since its bundle cannot be used.
        withdrawn: The alias is gone, so the version is to be served no longer; of a model beside the served one only.
        promotion: The decision by which the version was promoted, as `recsys.serving.promotions` gives it.
    """

    name: str
    version: str
    alias: str | None
    run_id: str | None
    folder: str
    checked: float
    reachable: bool = True
    reached: float = 0.0
    refused: str | None = None
    withdrawn: bool = False
    promotion: dict[str, Any] | None = None

    @property
    def model(self) -> tuple[str, str, str]:
        """What tells one served model from another."""
        return self.name, self.version, self.folder

    def write(self, folder: Path) -> None:
        """Puts it in the place of an older one, whole.

        Raises:
            ArtifactError: It cannot be written.
        """
        write_json(folder / _FILE, dataclasses.asdict(self))


class AnnouncementReader:
    """Reads announcements as they come.

    Args:
        folder: Where they are written.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _FILE
        self._stamp: tuple[int, int] | None = None
        self._last: Announcement | None = None

    def read(self) -> Announcement | None:
        """The newest one, None before the first.

        Raises:
            ArtifactError: It cannot be read.
        """
        try:
            stat = self._path.stat()
        except FileNotFoundError:
            return self._last
        stamp = (stat.st_mtime_ns, stat.st_ino)
        if stamp != self._stamp:
            self._last = Announcement(**read_json(self._path, mend="start the server again"))
            self._stamp = stamp
        return self._last
