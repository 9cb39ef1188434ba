// Requests to the service this page came from, and what it answers when it cannot.

import { tell } from "./store.js";

const KEY = "anomaly-api-key";

/** A refusal by the service: its problem object (RFC 9457), or what stands in for one. */
export class Problem extends Error {
  constructor(status, body) {
    super(body.detail || body.title || `HTTP ${status}`);
    this.status = status;
    this.body = body;
    this.retryAfterS = body.retry_after_s;
  }
}

/** Nothing came back. */
export class Away extends Error {
  constructor() {
    super("The service did not answer.");
  }
}

export const apiKey = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** The address of a route; relative, so that the page also works below a path of a proxy. */
export function address(path, query = {}) {
  const url = new URL(path, document.baseURI);
  url.hash = "";
  for (const [key, value] of Object.entries(query)) {
    if (value !== null && value !== undefined && value !== "") url.searchParams.set(key, value);
  }
  return url;
}

/** The JSON of an answer. Throws Problem, Away, or AbortError. */
export async function call(path, { query, method = "GET", body, headers = {}, signal } = {}) {
  const key = apiKey.get();
  if (key) headers = { ...headers, "X-API-Key": key };
  let response, text;
  try {
    response = await fetch(address(path, query), { method, body, headers, signal, cache: "no-store" });
    text = await response.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    tell("away");
    throw new Away();
  }
  let data = null;
  try {
    data = JSON.parse(text);
  } catch {
    // a proxy in between answers in its own words
  }
  if (response.ok && data !== null) return data;
  const problem = new Problem(response.status, data ?? { title: `HTTP ${response.status}, without JSON` });
  if (problem.status === 401 || problem.status === 403) tell("key-needed", problem);
  throw problem;
}

/** Waits; throws AbortError when `signal` is set off meanwhile. */
export function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(new DOMException("stopped", "AbortError"));
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, seconds * 1000);
    if (signal?.aborted) stop();
    signal?.addEventListener("abort", stop, { once: true });
  });
}
