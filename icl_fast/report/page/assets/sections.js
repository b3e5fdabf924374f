// The parts of the page around the table: head, switches, further figures, runs on exemplars, claims, foot.
import { data, seen } from "./data.js";
import { el } from "./dom.js";
import * as format from "./format.js";
import { mount } from "./panel.js";
import { choices, choose, recall, remember, state } from "./state.js";
import { verdict } from "./table.js";

export function head(box) {
  box.append(el("h1", { text: data.title }));
  if (data.models.length) headOfModels(box);
  if (data.exemplars.length) headOfRuns(box);
  const left = [...data.models, ...data.exemplars].filter((one) => one.left_out.length);
  if (left.length) {
    box.append(el("div", { class: "note" }, el("h2", { text: "Snapshots left out" }),
      el("ul", {}, ...left.flatMap((one) => one.left_out.map(([step, why]) =>
        el("li", { text: `${one.name}, step ${format.whole(step)}: ${why}` }))))));
  }
  const noted = data.models.filter((model) => model.notes.length);
  if (noted.length) {
    box.append(el("div", { class: "note" }, el("h2", { text: "To be known" }),
      el("ul", {}, ...noted.flatMap((model) => model.notes.map((note) => el("li", { text: `${model.name}: ${note}` }))))));
  }
  if (data.groups.length > 1) box.append(el("p", { class: "muted", text: "The models are not all evaluated on the same examples: losses of different groups of columns cannot be compared." }));
}

/** A table with a row a thing: `columns` are [title, whether a number, text of a thing]. */
function listed(box, caption, things, columns) {
  const cell = (tag, numeric, text, more = {}) => el(tag, { class: numeric ? "number" : null, text, ...more });
  box.append(el("div", { class: "wide" }, el("table", { class: "plain" },
    el("caption", { class: "unseen", text: caption }),
    el("thead", {}, el("tr", {}, ...columns.map(([title, numeric]) => cell("th", numeric, title, { scope: "col" })))),
    el("tbody", {}, ...things.map((thing) => el("tr", {}, ...columns.map(([, numeric, read], i) =>
      (i ? cell("td", numeric, read(thing)) : el("th", { scope: "row", text: read(thing) })))))))));
}

function headOfRuns(box) {
  const runs = data.exemplars;
  const learned = (times) => {
    const known = times.filter((time) => time !== null).sort((a, b) => a - b);
    if (!known.length) return "no";
    const when = [known[0], known[known.length - 1]].map(format.count);
    const after = when[0] === when[1] ? when[0] : when.join("–");
    return times.length === 1 ? `after ${after} sequences` : `${known.length} of ${times.length}, after ${after} sequences`;
  };
  box.append(el("p", { class: "lede", text: `${runs.length} ${runs.length === 1 ? "run" : "runs"} on exemplars, every snapshot measured, every head removed: `
    + "which strategy answers, when, and through which heads." }));
  listed(box, "The runs on exemplars", runs, [
    ["run", false, (run) => run.name], ["members", true, (run) => String(run.members.length)],
    ["layers", true, (run) => String(run.layers)], ["heads a layer", true, (run) => run.architecture === "transformer" ? `${run.heads} × ${run.width / run.heads}` : `none (${run.architecture})`],
    ["exemplars", false, (run) => run.exemplars], ["pairs in context", true, (run) => String(run.pairs)],
    ["snapshots", true, (run) => String(run.snapshots)], ["sequences seen", true, (run) => format.count(run.sequences)],
    ["learned", false, (run) => learned(run.learned)],
  ]);
}

function headOfModels(box) {
  const { models } = data;
  box.append(
    el("p", { class: "lede", text: `${models.length} ${models.length === 1 ? "model" : "models"}, every snapshot measured, every head removed: `
      + "when and through which heads in-context learning forms." }),
    el("p", { class: "how", text: "Each column is a model, each row a measurement over training; the orange band is the phase change, the "
      + "interval in which the model suddenly gets better at using its context. Point at a moment and every row shows it; point at a "
      + "line and that attention head lights up in every row. Click a head, or press Enter on it, for everything measured of it." }));
  const progress = (model) => seen(models.indexOf(model));
  listed(box, "The models", models, [
    ["model", false, (model) => model.name], ["layers", true, (model) => String(model.layers)],
    ["heads a layer", true, (model) => `${model.heads} × ${model.width / model.heads}`],
    ["MLPs", false, (model) => (model.mlp ? "yes" : "no")], ["keys", false, (model) => model.key],
    ["parameters", true, (model) => format.count(model.parameters)], ["evaluated on", false, (model) => model.corpus],
    ["ICL score", false, (model) => model.icl.replace("mean loss of ", "")],
    ["snapshots", true, (model) => String(progress(model).length)],
    [data.progress.unit === "tokens" ? "tokens seen" : "last step", true, (model) => format.count(progress(model)[progress(model).length - 1])],
    ["verdict", false, verdict],
  ]);
}

