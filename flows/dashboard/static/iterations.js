// What each iteration did: the table of its numbers, then one chart per question.
import { h, card, empty, FORMS, interval, levelOf, pValue, memory, number, percent, seconds, words, choose, none } from "./dom.js";
import { askOf } from "./data.js";
import { byIteration, chart, color, curve, series, shade, solid } from "./chart.js";
import { line } from "./text.js";
import { headline, source } from "./run.js";
import { diagnosed } from "./diagnosed.js";
import { gates } from "./gates.js";
import { categories } from "./categories.js";
import { bars, lines } from "./lines.js";
import { HINTS } from "./hints.js";
import { meaning } from "./verdicts.js";
import { go, running } from "./frame.js";

export const iterationsView = {
  load: (place) => Promise.all([askOf(place.run), askOf(place.run, "iterations")]),
  lively: running,
  draw(place, run, more) {
    if (!run.iterations.some((r) => Object.keys(r.cells).length)) {
      return [headline(run), empty("No iteration has a number yet", "The first ones appear when a step that samples, scores or evaluates is done. This shows how far the run is:", `align status ${run.name}`)];
    }
    return [headline(run), meaning(run), table(place, run), gates(run, more), categories(run, more), h("div.grid", {}, charts(place, run, more))];
  },
};

const RARE = ["prompts", "samples", "reward", "best", "margin", "tokens_per_second", "truncated"];
const PHONE = ["win_rate", "gain", "length"];

function table(place, run) {
  const rows = run.iterations.filter((r) => Object.keys(r.cells).length || r.seconds);
  const every = place.parameters.get("all") === "1";
  const known = run.columns.filter((c) => rows.some((r) => r.cells[c.name]));
  const columns = known.filter((c) => every || !RARE.includes(c.name));
  const side = (c) => (every || PHONE.includes(c.name) ? "r" : "r minor");
  const level = (c) => levelOf(rows.map((r) => r.cells[c.name]));
  const bounded = (c) => rows.some((r) => r.cells[c.name]?.low !== undefined);
  const head = (c) => h("th", { class: side(c), title: c.hint }, c.label, bounded(c) && h("small.bounds", {}, level(c) || "interval"));
  const cells = (c, r) => {
    const cell = r.cells[c.name];
    if (!cell) return h("td", { class: side(c) }, none());
    const around = [interval(cell, c.form, level(c)), pValue(cell.p_value)].filter(Boolean);
    return h("td", { class: side(c) }, source(run.name, cell, FORMS[c.form](cell.value)), around.map((text) => h("small.bounds", {}, text)));
  };
  const more = h("button", { "aria-pressed": String(every), "data-focus": "all-columns", onclick: () => go({ all: !every }, { local: true }) }, "All columns");
  const rest = every ? "r" : "r minor";
  return card("Iterations", { note: "Every number leads to the artifact it was read from.", tools: more }, h("div.scroll", { "data-scroll": "iterations", tabindex: 0, "aria-label": "Iterations" }, h("table.pinned.iterations", {},
    h("thead", {}, h("tr", {}, h("th", {}, "Iteration"), columns.map(head), h("th", { class: rest, title: HINTS.left_out }, "Left out"), h("th", { class: rest, title: HINTS.time }, "Time"), every ? h("th.r", { title: HINTS.memory }, "Peak memory") : null)),
    h("tbody", {}, rows.map((r) => h("tr", {},
      h("td.name", {}, r.iteration === 0 ? "before the loop" : r.iteration), columns.map((c) => cells(c, r)),
      h("td", { class: rest }, leftOut(run, r)), h("td", { class: rest }, seconds(r.seconds)), every ? h("td.r", {}, memory(r.memory_mb)) : null))))));
}

function leftOut(run, row) {
  const entries = Object.entries(row.dropped);
  if (!entries.length) return h("span.none", {}, "0");
  const total = entries.reduce((a, [, d]) => a + d.value, 0);
  return h("span", { title: entries.map(([reason, d]) => `${number(d.value)} ${words(reason)}`).join("\n") }, source(run.name, { step: entries[0][1].step, field: entries[0][0] }, number(total)));
}

const inLoop = (run) => run.iterations.filter((r) => r.iteration > 0);
const value = (r, name) => r.cells[name]?.value ?? null;

