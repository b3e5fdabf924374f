"""Modules put together into one script: what a module keeps to itself stays its own, and each runs once, in order."""

from __future__ import annotations

from typing import Any

import pytest

from icl_fast.report.page.bundle import bundle

MODULES = {
    "main": """import { add, total as sum } from "./adder.js";
import * as words from "./two-words.js";
const secret = "main";
add(2);
globalThis.found = [sum(), words.shout(secret), words.order];
""",
    "adder": """import { order } from "./two-words.js";
order.push("adder");
const secret = [40];
export function add(value) {
  secret.push(value);
}
export const total = () => secret.reduce((a, b) => a + b);
""",
    "two-words": """// a note on import and export
export const order = ["words"];
const secret = "!";
export async function unused() {}
export const shout = (text) => text.toUpperCase() + secret;
""",
}


def test_modules_keep_their_names_and_run_once(chromium: Any) -> None:
    page = chromium.new_page()
    page.add_script_tag(content=bundle("main", MODULES.__getitem__))
    assert page.evaluate("found") == [42, "MAIN!", ["words", "adder"]]
    page.close()


def test_a_circle_is_refused() -> None:
    modules = {
        "a": 'import { b } from "./b.js";\n',
        "b": 'import { c } from "./c.js";\n',
        "c": 'import { b } from "./b.js";\n',
    }
    with pytest.raises(ValueError, match="in a circle: a -> b -> c -> b"):
        bundle("a", modules.__getitem__)


@pytest.mark.parametrize(
    "line",
    [
        'import thing from "./other.js";',
        'import { thing } from "d3-scale";',
        "export default 1;",
        "export { thing };",
        "export let thing = 1;",
    ],
)
def test_what_cannot_be_bundled_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r"odd\.js: cannot be bundled: (import|export)"):
        bundle("odd", {"odd": f"const before = 1;\n{line}\n"}.__getitem__)
