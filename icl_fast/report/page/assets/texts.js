// Texts: what the views of texts share, data and small things to draw with.
import { array, data } from "./data.js";
import { el } from "./dom.js";
import * as format from "./format.js";
import { chooseStep, on as listen, remember, state } from "./state.js";

const MINUS = "\u2212";

// ---- data: Python's texts_payload (icl_fast/report/panels/texts.py)

const unzigzag = (value) => (value >>> 1) ^ -(value & 1);
export const models = () => (data.texts ? data.texts.models.filter((model) => model.texts.length) : []);
export const findModel = (name) => models().find((model) => model.name === name) || null;
export const textOf = (entry) => data.texts.texts[entry.text];

/** The heads whose attention on the texts is kept: all, or of many some. */
export const headsOf = (model) => model.shown;
export const place = (model, [layer, head]) => model.shown.findIndex((one) => one[0] === layer && one[1] === head);
/** A score of a head at one of the snapshots viewed. */
export function score(model, which, [layer, head], at) {
  const { data: numbers, shape } = array(model[which]);
  return numbers[(at * shape[1] + layer) * shape[2] + head];
}
/** What is said of a model whose heads are not all shown; empty of others. */
export function someOf(model) {
  const [, layers, heads] = array(model.prefix).shape;
  const count = model.shown.length;
  return count === layers * heads ? "" : `${count} of the ${layers * heads} heads are shown: those that match prefixes best, and those without which the in-context-learning score changes most. `;
}
export const nameOf = ([layer, head]) => `${layer}.${head}`;

export const lastOf = (model) => model.viewed.length - 1;

/** The head with the highest prefix-matching score at the last snapshot. */
export function bestHead(model) {
  const prefix = (head) => score(model, "prefix", head, lastOf(model));
  return headsOf(model).reduce((best, head) => (prefix(head) > prefix(best) ? head : best));
}

/**
 * A head on a text, at one of the snapshots viewed: attention(i, j), logit(i, j) for destination i and source j <= i;
 * direct(i): the sum over sources.
 */
export function headOn(model, entry, head, view) {
  const pattern = array(entry.pattern[view]);
  const logits = array(entry.logits[view]).data;
  const direct = array(entry.direct).data;
  const step = data.texts.step;
  const index = place(model, head);
  const start = index * pattern.shape[1];
  const length = textOf(entry).target.length;
  const at = (i, j) => start + (i * (i + 1)) / 2 + j;
  return {
    length,
    attention: (i, j) => pattern.data[at(i, j)] * step,
    logit: (i, j) => unzigzag(logits[at(i, j)]) * step,
    direct: (i) => unzigzag(direct[(view * pattern.shape[0] + index) * length + i]) * step,
  };
}

/** [position] losses at one of the snapshots viewed. */
export function lossesAt(entry, at) {
  const { data: losses, shape } = array(entry.viewed);
  return losses.subarray(at * shape[1], (at + 1) * shape[1]);
}

/** A token's loss over training: [loss at each snapshot kept]. */
export function lossCurve(entry, position) {
  const { data: kept, shape } = array(entry.losses);
  const values = [];
  let sum = 0;
  for (let k = 0; k < shape[1]; k++) {
    sum += unzigzag(kept[position * shape[1] + k]);
    values.push(sum * data.texts.step);
  }
  return values;
}

// ---- words and numbers ----

export const fixed = (value, digits = 2) => value.toFixed(digits).replace("-", MINUS);
export function signed(value, digits = 2) {
  const text = fixed(Math.abs(value), digits);
  return Number(text) === 0 ? text : (value < 0 ? MINUS : "+") + text;
}
export const percent = (value) => (value < 0.005 ? "<\u202f0.5%" : `${Math.round(value * 100)}%`);
export const scored = (value) => (Number.isFinite(value) ? fixed(value) : "n/a");

// What cannot be seen gets a sign of its own; everything else is set as text, never as HTML.
const SIGNS = { " ": "\u00b7", "\t": "\u2192", "\n": "\u23ce", "\r": "\u240d" };
const sign = (character) =>
  SIGNS[character] || (character < " " ? String.fromCharCode(0x2400 + character.charCodeAt(0)) : "\u237d");
