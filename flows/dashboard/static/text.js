// Texts that a model wrote: shown as text, whatever is in them. Characters that would act (escape sequences, direction
// overrides, invisible ones) are shown by their name instead.
import { h } from "./dom.js";

const ACTING = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|\udb40[\udc00-\udc7f]/gu;
const NAMES = { 0x1b: "ESC", 0x0d: "CR", 0x00: "NUL", 0x08: "BS", 0x07: "BEL", 0x200b: "ZWSP", 0x200d: "ZWJ", 0x200e: "LRM", 0x200f: "RLM", 0x202e: "RLO", 0xfeff: "BOM" };

// The nodes of a text: plain text, and a small labelled box for each acting character.
export function plain(text) {
  const nodes = [];
  let from = 0;
  for (const match of text.matchAll(ACTING)) {
    if (match.index > from) nodes.push(text.slice(from, match.index));
    const code = match[0].codePointAt(0);
    const plainly = `U+${code.toString(16).toUpperCase().padStart(4, "0")}`;
    nodes.push(h("span.acting", { title: plainly }, NAMES[code] || plainly));
    from = match.index + match[0].length;
  }
  nodes.push(text.slice(from));
  return nodes;
}

const FIRST = 3000, ROUND = 50_000; // characters of a long text that are shown first, and more at a time
const shownOf = new Map(); // a long text -> how much of it is shown

// A block of model text, kept apart from the direction of what is around it. A long one expands.
export function written(text) {
  if (text.length <= FIRST * 1.2) return h("div.written", { dir: "auto" }, text === "" ? h("span.nothing", {}, "(empty)") : plain(text));
  const box = h("div.written.long", { dir: "auto" });
  const fill = () => {
    const most = shownOf.get(text) || FIRST;
    const more = h("button.expand", { type: "button", onclick: () => { shownOf.set(text, most + (most === FIRST ? ROUND - FIRST : ROUND)); fill(); } }, `${most.toLocaleString("en-US")} of ${text.length.toLocaleString("en-US")} characters: show more`);
    const less = h("button.expand", { type: "button", onclick: () => { shownOf.delete(text); fill(); } }, "Show less");
    box.classList.toggle("open", most > FIRST);
    box.replaceChildren(...plain(text.slice(0, most)), most < text.length ? "…" : "", most < text.length ? more : "", most > FIRST ? less : "");
  };
  fill();
  return box;
}

// The messages of a prompt.
export const turns = (messages) => messages.map((m) => h("div.turn", {}, h("span.role", {}, line(m.role, 20)), written(m.content)));

// The same token by token: [[text, special], ...].
export function tokenised(pieces) {
  return h("div.written.pieces", { dir: "auto" },
    pieces.map(([text, special]) => h(special ? "span.special" : "span.piece", {}, plain(text))));
}

// The page's own short texts that come from files: one line, cut.
export function line(text, most = 200) {
  const cut = text.length > most ? `${text.slice(0, most)}…` : text;
  return h("bdi", {}, plain(cut.replace(/\s+/g, " ")));
}
