// The false-alarm rate: a slider below the p-values of all results, on one logarithmic axis, so
// that what lies right of the handle is what it flags. All from results at hand; no request.

import { decide, falseAlarms, finest, reviewRate, short } from "./decision.js";
import { announce, byId, onWidth, svg } from "./dom.js";
import { hear, state, tell } from "./store.js";

const STEPS = 1000;
const COARSEST = 0.5;
const [TOP, FLOOR, HEIGHT] = [14, 66, 94];
const [LEFT, RIGHT] = [12, 30];
const DOT = 3.5;
const CATCH = 4; // steps: a hand is not finer than this
const [DOUBT_FROM, DOUBT_SHARE] = [3, 0.8];

let width = 0;

/** Where a p-value lies: 0 for 1, 1 for the finest. */
const place = (p, card) => Math.min(Math.max(Math.log(p) / Math.log(finest(card)), 0), 1);
const rateAt = (value, card) => finest(card) ** (value / STEPS);

/** Results of the run that have a p-value. */
export function scoredOf(run) {
  const all = run.task === "image" ? run.items.map((item) => item.result) : run.results;
  return all.filter((result) => result && typeof result.p_value === "number");
}

/** Sets the rate; one within `catches` steps of the model's own is taken to mean that. */
function setRate(fpr, catches = 0.5) {
  const run = state.run;
  run.fpr = Math.min(Math.max(fpr, finest(run.card)), COARSEST);
  const away = Math.abs(place(run.fpr, run.card) - place(run.defaultFpr, run.card)) * STEPS;
  if (away < catches) run.fpr = run.defaultFpr;
  tell("rate");
}

function show() {
  const run = state.run;
  showDoubt(run);
  byId("rate").hidden = !run || !scoredOf(run).length;
  if (byId("rate").hidden) return;
  const { fpr, card } = run;
  const scored = scoredOf(run);
  const flagged = scored.filter((r) => decide(r, fpr, card) === "anomalous").length;
  const review = scored.filter((r) => decide(r, fpr, card) === "review").length;
  const alarms = short(falseAlarms(fpr, card));
  const input = byId("rate-input");
  input.value = String(Math.round(place(fpr, card) * STEPS));
  input.setAttribute("aria-valuetext", `rate ${short(fpr)}: flags ${flagged} of ${scored.length}; expects at most ${alarms} false alarms per 1,000 normal ${run.noun}`);
  byId("rate-value").textContent = short(fpr);
  byId("rate-reset").hidden = fpr === run.defaultFpr;
  byId("flagged").textContent = flagged.toLocaleString("en");
  byId("flagged-of").textContent = `of ${scored.length.toLocaleString("en")} flagged`;
  const total = run.task === "timeseries" ? run.results.length : scored.length;
  const without = total - scored.length;
  byId("unscored").textContent = without.toLocaleString("en");
  byId("unscored-why").textContent = `of ${total.toLocaleString("en")} not scorable`;
  byId("unscored-of").hidden = !without;
  byId("review-count").textContent = review.toLocaleString("en");
  byId("review-of").textContent = "for review";
  byId("alarms").textContent = alarms;
  byId("alarms-of").textContent = "false alarms per 1,000 normal";
  byId("rate-note").textContent = `Flagged: p ≤ ${short(fpr)}. Review: up to ${short(reviewRate(fpr, card))}. Expected on average, for normal ${run.noun} like the ${card.calibration.n.toLocaleString("en")} of the calibration, which allows rates from ${short(finest(card))}.`;
  if (width) draw(run, scored);
}

/** Says so where nearly all is further out than everything the model was calibrated on. */
function showDoubt(run) {
  const scored = run ? scoredOf(run) : [];
  const far = scored.filter((r) => r.p_value <= finest(run.card) * (1 + 1e-9)).length;
  const doubt = byId("doubt");
  const text = scored.length >= DOUBT_FROM && far >= DOUBT_SHARE * scored.length
    ? `Nearly all are unlike anything ${run.model} was trained on. Is it the right model?` : "";
  doubt.hidden = !text;
  if (doubt.textContent !== text) doubt.textContent = text;
}

