// Losses of single tokens over training.
import { axes, drawSeries, inside, px } from "./chart.js";
import { data as report } from "./data.js";
import { el } from "./dom.js";
import * as format from "./format.js";
import { axis, nearestOn } from "./scale.js";
import { state } from "./state.js";
import { fixed } from "./texts.js";

const HINT = "Point at the chart for the values at a snapshot.";

/**
 * {node, draw({x, band, at, lines: [{name, values, color}]}), redraw()}; x: how much training, `at`: that of the slider's
 * snapshot, values in nats, color 0 to 7 or "now". Under the pointer: every line's value at the nearest snapshot.
 */
export function lossChart() {
  const said = el("p", { class: "texts-chart-said" });
  const band = el("div", { class: "band" });
  const cursor = el("div", { class: "cursor", hidden: true });
  const chosen = el("div", { class: "cursor texts-at" });
  const graph = el("div", { class: "graph" });
  const plot = el("div", { class: "texts-chart", role: "img" }, band, graph, chosen, cursor);
  const frame = { width: 0, height: 260, margin: { l: 52, r: 12, t: 22, b: 40 } };
  let now = null;

  function draw(data) {
    now = data;
    frame.width = plot.clientWidth;
    if (!frame.width) return;
    const log = state.axis === "log";
    const x = data.x.filter((seen) => !log || seen > 0); // a logarithmic axis has no 0
    frame.x = axis(x[0], x[x.length - 1], { log, most: 5 });
    frame.y = axis(0, Math.max(1, ...data.lines.flatMap((line) => line.values)));
    const lines = data.lines.map(({ values, color }) => {
      const node = drawSeries(frame, "lines", { x: data.x, y: values, index: 0, head: null, opaque: true });
      node.classList.add(`texts-line-${color}`);
      return node;
    });
    const { width, height } = frame;
    graph.replaceChildren(el("svg", { width, height, "aria-hidden": "true" },
      axes(frame, { labels: { x: report.progress.label, y: "loss of the token (nats)" }, grid: true }), inside(frame, ...lines)));
    band.hidden = !data.band;
    if (data.band) {
      const [start, end] = data.band.map((seen) => px(frame, Math.max(frame.x.low, Math.min(frame.x.high, seen))));
      Object.assign(band.style, { left: `${start}px`, width: `${Math.max(1, end - start)}px` });
    }
    const at = px(frame, data.at);
    chosen.hidden = !Number.isFinite(at);
    if (!chosen.hidden) chosen.style.transform = `translate(${at.toFixed(1)}px)`;
    const names = data.lines.map((line) => line.name).join(", ");
    plot.setAttribute("aria-label", `Loss over training${names ? ` of ${names}` : ": no token chosen"}`);
    said.textContent = data.lines.length ? HINT : "";
  }

  plot.addEventListener("pointermove", (event) => {
    if (!now || !now.lines.length || !frame.x) return;
    const { l, r } = frame.margin;
    const at = event.clientX - plot.getBoundingClientRect().left;
    const nearest = nearestOn(frame.x, now.x, (at - l) / (frame.width - l - r));
    cursor.hidden = false;
    cursor.style.transform = `translate(${px(frame, now.x[nearest]).toFixed(1)}px)`;
    const values = now.lines.map((line) => `${line.name} ${fixed(line.values[nearest])}`).join(", ");
    said.textContent = `After ${format.count(now.x[nearest])} ${report.progress.unit}: ${values} nats`;
  });
  plot.addEventListener("pointerleave", () => {
    cursor.hidden = true;
    said.textContent = now && now.lines.length ? HINT : "";
  });
  const redraw = () => now && draw(now);
  new ResizeObserver(() => plot.clientWidth !== frame.width && redraw()).observe(plot);
  return { node: el("div", {}, plot, said), draw, redraw };
}
