"""One process alone needs no group; with a group of one, every exchange gives back what went in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from features.errors import ArtifactError
from recsys.processes import Processes, _first_line, joined


@pytest.fixture(params=["alone", "group"])
def processes(request: pytest.FixtureRequest) -> Iterator[Processes]:
    if request.param == "alone":
        with joined(1) as processes:  # nobody started several
            yield processes
        return
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Processes(0, 1, connected=True)
    dist.destroy_process_group()


def test_what_goes_in_comes_out(processes: Processes) -> None:
    assert processes.first(lambda: {"run": "0001"}) == {"run": "0001"}
    assert processes.each("host") == ["host"]
    assert processes.largest(5) == 5
    assert processes.summed(torch.tensor([1.5, 2.0])).tolist() == [1.5, 2.0]
    for rows in (torch.arange(6).view(3, 2), torch.zeros(0, 4)):
        assert torch.equal(processes.rows_of_all(rows), rows)


def test_an_error_of_the_first_process_is_everyones(processes: Processes) -> None:
    def fail() -> None:
        raise ArtifactError("cannot be written", field="x", mend="free some disk")

    with pytest.raises(ArtifactError, match=r"x: cannot be written. Mend: free some disk"):
        processes.first(fail)


def test_a_lost_connection_is_told_without_where_in_gloo_it_was_met() -> None:
    text = "[/gloo/pair.cc:553] Connection closed by peer [127.0.0.1]:6336. This is typically caused by a crash."
    assert _first_line(RuntimeError(text)) == "Connection closed by peer [127.0.0.1]:6336"
