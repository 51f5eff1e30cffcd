// One job while it runs, and after: all from the events that the service has stored.
import { best, fresh, secondsLeft, take } from "./course.js";
import { follow } from "./stream.js";
import { Comparison } from "./pictures/comparison.js";
import { Epochs, Rollouts } from "./pictures/curves.js";
import { Heat } from "./pictures/heat.js";
import { Mix } from "./pictures/mix.js";
import { count, html, isNumber, percent, plain } from "./pictures/plot.js";
import { Rungs } from "./pictures/rungs.js";
import { showSignedOut, showTrouble } from "./trouble.js";

const ENDED = ["succeeded", "failed", "cancelled"];
const DRAW_MS = 100; // at most ten redraws a second, whatever the rate of events

const live = document.getElementById("live");
const job = Number(live.dataset.job);
let course = fresh(), state = live.dataset.state, attempt = null, asked = false, drawn = 0, told = "", isCut = false;

const parts = {
  stage: html("strong", {}),
  steps: html("span", { class: "number" }),
  left: html("span", {}),
  bar: html("progress", { max: "1", value: "0", "aria-label": "Steps of the stage" }),
  latest: html("p", { class: "about" }),
  best: html("ul", { class: "best-so-far" }),
  stages: html("ol", { class: "stages" }),
  said: html("p", { class: "visually-hidden", role: "status" }),
};
parts.all = html("details", { hidden: true }, html("summary", {}, "All stages"), parts.stages);
parts.bests = html("div", { hidden: true }, html("h3", {}, "Best so far"), parts.best);

const pictures = [new Comparison(), new Rungs(), new Rollouts(), new Mix(), new Epochs(), new Heat()];
live.append(
  html("h2", {}, "The run"),
  html("div", { class: "now" }, html("p", { class: "stage" }, parts.stage, parts.steps, parts.left), parts.bar, parts.latest, parts.all, parts.said),
  parts.bests, html("div", { class: "pictures" }, ...pictures.map((one) => one.node)),
);

// --- in words ---

