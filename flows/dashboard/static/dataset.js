// What the run learns from: what was read of the rows, what each split holds, and a way to its examples.
import { h, card, empty, number, to, table } from "./dom.js";
import { askOf } from "./data.js";
import { running } from "./frame.js";
import { line } from "./text.js";
import { headline } from "./run.js";

const COLUMNS = ["Prompt", "Answer", "Longest", "Turns", "Same prompt"];

export const datasetView = {
  async load(place) {
    return Promise.all([askOf(place.run), askOf(place.run, "data")]);
  },
  lively: running,
  draw: (place, run, data) => [
    headline(run),
    data.notes.length || data.splits.length ? null : empty("No data yet", "Its rows are not imported yet, or its recipe reads none.", "align data show PATH"),
    data.notes.length ? card("What was read", {}, h("div.notes", {}, data.notes.map((note) => h("p", {}, line(note, 1200))))) : null,
    data.splits.length ? card("Splits", { note: `Tokens: median, and the length that 5 % exceed; of the first ${number(data.most)} groups of each split.` }, splits(place, data)) : null,
    data.splits.some((s) => s.sentences.length) ? card("What stands in them", {}, h("div.notes", {}, data.splits.flatMap((s) => s.sentences.map((text) => h("p", {}, line(text, 600)))))) : null,
  ],
};

function splits(place, data) {
  const rows = (s) => to(place.run, "samples", { step: s.step, part: s.split });
  return table("splits", ["Split", "r|Groups", COLUMNS.map((name) => `r|${name}`), "Left out or cut when encoded"],
    data.splits.map((s) => [h("td.name", {}, h("a", { href: rows(s), title: `examples of ${s.split}, as the trainer sees them` }, s.step === "tokens" ? s.split : `${s.split} of ${s.step}`)),
      number(s.groups), ...s.cells.slice(1), line(s.left, 300)]));
}
