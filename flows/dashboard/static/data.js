// Where the page's data come from: the server, asked again and again, or what an exported file carries.

const kept = new Map(); // address -> {mark, data}: an unchanged answer is not sent, nor drawn, again
const carried = document.getElementById("carried");
const stored = carried ? JSON.parse(carried.textContent) : null;

export const exported = stored ? stored.about : null;

// "runs/demo" with {step: "train[2]"} -> the data. Throws {status, message}.
export async function ask(path, parameters = {}) {
  const query = new URLSearchParams();
  for (const [key, value] of Object.entries(parameters)) {
    for (const one of Array.isArray(value) ? value : [value]) if (one !== null && one !== undefined && one !== "" && one !== false) query.append(key, one);
  }
  const address = [...query].length ? `${path}?${query}` : path;
  return stored ? fromFile(path, parameters, address) : fromServer(address);
}

// A path of one run, and what is there.
export const ofRun = (run, path = "") => `runs/${encodeURIComponent(run)}${path && `/${path}`}`;
export const askOf = (run, path, parameters) => ask(ofRun(run, path), parameters);

async function fromServer(address) {
  const known = kept.get(address);
  let answer;
  try {
    answer = await fetch(`api/${address}`, { headers: known ? { "If-None-Match": known.mark } : {}, cache: "no-store", signal: AbortSignal.timeout(20000) });
  } catch {
    throw { status: 0, message: "the server does not answer" };
  }
  if (answer.status === 304) return known.data;
  if (!answer.ok) {
    const said = await answer.json().catch(() => ({}));
    throw { status: answer.status, message: said.error || `the server answered ${answer.status}` };
  }
  const data = await answer.json();
  kept.set(address, { mark: answer.headers.get("ETag"), data });
  if (kept.size > 100) kept.delete(kept.keys().next().value);
  return data;
}

function fromFile(path, parameters, address) {
  if (path.endsWith("/samples")) return samplesFromFile(path, parameters);
  if (path.endsWith("/log")) return { lines: [] };
  const found = stored.answers[address] ?? stored.answers[path];
  if (found === undefined) throw { status: 404, message: "this exported file does not hold that; open the dashboard of the workspace" };
  return found;
}

// The exported rows of a table, searched here.
function samplesFromFile(path, { step, part = "groups", start = 0, count = 20, q, answers }) {
  const held = stored.answers[`${path}?step=${step}&part=${part}`];
  if (!held) throw { status: 404, message: "this exported file holds no rows of that table" };
  const asked = (q || "").toLowerCase();
  const has = (text) => text.toLowerCase().includes(asked);
  const hit = (g) => !asked || g.messages.some((m) => has(m.content)) || (answers && g.completions.some((c) => has(c.text)));
  const all = held.groups.filter(hit);
  return { ...held, groups: all.slice(asked ? 0 : start, (asked ? 0 : start) + count), next: held.rows, start, held: held.groups.length };
}

let token = null; // of this page, which what it writes is sent with

// Have the server keep `body`. Throws {status, message}.
export async function send(path, body) {
  token = token || (await ask("page")).token;
  let answer;
  try {
    answer = await fetch(`api/${path}`, { method: "POST", headers: { "Content-Type": "application/json", "X-Alignloop-Page": token }, body: JSON.stringify(body) });
  } catch {
    throw { status: 0, message: "the server does not answer" };
  }
  if (answer.status === 403) { token = null; kept.delete("page"); } // the server was started anew
  if (!answer.ok) throw { status: answer.status, message: (await answer.json().catch(() => ({}))).error || `the server answered ${answer.status}` };
  return answer.json();
}
