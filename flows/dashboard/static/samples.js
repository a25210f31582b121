// Prompts with all their completions: browse, search, the chosen and the rejected, a word-level difference.
import { h, compact, empty, number, words, to, check, choose } from "./dom.js";
import { ask, exported, send, ofRun, askOf } from "./data.js";
import { line, tokenised, turns } from "./text.js";
import { completion } from "./completion.js";
import { go, redraw, running } from "./frame.js";
import { headline } from "./run.js";
import { sideBySide } from "./side.js";

const COUNT = 10;
const MOST_ROUNDS = 40; // of searching on, before the reader is asked
const BY = { score: "mean score", margin: "margin of the score", length: "length", truncated: "answers cut", disagreement: "disagreement of two scores", change: "change since the iteration before" };
let noting = null; // the prompt whose note is being written

export const samplesView = {
  async load(place) {
    const [run, listed] = await Promise.all([askOf(place.run), askOf(place.run, "tables")]);
    const table = tableOf(place, listed.tables);
    if (!table) return [run, listed, null, null];
    const id = place.parameters.get("id");
    const page = await rowsOf(place, table);
    const others = (place.parameters.get("with") || "").split(",").filter(Boolean);
    const side = id ? await askOf(place.run, "prompt", { id, run: others }) : null;
    const all = id && !exported ? await ask("runs") : null;
    return [run, listed, page, side, all];
  },
  lively: running,
  draw(place, run, listed, page, side, all) {
    const table = tableOf(place, listed.tables);
    if (!table) return [headline(run), empty("Nothing sampled yet", "Samples can be read here while the step that draws them is still running.", `align status ${run.name}`)];
    if (side) return [headline(run), sideBySide(place, side, all)];
    return [headline(run), controls(place, listed.tables, table, page), selecting(place, table, page), page.groups.length ? page.groups.map((g) => group(place, table, g)) : nothing(place, page), pager(place, table, page)];
  },
};

const flag = (place, name) => place.parameters.get(name) === "1";
const startOf = (place) => Number(place.parameters.get("at")) || 0;

function tableOf(place, tables) {
  const asked = place.parameters.get("table");
  return tables.find((t) => `${t.step}/${t.part}` === asked) || tables[0];
}

// A page of the table, or the next hits of a search, asked for until a page is full or the table ends.
async function rowsOf(place, table) {
  const asked = { step: table.step, part: table.part, count: COUNT, ...wish(place), q: place.parameters.get("q"), answers: flag(place, "answers"), pieces: flag(place, "tokens") };
  let start = startOf(place);
  const first = await askOf(place.run, "samples", { ...asked, start });
  if (!asked.q || first.next === undefined) return first;
  const all = { ...first, groups: [...first.groups] };
  for (let round = 0; round < MOST_ROUNDS && all.groups.length < COUNT && all.next < all.rows; round++) {
    const more = await askOf(place.run, "samples", { ...asked, start: all.next, count: COUNT - all.groups.length });
    all.groups.push(...more.groups);
    all.next = more.next;
  }
  const same = known.text === JSON.stringify(all);
  if (!same) Object.assign(known, { text: JSON.stringify(all), data: all });
  return known.data; // the same object while nothing changed, so that nothing is drawn again
}
const known = { text: "", data: null };

// What the selection is, as the server is asked for it.
function wish(place) {
  const get = (name) => place.parameters.get(name);
  const found = get("by") || get("only") ? { by: get("by"), score: get("score"), rising: get("rising"), only: get("only") } : {};
  return get("by") ? { ...found, low: get("low"), high: get("high") } : found;
}

