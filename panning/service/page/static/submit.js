// The form and the text are two views of one config. The service reads the text, changes it as the fields say, tells what it
// costs and what is wrong with it; nothing is sent before the button is pressed.
import { ask, say } from "./ask.js";
import { inWords } from "./costs.js";

const form = document.getElementById("submit");
const text = document.getElementById("text");
const start = document.getElementById("start");
const about = document.getElementById("start-about");
const cost = document.getElementById("cost");
const fields = [...form.querySelectorAll("[data-places]")].map((place) => ({
  place, input: place.querySelector("input, select"), wrong: place.querySelector(".wrong"), places: place.dataset.places.split(" "),
}));

let config = null; // what the text says, as it was last read
let sent = { key: newKey(), text: null }; // one key for one text: sent again after a lost answer, it is the same job
let reading = Promise.resolve();

function newKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

function at(values, path) {
  return path.split(".").reduce((inner, key) => (inner === null || inner === undefined ? undefined : inner[key]), values);
}

// Where a config has a field, or may have it: a mask is made by a method with a seed even where none is written.
function placeOf(field) {
  const there = field.places.find((path) => ["string", "number"].includes(typeof at(config, path)));
  if (there) return there;
  return config?.kind === "prune" ? field.places[0] : null;
}

function showFields() {
  for (const field of fields) {
    const path = config && placeOf(field);
    field.place.hidden = !path;
    if (!path) continue;
    const value = String(at(config, path) ?? "");
    if (field.input.tagName === "SELECT" && value && ![...field.input.options].some((one) => one.value === value)) {
      field.input.add(new Option(value, value));
    }
    if (document.activeElement !== field.input) field.input.value = value;
  }
}

function showWrong(error) {
  clearWrong();
  const rest = [];
  for (const one of error.errors ?? []) {
    const field = fields.find((each) => !each.place.hidden && each.places.some((path) => one.at === path || one.at.startsWith(`${path}.`)));
    if (field && !field.wrong.textContent) {
      field.wrong.textContent = one.said;
      field.input.setAttribute("aria-invalid", "true");
    } else {
      rest.push(`${one.at}: ${one.said}`);
    }
  }
  if (!error.errors?.length) rest.push(error.message);
  document.getElementById("text-wrong").textContent = rest.join("\n");
  if (rest.length) text.setAttribute("aria-invalid", "true");
  cost.textContent = "";
}

function clearWrong() {
  document.getElementById("text-wrong").textContent = "";
  text.removeAttribute("aria-invalid");
  for (const field of fields) {
    field.wrong.textContent = "";
    field.input.removeAttribute("aria-invalid");
  }
}

// Reads the text with some changes, shows what it says in the fields, and what it costs; whether all is well.
async function look(changes = []) {
  try {
    let asked, found;
    do { // again where the text was changed meanwhile, so that nothing that was written is lost
      asked = text.value;
      found = await ask("POST", "/submit/read", { text: asked, changes });
    } while (text.value !== asked);
    config = found.config;
    if (changes.length) text.value = found.text;
    showFields();
    cost.textContent = "Its cost is being estimated.";
    const told = await ask("POST", "/api/v1/cost", config);
    clearWrong();
    cost.textContent = inWords(told);
    return true;
  } catch (error) {
    showWrong(error);
    return false;
  }
}

// One look at a time, in order: a change of the text is known to the next one.
function queued(looks) {
  reading = reading.then(looks, looks);
  return reading;
}

async function begin() {
  if (!start.value) {
    about.textContent = "";
    return true;
  }
  try {
    const found = await ask("GET", `/submit/packaged?name=${encodeURIComponent(start.value)}`);
    about.textContent = found.about;
    text.value = found.text;
  } catch (error) {
    showWrong(error);
    return false;
  }
  return look();
}

start.addEventListener("change", () => queued(begin));
text.addEventListener("change", () => { start.value = ""; about.textContent = ""; queued(() => look()); });
for (const field of fields) {
  field.input.addEventListener("change", () => {
    const value = field.input.value.trim(); // now: a look that is on its way writes into the field what it knows
    queued(() => {
      const path = placeOf(field);
      return path ? look([`${path}=${value || "null"}`]) : false;
    });
  });
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = form.querySelector("button");
  button.disabled = true;
  try {
    if (!await queued(() => look())) {
      (form.querySelector('[aria-invalid="true"]') ?? text).focus();
      return;
    }
    const written = JSON.stringify(config);
    if (sent.text !== null && sent.text !== written) sent = { key: newKey(), text: null };
    sent.text = written;
    const job = await ask("POST", "/api/v1/jobs", config, { "Idempotency-Key": sent.key });
    location.assign(`/jobs/${job.id}`);
  } catch (error) {
    showWrong(error);
    say(error.message);
  } finally {
    button.disabled = false;
  }
});

queued(begin);
