"""The documentation site builds without a warning, from the program and the code, and needs no other server."""

from __future__ import annotations

import html
import itertools
import json
import math
import os
import re
import subprocess
import sys
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol
from urllib.parse import unquote

import pytest
import yaml

import latent_cot
from latent_cot import types
from latent_cot.cli import COMMANDS, main
from latent_cot.config.settings import load_config, to_dict
from latent_cot.tasks import names
from tests.cli.conftest import environment
from tests.conftest import ROOT
from tests.report.web.conftest import browser  # noqa: F401

DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. A broken link, a page that no menu leads to or a formula that cannot be read fails here."""
    pytest.importorskip("material", reason="the extra `docs` is not installed")
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return folder


@pytest.mark.slow
def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    loads = re.compile(r'<(?:script|link|img|iframe)\b[^>]*?\b(?:src|href)="((?:https?:)?//[^"]*)"')
    for page in site.rglob("*.html"):
        found = loads.findall(page.read_text(encoding="utf-8"))
        assert not found, f"{page.name}: {found}"


@pytest.mark.slow
def test_each_task_and_each_command_has_a_page(
    site: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for name in names():
        if (ROOT / "tasks" / name / "README.md").exists():
            assert (site / "tasks" / f"{name}.html").exists()
    for command in COMMANDS:
        text = html.unescape((site / "cli" / f"{command}.html").read_text(encoding="utf-8"))
        assert main([command, "--help"]) == 0
        options = re.findall(r"^[│|\s]*(--(?!help)[a-z][\w.-]*)", capsys.readouterr().out, re.MULTILINE)
        assert options
        missing = [option for option in options if f"<code>{option}" not in text]
        assert not missing, f"{command}: {missing}"


@pytest.mark.slow
def test_formulas_are_mathml_and_lead_to_code(site: Path) -> None:
    text = (site / "method.html").read_text(encoding="utf-8")
    assert text.count("<math") > 50
    assert "arithmatex" not in text
    names_of_code = set(re.findall(r"`(latent_cot(?:\.\w+)+)`", (DOCS / "method.md").read_text(encoding="utf-8")))
    links = {html.unescape(link) for link in re.findall(r'href="api/\w+\.html#([\w.]+)"', text)}
    assert names_of_code <= links
    assert text.count('<svg role="img"') == 2


class Prose(HTMLParser):
    """The text of each paragraph and table cell of a page, code left out, its ids, and what it leads to."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.ids, self.links, self.texts, self._open, self._code = set[str](), set[str](), list[str](), 0, 0
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.ids |= {value for name in ("id", "name") if (value := given.get(name))}
        self.links |= {value for name in ("href", "src") if tag != "base" and (value := given.get(name))}
        self._code += tag in ("pre", "code")
        if tag in ("p", "td", "th"):
            self._open += 1
            self.texts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._code -= tag in ("pre", "code")
        self._open -= tag in ("p", "td", "th")

    def handle_data(self, data: str) -> None:
        if self._open and not self._code:
            self.texts[-1] += data


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Prose]:
    return {page: Prose(page) for page in site.rglob("*.html") if page.name != "404.html"}


@pytest.mark.slow
def test_no_list_is_swallowed_by_a_paragraph_or_a_table(pages: dict[Path, Prose]) -> None:
    """As happens where an empty line is missing before it."""
    item = re.compile(r"^\s*(?:[-*+]|\d+\.)\s+\S.*", re.MULTILINE)
    found = [(page.name, text[:60]) for page, prose in pages.items() for text in prose.texts if item.search(text)]
    assert not found


@pytest.mark.slow
def test_every_picture_and_every_anchor_is_there(site: Path, pages: dict[Path, Prose]) -> None:
    missing = []
    for page, prose in pages.items():
        for link in prose.links:
            path, _, anchor = link.partition("#")
            if re.match(r"(?:[a-z]+:|//)", path):
                continue
            target = Path(os.path.normpath(page.parent / unquote(path))) if path else page
            target = target / "index.html" if target.is_dir() else target
            there = target.is_file() and (not anchor or target not in pages or unquote(anchor) in pages[target].ids)
            if not there:
                missing.append((page.relative_to(site).as_posix(), link))
    assert not missing


