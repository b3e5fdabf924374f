// Token losses: which tokens of a text a model predicts better and worse at a snapshot than before the phase change.
import { array } from "./data.js";
import { el } from "./dom.js";
import { on } from "./state.js";
import { later } from "./tasks.js";
import {
  bestHead, findModel, fixed, headOn, headsOf, lastOf, lossCurve, lossesAt, models, nameOf, nothing, percent, quoted, score,
  scored, select, shown, signed, snapshotName, snapshotSlider, someOf, strip, textOf, tint,
} from "./texts.js";
import { lossChart } from "./token_losses_chart.js";

const FULL = 3; // nats at which a colour is full: the same for all models and texts, so that they can be compared
const COLORS = 8; // of lines, in texts.css
const KINDS = {
  repeated: ["Repeated", "the token before it stood earlier and was followed by this token"],
  changed: ["Changed", "the token before it stood earlier, but was followed by something else"],
  new: ["New", "the token before it stands there for the first time"],
};
const LETTERS = { r: "repeated", c: "changed", n: "new" };

export function tokenLosses(container) {
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
  const soon = (menu, call) => later(`token-losses-${menu}`, call);
  const pickModel = select("Model", all.map((one) => [one.name, one.name]), (name) => soon("model", () => setModel(findModel(name))));
  const pickText = select("Text", [], (index) => soon("text", () => setText(model.texts[Number(index)])));
  const pickHead = select("Attention of head", [], () => soon("head", () => { setHead(); show(current); }));
  const slider = snapshotSlider((of) => of.after, () => soon("snapshot", setSnapshot));

  container.classList.add("texts");
  container.append(
    el("p", { class: "texts-lead", text: "One text, token by token: how well the model predicts each token at the slider's snapshot, compared with before the phase change. "
      + "Olsson et al. found that what changes is repetition: where a token is followed by what followed it earlier, the model gets better; "
      + "where it is followed by something else, the model gets worse, because it expects the repetition." }),
    el("div", { class: "texts-controls" }, pickModel.node, pickText.node, slider.node, pickHead.node),
    compared,
    el("div", { class: "texts-columns" },
      el("div", { class: "texts-main" }, legend(), page, about, el("h3", { text: "Does it depend on repetition?" }), found),
      el("div", { class: "texts-side" }, readout,
        el("h3", { text: "Loss of single tokens over training" }), plot.node, pins)),
    lists);
  on("axis", plot.redraw);
  const before = () => lossesAt(entry, model.before);
  const now = () => lossesAt(entry, slider.at());

  function setModel(next) {
    const name = text && text.name;
    model = next;
    pickText.fill(model.texts.map((one, index) => [String(index), textOf(one).title]));
    const best = bestHead(model);
    pickHead.fill(headsOf(model).map((one) => [nameOf(one),
      `${nameOf(one)}, prefix matching ${scored(score(model, "prefix", one, lastOf(model)))}${nameOf(one) === nameOf(best) ? " (highest)" : ""}`]));
    pickHead.set(nameOf(best));
    slider.fill(model);
    const same = model.texts.findIndex((one) => textOf(one).name === name);
    pickText.set(String(Math.max(0, same)));
    setText(model.texts[Math.max(0, same)]);
  }

  function setHead() {
    head = headOn(model, entry, pickHead.value().split(".").map(Number), slider.at());
  }

  function setText(next) {
    entry = next;
    text = textOf(entry);
    pinned.length = 0;
    current = null;
    about.textContent = `${text.source ? `Text: ${text.source}. ` : ""}`
      + `${text.left_out ? `Its last ${text.left_out} tokens are left out. ` : ""}`
      + `${someOf(model)}Attention is kept to 1%, at ${model.viewed.length} snapshots, evenly along the logarithm of training; the chart's losses to 0.01 nats, at ${array(model.seen).data.length} of ${model.snapshots} snapshots.`;
    drawPage();
    compare();
    const order = ranked();
    for (const p of new Set([order[0], order[order.length - 1]])) pin(p + 1, false);
    show(order[0] + 1);
    drawPins();
  }

  function setSnapshot() {
    compare();
    show(current);
  }

  /** Bring all that depends on the slider's snapshot up to date. */
  function compare() {
    setHead();
    const at = now();
    losses = Array.from(before(), (value, p) => ({ before: value, now: at[p], change: at[p] - value }));
    compared.textContent = model.snapshots === 1
      ? `${model.name} has one snapshot: nothing to compare it with, so that before and now are the same.`
      : `Before: ${snapshotName(model, model.before)}. Now: ${snapshotName(model, slider.at())}.`
        + `${model.changed ? "" : ` ${model.name} had no phase change: before is its first trained snapshot.`}`;
    tintTokens();
    drawFound();
    drawLists();
  }

  function drawPage() {
    const s = strip(text, `${text.title}: tokens by the change of their loss`, { hover: show, choose: toggle, leave() {} });
    tokens = s;
    s.tokens[0].setAttribute("aria-label", "start of the text, not predicted");
    page.replaceChildren(s.node);
  }

  function tintTokens() {
    losses.forEach((of, p) => {
      const token = tokens.tokens[p + 1];
      tint(token, of.change < 0 ? "better" : "worse", Math.min(1, Math.abs(of.change) / FULL));
      token.setAttribute("aria-label", `token ${p + 1}, ${shown(tokens.pieces[p + 1])}, `
        + `loss before ${fixed(of.before)}, now ${fixed(of.now)}, change ${signed(of.change)} nats`);
    });
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
    const of = losses[s - 1];
    const name = pickHead.value();
    const value = (label, number, extra = "") =>
      el("div", { class: `texts-value ${extra}` }, el("dt", { text: label }), el("dd", { text: number }));
    const kind = LETTERS[text.continues[s - 1]];
    const sources = Array.from({ length: s }, (_, j) => j)
      .sort((a, b) => head.attention(s - 1, b) - head.attention(s - 1, a)).slice(0, 4)
      .filter((j) => head.attention(s - 1, j) >= 0.01);
    const better = of.change < 0 ? "better" : "worse";
    return [
      el("h3", {}, quoted(tokens.pieces[s]), el("span", { class: "texts-dim", text: ` token ${s}` })),
      el("dl", { class: "texts-values" },
        value("loss before", fixed(of.before), "texts-before"), value("loss now", fixed(of.now), "texts-now"),
        value(`change, nats: ${better}`, signed(of.change), `texts-change texts-is-${better}`)),
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
      x: Array.from(array(model.seen).data), lines, at: model.viewed[slider.at()].seen,
      band: model.changed ? [model.before, model.after].map((end) => model.viewed[end].seen) : null,
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
      const changes = losses.filter((_, p) => LETTERS[text.continues[p]] === kind).map(({ change }) => change);
      const n = changes.length;
      const mean = n ? changes.reduce((a, b) => a + b) / n : null;
      return el("tr", {}, el("th", { scope: "row" }, KINDS[kind][0], el("span", { class: "texts-dim", text: KINDS[kind][1] })),
        el("td", { text: String(n) }), el("td", { text: mean === null ? "\u2013" : signed(mean) }));
    };
    found.replaceChildren(
      el("thead", {}, el("tr", {}, el("th", { scope: "col", text: "token" }), el("th", { scope: "col", text: "how many" }),
        el("th", { scope: "col", text: "mean change of loss (nats)" }))),
      el("tbody", {}, row("repeated"), row("changed"), row("new")));
  }

  setModel(all.reduce((best, one) => {
    const of = (m) => (m.changed ? 10 : 0) + score(m, "prefix", bestHead(m), lastOf(m));
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
