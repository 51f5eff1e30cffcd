// Axes, marks and tables that all pictures are made of. Strings come from elsewhere: they become text, never markup.

const SVG = "http://www.w3.org/2000/svg";

function made(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value !== undefined && value !== null && value !== false) node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

export const html = (name, attributes, ...children) => made(document.createElement(name), attributes, children);
export const svg = (name, attributes, ...children) => made(document.createElementNS(SVG, name), attributes, children);

// --- numbers ---

export const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const trimmed = (text) => text.replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "").replace("-", "\u2212");
export const plain = (value, digits = 3) => (isNumber(value) ? trimmed(Math.abs(value) >= 1e6 || (value && Math.abs(value) < 1e-4) ? value.toExponential(1) : Number(value.toPrecision(digits)).toString()) : "\u2013");
export const fixed = (value, digits) => (isNumber(value) ? value.toFixed(digits).replace("-", "\u2212") : "\u2013");
export const percent = (value, digits = 1) => (isNumber(value) ? `${fixed(100 * value, digits)} %` : "\u2013");
export const count = (value) => (isNumber(value) ? Math.round(value).toLocaleString("en").replaceAll(",", "\u202f") : "\u2013");

export function niceTicks(low, high, n) {
  const raw = (high - low) / Math.max(n, 1);
  if (!(raw > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((one) => one * power >= raw * 0.7);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1) found.push(Number((i * step).toPrecision(12)));
  return found;
}

export function logTicks(low, high) {
  for (const steps of [[1], [1, 3], [1, 2, 5], [1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9]]) {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
      for (const one of steps) {
        const value = Number((one * 10 ** power).toPrecision(6));
        if (value >= low * 0.999 && value <= high * 1.001) found.push(value);
      }
    }
    if (found.length >= 3) return found;
  }
  return [low, high];
}

