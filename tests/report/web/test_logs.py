"""What is read from a run's logs."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from latent_cot import tasks
from latent_cot.config.schema import RunConfig
from latent_cot.config.settings import to_dict
from latent_cot.model.text import TextCodec
from latent_cot.rationales.chain import ChainRules, encode_rationale
from latent_cot.report.web import logs
from latent_cot.run.reasoners import Source
from latent_cot.run.run_folder import RATIONALES, RunFolder
from latent_cot.tools import load as load_tool
from latent_cot.types import Example, Rationale, TaskData, UsageError, rationale_to_json
from tests.tiny import build_tokenizer
from tests.worlds import CountTool, FakeTool, random_chain

TASK = tasks.load("arithmetic")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run of two rounds that goes on."""
    run = RunFolder.create(tmp_path / "run", to_dict(RunConfig(output_dir=str(tmp_path / "run"))))
    run.log("note", text="a note")
    for number in (1, 2):
        run.log("diagnose_before", round=number, unit=1, variance=9.0, bound=-9.0)
        run.log("diagnose_before", round=number, unit=2, variance=3.0 / number, bound=-0.5)
        for unit in (1, 2, 3):
            run.log(
                "e_step", round=number, unit=unit, loss=1.23456789, accuracy=0.5 if unit > 1 else None, log_reward=-1
            )
        run.log("evaluate", round=number, unit=1, **accuracy("q", "3-operands", 5, 8))
        run.log("evaluate", round=number, unit=2, **accuracy("q", "3-operands", 13, 16))
        run.log("evaluate", round=number, unit=3, **accuracy("q", "5-operands-2-digits", 1, 16))
    return run


def accuracy(reasoner: str, split: str, correct: int, n: int) -> dict[str, Any]:
    return {"reasoner": reasoner, "split": split, "accuracy": correct / n, "n": n, "interval_95": [0.1, 0.9]}


def collected(folder: RunFolder, *pairs: Example) -> dict[str, Any]:
    return logs.collect(Source(RunConfig(), folder), folder, TASK, TaskData((), pairs, ()))


def test_steps_are_columns(folder: RunFolder) -> None:
    found = collected(folder)["steps"]
    assert found["e_step"]["round"] == [1, 1, 1, 2, 2, 2]
    assert found["e_step"]["unit"] == [1, 2, 3, 1, 2, 3]
    assert found["e_step"]["loss"] == [1.2346] * 6
    assert found["e_step"]["accuracy"] == [None, 0.5, 0.5] * 2
    assert "evaluate" not in found and "note" not in found


def test_means_over_all_questions_are_the_last_units(folder: RunFolder) -> None:
    folder.log("diagnose", round=1, unit=1, variance=0.5, bound=-0.1)
    found = collected(folder)["posterior"]
    assert [(row["round"], row["when"], row["variance"]) for row in found] == [
        (1, "before", 3.0),
        (1, "after", 0.5),
        (2, "before", 1.5),
    ]


def test_what_looks_perfect_where_q_has_collapsed_is_left_out(folder: RunFolder) -> None:
    folder.log("diagnose", round=1, unit=1, variance=0.0, ess=1.0, bound=-9.0, one_chain=True)
    folder.log("e_step", round=3, unit=1, variance=0.0, loss=0.5, one_chain=True)
    found = collected(folder)
    (after,) = (row for row in found["posterior"] if (row["round"], row["when"]) == (1, "after"))
    assert (after["variance"], after["ess"], after["bound"]) == (None, None, -9.0)
    assert (found["steps"]["e_step"]["variance"][-1], found["steps"]["e_step"]["loss"][-1]) == (None, 0.5)


def test_an_evaluation_may_say_that_it_has_no_metrics(folder: RunFolder) -> None:
    folder.log("evaluate", round=3, unit=1, metrics=None, **accuracy("p", "3-operands", 1, 2))
    assert not collected(folder).get("metrics")


def test_accuracies_have_the_numbers_of_their_split(folder: RunFolder) -> None:
    rows = collected(folder, Example("", meta={"operands": 3, "digits": 1}))["accuracy"]
    assert len(rows) == 4
    first = rows[0]
    assert (first["round"], first["split"], first["accuracy"], first["n"]) == (1, "3-operands", 13 / 16, 16)
    assert first["numbers"] == {"operands": 3, "digits": 1}
    assert first["trained"] is True
    assert rows[1]["numbers"] == {"operands": 5, "digits": 2}
    assert rows[1]["trained"] is False
    assert collected(folder)["accuracy"][0]["trained"] is None  # not known


def test_a_split_without_numbers(folder: RunFolder) -> None:
    folder.log("evaluate", round=3, unit=1, **accuracy("p", "my file.jsonl", 1, 2))
    assert collected(folder)["accuracy"][-1]["numbers"] is None


