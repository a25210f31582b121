// Elements and text. Every text on the page becomes a text node: nothing here, or anywhere, parses markup.
import { HEADS } from "./hints.js";

if (window.trustedTypes) {
  // The only string that may act as markup is the empty one (the chart library clears its box with it), and the only
  // script that may be added is that library.
  window.trustedTypes.createPolicy("default", {
    createHTML: (text) => (text === "" ? "" : null),
    createScriptURL: (url) => (url === "vendor/echarts.common.min.js" ? url : null),
  });
}

const ALIASES = { class: "className", for: "htmlFor", tabindex: "tabIndex", readonly: "readOnly" };

// h("a.name", {href, onclick}, child, ...): an element. Children: elements, texts, numbers, arrays; null is nothing.
export function h(name, attributes, ...children) {
  const [tag, ...classes] = name.split(".");
  const element = document.createElement(tag);
  if (classes.length) element.className = classes.join(" ");
  for (const [key, value] of Object.entries(attributes || {})) {
    if (lacks(value) || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "style") for (const [k, v] of Object.entries(value)) element.style.setProperty(k, v);
    else if (key === "class") element.className = `${element.className} ${value}`.trim();
    else if (key in ALIASES) element[ALIASES[key]] = value;
    else element.setAttribute(key, value === true ? "" : value);
  }
  append(element, children);
  return element;
}

// An element of a drawing.
export function svgOf(name, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

export function append(element, children) {
  for (const child of children.flat(Infinity)) {
    if (lacks(child) || child === false) continue;
    element.append(child instanceof Node ? child : String(child));
  }
  return element;
}

export function replace(element, ...children) {
  element.replaceChildren();
  return append(element, children);
}

// Put `content` into `holder` without losing the keyboard's place: the element with the same data-focus gets it back.
export function swap(holder, ...content) {
  const active = document.activeElement;
  const held = active && holder.contains(active) ? active.getAttribute("data-focus") : null;
  const caret = held && active.selectionStart !== undefined ? [active.selectionStart, active.selectionEnd] : null;
  const scrolled = [...holder.querySelectorAll("[data-scroll]")].map((e) => [e.dataset.scroll, e.scrollLeft, e.scrollTop]);
  const typed = [...holder.querySelectorAll("[data-keep]")].map((e) => [e.dataset.focus, e.value]);
  const opened = [...holder.querySelectorAll("details[open][data-open]")].map((e) => e.dataset.open);
  replace(holder, ...content);
  for (const name of opened) holder.querySelector(`details[data-open="${CSS.escape(name)}"]`)?.setAttribute("open", "");
  for (const [name, value] of typed) { const same = holder.querySelector(`[data-keep][data-focus="${CSS.escape(name)}"]`); if (same) same.value = value; }
  const known = new Set(scrolled.map(([name]) => name));
  for (const log of holder.querySelectorAll("pre.log")) { // its end is what matters, where nobody has scrolled yet
    if (!known.has(log.dataset.scroll)) log.scrollTop = log.scrollHeight;
  }
  for (const [name, left, top] of scrolled) {
    const same = holder.querySelector(`[data-scroll="${CSS.escape(name)}"]`);
    if (same) Object.assign(same, { scrollLeft: left, scrollTop: top });
  }
  if (!held) return;
  const again = holder.querySelector(`[data-focus="${CSS.escape(held)}"]`);
  if (!again) return;
  again.focus({ preventScroll: true });
  if (caret && again.setSelectionRange && caret[0] !== null) again.setSelectionRange(...caret);
}

const lacks = (value) => value === null || value === undefined;

export const number = (value, digits = 0) =>
  lacks(value) ? "" : value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits }).replace("-", "−");

export const percent = (value, digits = 1) => (lacks(value) ? "" : `${number(100 * value, digits)} %`);

export const signed = (value, write) => `${value > 0 ? "+" : ""}${write(value)}`;

// A number of unknown size with four telling digits.
export function compact(value) {
  if (lacks(value)) return "";
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return number(value);
  const size = Math.abs(value);
  if (size >= 1e9) return `${number(value / 1e9, 2)} G`;
  if (size >= 1e6) return `${number(value / 1e6, 2)} M`;
  if (size >= 1000) return number(value);
  if (size >= 100) return number(value, 1);
  if (size >= 1) return number(value, 2);
  return size >= 0.001 ? number(value, 4) : value === 0 ? "0" : value.toExponential(2).replace("-", "−");
}

// A number on an axis: as short as it can be.
export function tick(value) {
  const size = Math.abs(value);
  if (value !== 0 && (size < 1e-3 || size >= 1e7)) return Number(value.toPrecision(4)).toExponential().replaceAll("-", "−");
  return size >= 1000 ? number(value) : String(Number(value.toPrecision(4))).replace("-", "−");
}

export const FORMS = {
  int: (v) => number(v), num: (v) => number(v, 3), rate: (v) => percent(v), gain: (v) => signed(100 * v, (points) => number(points, 1)), len: (v) => number(v, 1), speed: (v) => number(v), any: compact,
};

// The level of the cells' intervals as a heading, "95 %"; null where they differ or none is known.
export function levelOf(cells) {
  const known = [...new Set(cells.filter((c) => c && c.low !== undefined).map((c) => c.level ?? null))];
  return known.length === 1 && known[0] !== null ? share(known[0]) : null;
}

