"use strict";
// Losses of single tokens over training: a small chart in SVG, quick enough to follow the pointer.
(() => {
  const { el } = ICL;
  const { fixed } = ICL.texts.shared;
  const SVG = "http://www.w3.org/2000/svg";
  const WIDTH = 460, HEIGHT = 260;
  const BOX = { left: 44, right: WIDTH - 12, top: 22, bottom: HEIGHT - 40 };

  function svg(tag, attributes = {}, text = null) {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    if (text !== null) node.textContent = text;
    return node;
  }

  /**
   * chart(): {node, draw({x, band, lines: [{name, values, color}]}), redraw()}; x in tokens seen, values in nats, color 0 to 7.
   * Under the pointer: every line's value at the nearest snapshot.
   */
  function chart() {
    const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "texts-chart", role: "img" });
    const said = el("p", { class: "texts-chart-said" });
    const node = el("div", { class: "texts-chart-box" }, picture, said);
    let now = null;

    function draw(data) {
      const { band, lines } = data;
      const log = ICL.state.axis === "log";
      const from = log ? Math.max(0, data.x.findIndex((v) => v > 0)) : 0; // a logarithmic axis has no 0
      const x = data.x.slice(from);
      picture.replaceChildren();
      const horizontal = ICL.axis(x[0], x[x.length - 1], log, 5);
      const vertical = ICL.axis(0, Math.max(1, ...lines.flatMap((line) => line.values)), false, 4);
      const px = (v) => BOX.left + Math.min(1, Math.max(0, horizontal.to(v))) * (BOX.right - BOX.left);
      const py = (v) => BOX.bottom - vertical.to(v) * (BOX.bottom - BOX.top);
      now = { data, x, px, from };
      if (band) {
        const left = px(band[0]);
        picture.append(svg("rect", {
          x: left, y: BOX.top, width: Math.max(1, px(band[1]) - left), height: BOX.bottom - BOX.top, class: "texts-band",
        }));
        picture.append(svg("text", { x: left, y: BOX.top - 7, class: "texts-tick" }, "phase change"));
      }
      for (const v of vertical.ticks) {
        picture.append(svg("line", { x1: BOX.left, x2: BOX.right, y1: py(v), y2: py(v), class: "texts-grid" }));
        picture.append(svg("text", { x: BOX.left - 6, y: py(v) + 4, "text-anchor": "end", class: "texts-tick" }, ICL.format.tick(v)));
      }
      for (const v of horizontal.ticks) {
        picture.append(svg("line", { x1: px(v), x2: px(v), y1: BOX.bottom, y2: BOX.bottom + 4, class: "texts-axis" }));
        picture.append(svg("text", { x: px(v), y: BOX.bottom + 17, "text-anchor": "middle", class: "texts-tick" }, ICL.format.count(v)));
      }
      picture.append(svg("line", { x1: BOX.left, x2: BOX.right, y1: BOX.bottom, y2: BOX.bottom, class: "texts-axis" }));
      picture.append(svg("text", { x: (BOX.left + BOX.right) / 2, y: HEIGHT - 6, "text-anchor": "middle", class: "texts-tick" }, "tokens seen in training"));
      const middle = (BOX.top + BOX.bottom) / 2;
      picture.append(svg("text", { x: 11, y: middle, transform: `rotate(-90 11 ${middle})`, "text-anchor": "middle", class: "texts-tick" }, "loss of the token (nats)"));
      for (const line of lines) {
        const points = line.values.slice(from).map((v, k) => `${px(x[k]).toFixed(1)},${py(v).toFixed(1)}`).join(" ");
        picture.append(svg("polyline", { points, class: `texts-line texts-line-${line.color}` }));
      }
      now.cursor = svg("line", { y1: BOX.top, y2: BOX.bottom, x1: 0, x2: 0, class: "texts-cursor", visibility: "hidden" });
      picture.append(now.cursor);
      picture.setAttribute("aria-label", lines.length
        ? `Loss over training of ${lines.map((line) => line.name).join(", ")}`
        : "Loss over training: no token chosen");
      said.textContent = lines.length ? "Point at the chart for the values at a snapshot." : "";
    }

    picture.addEventListener("pointermove", (event) => {
      if (!now || !now.data.lines.length) return;
      const bounds = picture.getBoundingClientRect();
      const at = ((event.clientX - bounds.left) / bounds.width) * WIDTH;
      let nearest = 0;
      now.x.forEach((v, k) => { if (Math.abs(now.px(v) - at) < Math.abs(now.px(now.x[nearest]) - at)) nearest = k; });
      const where = now.px(now.x[nearest]);
      now.cursor.setAttribute("x1", where);
      now.cursor.setAttribute("x2", where);
      now.cursor.setAttribute("visibility", "visible");
      const values = now.data.lines.map((line) => `${line.name} ${fixed(line.values[nearest + now.from])}`).join(", ");
      said.textContent = `After ${ICL.format.count(now.x[nearest])} tokens: ${values} nats`;
    });
    picture.addEventListener("pointerleave", () => {
      if (!now) return;
      now.cursor.setAttribute("visibility", "hidden");
      said.textContent = now.data.lines.length ? "Point at the chart for the values at a snapshot." : "";
    });
    return { node, draw, redraw: () => now && draw(now.data) };
  }

  Object.assign(ICL.texts.shared, { chart });
})();
