// Charts of some numbers over the iterations.
import { compact, number } from "./dom.js";
import { byIteration, color, curve, series } from "./chart.js";

// rows: [{iteration, ...}]; parts: [[name, row => value], ...]; mark: {name, value} of a line across; unit: of the upright
// axis. An iteration without the number leaves a gap.
export function lines(rows, parts, mark, unit) {
  return {
    legend: parts.length > 1 ? {} : undefined, tooltip: { valueFormatter: (v) => compact(v) },
    xAxis: byIteration(rows), yAxis: { type: "value", name: unit, axisLabel: { showMinLabel: mark ? false : null }, min: mark ? (v) => Math.floor(Math.min(v.min, mark.value) * 0.95) : null },
    series: parts.map(([name, of], i) => curve(name, rows.map(of), series(i), 2, "solid", { symbol: "circle", symbolSize: 6,
      markLine: i === 0 && mark ? { silent: true, symbol: "none", data: [{ yAxis: mark.value }], lineStyle: { color: color("muted"), type: "dashed" }, label: { formatter: `${mark.name} ${compact(mark.value)}`, position: "insideStartTop", color: color("muted"), fontSize: 10.5 } } : undefined })),
  };
}

// The same as bars on each other: [[name, row => value, tint], ...].
export const bars = (rows, parts) => ({
  legend: {}, tooltip: { valueFormatter: (v) => number(v), axisPointer: { type: "shadow" } }, xAxis: byIteration(rows), yAxis: { type: "value", min: 0 },
  series: parts.map(([name, of, tint]) => ({ name, type: "bar", stack: "rows", data: rows.map(of), itemStyle: { color: tint }, barMaxWidth: 42 })),
});