function charts(place, run, more) {
  const rows = inLoop(run);
  const key = (name) => `${run.name}/iterations/${name}`;
  const found = [];
  const add = (title, note, option, extra = {}) => found.push(card(title, { note, hint: HINTS[title], ...extra }, chart(key(title), option, { label: `${title}. ${note || ""}` })));
  if (rows.some((r) => r.cells.win_rate)) add("Win rate", `against the baseline, ties half; bars are ${levelOf(rows.map((r) => r.cells.win_rate)) || ""} intervals`, () => winRates(rows, run.columns.find((c) => c.name === "win_rate_reward").label.replace("By ", "")));
  for (const [purpose, title] of [["train", "Scores of the samples"], ["judge", "Scores of the answers judged"]]) {
    const scores = Object.keys(more.histograms[purpose]);
    if (!scores.length) continue;
    const score = scores.includes(place.parameters.get(purpose)) ? place.parameters.get(purpose) : scores.includes("gold") && purpose === "judge" ? "gold" : scores[scores.length - 1];
    const tools = scores.length > 1 && scores.map((s) => h("button", { "aria-pressed": String(s === score), "data-focus": `score-${purpose}-${s}`, onclick: () => go({ [purpose]: s }, { local: true }) }, words(s)));
    add(title, `${scores.length > 1 ? "" : `${words(score)}, `}share and mean${partial(more.histograms[purpose][score])}`, () => histogram(more.histograms[purpose][score]), { tools });
  }
  if (rows.some((r) => r.cells.reward)) add("Reward and best of N", "of the samples, as the loop sees it", () => lines(rows, [["mean", (r) => value(r, "reward")], ["best of N", (r) => value(r, "best")], ["margin chosen to rejected", (r) => value(r, "margin")]]));
  if (rows.some((r) => r.cells.length)) add("Length of the answers", "tokens, evaluated answers", () => lines(rows, [["mean length", (r) => value(r, "length")]], baseline(more, "baseline_length_mean"), "tokens"));
  found.push(...diagnosed(run, more), ...trained(key, more), ...kept(key, run, rows), any(place, key, run, more));
  return found;
}

function partial(made) {
  const part = made.series.find((s) => s.rows < s.of);
  return part ? `, from evenly spread rows (iteration ${part.iteration}: ${part.rows} of ${part.of} ${part.unit})` : "";
}

function baseline(more, field) {
  const known = more.numbers.filter((n) => field in n.counts);
  return known.length ? { name: "baseline", value: known[known.length - 1].counts[field] } : null;
}

function winRates(rows, reward) {
  const having = rows.filter((r) => r.cells.win_rate);
  const at = (name, part) => having.map((r) => r.cells[name]?.[part] ?? null);
  const accent = color("series-1");
  const bars = having.map((r, i) => (r.cells.win_rate.low === undefined ? null : [
    { coord: [i, r.cells.win_rate.low], symbol: "rect", symbolSize: [9, 1.5] }, { coord: [i, r.cells.win_rate.high], symbol: "rect", symbolSize: [9, 1.5] }])).filter(Boolean);
  const gold = curve("deciding score", at("win_rate", "value"), accent, 2, "solid", { symbol: "circle", symbolSize: 8, z: 5,
    label: { show: having.length <= 8, position: "right", offset: [2, 13], formatter: (p) => percent(p.value), color: color("ink"), fontSize: 11.5, fontWeight: 600 },
    markLine: { silent: true, symbol: "none", animation: false, data: [...bars.map((b) => b.map((end) => ({ ...end, lineStyle: { color: accent, width: 1.5, type: "solid" } }))),
      { yAxis: 0.5, lineStyle: { color: color("muted"), type: "dashed", width: 1 }, label: { formatter: "baseline", color: color("muted"), fontSize: 10.5, position: "insideStartTop" } }], label: { show: false } },
  });
  const learned = at("win_rate_reward", "value");
  const other = learned.some((v) => v !== null) && curve(reward, learned, color("series-2"), 1.5, "dashed", { symbol: "circle", symbolSize: 6 });
  const low = Math.min(0.5, ...at("win_rate", "low").filter((v) => v !== null), ...at("win_rate", "value"));
  return {
    legend: {}, xAxis: byIteration(having), series: [gold, other].filter(Boolean),
    yAxis: { type: "value", min: Math.max(0, Math.floor(low * 10 - 0.5) / 10), max: 1, axisLabel: { formatter: (v) => `${Math.round(100 * v)} %` } },
    tooltip: { formatter: (items) => [`iteration ${items[0].axisValue}`, ...items.map((i) => `${i.seriesName}  ${percent(i.value)}${i.seriesName === "deciding score" && having[i.dataIndex].cells.win_rate.low !== undefined ? `  (${percent(having[i.dataIndex].cells.win_rate.low)} to ${percent(having[i.dataIndex].cells.win_rate.high)})` : ""}`)].join("\n") },
  };
}

