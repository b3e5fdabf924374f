// The Model Analysis Table: a column a model, a row a measurement.
import { data, seen } from "./data.js";
import { el } from "./dom.js";
import * as format from "./format.js";
import { snapshotOf } from "./hover.js";
import { changeKey, headLegend, heatBar, pathKeys } from "./legend.js";
import { mount } from "./panel.js";
import { on } from "./state.js";
import { when } from "./tip.js";

const HEIGHT = 190;

export function table(section) {
  const { models, rows } = data;
  section.style.setProperty("--columns", models.length);
  const strip = el("div", { class: "strip", role: "row" },
    el("div", { class: "corner", role: "columnheader" }, el("span", { text: `→ ${data.progress.label}, in all rows but the first` })),
    ...data.groups.map(groupHead), ...models.map(columnHead));
  const body = el("div", { class: "scroll", role: "presentation" });
  const box = el("div", { class: "table", role: "table", "aria-label": "Model Analysis Table" }, strip, body);
  section.append(box);
  // the strip sticks to the window, which it could not do inside what scrolls sideways
  body.addEventListener("scroll", () => (strip.scrollLeft = body.scrollLeft), { passive: true });
  rows.forEach((row, r) => {
    const specs = data.table.map((column) => column[r]);
    const cells = el("div", { class: "row", role: "row" }, rowHead(row, r, specs));
    body.append(cells);
    models.forEach((model, m) => {
      const cell = el("div", { class: "cell", role: "cell" });
      cells.append(cell);
      mount(cell, specs[m], { height: HEIGHT, model: m, bare: true, label: `${row.title}, ${model.name}` });
    });
  });
}

/** What the models of some neighbouring columns are evaluated on. */
function groupHead(group) {
  const text = `on ${group.text} · ${format.whole(group.context)} tokens, ${group.bos === null ? "no token" : group.bos} before them`;
  return el("div", { class: "group-head", role: "columnheader", style: `--span:${group.models.length}` }, el("span", { text, title: text }));
}

function columnHead(model, m) {
  const moment = el("span", { class: "when" });
  on("cursor", () => {
    const at = snapshotOf(m);
    moment.textContent = at === null ? "" : when(m, at);
  });
  return el("div", { class: "column-head", role: "columnheader" },
    el("b", { text: model.name, title: model.name }),
    el("span", { class: model.interval ? "verdict yes" : "verdict", text: verdict(model).replace(` ${data.progress.unit}`, ""), title: verdict(model) }),
    moment);
}

/** What is said about a model's phase change. */
export function verdict(model) {
  const at = seen(data.models.indexOf(model));
  const interval = model.interval && `${model.interval.map((end) => format.count(at[end])).join("–")} ${data.progress.unit}`;
  if (model.changed && interval) return `phase change ${interval}`;
  if (interval) return `interval marked: ${interval}`;
  if (model.changed === null) return at.length === 1 ? "one snapshot" : `${at.length} snapshots`;
  return model.changed ? "phase change" : "no phase change";
}

function rowHead(row, r, specs) {
  const shown = specs.filter((spec) => !spec.absent);
  const spec = shown[0] || specs[0];
  const common = (name) => (new Set(shown.map((panel) => panel[name])).size > 1 ? spec[name].split(" (")[0] : spec[name]);
  const head = el("div", { class: "row-head", role: "rowheader" },
    el("h3", {}, el("span", { class: "number", text: `${r + 1}` }), row.title),
    el("p", { text: row.explanation }));
  if (row.reading) head.append(el("p", { class: "reading", text: row.reading }));
  head.append(el("p", { class: "units", text: `↑ ${common("y_label")}` }));
  if (spec.kind === "path") head.append(el("p", { class: "units", text: `→ ${common("x_label")}` }));
  else if (shown.some((panel) => panel.kind === "points")) head.append(el("p", { class: "units", text: "→ layer, of models with one snapshot" }));
  if (spec.kind === "path") head.append(el("p", { class: "legend" }, ...pathKeys(), changeKey()));
  const map = spec.heatmap;
  if (map) head.append(heatBar(map));
  if (shown.some((one) => one.series.some((series) => series.head))) {
    head.dataset.by = spec.by;
    head.append(headLegend(spec.kind));
  }
  return head;
}