// Sort and filter; the export is of what is selected.
function selecting(place, table, page) {
  if (exported) return null;
  const get = (name) => place.parameters.get(name) || "";
  const set = (name) => (value) => go({ [name]: value, at: null, q: null });
  const bound = (name, text) => h("input.bound", { type: "number", step: "any", placeholder: text, "aria-label": `${text} of what is sorted by`, value: get(name), "data-focus": name, onchange: (e) => set(name)(e.target.value) });
  const query = new URLSearchParams({ step: table.step, part: table.part, ...Object.fromEntries(Object.entries(wish(place)).filter(([, v]) => v)) });
  const scores = page.by_scores || [];
  return h("div.controls.selecting", {},
    h("label", {}, "Sort by", choose("by", get("by"), [["", "the table's order"], ...Object.entries(BY)], (by) => go({ by, at: null, q: null, low: null, high: null }))),
    scores.length > 1 && get("by") ? choose("score", get("score"), scores.map((s) => [s, words(s)]), set("score"), "Which score") : null,
    get("by") ? [h("button", { "data-focus": "rising", onclick: () => go({ rising: !get("rising"), at: null }) }, get("rising") ? "lowest first" : "highest first"), bound("low", "at least"), bound("high", "at most")] : null,
    h("label", {}, "Only", choose("only", get("only"), [["", "all"], ["cut", "with a cut answer"], ["noted", "with a label or note"]], set("only"))),
    h("a.button", { href: `api/${ofRun(place.run, "export.jsonl")}?${query}`, download: "", title: "At most 10,000 prompts, one a line" }, "Export as JSONL"));
}

function controls(place, tables, table, page) {
  const name = (t) => `${t.step}${t.part === "groups" ? "" : `/${t.part}`}`;
  const title = { score: "Scored samples", build_groups: "Groups trained on", generate: "Samples", tokenize: "Given data, tokenised", import_data: "Given data" };
  const kinds = [...new Set(tables.map((t) => t.stage))];
  const select = choose("table", "",
    kinds.map((kind) => h("optgroup", { label: title[kind] || words(kind) }, tables.filter((t) => t.stage === kind).map((t) =>
      h("option", { value: `${t.step}/${t.part}`, selected: t === table }, `${name(t)} · ${number(t.rows)}${t.purpose.includes("judge") ? " · evaluation" : ""}${t.state === "running" ? " · so far" : ""}`)))), (one) => go({ table: one, at: null }, { push: true }), "Table");
  const tick = (key, label, hint) => check(key, flag(place, key), label, (on) => go({ [key]: on }), hint);
  const submit = (event) => { event.preventDefault(); go({ q: event.target.elements.q.value.trim(), at: null, by: null, only: null }, { push: true }); };
  return h("div.controls", {}, select,
    h("form.search", { role: "search", onsubmit: submit }, h("input", { type: "search", name: "q", placeholder: "Search prompts   /", "aria-label": "Search", value: place.parameters.get("q") || "", "data-focus": "q", onsearch: (e) => e.target.value === "" && go({ q: null, at: null }) }), h("button", {}, "Search")),
    tick("answers", "in answers too", "Search the completions as well"), tick("diff", "word differences", "Mark the words in which chosen and rejected differ"),
    exported ? null : tick("tokens", "special tokens", "Show the ids the model saw and wrote, decoded token by token"),
    h("span.note.where", { role: "status" }, position(place, page)));
}

function position(place, page) {
  if (place.parameters.get("q")) return `${page.groups.length} found, ${page.next < page.rows ? `searched ${number(page.next)} of ${number(page.rows)}` : `all ${number(page.rows)} searched`}`;
  if (!page.groups.length) return `0 of ${number(page.rows)}`;
  if (page.matching !== undefined) return `${number(page.start + 1)} to ${number(page.start + page.groups.length)} of ${number(page.matching)}${page.matching < page.rows ? ` selected, ${number(page.rows)} in all` : ""}`;
  const held = page.held !== undefined && page.held < page.rows ? `, this file holds the first ${page.held}` : "";
  return `${number(page.groups[0].index + 1)} to ${number(page.groups[page.groups.length - 1].index + 1)} of ${number(page.rows)}${held}`;
}

function nothing(place, page) {
  return h("p.inline-empty.card", {}, place.parameters.get("q") || page.matching === 0 ? "No prompt matches." : page.rows ? "The table ends before this place." : "The table is empty: every prompt was left out; the run's page says why.");
}

