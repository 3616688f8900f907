"""With SmolLM2-135M itself: `python -m pytest -m real_model`. Needs the model in the cache, or a network."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Literal

import pytest
import torch

from latent_cot.cli import main
from latent_cot.config.schema import RunConfig
from latent_cot.model.architecture import Trees
from latent_cot.rationales.chain import encode_rationale
from latent_cot.rationales.scoring import Group, Scores, score
from latent_cot.run.session import Session, open_session

pytestmark = pytest.mark.real_model


def load(precision: Literal["fp32", "bf16"]) -> Session:
    config = dataclasses.replace(RunConfig(), precision=precision)
    return open_session(config)


def demonstrations(session: Session) -> list[Group]:
    codec = session.rules.codec
    return [
        Group(codec.encode_prompt(d.x), [encode_rationale(d.z or "", session.rules)], codec.encode(d.y or ""))
        for d in session.data.demonstrations[:8]
    ]


def scores(session: Session, groups: list[Group], *, trees: Trees) -> Scores:
    session.lm.capabilities = dataclasses.replace(session.lm.capabilities, trees=trees)
    with torch.no_grad():
        return score(session.lm, session.lm.merged("p"), groups, session.rules.codec, answers_at="states")


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 1.0)])
def test_a_token_tree_scores_as_its_paths_do(precision: Literal["fp32", "bf16"], tolerance: float) -> None:
    """In nats, of sums over a whole answer or rationale; bf16 has three digits in each of 30 layers."""
    session = load(precision)
    assert session.lm.capabilities.linear_head and session.lm.capabilities.trees == "flat"
    groups = demonstrations(session)
    tree = scores(session, groups, trees="flat")
    paths = scores(session, groups, trees="paths")
    assert (tree.log_pf.sum(1) - paths.log_pf.sum(1)).abs().max() < tolerance
    assert (tree.log_y - paths.log_y).abs().max() < tolerance


def test_demonstrations_need_no_retokenising() -> None:
    """What the sampler would write is what the tokenizer makes of the text."""
    session = load("bf16")
    codec = session.rules.codec
    for d in session.data.demonstrations:
        rationale = encode_rationale(d.z or "", session.rules)
        assert codec.decode(rationale.tokens) == rationale.text
        assert codec.encode(rationale.text) == list(rationale.tokens)


def test_a_short_run_learns_from_its_demonstrations(tmp_path: Path) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text(
        "rounds: 0\ninit_step: {steps: 40, batch_size: 8}\n"
        "data: {demonstrations: 50, unlabelled: 8}\n"
        "evaluation: {splits: [3-operands], size: 60, max_tokens: 60, batch_size: 60}\n"
    )
    folder = tmp_path / "run"
    assert main(["em", "--preset", "smoke", "--config", str(settings), "--output-dir", str(folder)]) == 0
    results = json.loads((folder / "results.json").read_text())
    assert results["accuracy"]["0"]["p"]["3-operands"]["accuracy"] > 0.8
