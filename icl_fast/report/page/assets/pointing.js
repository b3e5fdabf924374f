// What of a panel is pointed at, by a place in it or by keys: {model (index), at (snapshot), head, panel, series, point
// (index in the series, or column of a heatmap), position (of a heatmap's row)}; null where there is none.
import { px, py } from "./chart.js";
import { seen, steps } from "./data.js";
import { nearest, nearestOn } from "./scale.js";

const NEAR = 16; // px within which a line or point counts as pointed at

const snapshot = (model, at) => (model === null ? null : nearest(seen(model), at));

/** Whether each point of a series is a snapshot of its model. */
export const bySnapshot = ({ x, model }) => model !== null && x.length === steps(model).length;

function fromSegment(at, up, ax, ay, bx, by) {
  const [dx, dy] = [bx - ax, by - ay];
  const t = Math.max(0, Math.min(1, ((at - ax) * dx + (up - ay) * dy) / (dx * dx + dy * dy || 1)));
  return Math.hypot(at - ax - t * dx, up - ay - t * dy);
}

/** The point of a series nearest to a place, and how far its line is from the place, in px. */
function reach(panel, { x: xs, y: ys }, at, up) {
  const fromPoint = (i) => Math.hypot(px(panel, xs[i]) - at, py(panel, ys[i]) - up);
  let best = { point: 0, far: Infinity };
  if (panel.spec.kind !== "lines" || xs.length === 1) {
    for (let i = 0; i < xs.length; i++) if (fromPoint(i) < best.far) best = { point: i, far: fromPoint(i) };
    return best;
  }
  best = { point: nearestOn(panel.x, xs, part(panel, at)), far: Infinity };
  for (let i = Math.max(1, best.point); i <= Math.min(xs.length - 1, best.point + 1); i++) {
    const ends = [i - 1, i].flatMap((k) => [px(panel, xs[k]), py(panel, ys[k])]);
    if (ends.every(Number.isFinite)) best.far = Math.min(best.far, fromSegment(at, up, ...ends));
  }
  return best;
}

const part = ({ margin, width }, at) => (at - margin.l) / (width - margin.l - margin.r);

function nearestSeries(panel, at, up) {
  let best = null;
  for (const series of panel.series) {
    if (series.changing) continue;
    const found = { series, ...reach(panel, series, at, up) };
    // a head outside the sample that is drawn opaque gives way to one inside
    if (Number.isFinite(found.far) && (!best || found.far + (series.opaque ? 0 : 4) < best.far)) best = found;
  }
  return best;
}

/** A cell of a heatmap. */
function cell(panel, point, row) {
  const { x, y } = panel.heatmap;
  const at = panel.spec.over_training ? snapshot(panel.model, x[point]) : null;
  return { model: panel.model, at, head: null, position: y[row], panel, series: null, point };
}

/** A point of a series; `chosen`: whether the series is pointed at, or only the moment. */
function pointOf(panel, series, point, chosen) {
  const { model, head } = series;
  let at = null;
  if (model !== null && panel.spec.over_training) at = snapshot(model, series.x[point]);
  if (panel.spec.kind === "path" && bySnapshot(series)) at = point;
  return { model, at, head: chosen ? head : null, position: null, panel, series: chosen ? series : null, point };
}

/** What lies at a place in a panel, in px; null: nothing. */
export function pointed(panel, at, up) {
  if (panel.heatmap) {
    const { height, margin: { t, b } } = panel;
    const row = nearestOn(panel.y, panel.heatmap.y, (height - b - up) / (height - t - b));
    return cell(panel, nearestOn(panel.x, panel.heatmap.x, part(panel, at)), row);
  }
  const found = nearestSeries(panel, at, up);
  if (!found) return null;
  const close = found.far <= (panel.spec.kind === "path" ? 3 : 1) * NEAR;
  if (!close && !panel.spec.over_training) return null;
  const cursor = pointOf(panel, found.series, found.point, close);
  return { ...cursor, series: close || panel.series.length === 1 ? found.series : null };
}

/** The first point that the axis can show. */
const first = (panel, x) => (panel.x.log && x[0] <= 0 ? 1 : 0);
const clamp = (panel, x, point) => Math.max(first(panel, x), Math.min(x.length - 1, point));

/** What keys begin with: the end of training, or the last cell. */
export function start(panel) {
  if (panel.heatmap) return cell(panel, panel.heatmap.x.length - 1, panel.heatmap.y.length - 1);
  const series = panel.series.find((one) => one.opaque) || panel.series[0];
  return pointOf(panel, series, series.x.length - 1, panel.series.length === 1);
}

/** As many points to the right of a cursor, or to the left. */
export function sideways(panel, cursor, by) {
  if (!cursor) return start(panel);
  const { series, point, position } = cursor;
  if (panel.heatmap) {
    return cell(panel, clamp(panel, panel.heatmap.x, point + by), nearest(panel.heatmap.y, position));
  }
  const along = series || panel.series.find((one) => one.opaque) || panel.series[0];
  return pointOf(panel, along, clamp(panel, along.x, point + by), series !== null);
}

/** The next series, or row of a heatmap, above a cursor or below. */
export function upward(panel, cursor, by) {
  const now = cursor || start(panel);
  if (panel.heatmap) {
    const { y } = panel.heatmap;
    const row = nearest(y, now.position) + by * Math.max(1, Math.round(y.length / 32));
    return cell(panel, now.point, Math.max(0, Math.min(y.length - 1, row)));
  }
  const choice = panel.series.filter((one) => !one.changing);
  const from = now.series ? choice.indexOf(now.series) : by > 0 ? -1 : choice.length;
  const series = choice[(from + by + choice.length) % choice.length];
  const point = panel.spec.over_training && now.series ? nearest(series.x, now.series.x[now.point]) : now.point;
  return pointOf(panel, series, clamp(panel, series.x, point), true);
}
