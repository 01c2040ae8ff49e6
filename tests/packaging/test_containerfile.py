"""The container file installs what the Makefile installs and runs commands that there are, as nobody in particular."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
from typer.main import get_command

from pipelines.cli import app

ROOT = Path(__file__).parents[2]


def instructions() -> list[tuple[str, str]]:
    text = (ROOT / "packaging" / "Containerfile").read_text().replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


def told(word: str) -> list[str]:
    return [rest for found, rest in instructions() if found == word]


def stages() -> list[list[tuple[str, str]]]:
    found: list[list[tuple[str, str]]] = []
    for word, rest in instructions():
        if word == "FROM":
            found.append([])
        found[-1].append((word, rest))
    return found


def test_it_installs_what_the_makefile_installs() -> None:
    (torch,) = re.findall(r"^TORCH +\?= (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert f"TORCH={torch}" in told("ARG")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = [name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]]
    needed = [*packages, "pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]]
    copied = [part for rest in told("COPY") if "--from" not in rest for part in rest.split()[:-1]]
    assert sorted(copied) == sorted(needed)
    assert all((ROOT / name).exists() for name in needed)
    seen = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert sorted(seen) == sorted(needed)
    pythons = {re.search(r"python:(\d+\.\d+)", rest).group(1) for rest in told("FROM")}  # type: ignore[union-attr]
    assert pythons == {project["project"]["requires-python"].removeprefix(">=")}


def test_it_runs_as_nobody_and_holds_no_secret() -> None:
    build, final = stages()
    assert [word for word, _ in final].count("USER") == 1
    user = dict(final)["USER"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    assert "RUN" not in dict(final)
    assert "USER" not in dict(build)
    given = " ".join([*told("ENV"), *told("ARG")]).lower()
    assert not re.search(r"key|token|password|secret|credential", given)


def commands() -> list[list[str]]:
    """That of the container, those of its first lines, and those of the page about serving."""
    entry, arguments = (json.loads(told(word)[0]) for word in ("ENTRYPOINT", "CMD"))
    assert entry == ["/opt/recsys/bin/recsys"]
    found = [arguments]
    for path in ("packaging/Containerfile", "docs/serving.md"):
        text = re.sub(r"\\\n#? *", " ", (ROOT / path).read_text())
        lines = re.findall(r"(?:podman run .* recsys|^recsys) (serve (?!--)[^\n]*)$", text, re.MULTILINE)
        found += map(shlex.split, lines)
    assert len(found) >= 4
    return found


@pytest.mark.parametrize("arguments", commands(), ids=" ".join)
def test_its_commands_are_there(arguments: list[str]) -> None:
    root = get_command(app)
    verb = root.commands[arguments[0]]  # type: ignore[attr-defined]
    verb.make_context(arguments[0], arguments[1:])


def health_check() -> list[str]:
    """The health check's Python, without the interpreter."""
    (check,) = told("HEALTHCHECK")
    interpreter, *arguments = json.loads(check[check.index("[") :])
    assert interpreter == "/opt/recsys/bin/python"
    return list(arguments)


def environment() -> dict[str, str]:
    """What the container sets."""
    return dict(part.split("=", 1) for rest in told("ENV") for part in rest.split())


def test_the_health_check_compiles() -> None:
    option, code = health_check()
    assert option == "-c"
    compile(code, "healthcheck", "exec")
    assert "HEALTH_URL" in environment()
