// What goes on in a job, for one page: through the worker that all tabs share, or, in a browser without one, by its own stream.
import { fresh, take } from "./course.js";
import { FIRST_WAIT_MS, LONGEST_WAIT_MS, Reader } from "./reader.js";

// Follow a job, or the list of jobs (LIST). hear(told): told has course (all until now), events (what is new), row (the job as it is now), trouble
// (a sentence; "" when it is over), with signedOut if that is the trouble; of the list, news.
export function follow(job, hear) {
  const whenLookedAt = (wake) => document.addEventListener("visibilitychange", () => { if (!document.hidden) wake(); });
  if (typeof SharedWorker === "undefined") {
    const reader = new Reader((_, told) => hear(told));
    reader.follow(job);
    whenLookedAt(() => reader.wake());
    hear({ course: fresh() });
    return;
  }
  let port = null;
  const join = () => port.postMessage({ follow: job });
  const start = (waitMs) => {
    const worker = new SharedWorker("/static/worker.js", { type: "module", name: "panning" });
    worker.addEventListener("error", () => { // its script could not be fetched
      hear({ trouble: "The service does not answer; trying again." });
      setTimeout(() => start(Math.min(2 * waitMs, LONGEST_WAIT_MS)), waitMs);
    });
    port = worker.port;
    port.addEventListener("message", ({ data }) => hear(data));
    port.start();
    join();
  };
  start(FIRST_WAIT_MS);
  whenLookedAt(() => port.postMessage({ wake: true }));
  // A page that is left may come back as it was, and is told all anew.
  addEventListener("pagehide", () => port.postMessage({ leave: true }));
  addEventListener("pageshow", (event) => { if (event.persisted) join(); });
}

export { LIST } from "./reader.js";
export { take };
