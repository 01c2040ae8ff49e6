"""The server on a file system that nobody can write to, with one temporary folder, no home and no rights."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.hostile import wide_bundle, wide_rows
from tests.integration.test_serve import Server, Store
from tests.packaging.test_containerfile import environment, health_check

MOUNTS = 'mount -o remount,bind,ro / && mount -t tmpfs tmpfs "$0" && exec "$@"'
RIGHTS = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]


def read_only(scratch: Path) -> list[str]:
    """What stands before a command that shall see the file system read-only, but for one empty folder."""
    return ["unshare", "-rm", "sh", "-c", MOUNTS, str(scratch), *RIGHTS]


def possible() -> bool:
    if not all(map(shutil.which, ("unshare", "setpriv"))):
        return False
    probe = [*read_only(Path("/mnt")), "true"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not possible(), reason="needs mount namespaces (unshare -rm)")
def test_it_serves_where_only_the_temporary_folder_can_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, scratch = wide_bundle(tmp_path / "clicks"), tmp_path / "scratch"
    scratch.mkdir()
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    before = [*read_only(scratch), sys.executable]
    store = Store("", tmp_path, {})
    with Server(
        store, "--timeout-ms", "60000", model=str(bundle), before=before, HOME="/nowhere", TMPDIR=str(scratch)
    ) as server:
        server.ready()
        server.score(wide_rows(3, 1))
        touch = [*read_only(scratch), "touch", str(tmp_path / "new")]
        assert subprocess.run(touch, capture_output=True, check=False).returncode
        checked = {**os.environ, "HEALTH_URL": f"{server.url}/healthz"}
        subprocess.run([sys.executable, *health_check()], check=True, env=checked)
        assert server.stop() == 0
        log = server.log.read_text()
    assert "Traceback" not in log
    assert "rror" not in log, log
    checked["HEALTH_URL"] = f"{server.url}/healthz"
    assert subprocess.run([sys.executable, *health_check()], capture_output=True, env=checked, check=False).returncode
