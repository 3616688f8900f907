"""`latent-cot plan`."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean

import pytest
from transformers import AutoTokenizer

from latent_cot import tasks
from latent_cot.cli import plan
from latent_cot.planning import measure
from latent_cot.planning.hardware import GPUS
from latent_cot.types import DataRequest
from tests.cli.conftest import Cli

BIG = ["plan", "--model", "7b", "--gpu", "h100", "--gpus", "8"]


def test_the_tables(cli: Cli) -> None:
    called = cli(*BIG)
    assert called.status == 0, called.err
    for text in ("base weights", "E-step: rollout", "M-step", "data parallel", "sharded", "Suggested:", "15.23"):
        assert text in called.out
    assert "$" not in called.out, "no price was given"


def test_a_price_makes_dollars(cli: Cli) -> None:
    found = cli(*BIG, "--price", "2.5", "--json").json
    assert [one["name"] for one in found["layouts"]] == ["one device", "data parallel", "sharded"]
    for one in found["layouts"]:
        assert one["dollars"] == pytest.approx(2.5 * one["device_hours"])
        assert one["device_hours"] == pytest.approx(one["devices"] * one["seconds"] / 3600)
        assert one["seconds"] == pytest.approx(sum(part["seconds"] for part in one["round"].values()))
    assert cli(*BIG, "--json").json["layouts"][0]["dollars"] is None
    assert "$ a round" in cli(*BIG, "--price", "2.5").out


def test_settings_of_em_count(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("m_step: {steps: 880}\n")
    usual, more, fewer = (
        cli(*BIG, "--json", *flags).json["layouts"][0]["round"]
        for flags in ([], ["--config", str(file)], ["--questions", "100"])
    )
    assert more["M-step"]["seconds"] == pytest.approx(2 * usual["M-step"]["seconds"])
    assert fewer["draw"]["seconds"] < 0.2 * usual["draw"]["seconds"]


def test_flags_stand_in_for_what_is_known_of_a_device(cli: Cli) -> None:
    flags = ["--tflops", "1", "--bandwidth", "2", "--memory", "3", "--overhead", "4"]
    device = cli(*BIG, "--json", *flags).json["device"]
    assert (device["flops"], device["read"], device["memory"]) == (1e12, 2e9, 3e9)
    assert device["decode"]["layer_seconds"] == 0.004


def test_what_fits_nowhere_is_said(cli: Cli) -> None:
    called = cli("plan", "--model", "72b", "--gpu", "l4", "--gpus", "2")
    assert called.status == 0
    assert "No layout fits" in called.out and "--gradient-checkpointing" in called.out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--gpu", "h10"], "--gpu h10: is not known. Did you mean 'h100'?"),
        (["--gpus", "0"], "--gpus 0: give a number above 0"),
        (["--price", "-1"], "--price -1.0: give a number above 0"),
        (["--distinct", "2"], "--distinct 2: is a share"),
        (["--longest-chain", "10", "--chain-tokens", "20"], "--longest-chain 10: below the 20 of a chain's mean"),
        (["--task", "arithmetik"], "arithmetik"),
        (["--chain-tokens", "nan"], "--chain-tokens nan: give a number above 0"),
        (["--questions", "3"], "--questions 3: fewer than the 50 --data.demonstrations"),
        (["--method", "ppo"], "--method ppo: rounds of em and em-x are planned"),
        (["--precision", "fp32"], "--precision fp32: GPUs are planned in bf16"),
        (["--rollout.engine", "vllm"], "--rollout.engine vllm: rollouts by transformers are planned"),
        (["--model", "7c"], "--model 7c: no configuration can be read"),
    ],
)
def test_bad_input_is_one_error_with_a_remedy(cli: Cli, flags: list[str], message: str) -> None:
    called = cli(*BIG, *flags)
    assert called.status == 2
    assert message in " ".join(called.err.split())
    assert called.out == ""


@pytest.mark.parametrize("broken", ["", "{", '{"like": 3}', "[" * 100])
def test_the_machine_is_measured_once(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """And again where what was kept cannot be read, or on request."""
    file, times = tmp_path / "cache" / "machine.json", []
    file.parent.mkdir()
    file.write_text(broken)
    monkeypatch.setattr(plan, "user_cache_path", lambda *_, **__: file.parent)
    monkeypatch.setattr(measure, "this_machine", lambda precision: times.append(precision) or GPUS["l4"])  # type: ignore[func-returns-value]
    for _ in range(2):
        called = cli("plan")
        assert called.status == 0, called.err
    assert times == ["auto"]
    cli("plan", "--measure")
    cli("plan", "--precision", "fp32")
    assert times == ["auto", "auto", "fp32"]


def test_round_0_is_tested_where_each_round_is(cli: Cli) -> None:
    seconds = [
        cli(*BIG, "--json", *flags).json["layouts"][0]["round_0"]["evaluation"]["seconds"]
        for flags in ([], ["--evaluation.no-every-round"])
    ]
    assert seconds[0] > seconds[1] == 0


def test_tests_have_as_many_rationales_as_the_task_likes(cli: Cli) -> None:
    flags = [[], ["--evaluation.samples", tasks.load("random_numbers").samples], ["--evaluation.samples", 1]]
    seconds = [
        cli(*BIG, "--task", "random_numbers", "--precision", "bf16", "--json", *of).json["layouts"][0]["round"][
            "evaluation"
        ]["seconds"]
        for of in flags
    ]
    assert seconds[0] == seconds[1] > seconds[2]


def test_a_folder_is_planned_and_not_the_model_whose_short_name_it_has(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model_dir: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "7b").symlink_to(tiny_model_dir)
    assert "15.23" not in cli(*BIG).out


def test_a_containers_memory_is_what_it_may_have(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("4294967296\n")
    monkeypatch.setattr(measure, "_LIMITS", (str(tmp_path / "absent"), str(tmp_path / "memory.max")))
    assert measure._allowed() == 2**32
    (tmp_path / "memory.max").write_text("max\n")
    assert measure._allowed() == math.inf


def test_a_mixture_of_experts_is_refused(cli: Cli, tmp_path: Path) -> None:
    from transformers import MixtralConfig

    MixtralConfig(hidden_size=32, num_hidden_layers=1, intermediate_size=64, vocab_size=99).save_pretrained(tmp_path)
    called = cli(*BIG, "--model", tmp_path)
    assert called.status == 2
    assert "mixture of experts" in called.err


def test_a_configuration_that_would_take_for_ever_is_refused(cli: Cli, tmp_path: Path) -> None:
    from transformers import LlamaConfig

    LlamaConfig(num_hidden_layers=10**9).save_pretrained(tmp_path)
    called = cli(*BIG, "--model", tmp_path)
    assert called.status == 2
    assert "layers" in called.err


def test_code_of_somebody_else_is_not_run(cli: Cli, tmp_path: Path) -> None:
    task, ran = tmp_path / "mine.yaml", tmp_path / "ran"
    (tmp_path / "grader.py").write_text(f"open({str(ran)!r}, 'w')\ndef same(answer, gold):\n    return True\n")
    task.write_text("data: a.csv\ngrade: grader.py:same\n")
    called = cli(*BIG, "--task", task)
    assert called.status == 2
    assert "--trust-code" in called.err
    assert not ran.exists()


def test_texts_are_as_long_as_they_are_said_to_be(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = {"prompt": 11, "chain": 12, "longest": 50, "answer": 13, "states": 3, "distinct": 0.5}
    names = {"prompt": "prompt-tokens", "chain": "chain-tokens", "longest": "longest-chain", "answer": "answer-tokens"}
    flags = [word for name, value in lengths.items() for word in (f"--{names.get(name, name)}", str(value))]
    with monkeypatch.context() as patched:
        patched.delattr(plan, "lengths_of")  # all is said: there is nothing to look for
        found = cli(*BIG, "--json", "--questions", 1050, *flags).json
    assert found["texts"] == lengths and set(found["texts_from"].values()) == {"given"} and found["notes"] == []
    (note,) = cli(*BIG, "--json", *flags).json["notes"]
    assert note.startswith("The data were not counted: 50 demonstrations and 1000 other questions are asked for")
    one = cli(*BIG, "--json", "--chain-tokens", 32).json
    assert one["texts"]["chain"] == 32 and one["texts"]["states"] == 2
    assert one["texts_from"] == {"prompt": "estimated", "chain": "given", "answer": "estimated", "states": "assumed"}


SHEET = ["--task", "sheet.yaml"]
"""Rows whose prompts, rationales and answers have other lengths than those of arithmetic."""


@pytest.fixture
def sheet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rows = "".join(
        f"{'What is the colour of thing ' * 9}{k}?;{'red' if k % 2 else 'blue'};Because of {k}.\n" for k in range(30)
    )
    (tmp_path / "sheet.csv").write_text(f"item;colour;why\n{rows}")
    (tmp_path / "sheet.yaml").write_text("data: sheet.csv\nquestion: item\nanswer: colour\nrationale: why\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_texts_are_as_long_as_those_of_the_data(cli: Cli, sheet: Path, tiny_model_dir: Path) -> None:
    found = cli(*BIG, "--json", *SHEET, "--model", tiny_model_dir).json
    assert set(found["texts_from"].values()) == {"counted"}
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    task = tasks.load("sheet.yaml")
    data = task.load(DataRequest(validation=200))
    examples = [*data.demonstrations, *data.unlabelled]
    read_by_q = [task.posterior_prompt(one) for one in examples]
    assert found["texts"]["prompt"] == pytest.approx(fmean(len(tokenizer(text)["input_ids"]) for text in read_by_q))
    assert found["texts"]["chain"] == pytest.approx(
        fmean(len(tokenizer(one.z)["input_ids"]) for one in data.demonstrations)
    )
    assert found["texts"]["answer"] == pytest.approx(fmean(len(tokenizer(one.y)["input_ids"]) for one in examples))
    (note,) = found["notes"]
    assert note.startswith(
        f"Tokens in {len(examples)} training examples, means: prompts {found['texts']['prompt']:.3g},"
    )
    assert note in " ".join(cli(*BIG, *SHEET, "--model", tiny_model_dir).out.split())
    assert cli(*BIG, "--json", *SHEET, "--model", tiny_model_dir, "--prompt-tokens", 5).json["texts"]["prompt"] == 5


def test_without_a_tokenizer_they_are_estimated(cli: Cli, sheet: Path) -> None:
    found = cli(*BIG, "--json", *SHEET).json
    assert found["texts_from"]["prompt"] == found["texts_from"]["chain"] == "estimated"
    assert 54 < found["texts"]["prompt"] < 54 * 2 + 30  # six words nine times, and a chat template
    (note,) = found["notes"]
    assert "estimated from the characters (the tokenizer of 7b is not on this machine): prompts" in note


def test_data_that_cannot_be_read_leave_the_usual_lengths(cli: Cli, sheet: Path) -> None:
    (sheet / "hub.yaml").write_text("data: hub:openai/gsm8k?config=main\n")
    (sheet / "gone.yaml").write_text("data: gone.csv\n")
    for name, why in (("hub.yaml", "hub:openai/gsm8k?config=main is on the hub"), ("gone.yaml", "no such file")):
        called = cli(*BIG, "--json", "--task", name)
        assert called.status == 0, called.err
        texts, (note,) = called.json["texts"], called.json["notes"]
        assert (texts["prompt"], texts["answer"], texts["chain"]) == (16, 8, texts["longest"])
        assert set(called.json["texts_from"].values()) == {"assumed"}
        assert note.startswith("Tokens taken for granted, as the data were not looked at (") and why in note


def test_few_of_very_many_questions_are_looked_at(cli: Cli) -> None:
    found = cli(*BIG, "--json", "--questions", 10**6).json
    assert "Tokens in 250 training examples" in found["notes"][0]
