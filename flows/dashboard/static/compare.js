// Several runs side by side: numbers over the iterations, training curves, settings; all of the view is in its address.
import { h, card, empty, FORMS, levelOf, number, tick, words, to, check, choose, table, none, mean } from "./dom.js";
import { ask, askOf } from "./data.js";
import { band, chart, curve } from "./chart.js";
import { experiments, key, look } from "./arms.js";
import { leaders, tested } from "./leaders.js";
import { overlay } from "./overlay.js";
import { scales } from "./scales.js";
import { shared } from "./shared.js";
import { go } from "./frame.js";

const NONE = { runs: [], columns: [], tables: [], leaders: [] };
const VIEWS = [["numbers", "Numbers"], ["curves", "Training curves"], ["settings", "Settings"], ["artifacts", "Artifacts"]];
const namesOf = (data) => [...new Set(data.runs.flatMap((r) => Object.values(r.numbers).flatMap((n) => Object.keys(n))))];
// The number to begin with: none where the runs have nothing but the counts of single steps.
const first = (data) => ["win_rate", "reward", "margin", ...data.columns.map((c) => c.name)].find((n) => namesOf(data).includes(n));
const viewOf = (place, data) => VIEWS.find(([v]) => v === place.parameters.get("view"))?.[0] || (first(data) ? "numbers" : "curves");

export const compareView = {
  async load(place) {
    const names = place.parameters.getAll("run");
    if (!names.length) return [NONE];
    const data = await ask("compare", { run: names });
    const view = viewOf(place, data);
    if (view === "artifacts") return [data, await ask("shared", { run: names })];
    if (view === "curves") return [data, ...await Promise.all(data.runs.map((r) => askOf(r.name, "metrics")))];
    const arms = tested(place);
    const known = arms && arms[0] !== arms[1] && arms.every((a) => data.leaders.some((l) => l.arm === a));
    return [data, known && view === "numbers" ? await ask("compare/test", { run: names, ours: arms[0], theirs: arms[1] }) : null];
  },
  lively: (data) => data.runs.some((r) => r.state === "running"),
  draw(place, data, ...more) {
    const head = h("div.page-head", {}, h("h1", {}, "Compare"), h("p.about", {}, `${data.runs.length} runs`));
    if (!data.runs.length) return [head, empty("No run chosen", "Tick runs in the list and choose Compare.", "align run recipe=iterative_dpo run=dpo")];
    const view = viewOf(place, data);
    head.append(h("nav.views", { "aria-label": "Ways to compare" }, VIEWS.map(([v, text]) => h("button", { "aria-pressed": String(v === view), "data-focus": `view-${v}`, onclick: () => go({ view: v }, { push: true }) }, text))));
    const groups = experiments(data, place.parameters.get("apart") === "1");
    if (view === "artifacts") return [head, shared(place, data, more[0], groups)];
    if (view === "curves") return [head, legend(place, groups, true), overlay(place, data, more)];
    const names = namesOf(data);
    if (!names.length) return [head, empty("Nothing to compare yet", "None of these runs has a number for an iteration yet; their training curves may be there.", `align status ${data.runs[0].name}`)];
    const y = pick(place, "y", names, first(data));
    if (view === "settings") return [head, h("div.controls", {}, chooser("Show", "y", y, names, data)), legend(place, groups, false), scales(place, data, y, { title: label(y, data), write: form(y, data), axis: valueAxis })];
    return [head, numbers(place, data, groups, names, y, more[0])];
  },
};

