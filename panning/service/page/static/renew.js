// Parts of a page are renewed from the page as the server has it now.
import { FIRST_WAIT_MS, LONGEST_WAIT_MS } from "./reader.js";
import { showSignedIn, showSignedOut } from "./trouble.js";

const after = (ms) => new Promise((done) => setTimeout(done, ms));

// The page as it is now; null for whoever is signed out, who is told so.
export async function pageNow() {
  const answer = await fetch(location.href, { credentials: "same-origin", cache: "no-store" });
  if (answer.redirected) {
    showSignedOut();
    return null;
  }
  if (!answer.ok) throw new Error(`The service answers ${answer.status}.`);
  showSignedIn();
  return new DOMParser().parseFromString(await answer.text(), "text/html");
}

// A function that asks for a step: one runs at a time, once more if it was asked for meanwhile, and what fails is tried again
// with growing pauses. leastMs: between two steps.
export function oneAtATime(step, leastMs = 0) {
  let asked = false, running = false;
  return async () => {
    asked = true;
    if (running) return;
    running = true;
    let wait = FIRST_WAIT_MS;
    while (asked) {
      asked = false;
      try {
        await step();
        wait = FIRST_WAIT_MS;
        await after(leastMs);
      } catch {
        asked = true;
        await after(wait);
        wait = Math.min(2 * wait, LONGEST_WAIT_MS);
      }
    }
    running = false;
  };
}
