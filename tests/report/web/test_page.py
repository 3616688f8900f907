"""The file that is written: escaped, complete, and of the libraries it says."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from importlib import resources

import pytest

from latent_cot.report.web import page
from tests.report.web import made_up

PACKAGE = resources.files("latent_cot.report.web")


def test_the_data_comes_back_and_cannot_leave_its_element() -> None:
    value = {"texts": made_up.HOSTILE, "not finite": [float("nan"), float("-inf")]}
    text = page.island(value)
    assert json.loads(text) == {"texts": made_up.HOSTILE, "not finite": [None, None]}
    assert text.isascii()
    assert not set("<>&") & set(text)


def test_nothing_in_the_data_is_taken_for_a_slot() -> None:
    report = made_up.report_of(made_up.hostile())
    report["title"] = "<!--slot:data-->&<b>"
    text = page.render(report)
    assert "<title>&lt;!--slot:data--&gt;&amp;&lt;b&gt;" in text
    assert text.count('id="report-data"') == 1
    assert "<!--slot:" not in text


def test_every_script_is_named_by_its_hash() -> None:
    text = page.render(made_up.report_of(made_up.run_of(None)))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert len(scripts) == len(page.LIBRARIES) + 1
    for script in scripts:
        assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy[1].replace("&#x27;", "'")
    assert "default-src &#x27;none&#x27;" in policy[1]
    assert "unsafe-eval" not in policy[1]


def test_all_files_of_web_are_used() -> None:
    names = {entry.name for entry in PACKAGE.joinpath("assets").iterdir()}
    assert names == {"report.html", "report.css", *page.SCRIPTS}


@pytest.mark.parametrize("name", page.SCRIPTS)
def test_scripts_make_no_markup_of_text(name: str) -> None:
    text = PACKAGE.joinpath("assets", name).read_text(encoding="utf-8")
    code = re.sub(r"//.*", "", text)
    for dangerous in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "new Function",
        ".html(",
    ):
        assert dangerous not in code


def test_libraries_are_as_the_readme_says() -> None:
    vendor = PACKAGE.joinpath("vendor")
    rows = re.findall(r"^\| `(\S+)` .*`([0-9a-f]{64})` \|$", vendor.joinpath("README.md").read_text(), re.MULTILINE)
    assert {name for name, _ in rows} == set(page.LIBRARIES)
    for name, digest in rows:
        assert hashlib.sha256(vendor.joinpath(name).read_bytes()).hexdigest() == digest
        assert vendor.joinpath(f"{name.split('.')[0]}.LICENSE.txt").is_file()
        assert "</script" not in vendor.joinpath(name).read_text(encoding="utf-8").lower()
