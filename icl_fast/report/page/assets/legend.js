// What colours and marks mean.
import { gradient, palette } from "./colour.js";
import { data } from "./data.js";
import { el } from "./dom.js";
import * as format from "./format.js";

const key = (mark, text, faded = false) => el("span", { class: faded ? "key faded" : "key" }, mark, text);
const mark = (look, style = null) => el("i", { class: look, style, "aria-hidden": "true" });

/** Which value of a heatmap has which colour. */
export function heatBar(map) {
  const end = (value) => format.value(value).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "");
  const colours = mark(null, `background:${gradient(data.colours[map.scale])}`);
  return el("span", { class: "heatbar" }, el("span", { text: end(map.low) }), colours,
    el("span", { text: `${end(map.high)} ${map.units}` }));
}

/** What a head's colour means; the style sheet shows the one of the two that is chosen. */
export function headLegend(kind = "lines") {
  const { depth, types } = data.colours;
  return el("span", { class: "heads" },
    el("span", { class: "by-depth" }, "first layer ", mark("ramp", `background:${gradient(depth)}`), " last layer"),
    el("span", { class: "by-type" },
      ...Object.entries(types).map(([label, colour]) => key(mark(`swatch ${kind}`, `--own:${colour}`), label))));
}

/** What the marks on a path mean. */
export const pathKeys = () => [["ring", "untrained"], ["disc", "trained"]].map(([look, text]) => key(mark(look), text));

/** What the mark on the part of a path that is the phase change looks like. */
export const changeKey = () => key(mark("swatch changing"), "phase change");

/** The legend of a panel. */
export function legend(spec) {
  const box = el("div", { class: "legend" });
  if (spec.heatmap) box.append(heatBar(spec.heatmap));
  const series = spec.series || [];
  if (spec.kind === "path") box.append(...pathKeys());
  if (series.some((one) => one.head)) box.append(headLegend(spec.kind));
  const rest = series.map((one, index) => ({ ...one, index })).filter((one) => !one.head);
  if (rest.length > 1 || (rest.length && rest.length < series.length)) {
    for (const { label, index, opaque } of rest.slice(0, 24)) {
      const colour = (spec.colours && spec.colours[index]) || palette(index);
      const look = `swatch ${spec.kind} dash${Math.floor(index / 8) % 4}`;
      box.append(key(mark(look, `--own:${colour}`), label, opaque === false));
    }
  }
  return box;
}
