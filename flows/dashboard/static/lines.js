// A chart of some numbers over the iterations.
import { compact, tick } from "./dom.js";
import { color, series } from "./chart.js";

// rows: [{iteration, ...}]; parts: [[name, row => value], ...]; mark: {name, value} of a line across; unit: of the upright
// axis. An iteration without the number leaves a gap.
export function lines(rows, parts, mark, unit) {
  return {
    legend: parts.length > 1 ? {} : undefined, tooltip: { valueFormatter: (v) => compact(v) },
    xAxis: { type: "category", data: rows.map((r) => String(r.iteration)), name: "iteration" }, yAxis: { type: "value", name: unit, axisLabel: { formatter: tick, showMinLabel: mark ? false : null }, min: mark ? (v) => Math.floor(Math.min(v.min, mark.value) * 0.95) : null },
    series: parts.map(([name, of], i) => ({ name, type: "line", data: rows.map(of), symbol: "circle", symbolSize: 6, connectNulls: false, lineStyle: { width: 2, color: series(i) }, itemStyle: { color: series(i) },
      markLine: i === 0 && mark ? { silent: true, symbol: "none", data: [{ yAxis: mark.value }], lineStyle: { color: color("muted"), type: "dashed" }, label: { formatter: `${mark.name} ${compact(mark.value)}`, position: "insideStartTop", color: color("muted"), fontSize: 10.5 } } : undefined })),
  };
}
