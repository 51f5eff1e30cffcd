// Of every page: times in the reader's zone, and the way out.
import { ask, say } from "./ask.js";
import { showTimes } from "./times.js";

showTimes();
document.getElementById("sign-out")?.addEventListener("click", async () => {
  try {
    await ask("DELETE", "/session");
    location.assign("/signin");
  } catch (error) {
    say(error.message);
  }
});
