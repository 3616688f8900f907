"""The script that takes the documentation's pictures still finds its way through a report."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from latent_cot.report.web import page
from tests.conftest import ROOT
from tests.report.web import made_up
from tests.report.web.conftest import CHROMIUM

pytestmark = pytest.mark.slow


def test_all_pictures_are_taken(tmp_path: Path) -> None:
    pytest.importorskip("playwright.sync_api", reason="playwright, of the extra `browser`, is missing")
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium")
    report = tmp_path / "report.html"
    report.write_text(page.render(made_up.report_of(made_up.large(questions=6, chains=5))), encoding="utf-8")
    command = [sys.executable, str(ROOT / "docs" / "images" / "make.py"), str(report), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    taken = {file.name: file.read_bytes() for file in tmp_path.glob("*.png")}
    assert taken.keys() == {file.name for file in (ROOT / "docs" / "images").glob("*.png")}
    assert len(set(taken.values())) == len(taken)
