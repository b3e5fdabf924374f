// The tip beside the pointer, which names what is pointed at and gives its values; a screen reader is told the same.
import { tickText } from "./chart.js";
import { array, data, seen, steps } from "./data.js";
import { el } from "./dom.js";
import * as format from "./format.js";
import { nearest } from "./scale.js";

const tip = el("div", { class: "tip", hidden: true, "aria-hidden": "true" });
const live = el("div", { class: "unseen", "aria-live": "polite", role: "status" });
document.body.append(tip, live);

/** Which snapshot of a model. */
export const when = (model, at) =>
  `step ${format.whole(steps(model)[at])}${data.progress.unit === "tokens" ? ` · ${format.count(seen(model)[at])} tokens` : ""}`;

/** A value of a series with its standard error. */
export function withError({ y, error }, i) {
  const value = format.value(y[i]);
  return error ? `${value} ± ${format.value(error[i])}` : value;
}

/** [name, value] of everything that was measured of a head at a snapshot. */
export function facts(model, [layer, head], at) {
  const of = data.models[model];
  const read = (reference) => {
    const { data: numbers, shape } = array(reference);
    return numbers[(at * shape[1] + layer) * shape[2] + head];
  };
  const scores = Object.entries(data.scores).filter(([name]) => name in of.scores);
  const change = (value, error) => `${value > 0 ? "+" : ""}${format.value(value)}${Number.isFinite(error) ? ` ± ${format.value(error)}` : ""}`;
  return [...scores.map(([name, label]) => [label, format.value(read(of.scores[name]))]),
    ...Object.entries(of.ablations).map(([mode, effects]) => [`Δ ICL score, ${mode}`, change(read(effects.icl), read(effects.icl_sem))])];
}

/** What there is to say of a cursor: its title, and [name, value] lines. */
function described({ model, at, head, series, point, panel, position }) {
  const { spec, heatmap } = panel;
  const of = model === null ? null : data.models[model];
  const named = series && series.names[point];
  const lines = [];
  if (head) {
    const last = at === null ? steps(model).length - 1 : at;
    lines.push([of.name, when(model, last)], ...facts(model, head, last));
  } else if (model !== null && at !== null) lines.push([named ? series.label : "", when(model, at)]);
  if (heatmap) {
    const row = nearest(heatmap.y, position);
    const value = format.value(heatmap.z[row * heatmap.x.length + point]);
    const [column, y] = [tickText(panel.x, heatmap.x[point]), tickText(panel.y, position)];
    if (at !== null) lines.push([`${spec.y_label} ${y}`, value]);
    else lines.push([spec.x_label, column], [spec.y_label, y], [heatmap.units, value]);
  } else if (series && (!head || panel.model === null)) {
    if (!spec.over_training || at === null) lines.push([spec.x_label, format.value(series.x[point])]);
    lines.push([spec.y_label, withError(series, point)]);
  }
  if (head) return { title: `head ${format.head(head)} · ${of.types[head[0]][head[1]]}`, lines };
  return { title: series ? named || series.label : of ? of.name : "", lines };
}

/** Where the tip may stand: beside a column of the table, all of which is to be seen, or beside the pointer. */
export function besideOf({ plot, margin, bare }, pointer) {
  const box = plot.getBoundingClientRect();
  const [x, y] = pointer || [box.left + margin.l, box.bottom];
  return bare ? { left: box.left - 6, right: box.right + 6, y } : { left: x - 18, right: x + 18, y };
}

/** Show the tip for a cursor at what `besideOf` gave, or hide it; `aloud`: for a screen reader too. */
export function tell(cursor, where, aloud) {
  tip.hidden = !cursor;
  if (!cursor) return;
  const { title, lines } = described(cursor);
  tip.replaceChildren(el("b", { text: title }),
    ...lines.map(([name, value]) => el("div", {}, el("span", { text: name }), el("span", { text: value }))));
  if (aloud) live.textContent = [title, ...lines.map((pair) => pair.join(" "))].join(", ");
  // right and below, or left and above where there is no room: without measuring, which would lay out the page
  const left = where.right > innerWidth - 330;
  const above = where.y > innerHeight - 240;
  const nowhere = left && where.left < 330; // no room on either side: above or below it then
  Object.assign(tip.style, {
    top: above ? "auto" : `${where.y + 14}px`,
    right: left && !nowhere ? `${innerWidth - where.left}px` : "auto",
    bottom: above ? `${Math.max(8, innerHeight - where.y + 14)}px` : "auto",
    left: nowhere ? "8px" : left ? "auto" : `${where.right}px`,
  });
}
