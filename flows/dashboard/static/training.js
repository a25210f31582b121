// Live curves of every training and sampling step, a chart per kind of number.
import { h, card, compact, empty, tick, words } from "./dom.js";
import { ask } from "./data.js";
import { chart, series } from "./chart.js";
import { go } from "./frame.js";
import { headline, progressText } from "./run.js";

// In this order; the first family whose pattern fits takes the number.
const FAMILIES = [
  ["Loss", /(^|_)(loss|nll)$|^ce_|^cringe_|_ce$/, "lower is better"],
  ["Log-probs", /logps$/, "nats, sum over a completion"],
  ["Log-ratios to the reference", /log_ratio$/, "nats"],
  ["Margins", /margin|gap/, ""],
  ["Rewards", /reward/, ""],
  ["Accuracy", /accuracy|share$|rate$|^gate/, ""],
  ["Learning rate", /^lr$/, ""],
  ["Gradient norm", /grad_norm/, "before clipping"],
  ["Tokens per second", /tokens_per_second/, ""],
  ["Seconds per step", /seconds_per_step/, ""],
  ["Time left", /^eta/, "seconds"],
  ["Memory", /memory/, ""],
  ["Utilisation", /util|busy/, "share of the peak"],
  ["Length", /length|tokens$/, "tokens"],
];
const TRAINS = new Set(["sft", "train_reward", "train_preference"]);

export const trainingView = {
  load: (place) => Promise.all([ask(`runs/${encodeURIComponent(place.run)}`), ask(`runs/${encodeURIComponent(place.run)}/metrics`)]),
  lively: (run) => run.state === "running",
  draw(place, run, metrics) {
    const steps = metrics.steps.filter((s) => Object.keys(s.values).length);
    if (!steps.length) return [headline(run), empty("No curve yet", "Curves begin with the first training step; what runs now is on the run's page. To start one:", "align run recipe=pco run=demo")];
    const chosen = choice(place, steps);
    const running = run.steps.find((s) => s.state === "running");
    return [headline(run), h("div.chooser", {}, h("div.chips", { role: "group", "aria-label": "Steps" }, steps.map((s) => chip(place, s, chosen))),
      running && h("span.note", {}, progressText(running))), h("div.grid.three", {}, families(run, chosen))];
  },
};

function choice(place, steps) {
  const asked = (place.parameters.get("steps") || "").split(",").filter(Boolean);
  const found = steps.filter((s) => asked.includes(s.step));
  if (found.length) return found;
  const live = steps.filter((s) => s.state === "running" && TRAINS.has(s.stage));
  const trained = steps.filter((s) => s.stage === "train_preference");
  return live.length ? live : trained.length ? trained.slice(-1) : steps.filter((s) => TRAINS.has(s.stage)).slice(-1).concat(steps.slice(0, 1)).slice(0, 1);
}

function chip(place, step, chosen) {
  const on = chosen.includes(step);
  const click = () => {
    const names = on ? chosen.filter((s) => s !== step) : [...chosen, step];
    go({ steps: names.map((s) => s.step).join(",") });
  };
  const index = chosen.indexOf(step);
  return h("button.chip", { class: step.state, "aria-pressed": String(on), "data-focus": `chip-${step.step}`, onclick: click }, on ? h("i.swatch", { style: { background: `var(--series-${(index % 8) + 1})` } }) : null, step.step);
}

function families(run, chosen) {
  const names = [...new Set(chosen.flatMap((s) => Object.keys(s.values)))];
  const groups = new Map();
  for (const name of names) {
    const family = FAMILIES.find(([, pattern]) => pattern.test(name));
    const title = family ? family[0] : words(name);
    if (!groups.has(title)) groups.set(title, { note: family ? family[2] : "", names: [] });
    groups.get(title).names.push(name);
  }
  const order = (title) => { const i = FAMILIES.findIndex(([t]) => t === title); return i < 0 ? 99 : i; };
  return [...groups].sort(([a], [b]) => order(a) - order(b)).map(([title, group]) => {
    const averaged = Math.max(...chosen.map((s) => s.averaged));
    const note = [group.names.length === 1 && words(group.names[0]) !== title.toLowerCase() ? words(group.names[0]) : "", group.note, averaged > 1 ? `mean of ${averaged} lines a point` : ""].filter(Boolean).join(", ");
    return card(title, { note }, chart(`${run.name}/training/${title}`, () => curves(chosen, group.names), { height: 200, label: title }));
  });
}

const DASHES = ["solid", "dashed", "dotted", [6, 2, 1, 2]];

// Colour tells the step, the kind of line the number; with one step, colour tells the number.
function curves(steps, names) {
  const lines = steps.flatMap((step, i) => names.filter((n) => step.values[n]).map((name) => {
    const place = names.indexOf(name);
    const tint = steps.length > 1 ? series(i) : series(place);
    return { name: steps.length > 1 ? (names.length > 1 ? `${step.step} ${words(name)}` : step.step) : words(name), type: "line", symbol: step.at.length < 3 ? "circle" : "none", connectNulls: true,
      data: step.at.map((at, k) => [at, step.values[name][k]]), lineStyle: { width: 1.6, color: tint, type: steps.length > 1 ? DASHES[place % DASHES.length] : "solid" }, itemStyle: { color: tint } };
  }));
  return { legend: lines.length > 1 ? {} : undefined, tooltip: { valueFormatter: compact }, series: lines,
    xAxis: { type: "value", axisLabel: { formatter: tick }, max: "dataMax", min: "dataMin" }, yAxis: { type: "value", axisLabel: { formatter: tick } } };
}
