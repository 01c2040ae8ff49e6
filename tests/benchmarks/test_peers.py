"""A peer's environment is made once, made anew when its requirements change, and leaves nothing when it fails."""

import dataclasses
from pathlib import Path

import pytest

from benchmarks import peers

EMPTY = peers.Peer(name="empty", requirements=(), script="none.py")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RECSYS_PEERS", str(tmp_path / "peers"))
    return tmp_path / "peers"


def test_made_once_and_again_when_the_requirements_change(cache: Path) -> None:
    said: list[str] = []
    python = peers.prepare(EMPTY, said.append)
    assert python.exists()
    assert len(said) == 1
    peers.prepare(EMPTY, said.append)
    assert len(said) == 1
    (cache / "empty" / "ready").write_text("another set of requirements")
    peers.prepare(EMPTY, said.append)
    assert len(said) == 2


def test_a_failed_installation_leaves_nothing(cache: Path) -> None:
    broken = dataclasses.replace(EMPTY, requirements=("./no-such-package-here",))
    with pytest.raises(RuntimeError, match="empty: the environment could not be made"):
        peers.prepare(broken)
    assert not (cache / "empty").exists()


@pytest.mark.parametrize(
    "peer", [peers.DEEPCTR_TORCH, peers.FUXICTR, peers.METRICS, peers.OBP], ids=lambda peer: peer.name
)
def test_every_peer_is_pinned(peer: peers.Peer) -> None:
    assert all("==" in requirement for requirement in (*peer.requirements, *peer.bare))
    assert peer is peers.OBP or "torch==2.13.0" in peer.requirements
    assert (peers.SCRIPTS / peer.script).is_file()
