// Charts in SVG. A frame says what lies where: {width, height, margin: {l, r, t, b}} in px and the axes {x, y}.
import { el } from "./dom.js";
import * as format from "./format.js";

/** Where a value of x or y lies in a frame, in px; NaN if it has no place there. */
export const px = ({ x, width, margin }, value) => margin.l + x.to(value) * (width - margin.l - margin.r);
export const py = ({ y, height, margin }, value) => height - margin.b - y.to(value) * (height - margin.t - margin.b);

const crisp = (at) => Math.floor(at) + 0.5; // a line of one pixel, not of two half ones

/** What stands at a value of an axis: the number, or of an axis with names the name. */
export const tickText = ({ names }, value) => (names ? names[value] : format.tick(value));

/** Axes with ticks. `labels`: {x, y} to stand beside them; `zero`: a line at y = 0; `grid`: lines at all ticks of y. */
export function axes(frame, { labels = null, zero = true, grid = false } = {}) {
  const { width, height, margin, x, y } = frame;
  const bottom = height - margin.b;
  const text = (name, at, down, what, more = {}) => el("text", { class: name, x: at, y: down, text: what, ...more });
  const across = x.ticks.map((value) => [crisp(px(frame, value)), tickText(x, value)]);
  const up = y.ticks.map((value) => [crisp(py(frame, value)), tickText(y, value)]);
  const lines = [`M${crisp(margin.l)},${margin.t}V${crisp(bottom)}H${width - margin.r}`,
    ...across.map(([at]) => `M${at},${crisp(bottom)}v3.5`), ...up.map(([at]) => `M${crisp(margin.l)},${at}h-3.5`)];
  const through = grid ? up.map(([at]) => at) : zero && !y.log && y.low < 0 && y.high > 0 ? [crisp(py(frame, 0))] : [];
  const group = el("g", { class: "axes" },
    ...through.map((at) => el("path", { class: "grid", d: `M${margin.l},${at}H${width - margin.r}` })),
    el("path", { class: "axis", d: lines.join("") }),
    // a label at the right end stays on the page: a letter is about 8 px wide
    ...across.map(([at, what]) => text("xtick", Math.min(at, width - 4.2 * what.length), bottom + 15, what)),
    ...up.map(([at, what]) => text("ytick", margin.l - 6, at, what)));
  if (labels) {
    const [middle, centre] = [(margin.l + width - margin.r) / 2, (margin.t + bottom) / 2];
    group.append(text("xtitle", middle, height - 6, labels.x),
      text("ytitle", 11, centre, labels.y, { transform: `rotate(-90 11 ${centre})` }));
  }
  return group;
}

/** What is drawn between the axes; nothing of it beyond them but half a mark. */
export function inside({ width, height, margin: { l, r, t, b } }, ...children) {
  const [x, y, wide, high] = [l - 5, t - 5, width - l - r + 10, height - t - b + 10];
  return el("svg", { x, y, width: wide, height: high, viewBox: `${x} ${y} ${wide} ${high}` }, ...children);
}

function polyline(frame, xs, ys) {
  let d = "";
  let pen = "M";
  for (let i = 0; i < xs.length; i++) {
    const at = px(frame, xs[i]);
    const up = py(frame, ys[i]);
    const known = Number.isFinite(at) && Number.isFinite(up);
    if (known) d += `${pen}${at.toFixed(1)},${up.toFixed(1)}`;
    pen = known ? "L" : "M";
  }
  return d;
}

const disc = (frame, name, x, y, r) =>
  el("circle", { class: name, cx: px(frame, x).toFixed(1), cy: py(frame, y).toFixed(1), r });

/** The band of one standard error on each side of a line. */
function ribbon(frame, { x, y, error }) {
  const known = Array.from(x, (_, i) => i).filter((i) => Number.isFinite(px(frame, x[i]) + y[i] + error[i]));
  const edge = (order, sign) => polyline(frame, order.map((i) => x[i]), order.map((i) => y[i] + sign * error[i]));
  const back = edge([...known].reverse(), -1);
  return el("path", { class: "ribbon", d: known.length ? `${edge(known, 1)}L${back.slice(1)}Z` : "" });
}

/** Lines with their errors: dotted where there are few points, dashed from the ninth colour on. */
function line(frame, one) {
  const { x, y, error, index, head } = one;
  const d = polyline(frame, x, y);
  const dash = head ? 0 : Math.floor(index / 8) % 4;
  const few = x.length <= 24 && !head;
  return [error && !frame.y.log ? ribbon(frame, one) : null, el("path", { class: `line dash${dash}`, d }),
    // a line of no length with round ends is a dot
    few ? el("path", { class: "dots", d: d.replace(/[ML]([^ML]*)/g, "M$1h0") }) : null];
}

/** A trajectory, from a ring to a disc. */
function path(frame, { x, y, index, opaque, changing }) {
  const last = x.length - 1;
  return [el("path", { class: `line dash${Math.floor(index / 8) % 4}`, d: polyline(frame, x, y) }),
    ...(opaque && !changing ? [disc(frame, "begin", x[0], y[0], 3), disc(frame, "end", x[last], y[last], 3.5)] : [])];
}

function points(frame, { x, y, error, head }) {
  const shown = Array.from(x, (_, i) => i).filter((i) => Number.isFinite(px(frame, x[i]) + py(frame, y[i])));
  const whisker = (i) => `M${px(frame, x[i])},${py(frame, y[i] - error[i])}V${py(frame, y[i] + error[i])}`;
  return [error && !frame.y.log ? el("path", { class: "whisker", d: shown.map(whisker).join("") }) : null,
    ...shown.map((i) => disc(frame, "point", x[i], y[i], head ? 3.5 : 3))];
}

const KINDS = { lines: line, path, points };

/** The drawing of one series: {x, y, error, index, head, opaque, changing, colour}; `--own` is its colour. */
export function drawSeries(frame, kind, one) {
  const looks = [one.head && "head", !one.opaque && "faded", one.changing && "changing"];
  const style = one.colour ? `--own:${one.colour}` : null;
  return el("g", { class: ["series", ...looks].filter(Boolean).join(" "), style }, ...KINDS[kind](frame, one));
}
