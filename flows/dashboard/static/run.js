// One run: the DAG with iterations as rows and stages as pills, what each step cost, where it came from, its log.
import { h, ago, card, FORMS, interval, levelOf, memory, number, pValue, percent, rough, seconds, signed, when, words, to, table, sum, left } from "./dom.js";
import { exported, askOf } from "./data.js";
import { line, plain } from "./text.js";
import { finished, go, running } from "./frame.js";
import { edges } from "./edges.js";
import { timeline } from "./timeline.js";
import { meaning } from "./verdicts.js";

export const runView = {
  async load(place) {
    const run = await askOf(place.run);
    const step = chosenStep(place, run);
    const times = exported ? null : askOf(place.run, "timeline");
    const log = step && !exported && step.state !== "waiting" && !step.made_by ? await askOf(place.run, "log", { step: step.name, lines: 60 }) : null;
    return [run, log, await times];
  },
  lively: running,
  draw: (place, run, log, times) => [
    headline(run, true),
    figures(run),
    meaning(run, true),
    card("Steps", { note: "Choose one to see what it reads, who reads it, what it gave and its log." }, dag(place, run), legend()),
    detail(place, run, log),
    timeline(run, times),
    card("Time and memory", { note: work(run) }, cost(place, run)),
  ],
};

function work(run) {
  const [all, reused] = [sum(run.steps.map((s) => s.seconds)), sum(run.steps.filter((s) => s.made_by).map((s) => s.seconds))];
  return reused ? `${seconds(all)} of work, ${seconds(reused)} of it taken from other runs` : all ? `${seconds(all)} of work` : null;
}

// The name, what the run is, and how it stands. Every view of a run begins with it.
export function headline(run, long = false) {
  const part = (label, value) => value !== "" && value !== null && value !== undefined && h("span", {}, `${label} `, h("b", {}, line(String(value))));
  return h("div.page-head", {}, h("h1", {}, run.name), h("span.state", { class: run.state }, run.state),
    h("p.about", {}, part("recipe", run.recipe), part("objective", words(run.objective)), part("model", run.model), part("data", run.data), part("seed", run.seed),
      long && h("span", {}, `started ${ago(run.created)}`)),
    long && h("div.tools", {}, run.iterations.some((r) => r.cells.win_rate) && !exported ? h("a.button", { href: `#/label/${encodeURIComponent(run.name)}` }, "Judge by hand") : null, copy("Copy its command", run.command)));
}

// A button that puts a command where it can be pasted.
export const copy = (label, text) => h("button", { title: text, "data-focus": `copy-${label}`, onclick: async (e) => {
  const button = e.currentTarget;
  try { await navigator.clipboard.writeText(text); button.textContent = "Copied"; } catch { button.replaceWith(h("code.command", {}, text)); }
} }, label);

// The numbers one looks for first, each a way into its history.
function figures(run) {
  const rows = run.iterations.filter((r) => r.cells.win_rate);
  const last = rows[rows.length - 1];
  const before = rows[rows.length - 2];
  const done = run.steps.filter(finished).length;
  const going = run.steps.filter(running).map(progressText).join(", ");
  const items = [["Steps", `${done} of ${run.steps.length}`, going || run.state]];
  const add = (label, cell, form, note) => cell && items.push([label, source(run.name, cell, FORMS[form](cell.value)), note]);
  if (last) {
    const rate = last.cells.win_rate;
    add(`Win rate, iteration ${last.iteration}`, rate, "rate", bounds(rate, "rate"));
    add(run.columns.find((c) => c.name === "win_rate_reward").label, last.cells.win_rate_reward, "rate", before && before.cells.win_rate_reward ? change(last, before, "win_rate_reward", true) : null);
    if (before) add(`Gain on iteration ${before.iteration}, points`, last.cells.gain, "gain", [bounds(last.cells.gain, "gain"), pValue(last.cells.gain?.p_value)].filter(Boolean).join(", "));
    add("At equal length", last.cells.length_controlled, "rate", bounds(last.cells.length_controlled, "rate"));
    add("Length", last.cells.length, "len", before ? change(last, before, "length") : "tokens an answer");
  }
  const kept = sum(run.iterations.map((r) => r.cells.kept?.value));
  const lost = sum(run.iterations.flatMap((r) => Object.values(r.dropped).map((d) => d.value)));
  if (kept) items.push(["Groups kept", number(kept), `${number(lost)} rows left out`]);
  items.push(["Work", seconds(sum(run.steps.filter((s) => !s.made_by).map((s) => s.seconds))) || "–", `peak ${memory(Math.max(0, ...run.steps.map((s) => s.memory_mb || 0))) || "–"}`]);
  return h("dl.figures", {}, items.map(([label, value, note]) => h("div.figure", {}, h("dt", {}, label), h("dd", {}, value, note && h("small", {}, note)))));
}

