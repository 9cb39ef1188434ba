// The models the service has, which of them to score with, and the card of each.

import { call } from "./api.js";
import { told } from "./batches.js";
import { short } from "./decision.js";
import { byId, el } from "./dom.js";
import { hear, state, tell } from "./store.js";

const TASKS = { image: "images", timeseries: "sensors" };
const FIGURES = {
  auroc: "AUROC", auprc: "AUPRC", fpr_at_95_tpr: "FPR at 95 % TPR", pixel_auroc: "Pixel AUROC", aupro: "AUPRO", iou: "IoU", iou_oracle: "IoU at the best threshold",
};

let loading = null;
let failure = null;

/** Asks for all models, once at a time; those that were chosen stay so while they are there. */
export function loadModels() {
  loading ??= ask().finally(() => (loading = null));
  return loading;
}

async function ask() {
  const problem = byId("models-problem");
  try {
    const { models } = await call("models");
    state.models = models;
    state.cards.clear();
    for (const task of Object.keys(TASKS)) {
      const usable = models.filter((m) => m.task === task && m.active_version);
      const keeps = usable.some((m) => m.name === state.chosen[task]);
      const standard = usable.find((m) => m.default_for.includes(task)) ?? usable[0];
      if (!keeps) state.chosen[task] = standard?.name ?? null;
    }
    problem.hidden = true;
  } catch (error) {
    failure = error;
    problem.hidden = false;
    problem.textContent = `The models cannot be listed: ${told(error)}`;
    if (error.status === undefined && error.name !== "Error") throw error;
    return;
  }
  showChoice();
  tell("models");
  showCards();
}

/** What scoring a task needs: name, version and card of the chosen model. Throws what `call` does. */
export async function chosenFor(task) {
  if (!state.models) await loadModels();
  if (!state.models) throw failure;
  const wanted = () => state.models.find((m) => m.name === state.chosen[task]);
  for (;;) {
    const model = wanted();
    if (!model) {
      const vectors = task === "timeseries" && state.models.some((m) => m.task === "vectors");
      throw new Error(`No model for ${TASKS[task]} is being served.${vectors ? " A table of vectors is scored over HTTP: POST /score/vectors." : ""}`);
    }
    const [name, version] = [model.name, model.active_version];
    const card = await cardOf(model);
    // while the card came, another model may have been chosen, or this one got another version
    const now = wanted();
    if (now?.name === name && now.active_version === version) return { name, version, card };
  }
}

async function cardOf(model) {
  const version = model.active_version ?? model.versions.at(-1)?.version;
  let card = state.cards.get(model.name);
  if (!card) {
    card = call(`models/${encodeURIComponent(model.name)}/versions/${version}`);
    state.cards.set(model.name, card);
    card.catch(() => state.cards.delete(model.name));
  }
  return card;
}

function showChoice() {
  for (const [task, noun] of Object.entries(TASKS)) {
    const select = byId(`model-${task}`);
    const usable = state.models.filter((m) => m.task === task && m.active_version);
    select.replaceChildren(...usable.map((m) =>
      el("option", { value: m.name, selected: m.name === state.chosen[task], text: m.name + (m.status === "ready" ? "" : ` (${m.status.replace("_", " ")})`) })));
    if (!usable.length) select.append(el("option", { value: "", text: `none for ${noun}` }));
    select.disabled = !usable.length;
    showTitle(task);
  }
}

/** What the chosen model takes for normal, beside its name. */
export function showTitle(task) {
  const model = state.models?.find((m) => m.name === state.chosen[task]);
  byId(`title-${task}`).textContent = model?.title ?? "";
}

async function showCards() {
  const cards = await Promise.allSettled(state.models.map(cardOf));
  byId("cards").replaceChildren(...state.models.map((model, i) => cardView(model, cards[i].value ?? null)));
  if (!state.models.length) byId("cards").append(el("p", { text: "The service has no model." }));
}

