// Artifacts across runs as a graph: a column a run, a row a step, a bar an artifact over all runs that use it.
import { h, card, empty, number, seconds, svgOf, to } from "./dom.js";
import { key } from "./arms.js";
import { go } from "./frame.js";

const WIDE = 40, HIGH = 26, LEFT = 150;

export function shared(place, data, found, groups) {
  if (!found.artifacts.length) return empty("No artifact yet", "None of these runs has finished a step.");
  const used = found.artifacts.reduce((n, a) => n + a.runs.length, 0);
  const note = `${number(found.runs.length)} runs, ${number(used)} steps, ${number(found.artifacts.length)} artifacts: ${seconds(found.seconds)} of work; without sharing ${seconds(found.saved)} more`;
  const chosen = found.artifacts.find((a) => `${a.stage}/${a.key}` === place.parameters.get("artifact"));
  return card("Artifacts", { note, hint: "Each bar is an artifact; the dots on it are the runs that use it. Lines lead from what it was made of. Choose a bar to see its own." },
    h("div.scroll", { "data-scroll": "shared" }, graph(found, groups, chosen)), chosen ? about(found, chosen) : h("p.note", {}, "Choose a bar: what it is, who made it, who uses it."));
}

function about(found, a) {
  return h("p.chosen-artifact", { role: "status" }, h("a.mono", { href: to(found.runs[a.runs[0]], "lineage", { step: a.step }) }, `${a.stage}/${a.key}`), ` is ${a.step} of ${a.runs.map((r) => found.runs[r]).join(", ")}; made by ${a.made_by || "a run that is not here"} in ${seconds(a.seconds)}`);
}

function graph(found, groups, chosen) {
  const TOP = 34 + 5.2 * Math.max(...found.runs.map((r) => Math.min(20, r.length)));
  const x = (run) => LEFT + (run + 0.5) * WIDE;
  const y = (a) => TOP + (found.steps.indexOf(a.step) + 0.5) * HIGH;
  const [wide, high] = [LEFT + found.runs.length * WIDE + 90, TOP + found.steps.length * HIGH + 6];
  const svg = svgOf("svg", { width: wide, height: high, viewBox: `0 0 ${wide} ${high}`, class: "shared", role: "group", "aria-label": "Artifacts by run and step" });
  for (const [i, name] of found.runs.entries()) {
    const group = groups.find((g) => g.runs.some((r) => r.name === name));
    svg.append(svgOf("text", { transform: `translate(${x(i) + 3} ${TOP - 20}) rotate(-55)` }, name.length > 20 ? `…${name.slice(-19)}` : name), svgOf("g", { transform: `translate(${x(i) - 15} ${TOP - 16})` }, key(group?.k ?? 0)));
  }
  for (const [i, step] of found.steps.entries()) svg.append(svgOf("text", { x: LEFT - 8, y: TOP + (i + 0.5) * HIGH + 4, class: "step-name" }, step));
  // a line from each input, at the column of the first run that has both
  const lines = found.artifacts.flatMap((a) => a.reads.map((r) => [found.artifacts[r], a]));
  for (const [from, into] of lines.sort((l, m) => l.includes(chosen) - m.includes(chosen))) {
    const at = x(into.runs.find((r) => from.runs.includes(r)) ?? into.runs[0]);
    const bend = Math.min(14, 3 + (y(into) - y(from)) / 24);
    svg.append(svgOf("path", { d: `M${at} ${y(from)}C${at + bend} ${y(from) + 12} ${at + bend} ${y(into) - 12} ${at} ${y(into)}`, class: into === chosen ? "link in" : from === chosen ? "link out" : "link" }));
  }
  for (const a of found.artifacts) {
    const bar = svgOf("g", { class: `artifact${a.runs.length > 1 ? " many" : ""}${a === chosen ? " chosen" : ""}`, role: "button", tabindex: 0, "data-focus": `artifact-${a.stage}-${a.key}`, "aria-label": `${a.step}: ${a.runs.length} of ${found.runs.length} runs` },
      svgOf("title", {}, `${a.step}, ${a.stage}/${a.key.slice(0, 8)}: ${a.runs.map((r) => found.runs[r]).join(", ")}`),
      svgOf("rect", { x: x(a.runs[0]) - 8, y: y(a) - 8, width: x(a.runs.at(-1)) - x(a.runs[0]) + 16, height: 16, rx: 8 }), ...a.runs.map((r) => svgOf("circle", { cx: x(r), cy: y(a), r: 3 })));
    const choose = () => go({ artifact: a === chosen ? null : `${a.stage}/${a.key}` }, { local: true });
    bar.addEventListener("click", choose);
    bar.addEventListener("keydown", (e) => { if (e.key === "Enter" || e.key === " ") { e.preventDefault(); choose(); } });
    svg.append(bar);
  }
  return svg;
}
