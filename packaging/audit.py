"""Looks up known vulnerabilities of all that is installed (pip-audit), and says so if they could not be looked up.

`python packaging/audit.py` ends with 1 if there are any; if no source of advisories answers, it says that nothing was
audited and ends with 0, or with `--must` with 3. pip-audit by itself calls packages that its source does not know free
of vulnerabilities, which is what a mirror of the package index without advisories looks like.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from importlib import metadata
from typing import Any

SOURCES = ("pypi", "osv")
"""Of advisories, in the order in which they are asked."""
SECONDS = 10
"""To wait for one answer."""
IGNORED: dict[str, str] = {}
"""Advisory -> why it does not concern us."""


def main() -> int:
    """Audits, prints what was found, and gives the exit code."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--must", action="store_true", help="fail if nothing could be looked up")
    must = options.parse_args().must
    for source in SOURCES:
        if answers(source):
            found = pip_audit(source, "--local", "--skip-editable")
            if found is not None:
                code, text = told(found, source)
                print(text)
                return code
    print(
        f"audit: NOT DONE. No source of advisories ({' or '.join(SOURCES)}) answers from here, so that nothing is "
        "known about vulnerabilities of what is installed. Mend: run `make audit` where the internet can be reached"
    )
    return 3 if must else 0


def answers(source: str) -> bool:
    """Whether the source knows a package that every source knows, so that one need not ask for hundreds in vain."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(f"pip=={metadata.version('pip')}\n")
        file.flush()
        found = pip_audit(source, "--requirement", file.name, "--no-deps", "--disable-pip")
    return found is not None and all("vulns" in package for package in found)


def pip_audit(source: str, *arguments: str) -> list[dict[str, Any]] | None:
    """What it says of each package; None if the source cannot be reached."""
    command = [sys.executable, "-m", "pip_audit", "--vulnerability-service", source, "--timeout", str(SECONDS)]
    command += ["--format", "json", "--progress-spinner", "off", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    # Its exit code is 1 for vulnerabilities and for a source that is out of reach.
    return list(json.loads(run.stdout)["dependencies"]) if run.stdout.startswith("{") else None


def told(found: list[dict[str, Any]], source: str) -> tuple[int, str]:
    """The exit code and what is printed."""
    lines, audited = [], 0
    for package in found:
        audited += "vulns" in package
        for advisory in package.get("vulns", []):
            names = {advisory["id"], *advisory.get("aliases", [])}
            if names.isdisjoint(IGNORED):
                mended = ", ".join(advisory["fix_versions"]) or "no version yet"
                lines.append(f"{package['name']} {package['version']}: {advisory['id']}. Mended in: {mended}")
    unknown = [package["name"] for package in found if "vulns" not in package]
    lines.append(
        f"audit: {audited} packages by {source}, {len(lines)} known vulnerabilities"
        + (f"; not known there: {', '.join(unknown)}" if unknown else "")
        + (f"; ignored: {', '.join(IGNORED)}" if IGNORED else "")
    )
    return int(len(lines) > 1), "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
