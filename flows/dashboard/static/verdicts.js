// What each iteration's numbers mean, by the rules of docs/reading-a-run.md; and that page, read here.
import { h, card, empty } from "./dom.js";
import { ask, exported } from "./data.js";
import { line } from "./text.js";

const SIGN = { good: "✓", watch: "!", bad: "✕" };
const WORD = { good: "good", watch: "look", bad: "bad" };

export function meaning(run, last = false) {
  const shown = last ? run.verdicts.slice(-1) : run.verdicts;
  if (!shown.length) return null;
  const said = (one) => h("li", { class: one.level }, h("span.sign", { role: "img", "aria-label": WORD[one.level] }, SIGN[one.level]), h("span", {}, line(one.text, 300), " ",
    exported ? h("span.muted", {}, `(${one.rule})`) : h("a", { href: `#/reading?${new URLSearchParams({ at: one.rule })}`, title: "The rule, and what to do" }, one.rule)));
  return card("What it means", { note: "by written rules; each name leads to its rule" }, last && h("p.told", {}, line(run.told.join(" "), 900)), h("div.verdicts", {}, shown.map((v) => [h("h3", {}, `Iteration ${v.iteration}`), h("ul", {}, v.said.map(said))])));
}

export const readingView = {
  load: () => Promise.all([ask("reading")]),
  lively: () => false,
  draw(place, { text }) {
    if (text === null) return empty("Not here", "docs/reading-a-run.md came not with this installation; it is in the project's repository.");
    const found = document.createElement("article");
    found.className = "reading card";
    found.append(...blocks(text));
    const wanted = place.parameters.get("at");
    if (wanted) requestAnimationFrame(() => { const at = document.getElementById(wanted); if (at) { at.scrollIntoView({ block: "center" }); at.classList.add("asked"); } });
    return found;
  },
};

// The Markdown that our docs use: headings, lists, tables, code, bold. Whatever else it says stays text.
function blocks(text) {
  return text.split(/\n{2,}(?!    )/).map((block) => {
    const heading = /^(#+) (.*)/.exec(block);
    if (heading) return h(`h${Math.min(4, heading[1].length)}`, { id: heading[2].toLowerCase().replace(/[^a-z0-9]+/g, "-"), tabindex: -1 }, inline(heading[2]));
    if (block.startsWith("```")) return h("pre.log", {}, block.replace(/^```\w*\n|\n?```$/g, ""));
    if (block.startsWith("|")) {
      const [head, , ...rows] = block.split("\n").map((l) => l.split("|").slice(1, -1));
      return h("div.scroll", { tabindex: 0, "aria-label": "Table" }, h("table.tight", {}, h("thead", {}, h("tr", {}, head.map((c) => h("th", {}, inline(c.trim()))))), h("tbody", {}, rows.map((r) => h("tr", {}, r.map((c) => h("td.wrap", {}, inline(c.trim()))))))));
    }
    if (/^- /.test(block)) return h("ul", {}, block.split(/\n(?=- )/).map((item) => h("li", {}, inline(item.slice(2)))));
    return block.startsWith("![") ? "" : h("p", {}, inline(block));
  });
}

const inline = (text) => text.replace(/\[([^\]]+)\]\([^)]+\)/g, "$1").split(/(\*\*[^*]+\*\*|\*[^*]+\*|`[^`]+`)/).map((part) => (part.startsWith("**") ? h("b", {}, part.slice(2, -2)) : /^\*.+\*$/.test(part) ? h("em", {}, part.slice(1, -1)) : part.startsWith("`") ? h("code", {}, part.slice(1, -1)) : part));
