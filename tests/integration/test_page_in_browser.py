"""The server's page as a browser shows it: a real server with a key, a challenger and names that are no good HTML.

Screenshots go to the folder in RECSYS_SCREENSHOTS; without it to the test's own, which pytest keeps for three runs.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import polars as pl
import pytest

from features.files import write_json
from features.pipeline import FeaturePipeline
from features.spec import FeatureSpec
from features.validation import validate
from recsys.embeddings import EmbeddingConfig, plan_embedding
from recsys.models import CTRModel, ModelConfig
from recsys.serving.bundle import save_bundle
from recsys.serving.promotions import promotions_folder
from recsys.serving.registry import Registry
from tests.integration.test_serve import PATIENCE, Server, Store, until

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here (apt-get install chromium)")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
KEY = "the-key"
HOSTILE = '<img src=x onerror="document.title=1">'
SPEC = {
    "features": [
        {"name": "user", "type": "id", "dtype": "integer"},
        {"name": "item", "type": "id"},
        {"name": "hostile", "type": "id", "column": HOSTILE},
        {"name": "tags", "type": "ids"},
        *({"name": f"count_{number}", "type": "number", "standardise": True} for number in range(8)),
        {"name": "user_item", "type": "cross", "of": ["user", "item"]},
    ],
    "labels": ["click"],
}
METRICS = {"rows": 200, "base_rate": 0.54, "auc": 0.7421, "logloss": 0.5523, "calibration_ratio": 1.0032}
DECISION = {
    "decision": "promoted",
    "decided_at": "2026-11-20T09:30:00+00:00",
    "data": "the test split of work/clicks/data",
    "rows": 123_456,
    "conditions": [
        {"condition": "auc within bounds", "value": 0.7421, "bound": "min 0.7", "met": True},
        {"condition": f"logloss better {HOSTILE}", "value": -0.0041, "bound": "interval below 0", "met": True},
    ],
}


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [
        {
            "user": int(rng.integers(40)),
            "item": f"i{rng.integers(70)}",
            HOSTILE: "h",
            "tags": ["a", "b"],
            **{f"count_{number}": float(rng.poisson(3)) for number in range(8) if rng.random() < 0.9},
        }
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("registry")
    registry = Registry(f"sqlite:///{folder / 'mlflow.db'}")
    frame = pl.DataFrame(rows(200, 0), infer_schema_length=None)
    pipeline = FeaturePipeline(validate(FeatureSpec, SPEC)).fit(frame)
    ids = pipeline.encode_frame(frame).ids.numpy()
    counts = {n: np.unique(ids[:, i], return_counts=True) for i, n in enumerate(pipeline.layout.id_names)}
    config = EmbeddingConfig.model_validate({"width": 4, "rows": 2000, "init_scale": 0.5})
    plan = plan_embedding(pipeline.layout, config, counts)
    for seed, alias in ((1, "champion"), (2, "challenger")):
        model = CTRModel(pipeline.layout, plan, ModelConfig.model_validate({"hidden": (8,)}), seed=seed).eval()
        bundle = save_bundle(folder / f"bundle{seed}", model=model, pipeline=pipeline, metrics=METRICS)
        run = registry.start_run("clicks", str(seed))
        version = registry.register(registry.log_model(run, bundle, pipeline.spec), run, "clicks", alias, {})
        decision = folder / f"{seed}" / "20261120T093000.000000Z.json"
        decision.parent.mkdir()
        write_json(decision, DECISION)
        registry.log_files(run, decision.parent, promotions_folder(version))
    options = ["--challenger", "challenger", "--challenger-share", "0.2"]
    with Server(Store(registry.uri, folder, {}), *options, RECSYS_API_KEYS=KEY) as started:
        assert started.process.stdout is not None
        started.url = started.process.stdout.readline().split()[5]
        started.http = httpx.Client(base_url=started.url, timeout=PATIENCE, headers={"X-Api-Key": KEY})
        until(lambda: started.http.get("/readyz").json().get("challenger", {}).get("version") == "2")
        yield started
        assert started.stop() == 0


@pytest.fixture(scope="module")
def traffic(server: Server) -> Iterator[None]:
    """Requests all the time, some of them wrong."""
    over = threading.Event()

    def ask() -> None:
        pool = rows(500, 1)
        with httpx.Client(base_url=server.url, timeout=PATIENCE, headers={"X-Api-Key": KEY}) as http:
            number = 0
            while not over.wait(0.02):
                number += 1
                at = number % 400
                body = {"rows": pool[at : at + 1 + number % 7]} if number % 25 else {"rows": [{"user": "wrong"}]}
                http.post("/v1/score", json=body)

    asking = threading.Thread(target=ask)
    asking.start()
    yield
    over.set()
    asking.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield opened
        opened.close()


class Visit:
    """A page that is open, and whatever the browser said about it."""

    def __init__(self, browser: Any, server: Server, width: int = 1400) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900})
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE * 1000)
        self.said: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.asked: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(server.url)

    def unlock(self, key: str = KEY) -> None:
        self.page.get_by_label("This server asks for a key").fill(key)
        self.page.keyboard.press("Enter")

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


def screenshots(otherwise: Path) -> Path:
    folder = Path(os.environ.get("RECSYS_SCREENSHOTS", otherwise))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.mark.parametrize("width", [390, 1400])
def test_the_page_is_drawn_whole_and_fits(
    browser: Any, server: Server, traffic: None, tmp_path: Path, width: int
) -> None:
    with Visit(browser, server, width) as visit:
        page = visit.page
        visit.unlock()
        # Each chart has its curves, of several points.
        page.wait_for_function(
            "() => [...document.querySelectorAll('figure')].every(f => [...f.querySelectorAll('path.curve')]"
            ".some(p => (p.getAttribute('d').match(/L/g) ?? []).length > 0))"
        )
        folder, ground = screenshots(tmp_path), {}
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            page.screenshot(path=folder / f"server-{width}-{scheme}.png", full_page=True)
            ground[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
        drawn = page.evaluate("[...document.querySelectorAll('figure svg')].map(s => s.getAttribute('aria-label'))")
        overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        smallest = page.evaluate(
            "Math.min(...[...document.querySelectorAll('p, td, th, label, text, .note, h1, h2, h3')]"
            ".filter(e => e.getClientRects().length).map(e => parseFloat(getComputedStyle(e).fontSize)))"
        )
        text = page.inner_text("main")
        cards = page.locator(".card .value").all_inner_texts()
        elsewhere = [url for url in visit.asked if not url.startswith(server.url)]
    assert visit.said == []
    assert elsewhere == []
    assert [label.split(":")[0] for label in drawn] == [
        "Requests a second",
        "Latency",
        "Mean prediction",
        "Missing and unseen",
    ]
    assert not any("none" in label for label in drawn[:3])
    assert all(re.search(r"\d", value) for value in cards)
    assert 0 < float(cards[0]) < 200
    assert 0 < float(cards[3]) < 1
    for said in (
        "Version 1, followed as champion; challenger 2 for 20.0 % of the requests.",
        "invalid_value",
        "Promoted 2026-11-20T09:30:00+00:00 on 123,456 rows",
        "auc within bounds",
        "0.7421",
    ):
        assert said in text
    # Names are text, whatever they look like.
    assert text.count(HOSTILE) == 2
    assert overflow <= 0
    assert smallest >= 12
    assert ground == {"light": "rgb(246, 247, 250)", "dark": "rgb(18, 22, 31)"}
    assert all(shot.stat().st_size > 10_000 for shot in folder.glob(f"server-{width}-*.png"))


HISTORY = """async () => {
  const { History, quantile } = await import("/web/history.js");
  const sample = (at, score, refused, counts) => ({
    at, requests: { "/v1/score": { 200: score } }, refused: { busy: refused }, latency: { bounds: [1, 2, 4], counts },
    rows: { 1: 2 * score }, probability: { 1: score }, missing: { a: score }, ids: {}, unseen: {}, fields: 5,
  });
  const history = new History();
  history.add(sample(100, 1000, 1, [0, 0, 0, 0]));
  history.add(sample(104, 1040, 3, [0, 10, 20, 20]));
  const kept = history.points();
  history.add(sample(106, 10, 0, [0, 0, 0, 0]));
  return [kept, history.points().length, quantile(0.99, [1, 2, 4], [0, 0, 1, 10]), quantile(0.5, [1], [0, 0])];
}"""


def test_charts_show_what_the_counters_say(browser: Any, server: Server) -> None:
    with Visit(browser, server) as visit:
        kept, after_a_restart, beyond, nothing = visit.page.evaluate(HISTORY)
    assert kept == [
        {
            "at": 104,
            "requests": 10,
            "refused": 0.5,
            "p50": 2,
            "p99": pytest.approx(3.96),
            "prediction": 0.5,
            "missing": pytest.approx(0.1),
            "unseen": None,
        }
    ]
    # Counters that fall begin anew; what is above the last bound is told to be at it.
    assert (after_a_restart, beyond, nothing) == (0, 4, None)


def test_a_request_can_be_tried_with_the_keyboard_alone(browser: Any, server: Server, tmp_path: Path) -> None:
    with Visit(browser, server) as visit:
        page = visit.page
        visit.unlock()
        page.wait_for_function("() => document.getElementById('body').value.includes('rows')")
        page.locator("#route").focus()
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.wait_for_function("() => document.querySelector('#answer pre') !== null")
        assert re.match(r"200 in \d+\.\d ms, seen from here, by version [12]", page.inner_text("#answer p"))
        assert page.locator("#answer tbody tr").count() == 2
        assert '"p_click"' in page.inner_text("#answer pre")
        page.locator("#route").select_option("/v1/rank")
        page.locator("#body").focus()
        page.keyboard.press("Control+Enter")
        page.wait_for_function("() => document.querySelector('#answer pre').textContent.includes('ranking')")
        assert page.locator("#answer th").first.inner_text() == "candidate"
        page.locator("#try").screenshot(path=screenshots(tmp_path) / "server-answer.png")
        assert visit.said == []
        page.locator("#body").fill('{"rows": [{"user": "<b>u7</b>"}]}')
        page.locator("#route").focus()
        page.locator("#body").focus()
        page.keyboard.press("Control+Enter")
        page.wait_for_function("() => document.querySelector('#answer .problem') !== null")
        assert page.inner_text("#answer p").startswith("422 in ")


def test_every_control_is_reached_by_tab(browser: Any, server: Server) -> None:
    with Visit(browser, server) as visit:
        visit.unlock()
        visit.page.wait_for_function("() => document.querySelectorAll('#inputs tbody tr').length > 3")
        visit.page.locator("h1").click()
        reached = []
        for _ in range(25):
            visit.page.keyboard.press("Tab")
            reached.append(visit.page.evaluate("document.activeElement.id || document.activeElement.className"))
            ring = visit.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert ring != "none" or reached[-1] == ""
        # Once round, in the order in which they are read.
        controls = [name for name in dict.fromkeys(reached) if name in ("skip", "route", "example", "body")]
        assert controls in (["route", "example", "body", "skip"], ["skip", "route", "example", "body"])
        assert "scroll tall" in reached


def test_a_wrong_key_opens_nothing_and_no_key_is_kept(browser: Any, server: Server) -> None:
    with Visit(browser, server) as visit:
        page = visit.page
        assert not page.locator("#all").is_visible()
        assert page.inner_text("#state") == "Locked"
        visit.unlock("another-key")
        page.wait_for_function("() => document.getElementById('key-problem').textContent !== ''")
        assert not page.locator("#all").is_visible()
        visit.unlock()
        page.wait_for_function("() => !document.getElementById('all').hidden")
        kept = page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]")
        assert kept == [0, 0, ""]
        assert not any(KEY in url for url in visit.asked)
        page.reload()
        assert page.inner_text("#state") == "Locked"


def test_the_files_of_the_page_tell_nothing_and_run_nothing_of_others(server: Server) -> None:
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as http:
        page = http.get("/")
        assert page.status_code == 200
        policy = page.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "unsafe" not in policy
        assert not re.search(
            r"<script(?! type=\"module\" src=\"/web/main.js\"></script>)|<style|\sstyle=|\son\w+=", page.text
        )
        for path in re.findall(r'(?:src|href)="(/web/[^"]+)"', page.text):
            found = http.get(path)
            assert found.status_code == 200
            assert found.headers["X-Content-Type-Options"] == "nosniff"
        assert http.get("/web/../app.py").status_code == 404
        assert http.get("/v1/stats").status_code == 401
