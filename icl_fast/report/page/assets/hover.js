// Linked hover: one cursor for the page (a model, a snapshot, perhaps a head, perhaps a context position), shown in
// every panel of that model's column, and at the snapshot nearest in training in the other columns.
import { px, py } from "./chart.js";
import { headColours } from "./colour.js";
import { seen } from "./data.js";
import { el } from "./dom.js";
import * as format from "./format.js";
import { bySnapshot, pointed, sideways, start, upward } from "./pointing.js";
import { nearest } from "./scale.js";
import { emit, state } from "./state.js";
import { besideOf, tell, withError } from "./tip.js";

/** All that can be pointed at. */
export const panels = new Set();

let cursor = null; // as pointing.js gives it

/** What is pointed at; null: nothing. */
export const current = () => cursor;

/** Point at something, or at nothing. `where`: the pointer's place in the window; `aloud`: for a screen reader too. */
function show(next, where = null, aloud = false) {
  if (!next && !cursor) return;
  const beside = next && besideOf(next.panel, where); // before anything is written
  cursor = next;
  for (const panel of panels) if (panel.near) refresh(panel);
  emit("cursor");
  tell(cursor, beside, aloud);
}

/** Where the cursor is in a model's snapshots: its own, or that nearest in training to another model's. */
export function snapshotOf(model) {
  if (!cursor || cursor.at === null || cursor.model === null || model === null) return null;
  return model === cursor.model ? cursor.at : nearest(seen(model), seen(cursor.model)[cursor.at]);
}

/** Bring what a panel shows of the cursor up to date. */
export function refresh(panel) {
  if (!panel.drawn) return;
  light(panel);
  const at = snapshotOf(panel.model);
  let marks = {};
  if (at !== null) marks = linkedMarks(panel, at);
  else if (cursor && cursor.panel === panel) marks = ownMarks(panel);
  for (const name of ["cursor", "dot", "cross", "readout"]) put(panel, name, marks[name]);
}

// A head's lines and points carry the class `lit`, and the drawing `lighting`, which dims the others.
function light(panel) {
  const head = cursor && cursor.head;
  const nodes = (head && panel.heads.get(`${cursor.model}:${format.head(head)}`)) || [];
  const dim = Boolean(head) && (nodes.length > 0 || (panel.model === cursor.model && panel.heads.size > 0));
  if (panel.lit !== nodes) {
    for (const node of panel.lit) node.classList.remove("lit");
    for (const node of nodes) node.classList.add("lit");
    panel.lit = nodes;
  }
  if (panel.dim !== dim) panel.graph.classList.toggle("lighting", dim);
  panel.dim = dim;
}

// The four marks of a panel are made once, then moved: nothing that lies beside them is laid out or painted anew.
function put(panel, name, mark) {
  const known = panel.marks[name];
  if (!mark) {
    if (known && !known.hidden) known.hidden = true;
    return;
  }
  const node = known || (panel.marks[name] = el("div", { class: name }));
  if (!known) panel.overlay.append(node);
  if (node.hidden) node.hidden = false;
  if (mark.text !== undefined) node.textContent = mark.text;
  else node.style.transform = `translate(${mark.x.toFixed(1)}px, ${(mark.y || 0).toFixed(1)}px)`;
  if (mark.colour) node.style.setProperty("--own", mark.colour);
}

const place = (panel, x, y) => ({ x: px(panel, x), y: py(panel, y) + panel.shift });
const dot = (panel, series, i) => ({ ...place(panel, series.x[i], series.y[i]), colour: colourOf(panel, series) });

function colourOf(panel, { model, head, colour }) {
  if (!head) return colour;
  const by = state.colour === "paper" ? panel.spec.by || "depth" : state.colour;
  return headColours(model, head)[by === "depth" ? 0 : 1];
}

