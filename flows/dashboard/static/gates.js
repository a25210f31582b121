// What the gates decided, from the gate.json of each: whether the loop goes on, from where, and why.
import { h, card, number, percent, to } from "./dom.js";
import { line } from "./text.js";

const SAID = { pass: "passed", stop: "the run stops here", previous: "set aside" };

export function gates(run, more) {
  const found = more.documents.filter((d) => d.file === "gate.json" && d.content?.now && d.content?.before);
  if (!found.length) return null;
  return card("Gates", { note: "each iteration against the last one that passed" }, h("div.gates", {}, found.map(({ step, content }) => {
    const { iteration, decision, reasons, undecided = [], goes_on_from: from, now, before } = content;
    const change = (name, write, a, b) => (a === null || b === null ? null : `${name} ${write(b)} to ${write(a)}`);
    const facts = [change("win rate", percent, now.win_rate, before.win_rate), change("judge's score", (v) => number(v, 3), now.judged, before.judged),
      change("learned reward", (v) => number(v, 3), now.learned, before.learned), change("tokens", (v) => number(v, 1), now.tokens, before.tokens)].filter(Boolean);
    return h("div.gate", { class: decision !== "pass" ? "closed" : undecided.length ? "unsure" : "open" },
      h("p", {}, h("b", {}, `Iteration ${iteration}: ${SAID[decision] || decision}`), reasons.length ? [", because ", line(reasons.join("; "), 600), "."] : null,
        decision === "pass" ? null : h("span.muted", {}, ` The model to go on from is ${from ? `iteration ${from}'s` : "the one the loop began with"}.`)),
      undecided.map((why) => h("p.undecided", {}, line(`It ${why}.`, 600))),
      h("small", {}, facts.join(" · "), " · ", h("a", { href: to(run.name, "lineage", { step }) }, step)));
  })));
}
