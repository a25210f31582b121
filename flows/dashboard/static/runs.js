// All runs of the workspace: what each is, how far, how good; what somebody noted of it. Ticked ones are compared.
import { h, ago, svgOf, interval, levelOf, number, percent, seconds, empty, card, words, to, check, none, mean, left } from "./dom.js";
import { ask, exported, send, ofRun } from "./data.js";
import { line } from "./text.js";
import { settingsText } from "./arms.js";
import { go, redraw } from "./frame.js";

const chosen = new Set();
const ROWS = 100; // a page
let whole = false; // whether the first page was painted, and all may be asked for
let open = null; // the run whose note is being written

// name -> {label, of: the value it is sorted and folded by, cell, hint}; minor ones are not on a phone.
const COLUMNS = {
  name: { label: "Run", of: (r) => r.name },
  state: { label: "State", hint: "As its record and its process say.", of: (r) => r.state, cell: (r) => h("td", {}, h("span.state", { class: r.state }, r.state), h("span.now.phone", {}, r.current ? [" ", r.current] : null)) },
  rate: { label: "Win rate", right: true, of: (r) => r.win_rates.at(-1)?.value ?? null, hint: "Of the last iteration judged, by the score that decides; ties half. 50 % is the model it is compared with.",
    cell: (r) => h("td.r", {}, r.win_rates.length ? h("b", {}, percent(r.win_rates.at(-1).value)) : none()) },
  interval: { label: "Interval", minor: true, cell: (r, level) => h("td.interval-cell.minor", {}, interval(r.win_rates.at(-1), "rate", level)), hint: "Where the win rate would lie for other prompts of the same kind." },
  course: { label: "By iteration", minor: true, cell: (r) => h("td.minor", {}, spark(r.win_rates)), hint: "Win rate by iteration; the dotted line is a half." },
  steps: { label: "Steps", hint: "Done, of all; what runs, and its time left.", minor: true, of: (r) => r.done / Math.max(1, r.total), cell: (r) => h("td.minor", {}, steps(r)) },
  recipe: { label: "Recipe", hint: "Its loop.", fold: true, of: (r) => r.recipe },
  objective: { label: "Objective", hint: "Its loss.", fold: true, of: (r) => words(r.objective) },
  model: { label: "Model", hint: "Where it starts.", fold: true, of: (r) => r.model || "" },
  data: { label: "Data", hint: "What it learns from.", fold: true, of: (r) => r.data },
  seed: { label: "Seed", hint: "Runs that differ in it only are one experiment.", fold: true, right: true, of: (r) => r.seed },
  tags: { label: "Tags", hint: "Yours; click one.", fold: true, of: (r) => r.tags.join(" "), cell: (r) => h("td.minor.tags-cell", {}, r.tags.map((t) => h("button.tag", { title: `Only runs tagged ${t}`, onclick: () => go({ q: t, at: null }) }, line(t, 40)))) },
  note: { label: "Note", hint: "Yours.", fold: true, of: (r) => r.note, cell: (r) => h("td.note-cell.minor", {}, line(r.note, 80)) },
  created: { label: "Started", hint: "First start.", minor: true, right: true, hidden: true, of: (r) => r.created, cell: (r) => h("td.r.muted.minor", {}, ago(r.created)) },
  changed: { label: "Changed", hint: "When it last wrote.", minor: true, right: true, of: (r) => r.changed, cell: (r) => h("td.r.muted.minor", {}, ago(r.changed)) },
};

