// All runs of the workspace: what each is, how far, how good. Ticked ones are compared.
import { h, ago, interval, levelOf, percent, seconds, empty, card, words } from "./dom.js";
import { ask } from "./data.js";
import { line } from "./text.js";
import { redraw } from "./frame.js";

const chosen = new Set();
let wanted = ""; // the filter

export const runsView = {
  load: () => Promise.all([ask("runs")]),
  lively: (data) => data.runs.some((r) => r.state === "running"),
  draw(_, data) {
    const head = h("div.page-head", {}, h("h1", {}, "Runs"), h("p.about", {}, h("span", {}, line(data.workspace))));
    if (!data.runs.length) {
      return [head, empty("No run here yet", "A run shows up on this page as soon as it starts. The built-in world needs nothing but a CPU and some minutes:", "align run recipe=pco run=demo")];
    }
    for (const name of chosen) if (!data.runs.some((r) => r.name === name)) chosen.delete(name);
    head.append(tools(data));
    const asked = wanted.toLowerCase();
    const shown = data.runs.filter((r) => [r.name, r.recipe, r.model, r.data, r.objective, r.state].join(" ").toLowerCase().includes(asked));
    return [head, card("", {}, shown.length ? table(shown) : h("p.inline-empty", {}, "No run matches the filter."))];
  },
};

function tools(data) {
  const compare = h("button.main", { disabled: chosen.size < 1, "data-focus": "compare", onclick: () => (location.hash = `#/compare?${new URLSearchParams([...chosen].map((n) => ["run", n]))}`) },
    chosen.size ? `Compare ${chosen.size}` : "Compare");
  return h("div.tools", {},
    h("span.note", {}, `${data.runs.length} runs`),
    h("input", { type: "search", placeholder: "Filter   /", "aria-label": "Filter runs", value: wanted, "data-focus": "filter", oninput: (e) => { wanted = e.target.value; redraw(); } }),
    compare);
}

function table(runs) {
  const all = runs.filter((r) => r.total).map((r) => r.name);
  const every = all.length > 0 && all.every((n) => chosen.has(n));
  const toggleAll = () => { for (const n of all) every ? chosen.delete(n) : chosen.add(n); redraw(); };
  const level = levelOf(runs.map((r) => (r.win_rates || []).at(-1)));
  const heads = ["Run", "State", "Steps", ["Win rate", "r"], level || "Interval", "By iteration", "Recipe", "Objective", "Model", "Data", ["Seed", "r"], ["Changed", "r"]];
  return h("div.scroll", { "data-scroll": "runs" }, h("table.runs", {},
    h("thead", {}, h("tr", {},
      h("th.tick", {}, h("input", { type: "checkbox", "aria-label": "Choose all shown", ...(every && { checked: true }), "data-focus": "all", onchange: toggleAll })),
      heads.map((head) => (Array.isArray(head) ? h(`th.${head[1]}`, {}, head[0]) : h("th", {}, head))))),
    h("tbody", {}, runs.map((run) => row(run, level)))));
}

function row(run, level) {
  const link = h("a", { href: `#/run/${encodeURIComponent(run.name)}`, "data-focus": `run-${run.name}` }, run.name);
  if (run.state === "unreadable") {
    return h("tr", {}, h("td.tick"), h("td.name", {}, run.name), h("td", {}, h("span.state.unreadable", {}, "unreadable")), h("td.muted", { colspan: 9 }, "run.json cannot be read"), h("td.r.muted", {}, ago(run.changed)));
  }
  const tick = h("input", { type: "checkbox", "aria-label": `Choose ${run.name}`, "data-focus": `tick-${run.name}`, ...(chosen.has(run.name) && { checked: true }),
    onchange: (e) => { e.target.checked ? chosen.add(run.name) : chosen.delete(run.name); redraw(); } });
  const last = run.win_rates[run.win_rates.length - 1];
  return h("tr", { class: chosen.has(run.name) ? "chosen" : null },
    h("td.tick", {}, tick), h("td.name", {}, link),
    h("td", {}, h("span.state", { class: run.state }, run.state)),
    h("td", {}, steps(run)),
    h("td.r", {}, last ? h("b", {}, percent(last.value)) : h("span.none", {}, "–")),
    h("td.interval-cell", {}, interval(last, "rate", level)),
    h("td", {}, spark(run.win_rates)),
    h("td", {}, run.recipe), h("td", {}, words(run.objective)), h("td", {}, line(run.model || "")), h("td", {}, run.data), h("td.r", {}, run.seed),
    h("td.r.muted", {}, ago(run.changed)));
}

function steps(run) {
  const part = run.progress ? run.progress.done / run.progress.total : 0;
  const share = `${(100 * (run.done + part)) / Math.max(1, run.total)}%`;
  const left = run.progress && run.progress.ends ? run.progress.ends - Date.now() / 1000 : null;
  return h("span.steps", {},
    h("span.meter", { class: run.done === run.total ? "done" : null, style: { "--share": share }, "aria-hidden": "true" }, h("i")),
    h("span.count", {}, `${run.done}/${run.total}`),
    run.current ? h("span.now", {}, `${run.current}${run.progress ? ` ${Math.floor(100 * part)} %` : ""}`, left !== null && left > 0 ? h("span.muted", {}, ` ${seconds(left)} left`) : null) : null);
}

// Win rates by iteration as a line of 96 by 22; the mark at half is the baseline.
function spark(rates) {
  if (!rates.length) return h("span.none", {}, "–");
  const [wide, high] = [96, 22];
  const values = rates.map((r) => r.value);
  const low = Math.min(0.5, ...values), top = Math.max(0.55, ...values);
  const x = (i) => (rates.length > 1 ? 4 + (i * (wide - 8)) / (rates.length - 1) : wide / 2);
  const y = (v) => high - 4 - ((v - low) / (top - low)) * (high - 8);
  const make = (name, attributes) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [k, v] of Object.entries(attributes)) element.setAttribute(k, v);
    return element;
  };
  const svg = make("svg", { width: wide, height: high, class: "spark", role: "img", "aria-label": values.map((v) => percent(v)).join(", ") });
  svg.append(make("line", { x1: 0, x2: wide, y1: y(0.5), y2: y(0.5), class: "half" }));
  svg.append(make("polyline", { points: values.map((v, i) => `${x(i)},${y(v)}`).join(" ") }));
  svg.append(make("circle", { cx: x(values.length - 1), cy: y(values[values.length - 1]), r: 2.5 }));
  return svg;
}
