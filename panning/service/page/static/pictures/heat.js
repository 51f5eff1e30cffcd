// What is left of each layer, round by round: a strip of colours, a slider through its rounds, and the dead share below.
import { count, html, isNumber, limits, niceTicks, percent, Picture, plain } from "./plot.js";
import { curve } from "./curves.js";

// Cividis: its steps look alike to eyes that see few colours, and grow lighter all along.
const STOPS = ["#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838"]
  .map((one) => [1, 3, 5].map((at) => parseInt(one.slice(at, at + 2), 16)));
const TOP = 6, BOTTOM = 40, LONGEST = 420, FRAME_MS = 100, PLAY_MS = 4000;

function colour(share) {
  const at = Math.min(Math.max(share, 0), 1) * (STOPS.length - 1), low = Math.min(Math.floor(at), STOPS.length - 2);
  return `rgb(${STOPS[low].map((from, i) => Math.round(from + (STOPS[low + 1][i] - from) * (at - low))).join(" ")})`;
}

const still = matchMedia("(prefers-reduced-motion: reduce)");

export class Heat {
  constructor() {
    this.picture = new Picture({ name: "heat", title: "What is left of each layer" });
    this.dead = new Picture({ name: "dead", title: "Dead weights", said: "share of the kept weights on no path from input to output" });
    this.canvas = html("canvas", { "aria-hidden": "true" });
    this.slider = html("input", { type: "range", min: "1", value: "1", step: "1", "aria-label": "Round" });
    this.play = html("button", { type: "button", class: "quiet small" }, "Play");
    this.readout = html("span", { class: "about" });
    this.scale = html("div", { class: "heat-scale" });
    this.picture.under.append(html("div", { class: "controls" }, this.play, this.slider), html("p", { class: "readout" }, this.readout), this.scale);
    this.node = html("div", {}, this.picture.node, this.dead.node);
    this.at = null; // the round that is looked at; null follows the newest
    this.timer = null;
    this.slider.addEventListener("input", () => { this.stop(); this.look(Number(this.slider.value)); });
    this.play.addEventListener("click", () => (this.timer ? this.stop() : this.start()));
    this.picture.drawing.addEventListener("pointermove", (event) => this.point(event));
    // Without motion the slider alone goes through the rounds.
    const motion = () => { this.play.hidden = still.matches; if (still.matches) this.stop(); };
    still.addEventListener("change", motion);
    motion();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.repaint());
  }

  show(course) {
    const { episode } = course;
    const points = (episode?.rounds.points ?? []).filter((point) => Object.keys(point.layers).length);
    if (!points.length) return;
    this.points = points;
    this.total = Math.max(episode.total || 0, points.at(-1).x);
    this.layers = Object.keys(points.at(-1).layers);
    this.lowest = Math.min(0.5, ...points.flatMap((point) => this.layers.map((name) => point.layers[name]).filter((value) => value > 0)));
    this.slider.max = String(points.length);
    if (this.at !== null && this.at >= points.length) this.at = null;
    if (this.at === null) this.slider.value = this.slider.max;
    const last = points.at(-1), said = episode.title ? `in ${episode.title}` : "by round";
    this.picture.show({
      said: `density of each layer ${said}`,
      label: `Density of ${this.layers.length} layers over ${points.length} rounds; after round ${last.x} ${percent(last.density)} of all weights are left.`,
      draw: (width) => this.draw(width),
      table: () => ({
        head: ["round", "density", "effective density", "dead", ...this.layers].map((name) => ({ name, number: true })),
        rows: points.map((point) => [count(point.x), ...[point.density, point.effective_density, point.dead, ...this.layers.map((name) => point.layers[name])].map((value) => percent(value, 2))]),
      }),
    });
    this.tellScale();
    this.tell();
    if (points.some((point) => isNumber(point.dead))) {
      this.dead.show({
        label: `Dead share by round; ${percent(last.dead, 2)} after round ${last.x}, at most ${percent(Math.max(...points.map((point) => point.dead ?? 0)), 2)}.`,
        draw: (width) => curve(points, [{ name: "dead", of: (point) => point.dead, colour: 1 }],
          { width, x: "round", y: { label: "dead, % of the kept weights", format: (value) => plain(100 * value), limits: limits([0, 0.001, ...points.map((point) => point.dead)]) } }),
        table: () => ({
          head: ["round", "dead", "density", "effective density"].map((name) => ({ name, number: true })),
          rows: points.map((point) => [count(point.x), ...[point.dead, point.density, point.effective_density].map((value) => percent(value, 2))]),
        }),
      });
    }
  }

  get seen() {
    return this.at ?? this.points.length;
  }

  draw(width) {
    const { canvas, points, layers } = this, ratio = window.devicePixelRatio || 1;
    const row = Math.max(3, Math.min(24, LONGEST / layers.length)), left = Math.min(150, Math.round(width * 0.32));
    const height = TOP + row * layers.length + BOTTOM;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
      canvas.style.height = `${height}px`;
    }
    const style = getComputedStyle(this.picture.node), ink = style.getPropertyValue("--ink"), soft = style.getPropertyValue("--soft");
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    pen.font = `12px ${style.fontFamily}`;
    const right = width - 2, at = (round) => left + (round / this.total) * (right - left);
    this.geometry = { left, right };
    pen.fillStyle = style.getPropertyValue("--line");
    pen.globalAlpha = 0.35;
    pen.fillRect(left, TOP, right - left, row * layers.length - 1);
    const gap = row >= 8 ? 1 : 0, low = Math.log(this.lowest);
    points.forEach((point, k) => {
      const from = at(points[k - 1]?.x ?? 0), to = at(point.x); // rounds that were not told look like the next one
      pen.globalAlpha = k < this.seen ? 1 : 0.25;
      layers.forEach((name, i) => {
        const density = point.layers[name];
        if (!(density > 0)) return; // a layer without weights is empty
        pen.fillStyle = colour(1 - Math.log(density) / low);
        pen.fillRect(from, TOP + i * row, Math.min(Math.max(to - from + 0.5, 1), right - from), row - gap);
      });
    });
    pen.globalAlpha = 1;
    const each = Math.ceil(13 / row);
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    pen.fillStyle = ink;
    layers.forEach((name, i) => { if (i % each === 0) pen.fillText(shortened(pen, name, left - 10), left - 8, TOP + (i + 0.5) * row); });
    const x = at(points[this.seen - 1].x), bottom = TOP + row * layers.length;
    pen.fillRect(x - 1, TOP - 4, 2, row * layers.length + 8);
    pen.fillStyle = soft;
    pen.textAlign = "center";
    for (const round of niceTicks(0, this.total, Math.max(2, (right - left) / 70))) {
      if (round >= 1 && Number.isInteger(round)) pen.fillText(String(round), Math.min(at(round), right - 10), bottom + 14);
    }
    pen.fillText("round", (left + right) / 2, bottom + 32);
    return canvas;
  }

  // The names of colours: densities on a log scale.
  tellScale() {
    const values = [1, this.lowest ** 0.5, this.lowest], key = values.map((value) => percent(value)).join();
    if (key === this.scaled) return;
    this.scaled = key;
    const strip = html("canvas", { width: "200", height: "10", "aria-hidden": "true" }), pen = strip.getContext("2d");
    for (let i = 0; i < 200; i += 1) {
      pen.fillStyle = colour(1 - i / 199);
      pen.fillRect(i, 0, 1, 10);
    }
    this.scale.replaceChildren(html("span", {}, `${percent(1, 0)} left`), strip, html("span", {}, percent(this.lowest)), html("span", { class: "about" }, "(log scale)"));
  }

  tell() {
    const point = this.points[this.seen - 1];
    const of = this.layers.map((name) => [point.layers[name], name]).filter(([value]) => isNumber(value)).sort((a, b) => a[0] - b[0]);
    const fewest = of.length ? `; fewest in ${of[0][1]}, ${percent(of[0][0], 2)}, most in ${of.at(-1)[1]}, ${percent(of.at(-1)[0], 2)}` : "";
    this.readout.textContent = `Round ${point.x} of ${this.total}: ${percent(point.density, 2)} left${fewest}`;
    this.slider.setAttribute("aria-valuetext", `round ${point.x}, ${percent(point.density)} left`);
  }

  look(at) {
    this.at = at >= this.points.length ? null : at;
    this.repaint();
    this.tell();
  }

  repaint() {
    if (this.points) this.picture.paint(Math.floor(this.picture.drawing.clientWidth));
  }

  point(event) {
    if (this.timer || !this.geometry) return;
    const { left, right } = this.geometry;
    const round = ((event.clientX - this.canvas.getBoundingClientRect().left - left) / (right - left)) * this.total;
    const at = this.points.findIndex((point) => point.x >= round) + 1;
    if (round < 0 || at < 1 || at === this.seen) return;
    this.slider.value = String(at);
    this.look(at);
  }

  start() {
    const from = this.seen >= this.points.length ? 0 : this.seen, began = performance.now();
    this.play.textContent = "Stop";
    this.timer = setInterval(() => {
      const at = Math.max(1, Math.round(from + ((performance.now() - began) / PLAY_MS) * this.points.length));
      this.slider.value = String(Math.min(at, this.points.length));
      this.look(at);
      if (at >= this.points.length) this.stop();
    }, FRAME_MS);
  }

  stop() {
    clearInterval(this.timer);
    this.timer = null;
    this.play.textContent = "Play";
  }
}

// The end of a name says which layer it is.
function shortened(pen, name, room) {
  if (pen.measureText(name).width <= room) return name;
  let low = 1, high = name.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (pen.measureText(`\u2026${name.slice(middle)}`).width <= room) high = middle;
    else low = middle + 1;
  }
  return `\u2026${name.slice(low)}`;
}
