// The sheet of one head: everything that was measured of it.
import { palette } from "./colour.js";
import { array, data, seen, steps } from "./data.js";
import { el } from "./dom.js";
import * as format from "./format.js";
import { mount, unmount } from "./panel.js";
import { on } from "./state.js";
import { later } from "./tasks.js";
import { headView } from "./attention.js";
import { facts as factsOf } from "./tip.js";

const MOST = 24; // heads in a list
let dialog = null;
let back = null;

/** Open the sheet of a head, [layer, head], of a model (its name or index). */
export function openHead(model, head) {
  const m = typeof model === "number" ? model : data.models.findIndex((one) => one.name === model);
  if (!dialog) make();
  const opening = !dialog.open;
  fill(m, head); // before it is shown, so that it is laid out once; then `autofocus` says where the focus goes
  if (opening) {
    back = document.activeElement;
    dialog.showModal();
  } else dialog.querySelector(".close").focus({ preventScroll: true });
  dialog.scroll(0, 0);
}
on("head", openHead);

function make() {
  dialog = el("dialog", { class: "sheet", "aria-labelledby": "sheet-title" });
  dialog.addEventListener("close", () => {
    unmount(dialog);
    dialog.replaceChildren();
    if (back && back.isConnected) back.focus({ preventScroll: true });
  });
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  document.body.append(dialog);
}

function fill(m, head) {
  const model = data.models[m];
  unmount(dialog);
  const close = el("button", { type: "button", class: "close", "aria-label": "Close", autofocus: true, text: "×", on: { click: () => dialog.close() } });
  const count = model.layers * model.heads;
  const number = head[0] * model.heads + head[1];
  const go = (by) => {
    const next = (number + by + count) % count;
    openHead(m, [Math.floor(next / model.heads), next % model.heads]);
    dialog.querySelector(by < 0 ? ".previous" : ".next").focus({ preventScroll: true });
  };
  const step = (name, by, text) =>
    el("button", { type: "button", class: name, "aria-label": `${name} head`, text, disabled: count === 1, on: { click: () => go(by) } });
  const body = el("div", { class: "sheet-body" });
  dialog.replaceChildren(
    el("header", {},
      el("div", {},
        el("h2", { id: "sheet-title", text: `Head ${format.head(head)} of ${model.name}` }),
        el("p", { class: "muted", text: kind(model, head) })),
      el("div", { class: "buttons" }, step("previous", -1, "‹"), step("next", 1, "›"), close)),
    body);
  dialog.dataset.head = `${model.name}:${format.head(head)}`;
  const parts = [
    () => facts(body, m, head), () => charts(body, m, head), () => composition(body, m, head), () => texts(body, model, head),
  ];
  const opened = dialog.dataset.head;
  // each in a task of its own: the sheet opens at once
  parts.forEach((part, i) => later(`sheet${i}`, () => dialog.open && dialog.dataset.head === opened && part()));
}

function kind(model, [layer, head]) {
  const { previous_token: previous, prefix_matching: prefix, copying } = model.thresholds;
  const type = model.types[layer][head];
  const why = {
    induction: `prefix matching over ${prefix} and copying over ${format.tick(copying)} at the last snapshot`,
    "previous token": `previous-token score over ${previous}, not an induction head`,
    other: "neither an induction head nor a previous-token head at the last snapshot",
  };
  return `${type}: ${why[type] || ""} · layer ${layer + 1} of ${model.layers}`;
}

const group = (body, title, note) => {
  const box = el("div", { class: "charts" });
  body.append(el("section", {}, el("h3", { text: title }), note && el("p", { class: "muted", text: note }), box));
  return box;
};

function facts(body, m, head) {
  const last = steps(m).length - 1;
  const list = el("dl", { class: "facts" });
  for (const [name, value] of factsOf(m, head, last)) {
    list.append(el("div", {}, el("dt", { text: name }), el("dd", { text: value })));
  }
  const { narrow } = data.models[m].thresholds;
  body.append(list, el("p", { class: "muted", text: narrow && `The threshold of ${narrow}.`, hidden: !narrow }));
}

/** One head's values over training, of an array [snapshot, layer, head]. */
function over(reference, [layer, head]) {
  const { data: numbers, shape: [n, layers, heads] } = array(reference);
  return Float64Array.from({ length: n }, (_, i) => numbers[(i * layers + layer) * heads + head]);
}