function numbers(place, data, groups, names, y, test) {
  const x = pick(place, "x", ["iteration", ...names], "iteration");
  const iterations = [...new Set(data.runs.flatMap((r) => Object.keys(r.numbers).filter((i) => r.numbers[i][y])))].map(Number).sort((a, b) => a - b);
  const hidden = new Set((place.parameters.get("without") || "").split(",").filter(Boolean).map(Number));
  const shown = iterations.filter((i) => !hidden.has(i));
  const seen = groups.filter((g) => !place.parameters.getAll("hide").includes(g.name));
  return [leaders(place, data, groups, test),
    h("div.controls.spaced", {}, chooser("Show", "y", y, names, data), chooser("over", "x", x, ["iteration", ...names], data),
      h("div.chips", { role: "group", "aria-label": "Iterations" }, iterations.map((i) => h("button.chip", { "aria-pressed": String(!hidden.has(i)), "data-focus": `i-${i}`, onclick: () => toggle(hidden, i) }, i ? `iteration ${i}` : "before the loop"))),
      data.runs.length > groups.length || place.parameters.get("apart") ? check("apart", place.parameters.get("apart"), "seeds apart", (apart) => go({ apart })) : null),
    legend(place, groups, true),
    card(label(y, data), { note: groups.some((g) => g.runs.length > 1) ? "mean over seeds, the band from the lowest to the highest seed" : x === "iteration" ? null : `each point is an iteration, over ${label(x, data).toLowerCase()}` },
      chart(`compare/${data.runs.map((r) => r.name)}`, () => picture(seen, shown, x, y, data), { height: 380, label: `${label(y, data)} of ${groups.map((g) => g.name).join(", ")}` })),
    byIteration(groups, shown, y, data), data.tables.map(printed)];
}

// Which look is which experiment; a click takes it out of the charts.
function legend(place, groups, hides) {
  const hidden = place.parameters.getAll("hide");
  const click = (name) => go({ hide: hidden.includes(name) ? hidden.filter((n) => n !== name) : [...hidden, name] });
  return h("div.arm-legend", { role: "group", "aria-label": "Experiments" }, groups.map((g) => (hides
    ? h("button.chip", { "aria-pressed": String(!hidden.includes(g.name)), "data-focus": `arm-${g.k}`, title: g.runs.map((r) => r.name).join(", "), onclick: () => click(g.name) }, key(g.k), g.name)
    : h("span.chip-like", { title: g.runs.map((r) => r.name).join(", ") }, key(g.k), g.name))));
}

function toggle(hidden, i) {
  hidden.has(i) ? hidden.delete(i) : hidden.add(i);
  go({ without: [...hidden].join(",") });
}

const pick = (place, name, known, otherwise) => (known.includes(place.parameters.get(name)) ? place.parameters.get(name) : known.includes(otherwise) ? otherwise : known[0]);
const label = (name, data) => data.columns.find((c) => c.name === name)?.label || words(name.replace(".", ": "));
const form = (name, data) => FORMS[data.columns.find((c) => c.name === name)?.form || (/rate$|share$/.test(name) ? "rate" : "any")];

function chooser(text, name, value, names, data) {
  const columns = new Set(["iteration", ...data.columns.map((c) => c.name)]);
  const option = (n) => h("option", { value: n, selected: n === value }, n === "iteration" ? "iteration" : label(n, data));
  return h("label", {}, text, choose(name, value,
    [...names.filter((n) => columns.has(n)).map(option), h("optgroup", { label: "Numbers of single steps" }, names.filter((n) => !columns.has(n)).sort().map(option))], (one) => go({ [name]: one })));
}

const at = (run, i, name) => run.numbers[String(i)]?.[name]?.value;
const known = (group, i, name) => group.runs.map((r) => at(r, i, name)).filter((v) => v !== undefined);

function picture(groups, iterations, x, y, data) {
  return x === "iteration" ? overIterations(groups, iterations, y, data) : overNumber(groups, iterations, x, y, data);
}

function style(k) {
  const { tint, dash, symbol } = look(k);
  return curve("", [], tint, 2, dash, { symbol, symbolSize: 9, z: 4 });
}
const valueAxis = (write, more) => ({ type: "value", ...more, axisLabel: { formatter: (v) => (write === FORMS.rate ? `${tick(100 * v)} %` : tick(write === FORMS.gain ? 100 * v : v)) } });

