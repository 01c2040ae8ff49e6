"""Loads bundles whose files were changed at random and whose checksums were made right again: a process of its own, so
that a crash of native code is seen.  `python -m tests.recsys.serving.hostile_bundles_job BUNDLE COUNT SEED`"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from features.errors import ArtifactError, RecsysError
from recsys.serving.scorer import Scorer
from tests.integration.hostile import wide_rows

NUMBERS = [0, -1, 1, 7, 2**31 - 1, 2**31, 2**32, 2**63 - 1, -(2**63), 2**64, 10**30, 1e308, float("nan")]
VALUES = [None, True, "", "x", "../x", [], {}, [[]], *NUMBERS]
ROWS = wide_rows(5, 9)


def places(data: Any) -> list[tuple[Any, Any]]:
    """Every place in a JSON value: what holds it, and its key there."""
    found: list[tuple[Any, Any]] = []
    for key, value in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        found += [(data, key), *places(value)]
    return found


def change_json(draw: random.Random, text: bytes) -> bytes:
    data = json.loads(text)
    for _ in range(draw.choice([1, 1, 2])):
        holder, key = draw.choice(places(data))
        if draw.random() < 0.2:
            del holder[key]
        else:
            near = isinstance(holder[key], int) and draw.random() < 0.3
            holder[key] = holder[key] + draw.choice([-1, 1]) if near else draw.choice(VALUES)
    return json.dumps(data).encode()


def change_bytes(draw: random.Random, data: bytes) -> bytes:
    body = bytearray(data)
    for _ in range(draw.choice([1, 2, 8])):
        size = draw.choice([1, 4, 8])
        # The beginning holds a header that says where everything lies.
        place = draw.randrange(min(len(body), draw.choice([600, 10**9]))) // size * size
        number = int(draw.choice(NUMBERS[:9])) if draw.random() < 0.5 else draw.getrandbits(64)
        body[place : place + size] = (number % 2**64).to_bytes(8, "little")[:size]
    return bytes(body[: draw.randrange(len(body))]) if draw.random() < 0.1 else bytes(body)


def change(draw: random.Random, folder: Path) -> str:
    """Changes one file, and the checksums with it."""
    names = ["bundle.json"] * 3 + sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.suffix != ".md"
    )
    name = draw.choice(names)
    path = folder / name
    textual = path.suffix == ".json" and draw.random() < 0.9
    path.write_bytes((change_json if textual else change_bytes)(draw, path.read_bytes()))
    if name != "bundle.json":
        told = json.loads((folder / "bundle.json").read_text())
        told["files"][name] = hashlib.sha256(path.read_bytes()).hexdigest()
        (folder / "bundle.json").write_text(json.dumps(told))
    return name


def main(bundle: Path, count: int, seed: int) -> None:
    """Prints what became of them."""
    tally: Counter[tuple[str, str]] = Counter()
    for number in range(count):
        draw = random.Random(seed * 1_000_003 + number)
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "bundle"
            shutil.copytree(bundle, copy)
            name = change(draw, copy)
            print(number, name, file=sys.stderr, flush=True)
            try:
                scorer = Scorer.load(copy)
            except ArtifactError:
                tally[name, "refused"] += 1
                continue
            try:
                scorer.score(ROWS)
                tally[name, "scored"] += 1
            except RecsysError:
                tally[name, "refused a row"] += 1
    for (name, outcome), times in sorted(tally.items()):
        print(name, outcome, times)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
