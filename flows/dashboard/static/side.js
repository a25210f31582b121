// One prompt everywhere it was answered: across the iterations of the run, and in other runs.
import { h, number, words, to, check, choose, mean } from "./dom.js";
import { exported } from "./data.js";
import { line, turns } from "./text.js";
import { go } from "./frame.js";
import { completion } from "./completion.js";

export function sideBySide(place, side, all) {
  const back = new URLSearchParams(place.parameters);
  back.delete("id");
  back.delete("with");
  const first = side.places[0];
  const head = h("div.controls", {}, h("a.button", { href: to(place.run, "samples", back), "data-focus": "back" }, "Back to the table"),
    h("h2", {}, "Prompt ", h("span.mono", {}, line(side.id, 60))), h("span.note", {}, `answered in ${side.places.length} places`), exported ? null : others(place, all));
  if (!first) return [head, h("p.inline-empty.card", {}, "No step of these runs has sampled this prompt.")];
  const differ = place.parameters.get("diff") === "1";
  head.append(check("diff", differ, "word differences to the column before", (diff) => go({ diff })));
  return [head, h("article.group", {}, h("div.prompt", {}, turns(first.group.messages)),
    h("div.side", { tabindex: 0, "data-focus": "side", "data-scroll": "side", "aria-label": "Answers side by side" }, side.places.map((p, i) => column(p, differ ? side.places[i - 1] : null))))];
}

function column(p, before) {
  const scores = [...new Set(p.group.completions.flatMap((c) => Object.keys(c.scores)))];
  const average = (name) => mean(p.group.completions.map((c) => c.scores[name]).filter((x) => x !== null && x !== undefined));
  const name = p.iteration === 0 ? "baseline" : `iteration ${p.iteration}`;
  const earlier = before ? before.group.completions[0] : null;
  return h("section.column", { "aria-label": `${p.run}, ${name}` },
    h("h3", {}, h("a", { href: to(p.run, "", { step: p.step }) }, p.run), ` · ${name}`, h("span.muted", {}, ` ${p.step}`)),
    h("p.note", {}, scores.map((s) => `mean ${words(s)} ${number(average(s), 2)}`).join(" · ")),
    p.group.completions.map((c, i) => completion(c, i === 0 && earlier ? [earlier, c] : null)));
}

function others(place, all) {
  const shown = (place.parameters.get("with") || "").split(",").filter(Boolean);
  const left = (all?.runs || []).map((r) => r.name).filter((n) => n !== place.run && !shown.includes(n));
  return [left.length ? choose("add-run", "", [["", "Add a run"], ...left], (n) => n && go({ with: [...shown, n].join(",") }), "Add a run") : null,
    shown.map((n) => h("button.chip", { "aria-label": `Remove ${n}`, "data-focus": `without-${n}`, onclick: () => go({ with: shown.filter((s) => s !== n).join(",") }) }, n, " ×"))];
}
