"""Figures of sampled rationales: counting, scoring under the base model, intervals, and a run that is resumed."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from latent_cot.config.schema import RunConfig
from latent_cot.config.settings import with_method
from latent_cot.evaluation.intervals import of_mean
from latent_cot.evaluation.measure import MANY, Figure, count_samples, draw, figures, score_texts
from latent_cot.model.lm import LanguageModel
from latent_cot.model.text import TextCodec
from latent_cot.rationales.chain import ChainRules
from latent_cot.rationales.rollout import rollout
from latent_cot.rationales.scoring import Group
from latent_cot.types import Measured, MeasuredTask
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


# -- counting ----------------------------------------------------------------------------------------------


def test_counts_are_those_of_sampling_one_by_one(lm: LanguageModel) -> None:
    """Total variation of two empirical distributions of N samples over K outcomes is about √(K / (π N))."""
    rules, n = rules_of(lm, min_tokens=1), 4000
    prompt, model = rules.codec.encode_prompt("Say: "), lm.merged("q")
    (one_by_one,) = rollout(lm, model, [prompt], rules, n=n, generator=torch.Generator().manual_seed(0))
    counted = count_samples(lm, model, prompt, rules, n=n, generator=torch.Generator().manual_seed(1))
    assert sum(counted.values()) == n
    expected = Counter(one_by_one)
    distance = sum(abs(expected[z] - counted.get(z, 0)) for z in {*expected, *counted}) / (2 * n)
    assert distance < 2 * math.sqrt(len({*expected, *counted}) / (math.pi * n)), distance
    assert any(z.calls for z in counted)
    assert len({z.truncated for z in counted}) == 2


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_counting_at_a_temperature(lm: LanguageModel, temperature: float) -> None:
    rules = rules_of(lm)
    prompt, model = rules.codec.encode_prompt("Say: "), lm.merged("q")
    settings: dict[str, Any] = {"n": 2000, "temperature": temperature}
    (sampled,) = rollout(lm, model, [prompt], rules, generator=torch.Generator().manual_seed(0), **settings)
    counted = count_samples(lm, model, prompt, rules, generator=torch.Generator().manual_seed(0), **settings)
    best, times = Counter(sampled).most_common(1)[0]
    assert counted[best] == pytest.approx(times, abs=5 * math.sqrt(2000) / 2)
    if temperature == 0:
        assert dict(counted) == {best: 2000}


def test_many_samples_take_as_long_as_the_distinct_ones(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = rules_of(lm, "ab")
    prompt = rules.codec.encode_prompt("Say: ")
    run: list[int] = []
    hidden = lm.hidden

    def counted_hidden(model: torch.nn.Module, trees: list[list[int]]) -> torch.Tensor:
        run.append(sum(map(len, trees)))
        return hidden(model, trees)  # type: ignore[arg-type]

    monkeypatch.setattr(lm, "hidden", counted_hidden)
    (counts,) = draw(lm, lm.merged("q"), [prompt], rules, n=100_000, generator=torch.Generator().manual_seed(0))
    assert sum(counts.values()) == 100_000
    assert len(counts) == 1 + 2 + 4 + 8  # all chains of at most 3 letters
    assert len(run) == 3
    assert sum(run) <= 3 * (len(prompt) + 1 + 2 + 4)


def test_few_are_sampled_as_ever(lm: LanguageModel) -> None:
    rules = rules_of(lm)
    prompts = [rules.codec.encode_prompt(text) for text in ("a", "bb")]
    counts = draw(lm, lm.merged("q"), prompts, rules, n=MANY - 1, generator=torch.Generator().manual_seed(0))
    sampled = rollout(
        lm, lm.merged("q"), prompts, rules, n=MANY - 1, batch_size=MANY - 1, generator=torch.Generator().manual_seed(0)
    )
    assert [dict(one) for one in counts] == [Counter(one) for one in sampled]


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
        for text in ("ab", "abb", "", "b=7", "ab")
    ]
    groups = [
        Group(codec.encode_prompt("Why?"), rationales, codec.encode(". So")),
        Group(codec.encode_prompt("Who is it?"), rationales[:2]),
    ]
    with lm.without_adapters() as base:
        found = score_texts(lm, base, groups, max_tokens=max_tokens)
    with lm.trainable("q") as model:  # the adapters are back
        assert any(weight.requires_grad for weight in model.parameters())
    for group, scores in zip(groups, found, strict=True):
        assert len(scores) == len(group.rationales)
        for rationale, (log_z, log_y) in zip(group.rationales, scores, strict=True):
            expected = log_text(untouched, group.prompt, rationale.tokens) if rationale.tokens else 0.0
            assert log_z == pytest.approx(expected, abs=1e-4)
            if not group.answer:
                assert log_y is None
                continue
            expected = log_text(untouched, [*group.prompt, *rationale.tokens], group.answer)
            assert log_y == pytest.approx(expected, abs=1e-4)


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

    def measure(self, questions):  # type: ignore[no-untyped-def]
        return self.given  # type: ignore[attr-defined]


def test_figures_of_questions_and_of_all_together() -> None:
    task = Given()
    questions = [Measured(task.example("a"), []), Measured(task.example("b"), [])]
    task.given = {"distinct": 7, "length": [2.0, math.nan], "likelihood": [-1.0, -3.0]}  # type: ignore[attr-defined]
    found = figures(task, questions)
    assert list(found) == ["length", "likelihood", "distinct"], "the task's order"
    assert found["distinct"] == Figure(7.0, 2)
    assert found["length"] == Figure(2.0, 1), "an undefined one is left out"
    assert found["likelihood"].value == -2.0
    assert found["likelihood"].n == 2
    assert found["likelihood"].to_json()["interval_95"] == [-3.0, -1.0]
    task.given = {"length": [math.nan, math.nan]}  # type: ignore[attr-defined]
    assert math.isnan(figures(task, questions)["length"].value)
    for wrong in ({"lenght": 3.0}, {"length": [1.0]}):
        task.given = wrong  # type: ignore[attr-defined]
        with pytest.raises(ValueError, match=r"lenght|1 values for 2"):
            figures(task, questions)


# -- in a run ----------------------------------------------------------------------------------------------


def test_a_run_measures_and_can_be_stopped_anywhere(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    task = LengthTask()
    assert isinstance(task, MeasuredTask)
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
        ("em-xy", "question-and-answer", ("q",)),
        ("em", "question-and-answer", ("q",)),
        ("em", "question", ("q", "p")),
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
    shown = "".join(f"{task.posterior_prompt(d)}{d.z}\n" for d in loop.data.demonstrations[: loop.shown])
    assert decode(loop.test_prompt("p", example)) == shown + both
