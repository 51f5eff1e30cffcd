// Figures by rollout or by epoch.
import { axes, count, html, isNumber, limits, mark, path, percent, Picture, plain, svg } from "./plot.js";

const HEIGHT = 220;

// lines: [{name, of: point -> value}]; several lines have their names at their ends.
export function curve(points, lines, { width, x, y, zero = false }) {
  const values = lines.map((line) => points.map(line.of));
  const span = [points[0]?.x ?? 0, Math.max(points.at(-1)?.x ?? 1, (points[0]?.x ?? 0) + 1)];
  const named = lines.length > 1;
  const plot = axes({
    width, height: HEIGHT, right: named ? 78 : 14,
    x: { limits: span, label: x, format: count, ticks: wholeTicks(span, width) }, y: { limits: limits(values.flat(), { zero }), ...y },
  });
  if (zero) plot.node.append(svg("line", { class: "zero", x1: plot.inner.left, x2: plot.inner.right, y1: plot.y(0), y2: plot.y(0) }));
  const ends = [];
  lines.forEach((line, i) => {
    const at = points.map((point, k) => [plot.x(point.x), isNumber(values[i][k]) ? plot.y(values[i][k]) : NaN]);
    plot.node.append(svg("path", { class: `curve c${line.colour ?? i}`, d: path(at) }));
    const seen = at.filter(([, one]) => isNumber(one));
    if (points.length <= 60) for (const [a, b] of seen) plot.node.append(mark(line.colour ?? i, a, b, 2.6));
    if (named && seen.length) ends.push({ y: seen.at(-1)[1], name: line.name, colour: line.colour ?? i, x: seen.at(-1)[0] });
  });
  ends.sort((a, b) => a.y - b.y).forEach((end, i) => {
    if (i) end.y = Math.max(end.y, ends[i - 1].y + 14);
    plot.node.append(svg("text", { class: `name c${end.colour}`, x: end.x + 8, y: end.y, dy: "0.32em" }, end.name));
  });
  return plot.node;
}

function wholeTicks([low, high], width) {
  const step = Math.max(1, 10 ** Math.floor(Math.log10((high - low) / Math.max(2, width / 90) || 1)));
  const wide = [1, 2, 5, 10].map((one) => one * step).find((one) => (high - low) / one <= Math.max(2, width / 70)) ?? 10 * step;
  const found = [];
  for (let i = Math.ceil(low / wide); i * wide <= high; i += 1) found.push(i * wide);
  return found;
}

const FIGURES = [
  { key: "reward", name: "reward", title: "Reward", said: "of an episode, mean of each rollout", y: { label: "reward" } },
  { key: "advantage", name: "advantage", title: "Advantage", said: "validation accuracy above the fixed policy's, mean of each rollout",
    y: { label: "advantage, percentage points", format: (value) => plain(100 * value) }, zero: true },
  { key: "score", name: "score", title: "Score", said: "beside several fixed policies, mean of each rollout", y: { label: "score" }, zero: true },
];
const TOLD = { reward: plain, score: plain, advantage: (value) => (isNumber(value) ? plain(100 * value) : "\u2013"), accuracy: percent, effective_density: percent };
const HEADS = { advantage: "advantage, points", effective_density: "effective density", images_seen: "images seen" };

// Of an agent's training: a picture each of reward, advantage and score, as far as they are told.
export class Rollouts {
  constructor() {
    this.pictures = FIGURES.map((one) => new Picture({ name: one.key, title: one.title, said: one.said }));
    this.node = html("div", { class: "side-by-side" }, ...this.pictures.map((one) => one.node));
  }

  show(course) {
    const { points } = course.rollouts;
    FIGURES.forEach((one, i) => {
      const has = points.filter((point) => isNumber(point[one.key]));
      if (!has.length) return;
      const last = has.at(-1), tell = TOLD[one.key];
      this.pictures[i].show({
        label: `${one.title} by rollout: ${tell(has[0][one.key])} in rollout ${has[0].x}, ${tell(last[one.key])} in rollout ${last.x}.`,
        draw: (width) => curve(points, [{ name: one.name, of: (point) => point[one.key] }], { width, x: "rollout", ...one }),
        table: () => of(points, "rollout"),
      });
    });
  }
}

// Of a training: accuracy and loss by epoch, and what is kept where masks move.
export class Epochs {
  constructor() {
    this.pictures = {};
    this.node = html("div", { class: "side-by-side" });
  }

  show(course) {
    for (const [stage, { points }] of Object.entries(course.epochs)) {
      this.one(stage, "accuracy", points, [{ name: "validation", key: "accuracy" }], { label: "accuracy, %", format: (value) => plain(100 * value) }, "Accuracy");
      this.one(stage, "loss", points, [{ name: "validation", key: "loss" }, { name: "training", key: "train_loss" }], { label: "loss, nats" }, "Loss");
      this.one(stage, "density", points, [{ name: "kept", key: "density" }, { name: "alive", key: "effective_density" }], { label: "density, %", format: (value) => plain(100 * value) }, "Density");
    }
  }

  one(stage, name, points, lines, y, title) {
    const shown = lines.filter(({ key }) => points.some((point) => isNumber(point[key])));
    if (!shown.length) return;
    const key = `${stage} ${name}`;
    if (!(key in this.pictures)) {
      this.pictures[key] = new Picture({ name, title, said: `by epoch, ${stage}` });
      this.node.append(this.pictures[key].node);
    }
    const last = points.at(-1);
    this.pictures[key].show({
      label: `${title} by epoch of ${stage}: ${shown.map((line) => `${line.name} ${plain(last[line.key])}`).join(", ")} after epoch ${last.x}.`,
      draw: (width) => curve(points, shown.map((line) => ({ ...line, of: (point) => point[line.key] })), { width, x: "epoch", y }),
      table: () => of(points, "epoch"),
    });
  }
}

function of(points, first) {
  const names = [...new Set(points.flatMap((point) => Object.keys(point)))].filter((name) => !["x", "weights", "layers", first].includes(name));
  return {
    head: [{ name: first, number: true }, ...names.map((name) => ({ name: HEADS[name] ?? name.replaceAll("_", " "), number: true }))],
    rows: points.map((point) => [count(point.x), ...names.map((name) => (TOLD[name] ?? plain)(point[name]))]),
  };
}
