"use strict";
ICL.ready = ICL.load().then(() => {
  const page = document.getElementById("page");
  page.replaceChildren(ICL.el("h1", { text: ICL.data.title }));
  for (const name of ["passage", "abstract"]) {
    const section = ICL.el("section", { id: name });
    page.append(section);
    if (ICL.texts[name]) ICL.texts[name](section);
  }
  page.removeAttribute("aria-busy");
});
