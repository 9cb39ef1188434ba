// "This was normal", "this was anomalous": what people found, told to the service.

import { Problem, call } from "./api.js";
import { told } from "./batches.js";
import { announce, el } from "./dom.js";

const LABELS = { normal: "Normal", anomalous: "Anomalous" };

/** Two buttons for one result; `item.label` remembers what was said of it. */
export function feedbackFor(item, requestId, index) {
  const note = el("span", { className: "feedback-note", text: item.label ? `Recorded: ${item.label}.` : "" });
  const buttons = Object.entries(LABELS).map(([label, text]) =>
    el("button", { type: "button", className: "small", text, "aria-pressed": String(item.label === label), onclick: () => send(label) }));

  async function send(label) {
    buttons.forEach((button) => (button.disabled = true));
    try {
      const body = JSON.stringify({ request_id: requestId, index, label });
      await call("feedback", { method: "POST", body, headers: { "Content-Type": "application/json" } });
      item.label = label;
      say(`Recorded: ${label}.`);
    } catch (error) {
      say(sorry(error));
    }
    buttons.forEach((button, i) => {
      button.disabled = false;
      button.setAttribute("aria-pressed", String(item.label === Object.keys(LABELS)[i]));
    });
  }

  function say(text) {
    note.textContent = text;
    announce(text);
  }

  return el("div", { className: "feedback", role: "group", "aria-label": "What it really is" },
    el("span", { className: "quiet", text: "What is it really?" }), ...buttons, note);
}

function sorry(error) {
  if (error instanceof Problem && error.status === 404 && !/result|request/.test(error.message)) {
    return "Not recorded: this service takes no feedback.";
  }
  return `Not recorded: ${told(error)}`;
}
