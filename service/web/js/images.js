// A run of images: scoring them, the grid of all, and which one is looked at.

import { Problem } from "./api.js";
import { mayPass, scoreAll, told } from "./batches.js";
import { DECISIONS, decide, scoreText } from "./decision.js";
import { announce, byId, el, reveal } from "./dom.js";
import { thumbnail } from "./residuals.js";
import { hear, state, tell } from "./store.js";
import { viewImage } from "./viewer.js";

const TILE = 240;
const FEW = 8; // that fit in a row above the one looked at
const ORDERS = {
  unusual: (a, b) => rank(a) - rank(b) || (b.result?.raw_score ?? 0) - (a.result?.raw_score ?? 0) || a.id - b.id,
  given: (a, b) => a.id - b.id,
  name: (a, b) => a.file.name.localeCompare(b.file.name, "en", { numeric: true }) || a.id - b.id,
};

/** p-value first; what failed after what was scored, what waits last. */
const rank = (item) => item.result?.p_value ?? (item.status === "failed" ? 2 : 3);

/** The decision on an item at the rate of the run. */
export const decisionOf = (run, item) =>
  item.status === "failed" ? "failed" : item.result ? decide(item.result, run.fpr, run.card) : null;

/** Begins a run, or adds to the one of the same model that is there. */
export function scoreFiles(files, chosen) {
  const before = state.run;
  const same = before?.task === "image" && before.model === chosen.name && before.version === chosen.version;
  const run = same ? before : newRun(chosen);
  const first = run.items.length;
  run.items.push(...[...files].map((file, i) => ({ id: first + i, file, status: "waiting" })));
  state.run = run;
  if (!same) {
    before?.stop?.abort();
    byId("grid").replaceChildren();
  }
  for (const item of run.items.slice(first)) addTile(run, item);
  tell("run");
  go(run);
}

function newRun({ name, version, card }) {
  const fpr = card.calibration.fpr;
  return { task: "image", noun: "images", model: name, version, card, fpr, defaultFpr: fpr, items: [], selected: null, picked: false, problem: "", note: "" };
}

/** Scores what waits. */
async function go(run) {
  if (run.stop) return; // the next round of the loop below takes it
  run.problem = "";
  run.stop = new AbortController();
  try {
    while (waiting(run).length) {
      await scoreAll(waiting(run), { model: run.model, version: run.version, map: "png" }, {
        signal: run.stop.signal,
        sending: (batch) => batch.forEach((item) => change(run, item, { status: "sending", error: null })),
        done: (item, result, answer) => change(run, item, { status: "done", result, requestId: answer.request_id }),
        failed: (item, error) => change(run, item, { status: "failed", error }),
        note: (text) => {
          run.note = text;
          tell("progress");
        },
      });
    }
  } catch (error) {
    if (error.name !== "AbortError") run.problem = told(error);
    if (!(error instanceof Problem || error.name === "AbortError" || error.name === "Error")) console.error(error);
  }
  for (const item of run.items) if (item.status === "sending") change(run, item, { status: "waiting" });
  run.stop = null;
  run.note = "";
  if (state.run !== run) return;
  tell("progress");
  tell("results");
  announce(run.problem || `${count(run, "done")} of ${run.items.length} images scored.`);
}

const waiting = (run) => run.items.filter((item) => item.status === "waiting");
export const count = (run, status) => run.items.filter((item) => item.status === status).length;

let soon = 0;
function change(run, item, values) {
  Object.assign(item, values);
  if (state.run !== run) return;
  showTile(run, item);
  if (item.status === "done") paint(run, item);
  if (run.selected === item && (item.result || item.error)) viewImage(run, item);
  cancelAnimationFrame(soon);
  soon = requestAnimationFrame(() => {
    arrange(run);
    if (!run.picked) select(run, [...run.items].sort(ORDERS.unusual).find((i) => i.result || i.error));
    tell("progress");
    tell("results");
  });
}

/* ---- the grid ---- */

function addTile(run, item) {
  const canvas = el("canvas", { width: 1, height: 1 });
  item.tile = el("button", { type: "button", className: "tile", onclick: () => pick(run, item) },
    el("span", { className: "frame" }, canvas),
    el("span", { className: "tile-name", text: item.file.name }),
    el("span", { className: "tile-line" }));
  item.cell = el("li", {}, item.tile);
  byId("grid").append(item.cell);
  showTile(run, item);
}

