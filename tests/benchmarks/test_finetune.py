"""The benchmark of the M-step in its small form: what it counts, not how long it takes."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from benchmarks import finetune
from latent_cot.methods import likelihood
from latent_cot.rationales.scoring import Group
from latent_cot.types import Rationale

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


@pytest.fixture
def learned(monkeypatch: pytest.MonkeyPatch) -> list[list[Group]]:
    """The batches of our own steps."""
    batches: list[list[Group]] = []
    learn = likelihood.likelihood_step

    def spied(lm: Any, adapter: Any, groups: Any, *rest: Any, **options: Any) -> likelihood.LikelihoodInfo:
        batches.append(list(groups))
        return learn(lm, adapter, groups, *rest, **options)

    monkeypatch.setattr(likelihood, "likelihood_step", spied)
    return batches


def test_steps_are_timed_and_counted(capsys: pytest.CaptureFixture[str], learned: list[list[Group]]) -> None:
    arguments = ["--model", "tiny", "--steps", "2", "--workload", "arithmetic", "--workload", "words"]
    assert finetune.main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    for workload, batches in (("arithmetic", learned[:3]), ("words", learned[3:])):
        figures = report[workload]
        assert len(figures["seconds"]) == 2
        assert all(len(batch) == figures["rationales"] for batch in batches)
        tokens = [
            len(group.prompt) + len(z) + len(group.answer)
            for batch in batches[1:]  # the first one is not timed
            for group in batch
            for z in group.rationales
        ]
        assert figures["tokens_per_step"] == sum(tokens) / 2
        assert 0 < figures["update"]["tokens"] <= sum(tokens)
        assert 0 < figures["update"]["limit_seconds"] < figures["update"]["seconds"] < sum(figures["seconds"])
    assert len(learned) == 6


def test_what_is_learned_of_a_text() -> None:
    rationale = Rationale((7, 8, 9), (True, False, True), (True, False, True, True), "")
    group = Group([1, 2], [rationale], [0, 5])
    assert finetune._tokens(group) == [1, 2, 7, 8, 9, 0, 5]
    assert finetune._learned(group) == [0, 0, 1, 0, 1, 1, 1]


def test_beside_trl(
    capsys: pytest.CaptureFixture[str], learned: list[list[Group]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is given the same tokens, and learns the same ones."""
    trl: Any = pytest.importorskip("trl", reason="trl is not installed (pip install -e '.[bench]')")
    given: list[dict[str, torch.Tensor]] = []

    class Recorded(trl.SFTTrainer):
        def training_step(self, model: Any, inputs: Any, *rest: Any) -> Any:
            given.append({name: inputs[name].clone() for name in ("input_ids", "labels", "attention_mask")})
            return super().training_step(model, inputs, *rest)

    monkeypatch.setattr(trl, "SFTTrainer", Recorded)
    assert finetune.main(["--model", "tiny", "--steps", "1", "--sft", "--workload", "words"]) == 0
    assert "times" in capsys.readouterr().out
    assert len(given) == len(learned) == 2
    for theirs, ours in zip(given, learned, strict=True):
        for ids, labels, mask, group in zip(
            theirs["input_ids"], theirs["labels"], theirs["attention_mask"], ours, strict=True
        ):
            assert ids[mask.bool()].tolist() == finetune._tokens(group)
            assert (labels[mask.bool()] != -100).long().tolist() == finetune._learned(group)
