// Puts the page together, one section a task.
import * as attention from "./attention.js";
import { array, data, load } from "./data.js";
import { el } from "./dom.js";
import { heads } from "./heads.js";
import { current, panels } from "./hover.js";
import * as sections from "./sections.js";
import { openHead } from "./sheet.js";
import { recall, state } from "./state.js";
import { table } from "./table.js";
import { settled } from "./tasks.js";
import { tokenLosses } from "./token_losses.js";

async function build() {
  await load();
  const groups = [data.family, ...data.exemplars.map((run) => run.groups)].flat();
  const all = [...data.table.flat(), ...groups.flatMap((group) => group.panels)];
  const over = all.filter((spec) => spec.over_training);
  state.axis = over.filter((spec) => spec.log_x).length * 2 > over.length ? "log" : "linear";
  recall();

  const parts = [
    ["table", "Model Analysis Table", table, data.models.length],
    ["heads", "Heads", heads, data.models.length],
    ["family", "Further figures", sections.family, data.family.length],
    ["token-losses", "Token losses", tokenLosses, data.models.length],
    ["attention", "Attention and logit attribution", attention.section, data.models.length],
    ...data.exemplars.map((run, i) => [`run-${i}`, run.name, (box) => sections.figures(box, run.groups), run.groups.length]),
    ["claims", "Claims", sections.claims, data.claims.length],
    ["definitions", "Definitions", sections.definitions, data.models.length],
  ].filter(([, , , shown]) => shown);
  const built = parts.map(([id, title]) =>
    el("section", { id, tabindex: -1, "aria-label": title }, el("h2", { text: title })));
  const [head, bar, foot] = [el("header", { class: "head" }), el("div", { class: "bar" }), el("footer")];
  const page = document.getElementById("page");
  page.replaceChildren(head, bar, ...built, foot);
  sections.head(head);
  sections.bar(bar, parts);
  for (const [i, [, , fill]] of parts.entries()) {
    await new Promise((done) => setTimeout(done));
    fill(built[i]);
  }
  sections.foot(foot);
  page.removeAttribute("aria-busy");
}

/** The page's one global: for tests, benches and the console. `ready`: when all of the page stands. */
globalThis.ICL = Object.freeze({ ready: build(), settled, data, array, state, panels, current, openHead, headView: attention.headView });
