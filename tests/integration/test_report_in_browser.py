"""The report as a browser shows it, in light and dark, on a phone and on a screen.

Screenshots go to the folder in RECSYS_SCREENSHOTS; without it to the test's own, which pytest keeps for three runs.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here (apt-get install chromium)")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield opened
        opened.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_the_report_is_drawn_whole_and_fits(
    browser: Any, trained: Any, tmp_path: Path, width: int, scheme: str
) -> None:
    world, outcome = trained
    report = world.folder / outcome.json["evaluate"]["report"]
    looked_at(browser, report, tmp_path, f"report-{width}-{scheme}", width, scheme, pictures=7)


def looked_at(browser: Any, file: Path, folder: Path, name: str, width: int, scheme: str, *, pictures: int) -> str:
    """Opens a page, keeps a screenshot, and checks that it stands alone, is drawn whole, fits and can be read.

    Returns:
        Its text.
    """
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("requestfailed", lambda request: said.append(request.url[:80]))
    page.goto(file.resolve().as_uri())
    screenshots = Path(os.environ.get("RECSYS_SCREENSHOTS", folder))
    screenshots.mkdir(parents=True, exist_ok=True)
    shot = screenshots / f"{name}.png"
    page.screenshot(path=shot, full_page=True)
    drawn = page.evaluate("[...document.images].map(i => [i.complete, i.naturalWidth, i.currentSrc.slice(0, 18)])")
    overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    smallest = page.evaluate(
        "Math.min(...[...document.querySelectorAll('p, td, th, li, h1, h2, figcaption')]"
        ".map(e => parseFloat(getComputedStyle(e).fontSize)))"
    )
    text: str = page.inner_text("body")
    context.close()
    assert said == []
    assert len(drawn) == pictures
    assert all(complete and wide > 0 and source == "data:image/svg+xml" for complete, wide, source in drawn)
    assert overflow <= 0
    assert smallest >= 12
    assert ("18, 22, 31" in ground) == (scheme == "dark")
    assert shot.stat().st_size > 10_000
    return text
