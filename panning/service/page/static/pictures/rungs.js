// The rungs of a search: candidates of the density that is searched now, by their accuracy in short trainings.
import { axes, isNumber, limits, mark, path, percent, Picture, plain, svg } from "./plot.js";

const HEIGHT = 240;

export class Rungs {
  constructor() {
    this.picture = new Picture({ name: "rungs", title: "Candidates by rung" });
    this.node = this.picture.node;
  }

  show(course) {
    if (!course.rungs.length) return;
    const density = course.rungs.at(-1).density;
    const rungs = course.rungs.filter((one) => one.density === density).sort((a, b) => a.rung - b.rung);
    const all = rungs.flatMap((one) => one.candidates);
    const last = rungs.at(-1), top = [...last.candidates].sort((a, b) => b.accuracy - a.accuracy)[0];
    this.picture.show({
      said: `density ${plain(density)}; filled go on, hollow do not`,
      label: `Candidates by rung at density ${plain(density)}; the best of rung ${last.rung} is ${top?.candidate ?? "none"} with ${percent(top?.accuracy)}.`,
      draw: (width) => draw(width, rungs, all),
      table: () => ({
        head: [{ name: "Candidate" }, { name: "Density", number: true }, { name: "Rung", number: true }, { name: "Validation accuracy", number: true }, { name: "Compute left", number: true }, { name: "Goes on" }],
        rows: [...course.rungs].reverse().flatMap((rung) => rung.candidates.map((one) => [
          one.candidate ?? "\u2013", plain(rung.density), plain(rung.rung), percent(one.accuracy), percent(one.compute_left), one.kept === undefined ? "" : one.kept ? "yes" : "no",
        ])),
      }),
    });
  }
}

function draw(width, rungs, all) {
  const numbers = rungs.map((one) => one.rung);
  const plot = axes({
    width, height: HEIGHT,
    x: { limits: [Math.min(...numbers) - 0.5, Math.max(...numbers) + 0.5], ticks: numbers, label: "rung" },
    y: { limits: limits(all.map((one) => one.accuracy)), label: "validation accuracy, %", format: (value) => plain(100 * value) },
  });
  const ways = new Map();
  for (const rung of rungs) {
    for (const one of rung.candidates) {
      if (!isNumber(one.accuracy)) continue;
      const way = ways.get(one.candidate) ?? [];
      ways.set(one.candidate, [...way, [plot.x(rung.rung), plot.y(one.accuracy)]]);
    }
  }
  for (const way of ways.values()) if (way.length > 1) plot.node.append(svg("path", { class: "curve faint", d: path(way) }));
  for (const rung of rungs) {
    for (const one of rung.candidates) {
      if (!isNumber(one.accuracy)) continue;
      const shape = mark(0, plot.x(rung.rung), plot.y(one.accuracy), 4);
      if (one.kept === false) shape.classList.add("hollow");
      shape.append(svg("title", {}, `${one.candidate}: ${percent(one.accuracy)}`));
      plot.node.append(shape);
    }
  }
  return plot.node;
}
