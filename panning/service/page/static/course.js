// What the pictures show, as plain data: the fold of a job's events, of bounded size however many there are.

const MOST_POINTS = 2000, MOST_ROUNDS = 400, MOST_RUNGS = 400, MOST_ROWS = 2000, MOST_STAGES = 200;
const BESIDE = new Set(["plan", "running", "artefact"]);
const BETWEEN = new Set(["rung", "row"]);

export const fresh = () => ({
  last: 0, // the id of the last event
  n: 0,
  time: 0, // of the last event, in seconds
  latest: null, // the last event that is worth a sentence
  stages: [], // {name, steps, cost, done, beganTime, beganDone, endedTime}
  current: -1,
  planned: false,
  attempts: 0,
  rollouts: series(MOST_POINTS), // [{x, ...figures, weights}]
  epochs: {}, // stage -> series
  episode: null, // {title, total, rounds: series}
  mixedIn: null, // the rounds of the last rollout: [{round, weights, spread}]
  rungs: [], // {rung, density, stage, candidates}
  rows: {}, // table and item and density -> facts
  jobs: { done: 0, failed: 0 },
  artefacts: 0,
});

// A series that keeps every stride-th point, and the last.
function series(most) {
  return { most, stride: 1, n: 0, points: [] };
}

function add(to, point) {
  const { points } = to;
  if (to.n > 0 && (to.n - 1) % to.stride) points.pop(); // the last was kept as the last alone
  points.push(point);
  to.n += 1;
  if (points.length > to.most) {
    const tail = points[points.length - 1];
    to.points = points.filter((_, i) => i % 2 === 0);
    to.stride *= 2;
    if (to.points[to.points.length - 1] !== tail) to.points.push(tail);
  }
}

// A run that goes on may tell a step again: what stands at it and behind goes.
function rewind(to, x) {
  const { points } = to;
  if (!points.length || points[points.length - 1].x < x) return;
  while (points.length && points[points.length - 1].x >= x) points.pop();
  to.n = points.length ? (points.length - 1) * to.stride + 1 : 0;
}

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

function numbersOf(facts) {
  const found = {};
  for (const [name, value] of Object.entries(facts)) if (isNumber(value)) found[name] = value;
  return found;
}

// Take in events, [[id, event], ...]; those that were taken in before are passed over.
export function take(course, events) {
  for (const [id, event] of events) {
    if (id <= course.last) continue;
    course.last = id;
    if (isObject(event) && typeof event.stage === "string" && isObject(event.facts)) takeOne(course, event);
  }
}

function takeOne(course, event) {
  course.n += 1;
  const before = course.time;
  if (isNumber(event.time)) course.time = event.time;
  if (event.kind === "plan") plan(course, event.facts);
  else if (!BESIDE.has(event.kind)) step(course, event, before || course.time);
  if (event.kind === "artefact") course.artefacts += 1;
  else if (!BESIDE.has(event.kind)) course.latest = event;
  TAKE[event.kind]?.(course, event);
}

function plan(course, facts) {
  const stages = Array.isArray(facts.stages) ? facts.stages.slice(0, MOST_STAGES) : [];
  course.planned = true;
  course.current = -1;
  course.stages = stages.filter(isObject).map((one) => stage(String(one.name), Number(one.steps) || 0, Number(one.cost) || 0));
}

const stage = (name, steps, cost) => ({ name, steps, cost, done: 0, beganTime: null, beganDone: 0, endedTime: 0 });

// Where a whole run is, as panning.foundation.course has it.
function step(course, event, before) {
  let at = course.stages.findIndex((one) => one.name === event.stage);
  if (at < 0) {
    if (course.planned || course.stages.length >= MOST_STAGES) return;
    at = course.stages.push(stage(event.stage, event.total, event.total)) - 1;
  }
  const one = course.stages[at];
  const cost = one.cost * event.total / Math.max(one.steps, 1);
  Object.assign(one, { steps: event.total, cost, done: event.done, endedTime: course.time });
  course.current = at;
  if (BETWEEN.has(event.kind)) return;
  if (event.kind === "stage") Object.assign(one, { beganTime: course.time, beganDone: event.done });
  else if (one.beganTime === null) Object.assign(one, { beganTime: before, beganDone: event.done - 1 });
}