def test_figures_of_a_task_without_right_answers(folder: RunFolder) -> None:
    figures = {"diversity": {"value": 0.123456789, "n": 4, "interval_95": [0.1, 0.2]}}
    folder.log("evaluate", round=1, unit=4, reasoner="q", split="test", questions=2)
    folder.log("evaluate", round=1, unit=5, reasoner="q", split="test", metrics=figures)
    (row,) = collected(folder)["metrics"]
    place = {"round": 1, "reasoner": "q", "split": "test", "metric": "diversity"}
    about = {"description": "", "better": "higher", "text": "0.123 (0.1 to 0.2)"}
    assert row == {**place, **about, "value": 0.12346, "n": 4, "interval": [0.1, 0.2]}


def test_facts(folder: RunFolder) -> None:
    facts = dict(collected(folder, Example("1 + 1"))["facts"])
    assert facts["status"] == "running"
    assert facts["data"] == "0 demonstrations, 1 question-answer pairs, 0 for validation", (
        "that there are, not asked for"
    )
    assert facts["model"] == "smollm2-135m, LoRA of rank 16"
    assert "q sees the answer" in facts["method"]
    assert "time" not in facts
    budget = {"trajectories": 1, "tokens": 2, "gradient_steps": 3}
    resources = {"seconds": 675, "peak_memory_bytes": 3_300_000_000}
    folder.write_json("results.json", {"posterior": {}, "budget": budget, "resources": resources})
    facts = dict(collected(folder)["facts"])
    assert facts["time"] == "0:11:15 (h:min:s)"
    assert facts["memory"] == "3.3 GB at the peak"


# -- rationales --------------------------------------------------------------------------------------------


def record(unit: int, number: int = 1) -> dict[str, Any]:
    rationale = rationale_to_json(Rationale((unit,), (True,), (True, True), f" {unit}"))
    head = {"round": number, "phase": "e_step", "unit": unit, "question": "1 + 1"}
    return {**head, "rationale": rationale, "log_reward": -1.0, "count": 2}


def test_first_middle_and_last_steps_are_shown(folder: RunFolder) -> None:
    folder.append_rationales(record(unit, number) for number in (1, 2) for unit in range(1, 42) for _ in range(2))
    found = collected(folder)["logged"]
    assert [(row["round"], row["unit"]) for row in found[::2]] == [(r, u) for r in (1, 2) for u in (1, 21, 41)]
    assert found[0]["text"] == [["own", " 1"]]


def test_a_single_step(folder: RunFolder) -> None:
    folder.append_rationales([record(7)])
    assert [row["unit"] for row in collected(folder)["logged"]] == [7]


def test_an_unfinished_last_line_is_left_out_and_a_broken_one_named(folder: RunFolder) -> None:
    folder.append_rationales([record(1)])
    file = folder.path / RATIONALES
    with file.open("a") as out:
        out.write('{"round": 1')
    assert len(collected(folder)["logged"]) == 1
    file.write_text("[]\n" + json.dumps(record(1)) + "\n")
    with pytest.raises(UsageError, match=r"rationales\.jsonl, line 1: no JSON object"):
        collected(folder)


def by_tokens(rules: ChainRules, rationale: Rationale) -> list[list[str]]:
    """The oracle: the tokenizer knows."""
    parts: list[list[str]] = []
    for token, chosen in zip(rationale.tokens, rationale.policy_mask, strict=True):
        kind = "own" if chosen else "tool"
        if not parts or parts[-1][0] != kind:
            parts.append([kind, ""])
        parts[-1][1] += rules.codec.decode([token])
    return parts


def test_warnings_are_kept_and_are_no_figures(folder: RunFolder) -> None:
    folder.log("e_step", round=2, unit=4, loss=0.0, one_chain=True, warning="q has collapsed")
    found = collected(folder)
    assert found["warnings"] == [{"round": 2, "kind": "e_step", "unit": 4, "warning": "q has collapsed"}]
    assert not {"one_chain", "warning"} & {*found["steps"]["e_step"]}


def test_segments_are_what_the_tokens_say() -> None:
    rules = ChainRules(TextCodec(build_tokenizer(), allowed_characters=" ,.0123456789=+-"), [load_tool("calculator")])
    for text in (" 6 - 0 =, 6 - 4 =, 2 - 8 =", " 1 + 0 =, 1 + 1 =", " 11 - 11 =, 0 + 11 ="):
        rationale = encode_rationale(text, rules)
        assert logs.segments(rationale) == by_tokens(rules, rationale)


@pytest.mark.parametrize("tool", [FakeTool(), CountTool()])
def test_segments_never_lose_text(tool: Any) -> None:
    rules = ChainRules(TextCodec(build_tokenizer()), [tool])
    rng = random.Random(0)
    for _ in range(50):
        rationale = random_chain(rules, rng, 20)
        parts = logs.segments(rationale)
        assert "".join(text for kind, text in parts if kind != "failed") == rationale.text
        failures = [call for call in rationale.calls if call.error]
        assert len([part for part in parts if part[0] == "failed"]) == len(failures)