@pytest.mark.slow
def test_the_first_page_says_what_it_is_and_shows_it(pages: dict[Path, Prose], site: Path) -> None:
    first = pages[site / "index.html"]
    assert any(link.endswith("report-light.png") for link in first.links)
    assert {"how-to-cite", "install", "where-to-go"} <= first.ids


@pytest.mark.slow
def test_each_notebook_is_a_page_with_what_it_showed(site: Path) -> None:
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        text = (site / "notebooks" / f"{path.stem}.html").read_text(encoding="utf-8")
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        outputs = [output for cell in cells for output in cell.get("outputs", ())]
        rich = [output for output in outputs if {"text/html", "image/png"} & {*output.get("data", ())}]
        assert text.count('class="output"') == len(rich) > 3
        assert text.count('<div class="highlight">') >= sum(cell["cell_type"] == "code" for cell in cells)


def test_no_guide_is_too_long_to_read_at_once() -> None:
    """The logs and the records of results are looked things up in."""
    for page in DOCS.glob("*.md"):
        words = len(page.read_text(encoding="utf-8").split())
        assert words <= 2500 or page.name.startswith("log"), f"{page.name}: {words} words"


@pytest.mark.slow
@pytest.mark.parametrize("query", ["own dataset", "learning rate", "gsm8k", "chat template"])
def test_a_search_finds_the_guides_before_the_source(site: Path, browser: Any, query: str) -> None:  # noqa: F811
    page = browser.new_page()
    page.goto((site / "index.html").as_uri())
    page.keyboard.press("/")
    page.keyboard.type(query)
    page.wait_for_selector(".md-search-result__item")
    page.wait_for_timeout(500)
    found = page.locator(".md-search-result__link").evaluate_all("all => all.map(one => one.getAttribute('href'))")
    first = [link.rpartition("#")[0] or link for link in found[:3]]
    assert first and not [link for link in first if re.search(r"/(api|results)/|/(log|changelog)", link)], found[:5]


@pytest.mark.slow
def test_it_opens_from_disk_and_can_be_searched(site: Path, browser: Any) -> None:  # noqa: F811
    page = browser.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "request", lambda request: complaints.extend([] if request.url[:5] in ("file:", "data:") else [request.url])
    )
    page.goto((site / "method.html").as_uri())
    page.keyboard.press("/")
    page.keyboard.type("trajectory balance")
    page.wait_for_selector(".md-search-result__item")
    assert any("The method" in text for text in page.locator(".md-search-result__item").all_inner_texts())
    assert not complaints


@pytest.mark.slow
def test_all_that_the_package_offers_is_documented(site: Path) -> None:
    anchors = {
        anchor for page in (site / "api").glob("*.html") for anchor in re.findall(r'id="([\w.]+)"', page.read_text())
    }
    for name in latent_cot.__all__:
        if name in ("tasks", "tools"):
            continue
        homes = [anchor for anchor in anchors if anchor.startswith("latent_cot.") and anchor.endswith(f".{name}")]
        assert homes, f"{name} is on no page of docs/api/"


def test_every_optional_protocol_is_in_the_list_of_them() -> None:
    text = (DOCS / "extending.md").read_text(encoding="utf-8")
    protocols = {name for name, value in vars(types).items() if Protocol in getattr(value, "__bases__", ())}
    assert protocols - {"Task", "Tool"} == set(re.findall(r"^\| `latent_cot\.types\.(\w+)` ", text, re.MULTILINE))


# -- figures on the pages --------------------------------------------------------------------------------------