export const runsView = {
  // The first page of many is there at once; what is sorted or filtered needs all.
  async load(place) {
    if (whole || place.parameters.size) return [await ask("runs")];
    const data = await ask("runs", { first: ROWS });
    whole = true;
    return [data];
  },
  lively: (data) => data.runs.length < data.total || data.runs.some((r) => r.state === "running"),
  draw(place, data) {
    const head = h("div.page-head", {}, h("h1", {}, "Runs"), h("p.about", {}, h("span", {}, line(data.workspace))));
    if (!data.runs.length) {
      return [head, empty("No run here yet", "A run shows up on this page as soon as it starts. The built-in world needs nothing but a CPU and some minutes:", "align run recipe=pco run=demo")];
    }
    const get = (name) => place.parameters.get(name) || "";
    for (const name of chosen) if (!data.runs.some((r) => r.name === name)) chosen.delete(name);
    const archived = data.runs.filter((r) => r.archived).length;
    const kept = data.runs.filter((r) => get("archived") || !r.archived);
    const found = sorted(kept.filter((r) => [r.name, r.recipe, r.model, r.data, r.objective, r.state, r.note, ...(r.tags || [])].join(" ").toLowerCase().includes(get("q").toLowerCase())), get("sort"));
    const grouped = get("group") ? byExperiment(found) : found;
    const start = Math.min(Number(get("at")) || 0, Math.max(0, found.length - 1));
    const columns = shownColumns(kept, get("columns"));
    head.append(tools(place, get("archived") || archived ? kept.length : data.total, archived, columns));
    return [head, card("", {}, found.length ? [table(place, grouped.slice(start, start + ROWS), found, columns), same(kept, columns), pager(data.runs.length < data.total ? data.total : found.length, start)] : h("p.inline-empty", {}, "No run matches the filter."))];
  },
};

function sorted(runs, by) {
  const name = by.replace(/^-/, "");
  const { of } = COLUMNS[name] || {};
  if (!of) return runs;
  const lacks = (v) => v === null || v === undefined || v === "";
  const value = (r) => (r.state === "unreadable" && name !== "name" ? null : of(r));
  return runs.map((r) => [value(r), r]).sort(([a], [b]) => (lacks(a) || lacks(b) ? lacks(a) - lacks(b) : (a < b ? -1 : a > b ? 1 : 0) * (by.startsWith("-") ? -1 : 1))).map(([, r]) => r);
}

function byExperiment(runs) {
  const order = [...new Set(runs.map((r) => r.experiment))];
  return order.flatMap((e) => runs.filter((r) => r.experiment === e));
}

// Those asked for; else all but those in which every run is alike.
function shownColumns(runs, asked) {
  if (asked) return Object.keys(COLUMNS).filter((c) => c === "name" || asked.split(",").includes(c));
  const differ = (c) => new Set(runs.filter((r) => r.state !== "unreadable").map(COLUMNS[c].of)).size > 1;
  return Object.keys(COLUMNS).filter((c) => !COLUMNS[c].hidden && (!COLUMNS[c].fold || differ(c)));
}

// What is alike in all runs is said once, below.
function same(runs, columns) {
  const one = runs.find((r) => r.state !== "unreadable");
  const parts = one ? Object.keys(COLUMNS).filter((c) => COLUMNS[c].fold && !columns.includes(c) && c !== "note" && String(COLUMNS[c].of(one) ?? "") !== "" && new Set(runs.filter((r) => r.state !== "unreadable").map(COLUMNS[c].of)).size === 1) : [];
  return parts.length ? h("p.note.alike", {}, "in all: ", parts.map((c, i) => [i ? ", " : "", `${COLUMNS[c].label.toLowerCase()} `, h("b", {}, line(String(COLUMNS[c].of(one)), 60))])) : null;
}

function tools(place, total, archived, columns) {
  const get = (name) => place.parameters.get(name) || "";
  const compare = h("button.main", { disabled: chosen.size < 1, "data-focus": "compare", onclick: () => (location.hash = `#/compare?${new URLSearchParams([...chosen].map((n) => ["run", n]))}`) },
    chosen.size ? `Compare ${chosen.size}` : "Compare");
  const tick = (c) => check(`column-${c}`, columns.includes(c), COLUMNS[c].label, (on) => go({ columns: Object.keys(COLUMNS).filter((o) => (o === c ? on : columns.includes(o))).join(",") }, { local: true }));
  return h("div.tools", {},
    h("span.note", {}, `${number(total)} runs`),
    h("input", { type: "search", placeholder: "Filter   /", "aria-label": "Filter runs", value: get("q"), "data-focus": "filter", oninput: (e) => go({ q: e.target.value, at: null }, { local: true }) }),
    check("group", get("group"), "by experiment", (group) => go({ group }, { local: true })),
    archived ? check("archived", get("archived"), `archived (${archived})`, (on) => go({ archived: on }, { local: true })) : null,
    h("details.menu", { "data-open": "columns" }, h("summary.button", { "data-focus": "columns" }, "Columns"), h("div.menu-box", {}, Object.keys(COLUMNS).filter((c) => c !== "name").map(tick), h("button.plain", { onclick: () => go({ columns: null }) }, "As usual"))),
    compare);
}

