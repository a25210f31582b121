// Charts: one wrapper around ECharts. Colours come from the page's CSS, tooltips are drawn on the canvas.
import { h, tick } from "./dom.js";

const charts = new Map(); // key -> {box, chart, option}: a chart outlives the redraw of what is around it
let loading = null;

function library() {
  if (window.echarts) return Promise.resolve();
  loading = loading || new Promise((done, failed) => {
    const script = document.createElement("script");
    script.src = "vendor/echarts.common.min.js";
    script.onload = done;
    script.onerror = failed;
    document.head.append(script);
  });
  return loading;
}

export const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
export const series = (i) => color(`series-${(i % 8) + 1}`);

// A shade of the accent for iteration i of n: later ones are stronger.
export function shade(i, n) {
  const from = n > 1 ? i / (n - 1) : 1;
  return `color-mix(in oklab, ${color("accent")} ${Math.round(30 + 70 * from)}%, ${color("surface")})`;
}

// color-mix is CSS; a canvas wants a plain colour.
export function solid(css) {
  const probe = h("span", { style: { color: css, display: "none" } });
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 1;
  const brush = canvas.getContext("2d", { willReadFrequently: true });
  brush.fillStyle = found;
  brush.fillRect(0, 0, 1, 1);
  return `rgb(${[...brush.getImageData(0, 0, 1, 1).data.slice(0, 3)].join(",")})`;
}

// chart("win-rate", () => option, {height, label}): the box of that chart, kept while its key is used. Charts of a group
// show the same place at once; onzoom([from, to] or null) is told of a range that was dragged over, null: of all again.
export function chart(key, option, { height = 220, label = key, group = null, onzoom = null } = {}) {
  let held = charts.get(key);
  if (!held) {
    held = { box: h("div.chart", { role: "img", style: { height: `${height}px` } }), chart: null };
    charts.set(key, held);
  }
  held.box.setAttribute("aria-label", label);
  Object.assign(held, { make: option, group, onzoom });
  library().then(() => requestAnimationFrame(() => draw(held)), () => held.box.replaceChildren("The chart library could not be loaded."));
  return held.box;
}

function draw(held) {
  if (!held.box.isConnected || !held.box.clientWidth) return;
  if (!held.chart) {
    held.chart = window.echarts.init(held.box, null, { renderer: "canvas" });
    new ResizeObserver(() => held.box.clientWidth && held.chart.resize()).observe(held.box);
    if (held.group) { held.chart.group = held.group; window.echarts.connect(held.group); }
    if (held.onzoom) zooms(held);
  }
  const option = styled({ ...held.make(), zooms: Boolean(held.onzoom) });
  const text = JSON.stringify(option);
  if (text === held.text) return;
  held.text = text;
  held.chart.setOption(option, { notMerge: true });
  if (held.onzoom) held.chart.dispatchAction({ type: "takeGlobalCursor", key: "dataZoomSelect", dataZoomSelectActive: true });
}

// Each chart draws its range by itself: the address has it.
function zooms(held) {
  held.chart.on("datazoom", (event) => {
    const { startValue, endValue } = (event.batch || [event])[0];
    if (Number.isFinite(startValue) && endValue > startValue) held.onzoom([startValue, endValue]);
  });
  held.chart.getZr().on("dblclick", () => held.onzoom(null));
}

export function redrawAll() {
  for (const held of charts.values()) { held.text = null; if (held.chart) draw(held); }
}

// Forget the charts that are not on the page any more.
export function sweep() {
  for (const [key, held] of charts) {
    if (held.box.isConnected) continue;
    if (held.chart) held.chart.dispose();
    charts.delete(key);
  }
}

const axisStyle = () => ({
  axisLine: { show: true, lineStyle: { color: color("line-strong") } },
  axisTick: { show: false },
  axisLabel: { color: color("muted"), fontSize: 11, hideOverlap: true },
  nameTextStyle: { color: color("muted"), fontSize: 11 },
  splitLine: { lineStyle: { color: color("line") } },
});

function styled({ zooms, ...option }) {
  const base = axisStyle();
  const axis = (own, extra) => ({ ...base, ...extra, ...own, axisLabel: { ...base.axisLabel, ...(own.type === "category" ? {} : { formatter: tick }), ...(own.axisLabel || {}) } });
  const many = (own, extra) => (Array.isArray(own) ? own.map((o) => axis(o, extra)) : axis(own || {}, extra));
  const named = [option.yAxis].flat().some((one) => one?.name);
  return {
    animation: false,
    textStyle: { fontFamily: getComputedStyle(document.body).fontFamily },
    ...option,
    toolbox: zooms ? { show: true, top: -50, feature: { dataZoom: { yAxisIndex: "none", brushStyle: { color: color("accent"), opacity: 0.15 } } } } : undefined,
    grid: { left: 6, right: 14, top: (option.legend ? 32 : 12) + (named ? 18 : 0), bottom: option.xAxis?.name ? 24 : 6, containLabel: true, ...(option.grid || {}) },
    legend: option.legend && { top: 0, left: 0, itemWidth: 14, itemHeight: 8, itemGap: 14, icon: "roundRect", type: "scroll",
      textStyle: { color: color("ink-soft"), fontSize: 11 }, inactiveColor: color("line-strong"), pageTextStyle: { color: color("muted") },
      pageIconColor: color("muted"), ...option.legend },
    tooltip: {
      trigger: "axis", renderMode: "richText", confine: true, backgroundColor: color("surface"), borderColor: color("line-strong"), borderWidth: 1,
      padding: [6, 9], textStyle: { color: color("ink"), fontSize: 11.5 }, axisPointer: { lineStyle: { color: color("line-strong") } }, ...(option.tooltip || {}),
    },
    xAxis: many(option.xAxis, { splitLine: { show: false }, nameLocation: "middle", nameGap: 22 }),
    yAxis: many(option.yAxis, { axisLine: { show: false }, scale: true, nameLocation: "end", nameGap: 8, nameTextStyle: { color: color("muted"), fontSize: 11, align: "left" } }),
  };
}

// A line of a chart. What is null is a gap.
export const curve = (name, data, tint, width = 2, dash = "solid", more = {}) => ({ name, type: "line", data, symbol: "none", lineStyle: { width, color: tint, type: dash }, itemStyle: { color: tint }, ...more });
export const byIteration = (rows) => ({ type: "category", data: rows.map((r) => String(r.iteration)), name: "iteration" });

// The series of a band between two lines over a category axis. Without a name: legend and tooltip leave it out.
export function band(low, high, tint) {
  const common = { type: "line", symbol: "none", lineStyle: { opacity: 0 }, silent: true, stack: `band-${tint}-${low.join()}`, stackStrategy: "all", tooltip: { show: false }, z: 1 };
  return [
    { ...common, data: low },
    { ...common, data: low.map((v, i) => (v === null ? null : high[i] - v)), areaStyle: { color: tint, opacity: 0.16 } },
  ];
}
