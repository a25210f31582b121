// A reported number as points of a curve: over steps, tokens or seconds of work; what is not finite is a gap and a mark.
import { compact, seconds, tick } from "./dom.js";

const OVER = { at: ["at", "step"], tokens: ["tokens", "tokens"], time: ["worked", "time of work"] };

export const overs = Object.keys(OVER);

// {points: [[x, y or null]], bad: [[x, y]], low, high}: null breaks the line; bad are the marks, at the last height known.
// A line of the log without this number is no point. `log`: what is not above 0 has no place; `left` says how many.
export function points(step, name, over = "at", { ylog = false, xlog = false, range = null } = {}) {
  const xs = step[OVER[over][0]];
  const found = { points: [], bad: [], low: [], high: [], left: 0 };
  if (!xs) return found;
  const wrong = new Set(step.not_finite?.[name] || []);
  let height = step.values[name].find((v) => v !== null) ?? 0;
  for (const [i, y] of step.values[name].entries()) {
    const x = xs[i];
    if (y === null && !wrong.has(i)) continue;
    if (range && (x < range[0] || x > range[1])) continue;
    if ((xlog && x <= 0) || (ylog && y !== null && y <= 0)) { found.left += 1; continue; }
    height = y ?? height;
    found.points.push([x, y]);
    if (y === null) found.bad.push([x, height]);
    if (step.low) {
      found.low.push([x, step.low[name][i]]);
      found.high.push([x, step.high[name][i]]);
    }
  }
  return found;
}

// An exponential mean of the points, corrected for its start; it begins anew after a gap. weight in [0, 1): of what was.
export function smoothed(list, weight) {
  let sum = 0, mass = 0;
  return list.map(([x, y]) => {
    if (y === null) { [sum, mass] = [0, 0]; return [x, null]; }
    sum = weight * sum + (1 - weight) * y;
    mass = weight * mass + (1 - weight);
    return [x, sum / mass];
  });
}

export const overName = (over, stage) => (over === "at" ? (/train|sft/.test(stage) ? "optimizer step" : "prompts done") : OVER[over][1]);
export const overText = (over) => (over === "time" ? seconds : over === "tokens" ? compact : tick);

// The marks of what is not finite, as a series of their own.
export const badMarks = (bad, tint, name) => ({ name, type: "scatter", data: bad, symbol: "path://M0 1L1 0L5 4L9 0L10 1L6 5L10 9L9 10L5 6L1 10L0 9L4 5Z", symbolSize: 11, itemStyle: { color: tint }, z: 9, tooltip: { show: false } });
