"""`latent-cot eval` and `latent-cot sample` on a finished run and on an untrained model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from latent_cot import tasks
from latent_cot.session import data_request
from latent_cot.settings import load_config
from tests.cli.conftest import SMOKE, Cli

QUESTION = "6 - 0 - 4 - 8"


def test_eval_of_both_reasoners(cli: Cli, finished: Path) -> None:
    called = cli("eval", finished, "--split", "3-operands", "--split", "operands=4,digits=2", "--size", 6, "--json")
    assert called.status == 0, called.err
    found = called.json
    assert found["run"] == str(finished)
    assert found["decoding"] == {"max_tokens": 40, "votes": 1, "temperature": 0.0}
    assert found["dropped"] == {"3-operands": 0, "operands=4,digits=2": 0}
    assert set(found["results"]) == {"q", "p"}
    for splits in found["results"].values():
        assert {name: figures["n"] for name, figures in splits.items()} == found["dropped"] | {
            "3-operands": 6,
            "operands=4,digits=2": 6,
        }
        low, high = splits["3-operands"]["interval_95"]
        assert low <= splits["3-operands"]["accuracy"] <= high


def test_eval_agrees_with_the_run(cli: Cli, finished: Path) -> None:
    recorded = json.loads((finished / "results.json").read_text())["accuracy"]["1"]
    found = cli("eval", finished, "--split", "3-operands", "--size", 8, "--json").json["results"]
    assert found == {name: {"3-operands": splits["3-operands"]} for name, splits in recorded.items()}


def test_eval_of_a_model_with_votes(cli: Cli, tiny_model_dir: Path) -> None:
    options = ["--split", "3-operands", "--size", 3, "--votes", 2, "--max-tokens", 8]
    found = cli("eval", tiny_model_dir, *options, "--json").json
    assert found["run"] is None
    assert set(found["results"]) == {"p"}
    assert found["decoding"] == {"max_tokens": 8, "votes": 2, "temperature": 0.5}
    table = cli("eval", tiny_model_dir, *options)
    assert "3-operands" in table.out
    assert "votes 2" in table.out


def test_eval_drops_what_was_trained_on(cli: Cli, finished: Path, tmp_path: Path) -> None:
    training = tasks.load("arithmetic").load(data_request(load_config("smoke")))
    seen = [*training.demonstrations, *training.pairs][:3]
    rows = [{"question": e.question, "answer": int(e.answer or "")} for e in seen]
    rows += [{"question": "90 + 1", "answer": 91}, {"question": "90 + 1", "answer": 91}]
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    called = cli("eval", finished, "--data", file, "--reasoner", "q", "--json")
    assert called.json["dropped"] == {str(file): 3}
    assert called.json["results"]["q"][str(file)]["n"] == 2
    assert "3 questions seen in training were dropped; 1 repeat" in called.err.replace("\n", " ")
    assert "p" not in called.json["results"]


def test_sample_of_a_run(cli: Cli, finished: Path) -> None:
    options = ["sample", finished, "--question", QUESTION, "-n", 5]
    called = cli(*options, "--json")
    assert called.status == 0, called.err
    found = called.json
    assert found["reasoner"] == "q"
    assert found["gold"] == "-6"
    samples = found["samples"]
    assert sum(sample["count"] for sample in samples) == 5
    rewards = [sample["log_reward"] for sample in samples]
    assert rewards == sorted(rewards, reverse=True)
    assert all(math.isfinite(s["log_prob"]) and s["log_prob"] < 0 for s in samples)
    assert all(sample["correct"] == (sample["answer"] == "-6") for sample in samples)
    assert cli(*options, "--json").out == called.out  # the seed decides
    assert cli(*options, "--json", "--seed", 1).out != called.out
    table = cli(*options)
    assert f"{QUESTION}: 5 from q" in table.out


def test_sample_marks_repeated_rationales(cli: Cli, tiny_model_dir: Path) -> None:
    found = cli("sample", tiny_model_dir, "--question", QUESTION, "--temperature", 0, "-n", 3, "--json").json
    assert found["reasoner"] == "p"
    assert [sample["count"] for sample in found["samples"]] == [3]


@pytest.mark.parametrize("reasoner", ["p", "q"])
def test_sample_from_either(cli: Cli, finished: Path, reasoner: str) -> None:
    found = cli("sample", finished, "--question", QUESTION, "-n", 1, "--reasoner", reasoner, "--json").json
    assert found["reasoner"] == reasoner


def test_a_sampler_that_sees_the_answer_is_sampled_but_not_tested(
    cli: Cli, tmp_path: Path, tiny_model_dir: Path
) -> None:
    folder = tmp_path / "run"
    settings = ["--condition", "xy", "--init", "prompt", "--evaluation.size", 2]
    assert cli(*SMOKE, *settings, "--model", tiny_model_dir, "--output-dir", folder).status == 0
    options = ["eval", folder, "--split", "3-operands", "--size", 2]
    assert set(cli(*options, "--json").json["results"]) == {"p"}
    refused = cli(*options, "--reasoner", "q")
    assert refused.status == 2
    assert "--reasoner q: in this run q sees the answer" in refused.err
    sampled = cli("sample", folder, "--question", QUESTION, "--reasoner", "q", "-n", 2, "--json")
    assert sampled.json["reasoner"] == "q"
