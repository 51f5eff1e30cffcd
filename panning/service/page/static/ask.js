// Asks the service for something: the cookie goes along by itself, and the header shows that the page is ours.
import { showSignedIn, showSignedOut } from "./trouble.js";

export class ProblemError extends Error {
  // What the service refused: `code` tells problems apart, `errors` are the wrong values, each with its field.
  constructor(status, problem) {
    super(problem.detail || `The service answered ${status}.`);
    this.status = status;
    this.code = (problem.type || "").replace("urn:panning:", "");
    this.errors = problem.errors || [];
  }
}

export async function ask(method, path, body, headers = {}) {
  const sent = { "X-Panning": "1", ...headers };
  if (body !== undefined) sent["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, {
      method, headers: sent, body: body === undefined ? undefined : JSON.stringify(body), credentials: "same-origin",
    });
  } catch {
    throw new ProblemError(0, { detail: "The service cannot be reached." });
  }
  if (answer.ok) {
    showSignedIn();
    return answer.status === 204 ? null : answer.json();
  }
  const problem = await answer.json().catch(() => ({}));
  if (answer.status === 401 && location.pathname !== "/signin") {
    showSignedOut(); // what was written here stays
    problem.detail = "You are signed out.";
  }
  throw new ProblemError(answer.status, problem);
}

// A sentence for everybody: shown for a while, and read aloud.
let saying;
export function say(text) {
  const place = document.getElementById("said");
  place.textContent = text;
  clearTimeout(saying);
  saying = setTimeout(() => { place.textContent = ""; }, 8000);
}
