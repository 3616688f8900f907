"""What `test_processes.py` runs, in one process and in two: `python -m tests.shared_work MODEL OUTPUT_FOLDER`.

Each process writes what it has found, which has to be the same in all.
"""

from __future__ import annotations

import dataclasses
import json
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from latent_cot.config.schema import MethodName, SFTConfig
from latent_cot.methods import e_step, forward_kl_steps, likelihood, policy_gradient
from latent_cot.model.lm import LanguageModel
from latent_cot.model.optimise import AdapterOptimiser, Schedule
from latent_cot.model.text import TextCodec
from latent_cot.rationales import experience
from latent_cot.rationales.batch import score_sampled
from latent_cot.rationales.chain import ChainRules
from latent_cot.rationales.reward import Reward
from latent_cot.rationales.rollout import rollout
from latent_cot.rationales.scoring import Group
from latent_cot.types import Example
from tests.loops import CONFIG, make, of_method, outcome
from tests.methods.test_e_step import queries
from tests.worlds import FakeTool, ToyTask, language_model, random_chain

AGAIN = dataclasses.replace(CONFIG.e_step, updates=3)
METHODS: dict[MethodName, dict[str, Any]] = {
    "em": {"e_step": AGAIN},
    "ppo": {},
    "forward-kl": {"e_step": AGAIN},
    "sft": {"sft": SFTConfig(check_every=1)},
    "rejection": {},
    "grpo": {"policy_gradient": dataclasses.replace(CONFIG.policy_gradient, reward="correct")},
}


class Moody(ToyTask):
    """Its judge says something else whenever it is asked, and in each process; of a tiny model's chains half are right,
    else it would learn nothing again."""

    def __init__(self, seed: int) -> None:
        self.judge = random.Random(seed)

    def grade(self, example: Example, answer: str | None) -> bool:
        return self.judge.random() < 0.5


def gradients(lm: LanguageModel, rules: ChainRules) -> dict[str, Any]:
    """Rewards of given chains, greedy chains, and what an update of each kind makes of them. A single process has the
    same."""
    found: dict[str, Any] = {}
    asked = queries(5)  # an odd number: the shares differ
    prompts = [query.policy_prompt for query in asked]
    greedy = rollout(lm, "p", prompts, rules, n=2, temperature=0.0)
    found["greedy"] = [[chain.tokens for chain in of_one] for of_one in greedy]
    rng = random.Random(0)
    sampled = [[random_chain(rules, rng, 5) for _ in range(4)] for _ in asked]
    reward = Reward(lm, rules.codec, max_tokens=200)
    groups = [
        Group(query.model_prompt, list(Counter(z)), query.answer) for query, z in zip(asked, sampled, strict=True)
    ]
    batches = score_sampled(asked, sampled, reward)
    found["rewards"] = [row for batch in batches for row in batch.log_reward.nan_to_num(neginf=-1e6).tolist()]

    def optimiser(adapter: Any, **options: Any) -> AdapterOptimiser:
        schedule = Schedule(1e-2, 10, 0, "constant")
        return AdapterOptimiser(lm.parameters(adapter), schedule, 1.0, processes=lm.processes, **options)

    log_z = [torch.nn.Parameter(torch.zeros(())) for _ in [*asked, None]]  # the last one's question is not asked
    info = e_step.balance_step(
        lm,
        batches,
        rules,
        optimiser("q", log_z=log_z),
        0,
        objective="tb",
        reward_temperature=1.0,
        reward_floor=None,
        huber_delta=None,
        max_tokens=100,
        log_z=log_z[:-1],
    )
    found["e_step"] = [info.loss, info.variance, info.log_z, info.gradient_norm, *(z.item() for z in log_z)]
    weights = [[0.1 * (g + 1) * (k + 1) for k in range(len(group.rationales))] for g, group in enumerate(groups)]
    learned = likelihood.likelihood_step(lm, "p", groups, rules, optimiser("p"), 0, max_tokens=100, weights=weights)
    found["m_step"] = [learned.loss, learned.gradient_norm]
    single = likelihood.likelihood_step(lm, "p", groups[:1], rules, optimiser("p"), 0, max_tokens=100)  # an idle one
    found["one question"] = [
        single.loss,
        single.gradient_norm,
        *reward.of_prefixes([asked[0].example], groups[:1])[0][0].nan_to_num(neginf=-1e6).tolist(),
    ]
    seen = experience.gather(asked, sampled, reward, reference=True)
    with lm.trainable("q") as model:
        old = experience.action_log_probs(lm, model, seen, rules.codec, max_tokens=100)
    policy = policy_gradient.policy_gradient_step(
        lm, seen, old - 0.1, seen.mask * 0.5, rules, optimiser("q"), 0, epochs=2, kl=0.1, max_tokens=100
    )
    found["policy"] = [policy.loss, policy.clipped, policy.gradient_norm]
    weight, importance = experience.weigh(lm, seen, rules.codec, max_tokens=100)
    own = [t.policy_group for t in seen.trajectories]
    samples = []
    for g, group in enumerate(own):
        rows = seen.group == g
        share = seen.count[rows] / seen.count[rows].sum()
        samples.append(forward_kl_steps.Samples(list(group.rationales), weight[rows], share, share.log(), 0.5))
    kl = forward_kl_steps.forward_kl_step(lm, own, samples, rules, optimiser("q"), 0, divisor=len(own), max_tokens=100)
    found["forward-kl"] = [kl.loss, kl.gradient_norm, *importance.ess.tolist(), *importance.bound.tolist()]
    for adapter in ("p", "q"):
        found[adapter] = [weight.flatten().tolist() for weight in lm.parameters(adapter).values()]
    return found


def loops(lm: LanguageModel) -> dict[str, Any]:
    """What is left of whole runs, which sample, so that another number of processes finds something else."""
    found: dict[str, Any] = {}
    for method in METHODS:
        config = dataclasses.replace(of_method(method), rounds=1, **METHODS[method])
        loop = make(lm, config, Moody(lm.processes.index))
        learned_again = sum("forward_kl_loss" in info for _, info in loop.run())
        found[method] = {**outcome(loop), "learned_again": learned_again}
    return found


def main(model: str, folder: str) -> None:
    lm = language_model(Path(model))
    rules = ChainRules(TextCodec(lm.tokenizer, allowed_characters="1,="), [FakeTool()], max_tokens=5)
    found = {"count": lm.processes.count, "gradients": gradients(lm, rules)}
    if lm.processes.count > 1:
        found["loops"] = loops(lm)
    (Path(folder) / f"{lm.processes.index}.json").write_text(json.dumps(found))
    lm.accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
