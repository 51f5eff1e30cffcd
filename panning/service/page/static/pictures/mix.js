// What the agent mixed: the shares of the indices, stacked, by rollout and by round.
import { axes, count, html, N_COLOURS, path, percent, Picture, svg } from "./plot.js";

const HEIGHT = 220;

// The indices' shares of a point's weights.
export function shares(weights, names) {
  const sum = names.reduce((all, name) => all + Math.max(weights?.[name] ?? 0, 0), 0);
  return names.map((name) => (sum > 0 ? Math.max(weights[name] ?? 0, 0) / sum : 0));
}

const namesOf = (points) => [...new Set(points.flatMap((point) => Object.keys(point.weights ?? {})))];

function stacked(points, names, { width, label, bars }) {
  const low = points[0].x - (bars ? 0.5 : 0), high = points.at(-1).x + (bars ? 0.5 : points.length > 1 ? 0 : 1);
  const plot = axes({
    width, height: HEIGHT,
    x: { limits: [low, high], label, format: count, ...(points.length <= 12 ? { ticks: points.map((point) => point.x) } : {}) },
    y: { limits: [0, 1], label: "share, %", ticks: [0, 0.25, 0.5, 0.75, 1], format: (value) => `${100 * value}` },
  });
  const of = points.map((point) => shares(point.weights, names));
  const below = points.map(() => 0);
  names.forEach((_, i) => {
    const from = [...below];
    of.forEach((one, k) => { below[k] += one[i]; });
    if (bars) {
      points.forEach((point, k) => {
        const left = plot.x(point.x - 0.42), right = plot.x(point.x + 0.42);
        plot.node.append(svg("rect", { class: `band c${i % N_COLOURS}`, x: left, width: Math.max(right - left, 0.5), y: plot.y(below[k]), height: Math.max(0, plot.y(from[k]) - plot.y(below[k])) }));
      });
      return;
    }
    const upper = points.map((point, k) => [plot.x(point.x), plot.y(below[k])]);
    const lower = points.map((point, k) => [plot.x(point.x), plot.y(from[k])]).reverse();
    if (points.length === 1) { // one rollout is as wide as the picture
      upper.push([plot.inner.right, upper[0][1]]);
      lower.unshift([plot.inner.right, lower[0][1]]);
    }
    plot.node.append(svg("path", { class: `band c${i % N_COLOURS}`, d: `${path(upper)}${path(lower).replace("M", "L")}Z` }));
    const [top, bottom] = [plot.y(below.at(-1)), plot.y(from.at(-1))];
    if (bottom - top > 16) plot.node.append(svg("text", { class: "inside", x: plot.inner.right - 8, y: (top + bottom) / 2, dy: "0.32em", "text-anchor": "end" }, names[i]));
  });
  return plot.node;
}

const square = (i) => svg("svg", { width: 12, height: 12, "aria-hidden": "true", focusable: "false" }, svg("rect", { class: `band c${i % N_COLOURS}`, width: 12, height: 12 }));
const legend = (names) => html("ul", { class: "legend" }, ...names.map((name, i) => html("li", {}, square(i), " ", name)));

export class Mix {
  constructor() {
    this.byRollout = new Picture({ name: "mix", title: "What the agent mixed", said: "share of each index in the score, mean of each rollout" });
    this.byRound = new Picture({ name: "mix-rounds", title: "What was mixed, round by round" });
    this.node = html("div", { class: "side-by-side" }, this.byRollout.node, this.byRound.node);
  }

  show(course) {
    const points = course.rollouts.points.filter((point) => point.weights);
    const told = (course.mixedIn?.rounds ?? (course.episode?.title ? [] : course.episode?.rounds.points) ?? [])
      .filter((one) => one.weights).map((one) => ({ x: one.round ?? one.x, weights: one.weights, spread: one.spread }));
    const names = namesOf([...points, ...told]);
    if (names.length < 2) return; // one index alone is no mix
    if (points.length) this.one(this.byRollout, points, names, "rollout", false, undefined);
    if (told.length) this.one(this.byRound, told, names, "round", true, course.mixedIn ? `in ${course.mixedIn.title}` : "so far");
  }

  one(picture, points, names, label, bars, said) {
    const last = shares(points.at(-1).weights, names);
    picture.show({
      said, label: `Shares of indices by ${label}; in ${label} ${points.at(-1).x}: ${names.map((name, i) => `${name} ${percent(last[i], 0)}`).join(", ")}.`,
      draw: (width) => stacked(points, names, { width, label, bars }),
      table: () => ({
        head: [{ name: label, number: true }, ...names.map((name) => ({ name, number: true }))],
        rows: points.map((point) => [count(point.x), ...shares(point.weights, names).map((share) => percent(share))]),
      }),
    });
    picture.under.replaceChildren(legend(names));
  }
}
