// Judging by hand: two answers side by side, whose nobody knows; a key chooses, a second one goes on to the next pair.
import { h, card, choose, empty, number, percent } from "./dom.js";
import { send, ofRun, askOf } from "./data.js";
import { turns, written } from "./text.js";
import { go, redraw } from "./frame.js";

const KEYS = { 1: "left", ArrowLeft: "left", 2: "right", ArrowRight: "right", 0: "tie", ArrowDown: "tie" };
const state = { mark: "", queue: [], judged: 0, total: 0, steps: [], step: "", choice: null, past: [], result: null, problem: "", began: 0, asking: false };

export const labelView = {
  async load(place) {
    const mark = `${place.run}/${place.parameters.get("step") || ""}`;
    if (state.mark !== mark) {
      const found = await askOf(place.run, "label", { step: place.parameters.get("step") });
      Object.assign(state, { mark, queue: [...found.pairs], judged: found.judged, total: found.total, steps: found.steps, step: found.step, choice: null, past: [], result: null, problem: "", began: performance.now(), asking: false });
    }
    return [state.mark];
  },
  lively: () => false,
  draw: (place) => draw(place),
  key: (place, event) => pressed(place, event),
};

function draw(place) {
  const pair = state.queue[0];
  const select = choose("step", state.step, state.steps, (step) => go({ step }), "Which evaluation");
  const head = h("div.page-head", {}, h("h1", {}, "Judge by hand"), h("p.about", {}, h("span", {}, place.run), select, h("span", { role: "status" }, `${number(state.judged)} of ${number(state.total)} judged`)),
    h("div.tools", {}, h("button", { disabled: !state.past.length, "data-focus": "undo", onclick: () => undo(place) }, "Undo  ⌫"), h("button", { disabled: !state.judged, "data-focus": "finish", onclick: () => finish(place) }, "Finish and see")));
  const problem = state.problem ? h("p.inline-empty.down", { role: "alert" }, state.problem) : null;
  if (state.result) return [head, problem, came(place, state.result), pair ? h("button.main", { onclick: () => { state.result = null; redraw(); } }, "Go on judging") : null];
  if (!pair) return [head, problem, state.judged ? empty("All judged", "Finish to see what it came to.") : empty("Nothing to judge", "The two have no prompt in common.")];
  const side = (name, key) => h("section.card.answer", { class: state.choice === name ? "picked" : null, "aria-label": `${name} answer` },
    h("div.card-head", {}, h("h2", {}, name === "left" ? "Left" : "Right"), h("div.tools", {}, h("button", { "aria-pressed": String(state.choice === name), "data-focus": `pick-${name}`, onclick: () => pick(place, name) }, `Better  ${key}`))), written(pair[name]));
  return [head, problem, h("article.card", { "aria-label": "Prompt" }, turns(pair.messages)),
    h("div.versus", {}, side("left", "1"), side("right", "2")),
    h("div.controls.versus-keys", {}, h("button", { "aria-pressed": String(state.choice === "tie"), "data-focus": "pick-tie", onclick: () => pick(place, "tie") }, "Alike  0"),
      h("button.main", { disabled: !state.choice, "data-focus": "next", onclick: () => next(place) }, "Next  ↵"), h("span.note", {}, "1, 2 or 0 (or the arrows) choose; the same key again, or Enter, goes on"))];
}

function pressed(place, event) {
  if (state.result || (!state.queue.length && event.key !== "Backspace")) return;
  const said = KEYS[event.key];
  if (said && said !== state.choice) pick(place, said);
  else if (said || event.key === "Enter") { if (event.key === "Enter" && event.target.tagName === "BUTTON") return; next(place); }
  else if (event.key === "Backspace") undo(place);
  else return;
  event.preventDefault();
}

function pick(place, said) {
  state.choice = said;
  redraw();
}

// The next pair is painted at once; the verdict goes to the server beside it.
function next(place) {
  if (!state.choice) return;
  const pair = state.queue.shift();
  const said = state.choice, seconds = (performance.now() - state.began) / 1000;
  state.past.push(pair);
  Object.assign(state, { choice: null, judged: state.judged + 1, began: performance.now() });
  redraw();
  window.scrollTo(0, 0);
  tell(place, pair.id, said, seconds);
}

let sending = Promise.resolve(); // one after the other: an undo comes behind what it undoes
const tell = (...what) => (sending = sending.then(() => sent(...what)));

async function sent(place, id, said, seconds = null) {
  try {
    await send(ofRun(place.run, "verdict"), { step: state.step, id, said, seconds });
    if (state.queue.length < 5 && !state.asking) {
      state.asking = true;
      const found = await askOf(place.run, "label", { step: state.step });
      const known = new Set([...state.queue, ...state.past].map((p) => p.id));
      const empty = !state.queue.length;
      state.queue.push(...found.pairs.filter((p) => !known.has(p.id)));
      state.asking = false;
      if (empty && state.queue.length) redraw();
    }
  } catch (error) {
    state.asking = false;
    state.problem = `The last verdict was not kept: ${error.message}. Undo and give it again.`;
    redraw();
  }
}

function undo(place) {
  const pair = state.past.pop();
  if (!pair) return;
  state.queue.unshift(pair);
  Object.assign(state, { choice: null, judged: state.judged - 1, problem: "", began: performance.now() });
  redraw();
  tell(place, pair.id, null);
}

async function finish(place) {
  await sending;
  try {
    state.result = await send(ofRun(place.run, "label"), { step: state.step });
  } catch (error) {
    state.problem = error.message;
  }
  redraw();
}

function came(place, r) {
  const rate = (v) => `${percent(v.share)} (${number(100 * v.low, 1)} to ${percent(v.high)}), ${number(v.pairs)} pairs both decide`;
  return card("What it came to", { note: `${r.pairs} pairs of ${r.step}, ${r.ties} alike` }, h("dl.facts", {},
    h("dt", {}, "The policy wins"), h("dd", {}, h("b", {}, percent(r.win_rate)), ` (95 %: ${number(100 * r.low, 1)} to ${percent(r.high)}; alike counts half)`),
    Object.entries(r.agreement).map(([name, v]) => [h("dt", {}, name === "the evaluation" ? "The evaluation agrees" : `Score ${name} agrees`), h("dd", {}, rate(v))]),
    h("dt", {}, "Kept in"), h("dd", {}, h("code", {}, r.path)), h("dt", {}, "Train on it"), h("dd", {}, h("code", {}, `align run data=files data.root=${r.path}/preferences.jsonl`))));
}