const bounds = (cell, form) => (cell && cell.low !== undefined ? `${levelOf([cell]) || "interval"}: ${interval(cell, form, true)}` : null);

function change(last, before, name, points = false) {
  const [a, b] = [last.cells[name], before.cells[name]];
  if (!a || !b) return null;
  const text = points ? `${signed(100 * (a.value - b.value), (v) => number(v, 1))} points` : b.value ? signed(a.value / b.value - 1, percent) : "";
  return `${text} on iteration ${before.iteration}`;
}

// A number that leads to the artifact it was read from.
export function source(run, cell, text) {
  return h("a.number", { href: to(run, "lineage", { step: cell.step, field: cell.field }), title: `${cell.field} of ${cell.step}` }, text);
}

export function progressText(step) {
  const p = step.progress;
  if (!p) return `${step.name} has started`;
  return `${step.name} ${Math.floor((100 * p.done) / p.total)} %${left(p) ? `, ${seconds(left(p))} left` : ""}`;
}

function chosenStep(place, run) {
  const name = place.parameters.get("step");
  const auto = run.steps.find((s) => s.state === "failed") || run.steps.find((s) => s.state === "running") || run.steps.find((s) => s.state === "interrupted");
  return run.steps.find((s) => s.name === name) || auto || run.steps.filter((s) => s.stage === "evaluate" && s.key).pop() || run.steps[run.steps.length - 1];
}

function dag(place, run) {
  const chosen = chosenStep(place, run);
  const reads = new Set((chosen?.inputs || []).map((ref) => ref.split("/")[0]));
  const read = new Set(run.steps.filter((s) => s.inputs.some((ref) => ref.split("/")[0] === chosen?.name)).map((s) => s.name));
  const numbers = [...new Set(run.steps.map((s) => s.iteration))].sort((a, b) => a - b);
  const later = [...new Set(run.steps.filter((s) => s.iteration > 0).map((s) => s.base))];
  const order = inOrder(run.steps.filter((s) => s.iteration > 0), later);
  return h("div.scroll.dag-scroll", { "data-scroll": "dag" }, edges(run, chosen, h("div.dag", {}, numbers.map((n) => {
    const own = run.steps.filter((s) => s.iteration === n);
    const cells = n === 0 ? own.map((s) => pill(place, s, chosen, reads, read)) : order.map((base) => {
      const step = own.find((s) => s.base === base);
      return step ? pill(place, step, chosen, reads, read) : h("span.pill.absent", { "aria-hidden": "true" });
    });
    return h("div.dag-row", {}, h("h3", {}, n === 0 ? "Before the loop" : `Iteration ${n}`), h("div.pills", { class: n === 0 ? "free" : "aligned", style: { "--columns": order.length } }, cells));
  }))));
}

// The stages of an iteration in running order, also where the first iterations lack some.
function inOrder(steps, bases) {
  const fullest = Math.max(...steps.map((s) => s.iteration));
  const last = steps.filter((s) => s.iteration === fullest).map((s) => s.base);
  return [...last, ...bases.filter((b) => !last.includes(b))];
}

const STATE_WORDS = { waiting: "waiting", running: "running", done: "done", cached: "cached", failed: "failed", interrupted: "interrupted", stale: "stale", missing: "artifact missing", skipped: "kept from running by a gate" };

function pill(place, step, chosen, reads, read) {
  const p = step.progress;
  const share = p ? (100 * p.done) / p.total : 0;
  const second = step.state === "running" ? (p ? `${Math.floor(share)} %${left(p) ? ` · ${rough(left(p))}` : ""}` : "starting")
    : step.state === "done" ? seconds(step.seconds) : step.state === "cached" ? (step.made_by ? `from ${step.made_by.run}` : `cached · ${seconds(step.seconds)}`) : STATE_WORDS[step.state] || step.state;
  const relation = step === chosen ? "chosen" : reads.has(step.name) ? "input" : read.has(step.name) ? "reader" : "";
  return h("button.pill", {
    class: `${step.state} ${relation}`, "data-focus": `pill-${step.name}`, "data-step": step.name, "aria-pressed": String(step === chosen), style: { "--share": `${share}%` },
    title: `${step.name}: ${STATE_WORDS[step.state] || step.state}`, onclick: () => go({ step: step.name }),
  }, h("b", {}, words(step.base)), h("small", {}, line(second, 40)));
}

