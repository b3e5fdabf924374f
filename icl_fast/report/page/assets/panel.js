// One panel: its chart, drawn while it is near the window, with its title, legend and caption.
import { axes, drawSeries, inside, px, tickText } from "./chart.js";
import { headColours, paintHeatmap, palette } from "./colour.js";
import { data, values } from "./data.js";
import { el } from "./dom.js";
import * as format from "./format.js";
import { attach, panels, refresh } from "./hover.js";
import { legend } from "./legend.js";
import { apart, axis } from "./scale.js";
import { on, state } from "./state.js";
import { later } from "./tasks.js";

const MANY = 100; // heads, of which some are drawn fainter
const byPlot = new WeakMap();

/** Calls `call` for the panel of each plot that an observer reports on. */
const each = (call) => (entries) => entries.forEach((entry) => call(byPlot.get(entry.target), entry));

const OBSERVERS = [
  new IntersectionObserver(each((panel, { isIntersecting }) => {
    panel.near = isIntersecting;
    if (panel.near && panel.stale) redraw(panel);
    else if (panel.near) refresh(panel); // the cursor may have moved since it was last near
  }), { rootMargin: "300px" }),
  // what is far away is taken down: the browser has less to go through when the theme changes or a sheet opens
  new IntersectionObserver(each((panel, { isIntersecting }) => {
    if (!isIntersecting && panel.drawn) later(panel, () => !panel.near && clear(panel));
  }), { rootMargin: "1500px" }),
  new ResizeObserver(each((panel, { contentRect }) => {
    if (Math.abs(contentRect.width - panel.width) < 1) return;
    panel.stale = true;
    if (panel.near) redraw(panel);
  })),
];

function redraw(panel) {
  later(panel, () => panel.near && panel.stale && panel.plot.isConnected && draw(panel));
}

function clear(panel) {
  panel.graph.replaceChildren();
  panel.heads.clear();
  panel.lit = [];
  panel.drawn = false;
  panel.stale = true;
}

on("axis", () => {
  for (const panel of panels) panel.stale = true;
  // those that can be seen now before those that are only near
  const hidden = ({ plot }) => {
    const box = plot.getBoundingClientRect();
    return box.bottom <= 0 || box.top >= innerHeight || box.right <= 0 || box.left >= innerWidth;
  };
  const near = [...panels].filter((panel) => panel.near).map((panel) => [Number(hidden(panel)), panel]);
  for (const [, panel] of near.sort((a, b) => a[0] - b[0])) redraw(panel);
});

/**
 * Put a panel into a container; it is drawn when it comes near the window.
 *
 * `spec` is as Python's Panel (icl_fast/report/panels/panel.py); x, y, error and z may be arrays as well as numbers of
 * arrays. Options: height (px), model (index of the column's model: its hovers are linked), bare (no title, caption or
 * legend), label (what a screen reader calls it).
 */
export function mount(container, spec, { height = 220, model = null, bare = false, label = null } = {}) {
  const band = el("div", { class: "band", hidden: true });
  const graph = el("div", { class: "graph" });
  const overlay = el("div", { class: "overlay", "aria-hidden": "true" });
  const plot = el("div", { class: "plot", style: `height:${height}px;--height:${height}px` }, band, graph, overlay);
  const heads = (spec.series || []).filter((one) => one.head).length;
  const figure = el("figure", { class: `panel ${spec.kind}${bare ? " bare" : ""}${heads > MANY ? " many" : ""}`, "data-by": spec.by });
  if (!bare) figure.append(el("figcaption", { class: "title", text: spec.title }), legend(spec));
  figure.append(plot);
  if (!bare) figure.append(el("p", { class: "caption", text: spec.caption }));
  container.append(figure);
  if (spec.absent) {
    plot.replaceChildren(el("p", { class: "absent", text: spec.absent }));
    plot.style.height = bare ? `${height}px` : "auto";
    return;
  }
  plot.tabIndex = 0;
  plot.setAttribute("role", "application");
  plot.setAttribute("aria-roledescription", "chart");
  plot.setAttribute("aria-label", label || `${spec.title}. ${spec.caption}`);
  const panel = {
    spec, model, bare, figure, plot, graph, overlay, band,
    near: false, drawn: false, stale: true, // near the window; on the page; not as it should be
    height, width: 0, shift: 0, margin: { l: bare ? 40 : 52, r: 10, t: 8, b: bare ? 22 : 40 }, x: null, y: null,
    series: (spec.series || []).map((one, index) => readSeries(one, index, spec, model)),
    heatmap: spec.heatmap && readHeatmap(spec.heatmap),
    heads: new Map(), marks: {}, lit: [], dim: false,
  };
  byPlot.set(plot, panel);
  attach(panel);
  for (const observer of OBSERVERS) observer.observe(plot);
}