function cardView(model, card) {
  const roles = model.default_for.map((task) => el("span", { className: "tag", text: `default for ${TASKS[task] ?? task}` }));
  const status = el("span", { className: "tag state", text: model.status.replace("_", " ") });
  status.dataset.state = model.status;
  const head = el("header", {},
    el("h3", { text: model.name }),
    el("div", { className: "tags" }, ...roles, model.status === "ready" ? null : status));
  if (!card?.calibration) {
    return el("article", { className: "card" }, head, el("p", { className: "problem", text: card?.reason ?? "Its card cannot be read." }));
  }
  const { calibration: c, provenance, metrics, input } = card;
  const facts = [
    ["Family", card.family],
    ["Input", inputInWords(input)],
    ["Learned from", provenance.data + (provenance.simulated ? " (simulated)" : "")],
    ["Calibration", `${c.n.toLocaleString("en")} normal items; finest rate ${short(c.finest_fpr)}, default ${short(c.fpr)}`],
  ];
  return el("article", { className: "card" }, head,
    el("p", { className: "card-title", text: card.title ?? "" }),
    ...(card.reason ? [el("p", { className: "problem", text: card.reason })] : []),
    intervals(metrics),
    el("dl", { className: "pairs" }, facts.map(([k, v]) => el("div", {}, el("dt", { text: k }), el("dd", { text: v })))),
    falseAlarmsSeen(metrics),
    el("details", {},
      el("summary", { text: "How it was made" }),
      el("p", { text: provenance.protocol }),
      el("p", { text: `${provenance.data_source} (${provenance.data_licence}).` }),
      el("p", { className: "quiet", text: `Version ${card.version}, ${provenance.created_utc.slice(0, 10)}, commit ${provenance.commit}, sha256 ${(card.sha256 ?? "not loaded").slice(0, 12)}` })));
}

function inputInWords(input) {
  if (input.kind === "image") return `${input.channels === 1 ? "grey" : "colour"} images, seen at ${input.width} × ${input.height}`;
  if (input.kind === "vectors") return `vectors of ${input.features} features; scored over HTTP (POST /score/vectors), not on this page`;
  return `${input.columns.length} sensors every ${short(input.period_s)} s, windows of ${input.window} rows`;
}

/** Figures with their intervals, each on a line from 0 to 1. */
function intervals(metrics) {
  const shown = Object.keys(FIGURES).filter((name) => metrics[name]);
  return el("ul", { className: "figures" }, shown.map((name) => {
    const { value, low, high, level } = metrics[name];
    const range = low === null ? "" : ` (${Math.round(level * 100)} %: ${low.toFixed(3)} to ${high.toFixed(3)})`;
    return el("li", { title: `${metrics[name].split}, n = ${metrics[name].n}; ${metrics[name].note ?? ""}` },
      el("span", { text: FIGURES[name] }),
      el("span", { className: "line", "aria-hidden": "true" },
        low === null ? null : el("span", { className: "range", style: { left: `${low * 100}%`, width: `${(high - low) * 100}%` } }),
        el("span", { className: "value", style: { left: `${value * 100}%` } })),
      el("span", { className: "number" }, value.toFixed(3), el("span", { className: "unseen", text: range })));
  }));
}

function falseAlarmsSeen(metrics) {
  const seen = Object.entries(metrics).filter(([name]) => name.startsWith("false_alarm_rate_at_"));
  if (!seen.length) return null;
  const text = seen.map(([name, m]) => `${short(m.value)} at ${name.slice("false_alarm_rate_at_".length)}`).join(", ");
  return el("p", { className: "quiet", text: `False alarms seen on ${seen[0][1].n.toLocaleString("en")} test normals: ${text}.` });
}

export function wireModels() {
  for (const task of Object.keys(TASKS)) {
    byId(`model-${task}`).addEventListener("change", (event) => {
      state.chosen[task] = event.target.value;
      showTitle(task);
      tell("chosen", task);
    });
  }
  loadModels();
  hear("reachable", loadModels);
  hear("key-given", loadModels);
}