const TAKE = {
  rollout(course, { done, facts }) {
    rewind(course.rollouts, done);
    add(course.rollouts, { x: done, ...numbersOf(facts), weights: isObject(facts.weights) ? numbersOf(facts.weights) : null });
    if (Array.isArray(facts.rounds)) course.mixedIn = { title: `rollout ${done}`, rounds: facts.rounds.filter(isObject) };
  },
  epoch(course, { stage: name, done, facts }) {
    const own = course.epochs[name] ??= series(MOST_POINTS);
    rewind(own, done);
    add(own, { x: done, ...numbersOf(facts) });
  },
  round(course, { done, total, facts }) {
    const now = course.episode, last = now?.rounds.points.at(-1);
    if (!now || now.title || done <= (last?.x ?? 0)) course.episode = { title: "", total, rounds: series(MOST_ROUNDS) };
    course.episode.total = total;
    add(course.episode.rounds, roundOf(done, facts));
  },
  job(course, { facts }) {
    course.jobs.done += 1;
    if (facts.error) course.jobs.failed += 1;
    if (!Array.isArray(facts.rounds) || !facts.rounds.length) return;
    const rounds = series(MOST_ROUNDS);
    facts.rounds.filter(isObject).forEach((one, i) => add(rounds, roundOf(isNumber(one.round) ? one.round : i + 1, one)));
    course.episode = { title: `${facts.item ?? "an episode"}, seed ${facts.seed ?? "?"}`, total: rounds.n, rounds };
    course.mixedIn = { title: course.episode.title, rounds: facts.rounds.filter((one) => isObject(one) && isObject(one.weights)) };
  },
  rung(course, { stage: name, facts }) {
    const candidates = (Array.isArray(facts.candidates) ? facts.candidates : []).filter(isObject).slice(0, 200);
    const known = course.rungs.find((one) => one.rung === facts.rung && one.density === facts.density);
    if (known && candidates.length === 1) { // in free order, one at a time
      known.candidates = [...known.candidates.filter((one) => one.candidate !== candidates[0].candidate), ...candidates].slice(-200);
    } else if (known) known.candidates = candidates;
    else course.rungs = [...course.rungs, { rung: facts.rung, density: facts.density, stage: name, candidates }].slice(-MOST_RUNGS);
  },
  row(course, { facts }) {
    const key = JSON.stringify([facts.table ?? "", facts.item ?? "", facts.density ?? 0]);
    if (key in course.rows || Object.keys(course.rows).length < MOST_ROWS) course.rows[key] = facts;
  },
};

function roundOf(x, facts) {
  const layers = isObject(facts.layers) ? numbersOf(facts.layers) : {};
  return { x, ...numbersOf(facts), layers, weights: isObject(facts.weights) ? numbersOf(facts.weights) : null };
}

// --- time left ---

// Seconds until the run ends at the pace so far; null where no pace is known. now: in seconds, by the events' clock.
export function secondsLeft(course, now) {
  const paces = course.stages.map((one) => {
    const steps = one.beganTime === null ? 0 : one.done - one.beganDone;
    return steps > 0 ? { seconds: one.endedTime - one.beganTime, steps } : null;
  });
  const costOfStep = (one) => one.cost / Math.max(one.steps, 1);
  let seconds = 0, cost = 0;
  paces.forEach((pace, i) => {
    if (pace) [seconds, cost] = [seconds + pace.seconds, cost + costOfStep(course.stages[i]) * pace.steps];
  });
  let left = 0;
  for (let i = Math.max(course.current, 0); i < course.stages.length; i += 1) {
    const one = course.stages[i];
    if (!paces[i] && cost <= 0) return null;
    const ofStep = paces[i] ? paces[i].seconds / paces[i].steps : costOfStep(one) * seconds / cost;
    const ofStage = ofStep * Math.max(one.steps - one.done, 0);
    left += i === course.current ? Math.max(0, ofStage - Math.max(0, now - course.time)) : ofStage;
  }
  return course.stages.length ? left : null;
}

// --- the best so far ---

// Of each table and density the row with the best accuracy of the validation part: {table, density, row}.
export function best(course) {
  const found = new Map();
  for (const row of Object.values(course.rows)) {
    if (!isNumber(row.accuracy) || !isNumber(row.density) || row.density >= 1) continue;
    const key = JSON.stringify([row.table, row.density]);
    if (!(found.get(key)?.accuracy >= row.accuracy)) found.set(key, row);
  }
  return [...found.values()].sort((a, b) => b.density - a.density);
}
