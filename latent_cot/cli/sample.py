"""`latent-cot sample`: rationales for one question, and what the reasoner and the reward make of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Literal

import tyro

from latent_cot.api.run import check_sampling, load
from latent_cot.cli.options import Switch, announce_loading, parse, print_json, progress_console
from latent_cot.report.terminal import say
from latent_cot.types import Reasoner


@dataclass(frozen=True)
class SampleOptions:
    """Sample rationales for a question; the best by log-reward first."""

    target: tyro.conf.Positional[str]
    """A run folder, or a base model (hub name or folder)."""
    question: str
    """The question, e.g. `"6 - 0 - 4 - 8"`."""
    answer: str | None = None
    """Its answer, where the task cannot work it out: for the log-reward, for right or wrong, and for a q that sees
    it."""
    task: str | None = None
    """A task's name or file. Default: the run's; `arithmetic` for a base model."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 8
    """How many to sample."""
    reasoner: Literal["q", "p"] | None = None
    """The sampler q or the model p. Default: q if the run has one that sees the question only."""
    temperature: float = 1.0
    """Sampling temperature; 0 is greedy. The log-probability shown is that at temperature 1."""
    seed: int = 0
    """Seeds the sampling."""
    trust_code: Switch = False
    """Run the Python files that the run's configuration names (a task, a tool, a model's)."""
    json: Switch = False
    """Print JSON to standard output."""


def run(argv: Sequence[str]) -> int:
    """The command; returns 0."""
    options = parse(SampleOptions, argv, "sample")
    check_sampling("--", n=options.n, temperature=options.temperature, seed=options.seed)
    asked = load(options.target, task=options.task, trust_code=options.trust_code)
    console = progress_console(to_stderr=options.json)
    announce_loading(console, asked)
    reasoner: Reasoner = options.reasoner or asked.reasoners[0]
    found = asked.sample(
        options.question,
        options.n,
        reasoner=reasoner,
        answer=options.answer,
        temperature=options.temperature,
        seed=options.seed,
    )
    writer = found.reasoner or reasoner
    best = sorted(found, key=lambda s: (s.log_reward or 0.0, s.log_prob(writer)), reverse=True)
    if options.json:
        from latent_cot.api.rationales import row

        who = {"reasoner": reasoner, "writer": writer}
        head = {**asked.source.describe(), "notes": asked.notes, **who, "question": found.question}
        settings = {"n": options.n, "temperature": options.temperature, "seed": options.seed}
        samples = [
            {**row(z), "log_prob": z.log_prob(writer), "calls": [asdict(call) for call in z.rationale.calls]}
            for z in best
        ]
        weights = {"ess": found.ess, "bound": found.bound, "bound_error": found.bound_error}
        print_json({**head, "gold": found.example.answer, **settings, **weights, "samples": samples})
        return 0
    say(console, found.title)
    replace(found, items=tuple(best)).table().show(console)
    reward = asked.in_memory().reward.name
    weight = f"its count × R / {writer}, as a share of all"
    say(console, f"log q, log p: of Z given X; log R: {reward}; in nats; weight: {weight}", style="dim")
    return 0
