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


def test_a_token_tree_scores_as_its_paths_do() -> None:
    """log p of each token of a rationale, and of whole answers, in nats.

    In float32 they differ by the order of additions. In bf16 logits of 16 to 64, as these are, lie on a grid of 0.125
    or 0.25, so that a token's log-probability is off by some 0.04 nats whichever way it is computed: the tree must be
    no further from float32 than its paths are.
    """
    exact: tuple[torch.Tensor, torch.Tensor] | None = None
    precisions: tuple[Literal["fp32", "bf16"], ...] = ("fp32", "bf16")
    for precision in precisions:
        session = load(precision)
        assert session.lm.capabilities.linear_head and session.lm.capabilities.trees == "flat"
        groups = demonstrations(session)
        tree, paths = (values(scores(session, groups, trees=trees)) for trees in ("flat", "paths"))
        if exact is None:
            exact = tree
            assert max(map(largest, tree, paths)) < 1e-4
            continue
        for of_tree, of_paths, right in zip(tree, paths, exact, strict=True):
            assert largest(of_tree, of_paths) < 0.6
            off = {
                name: float((one - right).square().mean().sqrt())
                for name, one in (("tree", of_tree), ("paths", of_paths))
            }
            assert off["paths"] < 0.25
            assert off["tree"] < 1.5 * off["paths"]


def values(found: Scores) -> tuple[torch.Tensor, torch.Tensor]:
    """log p of each token of the rationales, and of Y at each state."""
    return found.log_pf.flatten(), found.log_y[found.states]


def largest(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


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
        "rounds: 0\ninit_step: {steps: 120, batch_size: 8}\n"
        "data: {demonstrations: 50, unlabelled: 8}\n"
        "evaluation: {splits: [3-operands], size: 60, max_tokens: 60}\n"
    )
    folder = tmp_path / "run"
    assert main(["em", "--preset", "smoke", "--config", str(settings), "--output-dir", str(folder)]) == 0
    results = json.loads((folder / "results.json").read_text())
    assert results["accuracy"]["0"]["p"]["3-operands"]["accuracy"] > 0.8
