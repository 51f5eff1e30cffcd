// What keeps a page from being up to date stands in one place of every page while it lasts.

const place = document.getElementById("trouble");

// text: a sentence; "" when it is over.
export function showTrouble(text) {
  place.hidden = !text;
  delete place.dataset.out;
  if (place.textContent !== text) place.textContent = text;
}

// The session has ended: the way to the sign-in, which leads back here.
export function showSignedOut() {
  if (place.dataset.out) return;
  const link = document.createElement("a");
  link.href = `/signin?next=${encodeURIComponent(location.pathname + location.search)}`;
  link.textContent = "sign in again";
  place.replaceChildren("You are signed out: ", link, " to see what goes on.");
  place.dataset.out = "true";
  place.hidden = false;
}

// Somebody has signed in again, in another tab.
export function showSignedIn() {
  if (place.dataset.out) showTrouble("");
}