/** Forget the panels of a container that is about to be emptied. */
export function unmount(container) {
  for (const panel of panels) {
    if (!container.contains(panel.plot)) continue;
    panels.delete(panel);
    for (const observer of OBSERVERS) observer.unobserve(panel.plot);
  }
}

const orNull = (names) => (names && names.length ? names : null);
const readHeatmap = (map) => ({
  ...map, x: values(map.x), y: values(map.y), z: values(map.z), x_names: orNull(map.x_names), y_names: orNull(map.y_names),
});

const LETTER = 6.2; // px: about the width of one in a tick's text
const longest = (names) => Math.max(...names.map((name) => name.length));

/** A series with its numbers at hand; `model` is an index, and a head is one of a model of the page. */
function readSeries(one, index, spec, ofPanel) {
  const named = one.model ? data.models.findIndex((model) => model.name === one.model) : -1;
  const model = named >= 0 ? named : ofPanel;
  return {
    ...one, index, model,
    x: values(one.x),
    y: values(one.y),
    error: one.error === null || one.error === undefined ? null : values(one.error),
    head: model === null ? null : one.head || null,
    names: one.names || [],
    opaque: one.opaque !== false,
    changing: one.label === "phase change",
    colour: (spec.colours && spec.colours[index]) || palette(index),
  };
}

function extent(arrays, positive) {
  let low = Infinity;
  let high = -Infinity;
  for (const array of arrays) {
    for (const value of array) {
      if (!Number.isFinite(value) || (positive && value <= 0)) continue;
      if (value < low) low = value;
      if (value > high) high = value;
    }
  }
  return low <= high ? [low, high] : [positive ? 1 : 0, positive ? 10 : 1];
}

function padded([low, high], log) {
  if (log) {
    const by = low < high ? (high / low) ** 0.05 : 2;
    return [low / by, high * by];
  }
  const by = (high - low) * 0.05 || Math.abs(high) * 0.1 || 0.5;
  return [low - by, high + by];
}

/** The range of a heatmap's cells, which reach half way to the next, beyond the outermost ones too. */
function cells(of) {
  const last = of.length - 1;
  return last ? [of[0] - (of[1] - of[0]) / 2, of[last] + (of[last] - of[last - 1]) / 2] : [of[0] - 0.5, of[0] + 0.5];
}

