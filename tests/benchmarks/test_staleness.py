"""The staleness benchmark: PPO's optimum is the posterior, and a file is filled in pieces. Nothing is judged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import records, staleness
from latent_cot.rationales.experience import gather
from latent_cot.rationales.reward import Reward
from latent_cot.verify import exact
from latent_cot.verify.worlds import WORLDS, Settings, build


@pytest.mark.parametrize("name", ["tool", "xy"])
def test_the_reward_of_ppo_is_the_likelihood(name: str) -> None:
    """log p(Z Y | X) − log p(Z | X) by the list: q ∝ p(Z) exp(reward), PPO's optimum, is then the posterior."""
    world = build(WORLDS[name])
    rationales, codec, p = exact.enumerate_rationales(world.rules), world.rules.codec, world.lm.merged("p")
    for query in world.queries:
        seen = gather([query], [rationales], Reward(world.lm, codec, max_tokens=1 << 16), reference=True)
        joint = exact.log_probs(p, query.model_prompt, rationales, codec, query.answer)
        prior = exact.log_probs(p, query.model_prompt, rationales, codec)
        torch.testing.assert_close(staleness.log_likelihood(seen).double(), joint - prior, atol=1e-4, rtol=0)


def test_a_file_is_filled_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(WORLDS, "xy", replace(WORLDS["xy"], steps=2))
    file = tmp_path / "s.json"
    arguments = [str(file), "--staleness", "1", "--learning-rate", "0.05", "--seeds"]
    staleness.main([*arguments, "1"])
    staleness.main([*arguments, "2"])
    runs = records.load(file)
    assert [(run["method"], run["seed"]) for run in runs] == [(m, s) for s in (0, 1) for m in staleness.METHODS]
    kls = {(run["method"], run["seed"]): run["kl"] for run in runs}
    assert len(set(kls.values())) == 6, "each method and each seed is another run"
    assert "| xy | ppo, weighted | 0.05 | 1 | 2 |" in capsys.readouterr().out


def test_a_fresh_sampler_needs_no_weights() -> None:
    weights = []
    for weighted in (False, True):
        world = build(WORLDS["tool"])
        assert staleness.train_ppo(world, 2, Settings(samples=8), staleness=0, weighted=weighted) == 0
        weights.append(torch.cat([w.detach().flatten() for w in world.lm.parameters("q").values()]))
    torch.testing.assert_close(*weights, rtol=0, atol=1e-5)
