// Elements made from values. Text is always set as text: nothing that came from the server is read as HTML.

export const byId = (id) => document.getElementById(id);

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children.map((child) => (child instanceof Node ? child : document.createTextNode(String(child)))));
  return made;
}

// Rows of cells; a number stands to the right, a cell may be an element.
export function table(head, rows, className = "scroll") {
  const numeric = head.map((_, place) => rows.length > 0 && rows.every((row) => typeof row[place] === "number" || row[place] === null || row[place]?.classList?.contains("share")));
  const cell = (tag, value, place) => element(tag, { ...(numeric[place] ? { class: "num" } : {}), ...(tag === "th" ? { scope: "col" } : {}) }, shown(value));
  return element(
    "div",
    { class: className, tabindex: "0", role: "region", "aria-label": `Table: ${head.join(", ")}` },
    element(
      "table",
      {},
      element("thead", {}, element("tr", {}, ...head.map((name, place) => cell("th", name, place)))),
      element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map((value, place) => cell("td", value, place))))),
    ),
  );
}

export function shown(value) {
  if (value instanceof Node) return value;
  if (value === null || value === undefined) return "-";
  if (typeof value === "boolean") return value ? "yes" : "no";
  return typeof value === "number" ? number(value) : String(value);
}

export function number(value) {
  if (Number.isInteger(value)) return value.toLocaleString("en");
  return Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(5)));
}

export function percent(share) {
  return share === null ? "-" : `${(100 * share).toFixed(share > 0 && share < 0.001 ? 3 : 1)} %`;
}

// A share with a bar beside it.
export function shareCell(share) {
  if (share === null) return element("span", { class: "share" }, "-");
  const inner = element("i");
  inner.style.width = `${100 * Math.min(1, share)}%`;
  return element("span", { class: "share" }, percent(share), element("span", { class: "bar", "aria-hidden": "true" }, inner));
}

export function bytes(count) {
  const units = ["bytes", "kB", "MB", "GB"];
  let place = 0;
  while (count >= 1000 && place < units.length - 1) {
    count /= 1000;
    place += 1;
  }
  return `${place ? count.toPrecision(3) : count} ${units[place]}`;
}
