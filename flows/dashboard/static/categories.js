// Win rates by the prompts' categories, an iteration a column: from the evaluation.json of each.
import { h, card, interval, levelOf, number, percent, words, to, none } from "./dom.js";
import { line } from "./text.js";

export function categories(run, more) {
  const judged = more.documents.filter((d) => d.file === "evaluation.json" && Object.keys(d.content?.categories || {}).length);
  if (!judged.length) return null;
  const cell = (d, name) => { const found = d.content.categories[name]; return found ? { ...found, level: d.content.confidence } : null; };
  const prompts = (name) => Math.max(...judged.map((d) => d.content.categories[name]?.prompts || 0));
  const names = [...new Set(judged.flatMap((d) => Object.keys(d.content.categories)))].sort((a, b) => prompts(b) - prompts(a) || a.localeCompare(b));
  const level = levelOf(judged.flatMap((d) => names.map((name) => cell(d, name))));
  const rate = (d, name) => {
    const found = cell(d, name);
    if (!found) return [h("td.r", {}, none()), h("td.interval-cell", {})];
    const lineage = to(run.name, "lineage", { step: d.step });
    return [h("td.r", {}, h("a.number", { href: lineage, title: `categories of ${d.step}` }, percent(found.win_rate))), h("td.interval-cell", {}, interval(found, "rate", level))];
  };
  return card("Win rate by category", { note: "by the score that decides; the fewer prompts, the wider the interval" }, h("div.scroll.tall", { "data-scroll": "categories" }, h("table.categories", {},
    h("thead", {}, h("tr", {}, h("th", {}, "Category"), h("th.r", {}, "Prompts"), judged.map((d) => [h("th.r", {}, d.iteration ? `Iteration ${d.iteration}` : words(d.step)), h("th", {}, level || "Interval")]))),
    h("tbody", {}, names.map((name) => h("tr", {}, h("td.name", {}, line(name || "(none)", 60)), h("td.r", {}, number(prompts(name))), judged.map((d) => rate(d, name))))))));
}
