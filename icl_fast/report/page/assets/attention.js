// Heads on a text: patterns to hover and lock, and the text with what a token's prediction looks at and is given.
import { array } from "./data.js";
import { el } from "./dom.js";
import { later } from "./tasks.js";
import {
  bestHead, choice, findModel, headOn, headsOf, lastOf, models, nameOf, nothing, percent, place, quoted, score, scored,
  select, shown, signed, snapshotName, snapshotSlider, someOf, strip, textOf, tint,
} from "./texts.js";
import { opacity, paint, pattern } from "./attention_draw.js";

const THUMB = 72;
const AT_ONCE = 8; // small pictures that are painted in one task
const TOP = 5;
const TASKS = {
  passage: "A passage of ordinary text.",
  repeated: "Literal copying: the same sentences twice. A head that copies attends, the second time, to the token that came next the first time: a second line beside the diagonal.",
  parallel: "Translation: the same sentence in several languages. A head that translates attends to the word that comes next in the other language: a line off the diagonal that wanders with the word order.",
  template: "Pattern matching: each line follows one of four patterns (month or colour, then animal or fruit) and ends in the pattern's number. A head that matches patterns attends, where a number is predicted, to numbers of earlier lines of the same pattern.",
};

const highest = (model) => score(model, "prefix", bestHead(model), lastOf(model));
const starting = (all) => all.reduce((best, one) => (highest(one) > highest(best) ? one : best));
const rank = (entry) => ["repeated", "parallel", "template", "passage"].indexOf(textOf(entry).kind);

let views = 0;

/**
 * The whole view, in a container. `from`: the models to choose from; `head`: the only one shown, [layer, head], null for
 * all to choose from; `step`: of the snapshot that a slider of its own begins at, null for the page's.
 */
