"use strict";
// Linked hover: one cursor for the page (a model, a snapshot, perhaps a head, perhaps a context position), shown in
// every panel of that model's column, and at the nearest snapshot by tokens in the other columns.
(() => {
  const hover = (ICL.hover = {});
  const NEAR = 16; // px within which a line or point counts as pointed at
  ICL.cursor = null; // {model, at, head, position, panel}

  const tip = ICL.el("div", { class: "tip", hidden: true, "aria-hidden": "true" });
  const live = ICL.el("div", { class: "unseen", "aria-live": "polite", role: "status" });
  document.body.append(tip, live);

  const tokens = (model) => ICL.array(ICL.data.models[model].tokens).data;
  const steps = (model) => ICL.array(ICL.data.models[model].steps).data;
  hover.when = (model, at) => `step ${ICL.format.whole(steps(model)[at])} · ${ICL.format.count(tokens(model)[at])} tokens`;

  // ---- what is pointed at

  /** Index into a series nearest to x px, and how far its line is from the point, in px. */
  function reach(panel, series, px, py) {
    const { x: xs, y: ys } = series;
    const part = (px - panel.margin.l) / (panel.width - panel.margin.l - panel.margin.r);
    if (panel.spec.kind !== "lines") {
      let best = { at: 0, far: Infinity };
      for (let i = 0; i < xs.length; i++) {
        const far = Math.hypot(panels.px(panel, xs[i]) - px, panels.py(panel, ys[i]) - py);
        if (far < best.far) best = { at: i, far };
      }
      return best;
    }
    const at = ICL.nearestOn(panel.x, xs, part);
    let far = Infinity;
    for (let i = Math.max(1, at); i <= Math.min(xs.length - 1, at + 1); i++) {
      far = Math.min(far, segment(px, py, panels.px(panel, xs[i - 1]), panels.py(panel, ys[i - 1]),
        panels.px(panel, xs[i]), panels.py(panel, ys[i])));
    }
    if (xs.length === 1) far = Math.hypot(panels.px(panel, xs[0]) - px, panels.py(panel, ys[0]) - py);
    return { at, far };
  }

  function segment(px, py, ax, ay, bx, by) {
    const dx = bx - ax;
    const dy = by - ay;
    const t = Math.max(0, Math.min(1, ((px - ax) * dx + (py - ay) * dy) / (dx * dx + dy * dy || 1)));
    return Math.hypot(px - ax - t * dx, py - ay - t * dy);
  }

  const { panels } = ICL;

  function nearestSeries(panel, px, py) {
    let best = null;
    for (const series of panel.series) {
      if (panel.spec.kind === "path" && series.label === "phase change") continue;
      const found = { series, ...reach(panel, series, px, py) };
      // a head outside the sample that is drawn opaque gives way to one inside
      if (Number.isFinite(found.far) && (!best || found.far + (series.opaque ? 0 : 4) < best.far)) best = found;
    }
    return best;
  }

  /** The page's cursor for a place in a panel; null: nothing there. */
  function pointed(panel, px, py) {
    const found = nearestSeries(panel, px, py);
    const { l, r, t, b } = panel.margin;
    if (panel.heatmap) {
      const at = ICL.nearestOn(panel.x, panel.heatmap.x, (px - l) / (panel.width - l - r));
      const row = ICL.nearestOn(panel.y, panel.heatmap.y, (panel.height - b - py) / (panel.height - t - b));
      return { model: panel.model, at: snapshot(panel.model, panel.heatmap.x[at]), head: null,
        position: panel.heatmap.y[row], panel, series: null, point: at };
    }
    if (!found) return null;
    const { series, at, far } = found;
    const close = far <= (panel.spec.kind === "path" ? 3 : 1) * NEAR;
    const model = panels.modelOf(panel, series);
    const over = panel.spec.over_training;
    if (!over && !close) return null;
    let snap = null;
    if (over && model !== null) snap = snapshot(model, series.x[at]);
    if (panel.spec.kind === "path" && model !== null && series.x.length === steps(model).length) snap = at;
    return { model, at: snap, head: close && series.head ? series.head : null, position: null, panel,
      series: close || panel.series.length === 1 ? series : null, point: at };
  }

  const snapshot = (model, seen) => (model === null ? null : ICL.nearest(tokens(model), seen));

  // ---- showing it

  hover.show = (cursor, where = null, aloud = false) => {
    if (!cursor && !ICL.cursor) return;
    const beside = cursor && besideOf(cursor.panel, where); // before anything is written
    ICL.cursor = cursor;
    for (const panel of panels.all) if (panel.near && panel.drawn) hover.refresh(panel);
    ICL.emit("cursor", cursor);
    describe(cursor, beside, aloud);
  };

  /** Where the tip may stand: beside a column of the table, all of which is to be seen, or beside the pointer. */
  function besideOf(panel, where) {
    const box = panel.plot.getBoundingClientRect();
    const [x, y] = where || [box.left + panel.margin.l, box.bottom];
    return panel.bare ? { left: box.left - 6, right: box.right + 6, y } : { left: x - 18, right: x + 18, y };
  }

  // A head's lines and points carry the class `lit`, and the drawing `lighting`, which dims the others.
  function light(panel) {
    const { cursor } = ICL;
    const head = cursor && cursor.model !== null && cursor.head;
    const key = head ? `${cursor.model}:${ICL.format.head(head)}` : null;
    const nodes = (key && panel.heads.get(key)) || [];
    const dim = Boolean(key) && (nodes.length > 0 || (panel.model === cursor.model && panel.heads.size > 0));
    if (panel.lit === nodes && panel.dim === dim) return;
    for (const node of panel.lit || []) node.classList.remove("lit");
    for (const node of nodes) node.classList.add("lit");
    panel.lit = nodes;
    if (panel.dim !== dim) panel.graph.classList.toggle("lighting", dim);
    panel.dim = dim;
  }

  /** Where the cursor is in a model's snapshots: its own, or the nearest by tokens to another model's. */
  hover.at = (model) => {
    const { cursor } = ICL;
    if (!cursor || cursor.at === null || cursor.model === null || model === null) return null;
    return model === cursor.model ? cursor.at : ICL.nearest(tokens(model), tokens(cursor.model)[cursor.at]);
  };

  hover.refresh = (panel) => {
    light(panel);
    const { model } = panel;
    const at = model === null ? null : hover.at(model);
    const local = model === null && ICL.cursor && ICL.cursor.panel === panel;
    const marks = local ? localMarks(panel) : at === null ? {} : columnMarks(panel, model, at);
    for (const name of ["cursor", "dot", "cross", "readout"]) put(panel, name, marks[name]);
  };

  // The four marks of a panel are made once, then moved: nothing that lies beside them is laid out or painted anew.
  function put(panel, name, mark) {
    const known = panel.marks[name];
    if (!mark) {
      if (known && !known.hidden) known.hidden = true;
      return;
    }
    const node = known || (panel.marks[name] = ICL.el("div", { class: name }));
    if (!known) panel.overlay.append(node);
    if (node.hidden) node.hidden = false;
    if (mark.text !== undefined) node.textContent = mark.text;
    else node.style.transform = `translate(${mark.x.toFixed(1)}px, ${(mark.y || 0).toFixed(1)}px)`;
    if (mark.colour) node.style.setProperty("--own", mark.colour);
  }

  const dot = (panel, series, i) => ({
    x: panels.px(panel, series.x[i]), y: panels.py(panel, series.y[i]) + panel.shift, colour: colourOf(panel, series),
  });

  function colourOf(panel, series) {
    if (!series.head) return series.colour;
    const by = ICL.state.colour === "paper" ? panel.spec.by || "depth" : ICL.state.colour;
    return ICL.headColours(panels.modelOf(panel, series), series.head)[by === "depth" ? 0 : 1];
  }

  const withError = (series, i) => {
    const value = ICL.format.value(series.y[i]);
    return series.error ? `${value} ± ${ICL.format.value(series.error[i])}` : value;
  };

  function columnMarks(panel, model, at) {
    const { spec } = panel;
    const { cursor } = ICL;
    const seen = tokens(model)[at];
    if (spec.kind === "path") {
      const own = panel.series.find((s) => panels.modelOf(panel, s) === model && s.x.length === steps(model).length);
      return own ? { dot: dot(panel, own, at) } : {};
    }
    if (!spec.over_training || (panel.x.log && seen <= 0)) return {};
    const x = Math.max(panel.margin.l, Math.min(panel.width - panel.margin.r, panels.px(panel, seen)));
    const marks = { cursor: { x } };
    if (panel.heatmap) {
      if (cursor.position === null) return marks;
      const { heatmap: map } = panel;
      const row = ICL.nearest(map.y, cursor.position);
      const value = map.z[row * map.x.length + ICL.nearest(map.x, seen)];
      marks.cross = { x, y: panels.py(panel, map.y[row]) + panel.shift };
      marks.readout = { text: `position ${ICL.format.whole(map.y[row])}: ${ICL.format.value(value)}` };
      return marks;
    }
    const own = chosenLine(panel, model);
    if (own) {
      const i = ICL.nearest(own.x, seen);
      marks.dot = dot(panel, own, i);
      marks.readout = { text: (own.head ? `${ICL.format.head(own.head)}: ` : "") + withError(own, i) };
    }
    return marks;
  }

  /** The line whose value is read out: the panel's only one, or that of the head that is pointed at. */
  function chosenLine(panel, model) {
    const { head, model: of } = ICL.cursor;
    if (!panel.heads.size) return panel.series.length === 1 ? panel.series[0] : null;
    if (!head || of !== model) return null;
    return panel.series.find((s) => s.head && s.head[0] === head[0] && s.head[1] === head[1]);
  }

  function localMarks(panel) {
    const { series, point, position } = ICL.cursor;
    if (panel.heatmap) return { cross: { x: panels.px(panel, panel.heatmap.x[point]), y: panels.py(panel, position) + panel.shift } };
    if (!series) return {};
    const marks = { dot: dot(panel, series, point) };
    if (panel.spec.over_training) marks.cursor = { x: marks.dot.x };
    return marks;
  }

  // ---- naming it

  hover.facts = (model, head, at) => {
    const of = ICL.data.models[model];
    const facts = [];
    const read = (reference) => {
      const { data, shape } = ICL.array(reference);
      return data[(at * shape[1] + head[0]) * shape[2] + head[1]];
    };
    for (const [name, label] of Object.entries(ICL.data.scores)) {
      if (name in of.scores) facts.push([label, ICL.format.value(read(of.scores[name]))]);
    }
    for (const [mode, effects] of Object.entries(of.ablations)) {
      facts.push([`Δ ICL score, ${mode}`, `${read(effects.icl) > 0 ? "+" : ""}${ICL.format.value(read(effects.icl))}`]);
    }
    return facts;
  };

  function describe(cursor, where, aloud) {
    if (!cursor) {
      tip.hidden = true;
      return;
    }
    const { model, at, head, series, point, panel, position } = cursor;
    const lines = [];
    let title;
    if (head && model !== null) {
      const of = ICL.data.models[model];
      title = `head ${ICL.format.head(head)} · ${of.types[head[0]][head[1]]}`;
      const when = at === null ? steps(model).length - 1 : at;
      lines.push([of.name, hover.when(model, when)], ...hover.facts(model, head, when));
    } else {
      title = series ? series.names[point] || series.label : model !== null && ICL.data.models[model].name;
      if (model !== null && at !== null) lines.push([series && series.names[point] ? series.label : "", hover.when(model, at)]);
    }
    if (panel.heatmap) {
      const row = ICL.nearest(panel.heatmap.y, position);
      lines.push([`${panel.spec.y_label} ${ICL.format.tick(position)}`,
        ICL.format.value(panel.heatmap.z[row * panel.heatmap.x.length + point])]);
    } else if (series && (!head || panel.model === null)) {
      if (!panel.spec.over_training || at === null) lines.push([panel.spec.x_label, ICL.format.value(series.x[point])]);
      lines.push([panel.spec.y_label, withError(series, point)]);
    }
    tip.replaceChildren(ICL.el("b", { text: title || "" }),
      ...lines.map(([name, value]) => ICL.el("div", {}, ICL.el("span", { text: name }), ICL.el("span", { text: value }))));
    if (aloud) live.textContent = [title, ...lines.map((pair) => pair.join(" "))].join(", ");
    tip.hidden = false;
    // right and below, or left and above where there is no room: without measuring, which would lay out the page
    const left = where.right > innerWidth - 330;
    const above = where.y > innerHeight - 240;
    const nowhere = left && where.left < 330; // no room on either side: above or below it then
    tip.style.inset = `${above ? "auto" : `${where.y + 14}px`} ${left && !nowhere ? `${innerWidth - where.left}px` : "auto"} `
      + `${above ? `${Math.max(8, innerHeight - where.y + 14)}px` : "auto"} ${nowhere ? "8px" : left ? "auto" : `${where.right}px`}`;
  }

  // ---- mouse and keys

  hover.attach = (panel) => {
    const { plot } = panel;
    let latest = null;
    plot.addEventListener("pointermove", (event) => {
      if (event.pointerType === "touch") return;
      if (!latest) requestAnimationFrame(() => {
        const moved = latest;
        latest = null;
        if (moved && panel.drawn) hover.show(pointed(panel, ...inside(plot, moved)), [moved.clientX, moved.clientY]);
      });
      latest = event;
    });
    plot.addEventListener("pointerleave", (event) => {
      latest = null;
      if (event.pointerType === "touch") return; // a finger leaves after every tap
      hover.show(null);
    });
    plot.addEventListener("click", (event) => {
      if (!panel.drawn) return;
      const before = ICL.cursor && ICL.cursor.head;
      const found = pointed(panel, ...inside(plot, event));
      // a finger cannot hover: its first tap shows, its second opens
      const shown = event.pointerType !== "touch" || (before && found && found.head && before.join() === found.head.join());
      hover.show(found, [event.clientX, event.clientY]);
      if (found && found.head && shown) ICL.openHead(found.model, found.head);
    });
    plot.addEventListener("blur", () => hover.show(null));
    plot.addEventListener("focus", () => {
      if (plot.matches(":focus-visible") && panel.drawn && !ICL.cursor) hover.show(start(panel), null, true);
    });
    plot.addEventListener("keydown", (event) => press(panel, event));
  };

  function inside(plot, event) {
    const box = plot.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  function start(panel) {
    if (panel.heatmap) {
      const point = panel.heatmap.x.length - 1;
      return { model: panel.model, at: snapshot(panel.model, panel.heatmap.x[point]), head: null,
        position: panel.heatmap.y[panel.heatmap.y.length - 1], panel, series: null, point };
    }
    return along(panel, panel.series.find((s) => s.opaque) || panel.series[0], Infinity, panel.series.length === 1);
  }

  function along(panel, series, point, chosen = true) {
    const first = panel.x.log && series.x[0] <= 0 ? 1 : 0;
    const i = Math.max(first, Math.min(series.x.length - 1, point));
    const model = panels.modelOf(panel, series);
    let at = null;
    if (model !== null && panel.spec.over_training) at = snapshot(model, series.x[i]);
    if (model !== null && panel.spec.kind === "path" && series.x.length === steps(model).length) at = i;
    const head = chosen ? series.head || null : null;
    return { model, at, head, position: null, panel, series: chosen ? series : null, point: i };
  }

  function press(panel, event) {
    if (!panel.drawn || event.ctrlKey || event.metaKey || event.altKey) return;
    const mine = ICL.cursor && ICL.cursor.panel === panel ? ICL.cursor : null;
    const sideways = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    const upward = { ArrowUp: 1, ArrowDown: -1 }[event.key];
    if (event.key === "Escape" && ICL.cursor) hover.show(null);
    else if (event.key === "Enter" && mine && mine.head) ICL.openHead(mine.model, mine.head);
    else if (sideways !== undefined) hover.show(moved(panel, mine, sideways * (event.shiftKey ? 10 : 1)), null, true);
    else if (upward !== undefined) hover.show(climbed(panel, mine, upward), null, true);
    else return;
    event.preventDefault();
  }

  function moved(panel, mine, by) {
    if (!mine) return start(panel);
    if (panel.heatmap) {
      const first = panel.x.log && panel.heatmap.x[0] <= 0 ? 1 : 0;
      const point = Math.max(first, Math.min(panel.heatmap.x.length - 1, mine.point + by));
      return { ...mine, point, at: snapshot(panel.model, panel.heatmap.x[point]) };
    }
    const series = mine.series || panel.series.find((s) => s.opaque) || panel.series[0];
    return along(panel, series, mine.point + by, Boolean(mine.series));
  }

  function climbed(panel, mine, by) {
    const now = mine || start(panel);
    if (panel.heatmap) {
      const rows = panel.heatmap.y;
      const row = ICL.nearest(rows, now.position) + by * Math.max(1, Math.round(rows.length / 32));
      return { ...now, position: rows[Math.max(0, Math.min(rows.length - 1, row))] };
    }
    const choice = panel.series.filter((s) => s.label !== "phase change");
    const from = now.series ? choice.indexOf(now.series) : by > 0 ? -1 : choice.length;
    const series = choice[(from + by + choice.length) % choice.length];
    const point = panel.spec.over_training && now.series ? ICL.nearest(series.x, now.series.x[now.point]) : now.point;
    return along(panel, series, point);
  }
})();
