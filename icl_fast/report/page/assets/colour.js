// Colours: of heads and series (Python's, as the static figures have them), and of heatmaps.
import { data } from "./data.js";
import { lower, nearestOn } from "./scale.js";

export const palette = (index) => data.colours.series[index % data.colours.series.length];

/** [by depth, by type] of a head of a model, by its index. */
export function headColours(model, [layer, head]) {
  const of = data.models[model];
  return [of.depth_colours[layer], data.colours.types[of.types[layer][head]]];
}

/** CSS: a scale's colours from left to right. */
export const gradient = (colours) => `linear-gradient(to right, ${colours.join(", ")})`;

const channels = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

/** The colour at a part of a scale, 0 to 1: [r, g, b], linear between the scale's stops. */
export function colourAt(stops, part) {
  const at = Math.max(0, Math.min(1, part)) * (stops.length - 1);
  const before = Math.min(Math.floor(at), stops.length - 2);
  return stops[before].map((channel, c) => channel + (at - before) * (stops[before + 1][c] - channel));
}

/** Paint a heatmap on a canvas: each pixel has the value nearest to it, of several along y their mean. */
export function paintHeatmap(canvas, { x, y, z, scale, low, high }, axes) {
  const { width, height } = canvas;
  const stops = data.colours[scale].map(channels);
  const columns = Int32Array.from({ length: width }, (_, c) => nearestOn(axes.x, x, (c + 0.5) / width));
  const image = new ImageData(width, height);
  for (let r = 0; r < height; r++) {
    let first = lower(y, axes.y.from(r / height));
    let last = r === height - 1 ? y.length : lower(y, axes.y.from((r + 1) / height));
    if (last <= first) {
      first = nearestOn(axes.y, y, (r + 0.5) / height);
      last = first + 1;
    }
    const known = new Map(); // neighbouring pixels show the same column
    for (let c = 0; c < width; c++) {
      const column = columns[c];
      if (!known.has(column)) {
        let sum = 0;
        for (let i = first; i < last; i++) sum += z[i * x.length + column];
        known.set(column, sum / (last - first));
      }
      const value = known.get(column);
      if (Number.isNaN(value)) continue;
      image.data.set([...colourAt(stops, (value - low) / (high - low)), 255], 4 * ((height - 1 - r) * width + c));
    }
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}
