// Reads the service's stream of events: one request for all jobs that are followed, and on behind the last event that came.

export const FIRST_WAIT_MS = 500, LONGEST_WAIT_MS = 10_000;
// The server says something every 15 seconds; a stream that is still for longer is dead, as after a sleep of the machine.
const STILL_MS = 40_000;

// Stands for the list of jobs, where a job's number stands otherwise.
export const LIST = "jobs";

// The events in a text of whole events: [{id, event, data}].
export function parse(text) {
  const found = [];
  for (const block of text.split(/\r?\n\r?\n/)) {
    const one = { id: null, event: "message", data: "" };
    let data = null;
    for (const line of block.split(/\r?\n/)) {
      const colon = line.indexOf(":");
      if (colon < 1) continue; // a comment, or nothing
      const name = line.slice(0, colon), value = line.slice(colon + 1).replace(/^ /, "");
      if (name === "data") data = data === null ? value : `${data}\n${value}`;
      else if (name === "event" || name === "id") one[name] = value;
    }
    if (data !== null) found.push({ ...one, data });
  }
  return found;
}

// hear(job, told): told has events ([[id, event], ...]), or row (the job as it is now), or trouble (a sentence; "" when it is over),
// with signedOut if the session has ended: then nothing is asked for until somebody follows or looks again. Of LIST it has news.
export class Reader {
  constructor(hear, address = "/api/v1/events") {
    this.hear = hear;
    this.address = address;
    this.after = new Map(); // job -> the id of its last event, while it is followed
    this.known = new Map(); // the same, also when it is not
    this.control = null;
    this.wait = FIRST_WAIT_MS;
    this.soon = null;
    this.troubled = false;
    this.resting = false; // signed out
  }

  follow(job, after = 0) {
    const last = Math.max(after, this.known.get(job) ?? 0);
    this.known.set(job, last);
    if (this.after.has(job) && !this.resting) return;
    if (!this.after.has(job)) this.after.set(job, last);
    this.wait = FIRST_WAIT_MS;
    this.again(20);
  }

  // Somebody looks: what waits for its next try is tried at once.
  wake() {
    if (!this.troubled) return;
    this.wait = FIRST_WAIT_MS;
    this.again(20);
  }

  leave(job, forget = false) {
    if (forget) this.known.delete(job);
    if (this.after.delete(job)) this.again(20);
  }

  // Begin a new request, once for all changes that come together.
  again(ms) {
    clearTimeout(this.soon);
    this.soon = setTimeout(() => {
      this.control?.abort();
      this.control = null;
      if (this.after.size) this.read();
    }, ms);
  }

  async read() {
    const control = this.control = new AbortController();
    this.resting = false;
    let delay = null, out = false, trouble = "The service does not answer; trying again.";
    try {
      const wanted = [...this.after].map(([job, last]) => job === LIST ? "jobs=1" : `follow=${job}:${last}`).join("&");
      const answer = await fetch(`${this.address}?${wanted}`, { signal: control.signal, credentials: "same-origin", cache: "no-store" });
      if (answer.ok) {
        await this.take(answer.body, control);
        trouble = "The stream was cut; connecting again.";
      } else if (answer.status === 401 || answer.status === 403) {
        out = true;
        trouble = "You are signed out: sign in again to see what goes on.";
      } else {
        delay = 1000 * Number(answer.headers.get("Retry-After") || 0) || null;
        trouble = `The service answers ${answer.status}; trying again.`;
      }
    } catch (error) {
      if (this.control !== control) return; // it was ended for another request
    }
    if (this.control !== control || !this.after.size) return;
    this.troubled = true;
    this.resting = out;
    for (const job of this.after.keys()) this.hear(job, { trouble, signedOut: out });
    if (out) return;
    this.again(delay ?? this.wait * (0.5 + Math.random() / 2));
    this.wait = Math.min(2 * this.wait, LONGEST_WAIT_MS);
  }

  async take(body, control) {
    const pieces = body.pipeThrough(new TextDecoderStream()).getReader();
    let left = "";
    for (;;) {
      const still = setTimeout(() => pieces.cancel().catch(() => {}), STILL_MS);
      const { value, done } = await pieces.read();
      clearTimeout(still);
      if (done || this.control !== control) return;
      this.wait = FIRST_WAIT_MS;
      if (this.troubled) {
        this.troubled = false;
        for (const job of this.after.keys()) this.hear(job, { trouble: "" });
      }
      left += value;
      const end = left.lastIndexOf("\n\n");
      if (end < 0) continue;
      this.sort(parse(left.slice(0, end)));
      left = left.slice(end + 2);
    }
  }

  // Hand on what came, each job's events together and each event once.
  sort(found) {
    const batches = new Map();
    for (const { id, event, data } of found) {
      let said;
      try {
        said = JSON.parse(data);
      } catch {
        continue;
      }
      if (event === "message") {
        const [job, place] = String(id).split(":").map(Number);
        if (!this.after.has(job) || !(place > this.after.get(job))) continue;
        this.after.set(job, place);
        this.known.set(job, place);
        if (!batches.has(job)) batches.set(job, []);
        batches.get(job).push([place, said]);
        continue;
      }
      if (event === "jobs") {
        if (this.after.has(LIST)) this.hear(LIST, { news: said });
        continue;
      }
      const job = said.id;
      if (!this.after.has(job)) continue;
      this.flush(batches, job);
      if (event === "job") this.hear(job, { row: said });
      else if (event === "gone") this.hear(job, { trouble: "The job is gone: it was deleted." });
      if (event === "gone" || ["succeeded", "failed", "cancelled"].includes(said.state)) this.after.delete(job); // no more will come
    }
    for (const job of [...batches.keys()]) this.flush(batches, job);
  }

  flush(batches, job) {
    const events = batches.get(job);
    batches.delete(job);
    if (events) this.hear(job, { events });
  }
}
