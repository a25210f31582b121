// When each step was at work, by the clock, and how busy the machine was meanwhile.
import { h, card, number, percent, seconds } from "./dom.js";
import { chart, curve, series } from "./chart.js";

export function timeline(run, data) {
  if (!data?.spans.length) return null;
  const spans = data.spans.map((s) => ({ ...s, end: s.end ?? Date.now() / 1000 }));
  const start = Math.min(...spans.map((s) => s.start)), end = Math.max(...spans.map((s) => s.end));
  const at = (t) => `${(100 * (t - start)) / Math.max(1e-6, end - start)}%`;
  const order = run.steps.map((s) => s.name).filter((n) => spans.some((s) => s.step === n));
  const bar = (s) => h("i", { class: s.how, title: `${s.step}: ${seconds(s.end - s.start)}, ${s.how}, from ${clock(s.start)}`, style: { left: at(s.start), right: `${100 - Number.parseFloat(at(s.end))}%` } });
  const took = (name) => spans.filter((s) => s.step === name).reduce((a, s) => a + s.end - s.start, 0);
  return card("Timeline", { note: `${seconds(end - start)} by the clock, from ${clock(start)} UTC`, hint: "Each bar is one try of a step, start-up and waiting included. Hatched: its process was killed." },
    h("div.gantt", { role: "table", "aria-label": "Timeline of the steps" }, order.map((name) => h("div.gantt-row", { role: "row" }, h("span.gantt-name", { role: "rowheader" }, name), h("span.gantt-track", { role: "cell" }, spans.filter((s) => s.step === name).map(bar)), h("span.r.muted", { role: "cell" }, seconds(took(name)))))),
    data.machine ? h("div.grid.machine", {}, machine(run, data.machine, start)) : null);
}

const clock = (t) => new Date(t * 1000).toISOString().slice(5, 16).replace("T", " ");

function machine(run, m, start) {
  const line = (name, values, k) => curve(name, values.map((v, i) => [m.time[i] - start, v]), series(k), 1.5, ["solid", "dashed", "dotted"][k]);
  const axis = { grid: { right: 36 }, xAxis: { type: "value", name: "time since the start", min: 0, axisLabel: { formatter: seconds } } };
  const busy = () => ({ ...axis, legend: m.gpu ? {} : undefined, tooltip: { valueFormatter: (v) => percent(v, 0) }, yAxis: { type: "value", min: 0, max: 1, name: "busy", axisLabel: { formatter: (v) => percent(v, 0) } }, series: [line("cores", m.cpu, 0), ...(m.gpu ? [line("GPUs", m.gpu, 1)] : [])] });
  const memory = () => ({ ...axis, legend: {}, tooltip: { valueFormatter: (v) => `${number(v, 1)} GB` }, yAxis: { type: "value", min: 0, name: "GB" }, series: [line("whole machine", m.memory_mb.map((v) => v / 1024), 0), line("this run", m.own_memory_mb.map((v) => v / 1024), 1), ...(m.gpu ? [line("GPUs", m.gpu_memory_mb.map((v) => v && v / 1024), 2)] : [])] });
  return [chart(`${run.name}/machine/busy`, busy, { height: 150, label: "How busy cores and GPUs were", group: "machine" }), chart(`${run.name}/machine/memory`, memory, { height: 150, label: "Memory in use", group: "machine" })];
}
