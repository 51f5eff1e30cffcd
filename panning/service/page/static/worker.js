// All tabs share this worker, and it has one stream for all jobs that they show: browsers open six connections to a server.
import { fresh, take } from "./course.js";
import { LIST, Reader } from "./reader.js";

const jobs = new Map(); // job, or LIST -> {course, row, trouble, places, ports}

const reader = new Reader((job, told) => {
  const one = jobs.get(job);
  if (!one) return;
  if (told.events) take(one.course, told.events);
  for (const place of told.news?.places ?? []) one.places.set(place.job, place);
  for (const { id, state } of told.news?.jobs ?? []) if (state !== "running") one.places.delete(id);
  if (told.row) one.row = told.row;
  if (told.trouble !== undefined) one.trouble = told.signedOut ? "" : told.trouble; // who comes later has just signed in
  for (const port of one.ports) port.postMessage({ job, ...told });
});

function leave(port) {
  for (const [job, one] of jobs) {
    if (one.ports.delete(port) && !one.ports.size) {
      jobs.delete(job);
      reader.leave(job, true);
    }
  }
}

self.addEventListener("connect", (event) => {
  const [port] = event.ports;
  port.addEventListener("message", ({ data }) => {
    if (data.wake) {
      reader.wake();
      return;
    }
    leave(port);
    if (data.leave) return;
    const job = data.follow;
    if (!jobs.has(job)) jobs.set(job, { course: fresh(), row: null, trouble: "", places: new Map(), ports: new Set() });
    const one = jobs.get(job);
    one.ports.add(port);
    if (job === LIST) port.postMessage({ job, trouble: one.trouble, news: { first: true, jobs: [], gone: [], places: [...one.places.values()] } });
    else port.postMessage({ job, course: one.course, row: one.row, trouble: one.trouble });
    reader.follow(job, one.course.last);
  });
  port.start();
});
