// Open loop: requests start by the clock (constant-arrival-rate), whatever the server does; what
// could not be started in time is counted as dropped, never left out silently.
//   SCENARIOS: {name: {rate, start, seconds, vus}}   BODIES, CONTENT_TYPE, URL
import http from "k6/http";
import { Counter, Trend } from "k6/metrics";

const file = open(__ENV.BODIES, "b");
const plan = JSON.parse(__ENV.SCENARIOS);
const view = new DataView(file);
const bodies = [];
for (let at = 0; at < file.byteLength; ) {
  const length = view.getUint32(at);
  bodies.push(file.slice(at + 4, at + 4 + length));
  at += 4 + length;
}
const accepted = new Trend("accepted", true);
const refused = new Trend("refused", true);
const failed = new Counter("failed");
const parameters = {
  headers: { "Content-Type": __ENV.CONTENT_TYPE },
  timeout: "20s",
};

const scenarios = {};
const thresholds = {};
for (const [name, phase] of Object.entries(plan)) {
  scenarios[name] = {
    executor: "constant-arrival-rate",
    rate: phase.rate,
    timeUnit: "1s",
    startTime: `${phase.start}s`,
    duration: `${phase.seconds}s`,
    preAllocatedVUs: phase.vus,
    maxVUs: phase.vus,
    gracefulStop: "20s",
  };
  // a threshold that always holds is k6's way to have a metric reported by scenario
  thresholds[`accepted{scenario:${name}}`] = ["max>=0"];
  thresholds[`refused{scenario:${name}}`] = ["max>=0"];
  thresholds[`failed{scenario:${name}}`] = ["count>=0"];
  thresholds[`dropped_iterations{scenario:${name}}`] = ["count>=0"];
}
export const options = {
  scenarios,
  thresholds,
  discardResponseBodies: true,
  systemTags: ["scenario"],
  summaryTrendStats: ["count", "min", "med", "p(90)", "p(99)", "max"],
};

let turn = Math.floor(Math.random() * bodies.length);
export default function () {
  turn = (turn + 1) % bodies.length;
  const { status, timings } = http.post(__ENV.URL, bodies[turn], parameters);
  // with the wait for a connection: what the caller sees
  const ms = timings.blocked + timings.connecting + timings.duration;
  if (status === 200) accepted.add(ms);
  else if (status === 503 || status === 429) refused.add(ms);
  else failed.add(1);
}

export function handleSummary(data) {
  const found = {};
  for (const name of Object.keys(plan)) {
    const values = (metric) => (data.metrics[`${metric}{scenario:${name}}`] || {}).values || {};
    found[name] = {
      accepted: values("accepted"),
      refused: values("refused"),
      failed: values("failed").count || 0,
      dropped: values("dropped_iterations").count || 0,
    };
  }
  return { stdout: JSON.stringify(found) };
}
