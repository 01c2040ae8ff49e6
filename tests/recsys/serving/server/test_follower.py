"""An alias that need not be there, in a real registry: what is announced of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from recsys.serving.registry import Registry
from recsys.serving.scorer import Scorer
from recsys.serving.server.announcement import Announcement, AnnouncementReader
from recsys.serving.server.follower import OptionalFollower
from tests.recsys.serving.server.conftest import make


@pytest.mark.slow
def test_an_alias_may_come_go_and_come_again(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    registry = Registry(uri)
    for number in (1, 2):
        bundle = Path(make(tmp_path / str(number), number).announcement.folder)
        run = registry.start_run("clicks", str(number))
        registry.register(registry.log_model(run, bundle, Scorer.load(bundle).spec), run, "clicks", "newest", {})
    weights = registry.bundle_of("models:/clicks/2") / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    state = tmp_path / "state"
    state.mkdir()
    follower = OptionalFollower("clicks", "challenger", uri, state)

    def announced(version: int | None) -> Announcement | None:
        if version is None:
            registry._client.delete_registered_model_alias("clicks", "challenger")
        else:
            registry.set_alias(registry.resolve(f"models:/clicks/{version}"), "challenger")
        follower.look()
        return AnnouncementReader(state).read()

    # Neither without an alias nor with a damaged version is there anything to say.
    follower.look()
    assert AnnouncementReader(state).read() is None
    assert announced(2) is None
    found = announced(1)
    assert found is not None
    assert (found.version, found.withdrawn, found.refused) == ("1", False, None)
    gone = announced(None)
    assert gone is not None
    assert gone.withdrawn
    # What came before is not brought back by a version that is refused, but by its own alias.
    still = announced(2)
    assert still is not None
    assert still.withdrawn
    again = announced(1)
    assert again is not None
    assert (again.version, again.withdrawn) == ("1", False)
