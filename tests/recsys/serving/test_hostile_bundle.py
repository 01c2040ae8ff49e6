"""A bundle from a stranger: refused with one clear error, and nothing of it is executed, followed or unpacked."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from features.errors import ArtifactError
from recsys.serving.bundle_files import MOST_DESCRIPTION_BYTES
from recsys.serving.registry import Registry
from recsys.serving.scorer import Scorer
from recsys.serving.server.follower import AliasFollower
from tests.integration.hostile import wide_bundle


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.place),)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wide_bundle(tmp_path_factory.mktemp("whole") / "bundle")


@pytest.fixture
def bundle(whole: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    copy = tmp_path / "bundle"
    subprocess.run(["cp", "-r", str(whole), str(copy)], check=True)
    return copy


def refused(place: Path | str, says: str) -> None:
    with pytest.raises(ArtifactError, match=says):
        Scorer.load(place)


def put(bundle: Path, name: str, content: bytes) -> None:
    """Puts a file into a bundle, with the right checksum."""
    (bundle / name).write_bytes(content)
    tell(bundle, lambda told: told["files"].update({name: hashlib.sha256(content).hexdigest()}))


def tell(bundle: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    told = json.loads((bundle / "bundle.json").read_text())
    change(told)
    (bundle / "bundle.json").write_text(json.dumps(told))


PICKLES = {
    "bundle.json": "is no model bundle",
    "weights.safetensors": "weights.safetensors: cannot be read",
    "pipeline/pipeline.json": "pipeline.json: file cannot be read",
    "pipeline/often.arrow": "often.arrow: file cannot be read",
    "extra.pkl": "extra.pkl: the bundle lists a file that no bundle holds",
}
"""Where a pickle is put, and what is said of it."""


@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_is_never_read(bundle: Path, tmp_path: Path, name: str) -> None:
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"))
    if name == "bundle.json":
        (bundle / name).write_bytes(bomb)
    else:
        put(bundle, name, bomb)
    refused(bundle, PICKLES[name])
    assert not (tmp_path / "exploded").exists()
    pickle.loads(bomb)
    assert (tmp_path / "exploded").is_dir()


def test_weights_that_torch_saved_are_never_read(bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "saved.pt"
    torch.save({"table": Bomb(tmp_path / "exploded")}, file)
    put(bundle, "weights.safetensors", file.read_bytes())
    refused(bundle, "weights.safetensors: cannot be read")
    assert not (tmp_path / "exploded").exists()


def make_archive(path: Path) -> None:
    """An archive with a file that would lie outside of where it is unpacked, and one that is absolute."""
    inner = path.parent / "inner"
    inner.write_text("{}")
    names = ["bundle.json", "../outside.json", f"{path.parent}/absolute.json"]
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.write(inner, name)
    else:
        with tarfile.open(path, "w") as archive:
            for name in names:
                archive.add(inner, name)
    inner.unlink()


@pytest.mark.parametrize("name", ["bundle.zip", "bundle.tar", "bundle.pkl"])
def test_an_archive_is_not_unpacked(tmp_path: Path, name: str) -> None:
    path = tmp_path / "place" / name
    path.parent.mkdir()
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    else:
        make_archive(path)
    refused(path, "is no model bundle.*unpacked")
    with pytest.raises(ArtifactError, match="is no model bundle"):
        AliasFollower(str(path), "", tmp_path).first()
    assert [found.relative_to(tmp_path).as_posix() for found in tmp_path.rglob("*")] == ["place", f"place/{name}"]


@pytest.mark.parametrize("name", ["weights.safetensors", "pipeline/pipeline.json", "pipeline"])
def test_a_link_out_of_the_folder_is_not_followed(bundle: Path, tmp_path: Path, name: str) -> None:
    """Although what it leads to is what the checksums say."""
    (bundle / name).rename(tmp_path / "elsewhere")
    (bundle / name).symlink_to(tmp_path / "elsewhere")
    refused(bundle, rf"{name}: the bundle holds something that is no plain file\. Found: a link")


@pytest.mark.parametrize("target", ["elsewhere", "/dev/zero"])
def test_a_description_that_is_a_link_is_not_read(bundle: Path, tmp_path: Path, target: str) -> None:
    (bundle / "bundle.json").rename(tmp_path / "elsewhere")
    (bundle / "bundle.json").symlink_to(tmp_path / target)
    refused(bundle, "is no model bundle. Found: no plain file")


def test_a_pipe_is_not_waited_for(bundle: Path) -> None:
    os.mkfifo(bundle / "pipeline" / "more.json")
    refused(bundle, "no plain file. Found: a pipe")
    (bundle / "bundle.json").unlink()
    os.mkfifo(bundle / "bundle.json")
    refused(bundle, "is no model bundle. Found: no plain file")


def test_a_file_outside_is_not_looked_at(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "outside.json").write_text("{}")
    digest = hashlib.sha256(b"{}").hexdigest()
    for name in ("../outside.json", "pipeline/../../outside.json", str(tmp_path / "outside.json")):
        tell(bundle, lambda told, name=name: told["files"].update({name: digest}))  # type: ignore[misc]
        refused(bundle, "names a file outside of it")
        tell(bundle, lambda told, name=name: told["files"].pop(name))  # type: ignore[misc]
    for name in ("./bundle.json", "pipeline//pipeline.json", "a" * 5000 + ".json", "\0.json"):
        tell(bundle, lambda told, name=name: told["files"].update({name: digest}))  # type: ignore[misc]
        refused(bundle, "the bundle is damaged")
        tell(bundle, lambda told, name=name: told["files"].pop(name))  # type: ignore[misc]
    Scorer.load(bundle)


def test_a_description_of_any_size_or_depth_is_not_read(bundle: Path) -> None:
    (bundle / "bundle.json").write_text("[" * 100_000)
    refused(bundle, "is no model bundle")
    (bundle / "bundle.json").write_text('{"bundle_version": 3, "plan": %s}' % ("[" * 900 + "]" * 900))
    refused(bundle, "the bundle is damaged")
    with (bundle / "bundle.json").open("wb") as file:
        file.truncate(MOST_DESCRIPTION_BYTES + 1)
    refused(bundle, "bundle.json of 100,000,001 bytes")


def header_of(data: bytes) -> dict[str, Any]:
    (size,) = struct.unpack_from("<Q", data)
    return dict(json.loads(data[8 : 8 + size]))


def with_header(data: bytes, header: dict[str, Any]) -> bytes:
    (size,) = struct.unpack_from("<Q", data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


LIES: dict[str, Callable[[bytes, dict[str, Any]], bytes]] = {
    "a header of 2^60 bytes": lambda data, header: struct.pack("<Q", 2**60) + data[8:],
    "a header beyond the file": lambda data, header: struct.pack("<Q", len(data)) + data[8:],
    "more rows than bytes": lambda data, header: with_header(data, changed(header, shape=[10**9, 4])),
    "rows without number": lambda data, header: with_header(data, changed(header, shape=[2**62, 2**62])),
    "bytes beyond the file": lambda data, header: with_header(data, changed(header, data_offsets=[0, 10**15])),
    "bytes of another tensor": lambda data, header: with_header(data, changed(header, data_offsets=[0, 8])),
    "another type": lambda data, header: with_header(data, changed(header, dtype="F64")),
    "half the file": lambda data, header: data[: len(data) // 2],
}


def changed(header: dict[str, Any], **told: Any) -> dict[str, Any]:
    return {**header, "table": {**header["table"], **told}}


@pytest.mark.parametrize("lie", LIES)
def test_a_table_that_lies_about_its_size_is_refused(bundle: Path, lie: str) -> None:
    data = (bundle / "weights.safetensors").read_bytes()
    put(bundle, "weights.safetensors", LIES[lie](data, header_of(data)))
    refused(bundle, "weights.safetensors: cannot be read")


def test_a_table_of_fewer_rows_than_the_plan_has_is_refused(bundle: Path) -> None:
    data = (bundle / "weights.safetensors").read_bytes()
    told = header_of(data)["table"]
    rows, width = told["shape"]
    honest = changed(header_of(data), shape=[rows * 2, width // 2])
    put(bundle, "weights.safetensors", with_header(data, honest))
    refused(bundle, f"table has {rows * 2} rows, and the plan {rows}")


@pytest.mark.parametrize(("count", "seed"), [(40, 1), pytest.param(2000, 2, marks=pytest.mark.slow)])
def test_changed_files_with_right_checksums_are_refused_or_score(whole: Path, count: int, seed: int) -> None:
    """No other error, and native code does not crash: it runs in a process of its own."""
    command = [sys.executable, "-m", "tests.recsys.serving.hostile_bundles_job", str(whole), str(count), str(seed)]
    root = Path(__file__).parents[3]
    run = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    print(run.stdout)
    outcomes = {line.split()[1] for line in run.stdout.splitlines()}
    assert {"refused", "scored"} <= outcomes


@pytest.mark.slow
def test_a_registered_model_that_names_a_bundle_elsewhere_is_refused(bundle: Path, tmp_path: Path) -> None:
    registry = Registry(f"sqlite:///{tmp_path / 'mlflow.db'}")
    run = registry.start_run("clicks", "1")
    model = registry.log_model(run, bundle, Scorer.load(bundle).spec)
    version = registry.register(model, run, "clicks", "champion", {})
    described = registry.bundle_of(version.uri).parent.parent / "MLmodel"
    assert "registered_model_meta" not in os.listdir(described.parent)
    told = yaml.safe_load(described.read_text())
    for path, says in (
        (f"../{os.path.relpath(bundle, described.parent)}", "holds no bundle"),
        (str(bundle), "holds no bundle"),
        (7, "holds no bundle"),
        ("missing", "is no model bundle"),
    ):
        told["flavors"]["python_function"]["artifacts"]["bundle"]["path"] = path
        described.write_text(yaml.safe_dump(told))
        with pytest.raises(ArtifactError, match=says):
            Scorer.load(version.uri, tracking_uri=registry.uri)
