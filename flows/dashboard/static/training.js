// Live curves of every training and sampling step, a chart per kind of number.
import { h, card, compact, empty, words, check } from "./dom.js";
import { askOf } from "./data.js";
import { chart, curve, series } from "./chart.js";
import { go, running } from "./frame.js";
import { families } from "./families.js";
import { badMarks, overName, overText, points } from "./points.js";
import { headline, progressText } from "./run.js";

const TRAINS = new Set(["sft", "train_reward", "train_preference"]);

export const trainingView = {
  load: (place) => Promise.all([askOf(place.run), askOf(place.run, "metrics")]),
  lively: running,
  draw(place, run, metrics) {
    const steps = metrics.steps.filter((s) => Object.keys(s.values).length);
    if (!steps.length) return [headline(run), empty("No curve yet", "Curves begin with the first training step; what runs now is on the run's page. To start one:", "align run recipe=pco run=demo")];
    const chosen = choice(place, steps);
    const running = run.steps.find((s) => s.state === "running");
    return [headline(run), h("div.chooser", {}, h("div.chips", { role: "group", "aria-label": "Steps" }, steps.map((s) => chip(place, s, chosen))),
      check("by", place.parameters.get("by"), "over time of work", (on) => go({ by: on && "time" })),
      running && h("span.note", {}, progressText(running))), h("div.grid.three", {}, grid(place, run, chosen))];
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

function grid(place, run, chosen) {
  const over = place.parameters.get("by") === "time" ? "time" : "at";
  return families([...new Set(chosen.flatMap((s) => Object.keys(s.values)))]).map(([title, group]) => {
    const averaged = Math.max(...chosen.map((s) => s.averaged));
    const note = [group.names.length === 1 && words(group.names[0]) !== title.toLowerCase() ? words(group.names[0]) : "", averaged > 1 ? `mean of ${averaged} lines a point` : ""].filter(Boolean).join(", ");
    return card(title, { note, hint: group.hint }, chart(`${run.name}/training/${title}`, () => curves(chosen, group, over), { height: 200, label: title, group: "training" }));
  });
}

const DASHES = ["solid", "dashed", "dotted", [6, 2, 1, 2]];

// Colour tells the step, the kind of line the number; with one step, colour tells the number.
function curves(steps, { names, unit }, over) {
  const lines = steps.flatMap((step, i) => names.filter((n) => step.values[n]).flatMap((name) => {
    const place = names.indexOf(name);
    const tint = steps.length > 1 ? series(i) : series(place);
    const found = points(step, name, over);
    const label = steps.length > 1 ? (names.length > 1 ? `${step.step} ${words(name)}` : step.step) : words(name);
    return [curve(label, found.points, tint, 1.6, DASHES[place % DASHES.length], found.points.length < 3 ? { symbol: "circle" } : {}), ...(found.bad.length ? [badMarks(found.bad, tint, label)] : [])];
  }));
  return { legend: steps.length > 1 || names.length > 1 ? {} : undefined, tooltip: { valueFormatter: compact }, series: lines,
    xAxis: { type: "value", name: overName(over, steps[0].stage), axisLabel: { formatter: overText(over) }, max: "dataMax", min: "dataMin" }, yAxis: { type: "value", name: unit } };
}
