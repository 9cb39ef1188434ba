// Scores over time, on the logarithmic scale of p-values, and below it the sensors they come from.

import { paintCells } from "./colours.js";
import { labelOf } from "./csv.js";
import { DECISIONS, decide, finest, reviewRate, scoreText, short } from "./decision.js";
import { byId, svg } from "./dom.js";

const [TOP, PLOT, BELOW] = [16, 180, 24];
const RIGHT = 10;
const SENSORS = 10;
const MOST_COLUMNS = 600;

let LEFT = 52; // of the scores; the names of the sensors get more where there is room

/** Draws a run; `pick(index)` is called for the window that was clicked, or moved to by keys. */
export function drawChart(run, width, pick) {
  const chart = byId("chart");
  LEFT = width > 640 ? 128 : 84;
  const last = run.rows.lines.length;
  const span = width - LEFT - RIGHT;
  const x = (row) => LEFT + (row / last) * span;
  const y = (p) => TOP + PLOT * (1 - Math.min(Math.log(p) / Math.log(finest(run.card)), 1));
  const middle = (r) => x((r.start + r.end) / 2);
  const selected = run.results[run.selected];
  chart.setAttribute("viewBox", `0 0 ${width} ${TOP + PLOT + BELOW}`);
  chart.setAttribute("height", TOP + PLOT + BELOW);
  chart.replaceChildren(
    ...zones(run, width, y),
    ...yTicks(run, width, y),
    ...xTicks(run, last, x),
    ...(selected ? [svg("rect", { class: "chosen", x: x(selected.start), y: TOP, width: Math.max(x(selected.end) - x(selected.start), 2), height: PLOT })] : []),
    ...unscorable(run, x),
    svg("path", { class: "scores", d: pathOf(run, middle, y, span) }),
    ...marks(run, middle, y, span),
    ...(selected?.p_value ? [svg("circle", { class: `point ${decide(selected, run.fpr, run.card)}`, cx: middle(selected), cy: y(selected.p_value), r: 5 })] : []));
  describe(chart, run, selected);
  chart.onclick = (event) => {
    const row = ((event.clientX - chart.getBoundingClientRect().left - LEFT) / span) * last;
    pick(nearest(run.results, row));
  };
  chart.onkeydown = (event) => {
    const far = Math.max(1, Math.round(run.results.length / 20));
    const by = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: far, PageDown: -far }[event.key];
    const to = { Home: 0, End: run.results.length - 1 }[event.key] ?? (by && run.selected + by);
    if (to === undefined) return;
    event.preventDefault();
    pick(to);
  };
  drawSensors(run, last, selected);
}

function describe(chart, run, selected) {
  if (!selected) return;
  const at = `rows ${selected.start} to ${selected.end - 1}, ${labelOf(run.rows.times, selected.start, true)}`;
  const said = selected.p_value === null ? "not scorable" : `score ${scoreText(selected.score)}, ${DECISIONS[decide(selected, run.fpr, run.card)].word}`;
  chart.setAttribute("aria-valuemax", run.results.length - 1);
  chart.setAttribute("aria-valuenow", run.selected);
  chart.setAttribute("aria-valuetext", `Window ${run.selected + 1} of ${run.results.length}, ${at}: ${said}`);
}

/** The index of the result whose middle is nearest to a row. */
function nearest(results, row) {
  const away = (r) => Math.abs((r.start + r.end) / 2 - row);
  return results.reduce((best, r) => (away(r) < away(best) ? r : best)).index;
}

function zones(run, width, y) {
  const [flag, review] = [y(run.fpr), y(reviewRate(run.fpr, run.card))];
  const at = { x: LEFT, width: width - LEFT - RIGHT };
  return [
    svg("rect", { class: "zone anomalous", ...at, y: TOP, height: flag - TOP }),
    svg("rect", { class: "zone review", ...at, y: flag, height: Math.max(review - flag, 0) }),
    svg("line", { class: "threshold", x1: LEFT, x2: width - RIGHT, y1: flag, y2: flag }),
    svg("text", { class: "zone-name anomalous", x: LEFT + 6, y: Math.max(flag - 6, 11) }, `flagged above ${short(1 - run.fpr, 4)}`),
  ];
}