function legend() {
  return h("div.legend", {}, ["done", "cached", "running", "waiting", "failed"].map((s) => h("span.state", { class: s }, s)),
    h("span.key.input", {}, "read by the chosen step"), h("span.key.reader", {}, "reads the chosen step"));
}

function detail(place, run, log) {
  const step = chosenStep(place, run);
  if (!step) return null;
  const lineage = to(run.name, "lineage", { step: step.name });
  const made = step.made_by;
  const rows = [
    ["Stage", words(step.stage)],
    ["State", [h("span.state", { class: step.state }, step.state === "running" ? progressText(step) : STATE_WORDS[step.state] || step.state), step.code !== undefined && step.state === "failed" ? ` exit code ${step.code}` : ""]],
    step.state === "failed" && step.means && ["It means", step.means],
    ["failed", "interrupted"].includes(step.state) && run.go_on && ["Go on with", [h("code", {}, run.go_on), " ", copy("Copy", run.go_on)]],
    made && ["Reused from", [h("a", { href: to(made.run, "", { step: made.step }) }, made.run), `, where it was ${made.step}`]],
    step.seconds !== null && ["Time", seconds(step.seconds)],
    step.memory_mb && ["Peak memory", memory(step.memory_mb)],
    step.ended && step.state !== "running" && ["Ended", `${when(step.ended)} UTC`],
    step.inputs.length && ["Reads", step.inputs.map((ref, i) => [i ? ", " : "", h("a", { href: to(run.name, "", { step: ref.split("/")[0] }) }, ref)])],
    step.key && ["Artifact", h("a.mono", { href: lineage }, `${step.stage}/${step.key}`)],
  ].filter(Boolean);
  const lines = log?.lines?.length ? log.lines : step.tail || [];
  const counts = Object.entries(step.counts);
  const dropped = Object.entries(step.dropped);
  return card(step.name, { tools: h("a", { href: lineage }, "Lineage") }, h("div.detail", {},
    h("div", {}, h("dl.facts", {}, rows.map(([k, v]) => [h("dt", {}, k), h("dd", {}, v)])),
      dropped.length ? [h("h3.spaced", {}, "Left out"), h("dl.facts", {}, dropped.map(([k, v]) => [h("dt", {}, line(words(k))), h("dd", {}, number(v))]))] : null),
    counts.length ? h("div", {}, h("h3", {}, "Numbers"), h("dl.facts.counts", {}, counts.map(([k, v]) => [h("dt", {}, line(words(k))), h("dd.r", {}, FORMS.any(v))]))) : null,
    lines.length ? h("div.log-box", {}, h("h3", {}, "Last lines of its log"), h("pre.log", { tabindex: 0, "data-focus": "log", "data-scroll": "log", "aria-label": `Log of ${step.name}` }, plain(lines.join("\n")))) : null));
}

function cost(place, run) {
  const most = Math.max(1, ...run.steps.map((s) => s.seconds || 0));
  const memoryMost = Math.max(1, ...run.steps.map((s) => s.memory_mb || 0));
  const bar = (value, top, thin) => value ? h("span.meter.long", { class: thin ? "thin" : null, style: { "--share": `${Math.max(1, (100 * value) / top)}%` }, "aria-hidden": "true" }, h("i")) : null;
  return table("cost", ["Step", "State", "r|Time", h("td"), "r|Memory", h("td"), "Computed by", "Artifact"],
    run.steps.map((s) => h("tr", {},
      h("td.name", {}, h("a", { href: to(run.name, "", { step: s.name }), "data-focus": `cost-${s.name}` }, s.name)),
      h("td", {}, h("span.state", { class: s.state }, STATE_WORDS[s.state] || s.state)),
      h("td.r", {}, seconds(s.seconds)), h("td.bar-cell", {}, bar(s.seconds, most)),
      h("td.r", {}, memory(s.memory_mb)), h("td.bar-cell", {}, bar(s.memory_mb, memoryMost, true)),
      h("td", {}, s.made_by ? h("a", { href: to(s.made_by.run, "", { step: s.made_by.step }) }, `${s.made_by.run}: ${s.made_by.step}`) : s.key && finished(s) ? h("span.muted", {}, "this run") : ""),
      h("td.mono.muted", {}, s.key ? s.key.slice(0, 10) : ""))), ".cost");
}
