// The list of jobs: what is new comes by the stream, and is shown as the server has it.
import { ask } from "./ask.js";
import { inEpochs } from "./costs.js";
import { oneAtATime, pageNow } from "./renew.js";
import { LIST, follow } from "./stream.js";
import { showTimes } from "./times.js";
import { showSignedOut, showTrouble } from "./trouble.js";

const LEAST_MS = 500, EVERY_MS = 1000; // between two looks at the whole list; between two looks at the clock
const places = new Map(); // job -> where it is, while it runs
const costs = new Map(); // job -> its cost, once it was asked for
const RUNNING = 'tr[data-state="running"]';

// --- where the running jobs are ---

function showPlaces() {
  for (const row of document.querySelectorAll(RUNNING)) {
    const at = places.get(Number(row.dataset.job)), part = row.querySelector("[data-place]");
    if (!at) continue;
    const [bar, text] = part.children;
    bar.hidden = false;
    bar.value = Math.min(1, at.done / Math.max(at.total, 1));
    text.textContent = `${at.n_stages > 1 ? `${at.number}/${at.n_stages} ` : ""}${at.stage}, ${at.done.toLocaleString("en")} of ${at.total.toLocaleString("en")}`;
  }
}

// --- what jobs were estimated to cost: it comes after the list, for the first estimate of a config takes a moment ---

function showCosts() {
  for (const row of document.querySelectorAll("#list tr[data-job]")) row.querySelector("[data-cost]").textContent = costs.get(row.dataset.job) ?? "";
}

async function tellCosts() {
  const wanted = [...document.querySelectorAll("#list tr[data-job]")].map((row) => row.dataset.job).filter((job) => !costs.has(job));
  for (let i = 0; i < wanted.length; i += 10) {
    const some = wanted.slice(i, i + 10);
    for (const job of some) costs.set(job, "");
    const found = await ask("GET", `/costs?${some.map((job) => `job=${job}`).join("&")}`).catch(() => ({}));
    for (const [job, cost] of Object.entries(found)) costs.set(job, inEpochs(cost));
    showCosts();
  }
}

// --- the list ---

let shown = document.getElementById("list").cloneNode(true);

async function renew() {
  const page = await pageNow();
  if (page === null) return;
  const [counts, fresh] = [document, page].map((one) => one.querySelectorAll(".filter .n"));
  counts.forEach((count, i) => { count.textContent = fresh[i].textContent; });
  const old = document.getElementById("list"), list = page.getElementById("list");
  if (list.isEqualNode(shown)) return;
  shown = list.cloneNode(true);
  const held = old.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
  const left = old.querySelector(".scroll")?.scrollLeft ?? 0, inside = old.contains(document.activeElement);
  showTimes(list);
  old.replaceWith(list);
  const scroll = list.querySelector(".scroll");
  if (scroll) scroll.scrollLeft = left;
  if (inside) ([...list.querySelectorAll("a")].find((one) => one.getAttribute("href") === held) ?? scroll ?? document.getElementById("main")).focus();
  showPlaces();
  showCosts();
  tellCosts();
}

const renewSoon = oneAtATime(renew, LEAST_MS);
let isCut = false;

follow(LIST, ({ news, trouble, signedOut }) => {
  if (news) {
    for (const place of news.places) places.set(place.job, place);
    for (const { id, state } of news.jobs) if (state !== "running") places.delete(id); // another attempt begins anew
    showPlaces();
    if (news.first || news.jobs.length || news.gone.length) renewSoon();
  }
  if (trouble === undefined) return;
  if (signedOut) showSignedOut();
  else showTrouble(trouble);
  if (isCut && !trouble) renewSoon();
  isCut = Boolean(trouble);
});

setInterval(() => {
  if (!document.hidden) document.querySelectorAll(RUNNING).forEach((row) => showTimes(row));
}, EVERY_MS);
tellCosts();