export function attentionView(container, { from, head = null, step = null }) {
  const single = head !== null;
  const view = views++;
  let model, entry, text, full, rows, tokens;
  let locked = null, shownHead = null; // heads, [layer, head]
  let chosen = null, pointed = null; // tokens: locked by click, under the pointer
  let of = null;
  let tinted = []; // how each token is tinted
  let buttons = []; // of the heads: {head, node, canvas, values}

  // the menu shows what was chosen at once, the pictures follow
  const soon = (what, call) => later(`attention-${view}-${what}`, () => container.isConnected && call());

  const task = el("p", { class: "texts-note" });
  const grid = el("div", { class: "texts-heads", role: "group", "aria-label": "Attention heads: hover to focus, click to lock" });
  const title = el("h3", { class: "texts-which" });
  const labels = el("p", { class: "texts-labels" });
  const page = el("div", { class: "texts-page" });
  const key = el("div", { class: "texts-legend" });
  const readout = el("div", { class: "texts-readout", "aria-live": "polite" });
  const big = pattern({
    point: (i, j) => { point(side.value() === "destination" ? i + 1 : j, [i, j]); },
    leave: () => point(null),
  });
  const pickModel = select("Model", from.map((one) => [one.name, one.name]), (name) => soon("model", () => setModel(findModel(name))));
  const pickText = select("Text", [], (index) => soon("text", () => setText(model.texts[Number(index)])));
  const what = choice("Show", [["attention", "attention"], ["logits", "logit attribution"]], () => { paintHeads(); drawHead(); });
  const slider = snapshotSlider(lastOf, () => soon("snapshot", () => { paintHeads(); focusHead(shownHead); }), step);
  const side = choice("The selected token is", [["destination", "predicted (destination)"], ["source", "attended to (source)"]], () => color());
  const only = el("input", { type: "checkbox", checked: true, on: { change: () => { setRows(); paintHeads(); drawHead(); } } });
  const mask = el("label", { class: "texts-control texts-mask" }, only, el("span", { text: "only where a label is predicted" }));

  container.classList.add("texts", single ? "texts-single" : "texts-all");
  container.append(
    el("div", { class: "texts-controls" }, from.length > 1 ? pickModel.node : null, pickText.node, slider.node, what.node, side.node, mask),
    task,
    ...(single ? [] : [el("h3", { text: "Attention heads (hover to focus, click to lock)" }), grid]),
    title, labels,
    el("div", { class: "texts-columns" },
      el("div", { class: "texts-main" }, key, page),
      el("div", { class: "texts-side" }, big.node, readout)));

  // ---- what is looked at ----

  function setModel(next) {
    const name = text && text.name;
    model = next;
    pickText.fill(model.texts.map((one, index) => [String(index), textOf(one).title]));
    let index = model.texts.findIndex((one) => textOf(one).name === name);
    if (index < 0) {
      index = model.texts.map((_, k) => k).sort((a, b) => rank(model.texts[a]) - rank(model.texts[b]))[0];
    }
    pickText.set(String(index));
    locked = single ? head : bestHead(model);
    slider.fill(model);
    setText(model.texts[index]);
  }

  function setText(next) {
    entry = next;
    text = textOf(entry);
    task.textContent = `${single ? "" : someOf(model)}${TASKS[text.kind] || ""}${text.source ? ` Text: ${text.source}.` : ""}`
      + `${text.left_out ? ` Its last ${text.left_out} tokens are left out.` : ""}`;
    mask.hidden = !text.labels.length;
    chosen = pointed = null;
    tokens = strip(text, `${text.title}: tokens`, { hover: (s) => point(s), leave: () => point(null), choose: lock, escape: () => {
      const was = chosen !== null;
      lock(null);
      return was;
    } });
    tokens.tokens.forEach((token, s) => token.setAttribute("aria-label", s ? `token ${s}, ${shown(tokens.pieces[s])}` : "start of the text"));
    page.replaceChildren(tokens.node);
    tinted = tokens.tokens.map(() => null);
    setRows();
    full = masked() ? entry.largest_label : entry.largest;
    makeHeads();
    paintHeads();
    focusHead(locked);
  }

  const masked = () => text.labels.length > 0 && only.checked;
  function setRows() {
    rows = masked() ? text.labels : Array.from(text.target, (_, i) => i);
  }

  // ---- heads ----

  function makeHeads() {
    if (single) return;
    const line = (label) => {
      const value = el("span");
      return { value, node: el("span", { class: "texts-score" }, el("span", { class: "texts-dim", text: label }), value) };
    };
    buttons = headsOf(model).map((one) => {
      const name = nameOf(one);
      const canvas = el("canvas", { class: "texts-thumb", "aria-hidden": "true", width: THUMB, height: THUMB });
      const lines = ["prefix", "copying", ...(entry.labels ? ["right labels"] : [])].map(line);
      const node = el("button", {
        type: "button", class: "texts-head", "data-texts-head": name,
        on: {
          pointerenter: () => focusHead(one), focus: () => focusHead(one),
          click: () => { locked = one; focusHead(one); },
        },
      }, canvas, el("span", { class: "texts-scores" }, el("b", { text: `head ${name}` }), ...lines.map((shownAs) => shownAs.node)));
      return { head: one, name, node, canvas, values: lines.map(({ value }) => value) };
    });
    const layers = [...new Set(buttons.map((one) => one.head[0]))];
    grid.replaceChildren(...layers.map((layer) => el("div", { class: "texts-layer" },
      el("span", { class: "texts-dim", text: `layer ${layer}` }),
      ...buttons.filter((one) => one.head[0] === layer).map((one) => one.node))));
  }

  /** The small pictures, some at a time. */
  function paintHeads() {
    const { labels: shares } = entry;
    for (const { head: one, values } of buttons) {
      const found = [scored(score(model, "prefix", one, slider.at())), scored(score(model, "copying", one, slider.at())),
        shares && percent(share(shares.right, one))];
      values.forEach((node, i) => { node.textContent = found[i]; });
    }
    for (let first = 0; first < buttons.length; first += AT_ONCE) {
      const some = buttons.slice(first, first + AT_ONCE);
      soon(`heads-${first}`, () => some.forEach(({ head: one, canvas }) =>
        paint(canvas, headOn(model, entry, one, slider.at()), what.value(), rows, full, THUMB)));
    }
  }
  grid.addEventListener("pointerleave", () => focusHead(locked));
  grid.addEventListener("focusout", (event) => { if (!grid.contains(event.relatedTarget)) focusHead(locked); });

  const share = (reference, one) => array(reference).data[slider.at() * headsOf(model).length + place(model, one)];

  function focusHead(one) {
    shownHead = one;
    for (const { name, node } of buttons) {
      node.setAttribute("aria-pressed", String(name === nameOf(locked)));
      node.classList.toggle("texts-shown", name === nameOf(one));
    }
    of = headOn(model, entry, one, slider.at());
    drawHead();
  }

  function drawHead() {
    const name = nameOf(shownHead);
    const preview = nameOf(shownHead) !== nameOf(locked);
    title.replaceChildren(`${model.name}, head ${name}`, el("span", { class: "texts-dim",
      text: ` prefix matching ${scored(score(model, "prefix", shownHead, slider.at()))}, copying ${scored(score(model, "copying", shownHead, slider.at()))}${preview ? " (click to lock)" : ""}` }));
    labels.hidden = !entry.labels;
    if (entry.labels) {
      const right = share(entry.labels.right, shownHead), wrong = share(entry.labels.wrong, shownHead);
      const part = right + wrong > 0 ? right / (right + wrong) : 0;
      labels.textContent = `Where a label is predicted, head ${name} pays ${percent(right)} of its attention to earlier labels of the right pattern and ${percent(wrong)} to labels of other patterns: `
        + `${percent(part)} of what it pays to labels is on the right ones. A head blind to the pattern would have ${percent(entry.labels.blind)}.`;
    }
    big.draw(of, what.value(), rows, full, `${what.value() === "attention" ? "Attention pattern" : "Logit attribution"} of head ${name} on ${text.title}, ${snapshotName(model, slider.at())}`);
    key.replaceChildren(...legend());
    color();
  }

  function legend() {
    const chips = (kind, parts) => parts.map((part) =>
      el("i", { class: `texts-chip texts-${kind}`, style: `--strength: ${opacity(part).toFixed(3)}`, "aria-hidden": "true" }));
    const scale = what.value() === "attention"
      ? el("span", {}, "attention 0% ", ...chips("attend", [0.02, 0.1, 0.3, 0.6, 1]), " 100%")
      : el("span", {}, `logit lowered by ${full.toFixed(1)} `, ...chips("worse", [1, 0.4, 0.1, 0.02]), ...chips("better", [0.02, 0.1, 0.4, 1]), ` raised by ${full.toFixed(1)}`);
    return [scale, el("span", { text: "Point at a token or at the picture; click or Enter locks a token, Escape unlocks." })];
  }

  // ---- tokens ----

  /** Where only labels are predicted, a line's tokens stand for its label. */
  const labelFrom = (s) => {
    const row = rows.find((i) => i + 1 >= s);
    return row === undefined ? s : row + 1;
  };
  function point(s, cell = null) {
    pointed = s;
    color(cell);
  }
  function lock(s) {
    if (chosen !== null) tokens.tokens[chosen].setAttribute("aria-selected", "false");
    chosen = s === chosen ? null : s;
    if (chosen !== null) tokens.tokens[chosen].setAttribute("aria-selected", "true");
    color();
  }

  /** Tokens coloured for the one that is selected, or, with none, by what each gets at most or in all. */
  function color(cell = null) {
    const destination = side.value() === "destination";
    let s = pointed !== null ? pointed : chosen;
    if (s !== null && destination && masked()) s = labelFrom(s);
    const attention = what.value() === "attention";
    const values = new Float64Array(tokens.tokens.length);
    if (s === null) {
      for (const i of rows) {
        if (!attention) values[i + 1] = of.direct(i);
        else for (let j = 0; j <= i; j++) values[j] = Math.max(values[j], of.attention(i, j));
      }
    } else if (destination) {
      if (rows.includes(s - 1)) for (let j = 0; j < s; j++) values[j] = attention ? of.attention(s - 1, j) : of.logit(s - 1, j);
    } else for (const i of rows) if (i >= s) values[i + 1] = attention ? of.attention(i, s) : of.logit(i, s);
    tokens.tokens.forEach((token, k) => {
      token.classList.toggle("texts-current", k === s);
      const v = values[k];
      const kind = Math.abs(v) < 0.005 ? null : attention ? "attend" : v > 0 ? "better" : "worse";
      const strength = kind && opacity(Math.abs(v) / (attention ? 1 : full));
      const looks = kind && kind + strength;
      if (tinted[k] !== looks) tint(token, kind, strength); // most stay as they are
      tinted[k] = looks;
    });
    if (cell) big.mark(...cell);
    else big.mark(s !== null && destination && s > 0 ? s - 1 : null, s !== null && !destination && s < of.length ? s : null);
    readout.replaceChildren(...describe(s, destination, attention, cell));
  }

  const naming = (k) => (k ? [quoted(tokens.pieces[k]), el("span", { class: "texts-dim", text: ` token ${k}` })] : ["start of the text"]);

  function describe(s, destination, attention, cell) {
    if (s === null) {
      return [el("p", { class: "texts-dim", text: attention
        ? "No token selected: each token is coloured by the most attention that any prediction pays it."
        : "No token selected: each token is coloured by what the head adds to its logit when it is predicted, all sources together." })];
    }
    const heading = el("h3", {}, ...naming(s));
    if (destination && !s) return [heading, el("p", { text: "The model reads it, but does not predict it." })];
    if (destination && !rows.includes(s - 1)) return [heading, el("p", { text: "No label follows in this text." })];
    if (!destination && s >= of.length) return [heading, el("p", { text: "The last token is predicted, but not read: nothing can attend to it." })];
    const pairs = destination ? Array.from({ length: s }, (_, j) => [s - 1, j]) : rows.filter((i) => i >= s).map((i) => [i, s]);
    const value = ([i, j]) => (attention ? of.attention(i, j) : Math.abs(of.logit(i, j)));
    const most = pairs.sort((a, b) => value(b) - value(a)).slice(0, TOP).filter((pair) => value(pair) >= 0.005);
    if (cell && !most.some(([i, j]) => i === cell[0] && j === cell[1])) most.push(cell);
    const row = ([i, j]) => el("tr", { class: cell && i === cell[0] && j === cell[1] ? "texts-pointed" : null },
      el("th", { scope: "row" }, ...naming(destination ? j : i + 1)),
      el("td", { class: "texts-attention-value", text: percent(of.attention(i, j)) }),
      el("td", { class: "texts-logit-value", text: signed(of.logit(i, j)) }));
    return [
      heading,
      el("table", { class: "texts-table" },
        el("thead", {}, el("tr", {}, el("th", { scope: "col", text: destination ? "to predict it, the head attends to" : "the head attends to it to predict" }),
          el("th", { scope: "col", text: "attention" }), el("th", { scope: "col", text: destination ? "adds to its logit" : "adds to their logit" }))),
        el("tbody", {}, ...most.map(row)),
        destination ? el("tfoot", {}, el("tr", {}, el("th", { scope: "row", text: "all sources" }), el("td", { text: "100%" }),
          el("td", { class: "texts-direct-value", text: signed(of.direct(s - 1)) }))) : null),
      most.length ? null : el("p", { class: "texts-dim", text: "Nothing of 0.5% or 0.005 or more." }),
    ].filter(Boolean);
  }

  setModel(starting(from));
  pickModel.set(model.name);
}

