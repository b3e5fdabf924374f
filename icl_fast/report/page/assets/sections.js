// The parts of the page around the table: head, switches, further figures, claims, foot.
import { data, tokens } from "./data.js";
import { el } from "./dom.js";
import * as format from "./format.js";
import { mount } from "./panel.js";
import { choices, choose, recall, remember, state } from "./state.js";
import { verdict } from "./table.js";

export function head(box) {
  const { title, models } = data;
  const corpora = [...new Set(models.map((model) => model.corpus))];
  box.append(el("h1", { text: title }));
  if (!models.length) return;
  box.append(
    el("p", { class: "lede", text: `${models.length} ${models.length === 1 ? "model" : "models"}, every snapshot measured, every head removed: `
      + "when and through which heads in-context learning forms." }),
    el("p", { class: "how", text: "Each column is a model, each row a measurement over training; the orange band is the phase change, the "
      + "interval in which the model suddenly gets better at using its context. Point at a moment and every row shows it; point at a "
      + "line and that attention head lights up in every row. Click a head, or press Enter on it, for everything measured of it." }));
  const cell = (text, numeric) => el("td", { class: numeric ? "number" : null, text });
  const rows = models.map((model, m) => {
    const seen = tokens(m);
    return el("tr", {}, el("th", { scope: "row", text: model.name }), cell(String(model.layers), true), cell(`${model.heads} × ${model.width / model.heads}`, true),
      cell(model.mlp ? "yes" : "no"), cell(model.key), cell(format.count(model.parameters), true), cell(model.corpus),
      cell(`${seen.length}`, true), cell(format.count(seen[seen.length - 1]), true), cell(verdict(model)));
  });
  const heads = ["model", "layers", "heads a layer", "MLPs", "keys", "parameters", "corpus", "snapshots", "tokens seen", "verdict"];
  const numeric = new Set([1, 2, 5, 7, 8]);
  box.append(el("div", { class: "wide" }, el("table", { class: "plain" },
    el("caption", { class: "unseen", text: "The models" }),
    el("thead", {}, el("tr", {}, ...heads.map((text, i) => el("th", { scope: "col", class: numeric.has(i) ? "number" : null, text })))),
    el("tbody", {}, ...rows))));
  const left = models.filter((model) => model.left_out.length);
  if (left.length) {
    box.append(el("div", { class: "note" }, el("h2", { text: "Snapshots left out" }),
      el("ul", {}, ...left.flatMap((model) => model.left_out.map(([step, why]) =>
        el("li", { text: `${model.name}, step ${format.whole(step)}: ${why}` }))))));
  }
  if (corpora.length > 1) box.append(el("p", { class: "muted", text: "The models were trained on different corpora: compare their losses with care." }));
}

export function bar(box, targets) {
  const jump = (id) => {
    const target = document.getElementById(id);
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    target.scrollIntoView({ behavior: calm ? "auto" : "smooth" });
    target.focus({ preventScroll: true });
  };
  box.append(el("nav", { "aria-label": "Sections" },
    ...targets.map(([id, label]) => el("button", { type: "button", class: "link", text: label, on: { click: () => jump(id) } }))));
  const labels = { axis: data.models.length ? "tokens" : "training", colour: "heads by", theme: "theme" };
  const group = el("div", { class: "switches" });
  for (const [name, options] of Object.entries(choices)) {
    const field = el("fieldset", {}, el("legend", { text: labels[name] }));
    for (const [value, label] of options) {
      const input = el("input", { type: "radio", name, value, checked: state[name] === value });
      input.addEventListener("change", () => {
        choose(name, value);
        remember();
      });
      field.append(el("label", {}, input, el("span", { text: label })));
    }
    group.append(field);
  }
  box.append(group);
  addEventListener("hashchange", () => {
    recall();
    for (const input of group.querySelectorAll("input")) input.checked = state[input.name] === input.value;
  });
}

export function family(box) {
  const groups = el("div", { class: "groups" });
  box.append(groups);
  for (const { heading, panels } of data.family) {
    const grid = el("div", { class: "figures" });
    groups.append(el("section", { class: panels.length > 2 ? "group many" : "group", style: `--panels:${panels.length}` }, el("h3", { text: heading }), grid));
    for (const spec of panels) mount(grid, spec, { height: 260 });
  }
}

export function claims(box) {
  const rows = data.claims.map((claim) => el("tr", {}, el("th", { scope: "row", text: claim.claim }),
    ...[claim.source, claim.verdict, claim.evidence].map((text) => el("td", { text }))));
  box.append(el("div", { class: "wide" }, el("table", { class: "plain claims" },
    el("thead", {}, el("tr", {}, ...["claim", "where it is made", "found here", "evidence"].map((text) => el("th", { scope: "col", text })))),
    el("tbody", {}, ...rows))));
}

export function foot(box) {
  const source = "After Olsson et al. 2022, In-context Learning and Induction Heads, Transformer Circuits Thread. ";
  if (data.models.length) box.append(el("h2", { text: "Definitions" }), definitions(data.models[0].thresholds));
  box.append(el("p", { class: "muted", text: `${data.models.length ? source : ""}Made by icl_fast ${data.version}. `
    + "This file holds all its data and asks nothing of any network." }));
}

function definitions({ prefix_matching: prefix, copying, previous_token: previous }) {
  const terms = [
    ["loss", "negative log-likelihood of the next token, in nats."],
    ["head 1.0", "layer 1, head 0, both counted from 0."],
    ["context position", "counted from 1: the loss at position i is that of the i-th token."],
    ["in-context-learning score", "mean loss at a late position minus that at an early one; row 5 says which."],
    ["phase change", "from the last snapshot before 10% of the in-context-learning score's fall to the first past 90%; "
      + "there is none where the fall is small or no head matches prefixes."],
    ["induction head", `prefix-matching score over ${prefix} and copying score over ${format.tick(copying)} at the last snapshot.`],
    ["previous-token head", `any other with a previous-token score over ${previous}.`],
    ["log axis", "begins at the first snapshot after 0 tokens, which it cannot show."],
  ];
  return el("dl", { class: "terms" },
    ...terms.map(([term, text]) => el("div", {}, el("dt", { text: term }), el("dd", { text }))));
}
