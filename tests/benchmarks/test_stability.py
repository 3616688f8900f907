"""The stability benchmark: what it calls coming apart, and that a file is filled in pieces. Nothing is judged."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import records, stability

STEADY = [0.5] * 20


def test_coming_apart_is_a_share_that_stays_low() -> None:
    assert stability.lowest(STEADY) == 1.0
    assert stability.lowest([0.5] * 12 + [0.0] + [0.5] * 7) > 0.5  # one bad step is chance
    assert stability.lowest([0.5] * 12 + [0.1] * 8) < 0.5
    assert stability.lowest([0.5] * 3 + [0.1] * 5 + [0.5] * 12) == 1.0  # it has recovered by then


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of an interval without width
def test_table() -> None:
    before, after = {"elbo": -3.0, "bound": -2.0, "ess": 0.5}, {"elbo": -1.0, "bound": -1.5, "ess": 0.75}
    dip = [0.6] * 12 + [0.2] + [0.6] * 7
    rights = enumerate((STEADY, dip))
    runs = [{"demonstrations": 5, "seed": s, "right": right, "before": before, "after": after} for s, right in rights]
    rises = "2.000 (2.000 to 2.000) | 0.500 (0.500 to 0.500) | 0.250 (0.250 to 0.250)"
    assert stability.table(runs)[-1] == f"| 5 | 2 | 0 | 0.78 | 1 | {rises} |"


def test_a_file_is_filled_in_pieces(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {
        "data": {"demonstrations": 4, "unlabelled": 8, "validation": 4},
        "init_step": {"steps": 1},
        "e_step": {"steps": 2, "questions": 2, "samples": 4},
        "evaluation": {"diagnostics": 2},
    }
    whole = stability.measure
    done = []

    def measure(demonstrations: int, seed: int, settings: dict[str, object]) -> dict[str, object]:
        done.append((demonstrations, seed))
        found = whole(demonstrations, seed, {**small, **settings})
        assert len(found["right"]) == 2 and set(found["before"]) == set(stability.FIGURES)
        return {**found, "right": STEADY}

    monkeypatch.setattr(stability, "measure", measure)
    file = tmp_path / "s.json"
    arguments = [str(file), "--model", str(tiny_model_dir), "--demonstrations", "4", "--seeds"]
    stability.main([*arguments, "1"])
    stability.main([*arguments, "2"])
    assert done == [(4, 0), (4, 1)]
    assert len(records.load(file)) == 2
    assert "| 4 | 2 | 0 |" in capsys.readouterr().out
    with pytest.raises(SystemExit):  # another model's figures would be shown as this one's
        stability.main([str(file), "--demonstrations", "4", "--seeds", "1"])
    assert f"has runs of {tiny_model_dir}; give another file" in capsys.readouterr().err
