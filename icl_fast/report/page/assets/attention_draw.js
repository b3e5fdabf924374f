// A head's attention pattern, or its logit attribution, as a picture: rows predict, columns are attended to.
import { el } from "./dom.js";

// shades that stand out on light and on dark pages alike, laid on with more or less opacity; as in texts.css
const ATTEND = [136, 84, 208], RAISE = [47, 120, 196], LOWER = [222, 96, 42];

/** Opacity for a part 0 to 1: small parts stay visible. */
export const opacity = (part) => Math.sqrt(Math.min(1, part));

/**
 * Draw on a canvas of `size` pixels. of: headOn's result; what: "attention" or "logits"; rows: the destinations shown,
 * which share the height; full: the logit of full colour. Of values that meet in a pixel, the farthest from 0 is shown.
 */
export function paint(canvas, of, what, rows, full, size) {
  if (canvas.width !== size || canvas.height !== size) canvas.width = canvas.height = size;
  const cell = new Float32Array(size * size);
  const value = what === "attention" ? of.attention : of.logit;
  const scale = size / of.length;
  rows.forEach((i, r) => {
    const top = Math.floor((r * size) / rows.length), bottom = Math.max(top + 1, Math.floor(((r + 1) * size) / rows.length));
    for (let j = 0; j <= i; j++) {
      const v = value(i, j);
      if (!v) continue;
      const left = Math.floor(j * scale), right = Math.max(left + 1, Math.floor((j + 1) * scale));
      for (let y = top; y < bottom; y++) {
        for (let x = left; x < right; x++) if (Math.abs(v) > Math.abs(cell[y * size + x])) cell[y * size + x] = v;
      }
    }
  });
  const image = new ImageData(size, size);
  cell.forEach((v, k) => {
    if (!v) return;
    const [r, g, b] = what === "attention" ? ATTEND : v > 0 ? RAISE : LOWER;
    image.data.set([r, g, b, Math.round(255 * opacity(Math.abs(v) / (what === "attention" ? 1 : full)))], 4 * k);
  });
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** The large picture, which says what lies under the pointer: {node, draw(...), mark(row, column)}. */
export function pattern(on) {
  const canvas = el("canvas", { class: "texts-pattern", role: "img" });
  const row = el("i", { class: "texts-mark texts-mark-row", "aria-hidden": "true", hidden: true });
  const column = el("i", { class: "texts-mark texts-mark-column", "aria-hidden": "true", hidden: true });
  const frame = el("div", { class: "texts-frame" }, canvas, row, column);
  const node = el("figure", { class: "texts-figure" },
    el("span", { class: "texts-axis-y", text: "token predicted" }), frame,
    el("span", { class: "texts-axis-x", text: "token attended to" }));
  let length = 1, shown = [0];
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    const at = (part, count) => Math.min(count - 1, Math.max(0, Math.floor(part * count)));
    const i = shown[at((event.clientY - box.top) / box.height, shown.length)];
    const j = at((event.clientX - box.left) / box.width, length);
    if (j <= i) on.point(i, j);
  });
  canvas.addEventListener("pointerleave", () => on.leave());
  return {
    node,
    draw(of, what, rows, full, label) {
      length = of.length;
      shown = rows;
      canvas.setAttribute("aria-label", label);
      paint(canvas, of, what, rows, full, Math.max(length, length * Math.ceil(256 / length)));
    },
    mark(i, j) {
      const r = shown.indexOf(i);
      row.hidden = r < 0;
      column.hidden = j === null;
      row.style.top = `${(100 * r) / shown.length}%`;
      row.style.height = `${100 / shown.length}%`;
      column.style.left = `${(100 * j) / length}%`;
      column.style.width = `${100 / length}%`;
    },
  };
}
