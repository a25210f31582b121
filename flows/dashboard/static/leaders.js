// The leaderboard: one line an experiment, and the paired test of any two.
import { h, card, compact, number, percent, pValue, words, choose, table, none, mean } from "./dom.js";
import { key, settingsText } from "./arms.js";
import { go } from "./frame.js";

// name -> [heading, how it is written, what it says, whether more is better]
const NUMBERS = {
  win_rate: ["Win rate", (v) => percent(v), "Of the last iteration, by the score that judges; seeds pooled within each prompt."],
  length_controlled: ["At equal length", (v) => percent(v), "The win rate that a model of length says answers of equal length would have."],
  learned: ["By the reward", (v) => percent(v), "The same by the reward that was optimised. Far above the win rate: the reward is gamed."],
  length: ["Length", (v) => number(v, 1), "Tokens an answer."],
  kl: ["KL", (v) => number(v, 2), "Nats an answer to the reference: how far the policy has moved."],
  truncated: ["Cut", (v) => percent(v), "Share of answers that hit the token limit."],
  tokens: ["Tokens trained", (v) => compact(v), "By the loop's training steps of one run, prompts and every epoch included."],
  GPU: ["GPU-hours", (v) => number(v, 2), "Of one run: each step's time, times the GPUs it held, wherever it was computed. The engine's waiting between steps is not in it."],
  process: ["Process-hours", (v) => number(v, 2), "Of one run's steps on a CPU: each step's time, times its processes, wherever it was computed."],
};

export function leaders(place, data, groups, test) {
  if (!data.leaders.length) return null;
  const of = (leader) => groups.find((g) => g.runs.some((r) => leader.runs.includes(r.name)));
  const hours = (leader, kind) => { const own = data.runs.filter((r) => leader.runs.includes(r.name)).map((r) => r.hours[kind]); return own.every((v) => v === undefined) ? null : mean(own.map((v) => v || 0)); };
  const value = (l, name) => (name === "win_rate" ? l.win_rate.value : name === "tokens" ? l.tokens : ["GPU", "process"].includes(name) ? hours(l, name) : l.numbers[name]) ?? null;
  const sorted = NUMBERS[place.parameters.get("by_column")] ? place.parameters.get("by_column") : "win_rate";
  const up = place.parameters.get("up") === "1";
  const rows = [...data.leaders].sort((a, b) => (value(a, sorted) === null ? 1 : value(b, sorted) === null ? -1 : (value(b, sorted) - value(a, sorted)) * (up ? -1 : 1)));
  const shown = Object.keys(NUMBERS).filter((n) => rows.some((l) => value(l, n) !== null));
  const all = rows.flatMap((l) => [l.win_rate.low, l.win_rate.high]);
  const ends = [Math.min(...all), Math.max(...all)];
  const head = (n) => h("th.r", { "aria-sort": n === sorted ? (up ? "ascending" : "descending") : null, title: NUMBERS[n][2] }, h("button.sort", { "data-focus": `sort-${n}`, onclick: () => go({ by_column: n, up: n === sorted && !up }) }, NUMBERS[n][0], n === sorted ? (up ? " ↑" : " ↓") : ""));
  return card("Leaderboard", { note: `the last iteration of each, by ${words(data.score)}; ${percent(rows[0].win_rate.level, 0)} intervals over prompts, ± over seeds` },
    table("leaders", ["Arm", shown.map((n) => (n === "win_rate" ? [head(n), "Interval"] : head(n))), "r|Iteration", "r|Seeds"],
      rows.map((l) => h("tr", {}, h("td.name", {}, of(l) ? key(of(l).k) : null, ` ${l.arm}  `, h("span.plain", {}, settingsText(l.settings) || l.runs[0])),
        shown.flatMap((n) => (n === "win_rate" ? [h("td.r", {}, h("b", {}, percent(l.win_rate.value)), l.win_rate.seeds > 1 ? h("span.interval", {}, `± ${number(100 * l.win_rate.sd, 1)}`) : null), h("td.interval-cell", {}, range(l.win_rate, ends))]
          : [h("td.r", {}, value(l, n) === null ? none() : NUMBERS[n][1](value(l, n)))])),
        h("td.r", {}, l.iteration), h("td.r", {}, l.win_rate.seeds))), ".pinned"), tester(place, data, test));
}

// An interval with its middle, on the scale of all.
function range(rate, [low, high]) {
  const at = (v) => `${(100 * (v - low)) / Math.max(1e-9, high - low)}%`;
  return h("span.range", { title: `${percent(rate.low)} to ${percent(rate.high)}` }, h("i.extent", { style: { left: at(rate.low), right: `${100 - Number.parseFloat(at(rate.high))}%` } }), h("i.mid", { style: { left: at(rate.value) } }), h("span.ends", {}, `${number(100 * rate.low, 1)} to ${percent(rate.high)}`));
}

export const tested = (place) => (place.parameters.get("ours") && place.parameters.get("theirs") ? [place.parameters.get("ours"), place.parameters.get("theirs")] : null);

function tester(place, data, test) {
  const arms = data.leaders.map((l) => l.arm).sort((a, b) => a.length - b.length || a.localeCompare(b));
  if (arms.length < 2) return null;
  const pick = (name, label) => choose(name, place.parameters.get(name) || "", [["", "–"], ...arms], (arm) => go({ [name]: arm }), label);
  return h("div.tester", {}, h("span", {}, "Test"), pick("ours", "One arm"), h("span", {}, "against"), pick("theirs", "The other arm"), h("span", { role: "status" }, said(test)));
}

function said(test) {
  if (!test) return h("span.muted", {}, "choose two arms: a paired test over the prompts and seeds they share");
  const [ours, theirs] = [test.ours + test.iterations[0], test.theirs + test.iterations[1]];
  if (test.why) return `${ours} less ${theirs}: no test, ${test.why}`;
  const points = (v) => `${v > 0 ? "+" : ""}${number(100 * v, 1)}`;
  const verdict = test.low > 0 ? "better" : test.high < 0 ? "worse" : "not told apart";
  return [h("b", {}, `${ours} is ${verdict}${verdict === "not told apart" ? " from" : " than"} ${theirs}`), `: ${points(test.mean)} points (${percent(test.level, 0)}: ${points(test.low)} to ${points(test.high)}), ${pValue(test.p_value)}, ${test.prompts} prompts, above 0 in ${test.by_seed.filter((v) => v > 0).length} of ${test.by_seed.length} seeds`];
}
