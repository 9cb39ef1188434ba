// A run over one recording of sensors: scoring it, and the window that is looked at.

import { call } from "./api.js";
import { mayPass, told } from "./batches.js";
import { drawChart } from "./chart.js";
import { readRows } from "./csv.js";
import { announce, byId, el, onWidth } from "./dom.js";
import { DECISIONS, decide, scoreText, short } from "./decision.js";
import { hear, state, tell } from "./store.js";
import { viewWindow } from "./window.js";

const TABLE_ROWS = 100;
let width = 0;

/** Scores a csv file, in place of whatever run was there. */
export async function scoreRecording(file, chosen, stride) {
  state.run?.stop?.abort();
  const { name, version, card } = chosen;
  const fpr = card.calibration.fpr;
  const run = { task: "timeseries", noun: "windows", model: name, version, card, fpr, defaultFpr: fpr, file, stride, results: [], selected: null, problem: "", warnings: [] };
  run.stop = new AbortController();
  state.run = run;
  tell("run");
  await score(run);
}

async function score(run) {
  run.problem = "";
  run.again = false;
  run.waits = false;
  run.busy = true;
  show(run);
  try {
    const text = await run.file.text();
    const query = { model: run.model, version: run.version, stride: run.stride };
    const answer = await call("score/timeseries", { method: "POST", body: text, query, headers: { "Content-Type": "text/csv" }, signal: run.stop.signal });
    run.rows = readRows(text);
    run.labels = new Map();
    Object.assign(run, { results: answer.results, warnings: answer.warnings, requestId: answer.request_id });
  } catch (error) {
    if (error.name === "AbortError") return;
    run.problem = told(error);
    run.again = mayPass(error);
    run.waits = error.status === 401;
  }
  run.busy = false;
  if (state.run !== run) return;
  tell("results");
  show(run);
  announce(run.problem || `${run.results.length} windows scored.`);
  const scored = run.results.filter((r) => r.p_value !== null);
  const first = scored.reduce((best, r) => (best && best.raw_score >= r.raw_score ? best : r), null) ?? run.results[0];
  if (first) selectWindow(run, first.index);
}

/** Looks at one window. */
export function selectWindow(run, index) {
  run.selected = Math.min(Math.max(index, 0), run.results.length - 1);
  drawAll(run);
  viewWindow(run, run.results[run.selected]);
}

function drawAll(run) {
  if (width && run.results.length) drawChart(run, width, (index) => selectWindow(run, index));
}

function show(run) {
  byId("series-name").textContent = run.file.name;
  const problem = byId("series-problem");
  problem.hidden = !run.problem;
  problem.textContent = run.problem;
  byId("series-again").hidden = !run.again;
  byId("series-busy").hidden = !run.busy;
  byId("series-warnings").replaceChildren(...run.warnings.map((text) => el("li", { text })));
  byId("series-size").textContent = run.rows ? `${run.rows.lines.length.toLocaleString("en")} rows · ${run.results.length.toLocaleString("en")} windows` : "";
  byId("series-body").hidden = !run.results.length;
  byId("window").hidden = !run.results.length;
  drawAll(run);
  showTable(run);
}

function showTable(run) {
  const rows = run.results.slice(0, TABLE_ROWS).map((r) =>
    el("tr", {},
      el("th", { scope: "row", text: `${r.start}–${r.end - 1}` }),
      el("td", { text: scoreText(r.score) }),
      el("td", { text: short(r.p_value) }),
      el("td", { text: short(r.raw_score, 4) }),
      el("td", { text: DECISIONS[decide(r, run.fpr, run.card)].word + (r.reason ? `: ${r.reason.replaceAll("_", " ")}` : "") }),
      el("td", { text: r.contributions[0]?.column ?? "–" })));
  byId("windows-table").replaceChildren(...rows);
  byId("windows-more").textContent = run.results.length > TABLE_ROWS ? `The first ${TABLE_ROWS} of ${run.results.length}; the csv below holds all.` : "";
}

export function wireSeries() {
  const mine = (then) => () => state.run?.task === "timeseries" && then(state.run);
  hear("rate", mine((run) => {
    drawAll(run);
    showTable(run);
    viewWindow(run, run.results[run.selected], true);
  }));
  hear("key-given", mine((run) => run.waits && score(run)));
  byId("series-again").addEventListener("click", mine(score));
  onWidth(byId("chart"), (now) => {
    width = now;
    if (state.run?.task === "timeseries") drawAll(state.run);
  });
}
