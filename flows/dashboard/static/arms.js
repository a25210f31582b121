// How runs are told apart: an experiment (runs that differ in the seed only) is named by the settings that differ, and
// has a colour, a marker and a dash of its own. No two of 32 share colour and dash, for eyes that see fewer colours.
import { svgOf, words } from "./dom.js";
import { series } from "./chart.js";

const DASHES = ["solid", [8, 3], [2, 2.5], [9, 3, 2, 3]];
const MARKS = ["M0 5a5 5 0 1 0 10 0a5 5 0 1 0 -10 0Z", "M5 0L10 9H0Z", "M0.5 0.5H9.5V9.5H0.5Z", "M5 -0.5L10.5 5L5 10.5L-0.5 5Z", "M0 1H10L5 10Z"];

export const dashOf = (k) => (k + Math.floor(k / 8)) % 4;

// Of experiment k: for a line of a chart.
export const look = (k) => ({ tint: series(k), dash: DASHES[dashOf(k)], symbol: `path://${MARKS[k % 5]}` });

// The same as a small picture beside a name.
export function key(k) {
  const tint = `var(--series-${(k % 8) + 1})`, dash = DASHES[dashOf(k)];
  const svg = svgOf("svg", { width: 30, height: 12, viewBox: "0 0 30 12", class: "key-line", "aria-hidden": "true" });
  svg.append(svgOf("line", { x1: 0, x2: 30, y1: 6, y2: 6, stroke: tint, "stroke-width": 2, "stroke-dasharray": dash === "solid" ? "none" : dash.join(" ") }),
    svgOf("path", { d: MARKS[k % 5], fill: tint, transform: "translate(11 2) scale(0.8)" }));
  return svg;
}

// [{name, runs, mark, k}]: the experiments of a comparison, or with `apart` every run by itself.
export function experiments(data, apart) {
  const marks = [...new Set(data.runs.map((r) => (apart ? r.name : r.experiment)))];
  const several = new Set(data.runs.map((r) => r.experiment)).size > 1;
  return marks.map((mark, k) => {
    const runs = data.runs.filter((r) => (apart ? r.name : r.experiment) === mark);
    const alike = data.runs.filter((r) => r.experiment === runs[0].experiment).length > 1;
    const plain = several ? settingsText(runs[0].settings) || runs[0].name : runs.length > 1 || alike ? [runs[0].recipe, words(runs[0].objective)].filter(Boolean).join(" ") : runs[0].name;
    return { name: apart && alike ? `${plain}, seed ${runs[0].seed}` : plain, runs, mark: runs[0].experiment, k };
  });
}

// {"objective": "dpo", "objective.beta": "0.1"} -> "objective=dpo, beta=0.1"
export function settingsText(settings) {
  const keys = Object.keys(settings);
  const last = keys.map((key) => key.split(".").at(-1));
  return keys.map((key, i) => `${last.filter((l) => l === last[i]).length > 1 ? key : last[i]}=${cut(settings[key])}`).join(", ");
}

const cut = (text) => (text.length > 28 ? `…${text.slice(-27)}` : text);
