"""How far from the exact posterior PPO and SubTB end where the sampler is K optimiser steps behind.

    python -m benchmarks.staleness docs/results/staleness.json --seeds 5

Both are trained in a world of `latent-cot verify`, with as many rationales in as many steps, all of them sampled by q
as it was. With the reward log p(Y | X Z) and a KL of weight 1 PPO maximises

    E_q[log p(Y | X Z)] − KL(q(Z) ‖ p(Z | X)) = log p(Y | X) − KL(q(Z) ‖ p(Z | X, Y))

so that its optimum is SubTB's, the posterior, and both distances from it are sums over all rationales. Runs that the
file has already are not done again: it can be filled in pieces.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import records
from latent_cot.methods.policy_gradient import policy_gradient_step, ppo_advantages
from latent_cot.model.lm import LanguageModel
from latent_cot.model.optimise import AdapterOptimiser, Schedule
from latent_cot.model.text import TextCodec
from latent_cot.rationales.experience import Experience, action_log_probs, gather
from latent_cot.rationales.reward import Reward
from latent_cot.rationales.rollout import rollout
from latent_cot.verify import exact
from latent_cot.verify.run import train
from latent_cot.verify.staleness import LaggingSampler
from latent_cot.verify.worlds import WORLDS, Settings, World, build

METHODS = ("pooled-subtb", "ppo", "ppo, weighted")


def log_likelihood(seen: Experience) -> torch.Tensor:
    """(B,) log p(Y | X Z), nats: the reward of the E-step less log p(Z | X)."""
    return seen.log_reward - torch.where(seen.mask, seen.reference, 0.0).sum(1)


def log_q(lm: LanguageModel, seen: Experience, codec: TextCodec, *, max_tokens: int) -> torch.Tensor:
    """(B, S) of each action, of q as it is trained, nats."""
    with lm.trainable("q") as model:
        return action_log_probs(lm, model, seen, codec, max_tokens=max_tokens)


def train_ppo(world: World, steps: int, c: Settings, *, staleness: int, weighted: bool) -> float:
    """Train q for so many optimiser steps, one a batch; returns the share of weights cut, the mean over the steps."""
    lm, rules, tokens = world.lm, world.rules, c.max_batch_tokens
    prompts = [query.policy_prompt for query in world.queries]
    reward = Reward(lm, rules.codec, max_tokens=tokens)
    generator = torch.Generator().manual_seed(c.seed)
    schedule = Schedule(c.learning_rate, steps, c.warmup, "cosine")
    optimiser = AdapterOptimiser(lm.parameters("q"), schedule, c.max_grad_norm)
    sampler, cut = LaggingSampler(lm, staleness), 0.0
    for step in range(steps):
        with sampler.sampling():
            sampled = rollout(lm, "q", prompts, rules, n=c.samples, generator=generator)
            seen = gather(world.queries, sampled, reward, reference=True)
            of_sampler = log_q(lm, seen, rules.codec, max_tokens=tokens) if weighted else None
        old = log_q(lm, seen, rules.codec, max_tokens=tokens)
        advantage = ppo_advantages(seen, old, log_likelihood(seen), kl=1.0)
        info = policy_gradient_step(
            lm,
            seen,
            old,
            advantage,
            rules,
            optimiser,
            step,
            epochs=1,
            kl=0.0,
            max_tokens=tokens,
            sampler=of_sampler,
        )
        cut += info.weight_cut / steps
    return cut


def measure(name: str, method: str, staleness: int, learning_rate: float, seed: int) -> dict[str, Any]:
    """One run: KL(q ‖ posterior), nats, and the total variation distance after it, for the worse of the questions."""
    world, steps = build(WORLDS[name]), WORLDS[name].steps
    settings = Settings(on_policy=1.0, tempered=0.0, learning_rate=learning_rate, seed=seed)
    cut = None
    if method in METHODS[1:]:
        cut = train_ppo(world, steps, settings, staleness=staleness, weighted=method == METHODS[2])
    else:
        train(world, method, steps, settings, staleness=staleness)
    codec, rationales = world.rules.codec, exact.enumerate_rationales(world.rules)
    p, q = world.lm.merged("p"), world.lm.merged("q")
    found = []
    for query in world.queries:
        log_q = exact.log_probs(q, query.policy_prompt, rationales, codec)
        found.append(exact.distance(log_q, exact.log_probs(p, query.model_prompt, rationales, codec, query.answer)))
    figures = {"kl": max(one.kl for one in found), "total_variation": max(one.total_variation for one in found)}
    asked = {"world": name, "method": method, "staleness": staleness, "learning_rate": learning_rate, "seed": seed}
    return {**asked, **figures, "weight_cut": cut}


def table(runs: Iterable[Mapping[str, Any]]) -> list[str]:
    """Rows of Markdown: means over the seeds, with 95 % t-intervals."""
    rows = [
        "| world | method | learning rate | K | seeds | KL | TV | weights cut |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    cells: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for run in runs:
        key = tuple(run[name] for name in ("world", "method", "learning_rate", "staleness"))
        cells.setdefault(key, []).append(run)
    for (world, method, rate, staleness), of_cell in sorted(cells.items()):
        figures = [records.interval([run[name] for run in of_cell], 4) for name in ("kl", "total_variation")]
        cuts = [run["weight_cut"] for run in of_cell if method == METHODS[2]]
        cut = f"{statistics.mean(cuts):.4f}" if cuts else ""
        row = [world, method, f"{rate:g}", str(staleness), str(len(of_cell)), *figures, cut]
        rows.append(f"| {' | '.join(row)} |")
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="JSON file that keeps the runs")
    parser.add_argument("--world", choices=WORLDS, default="xy")
    parser.add_argument("--method", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--staleness", type=int, nargs="+", default=[0, 8])
    parser.add_argument("--learning-rate", type=float, default=Settings.learning_rate)
    parser.add_argument("--seeds", type=int, default=5, help="how many, from 0 on")
    o = parser.parse_args(argv)
    torch.set_num_threads(1)
    runs = records.load(o.file)
    names = ("world", "method", "staleness", "learning_rate", "seed")
    done = {tuple(run[name] for name in names) for run in runs}
    for seed in range(o.seeds):
        for staleness in o.staleness:
            for method in o.method:
                asked = (o.world, method, staleness, o.learning_rate, seed)
                if tuple(map(records.rounded, asked)) not in done:
                    runs.append(measure(*asked))
                    records.save(o.file, "benchmarks.staleness", runs)
    print("\n".join(table(runs)))


if __name__ == "__main__":
    main()
