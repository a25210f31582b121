// What `diagnose` measured: divergence, held-out pairs, log-probs around the first differing token, repetition, signal.
import { h, card, compact, number, percent, words } from "./dom.js";
import { chart, color, curve, series, shade, solid } from "./chart.js";
import { bars, lines } from "./lines.js";
import { HINTS } from "./hints.js";

export function diagnosed(run, more) {
  const rows = more.documents.filter((d) => d.file === "diagnostics.json").map((d) => ({ iteration: d.iteration, step: d.step, ...d.content }));
  if (!rows.length) return [];
  const key = (name) => `${run.name}/diagnosed/${name}`;
  const found = [];
  const add = (title, note, parts, unit) => {
    const having = parts.filter(([, of]) => rows.some((r) => value(of, r) !== null));
    if (having.length) found.push(card(title, { note, hint: HINTS[title] }, chart(key(title), () => lines(rows, having.map(([name, of]) => [name, (r) => value(of, r)]), null, unit), { label: title })));
  };
  add("Divergence from the reference", "KL, nats an answer", [["per answer", (r) => r.kl.per_answer]], "nats");
  add("Held-out pairs", "log-ratio to the reference, nats", [["chosen", (r) => r.held_out_pairs.chosen_log_ratio], ["rejected", (r) => r.held_out_pairs.rejected_log_ratio], ["margin", (r) => r.held_out_pairs.margin]], "nats");
  add("Accuracy", "share of pairs in the right order", [["policy, held-out pairs", (r) => r.held_out_pairs.ranking_accuracy], ["implicit reward", (r) => r.held_out_pairs.implicit_accuracy], ["reward model, new samples", (r) => r.reward_model.accuracy]], "share");
  add("What it still can", "share of the watched questions", [["policy", (r) => r.watch.accuracy], ["start model", (r) => r.watch.start_accuracy]], "share");
  found.push(...tokenByToken(key, rows));
  add("Diversity", "share of different n-grams", [1, 2, 3].map((n) => [`distinct-${n}`, (r) => r.answers[`distinct_${n}`]]), "share");
  add("Repetition", "repeated 3-grams an answer", [["in all", (r) => r.answers.repeat_3gram], ["from the prompt", (r) => r.answers.repeat_3gram_in_prompt], ["within the answer", (r) => r.answers.repeat_3gram_in_answer]]);
  const drawn = [...new Set(rows.flatMap((r) => Object.keys(r.negatives || {})))];
  add("Draw of negatives", "means over groups", drawn.map((n) => [words(n), (r) => r.negatives[n]]));
  found.push(...signal(key, rows));
  return found;
}

// A section that an iteration lacks is null: no point there.
function value(of, row) {
  try {
    return of(row) ?? null;
  } catch {
    return null;
  }
}

// Token log-probs around the first differing token of the held-out pairs: policy against reference, each iteration.
function tokenByToken(key, rows) {
  const having = rows.filter((r) => r.token_curve?.held_out_pairs?.by_offset?.length);
  if (!having.length) return [];
  const option = () => {
    const offsets = having[0].token_curve.held_out_pairs.by_offset.map((o) => o.offset);
    const at = (row, side) => offsets.map((o) => { const p = row.token_curve.held_out_pairs.by_offset.find((x) => x.offset === o); return p ? p[side] - p[`${side}_reference`] : null; });
    const made = having.flatMap((r, i) => {
      const tint = solid(shade(i, having.length));
      return [curve(`${r.iteration} chosen`, at(r, "chosen"), tint, 1.8), curve(`${r.iteration} rejected`, at(r, "rejected"), tint, 1.8, "dashed")];
    });
    made[0].markLine = { silent: true, symbol: "none", label: { show: false }, lineStyle: { color: color("muted"), type: "dotted" }, data: [{ xAxis: String(0) }, { yAxis: 0 }] };
    return { legend: {}, tooltip: { valueFormatter: (v) => (v === null ? "" : number(v, 3)) }, xAxis: { type: "category", data: offsets.map(String), name: "tokens from the first that differs" }, yAxis: { type: "value" }, series: made };
  };
  return [card("Token by token", { hint: HINTS["Token by token"], note: "log-prob less the reference's, held-out pairs" }, chart(key("curve"), option, { label: "Token log-probs around the first differing token" }))];
}

// Where the iteration's prompts went: kept, or lost for which reason.
function signal(key, rows) {
  const having = rows.filter((r) => r.signal);
  if (!having.length) return [];
  const reasons = [...new Set(having.flatMap((r) => Object.keys(r.signal).filter((k) => k === "kept" || (k.startsWith("lost_") && having.some((x) => x.signal[k])))))];
  const option = () => bars(having, reasons.map((k, i) => [words(k.replace("lost_", "lost: ")), (r) => r.signal[k] ?? 0, k === "kept" ? color("series-3") : series(i)]));
  const rest = having.map((r) => h("tr", {}, h("td", {}, `iteration ${r.iteration}`), h("td.r", {}, `${percent(r.signal.duplicate_samples / Math.max(1, r.signal.samples))} duplicates`), h("td.r", {}, `${compact(r.signal.truncated_samples)} truncated`), h("td.r", {}, `${compact(r.signal.unscored_samples)} unscored`)));
  return [card("Signal in the samples", { hint: HINTS["Signal in the samples"], note: "prompts" }, chart(key("signal"), option, { height: 180, label: "Prompts kept and lost by reason" }), h("table.tight", {}, h("tbody", {}, rest)))];
}