function showTile(run, item) {
  const decision = decisionOf(run, item);
  const word = decision ? DECISIONS[decision].word : { sending: "Scoring …", waiting: "Waiting" }[item.status];
  item.tile.dataset.decision = decision ?? item.status;
  item.tile.setAttribute("aria-pressed", String(run.selected === item));
  item.tile.title = item.file.name;
  item.tile.lastChild.replaceChildren(
    el("span", { className: "sign", "aria-hidden": "true", text: decision ? DECISIONS[decision].sign : "…" }),
    el("span", { text: ` ${word} ` }),
    item.result ? el("span", { className: "number", text: scoreText(item.result.score) }) : "");
}

async function paint(run, item) {
  await thumbnail(item.tile.querySelector("canvas"), item.file, item.result.residual_map, run.card.calibration.map_scale, TILE);
}

/** Tiles in the order asked for; those that are in place stay, so that focus is kept. */
function arrange(run) {
  const grid = byId("grid");
  const order = [...run.items].sort(ORDERS[byId("order").value]);
  const focused = document.activeElement;
  order.forEach((item, i) => {
    if (grid.children[i] !== item.cell) grid.insertBefore(item.cell, grid.children[i] ?? null);
  });
  if (focused && focused !== document.activeElement && grid.contains(focused)) focused.focus({ preventScroll: true });
}

function pick(run, item) {
  run.picked = true; // from now on the page does not choose by itself
  select(run, item, true);
}

/** Looks at one item. */
function select(run, item, move = false) {
  if (!item) return;
  const before = run.selected;
  if (before === item && !move) return;
  run.selected = item;
  if (before) showTile(run, before);
  showTile(run, item);
  viewImage(run, item);
  if (move) reveal(byId("viewer"));
}

/** The neighbour of the selected item, in the order of the grid. */
function step(by) {
  const run = state.run;
  const order = [...run.items].sort(ORDERS[byId("order").value]);
  const item = order[order.indexOf(run.selected) + by];
  run.picked = true;
  if (item) select(run, item);
}

export function wireImages() {
  byId("order").addEventListener("change", () => state.run && arrange(state.run));
  byId("stop").addEventListener("click", () => state.run?.stop?.abort());
  byId("go-on").addEventListener("click", () => {
    const run = state.run;
    if (run.task !== "image") return;
    for (const item of run.items) {
      if (item.status === "failed" && mayPass(item.error)) change(run, item, { status: "waiting" });
    }
    go(run);
  });
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  hear("key-given", () => state.run?.task === "image" && waiting(state.run).length && go(state.run));
  hear("rate", () => state.run?.task === "image" && state.run.items.forEach((item) => showTile(state.run, item)));
  hear("progress", showProgress);
  hear("run", showProgress);
}

function showProgress() {
  const run = state.run;
  const images = run?.task === "image";
  const total = images ? run.items.length : 0;
  const settled = images ? count(run, "done") + count(run, "failed") : 0;
  const failed = images ? count(run, "failed") : 0;
  byId("many").hidden = !images || total < 2;
  byId("split").classList.toggle("lots", total > FEW);
  byId("progress").hidden = !images || (total < 2 && !run.problem) || (settled === total && !failed && !run.problem);
  byId("step").hidden = !images || total < 2;
  if (!images) return;
  const bar = byId("progress-bar");
  bar.max = total;
  bar.value = settled;
  bar.hidden = settled === total;
  byId("stop").hidden = !run.stop || settled === total;
  const again = run.items.some((item) => item.status === "failed" && mayPass(item.error));
  byId("go-on").hidden = Boolean(run.stop) || (settled === total && !again);
  byId("progress-text").textContent = [
    `${settled - failed} of ${total} scored`,
    failed ? `${failed} could not be` : "",
    !run.stop && settled < total ? `${total - settled} not sent` : "",
    run.note,
  ].filter(Boolean).join(" · ");
  const problem = byId("run-problem");
  problem.textContent = run.problem;
  problem.hidden = !run.problem;
}