/** Columns of dots, or bars where there are too many for dots. */
function draw(run, scored) {
  const { card, fpr } = run;
  const span = width - LEFT - RIGHT;
  const x = (p) => LEFT + place(p, card) * span;
  const columns = new Map();
  for (const result of scored) {
    const column = Math.round((x(result.p_value) - LEFT) / (2 * DOT + 1));
    if (!columns.has(column)) columns.set(column, []);
    columns.get(column).push(result);
  }
  const highest = Math.max(...[...columns.values()].map((c) => c.length));
  const room = FLOOR - TOP;
  const pitch = Math.min(2 * DOT + 1, room / highest);
  const marks = [...columns.values()].flatMap((column) => {
    const at = column.reduce((sum, r) => sum + x(r.p_value), 0) / column.length;
    const decisions = column.map((result) => decide(result, fpr, card)).sort();
    const y = (i) => FLOOR - 2 - i * pitch;
    if (pitch >= 2 * DOT) return decisions.map((d, i) => svg("circle", { class: `dot ${d}`, cx: at, cy: y(i + 0.5), r: DOT }));
    return [...new Set(decisions)].map((d) => {
      const [first, past] = [decisions.indexOf(d), decisions.lastIndexOf(d) + 1];
      return svg("rect", { class: `dot ${d}`, x: at - DOT, y: y(past), width: 2 * DOT, height: y(first) - y(past) });
    });
  });
  const [flag, review] = [x(fpr), x(reviewRate(fpr, card))];
  const plot = byId("rate-plot");
  plot.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  plot.setAttribute("height", HEIGHT);
  plot.replaceChildren(
    svg("rect", { class: "zone review", x: review, y: 0, width: Math.max(flag - review, 0), height: FLOOR }),
    svg("rect", { class: "zone anomalous", x: flag, y: 0, width: width - flag, height: FLOOR }),
    svg("line", { class: "axis", x1: 0, x2: width, y1: FLOOR, y2: FLOOR }),
    ...ticks(card).map((p) => svg("g", {},
      svg("line", { class: "axis", x1: x(p), x2: x(p), y1: FLOOR, y2: FLOOR + 4 }),
      svg("text", { class: "tick", x: x(p), y: FLOOR + 24, "text-anchor": p === 1 ? "start" : "middle" }, p === 1 ? "p = 1" : String(p)))),
    ...marks,
    svg("line", { class: "threshold", x1: flag, x2: flag, y1: 0, y2: FLOOR }),
    ...zoneNames(flag, review));
  plot.setAttribute("aria-label", `p-values of ${scored.length} ${run.noun} on a logarithmic axis from 1 to ${short(finest(card))}; what lies right of ${short(fpr)} is flagged`);
}

function zoneNames(flag, review) {
  const name = (text, x, room, cls) => (room > 7 * text.length ? [svg("text", { class: `zone-name ${cls}`, x, y: 11 }, text)] : []);
  return [
    ...name("not flagged", LEFT, review - LEFT - 8, "normal"),
    ...name("review", review + 5, flag - review - 8, "review"),
    ...name("flagged", flag + 6, width - flag - 8, "anomalous"),
  ];
}

function ticks(card) {
  const found = [1];
  while (found.at(-1) / 10 >= finest(card) * 0.99) found.push(Number((found.at(-1) / 10).toPrecision(1)));
  return found;
}

export function wireRate() {
  const input = byId("rate-input");
  input.max = STEPS;
  let byHand = false;
  input.addEventListener("pointerdown", () => (byHand = true));
  for (const end of ["change", "keydown", "pointercancel"]) input.addEventListener(end, () => (byHand = false));
  input.addEventListener("input", () => setRate(rateAt(Number(input.value), state.run.card), byHand ? CATCH : undefined));
  input.addEventListener("change", () => announce(input.getAttribute("aria-valuetext")));
  byId("rate-reset").addEventListener("click", () => {
    setRate(state.run.defaultFpr);
    input.focus();
  });
  for (const topic of ["rate", "results", "run"]) hear(topic, show);
  onWidth(byId("rate-plot"), (now) => {
    width = now;
    if (state.run) show();
  });
}