function charts(body, m, head) {
  const model = data.models[m];
  const x = seen(m);
  const band = model.interval && model.interval.map((at) => x[at]);
  const chart = (box, title, caption, y_label, lines, more = {}) => {
    const why = lines.map(({ name }) => model.undefined[name]).filter(Boolean).map((reason) => `undefined because ${reason}`)[0];
    const kept = lines.filter(({ y }) => y.some(Number.isFinite));
    mount(box, {
      kind: "lines", title, caption, x_label: data.progress.label, y_label, over_training: x.length > 1, band,
      series: kept.map((one) => ({ ...one, x, model: model.name })),
      absent: kept.length ? null : `N/A: ${why || "not defined for this head"}`,
      colours: lines.map((_, i) => palette(i)), ...more,
    }, { height: 200 });
  };
  const score = (name) => ({ name, label: data.scores[name], y: over(model.scores[name], head) });
  const known = (names) => names.filter((name) => name in model.scores).map(score);
  const scores = group(body, "Scores over training");
  chart(scores, "From what it attends to and writes", "Prefix matching and previous token: share of attention; copying from −1 to 1.",
    "score", known(["prefix_matching", "copying", "previous_token"]));
  chart(scores, "OV copying eigenvalues", "From the weights: Σλ / Σ|λ|; 1 if the head copies every token.", "share",
    known(["ov_copying"]));
  chart(scores, "QK trace", "From the weights: whether it looks for tokens after one like the present one.", "trace",
    known(["qk_trace"]));
  const modes = Object.entries(model.ablations);
  if (!modes.length) return;
  const removed = group(body, "Without this head",
    "Pattern-preserving: later heads keep their attention patterns. Full: they change with what they read.");
  const of = (what) => modes.map(([mode, effects]) => ({ label: mode, y: over(effects[what], head), error: over(effects[`${what}_sem`], head) }))
    .map((one) => (one.error.every(Number.isFinite) ? one : { ...one, error: null }));
  chart(removed, "In-context-learning score", "Ablated minus whole, ± one standard error; above 0: less in-context learning without it.",
    "nats per token", of("icl"));
  chart(removed, "Mean loss", "Ablated minus whole, ± one standard error; above 0: the model is worse without it.", "nats per token", of("loss"));
  if (model.before_after) {
    chart(removed, "Before-and-after vector", "Projection of the change of token losses onto that of the phase change, ± one standard error; below 0: removing it undoes the change.",
      "nats", [{ label: "pattern-preserving", y: over(model.before_after.value, head), error: over(model.before_after.error, head) }]);
  }
}

function composition(body, m, [layer, head]) {
  const model = data.models[m];
  const names = Object.keys(model.composition);
  if (!names.length || model.layers < 2) return;
  const read = (name, from, to) => {
    const { data: numbers, shape } = array(model.composition[name]);
    return numbers[((from[0] * shape[1] + from[1]) * shape[2] + to[0]) * shape[3] + to[1]];
  };
  let most = 0;
  for (const name of names) for (const v of array(model.composition[name]).data) if (v > most) most = v;
  const box = group(body, "Composition at the last snapshot",
    "How much of what one head writes another reads through its queries (Q), keys (K) and values (V): "
    + "‖W_O W‖ / (‖W_O‖ ‖W‖). The stronger the colour, the more.");
  const table = (caption, others, value) => {
    if (!others.length) return;
    const strength = (other) => Math.max(...names.map((name) => value(name, other)).filter(Number.isFinite), 0);
    const strongest = [...others].sort((a, b) => strength(b) - strength(a)).slice(0, MOST);
    const left = others.length - strongest.length;
    const rows = others.filter((other) => strongest.includes(other)).map((other) => el("tr", {}, el("th", { scope: "row" },
      el("button", { type: "button", class: "link", text: format.head(other), on: { click: () => openHead(m, other) } })),
    ...names.map((name) => {
      const v = value(name, other);
      const cell = el("td", { text: format.value(v) });
      cell.style.setProperty("--part", Number.isFinite(v) ? `${Math.round((80 * v) / (most || 1))}%` : "0%");
      return cell;
    })));
    box.append(el("div", { class: "tall", tabindex: rows.length > 12 ? 0 : null }, el("table", { class: "composition" }, el("caption", { text: left ? `${caption}: the strongest ${MOST}, ${left} others are weaker` : caption }),
      el("thead", {}, el("tr", {}, el("th", { scope: "col", text: "head" }),
        ...names.map((name) => el("th", { scope: "col", text: name.toUpperCase() })))),
      el("tbody", {}, ...rows))));
  };
  const all = Array.from({ length: model.layers * model.heads }, (_, i) => [Math.floor(i / model.heads), i % model.heads]);
  table("It reads from earlier heads", all.filter((one) => one[0] < layer), (name, one) => read(name, one, [layer, head]));
  table("Later heads read from it", all.filter((one) => one[0] > layer), (name, one) => read(name, [layer, head], one));
}

function texts(body, model, head) {
  const box = el("section", { class: "head-texts" });
  body.append(box);
  headView(box, model.name, head);
}
