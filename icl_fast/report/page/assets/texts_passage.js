// The passage view: which tokens a model predicts better and worse after the phase change than before it.
import { array, data } from "./data.js";
import { el } from "./dom.js";
import * as format from "./format.js";
import { lossChart } from "./texts_chart.js";
import { on } from "./state.js";
import { later } from "./tasks.js";
import {
  bestHead, findModel, fixed, headOn, headsOf, lossCurve, models, nameOf, nothing, percent, quoted, score,
  scored, select, shown, signed, someOf, strip, textOf, tint,
} from "./texts.js";

const FULL = 3; // nats at which a colour is full: the same for all models and texts, so that they can be compared
const COLORS = 8; // of lines, in texts.css
const KINDS = {
  repeated: ["Repeated", "the token before it stood earlier and was followed by this token"],
  changed: ["Changed", "the token before it stood earlier, but was followed by something else"],
  new: ["New", "the token before it stands there for the first time"],
};
const LETTERS = { r: "repeated", c: "changed", n: "new" };

export function passage(container) {
  const all = models();
  if (!all.length) return nothing(container, "No text was measured.");
  let model, entry, text, losses, head, tokens, current = null;
  const pinned = []; // [{s, color}], in the order of pinning

  const plot = lossChart();
  const pins = el("ul", { class: "texts-pins", "aria-label": "Pinned tokens" });
  const readout = el("div", { class: "texts-readout", "aria-live": "polite" });
  const page = el("div", { class: "texts-page" });
  const lists = el("div", { class: "texts-lists" });
  const compared = el("p", { class: "texts-note texts-compared" });
  const found = el("table", { class: "texts-table texts-found" });
  const about = el("p", { class: "texts-note" });

  // the menu shows what was chosen at once, the text follows
  const soon = (menu, call) => later(`texts-passage-${menu}`, call);
  const pickModel = select("Model", all.map((one) => [one.name, one.name]), (name) => soon("model", () => setModel(findModel(name))));
  const pickText = select("Text", [], (index) => soon("text", () => setText(model.texts[Number(index)])));
  const pickHead = select("Attention of head", [], (name) => soon("head", () => { setHead(name); show(current); }));

  container.classList.add("texts");
  container.append(
    el("p", { class: "texts-lead", text: "One text, token by token: how well the model predicts each token after the phase change, compared with before. "
      + "Olsson et al. found that what changes is repetition: where a token is followed by what followed it earlier, the model gets better; "
      + "where it is followed by something else, the model gets worse, because it expects the repetition." }),
    el("div", { class: "texts-controls" }, pickModel.node, pickText.node, pickHead.node),
    compared,
    el("div", { class: "texts-columns" },
      el("div", { class: "texts-main" }, legend(), page, about, el("h3", { text: "Does it depend on repetition?" }), found),
      el("div", { class: "texts-side" }, readout,
        el("h3", { text: "Loss of single tokens over training" }), plot.node, pins)),
    lists);
  on("axis", plot.redraw);

  function setModel(next) {
    const name = text && text.name;
    model = next;
    pickText.fill(model.texts.map((one, index) => [String(index), textOf(one).title]));
    const best = bestHead(model);
    pickHead.fill(headsOf(model).map((one) => [nameOf(one),
      `${nameOf(one)}, prefix matching ${scored(score(model, "prefix", one))}${nameOf(one) === nameOf(best) ? " (highest)" : ""}`]));
    pickHead.set(nameOf(best));
    const same = model.texts.findIndex((one) => textOf(one).name === name);
    pickText.set(String(Math.max(0, same)));
    setText(model.texts[Math.max(0, same)]);
  }

  function setHead(name) {
    head = headOn(model, entry, name.split(".").map(Number));
  }

  function setText(next) {
    entry = next;
    text = textOf(entry);
    const before = array(entry.before).data, after = array(entry.after).data;
    losses = Array.from(before, (value, p) => ({ before: value, after: after[p], change: after[p] - value }));
    setHead(pickHead.value());
    pinned.length = 0;
    current = null;
    const counted = (one) => (data.progress.unit === "tokens" ? ` (${format.count(one.seen)} tokens seen)` : "");
    const when = (one) => `step ${one.step.toLocaleString("en")}${counted(one)}`;
    compared.textContent = model.snapshots === 1
      ? `${model.name} has one snapshot: nothing to compare it with, so that before and after are the same.`
      : model.changed
      ? `Before: ${when(model.before)}, where the phase change of ${model.name} begins. After: ${when(model.after)}, where it ends.`
      : `${model.name} had no phase change. Before is its first trained snapshot, ${when(model.before)}; after is its last, ${when(model.after)}.`;
    about.textContent = `${text.source ? `Text: ${text.source}. ` : ""}`
      + `${text.left_out ? `Its last ${text.left_out} tokens are left out. ` : ""}`
      + `${someOf(model)}Attention is kept to 1%, of the last snapshot; the chart's losses to 0.01 nats, at ${array(model.seen).data.length} of ${model.snapshots} snapshots.`;
    drawPage();
    drawFound();
    drawLists();
    const order = ranked();
    for (const p of new Set([order[0], order[order.length - 1]])) pin(p + 1, false);
    show(order[0] + 1);
    drawPins();
  }

  function drawPage() {
    const s = strip(text, `${text.title}: tokens by the change of their loss`, { hover: show, choose: toggle, leave() {} });
    tokens = s;
    s.tokens.forEach((token, at) => {
      if (!at) {
        token.setAttribute("aria-label", "start of the text, not predicted");
        return;
      }
      const { before, after, change } = losses[at - 1];
      tint(token, change < 0 ? "better" : "worse", Math.min(1, Math.abs(change) / FULL));
      token.setAttribute("aria-label",
        `token ${at}, ${shown(s.pieces[at])}, loss before ${fixed(before)}, after ${fixed(after)}, change ${signed(change)} nats`);
    });
    page.replaceChildren(s.node);
  }

  /** What is known of token s, and where the head looks to predict it. */
  function show(s) {
    if (s === null) return;
    if (current !== null) tokens.tokens[current].classList.remove("texts-current");
    current = s;
    tokens.tokens[s].classList.add("texts-current");
    tokens.tokens.forEach((token, j) => {
      const strength = s && j < s ? head.attention(s - 1, j) : 0;
      token.classList.toggle("texts-source", strength >= 0.01);
      if (strength >= 0.01) token.style.setProperty("--attention", strength.toFixed(2));
    });
    readout.replaceChildren(...(s ? describe(s) : [
      el("h3", {}, "Start of the text"), el("p", { text: "The model reads it, but does not predict it." })]));
    drawChart();
  }

  function describe(s) {
    const { before, after, change } = losses[s - 1];
    const name = pickHead.value();
    const value = (label, number, extra = "") =>
      el("div", { class: `texts-value ${extra}` }, el("dt", { text: label }), el("dd", { text: number }));
    const kind = LETTERS[text.continues[s - 1]];
    const sources = Array.from({ length: s }, (_, j) => j)
      .sort((a, b) => head.attention(s - 1, b) - head.attention(s - 1, a)).slice(0, 4)
      .filter((j) => head.attention(s - 1, j) >= 0.01);
    const better = change < 0 ? "better" : "worse";
    return [
      el("h3", {}, quoted(tokens.pieces[s]), el("span", { class: "texts-dim", text: ` token ${s}` })),
      el("dl", { class: "texts-values" },
        value("loss before", fixed(before), "texts-before"), value("loss after", fixed(after), "texts-after"),
        value(`change, nats: ${better}`, signed(change), `texts-change texts-is-${better}`)),
      el("p", { class: "texts-dim", text: `${KINDS[kind][0]}: ${KINDS[kind][1]}.` }),
      el("p", { text: sources.length ? `To predict it, head ${name} attends to the underlined tokens, most to:` : `To predict it, head ${name} attends to no token with 1% or more.` }),
      el("ol", { class: "texts-sources" }, ...sources.map((j) => el("li", {},
        el("span", { class: "texts-share", text: percent(head.attention(s - 1, j)) }),
        j ? quoted(tokens.pieces[j]) : el("span", { text: "the start of the text" }),
        j ? el("span", { class: "texts-dim", text: ` token ${j}` }) : null))),
    ];
  }

  // ---- pinned tokens ----

  const pinOf = (s) => pinned.find((one) => one.s === s);
  function pin(s, draw = true) {
    const used = new Set(pinned.map((one) => one.color));
    const color = Array.from({ length: COLORS }, (_, c) => c).find((c) => !used.has(c));
    if (color === undefined) unpin(pinned[0].s, false); // as many lines as can be told apart: the oldest goes
    pinned.push({ s, color: color === undefined ? Array.from({ length: COLORS }, (_, c) => c).find((c) => !pinned.some((one) => one.color === c)) : color });
    tokens.tokens[s].setAttribute("aria-selected", "true");
    if (draw) drawPins();
  }
  function unpin(s, draw = true) {
    pinned.splice(pinned.indexOf(pinOf(s)), 1);
    tokens.tokens[s].setAttribute("aria-selected", "false");
    if (draw) drawPins();
  }
  function toggle(s) {
    if (!s) return;
    if (pinOf(s)) unpin(s);
    else pin(s);
  }
  function drawPins() {
    pins.replaceChildren(...pinned.map(({ s, color }) => el("li", {},
      el("i", { class: `texts-swatch texts-line-${color}`, "aria-hidden": "true" }),
      el("button", { type: "button", class: "texts-link", on: { click: () => jump(s) } }, quoted(tokens.pieces[s]),
        el("span", { class: "texts-dim", text: ` token ${s}` })),
      el("button", {
        type: "button", class: "texts-unpin", text: "\u00d7", "aria-label": `Unpin token ${s}, ${shown(tokens.pieces[s])}`,
        on: { click: () => { unpin(s); tokens.focus(s); } },
      }))));
    if (!pinned.length) pins.append(el("li", { class: "texts-dim", text: "Click a token to pin its line." }));
    drawChart();
  }
  function drawChart() {
    const lines = pinned.map(({ s, color }) => ({ name: `\u201c${shown(tokens.pieces[s])}\u201d`, values: lossCurve(entry, s - 1), color }));
    if (current && !pinOf(current)) {
      lines.push({ name: `\u201c${shown(tokens.pieces[current])}\u201d`, values: lossCurve(entry, current - 1), color: "now" });
    }
    plot.draw({
      x: Array.from(array(model.seen).data), lines, band: model.changed ? [model.before.seen, model.after.seen] : null,
    });
  }

  // ---- what changed most, and for which tokens ----

  const ranked = () => losses.map((_, p) => p).sort((a, b) => losses[a].change - losses[b].change);
  function jump(s) {
    tokens.focus(s, true);
    show(s);
  }
  function drawLists() {
    const order = ranked();
    const one = (p) => {
      const s = p + 1;
      return el("li", {}, el("button", { type: "button", class: "texts-row", on: { click: () => jump(s) } },
        el("span", { class: "texts-number", text: signed(losses[p].change) }),
        el("span", { class: "texts-context" }, shown(tokens.pieces.slice(Math.max(1, s - 6), s).join("")),
          el("b", { class: losses[p].change < 0 ? "texts-better" : "texts-worse", style: "--strength: 0.7", text: shown(tokens.pieces[s]) }),
          shown(tokens.pieces.slice(s + 1, s + 3).join("")))));
    };
    const list = (name, title, positions) => el("div", {}, el("h3", { text: title }),
      positions.length ? el("ol", { class: `texts-ranked ${name}` }, ...positions.map(one)) : el("p", { class: "texts-dim", text: "None." }));
    lists.replaceChildren(
      list("texts-improved", "Most improved (nats)", order.filter((p) => losses[p].change < 0).slice(0, 10)),
      list("texts-worsened", "Most worsened (nats)", order.filter((p) => losses[p].change > 0).reverse().slice(0, 10)));
  }
  function drawFound() {
    const row = (kind) => {
      const { n, mean } = entry.groups[kind];
      return el("tr", {}, el("th", { scope: "row" }, KINDS[kind][0], el("span", { class: "texts-dim", text: KINDS[kind][1] })),
        el("td", { text: String(n) }), el("td", { text: mean === null ? "\u2013" : signed(mean) }));
    };
    found.replaceChildren(
      el("thead", {}, el("tr", {}, el("th", { scope: "col", text: "token" }), el("th", { scope: "col", text: "how many" }),
        el("th", { scope: "col", text: "mean change of loss (nats)" }))),
      el("tbody", {}, row("repeated"), row("changed"), row("new")));
  }

  setModel(all.reduce((best, one) => {
    const of = (m) => (m.changed ? 10 : 0) + score(m, "prefix", bestHead(m));
    return of(one) > of(best) ? one : best;
  }, all[0]));
  pickModel.set(model.name);
}

function legend() {
  const swatch = (kind, strength) => el("i", { class: `texts-chip ${kind}`, style: `--strength: ${strength}`, "aria-hidden": "true" });
  return el("div", { class: "texts-legend" },
    el("span", {}, "better (loss fell) ", swatch("texts-better", 1), swatch("texts-better", 0.6), swatch("texts-better", 0.25),
      swatch("", 0), swatch("texts-worse", 0.25), swatch("texts-worse", 0.6), swatch("texts-worse", 1), ` worse (loss rose); full colour: ${FULL} nats`),
    el("span", {}, el("i", { class: "texts-chip texts-source", style: "--attention: 0.6", "aria-hidden": "true" }), " attended to, thicker for more"),
    el("span", { text: "Point at a token, or move with the arrow keys. Click or Enter pins its line." }));
}
