"""Our off-policy values are obp's, to what obp 0.5.7 said of the generated slates when it was asked."""

import pytest

from benchmarks.off_policy import generated_slates, values

GOLDEN = {
    "ips": 0.37177313997093864,
    "ips clipped": 0.3381880012411582,
    "snips": 0.33807357443400526,
    "dm": 0.3389747996225798,
    "dr": 0.33271662217488346,
    "dr clipped": 0.3330622442690343,
    "switch-dr": 0.3479305215910149,
    "ips bernstein low": 0.09524334601086903,
    "ips slate": 1.115319419912816,
}
"""Printed by `python -m benchmarks.off_policy --quick --json` under "obp"."""


def test_values_of_the_generated_slates_are_those_of_obp():
    found = values(generated_slates())
    assert found == pytest.approx(GOLDEN, abs=1e-9)
