// The attention view alone, once for each of `data.views`, side by side.
import { attentionView } from "./attention.js";
import { data, load } from "./data.js";
import { el } from "./dom.js";
import { settled } from "./tasks.js";
import { findModel } from "./texts.js";

async function build() {
  await load();
  const boxes = data.views.map(({ model, step }) => {
    const box = el("section", { class: "texts-beside", "aria-label": `${model}, step ${step}` });
    return { box, fill: () => attentionView(box, { from: [findModel(model)], step }) };
  });
  const page = document.getElementById("page");
  page.replaceChildren(el("div", { class: "texts-views" }, ...boxes.map(({ box }) => box)));
  for (const { fill } of boxes) fill();
  page.removeAttribute("aria-busy");
}

/** The page's one global, as on the report's page. */
globalThis.ICL = Object.freeze({ ready: build(), settled, data });
