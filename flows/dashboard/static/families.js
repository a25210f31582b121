// Which reported numbers belong on one chart, in which order, and in which unit they are.
import { words } from "./dom.js";

// The first family whose pattern fits takes the number: title, pattern, unit, what it says.
const FAMILIES = [
  ["Loss", /(^|_)(loss|nll)$|^ce_|^cringe_|_ce$/, "", "What training makes smaller. Compare runs of the same objective only: each has a scale of its own."],
  ["Log-probs", /logps$/, "nats an answer", "Log-probability of a whole answer. Both falling, with the margin rising, is common; chosen falling far is not."],
  ["Log-ratios to the reference", /log_ratio$/, "nats an answer", "How far the policy has moved from its reference on these answers."],
  ["Margins", /margin|gap/, "nats", "Chosen less rejected. It rises when training works, and also when both fall."],
  ["Rewards", /reward/, "", "What the objective takes for the reward of an answer: beta times the log-ratio, for DPO."],
  ["Accuracy", /accuracy|share$|rate$|^gate/, "share", "Share of pairs in the right order."],
  ["Learning rate", /^lr$/, "", "The schedule's."],
  ["Gradient norm", /grad_norm/, "before clipping", "A jump that stays says that training is leaving the rails."],
  ["Tokens per second", /tokens_per_second/, "tokens/s", "How fast the step is, since the last line."],
  ["Seconds per step", /seconds_per_step/, "s", "How long an optimizer step takes."],
  ["Time left", /^eta/, "s", "What the stage expects."],
  ["Memory", /memory/, "GB", "The peak so far."],
  ["Utilisation", /util|busy/, "share of the peak", "Arithmetic done, of what the device could do."],
  ["Length", /length|tokens$/, "tokens", "Of the answers."],
];

// [[title, {unit, hint, names}], ...] of these numbers, in the order above; an unknown one is a chart of its own.
export function families(names) {
  const groups = new Map();
  for (const name of names) {
    const family = FAMILIES.find(([, pattern]) => pattern.test(name));
    const title = family ? family[0] : words(name);
    if (!groups.has(title)) groups.set(title, { unit: family ? family[2] : "", hint: family ? family[3] : "", names: [] });
    groups.get(title).names.push(name);
  }
  const order = (title) => { const i = FAMILIES.findIndex(([t]) => t === title); return i < 0 ? 99 : i; };
  return [...groups].sort(([a], [b]) => order(a) - order(b));
}