// A line per experiment: with several seeds their mean and a band, with one run its interval.
function overIterations(groups, iterations, y, data) {
  const write = form(y, data);
  const lines = groups.flatMap((group) => {
    const { tint } = look(group.k);
    const values = iterations.map((i) => known(group, i, y));
    const line = { ...style(group.k), name: group.name, data: values.map(mean) };
    if (group.runs.length > 1) {
      const ends = (one) => values.map((v) => (v.length ? one(...v) : null));
      return [...band(ends(Math.min), ends(Math.max), tint), line];
    }
    const cells = iterations.map((i) => group.runs[0].numbers[String(i)]?.[y]);
    line.markLine = { silent: true, symbol: "none", animation: false, label: { show: false }, lineStyle: { color: tint, width: 1.2, type: "solid", opacity: 0.65 },
      data: cells.flatMap((c, i) => (c && c.low !== undefined ? [[{ coord: [i, c.low] }, { coord: [i, c.high] }]] : [])) };
    return [line];
  });
  const bounds = groups.flatMap((g) => g.runs.flatMap((r) => iterations.flatMap((i) => { const c = r.numbers[String(i)]?.[y]; return c ? [c.value, c.low ?? c.value, c.high ?? c.value] : []; })));
  const [low, high] = [Math.min(...bounds), Math.max(...bounds)];
  const room = (high - low || Math.abs(high) || 1) * 0.08;
  const text = (items) => [`iteration ${items[0].axisValue}`, ...items.filter((i) => groups.some((g) => g.name === i.seriesName) && i.value !== null).map((i) => `${i.seriesName}  ${write(i.value)}`)].join("\n");
  return { series: lines, tooltip: { formatter: text }, xAxis: { type: "category", data: iterations.map(String), name: "iteration" },
    yAxis: bounds.length ? valueAxis(write, { name: label(y, data), min: nice(low - room, room, Math.floor), max: nice(high + room, room, Math.ceil) }) : valueAxis(write, {}) };
}

// To the step of an axis of that scale.
function nice(value, scale, round) {
  const step = 10 ** Math.ceil(Math.log10(scale));
  return round(value / step) * step;
}

// One number over another: a path per experiment through its iterations.
function overNumber(groups, iterations, x, y, data) {
  const [writeX, writeY] = [form(x, data), form(y, data)];
  const lines = groups.map((group) => ({ ...style(group.k), name: group.name,
    data: iterations.filter((i) => known(group, i, x).length && known(group, i, y).length).map((i) => [mean(known(group, i, x)), mean(known(group, i, y)), i]),
    label: { show: true, formatter: (p) => String(p.value[2]), position: "top", fontSize: 10.5, color: look(group.k).tint } }));
  return { series: lines, tooltip: { trigger: "item", formatter: (p) => `${p.seriesName}, iteration ${p.value[2]}\n${label(y, data)} ${writeY(p.value[1])}\n${label(x, data)} ${writeX(p.value[0])}` },
    xAxis: { ...valueAxis(writeX), name: label(x, data), scale: true }, yAxis: { ...valueAxis(writeY), name: label(y, data) } };
}

function byIteration(groups, iterations, y, data) {
  const write = form(y, data);
  const spread = (values) => { const m = mean(values); return Math.sqrt(values.reduce((a, v) => a + (v - m) ** 2, 0) / Math.max(1, values.length - 1)); };
  const level = levelOf(groups.flatMap((g) => iterations.flatMap((i) => g.runs.map((r) => r.numbers[String(i)]?.[y]))));
  return card(`${label(y, data)} by iteration`, { note: `over seeds: mean, and standard deviation after ±${level ? `; of one run: its ${level} interval` : ""}` }, table("compare",
    ["Experiment", "Runs", iterations.map((i) => (i ? `r|iteration ${i}` : "r|before"))],
    groups.map((g) => h("tr", {}, h("td.name", {}, key(g.k), " ", g.name),
      h("td", {}, g.runs.map((r, i) => [i ? ", " : "", h("a", { href: to(r.name, "iterations") }, r.name), h("span.muted", {}, ` seed ${r.seed}`)])),
      iterations.map((i) => cell(g, i, y, write, spread)))), ".pinned"));
}

function cell(group, i, y, write, spread) {
  const values = known(group, i, y);
  if (!values.length) return h("td.r", {}, none());
  if (values.length > 1) return h("td.r", {}, write(mean(values)), h("span.interval", {}, `± ${write(spread(values))}`));
  const run = group.runs.find((r) => at(r, i, y) !== undefined);
  const found = run.numbers[String(i)][y];
  return h("td.r", {}, h("a.number", { href: to(run.name, "lineage", { step: found.step, field: found.field }) }, write(found.value)),
    found.low !== undefined ? h("span.interval", {}, `${write(found.low).replace(" %", "")} to ${write(found.high)}`) : null);
}

// What `align compare` prints of the same runs.
const printed = (made) => card(made.title[0].toUpperCase() + made.title.slice(1), {}, table(made.title,
  made.headers.map((t) => (made.left.includes(t) ? t : `r|${t}`)),
  made.rows));