function pager(total, start) {
  if (total <= ROWS) return null;
  return h("nav.pager", { "aria-label": "Pages" }, h("button", { disabled: start <= 0, "data-focus": "back", onclick: () => go({ at: Math.max(0, start - ROWS) || null }, { push: true }) }, "Back"),
    h("button", { disabled: start + ROWS >= total, "data-focus": "next", onclick: () => go({ at: start + ROWS }, { push: true }) }, "Next"),
    h("span.note", { role: "status" }, `${number(start + 1)} to ${number(Math.min(total, start + ROWS))} of ${number(total)}`));
}

function table(place, runs, found, columns) {
  const all = found.filter((r) => r.total).map((r) => r.name);
  const every = all.length > 0 && all.every((n) => chosen.has(n));
  const toggleAll = () => { for (const n of all) every ? chosen.delete(n) : chosen.add(n); redraw(); };
  const level = levelOf(found.map((r) => (r.win_rates || []).at(-1)));
  const by = place.parameters.get("sort") || "";
  const head = (c) => {
    const { label, right, of, hint, fold, minor = fold } = COLUMNS[c];
    const text = c === "interval" ? level || label : label;
    const [up, down] = [by === c, by === `-${c}`];
    return h("th", { class: [right && "r", minor && "minor", c === "name" && "run-cell"].filter(Boolean).join(" ") || null, "aria-sort": up ? "ascending" : down ? "descending" : null, title: hint },
      of ? h("button.sort", { "data-focus": `sort-${c}`, onclick: () => go({ sort: down ? c : up ? null : `-${c}` }, { local: true }) }, text, up ? " ↑" : down ? " ↓" : "") : text);
  };
  const seeds = (mark) => found.filter((r) => r.experiment === mark);
  const differ = differing(found);
  const grouped = place.parameters.get("group");
  return h("div.scroll", { "data-scroll": "runs" }, h("table.runs.pinned", {},
    h("thead", {}, h("tr", {}, columns.map((c) => (c === "name" ? h("th.run-cell", { "aria-sort": by === "name" ? "ascending" : by === "-name" ? "descending" : null }, h("input", { type: "checkbox", "aria-label": "Choose all shown", ...(every && { checked: true }), "data-focus": "all", onchange: toggleAll }), " ", head(c).firstChild) : head(c))), h("th.minor", {}, h("span.sr", {}, "Note")))),
    h("tbody", {}, runs.map((run, i) => [grouped && run.experiment !== runs[i - 1]?.experiment ? experimentRow(run, seeds(run.experiment), differ, columns.length + 1) : null, row(run, level, columns), open === run.name ? editor(run, columns.length + 1) : null]))));
}

// The typed settings in which the runs shown differ.
function differing(runs) {
  const typed = runs.map((r) => Object.fromEntries((r.typed || []).map((w) => w.split(/=(.*)/s))));
  return [...new Set(typed.flatMap(Object.keys))].filter((key) => new Set(typed.map((t) => t[key])).size > 1);
}

// An experiment is called by what differs.
function experimentRow(run, runs, differ, wide) {
  const own = Object.fromEntries((run.typed || []).map((w) => w.split(/=(.*)/s)).filter(([key]) => differ.includes(key)));
  const rates = runs.flatMap((r) => (r.win_rates?.length ? [r.win_rates.at(-1).value] : []));
  return h("tr.experiment", {}, h("td", { colspan: wide }, h("b", {}, line(settingsText(own) || [run.recipe, words(run.objective || ""), run.model, run.data].filter(Boolean).join(" · "))), h("span.muted", {}, ` ${runs.length} ${runs.length === 1 ? "run" : "runs"}${rates.length ? `, mean win rate ${percent(mean(rates))}` : ""}`)));
}