// The limits of an axis about all values; a hair more than they span.
export function limits(values, { pad = 0.05, log = false, zero = false } = {}) {
  let low = Infinity, high = -Infinity;
  for (const value of values) {
    if (!isNumber(value) || (log && value <= 0)) continue;
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  if (low > high) return log ? [1, 10] : [0, 1];
  if (zero) [low, high] = [Math.min(low, 0), Math.max(high, 0)];
  if (log) {
    const more = Math.max((high / low) ** pad, 1.08);
    return [low / more, high * more];
  }
  const more = (high - low || Math.abs(high) || 1) * pad;
  return [low - more, high + more];
}

// --- axes ---

// A drawing with axes: {node, x, y, inner}. x and y take values to pixels; marks go into inner.
// x, y: {limits: [low, high], log, ticks, format, label}
export function axes({ width, height, x, y, right = 12, left = 52 }) {
  const top = 22, bottom = 40;
  const inner = { left, top, right: Math.max(left + 20, width - right), bottom: height - bottom };
  const scale = ({ limits: [low, high], log }, from, to) => {
    const at = log ? Math.log : (value) => value;
    const a = at(low), b = at(high);
    return (value) => from + ((at(value) - a) / (b - a || 1)) * (to - from);
  };
  const toX = scale(x, inner.left, inner.right), toY = scale(y, inner.bottom, inner.top);
  const node = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true", focusable: "false" });
  const room = inner.right - inner.left;
  let ticksX = x.ticks ?? (x.log ? logTicks(...x.limits) : niceTicks(...x.limits, Math.max(2, room / 80)));
  while (ticksX.length > Math.max(2, room / 44)) ticksX = ticksX.filter((_, i) => i % 2 === 0);
  const ticksY = y.ticks ?? niceTicks(...y.limits, Math.max(2, (inner.bottom - inner.top) / 40));
  for (const value of ticksY) {
    node.append(svg("line", { class: "grid", x1: inner.left, x2: inner.right, y1: toY(value), y2: toY(value) }));
    node.append(svg("text", { class: "tick", x: inner.left - 8, y: toY(value), dy: "0.32em", "text-anchor": "end" }, (y.format ?? plain)(value)));
  }
  for (const value of ticksX) {
    node.append(svg("line", { class: "notch", x1: toX(value), x2: toX(value), y1: inner.bottom, y2: inner.bottom + 4 }));
    node.append(svg("text", { class: "tick", x: toX(value), y: inner.bottom + 17, "text-anchor": "middle" }, (x.format ?? plain)(value)));
  }
  node.append(svg("line", { class: "axis", x1: inner.left, x2: inner.right, y1: inner.bottom, y2: inner.bottom }));
  node.append(svg("text", { class: "label", x: (inner.left + inner.right) / 2, y: height - 5, "text-anchor": "middle" }, x.label));
  node.append(svg("text", { class: "label", x: 0, y: 11 }, y.label));
  return { node, x: toX, y: toY, inner };
}

export function path(points) {
  let text = "", on = false;
  for (const [x, y] of points) {
    if (!isNumber(x) || !isNumber(y)) on = false;
    else {
      text += `${on ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
      on = true;
    }
  }
  return text;
}

// --- marks ---

export const N_COLOURS = 8;
const SHAPES = [
  (r) => `M${-r} 0A${r} ${r} 0 1 0 ${r} 0A${r} ${r} 0 1 0 ${-r} 0Z`,
  (r) => `M${-r} ${-r}H${r}V${r}H${-r}Z`,
  (r) => `M0 ${-1.25 * r}L${1.2 * r} ${0.9 * r}H${-1.2 * r}Z`,
  (r) => `M0 ${-1.4 * r}L${1.4 * r} 0L0 ${1.4 * r}L${-1.4 * r} 0Z`,
  (r) => `M0 ${1.25 * r}L${1.2 * r} ${-0.9 * r}H${-1.2 * r}Z`,
];

// A mark of the i-th series: colour and shape both differ, for eyes that see few colours and for print.
export function mark(i, x, y, r = 4) {
  return svg("path", { class: `mark c${i % N_COLOURS}`, d: SHAPES[i % SHAPES.length](r), transform: `translate(${x.toFixed(1)} ${y.toFixed(1)})` });
}

export function swatch(i) {
  return svg("svg", { width: 14, height: 14, viewBox: "-7 -7 14 14", "aria-hidden": "true", focusable: "false" }, mark(i, 0, 0, 4.5));
}

// --- a picture: title, drawing, and the same as a table ---

// draw(width) gives a node; table() gives {head, rows}; both are asked for when they are to be seen.
export class Picture {
  constructor({ name, title, said = "", summary = "As a table" }) {
    this.drawing = html("div", { class: "drawing", tabindex: "0", role: "img", "aria-label": title });
    this.title = html("strong", {}, title);
    this.said = html("span", { class: "about" }, said);
    this.under = html("div", { class: "under" });
    this.inside = html("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": `${title}, as a table` });
    this.details = html("details", {}, html("summary", {}, summary), this.inside);
    this.node = html("figure", { class: "picture", "data-picture": name, hidden: true },
      html("figcaption", {}, this.title, " ", this.said), this.drawing, this.under, this.details);
    this.details.addEventListener("toggle", () => this.tell());
    this.data = null;
    this.width = 0;
    new ResizeObserver(() => {
      const width = Math.floor(this.drawing.clientWidth);
      if (width && width !== this.width) this.paint(width);
    }).observe(this.drawing);
  }

  // draw: (width) => node; table: () => ({head, rows}); label: what the picture says, in a sentence.
  show(data) {
    this.data = data;
    this.node.hidden = false;
    if (data.said !== undefined) this.said.textContent = data.said;
    this.drawing.setAttribute("aria-label", data.label);
    this.paint(Math.floor(this.drawing.clientWidth));
    this.tell();
  }

  paint(width) {
    if (!width || !this.data) return;
    this.width = width;
    const node = this.data.draw(width);
    if (node.parentNode !== this.drawing) this.drawing.replaceChildren(node);
  }

  tell() {
    if (this.details.open && this.data) this.inside.replaceChildren(table(this.data.table()));
  }
}

const MOST_ROWS = 300;

// head: [{name, number}], rows: [[value, ...]]; a table of very many rows shows every n-th.
export function table({ head, rows, marked = new Set() }) {
  const every = Math.ceil(rows.length / MOST_ROWS);
  const shown = rows.map((row, i) => [row, i]).filter(([, i]) => i % every === 0 || i === rows.length - 1);
  const body = shown.map(([row, i]) => html("tr", { class: marked.has(i) ? "best" : null }, ...row.map((value, column) => (
    column === 0 && !head[0].number
      ? html("th", { scope: "row", class: "what" }, String(value))
      : html("td", { class: head[column].number ? "number" : "what" }, String(value))))));
  const said = every > 1 ? html("caption", { class: "about" }, `Every ${every}th of ${count(rows.length)} rows`) : null;
  return html("table", {}, said,
    html("thead", {}, html("tr", {}, ...head.map(({ name, number }) => html("th", { scope: "col", class: number ? "number" : null }, name)))),
    html("tbody", {}, ...body));
}
