// Curves over time as SVG, drawn anew at the width there is.

import { element } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";
const LEFT = 46;
const RIGHT = 8;
const TOP = 8;
const BOTTOM = 20;
const SHORTEST_SECONDS = 60;

function svgElement(tag, attributes, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

export class Chart {
  #curves;
  #format;
  #plot = element("div", { class: "plot" });
  #legend = element("div", { class: "legend" });
  #points = [];
  #base = null;

  // curves: {name, className, of: point -> value or null}; format: value -> text.
  constructor(title, curves, format, note = "") {
    this.#curves = curves;
    this.#format = format;
    this.figure = element("figure", {}, element("figcaption", {}, element("h3", {}, title), this.#legend), this.#plot);
    this.note = element("p", { class: "note" }, note);
    this.figure.append(this.note);
    this.title = title;
    new ResizeObserver(() => this.#draw()).observe(this.#plot);
  }

  // A level to hold the curves against: {name, value}, or null for none.
  setBase(base) {
    this.#base = base;
    this.#draw();
  }

  update(points) {
    this.#points = points;
    this.#draw();
  }

  #draw() {
    const width = this.#plot.clientWidth;
    const height = this.#plot.clientHeight;
    if (!width || !height) return;
    const points = this.#points;
    const now = points.at(-1)?.at ?? 0;
    const span = Math.max(SHORTEST_SECONDS, now - (points[0]?.at ?? now));
    const values = points.flatMap((point) => this.#curves.map((curve) => curve.of(point))).filter((value) => value !== null);
    if (this.#base) values.push(this.#base.value);
    const top = roundUp(Math.max(0, ...values));
    const x = (at) => LEFT + (width - LEFT - RIGHT) * (1 - (now - at) / span);
    const y = (value) => TOP + (height - TOP - BOTTOM) * (1 - value / top);
    const latest = this.#curves.map((curve) => [curve, points.length ? curve.of(points.at(-1)) : null]);
    const said = latest.map(([curve, value]) => `${curve.name} ${value === null ? "none" : this.#format(value)}`);
    const svg = svgElement("svg", { width, height, role: "img", "aria-label": `${this.title}: ${said.join(", ")}` });
    for (const value of [0, top / 2, top]) {
      svg.append(svgElement("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }));
      svg.append(svgElement("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, this.#format(value)));
    }
    svg.append(svgElement("text", { x: LEFT, y: height - 4 }, `${Math.round(span)} s ago`));
    svg.append(svgElement("text", { x: width - RIGHT, y: height - 4, "text-anchor": "end" }, "now"));
    if (this.#base) {
      const level = y(this.#base.value);
      svg.append(svgElement("line", { class: "curve base", x1: LEFT, x2: width - RIGHT, y1: level, y2: level }));
    }
    for (const [curve, value] of latest) {
      const path = pathOf(points, curve.of, x, y);
      if (path) svg.append(svgElement("path", { class: `curve ${curve.className}`, d: path }));
      if (value !== null) svg.append(svgElement("circle", { class: `dot ${curve.className}`, cx: x(now), cy: y(value), r: 3 }));
    }
    this.#plot.replaceChildren(svg);
    const keys = said.map((text, place) => element("span", { class: this.#curves[place].className }, text));
    if (this.#base) keys.push(element("span", { class: "base" }, `${this.#base.name} ${this.#format(this.#base.value)}`));
    this.#legend.replaceChildren(...keys);
  }
}

// A line through the points that have a value, broken where there is none.
function pathOf(points, of, x, y) {
  let path = "";
  let begun = false;
  for (const point of points) {
    const value = of(point);
    if (value !== null) path += `${begun ? "L" : "M"}${x(point.at).toFixed(1)} ${y(value).toFixed(1)}`;
    begun = value !== null;
  }
  return path;
}

function roundUp(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 4, 6, 8, 10].find((step) => step * power >= value * 1.02) * power || 20 * power;
}
