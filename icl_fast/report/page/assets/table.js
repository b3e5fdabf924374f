"use strict";
// The Model Analysis Table: a column a model, a row a measurement.
(() => {
  const HEIGHT = 190;

  ICL.table = (section) => {
    const { models, rows, table } = ICL.data;
    section.style.setProperty("--columns", models.length);
    const strip = ICL.el("div", { class: "strip", role: "row" },
      ICL.el("div", { class: "corner", role: "columnheader" }, ICL.el("span", { text: "→ training tokens seen, in all rows but the first" })),
      ...models.map(columnHead));
    const body = ICL.el("div", { class: "scroll", role: "presentation" });
    const box = ICL.el("div", { class: "table", role: "table", "aria-label": "Model Analysis Table" }, strip, body);
    section.append(box);
    // the strip sticks to the window, which it could not do inside what scrolls sideways
    body.addEventListener("scroll", () => (strip.scrollLeft = body.scrollLeft), { passive: true });
    rows.forEach((row, r) => {
      const specs = table.map((column) => column[r]);
      const cells = ICL.el("div", { class: "row", role: "row" }, rowHead(row, r, specs));
      body.append(cells);
      models.forEach((model, m) => {
        const cell = ICL.el("div", { class: "cell", role: "cell" });
        cells.append(cell);
        const label = `${row.title}, ${model.name}`;
        const panel = ICL.panels.mount(cell, specs[m], { height: HEIGHT, model: m, bare: true, label });
        panel.figure.dataset.by = specs[m].by;
      });
    });
  };

  function columnHead(model, m) {
    const when = ICL.el("span", { class: "when" });
    ICL.on("cursor", () => {
      const at = ICL.hover.at(m);
      when.textContent = at === null ? "" : ICL.hover.when(m, at);
    });
    return ICL.el("div", { class: "column-head", role: "columnheader" },
      ICL.el("b", { text: model.name, title: model.name }),
      ICL.el("span", { class: model.interval ? "verdict yes" : "verdict", text: ICL.verdict(model).replace(/ tokens$/, ""), title: ICL.verdict(model) }),
      when);
  }

  /** What is said about a model's phase change. */
  ICL.verdict = (model) => {
    const seen = ICL.array(model.tokens).data;
    const interval = model.interval && model.interval.map((at) => ICL.format.count(seen[at])).join("–");
    if (model.change.happened && interval) return `phase change ${interval} tokens`;
    if (interval) return `interval marked: ${interval} tokens`;
    return model.change.happened ? "phase change" : "no phase change";
  };

  function rowHead(row, r, specs) {
    const shown = specs.filter((spec) => !spec.absent);
    const spec = shown[0] || specs[0];
    const head = ICL.el("div", { class: "row-head", role: "rowheader" },
      ICL.el("h3", {}, ICL.el("span", { class: "number", text: `${r + 1}` }), row.title),
      ICL.el("p", { text: row.explanation }));
    if (row.reading) head.append(ICL.el("p", { class: "reading", text: row.reading }));
    head.append(ICL.el("p", { class: "units", text: `↑ ${spec.y_label}` }));
    if (!spec.over_training) head.append(ICL.el("p", { class: "units", text: `→ ${spec.x_label}` }));
    if (spec.kind === "path") head.append(pathLegend());
    const map = spec.heatmap;
    if (map) head.append(ICL.heatBar(map));
    if (shown.some((one) => one.series.some((series) => series.head))) {
      head.dataset.by = spec.by;
      head.append(ICL.headLegend());
    }
    return head;
  }

  const pathLegend = () => ICL.el("p", { class: "legend" }, ...ICL.panels.pathKeys(),
    ICL.el("span", { class: "key" }, ICL.el("i", { class: "swatch changing", "aria-hidden": "true" }), "phase change"));
})();
