// How the service is, asked every few seconds; and that it is back, without a reload.

import { announce, byId, el } from "./dom.js";
import { address } from "./api.js";
import { hear, state, tell } from "./store.js";

const WORDS = { starting: "Asking …", ready: "Ready", "not-ready": "Not ready", away: "Service away" };
const WAIT_S = { starting: 1, ready: 5, "not-ready": 2, away: 2 };
const PATIENCE_MS = 4000;

let timer = 0;
let asking = false;
let known = ""; // models that are ready

async function ask() {
  try {
    const response = await fetch(address("readyz"), { cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
    const body = await response.json();
    if (body.ready) return ["ready", body.models];
    return ["not-ready", body.reasons ?? [body.detail ?? `HTTP ${response.status}`]];
  } catch {
    return ["away", ["It does not answer. What is on this page stays; asking again every 2 s."]];
  }
}

function show(now, lines) {
  const before = state.service;
  state.service = now;
  const box = byId("status");
  box.dataset.state = now;
  const more = now === "ready" ? ` · ${lines.length} ${lines.length === 1 ? "model" : "models"}` : "";
  byId("status-word").textContent = WORDS[now] + more;
  byId("status-lines").replaceChildren(...lines.map((line) => el("li", { text: line })));
  const lists = now === "ready" || now === "not-ready";
  const missed = !state.models && byId("key").hidden;
  const others = now === "ready" && known && lines.join() !== known; // another version, say
  if (now === "ready") known = lines.join();
  if (lists && (missed || others || (now !== before && before !== "starting"))) tell("reachable");
  if (now === before) return;
  if (before !== "starting" || now !== "ready") announce(`${WORDS[now]}. ${now === "ready" ? "" : lines.join(". ")}`);
  tell("service");
}

async function look() {
  clearTimeout(timer);
  if (asking) return;
  asking = true;
  const [now, lines] = await ask();
  asking = false;
  show(now, lines);
  clearTimeout(timer);
  if (!document.hidden) timer = setTimeout(look, WAIT_S[now] * 1000);
}

/** Begins to ask. */
export function watchService() {
  document.addEventListener("visibilitychange", () => document.hidden || look());
  hear("away", look);
  look();
}
