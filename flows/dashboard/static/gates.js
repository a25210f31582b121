// What the gates decided: every document an evaluation left that says so, whatever it is called.
import { h, card, words, compact } from "./dom.js";
import { line } from "./text.js";

// The decisions in the artifacts' documents: objects with a "decision" or a "passed", wherever they stand.
export function decisions(documents) {
  const found = [];
  for (const document of documents) walk(document.content, document, found);
  return found;
}

function walk(node, document, found) {
  if (Array.isArray(node)) return node.forEach((one) => walk(one, document, found));
  if (!node || typeof node !== "object") return;
  if (typeof node.decision === "string" || typeof node.passed === "boolean") found.push({ ...document, content: node });
  else Object.values(node).forEach((one) => walk(one, document, found));
}

export function gates(run, more) {
  const found = decisions(more.documents);
  if (!found.length) return null;
  return card("Gates", { note: "decided from the evaluation artifacts" }, h("div.gates", {}, found.map(({ step, iteration, content }) => {
    const stopped = content.passed === false || /stop|back|previous|reject/i.test(content.decision || "");
    const said = content.decision ?? (content.passed ? "go on" : "stop");
    const why = content.reason ?? content.reasons ?? content.why ?? "";
    const rest = Object.entries(content).filter(([k, v]) => !["decision", "passed", "reason", "reasons", "why"].includes(k) && typeof v !== "object");
    return h("div.gate", { class: stopped ? "closed" : "open" },
      h("b", {}, `Iteration ${iteration}: ${words(said)}`), " ", line(Array.isArray(why) ? why.join("; ") : String(why), 400),
      h("small", {}, rest.map(([k, v]) => `${words(k)} ${typeof v === "number" ? compact(v) : v}`).join(" · "), " ", h("a", { href: `#/run/${encodeURIComponent(run.name)}/lineage?${new URLSearchParams({ step })}` }, step)));
  })));
}
