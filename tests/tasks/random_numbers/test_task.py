"""What counts as a number, how uniform the numbers are, and whether the task works from end to end."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from latent_cot.cli import main
from latent_cot.config.settings import load_config
from latent_cot.tasks.random_numbers import TASK
from latent_cot.tasks.random_numbers.figures import METRICS, kl_from_uniform, read, tv_from_uniform
from latent_cot.types import DataRequest, Measured, Rationale, Sample, UsageError


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (" 7", 7),
        (" 0", 0),
        (" 100", 100),
        (" 101", None),
        (" -1", None),
        (" 07", None),
        ("7", None),
        ("  7", None),
        (" 7 ", None),
        (" 7.", None),
        (" 7\n", None),
        (" +7", None),
        (" ٧", None),
        (" 1_0", None),
        ("", None),
        (" " + "9" * 5000, None),
    ],
)
def test_what_is_a_number(text: str, number: int | None) -> None:
    assert read(text, 0, 100) == number
    assert TASK.log_reward(TASK.example("0..100"), text) == (-math.inf if number is None else 0.0)


def test_bounds_may_be_negative() -> None:
    example = TASK.example("-3..2")
    assert [TASK.log_reward(example, f" {n}") for n in range(-4, 4)] == [-math.inf, *[0.0] * 6, -math.inf]
    assert TASK.log_reward(example, " -0") == -math.inf
    assert TASK.texts(example) == [" -3", " -2", " -1", " 0", " 1", " 2"]


@pytest.mark.parametrize(
    ("text", "number"), [(" 7, or", 7), ("\n\n07\n", 7), ("1000", None), ("x 7", None), ("", None)]
)
def test_what_a_text_begins_with(text: str, number: int | None) -> None:
    assert read(text, 0, 100, leading=True) == number


def test_distances_by_hand() -> None:
    assert kl_from_uniform([1, 1, 1, 1]) == 0
    assert kl_from_uniform([2, 0]) == pytest.approx(math.log(2))
    assert kl_from_uniform([3, 1]) == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert math.isnan(kl_from_uniform([0, 0]))
    assert tv_from_uniform([0.25] * 4) == 0
    assert tv_from_uniform([0.5, 0]) == pytest.approx(0.5)  # half the samples are no number
    assert tv_from_uniform([0, 0]) == 1


def measured(counts: dict[str, int], listed: list[float] | None = None) -> dict[str, list[float]]:
    samples = [Sample(Rationale((), (), (True,), text), count=n) for text, n in counts.items()]
    return TASK.measure([Measured(TASK.example("0..3"), samples, listed)])  # type: ignore[return-value]


def test_figures_of_samples() -> None:
    found = measured({" 0": 30, " 1": 10, "\n1": 40, " 7": 20})
    assert found["valid"] == [0.4]
    assert found["valid_low"][0] < 0.4 < found["valid_high"][0]
    assert found["kl"] == [pytest.approx(kl_from_uniform([3, 1, 0, 0]))]
    assert found["kl_floor"] == [pytest.approx(3 / 80)]
    assert found["tv"] == [pytest.approx((0.05 + 0.15 + 0.25 + 0.25 + 0.6) / 2)]
    assert found["leading"] == [0.8]
    assert found["leading_kl"] == [pytest.approx(kl_from_uniform([3, 5, 0, 0]))]
    assert "exact_kl" not in found


def test_exact_figures_and_none() -> None:
    found = measured({"x": 5}, [math.log(p) for p in (0.3, 0.1, 0.1, 0.1)])
    assert found["valid"] == [0.0]
    assert math.isnan(found["kl"][0])
    assert found["exact_valid"] == [pytest.approx(0.6)]
    assert found["exact_kl"] == [pytest.approx(kl_from_uniform([3, 1, 1, 1]))]
    assert found["exact_tv"] == [pytest.approx((0.05 + 3 * 0.15 + 0.4) / 2)]
    assert set(found) == set(METRICS)


@pytest.mark.parametrize("n", [1, 5, 6, 7, 400])
def test_each_number_is_demonstrated_equally_often(n: int) -> None:
    def numbers(seed: int, n: int = n) -> tuple[list[str | None], list[str | None]]:
        data = TASK.load(DataRequest(n, 1, n, seed, options={"numbers": "-2..3"}))
        return [one.z for one in data.demonstrations], [one.z for one in data.validation]

    for drawn in numbers(5):
        counts = [drawn.count(text) for text in TASK.texts(TASK.example("-2..3"))]
        assert sum(counts) == n
        assert max(counts) - min(counts) <= 1
        assert (n % 6 > 0) == (max(counts) > min(counts))
    assert numbers(5) == numbers(5)
    assert numbers(5, 60) != numbers(6, 60)
    assert numbers(5, 60)[0] != numbers(5, 60)[1]
    assert numbers(5, 60)[0][:n] == numbers(5)[0][:60]
    assert numbers(5, 60)[0] != sorted(numbers(5, 60)[0], key=str)


@pytest.mark.parametrize("preset", ["cpu", "paper"])
def test_the_presets_demonstrations_are_uniform(preset: str) -> None:
    data = load_config(preset, task="random_numbers").data
    loaded = TASK.load(DataRequest(data.demonstrations, data.unlabelled, data.validation))
    for examples in (loaded.demonstrations, loaded.validation):
        counts = [[one.z for one in examples].count(text) for text in TASK.texts(loaded.unlabelled[0])]
        assert kl_from_uniform(counts) == 0


def test_demonstrations_are_fresh_numbers() -> None:
    data = TASK.load(DataRequest(demonstrations=400, unlabelled=7, validation=3, seed=5, options={"numbers": "1..6"}))
    assert len(data.unlabelled) == 1
    assert {example.z for example in data.demonstrations} == {f" {n}" for n in range(1, 7)}
    assert data.demonstrations != TASK.load(DataRequest(400, 7, 3, 6, options={"numbers": "1..6"})).demonstrations
    assert "between 1 and 6:" in data.unlabelled[0].x


@pytest.mark.parametrize(
    ("question", "part"), [("5..5", "above"), ("7..3", "above"), ("0..99999", "10,000"), ("0-9", "0..100")]
)
def test_bounds_that_make_no_sense(question: str, part: str) -> None:
    with pytest.raises(UsageError, match=part):
        TASK.example(question)
    with pytest.raises(UsageError, match="named by its bounds"):
        TASK.split(question)


def test_what_it_does_not_have() -> None:
    with pytest.raises(UsageError, match="leave it out"):
        TASK.example("0..100", "7")
    with pytest.raises(UsageError, match=r"--data.train-file x\.jsonl"):
        TASK.load(DataRequest(train_file="x.jsonl"))
    with pytest.raises(UsageError, match="no option 'number'"):
        TASK.load(DataRequest(options={"number": "0..9"}))


def test_a_file_of_bounds(tmp_path: Path) -> None:
    file = tmp_path / "bounds.jsonl"
    file.write_text('{"question": "0..9"}\n{"question": "nine"}\n')
    with pytest.raises(UsageError, match=r"bounds\.jsonl:2: question 'nine'"):
        TASK.read(str(file))
    file.write_text('{"question": "0..9"}\n')
    assert [(e.x, e.question) for e in TASK.read(str(file))] == [(TASK.example("0..9").x, "0..9")]


@pytest.mark.parametrize("method", ["gflownet", "sft"])
def test_the_smoke_preset_from_end_to_end(tiny_model_dir: Path, tmp_path: Path, method: str) -> None:
    folder = tmp_path / "run"
    command = ["fit", "--task", "random_numbers", "--method", method, "--preset", "smoke", "--precision", "fp32"]
    assert main([*command, "--model", str(tiny_model_dir), "--output-dir", str(folder)]) == 0
    results = json.loads((folder / "results.json").read_text())
    ((_, reasoners),) = [item for item in results["metrics"].items() if item[0] == "1"]
    (figures,) = (splits["0..100"] for splits in reasoners.values())
    assert set(figures) == set(METRICS)
    assert 0 < figures["exact_valid"]["value"] < 1
