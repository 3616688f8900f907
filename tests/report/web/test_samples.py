"""Sampled rationales as JSON: the tree holds exactly what the rollout, the scores and the reward say."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from latent_cot.config.schema import RunConfig
from latent_cot.methods.method import Method
from latent_cot.model.lm import LanguageModel
from latent_cot.objectives.importance import bound_error
from latent_cot.rationales.scoring import Group, score
from latent_cot.report.web.samples import GREEDY_QUESTIONS, sample
from latent_cot.types import Rationale, Reasoner
from tests.loops import CONFIG, make
from tests.worlds import language_model, prefix_log_rewards, shake

Json = dict[str, Any]


@pytest.fixture
def lm(tiny_model: Callable[[str], Path]) -> LanguageModel:
    return language_model(tiny_model("llama"))


def made(lm: LanguageModel, config: RunConfig = CONFIG, **settings: Any) -> tuple[Method, Json]:
    """A loop whose p and q differ, and its samples."""
    loop = make(lm, config)
    for seed in (0, 1):
        shake(lm, seed)
    chosen: dict[str, Any] = {"reasoners": ["q"], "samples": 12, "temperature": 1.0, "seed": 0, **settings}
    questions = {"validation": loop.data.validation[:3], "test": loop.tests["test"][:2]}
    before = {name: weight.detach().clone() for name, weight in lm.parameters("p").items()}
    found = sample(loop, questions, **chosen)
    with torch.no_grad():  # p is reset in the end
        for name, weight in lm.parameters("p").items():
            weight.copy_(before[name])
    lm.copy_adapter("p", "p")  # its merged copy is out of date
    return loop, found


def rationale_of(loop: Method, found: Json, question: Json, leaf: int) -> Rationale:
    """A chain as the JSON has it, for an independent scoring."""
    nodes, path = question["nodes"], []
    while leaf > 0:
        path.append(leaf)
        leaf = nodes["parent"][leaf]
    path.reverse()
    pieces = loop.test_rules.codec.pieces
    return Rationale(
        tokens=tuple(pieces.index(found["tokens"][nodes["token"][node]]) for node in path),
        policy_mask=tuple(nodes["log_q"][node] is not None for node in path),
        states=tuple(nodes["log_reward"][node] is not None for node in [0, *path]),
        text="".join(found["tokens"][nodes["token"][node]] for node in path),
    )


@pytest.mark.parametrize("q_sees", ["question", "question-and-answer"])
def test_figures_are_those_of_the_scores_and_of_the_reward(lm: LanguageModel, q_sees: Any) -> None:
    loop, found = made(lm, dataclasses.replace(CONFIG, q_sees=q_sees))
    assert found["sees_answer"] == (q_sees == "question-and-answer")
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    examples = {e.question: e for e in (*loop.data.validation, *loop.tests["test"])}
    for question in found["questions"]:
        nodes = question["nodes"]
        query = loop.query(examples[question["question"]])
        assert question["answer"] == query.example.answer
        for chain in question["chains"]:
            z = dataclasses.replace(rationale_of(loop, found, question, chain["leaf"]), truncated=chain["cut"])
            path = path_to(nodes, chain["leaf"])
            prompts: dict[Reasoner, Sequence[int]] = {"q": query.policy_prompt, "p": query.model_prompt}
            for name, prompt in prompts.items():
                with torch.no_grad():
                    scores = score(lm, lm.merged(name), [Group(prompt, [z])], loop.rules.codec)
                own = [nodes[f"log_{name}"][node] or 0.0 for node in path[1:]]
                assert own == pytest.approx(scores.log_pf[0].tolist(), abs=2e-3)
                stops = [nodes[f"stop_{name}"][node] for node in path]
                wanted = [
                    stop if state and not (z.truncated and i == len(z)) else None
                    for i, (stop, state) in enumerate(zip(scores.log_pterm[0].tolist(), z.states, strict=True))
                ]
                assert stops == [None if stop is None else pytest.approx(stop, abs=2e-3) for stop in wanted]
            (reward,) = prefix_log_rewards(lm, [Group(query.model_prompt, [z], query.answer)], loop.rules.codec)
            rewards = [-float("inf") if nodes["log_reward"][n] is None else nodes["log_reward"][n] for n in path]
            assert rewards == pytest.approx(reward[0].tolist(), abs=2e-3)


def path_to(nodes: Json, leaf: int) -> list[int]:
    path = [leaf]
    while path[-1]:
        path.append(nodes["parent"][path[-1]])
    return path[::-1]


def test_every_sample_is_counted_and_what_chains_share_is_stored_once(lm: LanguageModel) -> None:
    _, found = made(lm, samples=40)
    assert found["n"] == 40
    for question in found["questions"]:
        nodes, chains = question["nodes"], question["chains"]
        assert sum(chain["count"] for chain in chains) == 40
        assert len({chain["leaf"] for chain in chains}) == len(chains)
        assert nodes["parent"][0] == -1
        assert all(parent < node for node, parent in enumerate(nodes["parent"]))
        moves = list(zip(nodes["parent"], nodes["token"], strict=True))
        assert len(set(moves)) == len(moves)
        used = {node for chain in chains for node in path_to(nodes, chain["leaf"])}
        assert used == set(range(len(moves)))
        for call in question["calls"]:
            assert call["tool"] == "count"
            following = [n for n, parent in enumerate(nodes["parent"]) if parent == call["node"]]
            assert all(nodes["log_q"][n] is None for n in following), "a tool's result follows its call"


def test_answers_are_graded(lm: LanguageModel) -> None:
    loop, found = made(lm)
    for question in found["questions"]:
        example = loop.task.example(question["question"], question["answer"])
        for chain in question["chains"]:
            assert chain["right"] == loop.task.grade(example, chain["answer"])


def test_before_and_after(lm: LanguageModel) -> None:
    _, found = made(lm)
    questions = [(item["split"], item["question"]) for item in found["before_after"]]
    assert [split for split, _ in questions] == ["validation"] * GREEDY_QUESTIONS + ["test"] * GREEDY_QUESTIONS
    assert all(list(item["by"]) == ["base", "p", "q"] for item in found["before_after"])
    texts = [[outcome["text"] for outcome in item["by"].values()] for item in found["before_after"]]
    assert any(base != trained for base, trained, _ in texts)


def test_the_seed_decides(lm: LanguageModel) -> None:
    _, first = made(lm)
    _, again = made(lm)
    _, other = made(lm, seed=1)
    assert first == again
    assert first != other


def test_rationales_of_p(lm: LanguageModel) -> None:
    _, found = made(lm, reasoners=["p"])
    assert found["reasoner"] == "p" and found["beside"] == []
    for question in found["questions"]:
        assert question["nodes"]["log_q"] == question["nodes"]["log_p"]


def test_rationales_of_both_stand_beside_each_other(lm: LanguageModel) -> None:
    _, both = made(lm, reasoners=["p", "q"])
    _, p = made(lm, reasoners=["p"])
    _, q = made(lm)
    (beside,) = both["beside"]
    assert both["reasoner"] == "p" and both["questions"] == p["questions"]
    assert beside == {name: value for name, value in q.items() if name not in ("beside", "before_after")}
    assert len(both["before_after"]) == len(q["before_after"])


def test_a_question_has_the_estimate_that_a_sample_of_it_has(lm: LanguageModel) -> None:
    """One value everywhere, with its error, and none where the samples are of another temperature."""
    _, found = made(lm)
    for question in found["questions"]:
        nodes = question["nodes"]
        weights = []
        for chain in question["chains"]:
            path = path_to(nodes, chain["leaf"])
            log_q = sum(nodes["log_q"][node] or 0.0 for node in path) + (nodes["stop_q"][chain["leaf"]] or 0.0)
            weights += [math.exp(nodes["log_reward"][chain["leaf"]] - log_q)] * chain["count"]
        assert question["bound"] == pytest.approx(math.log(sum(weights) / 12), abs=0.02)
        assert question["ess"] == pytest.approx(sum(weights) ** 2 / sum(w * w for w in weights) / 12, rel=0.05)
        assert question["bound_error"] == pytest.approx(bound_error(question["ess"], 12), rel=1e-3)
    _, warm = made(lm, temperature=2.0)
    assert {question["bound"] for question in warm["questions"]} == {None}