def tables(page: str) -> list[list[list[str]]]:
    """The tables of a page: rows of cells, the heading first."""
    found: list[list[list[str]]] = [[]]
    for line in (DOCS / page).read_text(encoding="utf-8").splitlines():
        if line.startswith("|"):
            found[-1].append([cell.strip().strip("`") for cell in line.strip("|").split("|")])
        elif found[-1]:
            found.append([])
    return [[table[0], *table[2:]] for table in found if table]


def test_the_settings_beside_the_papers_are_those_of_the_presets() -> None:
    (table,) = (table for table in tables("differences.md") if table[0][0] == "setting")
    for column, preset in ((2, "paper"), (3, "cpu")):
        settings = to_dict(load_config(preset))
        for row in table[1:]:
            section, _, name = row[0].rpartition(".")
            found = settings[section] if section else settings
            assert yaml.safe_load(row[column]) == found[name], f"{preset}: {row[0]}"


def test_a_reader_gets_through_the_readme() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) < 120
    assert max(map(len, lines)) <= 120


def test_result_files_are_marked_and_hold_a_record_a_line() -> None:
    files = list((DOCS / "results").iterdir())
    assert sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files) <= 7000
    for file in (DOCS / "results").glob("*.json"):
        assert "generated" in json.loads(file.read_text(encoding="utf-8")), file.name