function histogram(made) {
  const middle = made.edges.slice(0, -1).map((e, i) => (e + made.edges[i + 1]) / 2);
  const many = made.series.length;
  return {
    legend: {}, tooltip: { valueFormatter: (v) => percent(v), axisPointer: { label: { show: false } } },
    xAxis: { type: "value", min: made.edges[0], max: made.edges[made.edges.length - 1], name: "score", axisLabel: { showMinLabel: false, showMaxLabel: false } },
    yAxis: { type: "value", min: 0, axisLabel: { formatter: (v) => `${number(100 * v)} %` } },
    series: made.series.map((s, i) => {
      const tint = solid(shade(i, many));
      const last = i === many - 1;
      return curve(`${s.iteration ? `iteration ${s.iteration}` : "baseline"} · ${number(s.mean, 2)}`, s.share.map((v, k) => [middle[k], v]), tint, last ? 2 : 1.3, "solid", { step: "middle", areaStyle: last ? { color: tint, opacity: 0.1 } : undefined, z: last ? 5 : 2 });
    }),
  };
}

// Log-probs at the end of training.
function trained(key, more) {
  const rows = more.trained.filter((t) => t.iteration > 0).map((t) => ({ iteration: t.iteration, values: t.values }));
  const has = (name) => rows.some((r) => r.values[name] !== undefined);
  const made = (name, title, note, names) => {
    const parts = names.filter(([, of]) => has(of)).map(([label, of]) => [label, (r) => r.values[of] ?? null]);
    return parts.length ? [card(title(parts), { hint: HINTS[name], note }, chart(key(name), () => lines(rows, parts), { label: title(parts) }))] : [];
  };
  return [...made("logps", () => "Log-probs at the end of training", "sum over a completion, nats", [["chosen", "chosen_logps"], ["rejected", "rejected_logps"]]),
    ...made("ratios", (parts) => (parts.length > 1 ? "Log-ratios and margin" : "Margin of the log-probs"), "to the reference where there is one, nats", [["chosen", "chosen_log_ratio"], ["rejected", "rejected_log_ratio"], ["margin", "logp_margin"]])];
}

function kept(key, run, rows) {
  const reasons = [...new Set(rows.flatMap((r) => Object.keys(r.dropped)))];
  if (!rows.some((r) => r.cells.kept) && !reasons.length) return [];
  const option = () => bars(rows, [["kept", (r) => value(r, "kept") ?? 0, color("series-3")], ...reasons.map((reason, i) => [words(reason), (r) => r.dropped[reason]?.value ?? 0, series(i + 1)])]);
  const all = run.iterations.flatMap((r) => Object.entries(r.dropped).map(([reason, d]) => [r.iteration, reason, d]));
  return [card("Groups kept, rows left out", { hint: HINTS.kept, note: all.length ? null : "nothing was left out" }, chart(key("kept"), option, { height: all.length ? 170 : 220, label: "Groups kept and rows left out by reason" }),
    all.length ? h("table.tight", {}, h("tbody", {}, all.map(([i, reason, d]) => h("tr", {}, h("td", {}, i ? `iteration ${i}` : "before the loop"), h("td", {}, line(words(reason))), h("td.r", {}, source(run.name, { step: d.step, field: reason }, number(d.value))))))) : null)];
}

// Whatever else a step reported, over the iterations: for numbers this page knows nothing about.
function any(place, key, run, more) {
  const loop = more.numbers.filter((n) => n.iteration > 0);
  const names = [...new Set(loop.flatMap((n) => Object.keys(n.counts).map((k) => `${n.base}.${k}`)))].sort();
  if (!names.length) return null;
  const name = names.includes(place.parameters.get("number")) ? place.parameters.get("number") : names.find((n) => n.endsWith("truncated_share")) || names[0];
  const [base, field] = [name.slice(0, name.indexOf(".")), name.slice(name.indexOf(".") + 1)];
  const rows = loop.filter((n) => n.base === base && field in n.counts);
  const tools = choose("any", name, names.map((n) => [n, words(n.replace(".", ": "))]), (one) => go({ number: one }, { local: true }), "Which number");
  return card("Any other number", { hint: HINTS.any, tools }, chart(key("any"), () => lines(rows, [[words(field), (n) => n.counts[field]]]), { label: name }));
}
