// The list of jobs: while some are at work, what has changed is looked up and shown.
import { ask } from "./ask.js";
import { inEpochs } from "./costs.js";
import { pageNow } from "./renew.js";
import { showTimes } from "./times.js";

const EVERY_MS = 5000;

async function renew() {
  const page = await pageNow();
  if (page === null) return;
  for (const old of document.querySelectorAll("#jobs tbody tr")) {
    const fresh = page.querySelector(`#jobs tr[data-job="${old.dataset.job}"]`);
    if (!fresh || fresh.dataset.state === old.dataset.state) continue;
    fresh.querySelector("[data-cost]").textContent = old.querySelector("[data-cost]").textContent;
    old.replaceWith(fresh);
  }
  const [counts, fresh] = [document, page].map((one) => one.querySelectorAll(".filter .n"));
  counts.forEach((count, i) => { count.textContent = fresh[i].textContent; });
}

setInterval(async () => {
  if (document.hidden || !document.querySelector('tr[data-state="running"], tr[data-state="queued"]')) return;
  await renew().catch(() => {}); // the service may be away for a while
  showTimes();
}, EVERY_MS);

// Estimates come after the list: the first one of a config takes a moment.
const rows = [...document.querySelectorAll("#jobs tbody tr")];
for (let i = 0; i < rows.length; i += 10) {
  const some = rows.slice(i, i + 10).map((row) => row.dataset.job);
  const found = await ask("GET", `/costs?${some.map((job) => `job=${job}`).join("&")}`).catch(() => ({}));
  for (const [job, cost] of Object.entries(found)) {
    const place = document.querySelector(`tr[data-job="${job}"] [data-cost]`);
    if (place) place.textContent = inEpochs(cost);
  }
}
