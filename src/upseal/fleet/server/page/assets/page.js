// Keeps the page up to date while somebody looks: asks for the same HTML again, and puts in what
// has changed. Without it the page works as well, by reloading.
"use strict";
(() => {
  const every = 5000;
  const pause = document.getElementById("pause");
  const trouble = document.getElementById("trouble");
  let paused = false;
  let asking = false;
  let timer = 0;

  function put(old, fresh) {
    // What somebody has opened stays open.
    for (const details of old.querySelectorAll("details[open]")) {
      const same = fresh.querySelector("#" + CSS.escape(details.id));
      if (same) same.open = true;
    }
    old.className = fresh.className;
    if (old.innerHTML === fresh.innerHTML) return;
    const marked = getSelection();
    if (marked && marked.type === "Range" && old.contains(marked.anchorNode)) return;
    const focused = old.contains(document.activeElement) ? document.activeElement : null;
    const scrolled = [...old.querySelectorAll(".scroll")].map((box) => box.scrollLeft);
    const id = focused && (focused.id || (focused.closest("details") || {}).id);
    old.replaceChildren(...fresh.childNodes);
    [...old.querySelectorAll(".scroll")].forEach((box, i) => { box.scrollLeft = scrolled[i] || 0; });
    if (!id) return;
    const again = document.getElementById(id);
    const target = again && again.tagName === "DETAILS" ? again.querySelector("summary") : again;
    if (target) target.focus({ preventScroll: true });
  }

  function say(text) {
    if (trouble.textContent !== text) trouble.textContent = text;
    trouble.hidden = !text;
  }

  async function ask() {
    if (asking || paused || document.visibilityState !== "visible") return;
    asking = true;
    try {
      const answer = await fetch("/admin/live" + location.search, {
        credentials: "same-origin", cache: "no-store", redirect: "error",
        signal: AbortSignal.timeout(30000),
      });
      if (answer.status === 401) return location.reload();
      if (!answer.ok) throw new Error(String(answer.status));
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      for (const old of document.querySelectorAll("[data-live]")) {
        const now = fresh.getElementById(old.id);
        if (now) put(old, now);
      }
      say("");
    } catch (error) {
      say("The server does not answer. What stands here is old; it is asked again.");
    } finally {
      asking = false;
    }
  }

  function start() {
    clearInterval(timer);
    timer = setInterval(ask, every);
  }

  pause.hidden = false;
  pause.setAttribute("aria-pressed", "false");
  pause.addEventListener("click", () => {
    paused = !paused;
    pause.setAttribute("aria-pressed", String(paused));
    pause.textContent = paused ? "Go on" : "Pause";
    ask();
  });
  document.addEventListener("visibilitychange", ask);
  start();
})();
