// What goes on in a job, for one page: through the worker that all tabs share, or, in a browser without one, by its own stream.
import { fresh, take } from "./course.js";
import { Reader } from "./reader.js";

// Follow a job. hear(told): told has course (all until now), events (what is new), row (the job as it is now), trouble (a sentence).
export function follow(job, hear) {
  if (typeof SharedWorker === "undefined") {
    new Reader((_, told) => hear(told)).follow(job);
    hear({ course: fresh() });
    return;
  }
  const { port } = new SharedWorker("/static/worker.js", { type: "module", name: "panning" });
  port.addEventListener("message", ({ data }) => hear(data));
  port.start();
  const join = () => port.postMessage({ follow: job });
  join();
  // A page that is left may come back as it was, and is told all anew.
  addEventListener("pagehide", () => port.postMessage({ leave: true }));
  addEventListener("pageshow", (event) => { if (event.persisted) join(); });
}

export { take };
