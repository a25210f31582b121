// A word-level difference of two texts: the longest common subsequence of words and spaces.

const MOST = 1500; // words on a side; longer middles are shown as replaced

const split = (text) => text.match(/\s+|[^\s]+/g) || [];

// [[kind, text], ...] with kind "same", "only-a" or "only-b", in reading order.
export function wordDiff(a, b) {
  const [left, right] = [split(a), split(b)];
  let start = 0;
  while (start < left.length && start < right.length && left[start] === right[start]) start++;
  let end = 0;
  while (end < left.length - start && end < right.length - start && left[left.length - 1 - end] === right[right.length - 1 - end]) end++;
  const middle = between(left.slice(start, left.length - end), right.slice(start, right.length - end));
  return joined([...left.slice(0, start).map((w) => ["same", w]), ...middle, ...left.slice(left.length - end).map((w) => ["same", w])]);
}

function between(a, b) {
  if (!a.length || !b.length || a.length > MOST || b.length > MOST) {
    return [...a.map((w) => ["only-a", w]), ...b.map((w) => ["only-b", w])];
  }
  const width = b.length + 1;
  const table = new Uint16Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      const here = i * width + j;
      table[here] = a[i] === b[j] ? table[here + width + 1] + 1 : Math.max(table[here + width], table[here + 1]);
    }
  }
  const found = [];
  let [i, j] = [0, 0];
  while (i < a.length && j < b.length) {
    if (a[i] === b[j]) { found.push(["same", a[i]]); i++; j++; }
    else if (table[(i + 1) * width + j] >= table[i * width + j + 1]) found.push(["only-a", a[i++]]);
    else found.push(["only-b", b[j++]]);
  }
  return [...found, ...a.slice(i).map((w) => ["only-a", w]), ...b.slice(j).map((w) => ["only-b", w])];
}

// Neighbours of one kind as one.
export function joined(parts) {
  const found = [];
  for (const [kind, word] of parts) {
    const last = found[found.length - 1];
    if (last && last[0] === kind) last[1] += word;
    else found.push([kind, word]);
  }
  return found;
}
