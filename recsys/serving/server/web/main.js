// The page: asks for the live figures again and again, and for the rest whenever another version is served.

import { WrongKey, ask, get, useKey } from "./api.js";
import { Chart } from "./chart.js";
import { byId, bytes, element, number, percent, shareCell, table } from "./dom.js";
import { History, answered } from "./history.js";

const EVERY_MS = 2000;
const milliseconds = (seconds) => `${Number((1000 * seconds).toPrecision(3))} ms`;
const rate = (value) => Number(value.toPrecision(3)).toLocaleString("en");
const plain = (value) => String(Number(value.toPrecision(3)));

const history = new History();
let model = null; // as /v1/models describes it
let examples = {};
let sent = false; // whether the body was changed or sent, so that an example does not replace it

const charts = {
  requests: new Chart(
    "Requests a second",
    [
      { name: "answered", className: "first", of: (point) => point.requests },
      { name: "refused", className: "second", of: (point) => point.refused },
    ],
    rate,
    "Of /v1/score and /v1/rank. Refused: whatever got no scores, of any route.",
  ),
  latency: new Chart(
    "Latency",
    [
      { name: "p50", className: "first", of: (point) => point.p50 },
      { name: "p99", className: "second", of: (point) => point.p99 },
    ],
    milliseconds,
    "From the head of a request to its answer, estimated within the buckets of a histogram.",
  ),
  prediction: new Chart("Mean prediction", [{ name: "mean", className: "first", of: (point) => point.prediction }], plain),
  missing: new Chart(
    "Missing and unseen",
    [
      { name: "left out", className: "first", of: (point) => point.missing },
      { name: "unseen ids", className: "second", of: (point) => point.unseen },
    ],
    percent,
    "Of all fields of all rows, those that were left out; of the ids looked at, those that training did not see.",
  ),
};

function show(id, ...nodes) {
  byId(id).replaceChildren(...nodes);
}

function state(text, kind) {
  const place = byId("state");
  // A status that is read aloud is set only if it changes.
  if (place.textContent !== text) place.textContent = text;
  place.className = `state ${kind}`;
}

function card(name, value, note = "") {
  return element(
    "div",
    { class: "card" },
    element("div", { class: "name" }, name),
    element("div", { class: "value" }, value),
    element("div", { class: "note" }, note),
  );
}

function drawLive(live) {
  const points = history.points();
  const now = points.at(-1) ?? {};
  const or = (value, format) => (value === undefined || value === null ? "-" : format(value));
  const base = model?.metrics.base_rate;
  show(
    "cards",
    card("requests a second", or(now.requests, rate), `${number(answered(live))} since the start`),
    card("latency p50", or(now.p50, milliseconds), "the last 10 s"),
    card("latency p99", or(now.p99, milliseconds), "the last 10 s"),
    card("mean prediction", or(now.prediction, plain), base === undefined ? "" : `validation rows: ${plain(base)} positive`),
    card("refused a second", or(now.refused, rate), `${number(total(live.refused))} since the start`),
    card("in hand", number(live.in_hand), `of ${number(live.in_hand_limit)}`),
  );
  for (const chart of Object.values(charts)) chart.update(points);
  drawVersions(live);
  drawInputs(live);
  const registry = live.registry;
  byId("lead").textContent = leadOf(live);
  if (registry.refused_version !== null) state(`Version ${registry.refused_version} refused, ${live.version} stays`, "bad");
  else if (!registry.reachable) state("Serving, registry not reachable", "bad");
  else state("Serving", "good");
}

const total = (counts) => Object.values(counts).reduce((sum, count) => sum + count, 0);

function leadOf(live) {
  const parts = [`Version ${live.version}`];
  if (model?.alias) parts[0] += `, followed as ${model.alias}`;
  const { challenger, shadow } = live;
  if (challenger) parts.push(challenger.version === null ? "no challenger yet" : `challenger ${challenger.version} for ${percent(challenger.share)} of the requests`);
  if (live.challenger_failures > 0) parts.push(`the challenger failed on ${live.challenger_failures} requests, which the champion answered`);
  if (shadow) parts.push(shadow.version === null ? "no shadow yet" : `shadow ${shadow.version} on ${percent(shadow.sample)}`);
  return `${parts.join("; ")}.`;
}

