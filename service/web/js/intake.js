// How files come in: dropped (folders too), chosen, pasted, or an example; and to which run.

import { Away, Problem } from "./api.js";
import { told } from "./batches.js";
import { byId } from "./dom.js";
import { wireExamples } from "./examples.js";
import { scoreFiles } from "./images.js";
import { chosenFor } from "./models.js";
import { scoreRecording } from "./series.js";
import { hear, state, tell } from "./store.js";

const TABLE = /\.(csv|tsv|txt)$/i;
const isTable = (file) => TABLE.test(file.name) || file.type === "text/csv";

let turns = 0; // of files to be scored anew; the last one counts
let held = null; // what to do once there is a key

/** Scores files: a table as sensor rows, everything else as images; the service judges them. */
async function take(files, { anew = false } = {}) {
  notice("");
  held = null;
  const turn = anew ? ++turns : 0;
  const overtaken = () => anew && turn !== turns;
  const tables = files.filter(isTable);
  const images = files.filter((file) => !isTable(file));
  if (!files.length) return;
  try {
    if (tables.length && !images.length) {
      if (tables.length > 1) notice(`One recording at a time: ${tables[0].name} is scored, the other ${tables.length - 1} are not.`);
      const chosen = await chosenFor("timeseries");
      if (!overtaken()) await scoreRecording(tables[0], chosen, byId("stride").value || null);
      return;
    }
    if (tables.length) notice(`Images and tables are scored apart: drop ${tables.map((f) => f.name).join(", ")} alone.`);
    const chosen = await chosenFor("image");
    if (overtaken()) return;
    if (anew) clear();
    scoreFiles(images, chosen);
  } catch (error) {
    if (overtaken()) return;
    sorry(error);
    if (error.status === 401) held = () => take(files, { anew });
  }
}

function sorry(error) {
  notice(told(error));
  if (!(error instanceof Problem || error instanceof Away || error.constructor === Error)) console.error(error);
}

function notice(text) {
  byId("notice").textContent = text;
  byId("notice").hidden = !text;
}

/** Nothing is on the page any more. */
function clear() {
  state.run?.stop?.abort();
  state.run = null;
  byId("grid").replaceChildren();
  byId("viewer").hidden = true;
  tell("run");
}

/** Files of a drop; of a folder, all that are in it. */
async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return [...transfer.files];
  const found = await Promise.all(entries.map(filesOf));
  return found.flat().filter((file) => !file.name.startsWith("."));
}

async function filesOf(entry) {
  if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
  const reader = entry.createReader();
  const inside = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) break; // it hands out a hundred at a time
    inside.push(...some);
  }
  return (await Promise.all(inside.map(filesOf))).flat();
}

function wireDrop() {
  let depth = 0;
  const over = (by) => {
    depth = Math.max(0, depth + by);
    document.body.classList.toggle("dropping", depth > 0);
  };
  addEventListener("dragenter", (event) => event.dataTransfer.types.includes("Files") && over(1));
  addEventListener("dragleave", (event) => event.dataTransfer.types.includes("Files") && over(-1));
  addEventListener("dragover", (event) => event.dataTransfer.types.includes("Files") && event.preventDefault());
  addEventListener("drop", async (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    depth = 0;
    over(0);
    take(await dropped(event.dataTransfer));
  });
}

function pasted(event) {
  if (event.target.closest?.("input, textarea, select")) return;
  const files = [...event.clipboardData.files];
  const text = event.clipboardData.getData("text/plain");
  if (files.length) take(files);
  else if (/\n/.test(text) && /[,;\t]/.test(text)) take([new File([text], "pasted.csv", { type: "text/csv" })]);
}

export function wireIntake() {
  const chooser = byId("files");
  byId("choose").addEventListener("click", () => chooser.click());
  chooser.addEventListener("change", () => {
    const files = [...chooser.files];
    chooser.value = ""; // so that the same file can be chosen again
    take(files);
  });
  wireDrop();
  document.addEventListener("paste", pasted);
  byId("clear").addEventListener("click", () => {
    clear();
    notice("");
    held = null;
    byId("choose").focus();
  });
  wireExamples((files) => take(files, { anew: true }), sorry);
  // another model: what is here is scored with it, anew
  hear("chosen", (task) => {
    const run = state.run;
    if (run?.task === task) take(task === "image" ? run.items.map((item) => item.file) : [run.file], { anew: true });
  });
  hear("key-given", () => held?.());
  hear("run", () => {
    document.body.dataset.task = state.run?.task ?? "none";
    document.body.classList.toggle("busy", Boolean(state.run));
    byId("images").hidden = state.run?.task !== "image";
    byId("series").hidden = state.run?.task !== "timeseries";
    byId("clear").hidden = !state.run;
  });
}
