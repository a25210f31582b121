// The frame: which view the address asks for, the header, and asking again while something can change.
import { h, replace, swap, to } from "./dom.js";
import { exported } from "./data.js";
import { redrawAll, sweep } from "./chart.js";
import { line } from "./text.js";
import { frame } from "./frame.js";
import { runsView } from "./runs.js";
import { compareView } from "./compare.js";
import { runView } from "./run.js";
import { iterationsView } from "./iterations.js";
import { trainingView } from "./training.js";
import { samplesView } from "./samples.js";
import { lineageView } from "./lineage.js";
import { datasetView } from "./dataset.js";
import { readingView } from "./verdicts.js";
import { labelView } from "./label.js";

const TABS = [["", "Run"], ["iterations", "Iterations"], ["training", "Training"], ["samples", "Samples"], ["lineage", "Lineage"], ["data", "Data"]];
const OF_RUN = { "": runView, iterations: iterationsView, training: trainingView, data: datasetView, samples: samplesView, lineage: lineageView };
const QUICK = 1000, CALM = 4000; // milliseconds between two questions: while a run goes on, and else

const main = document.getElementById("main");
const top = document.getElementById("top");
let place = null; // {view, run, tab, parameters, address}
let drawn = null; // the answers the page shows
let round = 0; // grows with every navigation, so that a late answer of an earlier view is dropped
let timer = null;
let reachable = true;
let stale = false; // the address changed: draw again even where the answers are the same

// "#/run/demo/samples?step=score[2]" -> what to show.
function placeOf(hash) {
  const [path, query = ""] = hash.replace(/^#\/?/, "").split("?");
  const [kind, run, tab = ""] = path.split("/").map(decodeURIComponent);
  const parameters = new URLSearchParams(query);
  if (kind === "run" && run && tab in OF_RUN) return { view: OF_RUN[tab], run, tab, parameters };
  if (kind === "label" && run && !exported) return { view: labelView, run, parameters };
  if (kind === "reading" && !exported) return { view: readingView, parameters };
  if (kind === "compare") return { view: compareView, parameters };
  if (exported) return { view: runView, run: exported.run, tab: "", parameters };
  return { view: runsView, parameters };
}

async function show() {
  const now = ++round;
  clearTimeout(timer);
  let answers, problem;
  try {
    answers = await place.view.load(place);
  } catch (error) {
    if (error.status === undefined) throw error;
    problem = error;
  }
  if (now !== round) return;
  reachable = !problem || problem.status !== 0;
  if (!problem && (stale || answers.some((a, i) => !drawn || a !== drawn[i]))) {
    [drawn, stale] = [answers, false];
    const content = place.view.draw(place, ...answers);
    swap(main, content);
    sweep();
    requestAnimationFrame(() => performance.getEntriesByName("rows").length || performance.mark("rows"));
  } else if (problem && (problem.status !== 0 || !drawn)) {
    drawn = null;
    replace(main, h("div.empty", {}, h("h2", {}, problem.status === 404 ? "Not here" : "No answer"), h("p", {}, line(problem.message)),
      h("p", {}, h("a", { href: "#/" }, "All runs"))));
  }
  header();
  const lively = drawn && place.view.lively(...drawn);
  if (!exported) timer = setTimeout(() => (document.hidden ? (timer = null) : show()), lively ? QUICK : CALM);
}

frame.redraw = () => {
  if (drawn) { swap(main, place.view.draw(place, ...drawn)); sweep(); }
};

function header() {
  const lively = drawn && place.view.lively(...drawn);
  const status = exported ? h("span.live", {}, `exported ${exported.time}`)
    : h("span.live", { class: !reachable ? "lost" : lively ? "on" : null, role: "status" }, h("i.dot"), !reachable ? "not reachable" : lively ? "live" : "up to date");
  const slash = () => h("span.slash", { "aria-hidden": "true" }, "/");
  const trail = h("nav.trail", { "aria-label": "Where you are" },
    exported ? h("span.brand", {}, "alignloop") : h("a.brand", { href: "#/", "data-focus": "brand" }, "alignloop"),
    place.run && [slash(), h("a.here", { href: to(place.run), "data-focus": "here" }, place.run)],
    place.view === readingView && [slash(), h("span.here", {}, "reading a run")],
    place.view === compareView && [slash(), h("span.here", {}, "compare")]);
  const tabs = place.run && h("nav.tabs", { "aria-label": "Views of this run" }, TABS.map(([tab, label]) =>
    h("a", { href: to(place.run, tab), "aria-current": tab === place.tab ? "page" : null, "data-focus": `tab-${tab}` }, label)));
  swap(top, h("div.bar", {}, trail, tabs, status));
  document.title = `${place.run ? `${place.run}${place.tab ? ` · ${place.tab}` : ""} · ` : ""}alignloop`;
}

// local: the answers that are here are enough for it.
frame.go = (parameters, { push = false, local = false } = {}) => {
  for (const [key, value] of Object.entries(parameters)) {
    if (Array.isArray(value)) { place.parameters.delete(key); for (const one of value) place.parameters.append(key, one); }
    else if (value === null || value === "" || value === undefined || value === false) place.parameters.delete(key);
    else place.parameters.set(key, value === true ? "1" : value);
  }
  const query = place.parameters.toString();
  const hash = `${location.hash.split("?")[0] || "#/"}${query ? `?${query}` : ""}`;
  history[push ? "pushState" : "replaceState"](null, "", hash);
  if (local) return frame.redraw();
  stale = true;
  show();
};

function navigate() {
  place = placeOf(location.hash);
  drawn = null;
  main.setAttribute("aria-busy", "true");
  show().then(() => {
    main.removeAttribute("aria-busy");
    window.scrollTo(0, 0);
  });
}

window.addEventListener("popstate", navigate);
document.addEventListener("visibilitychange", () => { if (!document.hidden && timer === null && place && !exported) show(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { frame.redraw(); redrawAll(); });
document.addEventListener("keydown", (event) => {
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (place.view.key) return place.view.key(place, event);
  const search = main.querySelector("input[type=search]");
  if (event.key === "/" && search) { event.preventDefault(); search.focus(); search.select(); }
  const tab = TABS[Number(event.key) - 1];
  if (tab && place.run) location.hash = to(place.run, tab[0]);
});
navigate();
