// The list of jobs: while some are at work, what has changed is looked up and shown.
import { showTimes } from "./times.js";

const EVERY_MS = 5000;

async function renew() {
  const answer = await fetch(location.href, { credentials: "same-origin" });
  if (!answer.ok || answer.redirected) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const old of document.querySelectorAll("#jobs tbody tr")) {
    const fresh = page.querySelector(`#jobs tr[data-job="${old.dataset.job}"]`);
    if (!fresh || fresh.dataset.state === old.dataset.state) continue;
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
