// Decisions from p-values, as the service makes them, so that moving the rate needs no request.

export const DECISIONS = {
  anomalous: { word: "Anomalous", sign: "▲" },
  review: { word: "Review", sign: "◆" },
  normal: { word: "Normal", sign: "●" },
  not_scorable: { word: "Not scorable", sign: "○" },
  failed: { word: "Not scored", sign: "✕" },
};

/** The p-value up to which an item is up for review. */
export function reviewRate(fpr, card) {
  const set = card?.calibration?.review_fpr;
  return set === null || set === undefined ? Math.min(5 * fpr, 1) : Math.max(set, fpr);
}

/** The decision on a result of the service at this rate. */
export function decide(result, fpr, card) {
  if (result.p_value === null || result.p_value === undefined) return "not_scorable";
  if (result.p_value <= fpr) return "anomalous";
  return result.p_value <= reviewRate(fpr, card) ? "review" : "normal";
}

/** The smallest rate that the calibration can promise. */
export const finest = (card) => card?.calibration?.finest_fpr ?? 0.001;

/** False alarms per 1,000 normal items: p-values are multiples of 1 / (n + 1). */
export function falseAlarms(fpr, card) {
  const n = card?.calibration?.n;
  return n ? (Math.floor(fpr * (n + 1) + 1e-9) / (n + 1)) * 1000 : fpr * 1000;
}

/** "1 in 625 normal images is at least this unusual." */
export function inWords(result, card, noun) {
  const n = card?.calibration?.n;
  const p = result.p_value;
  if (p === null || p === undefined) return `Reason: ${String(result.reason ?? "unknown").replaceAll("_", " ")}.`;
  if (n && p * (n + 1) < 1.5) return `More unusual than all ${n.toLocaleString("en")} normal ${noun} it is compared with.`;
  if (p > 0.1) return `${Math.round(p * 100)} of 100 normal ${noun} are at least this unusual.`;
  return `About 1 in ${Math.round(1 / p).toLocaleString("en")} normal ${noun} is at least this unusual.`;
}

/** A number with as many digits as are of use. */
export function short(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-4) return value.toExponential(digits - 1);
  return String(Number(value.toPrecision(digits)));
}

/** A score: four decimals, never rounded up to 1. */
export const scoreText = (score) =>
  score === null || score === undefined ? "–" : (Math.floor(score * 1e4 + 1e-6) / 1e4).toFixed(4);
