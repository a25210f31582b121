// Training curves of several runs on the same axes: one number a chart, one look an experiment, hover in step over all.
import { h, card, compact, tick, words, check, choose, sum } from "./dom.js";
import { chart, curve } from "./chart.js";
import { experiments, look } from "./arms.js";
import { badMarks, overName, overText, overs, points, smoothed } from "./points.js";
import { families } from "./families.js";
import { go } from "./frame.js";

const TITLE = { at: "steps", tokens: "tokens", time: "time of work" };

export function overlay(place, data, metrics) {
  const get = (name) => place.parameters.get(name);
  const groups = experiments(data, get("apart") === "1");
  const steps = [...new Set(metrics.flatMap((m) => m.steps.map((s) => s.step)))];
  if (!steps.length) return h("p.inline-empty.card", {}, "None of these runs has a curve yet.");
  const trained = steps.filter((s) => s.startsWith("train["));
  const step = steps.includes(get("step")) ? get("step") : trained.at(-1) || steps[0];
  const over = overs.includes(get("by")) ? get("by") : "at";
  const set = { over, xlog: get("xlog") === "1", ylog: get("ylog") === "1", smooth: Math.min(0.99, Math.max(0, Number(get("smooth")) || 0)), range: rangeOf(get("zoom")) };
  const hidden = new Set(place.parameters.getAll("hide"));
  const lines = groups.flatMap((g) => (hidden.has(g.name) ? [] : g.runs.map((r) => ({ group: g, run: r.name, step: metrics.find((m) => m.run === r.name)?.steps.find((s) => s.step === step) })))).filter((l) => l.step);
  return [controls(steps, step, set, lines), grid(data, step, set, lines)];
}

const rangeOf = (text) => { const ends = (text || "").split(",").map(Number); return text && ends.length === 2 && ends.every(Number.isFinite) ? ends : null; };

function controls(steps, step, set, lines) {
  const tick = (key, label) => check(key, set[key], label, (on) => go({ [key]: on }));
  const lacking = set.over !== "at" && lines.some((l) => !l.step[set.over === "time" ? "worked" : "tokens"]);
  return h("div.controls", {},
    h("label", {}, "Step", choose("step", step, steps, (one) => go({ step: one, zoom: null }))),
    h("label", {}, "over", choose("by", set.over, overs.map((o) => [o, TITLE[o]]), (by) => go({ by: by === "at" ? null : by, zoom: null }))),
    h("label", {}, "Smoothing", h("input", { type: "range", min: 0, max: 0.98, step: 0.02, value: set.smooth, "data-focus": "smooth", "aria-label": "Smoothing", onchange: (e) => go({ smooth: Number(e.target.value) || null }) }), h("span.muted", {}, set.smooth.toFixed(2))),
    tick("xlog", "log x"), tick("ylog", "log y"),
    set.range ? h("button", { "data-focus": "unzoom", onclick: () => go({ zoom: null }) }, "Whole range") : h("span.note", {}, "drag over a chart to zoom, double click for the whole"),
    lacking ? h("span.note", {}, "some of these steps do not tell their rate and are left out") : null);
}

function grid(data, step, set, lines) {
  if (!lines.length) return h("p.inline-empty.card", {}, `None of the runs shown has a curve of ${step}.`);
  const names = [...new Set(lines.flatMap((l) => Object.keys(l.step.values)))];
  const cards = families(names).flatMap(([title, group]) => group.names.map((name) => {
    const same = words(name) === title.toLowerCase() || group.names.length === 1;
    const averaged = Math.max(...lines.map((l) => l.step.averaged));
    const positive = lines.some((l) => l.step.values[name]?.some((v) => v > 0));
    const own = { ...set, ylog: set.ylog && positive };
    const left = sum(lines.map((l) => (l.step.values[name] ? points(l.step, name, set.over, own).left : 0)));
    const note = [same && words(name) === title.toLowerCase() ? "" : words(name), averaged > 1 ? `mean of ${averaged} lines a point, thin: lowest and highest` : "", left ? `${left} points are not above 0: no place on a log axis` : "", set.ylog && !positive ? "nothing is above 0: no log axis" : ""].filter(Boolean).join("; ");
    return card(title, { note, hint: group.hint }, chart(`overlay/${data.runs.map((r) => r.name)}/${name}`, () => picture(name, group.unit, own, lines), {
      height: 210, label: `${title}: ${words(name)} of ${step}, ${lines.length} runs`, group: "overlay", onzoom: (ends) => go({ zoom: ends && ends.map((v) => Number(v.toPrecision(6))).join(",") }) }));
  }));
  return h("div.grid.three", {}, cards);
}

function picture(name, unit, set, lines) {
  const made = lines.filter((l) => l.step.values[name]).flatMap(({ group, run, step }) => {
    const { tint, dash, symbol } = look(group.k);
    const found = points(step, name, set.over, set);
    const few = found.points.length < 25;
    const line = (list, more) => curve(group.name, list, tint, 1.7, dash, { ...(few && { symbol }), symbolSize: 6, ...more });
    const quiet = { symbol: "none", silent: true, tooltip: { show: false }, z: 1 };
    const around = set.smooth ? [line(found.points, { ...quiet, lineStyle: { width: 1, color: tint, opacity: 0.28 } })]
      : [found.low, found.high].filter((l) => l.length).map((l) => line(l, { ...quiet, lineStyle: { width: 0.8, color: tint, opacity: 0.45 } }));
    // the mark in the middle of a long line, where there is no room for one a point
    const sign = !few && found.points.length ? [{ ...badMarks([found.points[Math.floor(found.points.length * (0.3 + 0.08 * (group.k % 6)))]].filter((p) => p[1] !== null), tint, group.name), symbol, symbolSize: 8, silent: true }] : [];
    return [...around, line(set.smooth ? smoothed(points(step, name, set.over, { ...set, range: null }).points, set.smooth).filter(([x]) => !set.range || (x >= set.range[0] && x <= set.range[1])) : found.points, { z: 4, id: `${run}` }), ...sign, ...(found.bad.length ? [badMarks(found.bad, tint, group.name)] : [])];
  });
  const text = (items) => [`${overName(set.over, lines[0].step.stage)} ${overText(set.over)(items[0].axisValue)}`, ...items.filter((i) => i.seriesType === "line" && i.value[1] !== null && made[i.seriesIndex]?.z === 4).map((i) => `${i.seriesName}  ${compact(i.value[1])}`)].join("\n");
  return { series: made, tooltip: { formatter: text },
    xAxis: { type: set.xlog ? "log" : "value", name: overName(set.over, lines[0].step.stage), axisLabel: { formatter: overText(set.over) }, min: set.range ? set.range[0] : "dataMin", max: set.range ? set.range[1] : "dataMax" },
    yAxis: { type: set.ylog ? "log" : "value", name: unit || words(name) } };
}
