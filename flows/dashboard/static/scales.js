// What settings do to a number: a point a run over one setting, or a line a run through all of them.
import { h, card, svgOf, tick, choose } from "./dom.js";
import { chart } from "./chart.js";
import { experiments, look } from "./arms.js";
import { go } from "./frame.js";

// title: of the number y; write: how it is written; axis: makes its axis.
export function scales(place, data, y, { title, write, axis }) {
  const keys = [...new Set(data.runs.flatMap((r) => Object.keys(r.settings)))];
  if (!keys.length) return h("p.inline-empty.card", {}, "These runs differ in no setting: there is nothing to lay out.");
  const groups = experiments(data, false);
  const runs = groups.flatMap((g) => g.runs.map((r) => ({ ...r, k: g.k, group: g.name, value: lastOf(r, y) }))).filter((r) => r.value !== null);
  if (!runs.length) return h("p.inline-empty.card", {}, `None of these runs has ${title} yet.`);
  const x = keys.includes(place.parameters.get("setting")) ? place.parameters.get("setting") : keys[0];
  return [card(`${title} over ${x}`, { note: "the last iteration, a point a run", tools: choose("setting", x, keys, (setting) => go({ setting }), "Setting") },
    chart(`scales/${data.runs.map((r) => r.name)}`, () => scatter(runs, x, title, write, axis), { height: 340, label: `${title} over ${x}` })),
    card("All settings at once", { note: "a line a run; its look is its experiment's" }, h("div.scroll", { "data-scroll": "parallel" }, parallel(runs, keys, title, write)))];
}

export function lastOf(run, y) {
  const found = Object.keys(run.numbers).map(Number).sort((a, b) => b - a).map((i) => run.numbers[i][y]?.value).find((v) => v !== undefined && v !== null);
  return found ?? null;
}

// Numbers lie by size, on a log scale where they span more than 30 times; words lie side by side.
export function scale(values) {
  const numbers = values.map((v) => (v === "" ? NaN : Number(v)));
  if (numbers.every(Number.isFinite)) {
    const [low, high] = [Math.min(...numbers), Math.max(...numbers)];
    const log = low > 0 && high / low > 30;
    const on = (v) => (log ? Math.log(Number(v)) : Number(v));
    const [a, b] = [on(low), on(high)];
    const marks = [...new Set(numbers)].sort((p, q) => p - q);
    return { at: (v) => (b > a ? (on(v) - a) / (b - a) : 0.5), log, numeric: true, marks: marks.length <= 7 ? marks : [low, high], write: tick };
  }
  const known = [...new Set(values)].sort();
  return { at: (v) => (known.length > 1 ? known.indexOf(v) / (known.length - 1) : 0.5), log: false, numeric: false, marks: known, write: (v) => v };
}

function scatter(runs, x, title, write, axis) {
  const made = scale(runs.map((r) => r.settings[x] ?? "-"));
  const series = [...new Set(runs.map((r) => r.k))].map((k) => {
    const { tint, symbol } = look(k);
    const own = runs.filter((r) => r.k === k);
    return { name: own[0].group, type: "scatter", symbol, symbolSize: 11, itemStyle: { color: tint }, data: own.map((r) => ({ value: [made.numeric ? Number(r.settings[x]) : r.settings[x] ?? "-", r.value], run: r.name })) };
  });
  return { series, tooltip: { trigger: "item", formatter: (p) => `${p.data.run}\n${x} ${p.value[0]}\n${title} ${write(p.value[1])}` },
    xAxis: made.numeric ? { type: made.log ? "log" : "value", name: x, scale: true } : { type: "category", data: made.marks, name: x },
    yAxis: { ...axis(write), name: title } };
}

// Upright axes side by side, the settings first, the number last.
function parallel(runs, keys, title, write) {
  const axes = [...keys.map((key) => ({ name: key.split(".").at(-1), ...scale(runs.map((r) => r.settings[key] ?? "-")), of: (r) => r.settings[key] ?? "-" })), { name: title, ...scale(runs.map((r) => String(r.value))), write, of: (r) => String(r.value) }];
  const last = axes.at(-1);
  last.marks = [Math.min(...runs.map((r) => r.value)), Math.max(...runs.map((r) => r.value))];
  const [wide, high, top, side] = [Math.max(560, 170 * axes.length), 280, 34, 80];
  const x = (i) => side + (i * (wide - 2 * side)) / Math.max(1, axes.length - 1);
  const at = (v) => high - 18 - v * (high - 18 - top);
  const svg = svgOf("svg", { width: wide, height: high, viewBox: `0 0 ${wide} ${high}`, class: "parallel", role: "img", "aria-label": `${runs.length} runs through ${axes.map((a) => a.name).join(", ")}` });
  for (const r of runs) {
    const { dash } = look(r.k);
    const path = axes.map((a, i) => `${i ? "L" : "M"}${x(i)} ${at(a.at(a.of(r)))}`).join("");
    const line = svgOf("path", { d: path, fill: "none", stroke: `var(--series-${(r.k % 8) + 1})`, "stroke-width": 1.8, "stroke-dasharray": dash === "solid" ? "none" : dash.join(" "), class: "through" });
    line.append(svgOf("title", {}, `${r.name}: ${axes.slice(0, -1).map((a) => `${a.name}=${a.of(r)}`).join(", ")}: ${write(r.value)}`));
    svg.append(line);
  }
  for (const [i, a] of axes.entries()) {
    svg.append(svgOf("line", { x1: x(i), x2: x(i), y1: top, y2: high - 18, class: "axis" }), svgOf("text", { x: x(i), y: 14, "text-anchor": "middle", class: "axis-name" }, a.name + (a.log ? " (log)" : "")));
    for (const mark of a.marks) svg.append(svgOf("text", { x: x(i) + (i === axes.length - 1 ? 7 : -7), y: at(a.at(a.numeric ? String(mark) : mark)) + 4, "text-anchor": i === axes.length - 1 ? "start" : "end", class: "axis-mark" }, String(a.write(mark)).slice(0, 16)));
  }
  return svg;
}
