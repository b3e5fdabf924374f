"use strict";
// Colours: of heads and series (Python's, as static figures have them), of heatmaps, and the legends that explain them.
(() => {
  ICL.palette = (index) => ICL.data.colours.series[index % ICL.data.colours.series.length];

  /** [by depth, by type] of a head. */
  ICL.headColours = (model, [layer, head]) => {
    const of = ICL.data.models[model];
    return [of.depth_colours[layer], ICL.data.colours.types[of.types[layer][head]]];
  };

  /** Text for Plotly, which reads a few HTML tags: what looks like one stays text. */
  ICL.plain = (text) => text.replaceAll("<", "‹").replaceAll(">", "›");

  const channels = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

  function stops(scale) {
    const colours = ICL.data.colours[scale];
    return colours.map((colour, i) => [i / (colours.length - 1), colour]);
  }

  /** Values resampled to about one cell a pixel (means along y): Plotly paints evenly spaced cells at once. */
  ICL.heatTrace = (panel) => {
    const { heatmap: map, x, y, margin } = panel;
    const columns = Math.max(2, Math.round((panel.width - margin.l - margin.r) * 1.5));
    const rows = Math.max(2, Math.min(map.y.length, Math.round((panel.height - margin.t - margin.b) * 1.5)));
    const n = map.x.length;
    const fromX = new Int32Array(columns);
    for (let c = 0; c < columns; c++) fromX[c] = ICL.nearestOn(x, map.x, (c + 0.5) / columns);
    const z = [];
    const edge = (r) => y.from(r / rows);
    for (let r = 0; r < rows; r++) {
      let first = lower(map.y, edge(r));
      let last = lower(map.y, edge(r + 1)) - 1;
      if (r === rows - 1) last = map.y.length - 1;
      if (last < first) first = last = ICL.nearestOn(y, map.y, (r + 0.5) / rows);
      const mean = new Float64Array(n);
      for (let i = first; i <= last; i++) for (let s = 0; s < n; s++) mean[s] += map.z[i * n + s];
      const row = new Array(columns);
      for (let c = 0; c < columns; c++) row[c] = mean[fromX[c]] / (last - first + 1);
      z.push(row);
    }
    return {
      type: "heatmap", z, x0: 0.5 / columns, dx: 1 / columns, y0: 0.5 / rows, dy: 1 / rows, zmin: map.low, zmax: map.high,
      colorscale: stops(map.scale), showscale: false, zsmooth: "fast", hoverinfo: "skip",
    };
  };

  /** First index whose value is not below. */
  function lower(rising, value) {
    let low = 0;
    let high = rising.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (rising[middle] < value) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** Index of the value that lies nearest on the axis to a part of it, 0 to 1. */
  ICL.nearestOn = (axis, rising, part) => {
    const at = lower(rising, axis.from(part));
    if (at <= 0) return 0;
    if (at >= rising.length) return rising.length - 1;
    const before = axis.log && rising[at - 1] <= 0 ? -Infinity : axis.to(rising[at - 1]);
    return part - before <= axis.to(rising[at]) - part ? at - 1 : at;
  };

  /** Which value has which colour. */
  ICL.heatBar = (map) => {
    const gradient = stops(map.scale).map(([at, colour]) => `${colour} ${(100 * at).toFixed(1)}%`).join(", ");
    return ICL.el("span", { class: "heatbar" },
      ICL.el("span", { text: ICL.format.value(map.low).replace(/0+$/, "").replace(/\.$/, "") }),
      ICL.el("i", { style: `background:linear-gradient(to right, ${gradient})`, "aria-hidden": "true" }),
      ICL.el("span", { text: `${ICL.format.value(map.high).replace(/0+$/, "").replace(/\.$/, "")} ${map.unit}` }));
  };

  /** What a head's colour means; the style sheet shows the one of the two that is chosen. */
  ICL.headLegend = () => {
    const { depth, types } = ICL.data.colours;
    const key = (label, colour) => ICL.el("span", { class: "key" }, ICL.el("i", { class: "swatch", style: `--own:${colour}` }), label);
    return ICL.el("span", { class: "heads" },
      ICL.el("span", { class: "by-depth" },
        "first layer ", ICL.el("i", { class: "ramp", style: `background:linear-gradient(to right, ${depth.join(", ")})` }), " last layer"),
      ICL.el("span", { class: "by-type" }, ...Object.entries(types).map(([label, colour]) => key(label, colour))));
  };

  /** Black or white, whichever can be read on a colour. */
  ICL.onColour = (hex) => {
    const [r, g, b] = channels(hex).map((v) => (v / 255) ** 2.2);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.3 ? "#111" : "#fff";
  };
})();