function setAxes(panel) {
  const { spec, heatmap, series } = panel;
  const log = spec.over_training ? state.axis === "log" : spec.log_x;
  // layers are whole numbers, and so are their ticks
  const whole = (arrays) => arrays.every((of) => of.every(Number.isInteger));
  const { x_names: columns = null, y_names: rows = null } = heatmap || {};
  const most = rows ? Math.floor((panel.height - panel.margin.t - panel.margin.b) / 14) : undefined;
  panel.y = axis(...rangeOfY(panel), { log: spec.log_y, whole: Boolean(heatmap) && whole([heatmap.y]), most, names: rows });
  // ticks stand beside the title, not on it
  if (!panel.bare) panel.margin.l = Math.max(52, 28 + LETTER * longest(panel.y.ticks.map((tick) => tickText(panel.y, tick))));
  const across = panel.width - panel.margin.l - panel.margin.r;
  const xs = heatmap ? [heatmap.x] : series.map((one) => one.x);
  const seen = extent(xs, log);
  let range = heatmap && !log ? cells(heatmap.x) : padded(seen, log);
  if (spec.over_training && seen[0] < seen[1]) range = seen;
  const room = columns ? across / (LETTER * longest(columns) + 6) : Math.min(5, across / 70);
  panel.x = axis(...range, { log, whole: whole(xs), most: Math.max(2, Math.floor(room)), names: columns });
  if (!columns) panel.x.ticks = apart(panel.x, 44 / across);
}

function rangeOfY({ spec, heatmap, series }) {
  if (heatmap) return spec.over_training ? extent([heatmap.y], spec.log_y) : cells(heatmap.y);
  if (spec.y_range && !(spec.log_y && spec.y_range[0] <= 0)) return spec.y_range;
  const ys = series.map((one) => one.y);
  for (const { y, error } of spec.log_y ? [] : series) {
    if (error) ys.push(y.map((value, i) => value - error[i]), y.map((value, i) => value + error[i]));
  }
  return padded(extent(ys, spec.log_y), spec.log_y);
}

function draw(panel) {
  const { spec, graph, heatmap, height, margin } = panel;
  const width = panel.plot.clientWidth;
  if (!width) return;
  panel.width = width;
  // a cell of the table is as high as its row; its cursor runs through all of it, its drawing lies in the middle
  panel.shift = panel.bare ? (panel.figure.clientHeight - height) / 2 : 0;
  clear(panel);
  setAxes(panel);
  const labels = panel.bare ? null : { x: spec.x_label, y: spec.y_label };
  const svg = el("svg", { width, height, "aria-hidden": "true" }, axes(panel, { labels, zero: !heatmap }));
  if (heatmap) {
    const [wide, high] = [width - margin.l - margin.r, height - margin.t - margin.b];
    const pixels = (size) => Math.max(1, Math.round(size * devicePixelRatio));
    const style = `left:${margin.l}px;top:${margin.t}px;width:${wide}px;height:${high}px`;
    const canvas = el("canvas", { width: pixels(wide), height: pixels(high), style });
    paintHeatmap(canvas, heatmap, panel);
    graph.append(canvas);
  }
  const drawn = inOrder(panel.series).map((one) => drawHead(panel, one, drawSeries(panel, spec.kind, one)));
  svg.append(inside(panel, ...drawn));
  graph.append(svg);
  placeBand(panel);
  panel.drawn = true;
  panel.stale = false;
  refresh(panel);
}

/** What lies behind comes first, the phase change of a path last. */
const inOrder = (series) => {
  const rank = ({ opaque, changing }) => Number(opaque) + Number(changing);
  return [...series].sort((a, b) => rank(a) - rank(b));
};

/** A head's drawing has both its colours, of which the style sheet shows the chosen one, and is found by its name. */
function drawHead(panel, { model, head }, node) {
  if (!head) return node;
  const [depth, type] = headColours(model, head);
  node.style.setProperty("--depth", depth);
  node.style.setProperty("--type", type);
  const key = `${model}:${format.head(head)}`;
  panel.heads.set(key, [...(panel.heads.get(key) || []), node]);
  return node;
}

function placeBand({ spec, band, ...frame }) {
  band.hidden = !spec.over_training || !spec.band;
  if (band.hidden) return;
  const { low, high } = frame.x;
  const [start, end] = spec.band.map((value) => px(frame, Math.min(high, Math.max(low, value))));
  band.style.left = `${start}px`;
  band.style.width = `${Math.max(1.5, end - start)}px`;
}
