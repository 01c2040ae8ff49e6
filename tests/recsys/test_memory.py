"""What is available is the least of the machine and its control groups; what does not fit is refused with figures."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from features.errors import ConfigError
from recsys.memory import MemoryPart, available_memory, cgroup_available, require_memory


def group(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name.replace("__", ".")).write_text(f"{value}\n")


def test_the_tightest_group_on_the_way_up_counts(tmp_path: Path) -> None:
    (tmp_path / "membership").write_text("0::/pod/container\n")
    root = tmp_path / "root"
    group(root / "pod/container", memory__max="max", memory__current=100, memory__stat="inactive_file 10")
    group(root / "pod", memory__max=1000, memory__current=700, memory__stat="anon 5\ninactive_file 50")
    group(root, memory__max=5000, memory__current=0, memory__stat="inactive_file 0")
    assert cgroup_available(root, tmp_path / "membership") == 1000 - 700 + 50


def test_groups_of_the_first_version(tmp_path: Path) -> None:
    (tmp_path / "membership").write_text("7:blkio:/\n4:cpu,memory:/elsewhere/job\n0::/\n")
    group(
        tmp_path / "root/memory",
        memory__limit_in_bytes=1000,
        memory__usage_in_bytes=400,
        memory__stat="total_inactive_file 100",
    )
    assert cgroup_available(tmp_path / "root", tmp_path / "membership") == 700


def test_without_groups_or_limits_there_is_none(tmp_path: Path) -> None:
    assert cgroup_available(tmp_path, tmp_path / "absent") is None
    (tmp_path / "membership").write_text("0::/\n")
    assert cgroup_available(tmp_path, tmp_path / "membership") is None
    group(tmp_path, memory__max="max", memory__current=1, memory__stat="inactive_file 0")
    assert cgroup_available(tmp_path, tmp_path / "membership") is None


def test_no_more_is_available_than_the_machine_has() -> None:
    assert 0 < available_memory() <= psutil.virtual_memory().total


def test_what_does_not_fit_is_refused_by_its_largest_part() -> None:
    fits = MemoryPart("table", 1000, "embedding.rows", "lower it")
    require_memory([fits])
    with pytest.raises(ConfigError, match=r"train\.batch_size.*9,000,000 GB.*table.*a batch.*available.*smaller batch"):
        require_memory([fits, MemoryPart("a batch", 9 * 10**15, "train.batch_size", "a smaller batch")])
