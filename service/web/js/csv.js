// Just enough csv: which lines are rows, and what time they say.

const TIME = new Set(["time", "timestamp", "date"]);

/** Header, lines of the rows, and their timestamps, if any, of a csv file. */
export function readRows(text) {
  const lines = recordsOf(text.replace(/^\ufeff/, ""));
  const header = lines.shift() ?? "";
  const delimiter = [",", ";", "\t"].reduce((best, d) => (header.split(d).length > header.split(best).length ? d : best));
  const names = header.split(delimiter).map((name) => name.trim().replace(/^"|"$/g, "").toLowerCase());
  const at = names.findIndex((name) => TIME.has(name));
  const times = at < 0 ? null : lines.map((line) => line.split(delimiter)[at]?.trim().replace(/^"|"$/g, "") ?? "");
  return { header, lines, times };
}

/** Lines that hold something; a line break within quotes does not end one. */
function recordsOf(text) {
  const found = [];
  let held = [];
  let open = false;
  const keep = () => {
    const record = held.join("\n");
    if (record.trim()) found.push(record);
    held = [];
  };
  for (const line of text.split(/\r\n|\n|\r/)) {
    held.push(line);
    if ((line.match(/"/g) ?? []).length % 2) open = !open;
    if (!open) keep();
  }
  keep();
  return found;
}

/** Some rows as a csv file of their own. */
export const partOf = (rows, start, end) => [rows.header, ...rows.lines.slice(start, end)].join("\n");

/** A timestamp, or a row's number where there is none, as a short label. */
export function labelOf(times, row, withDate = false) {
  const text = times?.[row];
  if (!text) return `row ${row}`;
  const moment = new Date(text);
  if (Number.isNaN(moment.getTime())) return text;
  const zone = /(Z|[+-]\d\d:?\d\d)$/i.test(text) ? { timeZone: "UTC" } : {};
  const clock = moment.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit", ...zone });
  if (!withDate) return clock;
  return `${moment.toLocaleDateString("en-CA", zone)} ${clock}${zone.timeZone ? " UTC" : ""}`;
}
