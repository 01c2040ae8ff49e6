"""The commands that take a bundle refuse one that means harm: nothing is executed, and nothing is registered."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

from recsys.serving.registry import Registry
from tests.integration.conftest import Outcome, World, inside
from tests.integration.conftest import recsys as command
from tests.integration.hostile import wide_bundle
from tests.integration.test_serve import PATIENCE, Server, Store


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.place),)


def arm(bundle: Path, exploded: Path) -> None:
    """Puts a pickle in the place of the weights, with the right checksum."""
    bomb = pickle.dumps(Bomb(exploded))
    (bundle / "weights.safetensors").write_bytes(bomb)
    told = json.loads((bundle / "bundle.json").read_text())
    told["files"]["weights.safetensors"] = hashlib.sha256(bomb).hexdigest()
    (bundle / "bundle.json").write_text(json.dumps(told))


def test_it_is_not_registered(trained: tuple[World, Outcome], tmp_path: Path) -> None:
    shutil.copytree(trained[0].folder, tmp_path / "world")
    (bundle,) = (tmp_path / "world").glob("work/*/runs/*/bundle")
    with inside(tmp_path / "world"):
        arm(bundle, tmp_path / "exploded")
        pickled = command("register", "small.yaml")
        shutil.rmtree(bundle)
        bundle.symlink_to("/etc")
        linked = command("register", "small.yaml")
        versions = Registry("sqlite:///work/mlflow.db").versions("small")
    assert (pickled.code, linked.code) == (2, 2)
    assert "weights.safetensors: cannot be read" in pickled.err
    assert "is no model bundle" in linked.err
    assert not (tmp_path / "exploded").exists()
    assert [version.version for version in versions] == [1]


@pytest.mark.slow
def test_it_is_not_served(tmp_path: Path) -> None:
    bundle = wide_bundle(tmp_path / "clicks")
    arm(bundle, tmp_path / "exploded")
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", bundle)
    for place, says in ((bundle, "weights.safetensors: cannot be read"), (Path(archive), "is no model bundle")):
        with Server(Store("", tmp_path, {}), model=str(place)) as server:
            assert server.process.wait(PATIENCE) == 2
            assert says in server.log.read_text()
    assert not (tmp_path / "exploded").exists()
