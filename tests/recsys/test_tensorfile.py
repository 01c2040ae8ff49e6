"""Files of tensors are read whole, in part, or into live tensors, and say what does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from features.errors import ArtifactError
from recsys.tensorfile import read_into, read_part, read_state, read_tensors, write_tensors


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "x.safetensors"
    write_tensors(file, {"table": torch.arange(12.0).view(4, 3), "step": torch.tensor(7)}, {"epoch": 2})
    return file


def test_every_way_of_reading_gives_what_was_written(path: Path) -> None:
    tensors, state = read_tensors(path)
    assert state == read_state(path) == {"epoch": 2}
    live = {name: torch.zeros_like(t) for name, t in tensors.items()}
    read_into(path, live)
    assert all(torch.equal(live[name], t) for name, t in tensors.items())
    assert list(read_tensors(path, "st")[0]) == ["step"]
    part = (slice(1, 3), slice(0, 2))
    assert torch.equal(read_part(path, "table", part), tensors["table"][part])


@pytest.mark.parametrize(
    ("into", "text"),
    [
        ({"table": torch.zeros(4, 2)}, r"table: .* Found: shape \(4, 3\). Expected: shape \(4, 2\)"),
        ({"other": torch.zeros(1)}, r"other: .* Found: nothing. Expected: shape \(1,\)"),
    ],
)
def test_tensors_of_another_model_are_refused(path: Path, into: dict[str, torch.Tensor], text: str) -> None:
    with pytest.raises(ArtifactError, match=text):
        read_into(path, into)


def test_a_damaged_file_is_named(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])
    for read in (read_tensors, read_state, lambda p: read_part(p, "table", (slice(0, 1),))):
        with pytest.raises(ArtifactError, match=r"x\.safetensors: cannot be read: missing or damaged"):
            read(path)