const share = (level) => `${Number((100 * level).toFixed(2))} %`;

// A cell's interval, with its level where no heading says it.
export function interval(cell, form, heading) {
  if (!cell || cell.low === undefined) return "";
  const write = FORMS[form];
  const text = `${write(cell.low).replace(" %", "")} to ${write(cell.high)}`;
  return heading || !cell.level ? text : `${text} (${share(cell.level)})`;
}

export const pValue = (p) => (p === undefined ? "" : p < 0.001 ? "p\u00a0<\u00a00.001" : `p\u00a0=\u00a0${p.toFixed(3)}`);

export function seconds(value) {
  if (lacks(value)) return "";
  if (value < 10) return `${value.toFixed(1)} s`;
  if (value < 100) return `${Math.round(value)} s`;
  if (value < 3600) return `${Math.floor(value / 60)} min ${String(Math.round(value % 60)).padStart(2, "0")} s`;
  if (value < 86400) return `${Math.floor(value / 3600)} h ${String(Math.floor((value % 3600) / 60)).padStart(2, "0")} min`;
  return `${Math.floor(value / 86400)} d ${Math.floor((value % 86400) / 3600)} h`;
}

// Seconds until a step with this progress is done; null where nobody knows.
export const left = (progress) => (progress?.ends > Date.now() / 1000 ? progress.ends - Date.now() / 1000 : null);

// The same in one unit, for where there is little room.
export const rough = (value) => (value < 90 ? `${Math.round(value)} s` : value < 5400 ? `${Math.round(value / 60)} min` : `${Math.round(value / 3600)} h`);

export function ago(time) {
  const gone = Math.max(0, Date.now() / 1000 - time);
  if (gone < 60) return "just now";
  for (const [unit, length] of [["d", 86400], ["h", 3600], ["min", 60]]) if (gone >= length) return `${Math.floor(gone / length)} ${unit} ago`;
  return "";
}

export const memory = (mb) => (!mb ? "" : mb < 1024 ? `${Math.round(mb)} MB` : `${(mb / 1024).toFixed(1)} GB`);

export const when = (time) => (time ? new Date(time * 1000).toISOString().slice(0, 19).replace("T", " ") : "");

export const words = (name) => name.replaceAll("_", " ");

// A small sign that says more when it is pointed at, focused or touched.
export const help = (text) => h("button.help", { type: "button", "aria-label": text, "data-tip": text }, "?");

// The address of a view of a run: which of its tabs, and what that shows.
export const to = (run, tab = "", shows = null) => `#/run/${encodeURIComponent(run)}${tab && `/${tab}`}${shows ? `?${new URLSearchParams(shows)}` : ""}`;

// A box to tick. told: of whether it is ticked now.
export const check = (name, on, text, told, hint) => h("label", { title: hint }, h("input", { type: "checkbox", "data-focus": name, checked: Boolean(on), onchange: (e) => told(e.target.checked) }), text);

// One of several: [[value, text], ...], or texts, or elements. told: of the value chosen.
export function choose(name, value, options, told, label) {
  const option = (o) => (o instanceof Node ? o : h("option", { value: [o].flat()[0], selected: [o].flat()[0] === value }, [o].flat().at(-1)));
  return h("select", { "aria-label": label, "data-focus": name, onchange: (e) => told(e.target.value) }, options.map(option));
}

// A table that scrolls sideways. head: heads as texts, "r|" before one of numbers, or elements; rows: elements, or the
// contents of their cells; an element that is a cell stays one.
export function table(name, head, rows, kind = "") {
  const heads = head.flat(Infinity);
  const right = (i) => (typeof heads[i] === "string" && heads[i].startsWith("r|") ? ".r" : "");
  const cell = (c, i) => (c?.tagName === "TD" ? c : h(`td${right(i)}`, {}, c));
  return h("div.scroll", { "data-scroll": name }, h(`table${kind}`, {}, h("thead", {}, h("tr", {}, heads.map((t, i) => (t instanceof Node ? t : h(`th${right(i)}`, { title: HEADS[t.replace("r|", "")] }, t.replace("r|", "")))))),
    h("tbody", {}, rows.map((r) => (Array.isArray(r) ? h("tr", {}, r.map(cell)) : r)))));
}

// For a number that is not there.
export const none = () => h("span.none", {}, "–");

export const mean = (values) => (values.length ? sum(values) / values.length : null);
export const sum = (values) => values.reduce((a, b) => a + (b || 0), 0);

// What to say where there is nothing: why, and the command that changes it.
export function empty(title, text, command) {
  return h("div.empty", {}, h("h2", {}, title), h("p", {}, text), command && h("pre.command", {}, h("code", {}, command)));
}

// hint: what its numbers mean, behind a sign beside the title.
export function card(title, { note, tools, wide, id, hint } = {}, ...children) {
  return h("section.card", { class: wide ? "wide" : null, id, "aria-label": title },
    h("div.card-head", {}, h("h2", {}, title, hint && help(hint)), note && h("p.note", {}, note), tools && h("div.tools", {}, tools)), children);
}
