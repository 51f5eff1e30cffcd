// One job: its buttons, and its parts renewed when its state changes.
import { ask, say } from "./ask.js";
import { inWords } from "./costs.js";
import { oneAtATime, pageNow } from "./renew.js";
import { showTimes } from "./times.js";

const live = document.getElementById("live");
const number = live.dataset.job;
const path = `/api/v1/jobs/${number}`;
const ACTIONS = {
  cancel: ["POST", `${path}/cancel`, "The job is asked to end."],
  retry: ["POST", `${path}/retry`, "The job is queued again."],
  pin: ["PUT", `${path}/pin`, "The job is kept from being deleted."],
  unpin: ["DELETE", `${path}/pin`, "The job may be deleted."],
};

// The server makes the parts; those that differ are put in the place of the old ones. What is open stays open.
async function renew() {
  const page = await pageNow();
  if (page === null) return;
  for (const part of document.querySelectorAll("[data-part]")) {
    const fresh = page.querySelector(`[data-part="${part.dataset.part}"]`);
    if (!fresh) continue;
    const held = part.contains(document.activeElement);
    part.querySelectorAll("details").forEach((one, i) => { if (one.open) fresh.querySelectorAll("details")[i]?.setAttribute("open", ""); });
    showTimes(fresh);
    part.replaceWith(fresh);
    if (held) (fresh.querySelector("button, a, summary") || document.getElementById("main")).focus();
  }
}

function isSure() {
  const dialog = document.getElementById("sure");
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((told) => dialog.addEventListener("close", () => told(dialog.returnValue === "yes"), { once: true }));
}

async function act(action) {
  if (action === "delete") {
    if (!await isSure()) return;
    await ask("DELETE", path);
    location.assign("/jobs");
    return;
  }
  const [method, address, sentence] = ACTIONS[action];
  await ask(method, address);
  say(sentence);
  await renew();
  if (action === "retry") location.reload(); // its run begins anew
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-action]");
  if (!button) return;
  button.disabled = true;
  try {
    await act(button.dataset.action);
  } catch (error) {
    say(error.message);
  } finally {
    button.disabled = false;
  }
});

live.addEventListener("job", oneAtATime(renew));

const found = await ask("GET", `/costs?job=${number}`).catch(() => ({}));
if (found[number]) document.getElementById("cost").textContent = inWords(found[number]);
