"""What all processes counted, read while one of them is just beginning."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

READER = """
import sys
from pathlib import Path
from recsys.serving.server.metrics import Metrics

Metrics().requests.labels("/v1/score", "200").inc(3)
Path(sys.argv[1], "counter_1.db").touch()  # as a process makes it, before it gets its length
assert 'recsys_requests_total{route="/v1/score",status="200"} 3.0' in Metrics.text().decode()
"""


def test_a_process_that_begins_hides_nothing(tmp_path: Path) -> None:
    environment = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[4])}
    job = subprocess.run(
        [sys.executable, "-c", READER, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert job.returncode == 0, job.stderr