/** Scores 0, 0.9, 0.99, ...: each line is ten times rarer among normal windows. */
function yTicks(run, width, y) {
  const found = [];
  for (let p = 1; p >= finest(run.card) * 0.99; p /= 10) {
    found.push(
      svg("line", { class: "grid-line", x1: LEFT, x2: width - RIGHT, y1: y(p), y2: y(p) }),
      svg("text", { class: "tick", x: LEFT - 8, y: y(p) + 4, "text-anchor": "end" }, p === 1 ? "0" : (1 - p).toFixed(Math.round(-Math.log10(p)))));
  }
  return [...found, svg("text", { class: "tick", x: LEFT - 8, y: 11, "text-anchor": "end" }, "score")];
}

function xTicks(run, last, x) {
  const count = Math.max(2, Math.min(6, Math.floor((x(last) - LEFT) / 110)));
  return Array.from({ length: count + 1 }, (_, i) => {
    const row = Math.min(Math.round((i / count) * last), last - 1);
    const anchor = i === 0 ? "start" : i === count ? "end" : "middle";
    return svg("text", { class: "tick", x: x(row), y: TOP + PLOT + 18, "text-anchor": anchor }, labelOf(run.rows.times, row));
  });
}

/** One line; of several windows on one pixel, the highest counts. */
function pathOf(run, middle, y, span) {
  const parts = [];
  let broken = true;
  for (const r of thinned(run.results, span)) {
    if (r.p_value === null) broken = true;
    else {
      parts.push(`${broken ? "M" : "L"}${middle(r).toFixed(1)} ${y(r.p_value).toFixed(1)}`);
      broken = false;
    }
  }
  return parts.join("");
}

function thinned(results, span) {
  const step = Math.ceil(results.length / span);
  if (step <= 1) return results;
  const found = [];
  for (let i = 0; i < results.length; i += step) {
    const some = results.slice(i, i + step);
    found.push(some.reduce((best, r) => (best.p_value === null || (r.p_value !== null && r.p_value < best.p_value) ? r : best)));
  }
  return found;
}

function marks(run, middle, y, span) {
  return thinned(run.results, span / 2)
    .map((r) => [r, decide(r, run.fpr, run.card)])
    .filter(([, decision]) => decision === "anomalous" || decision === "review")
    .map(([r, decision]) => svg("circle", { class: `dot ${decision}`, cx: middle(r), cy: y(r.p_value), r: 2.5 }));
}

function unscorable(run, x) {
  const runs = [];
  for (const r of run.results) {
    if (r.p_value !== null) continue;
    if (runs.length && r.start <= runs.at(-1)[1]) runs.at(-1)[1] = r.end;
    else runs.push([r.start, r.end]);
  }
  return runs.map(([start, end]) => svg("rect", { class: "gap", x: x(start), y: TOP + PLOT - 6, width: Math.max(x(end) - x(start), 1), height: 6 }));
}

/** Shares of the sensors that matter most, window by window. */
function drawSensors(run, last, selected) {
  const scored = run.results.filter((r) => r.contributions.length);
  byId("sensors").hidden = !scored.length;
  if (!scored.length) return;
  if (!run.sensors) run.sensors = overTime(run.results, scored);
  const { names, rows, scale, gaps } = run.sensors;
  byId("gap-legend").hidden = !gaps;
  paintCells(byId("sensor-cells"), rows, scale);
  byId("sensor-names").replaceChildren(...names.map((name) => Object.assign(document.createElement("li"), { textContent: name, title: name })));
  byId("sensor-scale").textContent = `${Math.round(scale * 100)} %`;
  const box = byId("sensor-box");
  const middle = (r) => (r.start + r.end) / 2 / last;
  box.style.setProperty("--left", `${LEFT}px`);
  box.style.setProperty("--from", String(middle(run.results[0])));
  box.style.setProperty("--to", String(middle(run.results.at(-1))));
  const mark = byId("sensor-mark");
  mark.hidden = !selected;
  if (selected) mark.style.setProperty("left", `${middle(selected) * 100}%`);
}

function overTime(results, scored) {
  const total = new Map();
  for (const r of scored) for (const { column, share } of r.contributions) total.set(column, (total.get(column) ?? 0) + share * r.raw_score);
  const names = [...total.keys()].sort((a, b) => total.get(b) - total.get(a)).slice(0, SENSORS);
  const count = Math.min(results.length, MOST_COLUMNS);
  const at = Array.from({ length: count }, (_, i) => results[Math.floor((i * results.length) / count)]);
  const shares = at.map((r) => r.contributions.length && new Map(r.contributions.map((c) => [c.column, c.share])));
  const rows = names.map((name) => shares.map((share) => (share ? share.get(name) ?? 0 : null)));
  const scale = Math.max(...rows.flat());
  return { names, rows, scale, gaps: shares.includes(0) };
}
