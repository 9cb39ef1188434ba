// What is on the page, to take away: csv, JSON, and the command that asks for the same.

import { address, apiKey } from "./api.js";
import { decide } from "./decision.js";
import { announce, byId, el } from "./dom.js";
import { hear, state } from "./store.js";

const COMMAND_IMAGES = 64;
const COLUMNS = ["file", "start", "end", "score", "p_value", "raw_score", "threshold", "fpr", "decision", "error", "label", "model", "version", "request_id", "index"];

/** One object a result, decided at the rate on the page. */
function records(run) {
  const about = { model: run.model, version: run.version };
  const of = (r, more) => ({ ...more, start: r.start, end: r.end, score: r.score, p_value: r.p_value, raw_score: r.raw_score,
    threshold: run.fpr === r.fpr ? r.threshold : null, fpr: run.fpr, decision: decide(r, run.fpr, run.card), ...about, index: r.index });
  if (run.task === "timeseries") {
    return run.results.map((r) => ({ ...of(r, { file: run.file.name, request_id: run.requestId, label: run.labels.get(r.index)?.label }),
      error: r.reason, contributions: r.contributions }));
  }
  return run.items.map((item) => item.result
    ? { ...of(item.result, { file: item.file.name, request_id: item.requestId, label: item.label }), regions: item.result.regions }
    : { file: item.file.name, ...about, error: item.error?.message ?? "not sent", problem: item.error?.body });
}

/** A cell as csv; a spreadsheet would take some beginnings of a file's name for a formula. */
function cell(value) {
  if (typeof value === "number") return String(value);
  const text = String(value ?? "").replace(/^[=+\-@\t\r]/, "'$&");
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function csvOf(run) {
  return [COLUMNS, ...records(run).map((r) => COLUMNS.map((c) => r[c]))].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

function save(text, type, name) {
  const link = el("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** A word of a POSIX shell that means `text` and nothing else. */
const quoted = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

/** The -F of a file: names that curl would take apart are quoted as curl wants it. */
function formPart(name) {
  const plain = /^[^",;\\]+$/.test(name) ? name : `"${name.replace(/["\\]/g, "\\$&")}"`;
  return `-F ${quoted(`image=@${plain}`)}`;
}

/** The command, or commands, that score the same files. */
export function commandOf(run) {
  const key = apiKey.get() ? ' -H "X-API-Key: $ANOMALY_API_KEY"' : "";
  const fpr = run.fpr === run.defaultFpr ? null : Number(run.fpr.toPrecision(12));
  const about = { model: run.model, version: run.version, fpr };
  if (run.task === "timeseries") {
    const url = address("score/timeseries", { ...about, stride: run.stride });
    return `curl${key} -H 'Content-Type: text/csv' --data-binary ${quoted(`@${run.file.name}`)} \\\n  '${url}'`;
  }
  const url = address("score", { ...about, map: "none" });
  const commands = [];
  for (let i = 0; i < run.items.length; i += COMMAND_IMAGES) {
    const parts = run.items.slice(i, i + COMMAND_IMAGES).map((item) => formPart(item.file.name));
    const lines = [];
    for (let j = 0; j < parts.length; j += 2) lines.push(parts.slice(j, j + 2).join(" "));
    commands.push(`curl${key} ${lines.join(" \\\n  ")} \\\n  '${url}'`);
  }
  return commands.join("\n");
}

function show() {
  const { run } = state;
  const some = run && (run.task === "image" ? run.items.some((item) => item.result || item.error) : run.results.length);
  byId("take").hidden = !some;
  if (some) byId("command").textContent = commandOf(run);
}

async function copy() {
  const code = byId("command");
  let text = "Copied.";
  try {
    await navigator.clipboard.writeText(code.textContent);
  } catch {
    getSelection().selectAllChildren(code); // without https a page may not write the clipboard
    text = "Selected; copy it with Ctrl+C.";
  }
  byId("copy-note").textContent = text;
  announce(text);
}

export function wireExports() {
  byId("save-csv").addEventListener("click", () => save(csvOf(state.run), "text/csv", "anomaly-scores.csv"));
  byId("save-json").addEventListener("click", () => save(JSON.stringify(records(state.run), null, 1), "application/json", "anomaly-scores.json"));
  byId("copy").addEventListener("click", copy);
  for (const topic of ["results", "rate", "run", "key-given"]) hear(topic, show);
}