function drawVersions(live) {
  const roles = { [live.version]: live.role };
  if (live.challenger?.version && !(live.challenger.version in roles)) roles[live.challenger.version] = "challenger";
  const rows = Object.entries(live.rows).map(([version, count]) => [
    version,
    roles[version] ?? "served before",
    count,
    count > 0 ? Number(((live.probability[version] ?? 0) / count).toPrecision(4)) : null,
  ]);
  const beside = Object.entries(live.shadow_requests).map(([outcome, count]) => [outcome, count]);
  const parts = [rows.length ? table(["version", "role", "rows", "mean prediction"], rows) : element("p", {}, "None yet.")];
  if (beside.length) parts.push(table(["requests for the shadow", "number"], beside));
  show("versions", ...parts);
  const refused = Object.entries(live.refused).filter(([, count]) => count > 0);
  show("refusals", ...(refused.length ? [table(["refused requests", "number"], refused)] : []));
}

function drawInputs(live) {
  if (model === null) return;
  const rows = total(live.rows);
  const share = (part, whole) => (whole > 0 ? (part ?? 0) / whole : null);
  const shown = Object.entries(model.inputs).map(([name, kind]) => [
    name,
    kind,
    shareCell(share(live.missing[name], rows)),
    name in live.ids ? shareCell(share(live.unseen[name], live.ids[name])) : element("span", { class: "share" }, "-"),
  ]);
  const crosses = Object.keys(live.ids)
    .filter((name) => !(name in model.inputs))
    .map((name) => [name, "made of others", element("span", { class: "share" }, "-"), shareCell(share(live.unseen[name], live.ids[name]))]);
  keepScroll("inputs", table(["input", "type", "left out", "unseen"], [...shown, ...crosses], "scroll tall"));
}

// A table that is drawn anew stays where it was scrolled to, and keeps the focus.
function keepScroll(id, fresh) {
  const old = byId(id).firstElementChild;
  const [top, left, focused] = [old?.scrollTop ?? 0, old?.scrollLeft ?? 0, old !== null && old === document.activeElement];
  show(id, fresh);
  fresh.scrollTop = top;
  fresh.scrollLeft = left;
  if (focused) fresh.focus({ preventScroll: true });
}

function drawModel() {
  byId("name").textContent = model.name;
  document.title = `${model.name} ${model.version}`;
  const base = model.metrics.base_rate;
  charts.prediction.note.textContent =
    "Of the first task, over the rows that were answered. " +
    (base === undefined
      ? "The model says nothing of how many positives there were in training. "
      : "Dashed: the share of positives among the rows the version was validated on. Rows asked for now may be of another kind. ") +
    "Whether predictions are right only labels tell: recsys monitor.";
  charts.prediction.setBase(base === undefined ? null : { name: "validation rows", value: base });
  const facts = [
    ["model", model.name],
    ["version", model.version],
    ["alias", model.alias ?? "none"],
    ["trained by run", model.run_id ?? "unknown"],
    ["outputs", model.outputs.join(", ")],
    ["inputs", `${Object.keys(model.inputs).length} fields`],
    ["table", `${bytes(model.table_bytes)} (${number(model.table_bytes)} bytes), ${model.format}`],
  ];
  show("facts", table(["what", "value"], facts));
  const metrics = Object.entries(model.metrics).map(([name, value]) => [name.replaceAll("_", " "), value]);
  const parts = [element("p", {}, "On the rows that the version was validated on when it was trained:")];
  parts.push(metrics.length ? table(["metric", "value"], metrics) : element("p", {}, "The bundle holds no metrics."));
  const promotion = model.promotion;
  if (promotion) {
    const text = `Promoted ${promotion.decided_at} on ${number(promotion.rows)} rows (${promotion.data}). The conditions that it met:`;
    const rows = promotion.conditions.map(({ condition, value, bound, met }) => [condition, value, bound, met]);
    parts.push(element("p", {}, text), table(["condition", "value", "bound", "met"], rows));
  } else {
    parts.push(element("p", {}, "There is no record of a promotion with conditions (recsys promote)."));
  }
  show("measured", ...parts);
}

