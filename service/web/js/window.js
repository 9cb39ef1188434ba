// One window of a recording: what each sensor contributes, and its residuals over time.

import { call } from "./api.js";
import { told } from "./batches.js";
import { bytesOf, paintCells } from "./colours.js";
import { labelOf, partOf } from "./csv.js";
import { DECISIONS, decide, inWords, scoreText, short } from "./decision.js";
import { byId, el } from "./dom.js";
import { feedbackFor } from "./feedback.js";
import { state } from "./store.js";

const SETTLE_MS = 150; // of a key held down, only where it stops is asked for
let timer = 0;

/** Shows a window; with `only` the decision, the rest being there already. */
export function viewWindow(run, result, only = false) {
  if (!result) return;
  const decision = decide(result, run.fpr, run.card);
  const badge = byId("window-decision");
  badge.dataset.decision = decision;
  badge.replaceChildren(el("span", { className: "sign", "aria-hidden": "true", text: DECISIONS[decision].sign }), ` ${DECISIONS[decision].word}`);
  if (only) return;
  const { times } = run.rows;
  byId("window-name").textContent = times
    ? `${labelOf(times, result.start, true)} to ${labelOf(times, result.end - 1)}`
    : `Rows ${result.start} to ${result.end - 1}`;
  byId("window-words").textContent = inWords(result, run.card, run.noun);
  const rows = [
    ["Score", scoreText(result.score)],
    ["p-value", short(result.p_value)],
    ["Raw score", short(result.raw_score, 4)],
    [`Threshold at rate ${short(result.fpr)}`, short(result.threshold, 4)],
    ["Rows", `${result.start} to ${result.end - 1}`],
    ["Model", `${run.model}/${run.version}`],
  ];
  byId("window-list").replaceChildren(...rows.map(([name, value]) => el("div", {}, el("dt", { text: name }), el("dd", { text: value }))));
  run.labels.set(result.index, run.labels.get(result.index) ?? {});
  byId("window-feedback").replaceChildren(result.p_value === null ? "" : feedbackFor(run.labels.get(result.index), run.requestId, result.index));
  showShares(run, result);
}

function showShares(run, result) {
  clearTimeout(timer);
  const body = byId("shares");
  byId("shares-table").hidden = !result.contributions.length;
  const most = result.contributions[0]?.share ?? 1;
  body.replaceChildren(...result.contributions.map(({ column, share }) => {
    const bar = el("span", { className: "bar", style: { width: `${(share / most) * 100}%` } });
    return el("tr", {},
      el("th", { scope: "row", text: column, title: column }),
      el("td", { className: "share" }, el("span", { className: "track" }, bar), el("span", { className: "number", text: `${(share * 100).toFixed(1)} %` })),
      el("td", { className: "strip" }, el("canvas", { width: 1, height: 1, "aria-hidden": "true" })));
  }));
  const note = byId("strip-note");
  note.textContent = result.contributions.length ? "Reading the residuals …" : "";
  if (result.contributions.length) timer = setTimeout(() => showStrips(run, result, note), SETTLE_MS);
}

/** The residuals, time x sensor, of one window: its rows alone are sent, and score the same. */
async function residualsOf(run, result) {
  const { window, smoothing } = run.card.input;
  const start = result.start - (smoothing - 1) / 2;
  const body = partOf(run.rows, start, start + window + smoothing - 1);
  const answer = await call("score/timeseries", {
    method: "POST", body, headers: { "Content-Type": "text/csv" },
    query: { model: run.model, version: run.version, map: "float32" },
  });
  return answer.results[0];
}

async function showStrips(run, result, note) {
  const chosen = () => state.run === run && run.results[run.selected] === result;
  try {
    const { residual_map: map } = await residualsOf(run, result);
    if (!chosen()) return;
    const values = new Float32Array(bytesOf(map.data).buffer);
    const columns = run.card.input.columns.map((column) => column.name);
    const scale = run.card.calibration.map_scale;
    for (const row of byId("shares").rows) {
      const at = columns.indexOf(row.cells[0].textContent);
      const strip = Array.from({ length: map.height }, (_, t) => values[t * map.width + at]);
      const canvas = row.querySelector("canvas");
      paintCells(canvas, [strip], scale);
      const peak = strip.indexOf(Math.max(...strip));
      canvas.removeAttribute("aria-hidden");
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `highest residual ${short(strip[peak])} at row ${result.start + peak}`);
    }
    note.textContent = `Residuals of ${map.height} rows, left to right; colours end at ${short(scale)}.`;
    byId("shares-table").dataset.window = result.index;
  } catch (error) {
    if (chosen()) note.textContent = `No residuals: ${told(error)}`;
  }
}