function duration(seconds) {
  if (seconds < 60) return `${Math.max(1, Math.round(seconds))} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

const SAID = {
  stage: ({ stage }) => `${stage} begins`,
  rollout: ({ done, facts }) => `Rollout ${done}: reward ${plain(facts.reward)}${isNumber(facts.advantage) ? `, advantage ${plain(100 * facts.advantage)} points` : ""}`,
  round: ({ done, facts }) => `Round ${done}: ${percent(facts.density, 2)} left${isNumber(facts.dead) ? `, ${percent(facts.dead, 2)} of it dead` : ""}`,
  epoch: ({ done, facts }) => `Epoch ${done}: ${isNumber(facts.accuracy) ? `validation accuracy ${percent(facts.accuracy)}` : `loss ${plain(facts.train_loss)}`}`,
  job: ({ facts }) => `${facts.item ?? "A job"}${isNumber(facts.seed) ? `, seed ${facts.seed}` : ""}: ${facts.error ? `failed, ${facts.error}` : isNumber(facts.accuracy) ? percent(facts.accuracy) : "done"}`,
  rung: ({ facts }) => `Rung ${facts.rung} at density ${plain(facts.density)} is judged: ${facts.candidates?.[0]?.candidate ?? "no candidate"} leads`,
  row: ({ facts }) => `${facts.item ?? "A row"}${isNumber(facts.density) ? ` at density ${plain(facts.density)}` : ""} is complete${isNumber(facts.test_accuracy) ? `: ${percent(facts.test_accuracy)}` : ""}`,
};

function nowInWords() {
  const at = course.stages[course.current], many = course.stages.length > 1;
  if (state === "queued") return ["It waits for its turn", "", ""];
  if (ENDED.includes(state)) return [{ succeeded: "It has succeeded", failed: "It has failed", cancelled: "It was cancelled" }[state], course.n ? `${count(course.last)} events` : "", ""];
  if (!at) return ["It starts", "", ""];
  const left = secondsLeft(course, Date.now() / 1000);
  return [`${many ? `${course.current + 1}/${course.stages.length} ` : ""}${at.name}`, `${count(at.done)} of ${count(at.steps)}`, left === null ? "" : `about ${duration(left)} left`];
}

function tell() {
  const [stage, steps, left] = nowInWords(), at = course.stages[course.current], isOver = ENDED.includes(state);
  for (const [name, text] of Object.entries({ stage, steps, left })) if (parts[name].textContent !== text) parts[name].textContent = text;
  parts.bar.hidden = isOver || !at;
  if (at) parts.bar.value = Math.min(1, at.done / Math.max(at.steps, 1));
  if (stage !== told) parts.said.textContent = told = stage;
}

function tellStages() {
  parts.all.hidden = course.stages.length < 2;
  parts.stages.replaceChildren(...course.stages.map((one, i) => html("li", { "aria-current": i === course.current && !ENDED.includes(state) ? "step" : null },
    one.name, " ", html("span", { class: "about" }, `${count(one.done)} of ${count(one.steps)}`))));
}

function tellBest(winners) {
  const rows = winners.map((row) => [`density ${plain(row.density)}`, row.item, `${percent(row.accuracy)} of the validation part${isNumber(row.test_accuracy) ? `, ${percent(row.test_accuracy)} of the test part` : ""}`, row.table]);
  const known = new Set(winners.map((row) => row.density));
  for (const rung of [...course.rungs].reverse()) { // the latest rung of a density that has no row yet
    if (known.has(rung.density) || !rung.candidates.length) continue;
    known.add(rung.density);
    const top = [...rung.candidates].sort((a, b) => (b.accuracy ?? -1) - (a.accuracy ?? -1))[0];
    rows.push([`density ${plain(rung.density)}`, top.candidate, `${percent(top.accuracy)} of the validation part in rung ${rung.rung}`, ""]);
  }
  const several = new Set(winners.map((row) => row.table)).size > 1;
  parts.bests.hidden = !rows.length;
  parts.best.replaceChildren(...rows.map(([density, item, said, table]) => html("li", {}, html("strong", {}, String(item)), ` at ${density}${several && table ? `, ${table}` : ""}: ${said}`)));
}

// --- drawing ---

function draw() {
  const winners = best(course);
  tell();
  tellStages();
  tellBest(winners);
  parts.latest.textContent = course.latest ? SAID[course.latest.kind]?.(course.latest) ?? "" : "";
  for (const picture of pictures) picture.show(course, winners);
  live.dataset.events = String(course.last);
  live.dataset.drawn = String(Math.round(performance.now())); // milliseconds since the page was asked for
  live.dataset.draws = String(Number(live.dataset.draws ?? 0) + 1);
}

function redraw() {
  if (asked) return;
  asked = true;
  setTimeout(() => requestAnimationFrame(() => {
    asked = false;
    drawn = performance.now();
    draw();
  }), Math.max(0, drawn + DRAW_MS - performance.now()));
}

const tellOfJob = () => live.dispatchEvent(new CustomEvent("job"));

function hear(what) {
  if (what.course) course = structuredClone(what.course);
  if (what.events) take(course, what.events);
  if (what.row) {
    const isNew = what.row.state !== state || (attempt !== null && what.row.attempt !== attempt);
    ({ state, attempt } = what.row);
    live.dataset.state = state;
    if (isNew) tellOfJob();
  }
  if (what.trouble !== undefined) {
    if (what.signedOut) showSignedOut();
    else showTrouble(ENDED.includes(state) ? "" : what.trouble);
    if (isCut && !what.trouble) tellOfJob(); // what was to be renewed meanwhile could not be
    isCut = Boolean(what.trouble);
  }
  redraw();
}

follow(job, hear);
setInterval(() => { if (state === "running" && !document.hidden) tell(); }, 1000);
