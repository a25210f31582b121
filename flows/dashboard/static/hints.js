// What the charts of the iterations say, and columns that no stage counts, for those who meet them the first time.
export const HINTS = {
  left_out: "Rows that cleaning and selection dropped; point at one for the reasons.",
  time: "Of the iteration's steps, wherever they were computed.",
  memory: "Highest of the iteration's steps.",
  any: "Whatever else a step reported.",
  kept: "Groups trained on, and rows left out by reason.",
  logps: "Both falling with a rising margin is common; the chosen one falling far below the reference is not.",
  ratios: "How far chosen and rejected have moved from the reference; their difference is the margin.",
  "Win rate": "Read it first, and both lines: where they part, the learned reward is gamed.",
  "Scores of the samples": "The share of samples with that score. It should move right, iteration by iteration.",
  "Scores of the answers judged": "The same of the answers to the evaluation prompts.",
  "Reward and best of N": "The gap between them is what selection can still gain.",
  "Length of the answers": "Growing length is the commonest way to game a reward.",
  "Divergence from the reference": "KL: a policy that moves far for little win rate is over-optimised.",
  "Held-out pairs": "Pairs no policy was trained on. The margin should rise without chosen falling far.",
  Accuracy: "Of the policy and its implicit reward on held-out pairs, of the reward model on new samples.",
  "Token by token": "Where in the answer the policy moved: around the first token in which a pair differs.",
  Diversity: "Share of different n-grams: falling, answers become alike.",
  Repetition: "Repeated 3-grams: rising with length, answers repeat themselves.",
  "Draw of negatives": "What the draw of negatives reports on the groups it drew from.",
  "Signal in the samples": "How many prompts gave something to learn from, and why the others did not.",
};

// What heads of tables say, whichever table.
export const HEADS = {
  Step: "In running order.", State: "Done: computed; cached: taken from the store.", Time: "Of its processes.", Memory: "The highest.", Artifact: "Its key in the store.",
  arm: "Runs that differ in seeds only.", iter: "Iteration.", seeds: "Runs judged.", "win %": "Mean ± deviation over seeds.", "95%": "Interval over prompts.", "LC %": "Win rate at equal length.",
  p: "Chance of as much without a difference.", Holm: "p, for all rows together.", points: "Of win rate.", "cut %": "At the token limit.", KL: "Nats an answer.", length: "Tokens an answer.",
};