// oxlint-disable-next-line no-control-regex -- they are what is looked for
const UNSEEN = /([\u0000-\u0020\u007f-\u00a0\u200b-\u200f\u2028-\u202e\u2066-\u2069])/g;
/** A token on one line, as in a list or a label. */
export const shown = (piece) => piece.replace(UNSEEN, sign);
/** A token as it stands in the text: line breaks break the line. */
function inText(piece) {
  const parts = [];
  for (const part of piece.split(UNSEEN)) {
    if (part === "") continue;
    if (part === " ") parts.push(el("span", { class: "texts-space", text: " " }));
    else if (part.length === 1 && shown(part) !== part) {
      parts.push(el("span", { class: "texts-sign", text: shown(part) }));
      if (part === "\n") parts.push("\n");
    } else parts.push(part);
  }
  return parts;
}
export const quoted = (piece) => el("q", { class: "texts-quoted", text: shown(piece) });

// ---- controls ----

/** A labelled select; options: [[value, text], ...]. Gives {node, value(), set(value), fill(options)}. */
export function select(label, options, change) {
  const input = el("select", { on: { change: () => change(input.value) } });
  const fill = (all) => {
    const was = input.value;
    input.replaceChildren(...all.map(([value, text]) => el("option", { value, text })));
    if (all.some(([value]) => value === was)) input.value = was;
  };
  fill(options);
  const node = el("label", { class: "texts-control" }, el("span", { text: label }), input);
  return { node, fill, value: () => input.value, set: (value) => { input.value = value; } };
}

let groups = 0;
/** A choice of few, all in view (radio buttons): {node, value()}. */
export function choice(label, options, change) {
  const name = `texts-choice-${groups++}`;
  let value = options[0][0];
  const node = el("fieldset", { class: "texts-control texts-choice" }, el("legend", { text: label }));
  for (const [option, text] of options) {
    const input = el("input", {
      type: "radio", name, value: option, checked: option === value, on: { change: () => { value = option; change(option); } },
    });
    node.append(el("label", {}, input, el("span", { text })));
  }
  return { node, value: () => value };
}

/** What one of the snapshots viewed is called, and what it is to the phase change. */
export function snapshotName(model, at) {
  const { step, seen } = model.viewed[at];
  const seenBy = data.progress.unit === "tokens" ? ` (${format.count(seen)} tokens)` : "";
  const role = [at === model.before && model.changed && "the phase change begins",
    at === model.after && model.changed && "the phase change ends", at === lastOf(model) && "the last"].filter(Boolean);
  return `step ${format.whole(step)}${seenBy}${role.length ? `: ${role.join(", ")}` : ""}`;
}

/**
 * A slider over the snapshots of a model at which its heads were read: {node, at(), fill(model)}. All sliders of a page
 * show the snapshots nearest to one step, which the address keeps; until one is moved, `start(model)`. With a step of
 * its `own` a slider keeps to itself. `change`: called when it has moved.
 */
export function snapshotSlider(start, change, own = null) {
  let model = null;
  const said = el("output");
  const input = el("input", { type: "range", min: 0, step: 1, on: { input: () => {
    const { step } = model.viewed[input.value];
    if (own === null) {
      chooseStep(step);
      remember();
    } else show(own = step);
  } } });
  const node = el("label", { class: "texts-control texts-slider" }, el("span", { text: "Snapshot" }), input, said);

  function put(step) {
    const far = (at) => Math.abs(model.viewed[at].step - step);
    const nearest = () => model.viewed.map((_, at) => at).reduce((best, at) => (far(at) < far(best) ? at : best));
    input.value = step === null ? start(model) : nearest();
    said.textContent = snapshotName(model, input.value * 1);
    input.setAttribute("aria-valuetext", said.textContent);
  }
  function show(step) {
    put(step);
    change();
  }
  if (own === null) listen("step", () => show(state.step), node);
  return {
    node,
    at: () => Number(input.value),
    fill(next) {
      model = next;
      input.max = lastOf(model);
      input.disabled = !lastOf(model);
      put(own === null ? state.step : own);
    },
  };
}