/** The marks of a column's panel for a snapshot of its model. */
function linkedMarks(panel, at) {
  const { spec, model, margin, heatmap } = panel;
  const now = seen(model)[at];
  if (spec.kind === "path") {
    const own = panel.series.find((one) => one.model === model && bySnapshot(one));
    return own ? { dot: dot(panel, own, at) } : {};
  }
  if (!spec.over_training || (panel.x.log && now <= 0)) return {};
  const x = Math.max(margin.l, Math.min(panel.width - margin.r, px(panel, now)));
  if (heatmap) {
    if (cursor.position === null) return { cursor: { x } };
    const row = nearest(heatmap.y, cursor.position);
    const value = heatmap.z[row * heatmap.x.length + nearest(heatmap.x, now)];
    const text = `position ${format.whole(heatmap.y[row])}: ${format.value(value)}`;
    return { cursor: { x }, cross: { ...place(panel, now, heatmap.y[row]), x }, readout: { text } };
  }
  const own = chosenLine(panel);
  if (!own) return { cursor: { x } };
  const i = nearest(own.x, now);
  const text = (own.head ? `${format.head(own.head)}: ` : "") + withError(own, i);
  return { cursor: { x }, dot: dot(panel, own, i), readout: { text } };
}

/** The line whose value is read out: the panel's only one, or that of the head that is pointed at. */
function chosenLine({ model, series, heads }) {
  if (!heads.size) return series.length === 1 ? series[0] : null;
  if (!cursor.head || cursor.model !== model) return null;
  return series.find(({ head }) => head && head[0] === cursor.head[0] && head[1] === cursor.head[1]);
}

/** The marks of the panel that is pointed at, where no others are linked to it. */
function ownMarks(panel) {
  const { series, point, position } = cursor;
  if (panel.heatmap) return { cross: place(panel, panel.heatmap.x[point], position) };
  if (!series) return {};
  const mark = dot(panel, series, point);
  return panel.spec.over_training ? { dot: mark, cursor: { x: mark.x } } : { dot: mark };
}

/** Let a panel be pointed at with mouse, finger and keys. */
export function attach(panel) {
  const { plot } = panel;
  panels.add(panel);
  const within = (event) => {
    const box = plot.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  let latest = null;
  plot.addEventListener("pointermove", (event) => {
    if (event.pointerType === "touch") return;
    if (!latest) requestAnimationFrame(() => {
      const moved = latest;
      latest = null;
      if (moved && panel.drawn) show(pointed(panel, ...within(moved)), [moved.clientX, moved.clientY]);
    });
    latest = event;
  });
  plot.addEventListener("pointerleave", (event) => {
    latest = null;
    if (event.pointerType !== "touch") show(null); // a finger leaves after every tap
  });
  plot.addEventListener("click", (event) => {
    if (!panel.drawn) return;
    const before = cursor && cursor.head;
    const found = pointed(panel, ...within(event));
    show(found, [event.clientX, event.clientY]);
    if (!found || !found.head) return;
    // a finger cannot hover: its first tap shows, its second opens
    if (event.pointerType === "touch" && (!before || before.join() !== found.head.join())) return;
    open(found);
  });
  plot.addEventListener("blur", () => show(null));
  plot.addEventListener("focus", () => {
    if (plot.matches(":focus-visible") && panel.drawn && !cursor) show(start(panel), null, true);
  });
  plot.addEventListener("keydown", (event) => {
    if (!panel.drawn || event.ctrlKey || event.metaKey || event.altKey) return;
    const mine = cursor && cursor.panel === panel ? cursor : null;
    const right = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    const up = { ArrowUp: 1, ArrowDown: -1 }[event.key];
    if (event.key === "Escape" && cursor) show(null);
    else if (event.key === "Enter" && mine && mine.head) open(mine);
    else if (right) show(sideways(panel, mine, right * (event.shiftKey ? 10 : 1)), null, true);
    else if (up) show(upward(panel, mine, up), null, true);
    else return;
    event.preventDefault();
  });
}

/** Ask for the sheet of the head that is pointed at. */
function open({ model, head }) {
  show(null);
  emit("head", model, head);
}
