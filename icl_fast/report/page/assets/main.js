"use strict";
// Puts the page together, one section a task. ICL.ready: when all of it stands.
ICL.ready = ICL.load().then(() => {
  const { data, el } = ICL;
  const over = data.table.flat().concat(...data.family.map((group) => group.panels)).filter((spec) => spec.over_training);
  ICL.state.axis = over.filter((spec) => spec.log_x).length * 2 > over.length ? "log" : "linear";
  ICL.recall();
  ICL.on("axis", ICL.panels.restale);

  const page = document.getElementById("page");
  const parts = [["table", "Model Analysis Table", ICL.table]];
  if (data.family.length) parts.push(["family", "Further figures", ICL.sections.family]);
  if (data.texts && ICL.texts.passage) parts.push(["passage", "Passage", ICL.texts.passage]);
  if (data.texts && ICL.texts.abstract) parts.push(["abstract", "Abstract heads", ICL.texts.abstract]);
  if (data.claims.length) parts.push(["claims", "Claims", ICL.sections.claims]);
  const head = el("header", { class: "head" });
  const bar = el("div", { class: "bar" });
  page.replaceChildren(head, bar);
  ICL.sections.head(head);
  ICL.sections.bar(bar, parts);
  const later = (call) => new Promise((done, failed) => setTimeout(() => {
    try {
      done(call());
    } catch (error) {
      failed(error);
    }
  }));
  let built = Promise.resolve();
  for (const [id, title, build] of parts) {
    const section = el("section", { id, tabindex: -1, "aria-label": title }, el("h2", { text: title }));
    page.append(section);
    built = built.then(() => later(() => build(section)));
  }
  const foot = el("footer");
  page.append(foot);
  return built.then(() => {
    ICL.sections.foot(foot);
    page.removeAttribute("aria-busy");
  });
});