export function bar(box, targets) {
  const jump = (id) => {
    const target = document.getElementById(id);
    target.scrollIntoView(); // at once: on the way figures would be laid out, grow, and move it
    target.focus({ preventScroll: true });
  };
  box.append(el("nav", { "aria-label": "Sections" },
    ...targets.map(([id, label]) => el("button", { type: "button", class: "link", text: label, on: { click: () => jump(id) } }))));
  const labels = { axis: data.models.length && !data.exemplars.length ? data.progress.unit : "training", colour: "heads by", theme: "theme" };
  const group = el("div", { class: "switches" });
  for (const [name, options] of Object.entries(choices)) {
    if (name === "colour" && !data.models.length) continue; // no heads that have a depth or a type
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

export const family = (box) => figures(box, data.family);

/** Groups of figures under headings. */
export function figures(box, of) {
  const groups = el("div", { class: "groups" });
  box.append(groups);
  for (const { heading, panels } of of) {
    const grid = el("div", { class: "figures" });
    groups.append(el("section", { class: panels.length > 2 ? "group many" : "group", style: `--panels:${panels.length}` }, el("h3", { text: heading }), grid));
    for (const spec of panels) mount(grid, spec, { height: 260 });
  }
}

export function claims(box) {
  const columns = [["claim", "claim"], ["where it is made", "source"], ["rule", "rule"], ["found here", "verdict"], ["evidence", "evidence"]]
    .filter(([, name]) => name !== "rule" || data.claims.some((claim) => claim.rule));
  const rows = data.claims.flatMap((claim, i) => {
    const [first, ...others] = columns.map(([, name]) => claim[name]);
    const row = el("tr", { "data-verdict": claim.verdict }, el("th", { scope: "row", text: first }), ...others.map((text) => el("td", { text })));
    return claim.panel ? [row, behind(claim.panel, row.lastElementChild, columns.length, `claim-figure-${i}`)] : [row];
  });
  const found = [...new Set(data.claims.map((claim) => claim.verdict))];
  const counted = found.map((one) => `${data.claims.filter((claim) => claim.verdict === one).length} ${one}`);
  box.append(el("p", { class: "how", text: `${data.claims.length} claims: ${counted.join("; ")}.` }),
    el("div", { class: "wide" }, el("table", { class: "plain claims" },
      el("thead", {}, el("tr", {}, ...columns.map(([text]) => el("th", { scope: "col", text })))),
      el("tbody", {}, ...rows))));
}

/** The row below a claim with the figure behind it, which a button in the claim's last cell opens. */
function behind(panel, cell, columns, id) {
  const place = el("td", { colspan: columns });
  const row = el("tr", { class: "behind", id, hidden: true }, place);
  const button = el("button", { type: "button", class: "link", text: "figure", "aria-expanded": "false", "aria-controls": id });
  button.addEventListener("click", () => {
    row.hidden = !row.hidden;
    button.setAttribute("aria-expanded", String(!row.hidden));
    if (!place.firstChild) mount(place, panel, { height: 260 });
  });
  cell.append(" ", button);
  return row;
}

export function foot(box) {
  const sources = [
    data.models.length && "Olsson et al. 2022, In-context Learning and Induction Heads, Transformer Circuits Thread",
    data.exemplars.length && "Singh 2025, thesis, chapters 4 and 5",
  ].filter(Boolean);
  box.append(el("p", { class: "muted", text: `${sources.length ? `After ${sources.join("; ")}. ` : ""}Made by icl_fast ${data.version}. `
    + "This file holds all its data and asks nothing of any network." }));
}

export function definitions(box) {
  const { prefix_matching: prefix, previous_token: previous } = data.models[0].thresholds;
  const copying = [...new Map(data.models.map(({ thresholds }) => [thresholds.copying, thresholds.narrow]))]
    .map(([over, why]) => `${format.tick(over)}${why ? ` (${why})` : ""}`).join(", or ");
  const terms = [
    ["loss", "negative log-likelihood of the next token, in nats."],
    ["head 1.0", "layer 1, head 0, both counted from 0."],
    ["context position", "counted from 1: the loss at position i is that of the i-th token."],
    ["in-context-learning score", "mean loss at a late position minus that at an early one; row 5 says which."],
    ["phase change", "from the last snapshot before 10% of the in-context-learning score's fall to the first past 90%; "
      + "there is none where the fall is small or no head matches prefixes."],
    ["induction head", `prefix-matching score over ${prefix} and copying score over ${copying} at the last snapshot.`],
    ["previous-token head", `any other with a previous-token score over ${previous}.`],
    ["log axis", "begins at the first snapshot after 0 tokens, which it cannot show."],
  ];
  box.append(el("dl", { class: "terms" },
    ...terms.map(([term, text]) => el("div", {}, el("dt", { text: term }), el("dd", { text })))));
}
