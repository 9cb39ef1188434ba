// One image: its picture, the residual map over it, the regions, and what the service says of it.

import { call } from "./api.js";
import { scoreImages, told } from "./batches.js";
import { bytesOf, paintLegend } from "./colours.js";
import { DECISIONS, decide, inWords, scoreText, short } from "./decision.js";
import { byId, el, svg } from "./dom.js";
import { feedbackFor } from "./feedback.js";
import { heatOf, pictureOf } from "./residuals.js";
import { hear, state } from "./store.js";

const MOST_REGIONS = 3;
let shown = null;

/** Shows an item of a run of images. */
export async function viewImage(run, item) {
  shown = item;
  byId("viewer").hidden = false;
  byId("viewer-name").textContent = item.file.name;
  const problem = byId("viewer-problem");
  problem.hidden = !item.error;
  problem.textContent = item.error ? told(item.error) : "";
  byId("picture-side").hidden = Boolean(item.error);
  byId("facts").hidden = !item.result;
  byId("evidence").replaceChildren();
  if (!item.result) return;
  describe(run, item);
  await draw(run, item);
}

async function draw(run, item) {
  const { residual_map: map, regions } = item.result;
  let [picture, heat] = await Promise.all([pictureOf(item.file), heatOf(map, run.card.calibration.map_scale)]);
  let note = "";
  if (!picture) [picture, note] = await fromService(run, item);
  if (shown !== item) {
    picture?.close?.();
    return;
  }
  const stage = byId("stack");
  const base = byId("base");
  const top = byId("heat");
  for (const canvas of [base, top]) [canvas.width, canvas.height] = [map.width, map.height];
  const context = base.getContext("2d");
  context.fillRect(0, 0, map.width, map.height);
  if (picture) context.drawImage(picture, 0, 0);
  if (!note) top.getContext("2d").drawImage(heat, 0, 0);
  stage.style.setProperty("aspect-ratio", `${map.width} / ${map.height}`);
  stage.style.setProperty("--ratio", String(map.width / map.height));
  stage.classList.toggle("coarse", Math.max(map.width, map.height) < 400);
  outline(map, regions);
  byId("picture-note").textContent = note;
  byId("legend-high").textContent = short(run.card.calibration.map_scale);
  top.setAttribute("aria-label", `${item.file.name}, ${map.width} by ${map.height} pixels, with its residuals. ${regionsInWords(regions).flat().join(" ")}`);
  picture?.close?.();
  byId("viewer").dataset.shown = item.id;
}

/** The picture as the service decodes it, residuals laid over, where this browser cannot (TIFF). */
async function fromService(run, item) {
  try {
    const query = { model: run.model, version: run.version, map: "heatmap" };
    const { results } = await scoreImages([item.file], query);
    const blob = new Blob([bytesOf(results[0].residual_map.data)], { type: "image/png" });
    return [await createImageBitmap(blob), "This browser cannot show such a file; the picture with its residuals comes from the service."];
  } catch {
    return [null, "This browser cannot show such a file; only its residuals are here."];
  }
}

function outline(map, regions) {
  const layer = byId("regions");
  layer.setAttribute("viewBox", `0 0 ${map.width} ${map.height}`);
  layer.replaceChildren(...regions.flatMap((r) =>
    ["halo", "line"].map((kind) => svg("rect", { class: kind, x: r.x, y: r.y, width: r.width, height: r.height }))));
}

/** How many regions stand out, and the highest of them as texts. */
function regionsInWords(regions) {
  const highest = [...regions].sort((a, b) => b.peak - a.peak).slice(0, MOST_REGIONS);
  const many = ["No region stands out", "One region stands out"][regions.length] ?? `${regions.length} regions stand out`;
  const words = regions.length > highest.length ? `${many}; the ${highest.length} highest:` : `${many}${highest.length ? ":" : "."}`;
  return [words, highest.map(({ x, y, width, height, peak }) => `${width} by ${height} px at x ${x}, y ${y}: peak ${short(peak)}`)];
}

function describe(run, item) {
  const { result } = item;
  showDecision(run);
  byId("facts-words").textContent = inWords(result, run.card, run.noun);
  const rows = [
    ["Score", scoreText(result.score)],
    ["p-value", short(result.p_value)],
    ["Raw score", short(result.raw_score, 4)],
    [`Threshold at rate ${short(result.fpr)}`, short(result.threshold, 4)],
    ["Size", `${result.residual_map.width} × ${result.residual_map.height} px`],
    ["Model", `${run.model}/${run.version}`],
  ];
  byId("facts-list").replaceChildren(...rows.map(([name, value]) => el("div", {}, el("dt", { text: name }), el("dd", { text: value }))));
  const [words, highest] = regionsInWords(result.regions);
  byId("facts-regions").replaceChildren(el("p", { text: words }), el("ol", {}, highest.map((text) => el("li", { text }))));
  byId("image-feedback").replaceChildren(feedbackFor(item, item.requestId, result.index));
  byId("neighbours").hidden = run.card.family !== "nln";
}

function showDecision(run) {
  if (!shown?.result) return;
  const decision = decide(shown.result, run.fpr, run.card);
  const badge = byId("facts-decision");
  badge.dataset.decision = decision;
  badge.replaceChildren(el("span", { className: "sign", "aria-hidden": "true", text: DECISIONS[decision].sign }), ` ${DECISIONS[decision].word}`);
}

/** The nearest normal training items, as the network remembers them. */
async function showNeighbours() {
  const [run, item] = [state.run, shown];
  const box = byId("evidence");
  box.replaceChildren(el("p", { className: "quiet", text: "Looking …" }));
  try {
    const body = new FormData();
    body.append("image", item.file, item.file.name);
    const answer = await call("score", { method: "POST", body, query: { model: run.model, version: run.version, map: "none", evidence: 6 } });
    if (shown !== item) return;
    box.replaceChildren(
      el("ul", { className: "neighbours" }, answer.results[0].evidence.map((near) =>
        el("li", {},
          el("img", { src: `data:image/png;base64,${near.decoded}`, alt: `Normal item ${near.row}, distance ${short(near.distance)}` }),
          el("span", { className: "number", text: short(near.distance) })))),
      el("p", { className: "quiet", text: "Nearest normal training items and their distance, decoded from the network's memory: not the photographs." }));
  } catch (error) {
    if (shown === item) box.replaceChildren(el("p", { className: "problem", text: told(error) }));
  }
}

export function wireViewer() {
  paintLegend(byId("legend-bar"));
  const opacity = byId("opacity");
  const set = () => {
    byId("heat").style.setProperty("opacity", String(opacity.value / 100));
    byId("opacity-text").textContent = `${opacity.value} %`;
  };
  opacity.addEventListener("input", set);
  set();
  byId("outlines").addEventListener("change", (event) => byId("regions").classList.toggle("off", !event.target.checked));
  byId("neighbours").addEventListener("click", showNeighbours);
  hear("rate", () => state.run?.task === "image" && showDecision(state.run));
}
