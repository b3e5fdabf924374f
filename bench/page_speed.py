"""How fast a report's page answers, in headless Chromium.

    python bench/page_speed.py PAGE [--rounds 3] [--json FILE]

A scripted session goes through everything that can be done on the page: scrolling, pointing at each row of the table,
switching axes, colours and theme, keys, a head's sheet, the texts, another window size. For each kind of interaction
the table has the longest task that held the main thread over all rounds (from Chromium's own trace: wall time, and the
processor's time in it, which says how much of the wall time was waiting for a processor), and the longest time from an
event to the next frame that shows what it did (the browser's Event Timing, in steps of 8 ms).
"""

from __future__ import annotations

import argparse
import bisect
import shutil
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from playwright.sync_api import CDPSession, Page, sync_playwright
from report import environment
from rich import box
from rich.console import Console
from rich.table import Column, Table

from icl_fast.files import to_json

MOST = 100.0  # ms, of any interaction
CATEGORIES = ["toplevel", "devtools.timeline", "blink.user_timing", "__metadata"]
TASKS = ("RunTask", "ThreadControllerImpl::RunTask", "ThreadController::RunTask")
WATCH = """window.events = [];
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) window.events.push([window.doing, entry.duration]);
}).observe({ type: "event", durationThreshold: 16, buffered: true });"""


class Session:
    """One page in one browser, and what its main thread did."""

    def __init__(self, page: Page, tracing: CDPSession) -> None:
        self.page, self.tracing = page, tracing
        self.trace: list[dict[str, Any]] = []
        self.traced = False
        tracing.on("Tracing.dataCollected", lambda event: self.trace.extend(event["value"]))
        tracing.on("Tracing.tracingComplete", lambda _: setattr(self, "traced", True))
        tracing.send("Tracing.start", {"traceConfig": {"includedCategories": CATEGORIES}})

    def begin(self, what: str) -> None:
        self.page.evaluate("(what) => { window.doing = what; performance.mark(`doing:${what}`); }", what)

    def settle(self, wait: int = 150) -> None:
        self.page.wait_for_timeout(wait)
        self.page.evaluate("ICL.settled()")

    def to(self, selector: str, further: int = 0) -> None:
        self.page.evaluate(
            "([selector, further]) => { document.querySelector(selector).scrollIntoView(); scrollBy(0, further); }",
            [selector, further],
        )
        self.settle()

    def sweep(self, rows: tuple[int, ...]) -> None:
        for y in rows:
            for x in range(320, 1580, 9):
                self.page.mouse.move(x, y + x % 50)
        self.settle()

    def choose(self, name: str, values: tuple[str, ...]) -> None:
        self.begin(name)
        for value in values:
            self.page.locator(f"input[name={name}][value={value}]").check()
            self.settle(400)

    def act(self) -> None:
        """Everything a reader does."""
        page = self.page
        self.begin("scroll")
        page.mouse.move(900, 500)
        for distance in (*[300] * 60, *[-600] * 30):
            page.mouse.wheel(0, distance)
            page.wait_for_timeout(40)
        self.settle()
        self.to("#table")
        self.begin("hover")
        self.sweep((300, 500, 700, 900))
        self.to("#table", 1000)
        self.begin("hover over heads")
        self.sweep((250, 400, 600, 800))
        self.choose("axis", ("log", "linear"))
        self.choose("colour", ("depth", "type", "paper"))
        self.choose("theme", ("dark", "light", "auto"))
        self.begin("keys")
        page.evaluate("[...ICL.panels].find((panel) => panel.spec.title.startsWith('Prefix')).plot.focus()")
        for key in ("ArrowRight",) * 8 + ("ArrowUp",) * 6 + ("ArrowLeft",) * 6:
            page.keyboard.press(key)
            page.wait_for_timeout(30)
        self.settle()
        self.begin("sheet")
        page.keyboard.press("Enter")
        self.settle(500)
        page.keyboard.press("Escape")
        self.settle()
        for section in ("token-losses", "attention"):
            self.begin(section)
            self.to(f"#{section}", 200)
            self.sweep((300, 450, 600, 750))
            for menu in page.locator(f"#{section} select").all()[:2]:
                for index in range(menu.locator("option").count()):
                    menu.select_option(index=index)
                    self.settle()
        self.begin("resize")
        page.set_viewport_size({"width": 1300, "height": 1000})
        self.settle(600)

    def tasks(self) -> dict[str, tuple[float, float]]:
        """By interaction, the longest task of the main thread: (wall, processor) ms."""
        self.tracing.send("Tracing.end")
        while not self.traced:
            self.page.wait_for_timeout(50)
        marks = sorted(
            (event["ts"], event["name"].removeprefix("doing:"), event["pid"], event["tid"])
            for event in self.trace
            if event.get("name", "").startswith("doing:")
        )
        starts = [mark[0] for mark in marks]
        longest: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
        for event in self.trace:
            if event.get("ph") != "X" or event["name"] not in TASKS or "tdur" not in event:
                continue
            at = bisect.bisect(starts, event["ts"]) - 1
            if at >= 0 and (event["pid"], event["tid"]) == marks[0][2:]:
                wall, processor = longest[marks[at][1]]
                took = event["dur"] / 1000, event["tdur"] / 1000
                longest[marks[at][1]] = max(wall, took[0]), max(processor, took[1])
        return longest


def measure(path: Path) -> tuple[float, dict[str, dict[str, float]]]:
    """Seconds until the page was ready, and by interaction the longest times in ms."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        sys.exit("error: no chromium, chromium-browser or google-chrome on this machine")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.add_init_script(WATCH)
        started = time.monotonic()
        page.goto(path.resolve().as_uri())
        page.evaluate("ICL.ready")
        ready = time.monotonic() - started
        page.evaluate("ICL.settled()")
        session = Session(page, browser.new_browser_cdp_session())
        session.act()
        frames: dict[str, float] = defaultdict(float)
        for what, took in page.evaluate("window.events"):
            if what is not None:
                frames[what] = max(frames[what], took)
        found = {
            what: {"task": wall, "processor": processor, "frame": frames[what]}
            for what, (wall, processor) in session.tasks().items()
        }
        browser.close()
    return ready, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, help="index.html that `icl-fast report` wrote")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not arguments.page.is_file():
        parser.error(f"{arguments.page}: no such file")
    rounds = [measure(arguments.page) for _ in range(arguments.rounds)]
    longest = {
        what: {kind: max(found[what][kind] for _, found in rounds) for kind in of_one}
        for what, of_one in rounds[0][1].items()
    }
    ready, size = max(seconds for seconds, _ in rounds), arguments.page.stat().st_size / 1e6
    table = Table(
        "interaction",
        *(Column(name, justify="right") for name in ("longest task, ms", "processor in it, ms", "to next frame, ms")),
        "",
        box=box.SIMPLE,
        title=f"{size:.1f} MB, ready in {ready:.1f} s; worst of {arguments.rounds} rounds",
    )
    for what, of_one in longest.items():
        verdict = "holds" if max(of_one["task"], of_one["frame"]) <= MOST else f"over {MOST:.0f} ms"
        table.add_row(what, *(f"{of_one[kind]:.0f}" for kind in ("task", "processor", "frame")), verdict)
    Console().print(table)
    if arguments.json is not None:
        result = {
            "environment": environment({"device": "cpu"}),
            "MB": size,
            "ready_s": ready,
            "ms": longest,
            "rounds": arguments.rounds,
        }
        arguments.json.write_text(to_json(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
