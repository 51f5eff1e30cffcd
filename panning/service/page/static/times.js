// Times are sent in UTC and shown in the reader's zone.

const SHOWN = new Intl.DateTimeFormat(undefined, { year: "numeric", month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" });
const EXACT = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "long" });

export function shown(iso) {
  return SHOWN.format(new Date(iso));
}

// 3 s, 2 min 05 s, 1 h 07 min, 3 d 4 h
export function lasting(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  const two = (n) => String(n).padStart(2, "0");
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${two(whole % 60)} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${two(Math.floor(whole / 60) % 60)} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor(whole / 3600) % 24} h`;
}

export function showTimes(root = document) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    const at = new Date(time.dateTime);
    time.textContent = SHOWN.format(at);
    time.title = `${EXACT.format(at)}; ${time.dateTime}`;
  }
  for (const span of root.querySelectorAll("[data-from]")) {
    const to = span.dataset.to ? new Date(span.dataset.to) : new Date();
    span.textContent = lasting((to - new Date(span.dataset.from)) / 1000);
  }
}
