"""Figures of sampled rationales: counting, scoring under the base model, intervals, and a run that is resumed."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from latent_cot.config.schema import RunConfig
from latent_cot.config.settings import with_method
from latent_cot.evaluation.evaluate import Figure, figures, score_by_base
from latent_cot.evaluation.intervals import of_mean
from latent_cot.model.lm import LanguageModel
from latent_cot.model.text import TextCodec
from latent_cot.rationales.chain import ChainRules
from latent_cot.rationales.scoring import Group
from latent_cot.types import CodeError, Measured
from tests.loops import CONFIG, make, outcome, run_in_parts
from tests.measured import LengthTask
from tests.oracles import scoring
from tests.worlds import CountTool, language_model, masked_rationale


@pytest.fixture(scope="module")
def lm(tiny_model: Callable[[str], Path]) -> LanguageModel:
    return language_model(tiny_model("llama"))


def rules_of(lm: LanguageModel, characters: str = "ab=", **arguments: Any) -> ChainRules:
    return ChainRules(
        TextCodec(lm.tokenizer, allowed_characters=characters), [CountTool()], **{"max_tokens": 3} | arguments
    )


# -- scoring -----------------------------------------------------------------------------------------------


def log_text(model: PreTrainedModel, prompt: Sequence[int], tokens: Sequence[int]) -> float:
    with torch.no_grad():
        return float(scoring.log_text(model, list(prompt), list(tokens)))


@pytest.mark.parametrize("max_tokens", [4096, 12])
def test_scores_of_the_base_model_over_the_whole_vocabulary(
    lm: LanguageModel, tiny_model: Callable[[str], Path], max_tokens: int
) -> None:
    from latent_cot.model.weights import load_model_and_tokenizer

    untouched, _ = load_model_and_tokenizer(tiny_model("llama"), dtype=torch.float32)
    codec = TextCodec(lm.tokenizer, allowed_characters="ab=")
    rationales = [
        masked_rationale(codec.encode(text), [True] * len(text), [True] * (len(text) + 1))
        for text in ("ab", "abb", "", "b=7")
    ]
    groups = [
        Group(codec.encode_prompt("Why?"), rationales, codec.encode(". So")),
        Group(codec.encode_prompt("Who is it?"), rationales[:2]),
    ]
    counts = [dict.fromkeys(group.rationales, 2) for group in groups]
    found = score_by_base(lm, LengthTask(), groups, counts, codec, max_tokens=max_tokens)
    with lm.trainable("q") as model:  # the adapters are back
        assert any(weight.requires_grad for weight in model.parameters())
    for group, samples in zip(groups, found, strict=True):
        assert [sample.rationale for sample in samples] == group.rationales
        for sample in samples:
            tokens = sample.rationale.tokens
            expected = log_text(untouched, group.prompt, tokens) if tokens else 0.0
            assert sample.log_z == pytest.approx(expected, abs=1e-4)
            assert sample.count == 2
            if not group.answer:
                assert sample.log_y is None
                continue
            expected = log_text(untouched, [*group.prompt, *tokens], group.answer)
            assert sample.log_y == pytest.approx(expected, abs=1e-4)


# -- figures -----------------------------------------------------------------------------------------------


def test_the_interval_of_a_mean() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    found = of_mean(values)
    assert found is not None
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert found == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)
    assert of_mean(values) == found, "seeded"
    assert of_mean(np.ones(5)) == (1.0, 1.0)
    assert of_mean(np.ones(1)) is None
    assert of_mean(np.array([1.0, math.inf])) is None


class Given(LengthTask):
    """Measures what it is told."""

    given: Mapping[str, Any]

    def measure(self, questions):  # type: ignore[no-untyped-def]
        return self.given


def test_figures_of_questions_and_of_all_together() -> None:
    task = Given()
    questions = [Measured(task.example("a"), []), Measured(task.example("b"), [])]
    task.given = {"distinct": 7, "length": [2.0, math.nan], "likelihood": [-1.0, -3.0]}
    found = figures(task, questions)
    assert list(found) == ["length", "likelihood", "distinct"], "the task's order"
    assert found["distinct"] == Figure(7.0, 2)
    assert found["length"] == Figure(2.0, 1), "an undefined one is left out"
    assert found["likelihood"].value == -2.0
    assert found["likelihood"].n == 2
    assert found["likelihood"].to_json()["interval_95"] == [-3.0, -1.0]
    task.given = {"length": [math.nan, math.nan]}
    assert math.isnan(figures(task, questions)["length"].value)
    task.given = {"length": np.array([2.0, 4.0]), "distinct": np.float32(7)}
    assert figures(task, questions)["length"] == Figure(3.0, 2, (2.0, 4.0))
    assert figures(task, questions)["distinct"] == Figure(7.0, 2)
    said = r"length: `measure` gives (lenght|1 values for 2|length as what is no number)"
    for wrong in ({"lenght": 3.0}, {"length": [1.0]}, {"length": np.array([1.0])}, {"length": [1.0, None]}):
        task.given = wrong
        with pytest.raises(CodeError, match=said):
            figures(task, questions)
    task.given = {"length": "ab"}
    with pytest.raises(CodeError, match="no number"):
        figures(task, questions)


# -- in a run ----------------------------------------------------------------------------------------------


def test_a_run_measures_and_can_be_stopped_anywhere(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    task = LengthTask()
    assert task.is_measured
    config = dataclasses.replace(
        with_method(CONFIG, "gflownet"),
        rollout=dataclasses.replace(CONFIG.rollout, granularity="token"),
        # batches of one question
        evaluation=dataclasses.replace(CONFIG.evaluation, samples=6),
    )
    lm = language_model(tiny_model("llama"), perturb=False)
    whole = make(lm, config, task)
    infos = [info for phase, info in whole.run() if phase.name == "evaluate"]
    expected = outcome(whole)
    results = whole.state.results()
    assert results["accuracy"] == {}
    assert {number: set(found) for number, found in results["metrics"].items()} == {"0": {"p"}, "1": {"q"}}
    assert list(results["metrics"]["1"]["q"]["test"]) == list(task.metrics)
    assert results["metrics"]["1"]["q"]["test"]["length"]["n"] == 3
    assert infos[-1]["metrics"] == results["metrics"]["1"]["q"]["test"]
    assert whole.state.sampled == []
    json.dumps(whole.state_dict())
    for k in (1, 2):
        again = run_in_parts(language_model(tiny_model("llama"), perturb=False), config, tmp_path, k, task)
        assert outcome(again) == expected


def test_measured_rationales_are_all_kept_for_the_m_step(tiny_model: Callable[[str], Path]) -> None:
    config = dataclasses.replace(
        CONFIG,
        rounds=1,
        rollout=dataclasses.replace(CONFIG.rollout, granularity="token"),
        m_step=dataclasses.replace(CONFIG.m_step, keep="correct"),
    )
    loop = make(language_model(tiny_model("llama"), perturb=False), config, LengthTask())
    kept = [info["kept"] for phase, info in loop.run() if phase.name == "draw"]
    assert sum(kept) == 2 * len(loop.questions)


@dataclasses.dataclass
class GivenAnswerTask(LengthTask):
    """Its tests give the answer."""

    answer_given: bool = True


@pytest.mark.parametrize(
    ("method", "q_sees", "reasoners"),
    [
        ("em", "question-and-answer", ("q",)),
        ("em-x", "question", ("q", "p")),
        ("few-shot", "question", ("p",)),
    ],
)
def test_what_reasoners_read_where_the_answer_is_given(
    tiny_model: Callable[[str], Path], method: str, q_sees: str, reasoners: tuple[str, ...]
) -> None:
    task = GivenAnswerTask()
    config: RunConfig = dataclasses.replace(
        with_method(CONFIG, method),
        q_sees=q_sees,  # type: ignore[arg-type]
        rollout=dataclasses.replace(CONFIG.rollout, granularity="token"),
    )
    loop = make(language_model(tiny_model("llama"), perturb=False), config, task)
    assert loop.reasoners == reasoners
    example, decode = task.example("ab"), loop.rules.codec.tokenizer.decode
    both = task.posterior_prompt(example)
    assert decode(loop.test_prompt("q", example)) == (both if q_sees == "question-and-answer" else example.x)
    shown = "".join(f"{task.posterior_prompt(d)}{d.z}\n" for d in loop.data.demonstrations[: loop.n_shown])
    assert decode(loop.test_prompt("p", example)) == shown + both
