// The heads that matter most in each model, by numbers: a row a head, which opens its sheet.
import { array, data } from "./data.js";
import { el } from "./dom.js";
import * as format from "./format.js";
import { emit } from "./state.js";

const MOST = 12;

export function heads(section) {
  section.append(el("p", { class: "muted", text: "At the last snapshot. Δ: what removing the head changes, pattern-preserving, ± one standard error." }));
  const narrow = [...new Set(data.models.map((model) => model.thresholds.narrow).filter(Boolean))];
  if (narrow.length) section.append(el("p", { class: "muted", text: `Of ${data.models.filter((model) => model.thresholds.narrow).map((model) => model.name).join(", ")} a head copies if its copying score is over ${format.tick(data.models.find((model) => model.thresholds.narrow).thresholds.copying)}: ${narrow[0].replace("copying: ", "")}.` }));
  data.models.forEach((model, m) => section.append(tableOf(model, m)));
}

/** The numbers of a model's heads at its last snapshot, of an array [snapshot, layer, head]. */
function last(reference) {
  const { data: numbers, shape: [, layers, width] } = array(reference);
  return numbers.subarray(numbers.length - layers * width);
}

/** Heads by their place, layer after layer: the highest by each of some scores, taken in turns. */
function chosen(scores, most) {
  const known = (value) => (Number.isFinite(value) ? value : -Infinity);
  const orders = scores.map((of) => [...of.keys()].sort((a, b) => known(of[b]) - known(of[a])));
  return [...new Set(orders[0].flatMap((_, turn) => orders.map((order) => order[turn])))].slice(0, most);
}

function tableOf(model, m) {
  const scores = Object.entries(data.scores).filter(([name]) => name in model.scores).map(([name, label]) => [label, last(model.scores[name])]);
  const removed = model.ablations["pattern-preserving"];
  const effects = removed ? [["Δ ICL score", last(removed.icl), last(removed.icl_sem)], ["Δ loss", last(removed.loss), last(removed.loss_sem)]] : [];
  const count = model.layers * model.heads;
  const ranks = [last(model.scores.prefix_matching), ...effects.slice(0, 1).map(([, values]) => values.map(Math.abs))];
  const rows = chosen(ranks, MOST).map((at) => {
    const head = [Math.floor(at / model.heads), at % model.heads];
    const open = el("button", { type: "button", class: "link", text: format.head(head), on: { click: () => emit("head", m, head) } });
    const signed = (value) => `${value > 0 ? "+" : ""}${format.value(value)}`;
    return el("tr", {}, el("th", { scope: "row" }, open), el("td", { text: model.types[head[0]][head[1]] }),
      ...scores.map(([, values]) => el("td", { class: "number", text: format.value(values[at]) })),
      ...effects.map(([, values, errors]) => el("td", { class: "number", text: `${signed(values[at])} ± ${format.value(errors[at])}` })));
  });
  const columns = ["head", "type", ...[...scores, ...effects].map(([label]) => label)];
  const which = count > rows.length
    ? `: ${rows.length} of ${count} heads, the highest by prefix matching and by what they change of the ICL score, in turns` : "";
  const undefinedOf = Object.entries(model.undefined).map(([name, why]) => `${data.scores[name] || name}: undefined because ${why}. `);
  return el("div", { class: "wide" }, el("table", { class: "plain" },
    el("caption", { class: "said", text: `${model.name}${which}` }),
    el("thead", {}, el("tr", {}, ...columns.map((text, i) => el("th", { scope: "col", class: i > 1 ? "number" : null, text })))),
    el("tbody", {}, ...rows)), undefinedOf.length ? el("p", { class: "muted", text: undefinedOf.join("") }) : null);
}