async function readModel() {
  const [{ models }, described] = await Promise.all([get("/v1/models"), get("/openapi.json")]);
  [model] = models;
  const schemas = described.components.schemas;
  examples = { "/v1/score": schemas.ScoreRequest.example, "/v1/rank": schemas.RankRequest.example };
  drawModel();
  if (!sent) putExample();
}

function putExample() {
  byId("body").value = JSON.stringify(examples[byId("route").value], null, 2);
  sent = false;
}

async function send() {
  sent = true;
  const button = byId("try-form").querySelector("button[type=submit]");
  button.disabled = true;
  const began = performance.now();
  try {
    const answer = await ask(byId("route").value, { method: "POST", body: byId("body").value, headers: { "Content-Type": "application/json" } });
    const text = await answer.text();
    drawAnswer(answer, text, performance.now() - began);
  } catch {
    show("answer", element("p", { class: "problem" }, "The server does not answer."));
  } finally {
    button.disabled = false;
  }
}

function drawAnswer(answer, text, took) {
  const body = JSON.parse(text);
  const version = answer.headers.get("X-Model-Version");
  const head = `${answer.status} in ${took.toFixed(1)} ms, seen from here${version === null ? "" : `, by version ${version}`}`;
  const parts = [element("p", answer.ok ? {} : { class: "problem" }, answer.ok ? head : `${head}: ${body.error.message}`)];
  if (body.scores) {
    const names = Object.keys(body.scores);
    const rows = (body.scores[names[0]] ?? []).map((_, place) => [place, ...names.map((name) => shareCell(body.scores[name][place]))]);
    parts.push(table(["row", ...names], rows));
  }
  if (body.ranking) {
    const names = Object.keys(body.ranking[0] ?? { index: 0 }).filter((name) => name !== "index");
    parts.push(table(["candidate", ...names], body.ranking.map((one) => [one.index, ...names.map((name) => shareCell(one[name]))])));
  }
  parts.push(element("pre", { tabindex: "0" }, JSON.stringify(body, null, 2)));
  show("answer", ...parts);
}

async function look() {
  const live = await get("/v1/stats");
  byId("key").hidden = true;
  if (live.model === null) {
    state("No model yet", "bad");
    return;
  }
  if (model === null || model.version !== live.version || model.name !== live.model) await readModel();
  byId("all").hidden = false;
  history.add({ ...live, fields: Object.keys(model.inputs).length });
  drawLive(live);
}

let asking = null;
let round = 0;

async function again() {
  clearTimeout(asking);
  round += 1;
  const mine = round;
  try {
    if (!document.hidden) await look();
  } catch (error) {
    if (error instanceof WrongKey) {
      askForKey("This key is not one of the server's.");
      return;
    }
    state("The server does not answer", "bad");
  }
  if (mine === round) asking = setTimeout(again, EVERY_MS);
}

function askForKey(problem) {
  state("Locked", "bad");
  byId("key-problem").textContent = problem;
  byId("key").hidden = false;
  byId("all").hidden = true;
  byId("key-value").focus();
}

byId("charts").append(...Object.values(charts).map((chart) => chart.figure));
byId("route").addEventListener("change", putExample);
byId("example").addEventListener("click", putExample);
byId("body").addEventListener("input", () => {
  sent = true;
});
byId("body").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    send();
  }
});
byId("try-form").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(byId("key-value").value.trim());
  byId("key-value").value = "";
  byId("key-problem").textContent = "";
  again();
});
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && asking !== null) again();
});

if (document.body.dataset.key === "asked") askForKey("");
else again();