const DEFINITIONS = "Prefix: prefix-matching score, the attention on the token after an earlier copy of the present one, on repeated random tokens (1 at most). "
  + "Copying: how much the head raises the logit of what it attends to (from \u22121 to 1). A perfect induction head has 1 in both. "
  + "Logit attribution: what an attended token adds, through the head's output alone, to the logit of the token that does come next, above the mean logit. "
  + "All at the snapshot that the slider shows; attention to 1%, logits to 0.01.";

/** The page's section: all models. */
export function section(container) {
  if (!models().length) {
    nothing(container, "No text was measured.");
    return;
  }
  const box = el("div");
  container.append(el("p", { class: "texts-lead texts", text: "Where each head attends on a text, and what it adds to the logits there: one row of a picture for each token predicted and one column for each token attended to, "
    + "at the snapshot of the slider. Do heads that copy repeated tokens also do something more abstract? Olsson et al. show induction heads of a large model that translate and that match patterns: the same texts, for heads of these models." }),
  box, el("p", { class: "texts-note", text: DEFINITIONS }));
  attentionView(box, { from: models() });
}

/** What one head of a model does on texts. */
export function headView(container, modelName, head) {
  const model = findModel(modelName);
  if (!model) return;
  const box = el("div");
  container.append(el("h3", { text: "On text" }), box, el("p", { class: "texts-note", text: DEFINITIONS }));
  if (place(model, head) < 0) nothing(box, `Not kept of this head. ${someOf(model)}`);
  else attentionView(box, { from: [model], head });
}
