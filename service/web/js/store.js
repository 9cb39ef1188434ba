// What the page knows, and who wants to hear that it changed.

export const state = {
  /** Members of GET /models; null before the first answer. */
  models: null,
  /** Bodies of GET /models/{name}/versions/{version}, by name. */
  cards: new Map(),
  /** The model to score with, by task. */
  chosen: { image: null, timeseries: null },
  /** "starting" | "ready" | "not-ready" | "away" */
  service: "starting",
  /** What is being scored or was; see images.js and series.js. */
  run: null,
};

const listeners = new Map();

/** Calls `listener` after every `tell(topic)`. */
export function hear(topic, listener) {
  listeners.set(topic, [...(listeners.get(topic) ?? []), listener]);
}

/** Lets those who listen know that something of this topic has changed. */
export function tell(topic, value) {
  for (const listener of listeners.get(topic) ?? []) listener(value);
}