// ---- the tokens of a text ----

/**
 * A text as tokens that can be hovered, focused (arrows, Home, End) and chosen (click, Enter, Space).
 * Token 0 is the start of the text; token s > 0 is what is predicted at position s, from tokens 0 to s - 1.
 * label: what a screen reader calls the text; on: {hover(s), choose(s), leave(), escape(): whether it did something}.
 */
export function strip(text, label, on) {
  const pieces = [text.start, ...text.target];
  const node = el("div", { class: "texts-strip", role: "listbox", "aria-multiselectable": "true", "aria-label": label });
  const tokens = pieces.map((piece, s) => {
    const token = el("span", { class: s ? "texts-token" : "texts-token texts-start", role: "option", tabindex: -1 });
    token.append(...(s ? inText(piece) : [shown(piece) || "start"]));
    token.dataset.s = s;
    token.setAttribute("aria-selected", "false");
    return token;
  });
  node.append(...tokens);
  const end = tokens[tokens.length - 1].lastChild;
  if (end && end.nodeValue === "\n") end.remove(); // nothing follows, so that no line has to begin
  let home = Math.min(1, pieces.length - 1);
  tokens[home].tabIndex = 0;

  const of = (event) => {
    const token = event.target.closest(".texts-token");
    return token && node.contains(token) ? Number(token.dataset.s) : null;
  };
  function focus(s, scroll = false) {
    tokens[home].tabIndex = -1;
    home = s;
    tokens[s].tabIndex = 0;
    tokens[s].focus({ preventScroll: !scroll });
    if (scroll) tokens[s].scrollIntoView({ block: "nearest" });
  }
  function vertical(from, down) {
    const here = tokens[from].getClientRects()[0];
    let best = null;
    for (let s = 0; s < tokens.length; s++) {
      const box = tokens[s].getClientRects()[0];
      const away = down ? box.top - here.top : here.top - box.top;
      if (away < here.height / 2) continue;
      // the nearest line first, then the nearest in it; tops differ a little within a line
      const distance = Math.round(away / here.height) * 1e5 + Math.abs(box.left - here.left);
      if (!best || distance < best.distance) best = { s, distance };
    }
    return best ? best.s : from;
  }
  node.addEventListener("pointerover", (event) => { const s = of(event); if (s !== null) on.hover(s); });
  node.addEventListener("pointerleave", () => on.leave());
  node.addEventListener("focusin", (event) => { const s = of(event); if (s !== null) on.hover(s); });
  node.addEventListener("focusout", () => on.leave());
  node.addEventListener("click", (event) => {
    const s = of(event);
    if (s === null) return;
    focus(s);
    on.choose(s);
  });
  node.addEventListener("keydown", (event) => {
    const s = of(event);
    if (s === null || event.ctrlKey || event.metaKey || event.altKey) return;
    const last = tokens.length - 1;
    const to = {
      ArrowRight: Math.min(s + 1, last), ArrowLeft: Math.max(s - 1, 0), Home: 0, End: last,
    }[event.key];
    if (to !== undefined) focus(to, true);
    else if (event.key === "ArrowDown" || event.key === "ArrowUp") focus(vertical(s, event.key === "ArrowDown"), true);
    else if (event.key === "Enter" || event.key === " ") on.choose(s);
    else if (event.key !== "Escape" || !on.escape || !on.escape()) return; // with nothing to unlock it closes a sheet
    event.preventDefault();
  });
  return { node, tokens, pieces, focus };
}

/** A colour with strength 0 to 1 on a token; kind: better, worse, attend or null. */
export function tint(token, kind, strength = 0) {
  token.classList.toggle("texts-better", kind === "better");
  token.classList.toggle("texts-worse", kind === "worse");
  token.classList.toggle("texts-attend", kind === "attend");
  if (kind) token.style.setProperty("--strength", strength.toFixed(3));
  else token.style.removeProperty("--strength");
}

export const nothing = (container, why) => container.append(el("p", { class: "texts-note", text: why }));