function pager(place, table, page) {
  const q = place.parameters.get("q");
  const start = startOf(place);
  const last = page.groups.length ? page.groups[page.groups.length - 1].index + 1 : start;
  const end = page.held ?? page.matching ?? page.rows;
  const more = q ? page.next < page.rows : (page.matching === undefined ? last : page.start + page.groups.length) < end;
  const jump = (event) => { event.preventDefault(); go({ at: Math.max(0, Math.min(end - 1, Number(event.target.elements.at.value) - 1)) }, { push: true }); };
  return h("nav.pager", { "aria-label": "Pages" },
    h("button", { disabled: start <= 0, "data-focus": "back", onclick: () => (q ? history.back() : go({ at: Math.max(0, start - COUNT) }, { push: true })) }, "Back"),
    h("button", { disabled: !more, "data-focus": "next", onclick: () => { go({ at: q ? page.next : start + COUNT }, { push: true }); window.scrollTo(0, 0); } }, "Next"),
    q ? null : h("form", { onsubmit: jump }, h("label", {}, "Row ", h("input", { type: "number", name: "at", min: 1, max: end, value: start + 1, "data-focus": "at" }))));
}

function group(place, table, g) {
  const chosen = g.completions.find((c) => c.mark === "chosen");
  const rejected = g.completions.filter((c) => c.mark === "rejected");
  const worst = rejected[rejected.length - 1];
  const differ = flag(place, "diff") && (chosen && worst ? [chosen, worst] : g.completions.length === 2 ? g.completions : null);
  const other = new URLSearchParams({ table: `${table.step}/${table.part}`, id: g.id });
  return h("article.group", { "aria-label": `Prompt ${g.index + 1}` },
    h("header.group-head", {}, h("span.row-number", {}, number(g.index + 1)), h("span.mono.muted", {}, line(g.id, 60)), g.measure !== undefined && g.measure !== null ? h("span.badge", {}, `${BY[place.parameters.get("by")]} ${compact(g.measure)}`) : null, (g.noted?.labels || []).map((l) => h("span.tag.badge", {}, line(l, 40))), g.label !== null && g.label !== undefined ? h("span.badge", {}, g.label ? "liked" : "disliked") : null,
      exported ? null : h("a", { href: to(place.run, "samples", other), "data-focus": `side-${g.index}` }, "Everywhere it was answered"),
      exported ? null : h("button.plain", { "aria-expanded": String(noting === g.id), "data-focus": `note-${g.index}`, onclick: () => { noting = noting === g.id ? null : g.id; redraw(); } }, "Label")),
    g.noted?.note ? h("p.sample-note", {}, line(g.noted.note, 4000)) : null, noting === g.id ? noteForm(place, table, g) : null,
    h("div.prompt", {}, g.prompt_pieces ? tokenised(g.prompt_pieces) : turns(g.messages)),
    g.completions.length ? h("div.completions", { class: `n${Math.min(4, g.completions.length)}` }, order(g.completions).map((c) => completion(c, differ))) : h("p.inline-empty", {}, "No completion: the prompt alone."));
}

function noteForm(place, table, g) {
  const submit = async (e) => {
    e.preventDefault();
    const { labels, note } = e.target.elements;
    await send(ofRun(place.run, "sample-note"), { step: table.step, id: g.id, labels: labels.value.split(",").map((l) => l.trim()).filter(Boolean), note: note.value });
    noting = null;
    go({});
  };
  return h("form.note-form", { onsubmit: submit }, h("label", {}, "Labels", h("input", { name: "labels", "data-keep": true, "data-focus": "labels", value: (g.noted?.labels || []).join(", "), placeholder: "with commas between them" })),
    h("label.grow", {}, "Note", h("input", { name: "note", "data-keep": true, "data-focus": "note", value: g.noted?.note || "" })), h("button.main", {}, "Keep"));
}

// Chosen first, rejected last, the others between as they were drawn.
const order = (completions) => [...completions].sort((a, b) => rank(a) - rank(b));
const rank = (c) => (c.mark === "chosen" ? 0 : c.mark === "rejected" ? 2 : 1);
