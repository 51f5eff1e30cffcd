// Accuracy against effective compression: every row of the table beside every other, with the interval over its seeds.
import { axes, count, html, isNumber, limits, mark, N_COLOURS, path, percent, Picture, plain, svg, swatch } from "./plot.js";

const HEIGHT = 380;
const T = [0, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262];
const OURS = /^(search's choice|panning)/;

// Half of the 95 % interval of a mean, by Student's t; null of one seed.
export function half(std, n) {
  if (!isNumber(std) || !(n > 1)) return null;
  return ((T[n - 1] ?? 1.96 + 2.6 / (n - 1)) * std) / Math.sqrt(n);
}

const compression = (row) => 1 / (isNumber(row.effective_density) && row.effective_density > 0 ? row.effective_density : row.density);
const accuracyOf = (row) => (isNumber(row.test_accuracy) ? row.test_accuracy : row.accuracy);
const isDense = (row) => row.density >= 1;

class OneTable {
  constructor(name) {
    this.picture = new Picture({
      name: "comparison", title: "Accuracy against effective compression", said: `${name}; bars are 95 % intervals of the mean over seeds`,
      summary: "All rows so far",
    });
    this.picture.details.open = true;
    this.legend = html("ul", { class: "legend" });
    this.picture.under.append(this.legend);
    this.lit = new Set(); // the series that are pressed; none lights all
    this.names = [];
  }

  show(rows, winners) {
    const masked = rows.filter((row) => !isDense(row) && isNumber(accuracyOf(row)) && row.density > 0);
    const dense = rows.find((row) => isDense(row) && isNumber(accuracyOf(row)));
    const names = [...new Set(masked.map((row) => String(row.item)))];
    if (names.join("\n") !== this.names.join("\n")) this.name(names);
    const first = winners.map((row) => `${row.item} at density ${plain(row.density)} with ${percent(accuracyOf(row))}`);
    this.picture.show({
      label: `Test accuracy of ${names.length} methods against effective compression. Best so far: ${first.join("; ") || "none yet"}.`,
      draw: (width) => this.draw(width, masked, dense, names),
      table: () => tableOf(rows, winners),
    });
  }

  name(names) {
    this.names = names;
    this.legend.replaceChildren(...names.map((name, i) => {
      const button = html("button", { type: "button", class: "plain", "aria-pressed": String(this.lit.has(name)) }, swatch(i), " ", name);
      button.addEventListener("click", () => {
        if (!this.lit.delete(name)) this.lit.add(name);
        button.setAttribute("aria-pressed", String(this.lit.has(name)));
        this.picture.paint(Math.floor(this.picture.drawing.clientWidth));
      });
      return html("li", {}, button);
    }));
  }

  draw(width, rows, dense, names) {
    const spread = (row) => half(row.test_accuracy_std, row.n_seeds) ?? 0;
    const ends = rows.flatMap((row) => [accuracyOf(row) - (row.test_accuracy_std ?? 0), accuracyOf(row) + (row.test_accuracy_std ?? 0)]);
    const plot = axes({
      width, height: HEIGHT,
      x: { limits: limits(rows.length ? rows.map(compression) : [1, 100], { log: true }), log: true, label: "effective compression, log scale", format: (value) => `${plain(value)}\u00d7` },
      y: { limits: limits(rows.length ? [...ends, ...(dense ? [accuracyOf(dense)] : [])] : [0, 1]), label: "test accuracy, %", format: (value) => plain(100 * value) },
    });
    const inside = (y) => Math.min(Math.max(y, plot.inner.top), plot.inner.bottom);
    if (dense) {
      const y = plot.y(accuracyOf(dense));
      plot.node.append(svg("line", { class: "dense", x1: plot.inner.left, x2: plot.inner.right, y1: y, y2: y }));
      plot.node.append(svg("text", { class: "tick", x: plot.inner.right, y: y - 6, "text-anchor": "end" }, `dense ${percent(accuracyOf(dense))}`));
    }
    const order = names.map((name, i) => [name, i]).sort(([a], [b]) => this.lit.has(a) - this.lit.has(b) || OURS.test(a) - OURS.test(b));
    for (const [name, i] of order) { // what is lit, and what is ours, lies above
      const own = rows.filter((row) => String(row.item) === name).sort((a, b) => compression(a) - compression(b));
      const classes = [`series c${i % N_COLOURS}`, OURS.test(name) ? "ours" : "", this.lit.size && !this.lit.has(name) ? "dim" : ""];
      const group = svg("g", { class: classes.filter(Boolean).join(" ") });
      group.append(svg("path", { class: `curve c${i % N_COLOURS}`, d: path(own.map((row) => [plot.x(compression(row)), plot.y(accuracyOf(row))])) }));
      for (const row of own) {
        const x = plot.x(compression(row)), y = plot.y(accuracyOf(row)), more = spread(row);
        if (more > 0) group.append(svg("line", { class: `spread c${i % N_COLOURS}`, x1: x, x2: x, y1: inside(plot.y(accuracyOf(row) - more)), y2: inside(plot.y(accuracyOf(row) + more)) }));
        const shape = mark(i, x, y, OURS.test(name) ? 5.5 : 4);
        shape.append(svg("title", {}, `${name}, ${plain(compression(row))}\u00d7: ${percent(accuracyOf(row))}${more > 0 ? ` \u00b1 ${fixedPoints(more)}` : ""}`));
        group.append(shape);
      }
      plot.node.append(group);
    }
    return plot.node;
  }
}

const fixedPoints = (value) => (isNumber(value) ? (100 * value).toFixed(1) : "\u2013");

function tableOf(rows, winners) {
  const sorted = [...rows].sort((a, b) => b.density - a.density || (b.accuracy ?? -1) - (a.accuracy ?? -1));
  const marked = new Set(sorted.map((row, i) => (winners.includes(row) ? i : -1)).filter((i) => i >= 0));
  const head = [
    { name: "Method" }, { name: "Density", number: true }, { name: "Effective compression", number: true },
    { name: "Validation, %", number: true }, { name: "Test, %", number: true }, { name: "Standard deviation", number: true },
    { name: "95 % interval", number: true }, { name: "Seeds", number: true }, { name: "Compute left", number: true }, { name: "Best" },
  ];
  return {
    head, marked,
    rows: sorted.map((row, i) => {
      const mean = accuracyOf(row), more = half(row.test_accuracy_std, row.n_seeds);
      return [
        row.item ?? "\u2013", plain(row.density), isDense(row) ? "\u2013" : `${plain(compression(row))}\u00d7`, fixedPoints(row.accuracy), fixedPoints(row.test_accuracy),
        fixedPoints(row.test_accuracy_std), more === null || !isNumber(mean) ? "\u2013" : `${fixedPoints(mean - more)} to ${fixedPoints(mean + more)}`,
        row.n_failed ? `${count(row.n_seeds)}, ${count(row.n_failed)} failed` : count(row.n_seeds), percent(row.compute_left), marked.has(i) ? "best" : "",
      ];
    }),
  };
}

// A picture for each table: network and data.
export class Comparison {
  constructor() {
    this.tables = new Map();
    this.node = html("div", {});
  }

  show(course, winners) {
    const of = new Map();
    for (const row of Object.values(course.rows)) {
      if (!isNumber(row.density)) continue; // as of things that are measured, which are no rows of this table
      const name = String(row.table ?? "");
      of.set(name, [...(of.get(name) ?? []), row]);
    }
    for (const [name, rows] of of) {
      if (!this.tables.has(name)) {
        const made = new OneTable(name);
        this.tables.set(name, made);
        this.node.append(made.picture.node);
      }
      this.tables.get(name).show(rows, winners.filter((row) => String(row.table ?? "") === name));
    }
  }
}
