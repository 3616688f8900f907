"""The pictures of docs/report.md, from a report: `python docs/images/make.py RUN/report.html [FOLDER]`.

Needs the extra `browser` and a Chromium (`apt-get install chromium`).
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

SIZE = {"width": 1280, "height": 670}
PHONE = {"width": 390, "height": 780}


def main(report: Path, folder: Path) -> None:
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    switches = ["--no-sandbox"] if os.name == "posix" and os.geteuid() == 0 else []
    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path=chromium, args=switches)

        def page(**settings: Any) -> Any:
            opened = browser.new_context(**settings).new_page()
            opened.goto(report.resolve().as_uri())
            opened.wait_for_selector("body[data-ready]")
            return opened

        light = page(viewport={**SIZE, "height": 900})
        show(light, "rationales", most_varied(light))
        first = light.locator(".pane .chain").first
        unsure = [first.locator(f".token.s{level}") for level in range(6, 0, -1)]
        next(tokens for tokens in unsure if tokens.count()).first.hover()
        light.wait_for_timeout(300)
        light.screenshot(path=folder / "report-light.png")

        light.mouse.move(5, 300)
        light.get_by_role("button", name="tree", exact=True).click()
        light.wait_for_selector(".tree")
        show(light, "rationales")
        light.screenshot(path=folder / "report-tree.png")

        dark = page(viewport={**SIZE, "height": 820}, color_scheme="dark")
        show(dark, "accuracy")
        dark.screenshot(path=folder / "report-dark.png")

        narrow = page(viewport=PHONE, has_touch=True, is_mobile=True)
        show(narrow, "rationales", most_varied(narrow))
        narrow.screenshot(path=folder / "report-narrow.png")
        browser.close()


def show(page: Any, section: str, question: int | None = None) -> None:
    """Pick a question, and bring a section to the top below the bar."""
    if question is not None:
        page.locator(".question-item").nth(question).click()
    page.evaluate(f"document.getElementById({section!r}).scrollIntoView({{behavior: 'instant'}})")
    page.wait_for_timeout(300)


def most_varied(page: Any) -> int:
    """The question, of those with right and wrong chains none of them cut, that has most, up to five."""
    found: int = page.evaluate(
        """() => {
            const data = JSON.parse(document.getElementById("report-data").textContent);
            const of = data.runs[0].samples.questions.map((q, k) => {
                const right = q.chains.filter((c) => c.right).length;
                const whole = q.chains.every((c) => !c.cut);
                const mixed = right > 0 && right < q.chains.length && q.chains.length <= 5 && whole;
                return [mixed ? q.chains.length : 0, k];
            });
            return of.reduce((a, b) => (b[0] > a[0] ? b : a))[1];
        }"""
    )
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).parent)
