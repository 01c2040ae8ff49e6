"""The audit tells vulnerabilities, and never calls clean what it could not look up."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "packaging" / "audit.py"


def test_vulnerabilities_are_named_with_their_mend() -> None:
    told = runpy.run_path(str(SCRIPT))["told"]
    found = [
        {"name": "good", "version": "1.0", "vulns": []},
        {
            "name": "bad",
            "version": "2.0",
            "vulns": [
                {"id": "PYSEC-1", "fix_versions": ["2.1"], "aliases": ["CVE-1"]},
                {"id": "PYSEC-2", "fix_versions": []},
            ],
        },
        {"name": "own", "skip_reason": "not found"},
    ]
    assert told(found, "pypi") == (
        1,
        "bad 2.0: PYSEC-1. Mended in: 2.1\n"
        "bad 2.0: PYSEC-2. Mended in: no version yet\n"
        "audit: 2 packages by pypi, 2 known vulnerabilities; not known there: own",
    )
    assert told(found[:1], "osv") == (0, "audit: 1 packages by osv, 0 known vulnerabilities")


def test_an_advisory_that_does_not_concern_us_is_named_and_passes() -> None:
    script = runpy.run_path(str(SCRIPT))
    script["IGNORED"]["CVE-1"] = "not used"
    found = [{"name": "bad", "version": "2.0", "vulns": [{"id": "P", "fix_versions": [], "aliases": ["CVE-1"]}]}]
    assert script["told"](found, "pypi") == (0, "audit: 1 packages by pypi, 0 known vulnerabilities; ignored: CVE-1")


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "code"), [([], 0), (["--must"], 3)])
def test_without_the_network_it_says_that_nothing_was_audited(arguments: list[str], code: int) -> None:
    away = {**os.environ, "HTTPS_PROXY": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "NO_PROXY": ""}
    run = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, env=away, check=False
    )
    assert run.returncode == code, run.stderr
    assert run.stdout.startswith("audit: NOT DONE.")
