// From a number back to the raw file: the artifact, its inputs with their digests, theirs, and why it was computed.
import { h, card, compact, empty, memory, number, seconds, when, words, to, choose, table } from "./dom.js";
import { askOf } from "./data.js";
import { line } from "./text.js";
import { finished, go, running } from "./frame.js";
import { headline } from "./run.js";

export const lineageView = {
  async load(place) {
    const run = await askOf(place.run);
    const step = stepOf(place, run);
    return [run, step ? await askOf(place.run, "lineage", { step: step.name }) : null];
  },
  lively: running,
  draw(place, run, data) {
    if (!data) return [headline(run), empty("No step yet", "The run has no steps.", "align run recipe=pco run=demo")];
    const field = place.parameters.get("field");
    return [headline(run), controls(place, run, data, field), h("div.lineage", {}, h("div", {}, chain(place, run, data, field)), h("div", {}, why(data), about(data, field)))];
  },
};

function stepOf(place, run) {
  const asked = run.steps.find((s) => s.name === place.parameters.get("step"));
  const made = run.steps.filter((s) => s.key && finished(s));
  return asked || made.filter((s) => s.stage === "evaluate").pop() || made.pop() || run.steps[0];
}

function controls(place, run, data, field) {
  return h("div.controls", {}, h("label", {}, "Step ", choose("step", data.step, run.steps.map((s) => s.name), (step) => go({ step, field: null }, { push: true }))),
  field && data.manifest ? h("p.traced", {}, h("b", {}, words(field)), " = ", h("b.mono", {}, String(valueOf(data.manifest, field))), " comes from ", h("span.mono", {}, data.manifest.path), "/manifest.json") : null);
}

const valueOf = (manifest, field) => manifest.counts[field] ?? manifest.dropped[field] ?? "not in this artifact";

// The step, then what it was made from, nearest first, down to the raw files.
function chain(place, run, data, field) {
  const link = (item, i) => h("li", { class: i === 0 ? "first" : null },
    h("div.link-head", {}, h("button.plain", { "data-focus": `link-${item.step}`, onclick: () => go({ step: item.step, field: null }, { push: true }) }, h("b", {}, item.step)),
      h("span.state", { class: item.state }, item.state), item.made_by ? h("span.note", {}, "from ", h("a", { href: to(item.made_by.run, "lineage", { step: item.made_by.step }) }, `${item.made_by.run}: ${item.made_by.step}`)) : null),
    h("p.mono.muted", {}, item.key ? `${item.stage}/${item.key}` : `${item.stage}, not made yet`),
    item.digest ? h("p.note", {}, "bytes ", digest(item.digest), item.created ? ` · ${when(item.created)} UTC` : "") : null,
    item.inputs.length ? h("ul.inputs", {}, item.inputs.map((input) => h("li", {}, h("span.from", {}, "reads "), line(input.ref), " ", input.digest ? digest(input.digest) : null,
      input.digest && item.digest ? h("span", { class: input.agrees ? "up" : "down" }, input.agrees ? " agrees" : " has changed since") : null))) : null,
    item.raw.length ? h("ul.inputs.raw", {}, item.raw.map((r) => h("li", {}, h("span.from", {}, item.inputs.length ? "file " : "raw file "), h("b", {}, line(r.file)), h("br"), h("span.mono.whole", {}, `sha256 ${r.hash}`)))) : null);
  return card("Where it comes from", { note: `${data.chain.length} artifacts, nearest first` }, h("ol.chain", {}, data.chain.map(link)));
}

const digest = (text) => h("code", { title: text }, text.slice(0, 12));

function why(data) {
  const { reason, nearest, differences } = data.rebuilt;
  const show = (v) => (v === null ? "null" : typeof v === "object" ? JSON.stringify(v) : String(v));
  return card("Why it was computed", {}, h("p.note", {}, `${reason[0].toUpperCase()}${reason.slice(1)}`, nearest ? [": ", h("code", {}, nearest.key), `, ${nearest.step} of ${nearest.run}, ${when(nearest.created)} UTC.`] : "."),
    differences.length ? table("why", ["Field", "There", "Here"], differences.slice(0, 60).map((d) => [h("td.mono", {}, line(d.field)), h("td.wrap.mono", {}, line(show(d.there), 90)), h("td.wrap.mono", {}, line(show(d.here), 90))]), ".tight") : null);
}

function about(data, field) {
  const m = data.manifest;
  if (!m) return card("Manifest", {}, h("p.inline-empty", {}, "The step has no artifact yet."));
  const facts = { ...m.about, created: `${when(m.about.created)} UTC`, process_seconds: seconds(m.about.process_seconds), peak_memory_mb: memory(m.about.peak_memory_mb) };
  const list = (title, entries, write = (v) => v) => entries.length ? [h("h3.spaced", {}, title), h("dl.facts", {}, entries.map(([k, v]) => [h("dt", { class: k === field ? "traced-field" : null }, line(words(k))), h("dd", { class: k === field ? "traced-field" : null }, line(String(write(v) ?? "null")))]))] : null;
  return card("Manifest", { note: m.path }, list("About", Object.entries(facts).filter(([, v]) => v !== null && v !== "")),
    list("Numbers", Object.entries(m.counts), (v) => (typeof v === "number" ? compact(v) : v)), list("Left out", Object.entries(m.dropped), number),
    list("Settings", Object.entries(m.settings), (v) => (typeof v === "object" ? JSON.stringify(v) : v)), list("Versions", Object.entries(m.versions)),
    h("h3.spaced", {}, `Files (${number(m.number_of_files)})`), h("div.scroll", { "data-scroll": "files" }, h("table.tight", {}, h("tbody", {}, m.files.map((f) => h("tr", {}, h("td", {}, line(f.file)), h("td.r", {}, number(f.size)), h("td.mono.muted", { title: f.hash }, f.hash.slice(0, 16))))))));
}