function row(run, level, columns) {
  const link = h("a", { href: to(run.name), "data-focus": `run-${run.name}` }, run.name);
  if (run.state === "unreadable") {
    return h("tr", {}, h("td.name.run-cell", {}, run.name), h("td.why", { colspan: columns.length }, h("span.state.unreadable", {}, "unreadable"), h("span.muted", {}, ` run.json cannot be read, changed ${ago(run.changed)}`)));
  }
  const tick = h("input", { type: "checkbox", "aria-label": `Choose ${run.name}`, "data-focus": `tick-${run.name}`, ...(chosen.has(run.name) && { checked: true }),
    onchange: (e) => { e.target.checked ? chosen.add(run.name) : chosen.delete(run.name); redraw(); } });
  const plain = ({ of, right }) => h("td.minor", { class: right ? "r" : null }, line(String(of(run) ?? ""), 60));
  const write = exported ? null : h("button.plain", { "aria-label": `Tags and note of ${run.name}`, "aria-expanded": String(open === run.name), "data-focus": `note-${run.name}`, onclick: () => { open = open === run.name ? null : run.name; redraw(); } }, "✎");
  return h("tr", { class: [chosen.has(run.name) && "chosen", run.archived && "archived"].filter(Boolean).join(" ") || null },
    columns.map((c) => (c === "name" ? h("td.name.run-cell", {}, tick, " ", link) : COLUMNS[c].cell ? COLUMNS[c].cell(run, level) : plain(COLUMNS[c]))), h("td.r.minor", {}, write));
}

function editor(run, wide) {
  const keep = async (body) => { await send(ofRun(run.name, "about"), body); open = null; go({}); };
  const submit = (e) => { e.preventDefault(); const { tags, note } = e.target.elements; keep({ tags: tags.value.split(",").map((t) => t.trim()).filter(Boolean), note: note.value }); };
  return h("tr.editor", {}, h("td", { colspan: wide }, h("form.note-form", { onsubmit: submit },
    h("label", {}, "Tags", h("input", { name: "tags", "data-keep": true, value: run.tags.join(", "), placeholder: "with commas between them", "data-focus": "edit-tags" })),
    h("label.grow", {}, "Note", h("input", { name: "note", "data-keep": true, value: run.note, "data-focus": "edit-note" })),
    h("button.main", {}, "Keep"), h("button", { type: "button", onclick: () => keep({ archived: !run.archived }) }, run.archived ? "Bring back" : "Archive"))));
}

function steps(run) {
  const part = run.progress ? run.progress.done / run.progress.total : 0;
  const share = `${(100 * (run.done + part)) / Math.max(1, run.total)}%`;
  return h("span.steps", {},
    h("span.meter", { class: run.done === run.total ? "done" : null, style: { "--share": share }, "aria-hidden": "true" }, h("i")),
    h("span.count", {}, `${run.done}/${run.total}`),
    run.current ? h("span.now", {}, `${run.current}${run.progress ? ` ${Math.floor(100 * part)} %` : ""}`, left(run.progress) ? h("span.muted", {}, ` ${seconds(left(run.progress))} left`) : null) : null);
}

// Win rates by iteration as a line of 96 by 22; the mark at half is the baseline.
function spark(rates) {
  if (!rates.length) return none();
  const [wide, high] = [96, 22];
  const values = rates.map((r) => r.value);
  const low = Math.min(0.5, ...values), top = Math.max(0.55, ...values);
  const x = (i) => (rates.length > 1 ? 4 + (i * (wide - 8)) / (rates.length - 1) : wide / 2);
  const y = (v) => high - 4 - ((v - low) / (top - low)) * (high - 8);
  const svg = svgOf("svg", { width: wide, height: high, class: "spark", role: "img", "aria-label": values.map((v) => percent(v)).join(", ") });
  svg.append(svgOf("line", { x1: 0, x2: wide, y1: y(0.5), y2: y(0.5), class: "half" }), svgOf("polyline", { points: values.map((v, i) => `${x(i)},${y(v)}`).join(" ") }), svgOf("circle", { cx: x(values.length - 1), cy: y(values.at(-1)), r: 2.5 }));
  return svg;
}
