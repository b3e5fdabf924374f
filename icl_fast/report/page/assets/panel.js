"use strict";
// One panel: Plotly draws its lines, path, points or heatmap; the band, cursors and read-outs are our own, above and
// below. All panels have fixed margins and ranges, so that what lies where is known without asking Plotly.
(() => {
  const { panels } = ICL;
  const byPlot = new WeakMap();
  panels.of = (element) => byPlot.get(element);

  /** A typed array or plain array, from the number of one or from itself. */
  const values = (of) => (typeof of === "number" ? ICL.array(of).data : of);

  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const panel = byPlot.get(entry.target);
      panel.near = entry.isIntersecting;
      if (panel.near && panel.stale) redraw(panel);
      else if (panel.near && panel.drawn) ICL.hover.refresh(panel); // the cursor may have moved since it was last near
    }
  }, { rootMargin: "300px" });

  // What is far away is taken down again: the browser has less to go through when the theme changes or a sheet opens.
  const keeper = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const panel = byPlot.get(entry.target);
      if (!entry.isIntersecting && panel.drawn) {
        ICL.later(panel, () => {
          if (panel.near) return;
          Plotly.purge(panel.graph);
          panel.graph.replaceChildren();
          panel.heads.clear();
          panel.lit = null;
          panel.drawn = false;
          panel.stale = true;
        });
      }
    }
  }, { rootMargin: "1500px" });

  const widths = new ResizeObserver((entries) => {
    for (const entry of entries) {
      const panel = byPlot.get(entry.target);
      if (Math.abs(entry.contentRect.width - panel.width) >= 1) panels.stale(panel);
    }
  });

  panels.stale = (panel) => {
    panel.stale = true;
    if (panel.near) redraw(panel);
  };

  function redraw(panel) {
    ICL.later(panel, () => panel.near && panel.stale && panel.plot.isConnected && draw(panel));
  }

  /**
   * Put a panel into a container; it is drawn when it comes near the window.
   *
   * `spec` is as Python's Panel; x, y, error and z may be arrays as well as numbers of arrays. `options`: height (px),
   * model (index of the column's model: its hovers are linked), bare (no title, caption or legend), label.
   */
  panels.mount = (container, spec, options = {}) => {
    const { height = 220, model = null, bare = false } = options;
    const band = ICL.el("div", { class: "band", hidden: true });
    const graph = ICL.el("div", { class: "graph" });
    const overlay = ICL.el("div", { class: "overlay", "aria-hidden": "true" });
    const plot = ICL.el("div", { class: "plot", style: `height:${height}px;--height:${height}px` }, band, graph, overlay);
    const figure = ICL.el("figure", { class: `panel ${spec.kind}${bare ? " bare" : ""}` });
    const panel = {
      spec, model, bare, figure, plot, graph, overlay, bandElement: band, height, width: 0, shift: 0, near: false, stale: true,
      margin: { l: bare ? 40 : 52, r: 10, t: 8, b: bare ? 22 : 40 }, series: [], x: null, y: null,
      heads: new Map(), marks: {}, lit: null, dim: false,
    };
    if (!bare) {
      figure.append(ICL.el("figcaption", { class: "title", text: spec.title }), legend(spec));
    }
    figure.append(plot);
    if (!bare) figure.append(ICL.el("p", { class: "caption", text: spec.caption }));
    container.append(figure);
    if (spec.absent) {
      plot.replaceChildren(ICL.el("p", { class: "absent", text: spec.absent }));
      plot.style.height = bare ? `${height}px` : "auto";
      return panel;
    }
    plot.tabIndex = 0;
    plot.setAttribute("role", "application");
    plot.setAttribute("aria-roledescription", "chart");
    plot.setAttribute("aria-label", options.label || `${spec.title}. ${spec.caption}`);
    byPlot.set(plot, panel);
    panels.all.push(panel);
    prepare(panel);
    ICL.hover.attach(panel);
    watcher.observe(plot);
    keeper.observe(plot);
    widths.observe(plot);
    return panel;
  };

  /** Forget the panels of a container that is about to be emptied. */
  panels.unmount = (container) => {
    panels.all = panels.all.filter((panel) => {
      if (!container.contains(panel.plot)) return true;
      watcher.unobserve(panel.plot);
      keeper.unobserve(panel.plot);
      widths.unobserve(panel.plot);
      return false;
    });
  };

  function prepare(panel) {
    const { spec } = panel;
    panel.series = (spec.series || []).map((one, index) => ({
      ...one,
      index,
      x: values(one.x),
      y: values(one.y),
      error: one.error === null || one.error === undefined ? null : values(one.error),
      colour: (spec.colours && spec.colours[index]) || ICL.palette(index),
      opaque: one.opaque !== false,
      names: one.names || [],
    }));
    if (spec.heatmap) {
      const map = spec.heatmap;
      panel.heatmap = { ...map, x: values(map.x), y: values(map.y), z: values(map.z) };
    }
  }

  function extent(arrays, positive) {
    let low = Infinity;
    let high = -Infinity;
    for (const array of arrays) {
      for (const v of array) {
        if (!Number.isFinite(v) || (positive && v <= 0)) continue;
        if (v < low) low = v;
        if (v > high) high = v;
      }
    }
    return low <= high ? [low, high] : [positive ? 1 : 0, positive ? 10 : 1];
  }

  function padded([low, high], log, part = 0.05) {
    if (log) {
      const by = (high / low) ** part || 1.1;
      return low === high ? [low / 2, high * 2] : [low / by, high * by];
    }
    const by = (high - low) * part || Math.abs(high) * 0.1 || 0.5;
    return [low - by, high + by];
  }

  function setAxes(panel) {
    const { spec, heatmap, series } = panel;
    const log = spec.over_training ? ICL.state.axis === "log" : Boolean(spec.log_x);
    const inner = panel.width - panel.margin.l - panel.margin.r;
    const most = Math.max(2, Math.min(5, Math.floor(inner / 70)));
    const xs = heatmap ? [heatmap.x] : series.map((s) => s.x);
    const flush = spec.over_training || heatmap;
    const x = extent(xs, log);
    const [left, right] = flush && x[0] < x[1] ? x : padded(x, log);
    panel.x = ICL.axis(left, right, log, most);
    // layers are whole numbers, and so are their ticks
    if (!log && xs.every((of) => of.every(Number.isInteger))) panel.x.ticks = panel.x.ticks.filter(Number.isInteger);
    panel.x.ticks = apart(panel.x, 44 / inner);
    const ticks = panel.height < 180 ? 3 : 4;
    let range;
    if (heatmap) range = extent([heatmap.y], spec.log_y);
    else if (spec.y_range && !(spec.log_y && spec.y_range[0] <= 0)) range = spec.y_range;
    else {
      const ys = series.map((s) => s.y);
      if (!spec.log_y) {
        for (const s of series) if (s.error) ys.push(s.y.map((v, i) => v - s.error[i]), s.y.map((v, i) => v + s.error[i]));
      }
      range = padded(extent(ys, spec.log_y), spec.log_y);
    }
    panel.y = ICL.axis(range[0], range[1], Boolean(spec.log_y), ticks);
  }

  /** The axis' ticks but those whose labels would touch: 0 and powers of ten stay before others. */
  function apart(axis, least) {
    const rank = (v) => (v === 0 || Math.log10(Math.abs(v)) % 1 === 0 ? 0 : 1);
    const kept = [];
    for (const tick of [...axis.ticks].sort((a, b) => rank(a) - rank(b))) {
      if (kept.every((other) => Math.abs(axis.to(other) - axis.to(tick)) >= least)) kept.push(tick);
    }
    return kept.sort((a, b) => a - b);
  }

  const clamp = (axis, v) => (axis.log && v <= 0 ? NaN : axis.to(v));

  function draw(panel) {
    const width = panel.plot.clientWidth;
    if (!width) return;
    panel.width = width;
    // a cell of the table is as high as its row; its cursor runs through all of it, its drawing lies in the middle
    panel.shift = panel.bare ? (panel.figure.clientHeight - panel.height) / 2 : 0;
    panel.stale = false;
    setAxes(panel);
    const traces = panel.heatmap ? [ICL.heatTrace(panel)] : lineTraces(panel);
    const axis = (of, label) => ({
      range: [0, 1], fixedrange: true, zeroline: false, showgrid: false, showline: true, linewidth: 1,
      ticks: "outside", ticklen: 3, tickwidth: 1, automargin: false,
      tickvals: of.ticks.map(of.to), ticktext: of.ticks.map(ICL.format.tick),
      title: panel.bare ? undefined : { text: ICL.plain(label), standoff: 6, font: { size: 12 } },
    });
    const layout = {
      width, height: panel.height, margin: panel.margin, showlegend: false, hovermode: false, dragmode: false,
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, sans-serif", size: panel.bare ? 10.5 : 11.5 },
      xaxis: axis(panel.x, panel.spec.x_label),
      yaxis: axis(panel.y, panel.spec.y_label),
      shapes: [],
    };
    const { y } = panel;
    if (!panel.heatmap && !y.log && y.low < 0 && y.high > 0) {
      layout.shapes.push({ type: "line", x0: 0, x1: 1, y0: y.to(0), y1: y.to(0), line: { width: 1 }, layer: "below" });
    }
    Plotly.react(panel.graph, traces, layout, { staticPlot: true, displayModeBar: false, responsive: false });
    mark(panel, traces);
    placeBand(panel);
    panel.drawn = true;
    ICL.hover.refresh(panel);
  }

  // Plotly puts a trace's uid into its class; ours carry what the style sheet needs: which head, which colour.
  function mark(panel, traces) {
    panel.heads.clear();
    panel.lit = null;
    for (const trace of traces) {
      const node = trace.uid && panel.graph.getElementsByClassName(`trace${trace.uid}`)[0];
      if (!node) continue;
      const { of, role } = trace.meta;
      const classes = [role];
      if (of.head) {
        classes.push("head");
        const key = `${modelOf(panel, of)}:${ICL.format.head(of.head)}`;
        panel.heads.set(key, [...(panel.heads.get(key) || []), node]);
      }
      if (!of.opaque) classes.push("faded");
      if (of.label === "phase change") classes.push("changing");
      node.classList.add(...classes);
      node.style.setProperty("--own", of.colour);
      if (of.head) {
        const [depth, type] = ICL.headColours(modelOf(panel, of), of.head);
        node.style.setProperty("--depth", depth);
        node.style.setProperty("--type", type);
      }
    }
  }

  const modelOf = (panel, series) => {
    const at = series.model ? ICL.data.models.findIndex((m) => m.name === series.model) : -1;
    return at >= 0 ? at : panel.model;
  };
  panels.modelOf = modelOf;

  function lineTraces(panel) {
    const { spec, x, y } = panel;
    const points = spec.kind === "points";
    const traces = [];
    const add = (of, role, trace) =>
      traces.push({ type: "scatter", hoverinfo: "skip", uid: `${role}${of.index}`, meta: { of, role }, ...trace });
    // what lies behind comes first
    const order = [...panel.series].sort((a, b) => Number(a.opaque) - Number(b.opaque));
    const changing = order.findIndex((s) => s.label === "phase change");
    if (changing >= 0) order.push(...order.splice(changing, 1));
    for (const of of order) {
      const px = Array.from(of.x, (v) => clamp(x, v));
      const py = Array.from(of.y, (v) => clamp(y, v));
      if (of.error && !points && !y.log) {
        const up = Array.from(of.y, (v, i) => y.to(v + of.error[i]));
        const down = Array.from(of.y, (v, i) => y.to(v - of.error[i]));
        const keep = px.map((v, i) => i).filter((i) => Number.isFinite(px[i]) && Number.isFinite(up[i]));
        const back = [...keep].reverse();
        add(of, "ribbon", {
          mode: "lines", fill: "toself", line: { width: 0 },
          x: [...keep, ...back].map((_, k) => px[k < keep.length ? keep[k] : back[k - keep.length]]),
          y: [...keep.map((i) => up[i]), ...back.map((i) => down[i])],
        });
      }
      if (points) {
        const bars = of.error && !y.log
          ? { error_y: { type: "data", array: Array.from(of.error, (e) => e / (y.high - y.low)), width: 0, thickness: 1 } } : {};
        add(of, "points", { mode: "markers", marker: { size: of.head ? 7 : 6 }, x: px, y: py, ...bars });
      } else {
        const dash = of.head ? "solid" : ["solid", "dash", "dot", "dashdot"][Math.floor(of.index / 8) % 4];
        const few = px.length <= 24 && !of.head && spec.kind === "lines";
        add(of, "line", { mode: few ? "lines+markers" : "lines", line: { width: 1.4, dash }, marker: { size: 3.5 }, x: px, y: py });
        const own = spec.kind === "path" && of.opaque && of.label !== "phase change";
        if (own) {
          add(of, "begin", { mode: "markers", marker: { size: 6, symbol: "circle" }, x: px.slice(0, 1), y: py.slice(0, 1) });
          add(of, "end", { mode: "markers", marker: { size: 7, symbol: "circle" }, x: px.slice(-1), y: py.slice(-1) });
        }
      }
    }
    return traces;
  }

  /** Where a value of x or y lies in the plot, in px. */
  panels.px = (panel, value) => {
    const { l, r } = panel.margin;
    return l + clamp(panel.x, value) * (panel.width - l - r);
  };
  panels.py = (panel, value) => {
    const { t, b } = panel.margin;
    return panel.height - b - clamp(panel.y, value) * (panel.height - t - b);
  };

  function placeBand(panel) {
    const { spec, bandElement: band } = panel;
    band.hidden = !spec.over_training || !spec.band;
    if (band.hidden) return;
    const [start, end] = spec.band.map((v) => panels.px(panel, Math.min(panel.x.high, Math.max(panel.x.low, v))));
    band.style.left = `${start}px`;
    band.style.width = `${Math.max(1.5, end - start)}px`;
  }

  function legend(spec) {
    const box = ICL.el("div", { class: "legend" });
    if (spec.heatmap) {
      box.append(ICL.heatBar(spec.heatmap));
      return box;
    }
    const series = spec.series || [];
    if (spec.kind === "path") box.append(...panels.pathKeys());
    if (series.some((one) => one.head)) box.append(ICL.headLegend());
    const rest = series.map((one, index) => ({ one, index })).filter(({ one }) => !one.head);
    if (rest.length > 1 || (rest.length && rest.length < series.length)) {
      for (const { one, index } of rest.slice(0, 24)) {
        const colour = (spec.colours && spec.colours[index]) || ICL.palette(index);
        const swatch = ICL.el("i", { class: `swatch ${spec.kind} dash${Math.floor(index / 8) % 4}`, style: `--own:${colour}` });
        box.append(ICL.el("span", { class: one.opaque === false ? "key faded" : "key" }, swatch, one.label));
      }
    }
    return box;
  }

  /** What the marks on a path mean. */
  panels.pathKeys = () => [["ring", "untrained"], ["disc", "trained"]].map(([look, text]) =>
    ICL.el("span", { class: "key" }, ICL.el("i", { class: look, "aria-hidden": "true" }), text));

  panels.restale = () => {
    const near = panels.all.filter((panel) => panel.near);
    for (const panel of panels.all) panel.stale = true;
    // those that can be seen now before those that are only near
    const seen = (panel) => {
      const box = panel.plot.getBoundingClientRect();
      return box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth;
    };
    const order = near.map((panel) => [seen(panel) ? 0 : 1, panel]).sort((a, b) => a[0] - b[0]);
    for (const [, panel] of order) redraw(panel);
  };
})();
