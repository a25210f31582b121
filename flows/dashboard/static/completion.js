// One completion: its mark, its scores, its text or the words in which it differs from another.
import { h, append, compact, number, words } from "./dom.js";
import { line, plain, tokenised, written } from "./text.js";
import { joined, wordDiff } from "./diff.js";

export function completion(c, differ) {
  const scores = Object.entries(c.scores || {});
  return h("div.completion", { class: c.mark || null },
    h("div.completion-head", {}, c.mark ? h("span.mark", { class: c.mark }, c.mark) : h("span.muted", {}, `sample ${c.sample + 1}`),
      scores.map(([name, v]) => h("span.score", {}, h("span.muted", {}, line(words(name), 24)), " ", h("b", {}, v === null ? "none" : number(v, 3)))),
      h("span.meta", {}, c.finish === "length" ? h("span.badge.warn", { title: "cut at the token limit" }, "truncated") : null, `${number(c.tokens)} tokens`, c.temperature !== null && c.temperature !== undefined ? ` · T ${c.temperature}` : "", c.ref_logp !== null && c.ref_logp !== undefined ? ` · ref ${compact(c.ref_logp)}` : "")),
    differ && differ.includes(c) && !c.pieces && differ.every((d) => d.text.length < 20_000) ? difference(c, differ) : c.pieces ? tokenised(c.pieces) : written(c.text));
}

function difference(c, [a, b]) {
  const side = c === a ? "only-a" : "only-b";
  const box = h("div.written", { dir: "auto" });
  return append(box, bridged(wordDiff(a.text, b.text).filter(([kind]) => kind === "same" || kind === side))
    .map(([kind, text]) => (kind === "same" ? plain(text) : h("mark", { class: side }, plain(text)))));
}

// The space between two changed words belongs to the change.
const bridged = (parts) => joined(parts.map(([kind, text], i) => {
  const around = [parts[i - 1]?.[0] ?? "same", parts[i + 1]?.[0] ?? "same"];
  return [kind === "same" && /^\s+$/.test(text) && !around.includes("same") ? around[0] : kind, text];
}));
