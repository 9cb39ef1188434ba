// Many images in requests that the service accepts: some at a time, halved where they are too much.

import { Away, Problem, call, pause } from "./api.js";

const AT_ONCE = 2;
const MOST_BYTES = 8 * 1024 * 1024;
const MOST_IMAGES = 16; // so that a bar moves; the service takes 64 by default
const PATIENCE_S = 60;
const LASTING = new Set([401, 403, 404]); // what every further request would be answered with

/** One request of several images: the answer, and each image's share of it. */
export async function scoreImages(files, query, signal) {
  const body = new FormData();
  for (const file of files) body.append("image", file, file.name || "image");
  return call("score", { method: "POST", body, query, signal });
}

/**
 * Scores what waits, and calls `done(item, result, answer)` or `failed(item, error)` for each.
 * Throws what would meet every further request as well (Away, or a Problem), and AbortError; what
 * is not done by then is waiting still.
 */
export async function scoreAll(items, query, { signal, done, failed, sending, note }) {
  const waiting = [...items];
  let most = MOST_IMAGES;

  function next() {
    const batch = [];
    let bytes = 0;
    while (waiting.length && batch.length < most) {
      if (batch.length && bytes + waiting[0].file.size > MOST_BYTES) break;
      bytes += waiting[0].file.size;
      batch.push(waiting.shift());
    }
    return batch;
  }

  async function send(batch) {
    sending(batch);
    try {
      const answer = await patiently(() => scoreImages(batch.map((item) => item.file), query, signal));
      answer.results.forEach((result, i) => {
        if (result.error) failed(batch[i], new Problem(result.error.status, result.error));
        else done(batch[i], result, answer);
      });
    } catch (error) {
      if (error instanceof Problem && error.status === 413 && batch.length > 1) {
        most = Math.ceil(batch.length / 2);
        waiting.unshift(...batch);
      } else if (error instanceof Problem && !LASTING.has(error.status)) {
        for (const item of batch) failed(item, error);
      } else {
        waiting.unshift(...batch);
        throw error;
      }
    }
  }

  async function patiently(request) {
    for (let waited = 0; ; ) {
      try {
        return await request();
      } catch (error) {
        const seconds = error.retryAfterS;
        const busy = error instanceof Problem && (error.status === 429 || error.status === 503);
        if (!busy || !seconds || waited + seconds > PATIENCE_S) throw error;
        waited += seconds;
        note(`${error.body.title}; trying again in ${seconds} s`);
        await pause(seconds, signal);
        note("");
      }
    }
  }

  async function work() {
    while (waiting.length) await send(next());
  }

  const workers = await Promise.allSettled(Array.from({ length: AT_ONCE }, work));
  const stopped = workers.find((worker) => worker.status === "rejected");
  if (stopped) throw stopped.reason;
}

/** Whether the same request may succeed later: nothing came back, too busy, or the service failed. */
export function mayPass(error) {
  return !(error instanceof Problem) || error.status === 429 || error.status >= 500;
}

const wordsOf = (text) => text.match(/[\p{L}\p{N}_]+(\.\p{N}+)?/gu) ?? [];

/** What of a text is news: its numbers and the names it quotes; of one that has neither, its words. */
function tells(text) {
  const quoted = wordsOf((text.match(/'[^']*'/g) ?? []).join(" "));
  const facts = [...quoted, ...wordsOf(text).filter((word) => /^\p{N}/u.test(word))];
  return facts.length ? facts : wordsOf(text);
}

/** What to say of an error. */
export function told(error) {
  if (error instanceof Away) return `${error.message} It is asked every few seconds; go on when it is back.`;
  const said = new Set(wordsOf(error.message));
  const more = (error.body?.errors ?? []).map((e) => e.detail).filter((detail) => !tells(detail).every((word) => said.has(word)));
  const id = error.body?.request_id;
  return [error.message, ...more.slice(0, 3), ...(id ? [`HTTP ${error.status}, request ${id}`] : [])].join(" · ");
}