def figures_of(record: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Variant and reasoner -> split -> its figures, in a comparison's record."""
    rows = json.loads((DOCS / "results" / record).read_text(encoding="utf-8"))["rows"]
    return {f"{row['variant']}, {row['reasoner']}": row["cells"] for row in rows}


@pytest.mark.parametrize(
    ("page", "record"),
    [
        ("arithmetic.md", "arithmetic-fair.json"),
        ("arithmetic-earlier.md", "arithmetic.json"),
        ("arithmetic-earlier.md", "arithmetic-5-demonstrations-seeds-1-2.json"),
        ("arithmetic-earlier.md", "arithmetic-5-demonstrations.json"),
    ],
)
def test_the_figures_of_a_comparison_are_those_of_its_record(page: str, record: str) -> None:
    """Both are rounded: the page to a digit, intervals to none; the record to four significant ones."""
    figures = figures_of(record)
    of_record = json.loads((DOCS / "results" / record).read_text(encoding="utf-8"))["rows"]
    seeds = {f"{row['variant']}, {row['reasoner']}": ", ".join(map(str, row["seeds"])) for row in of_record}
    found = {}
    for heading, *rows in tables(f"results/{page}"):
        for row in rows:
            if heading[1] == "seeds" and row[1] == seeds.get(name := row[0].removesuffix(" †")):
                found[name] = dict(zip(heading[2:], row[2:], strict=True))
    assert set(found) == set(figures)
    for name, cells in found.items():
        for split, cell in cells.items():
            exact = figures[name][split]
            mean, *deviation, low, high = (float(number) / 100 for number in re.findall(r"[\d.]+", cell))
            assert mean == pytest.approx(exact["mean"], abs=0.00055), (name, split)
            assert deviation == pytest.approx([exact["deviation"]] if deviation else [], abs=0.00055), (name, split)
            assert [low, high] == pytest.approx(exact["interval_95"], abs=0.00505), (name, split)


@pytest.mark.parametrize("page", ["../README.md", "index.md"])
def test_the_first_table_is_that_of_the_results(page: str) -> None:
    splits = [f"{n}-operands" for n in (3, 4, 5, 6, 8)]
    (table,) = (table for table in tables(page) if "3 operands" in table[0])
    figures = figures_of("arithmetic-fair.json")
    at_its_best = json.loads((DOCS / "results" / "arithmetic-fair-rejection.json").read_text(encoding="utf-8"))["runs"]
    marks = {split: [run["accuracy"][split] for run in at_its_best] for split in splits}
    figures["rejection"] = {split: {"mean": fmean(m["correct"] / m["n"] for m in of)} for split, of in marks.items()}
    names = ("em, p", "em-no-e-step, p", "rejection", "grpo-correct-m, p", "sft-260, p")
    rows = [[figures[name][split]["mean"] for split in splits] for name in names]
    assert len(table) == 1 + len(rows) + 1  # its heading, and the paper's
    for row, expected in zip(table[1:], rows, strict=False):
        assert [float(cell) for cell in row[1:]] == [round(100 * value, 1) for value in expected], row[0]


LAST_STEP = {"a": Fraction(1, 2), "ab": Fraction(1, 2), "c": Fraction(1, 4), "cd": Fraction(1, 4)}
ANSWER = {"s_0": (1, 32), "a": (1, 8), "ab": (7, 8), "c": (1, 16), "cd": (3, 4)}
PARENT = {"a": "s_0", "ab": "a", "c": "s_0", "cd": "c"}
CHILDREN: dict[str, list[str]] = {state: [c for c, p in PARENT.items() if p == state] for state in ANSWER}


def written(last_step: dict[str, Fraction], state: str) -> Fraction:
    """The probability of the moves that lead to a state."""
    return Fraction(1) if state == "s_0" else last_step[state] * written(last_step, PARENT[state])


def column(table: list[list[str]], k: int) -> dict[str, Fraction]:
    """State -> the last fraction in that cell."""
    return {row[0].strip("$"): Fraction(re.findall(r"\d+(?:/\d+)?", row[k])[-1]) for row in table[1:]}


def test_the_worked_example_is_right() -> None:
    rationales, posterior, flows, start, m_step = tables("worked-example.md")
    answer = {state: Fraction(*of) for state, of in ANSWER.items()}
    reward = {state: written(LAST_STEP, state) * answer[state] for state in ANSWER}
    assert column(rationales, 3) == answer
    assert column(rationales, 4) == reward
    total = sum(reward.values())
    assert total == Fraction(3, 8)

    stop = {state: 1 - sum(LAST_STEP[c] for c in CHILDREN[state]) for state in ANSWER}
    prior = {state: written(LAST_STEP, state) * stop[state] for state in ANSWER}
    assert column(posterior, 1) == prior
    assert column(posterior, 2) == {state: reward[state] / total for state in ANSWER}

    def flow(state: str) -> Fraction:
        return reward[state] + sum(flow(child) for child in CHILDREN[state])

    share = {child: flow(child) / flow(parent) for child, parent in PARENT.items()}
    assert column(flows, 1) == {state: flow(state) for state in ANSWER}
    assert column(flows, 3) == {state: reward[state] / flow(state) for state in ANSWER}
    for row in flows[1:]:
        moves = dict(re.findall(r"(\w) (\d+/\d+)", row[2]))
        expected = {child[-1]: share[child] for child in CHILDREN[row[0].strip("$")]}
        assert {move: Fraction(of) for move, of in moves.items()} == expected

    assert column(start, 1) == {state: reward[state] / prior[state] for state in ANSWER}
    a = {state: math.log(of) for state, of in column(start, 1).items()}
    assert {row[0].strip("$"): row[2].replace("−", "-") for row in start[1:]} == {s: f"{a[s]:.3f}" for s in a}
    path = [a["s_0"], a["a"], a["ab"]]
    subtb = sum((x - y) ** 2 for x, y in itertools.combinations(path, 2))
    assert (DOCS / "worked-example.md").read_text(encoding="utf-8").count(f"= {subtb:.3f}") == 2

    rewards_after = {state: written(share, state) * answer[state] for state in ANSWER}
    assert column(m_step, 1) == rewards_after
    assert sum(rewards_after.values()) == Fraction(71, 96)

    weights = {state: reward[state] / prior[state] for state in ANSWER}
    of_squares = sum(prior[state] * weights[state] ** 2 for state in ANSWER)
    assert round(100 * float(total**2 / of_squares)) == 57
