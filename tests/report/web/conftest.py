"""A headless Chromium, where there is one, and pages opened in it from disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from latent_cot.report.web import page as pages
from tests.report.web.made_up import report_of

SWITCHES = ["--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """For a module only: while it is open, no other test could run an event loop of its own."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright, of the extra `browser`, is missing")
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium")
    # Chromium refuses to run as root in its sandbox.
    switches = [*SWITCHES, "--no-sandbox"] if os.geteuid() == 0 else SWITCHES
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=CHROMIUM, args=switches)
        yield chromium
        chromium.close()


@dataclass
class Opened:
    """A page, and what it has complained of and asked for since it was opened."""

    file: Path
    page: Any
    session: Any
    """With Chromium's own protocol."""
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def texts(self, selector: str) -> list[str]:
        found: list[str] = self.page.locator(selector).all_inner_texts()
        return found

    def cpu_seconds(self) -> float:
        """What the page has cost its main thread so far: not what others did meanwhile."""
        metrics = self.session.send("Performance.getMetrics")["metrics"]
        return next(float(metric["value"]) for metric in metrics if metric["name"] == "TaskDuration")

    def see_all(self) -> None:
        """Scroll through the page, so that everything that is drawn when it is seen is drawn."""
        height = self.page.evaluate("document.documentElement.scrollHeight")
        for top in range(0, height, 500):
            self.page.evaluate(f"window.scrollTo({{top: {top}, behavior: 'instant'}})")
            self.page.wait_for_timeout(20)


Open = Callable[..., Opened]


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Opens a report of these runs. After the test: nobody complained, and nothing was fetched."""
    opened: list[Opened] = []

    def open_(*runs: dict[str, Any], **settings: Any) -> Opened:
        file = tmp_path / f"report-{len(opened)}.html"
        file.write_text(pages.render(report_of(*runs)), encoding="utf-8")
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **settings})
        page = context.new_page()
        one = Opened(file, page, context.new_cdp_session(page))
        opened.append(one)
        one.session.send("Performance.enable", {"timeDomain": "threadTicks"})
        one.page.on("console", lambda message: one.complaints.append(f"{message.type}: {message.text}"))
        one.page.on("pageerror", lambda error: one.complaints.append(str(error)))
        one.page.on("request", lambda request: one.requests.append(request.url))
        one.page.goto(file.as_uri())
        one.page.wait_for_selector("body[data-ready]")
        return one

    yield open_
    for one in opened:
        assert not one.complaints
        assert [url[:5] for url in one.requests if not url.startswith("data:")] == ["file:"]
        one.page.context.close()
