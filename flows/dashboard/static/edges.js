// The edges of the DAG, drawn behind its pills: what each step reads; those of the chosen step stand out.
import { h, svgOf } from "./dom.js";

export function edges(run, chosen, dag) {
  const svg = svgOf("svg", { class: "edges", "aria-hidden": "true" });
  const box = h("div.dag-box", {}, svg, dag);
  const draw = () => {
    const around = box.getBoundingClientRect();
    if (!around.width) return;
    svg.setAttribute("viewBox", `0 0 ${around.width} ${around.height}`);
    const places = new Map([...box.querySelectorAll("[data-step]")].map((pill) => [pill.dataset.step, pill.getBoundingClientRect()]));
    const lines = run.steps.flatMap((s) => [...new Set(s.inputs.map((ref) => ref.split("/")[0]))].map((from) => [from, s.name]));
    svg.replaceChildren(...lines.filter(([a, b]) => places.has(a) && places.has(b)).sort(([a, b]) => [a, b].includes(chosen?.name)).map(([a, b]) => {
      const [p, q] = [places.get(a), places.get(b)];
      const row = Math.abs(p.top - q.top) < 8 && q.left > p.left;
      const [x1, y1] = row ? [p.right, p.top + p.height / 2] : [p.left + p.width / 2, p.bottom];
      const [x2, y2] = row ? [q.left, q.top + q.height / 2] : [q.left + q.width / 2, q.top];
      const [dx, dy] = row ? [(x2 - x1) / 2, 0] : [0, Math.max(14, Math.abs(y2 - y1) / 2)];
      const lift = row && x2 - x1 > 30 ? -26 : 0; // over the pills between
      const move = (x, y) => `${x - around.left} ${y - around.top}`;
      return svgOf("path", { class: b === chosen?.name ? "link in" : a === chosen?.name ? "link out" : "link", d: `M${move(x1, y1)}C${move(x1 + dx, y1 + dy + lift)} ${move(x2 - dx, y2 - dy + lift)} ${move(x2, y2)}` });
    }));
  };
  new ResizeObserver(draw).observe(box);
  return box;
}
