// A token is exchanged for a cookie that scripts cannot read. Whoever came by a link from elsewhere is signed in already: the
// browser left the cookie out of that first request alone.
import { ask } from "./ask.js";

const form = document.getElementById("signin");
const wrong = document.getElementById("token-wrong");

function goOn() {
  const next = new URL(form.dataset.next, location.origin);
  location.replace(next.origin === location.origin ? next.pathname + next.search + next.hash : "/jobs");
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  wrong.textContent = "";
  form.token.removeAttribute("aria-invalid");
  const token = form.token.value.trim();
  const button = form.querySelector("button");
  button.disabled = true;
  try {
    if (!token) throw new Error("Give a token.");
    await ask("POST", "/session", { token });
    goOn();
  } catch (error) {
    wrong.textContent = error.message;
    form.token.setAttribute("aria-invalid", "true");
    form.token.focus();
  } finally {
    button.disabled = false;
  }
});

form.token.focus();
if ((await ask("GET", "/session").catch(() => ({}))).signed_in) goOn();
