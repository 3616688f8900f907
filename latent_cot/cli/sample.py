"""`latent-cot sample`: rationales for one question, and what the reasoner and the reward make of thloop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from latent_cot import tasks
from latent_cot.cli import reasoners
from latent_cot.cli.options import Switch, parse, print_json, progress_console
from latent_cot.display import RATIONALE_HEADING, marked, printable
from latent_cot.errors import UsageError
from latent_cot.types import Example, Rationale, TaskData

if TYPE_CHECKING:
    from latent_cot.lm import Adapter
    from latent_cot.loop import Loop


@dataclass(frozen=True)
class SampleOptions:
    """Sample rationales for a question; the best by log-reward first."""

    target: tyro.conf.Positional[str]
    """A run folder, or a base model (hub name or folder)."""
    question: str
    """The question, e.g. `"6 - 0 - 4 - 8"`."""
    answer: str | None = None
    """Its answer, where the task cannot work it out: for the log-reward, and for right or wrong."""
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


@dataclass(frozen=True)
class Sample:
    """A distinct rationale among those sampled."""

    rationale: Rationale
    count: int
    """How often it was sampled."""
    log_prob: float
    """log q(Z | X), or log p(Z | X), at temperature 1, the stop included; nats."""
    log_reward: float | None
    """log p(Z Y | X), nats, as the E-step computes it, but under the run's last p; None: Y is not known."""
    answer: str | None
    correct: bool | None
    """None: the right answer is not known."""

    def to_json(self) -> dict[str, Any]:
        """Without the token ids and masks, which mean nothing outside."""
        z = self.rationale
        return {
            "text": z.text,
            "n_tokens": len(z),
            "cut": z.cut,
            "calls": [asdict(call) for call in z.calls],
            "count": self.count,
            "log_prob": self.log_prob,
            "log_reward": self.log_reward,
            "answer": self.answer,
            "correct": self.correct,
        }


def run(argv: Sequence[str]) -> int:
    """The command; returns 0."""
    options = parse(SampleOptions, argv, "sample")
    if options.n < 1:
        raise UsageError(f"-n is {options.n}; it must be at least 1")
    if not 0 <= options.temperature < float("inf"):
        raise UsageError(f"--temperature is {options.temperature}; it must be a finite number, not negative")
    source = reasoners.find(options.target, options.task, trusted=options.trust_code)
    if options.reasoner == "q" and source.folder is None:
        source.require("q")  # unlike a test, a sample may come from a q that sees the answer
    reasoner: Adapter = options.reasoner or source.reasoners[0]

    task = tasks.load(source.config.task)
    example = task.example(options.question, options.answer)
    loop = reasoners.load(source, _shown_data(source), Console(stderr=True))
    samples = _sample(loop, reasoner, example, options)

    if options.json:
        head = {**source.describe(), "reasoner": reasoner, "question": example.question}
        settings = {"n": options.n, "temperature": options.temperature, "seed": options.seed}
        print_json({**head, "gold": example.answer, **settings, "samples": [s.to_json() for s in samples]})
        return 0
    console = progress_console(to_stderr=False)
    heading = f"{example.question}: {options.n} from {reasoner}, {len(samples)} of them distinct, the best first"
    console.print(Text(printable(heading)), soft_wrap=True)
    console.print(_table(samples, reasoner, loop))
    note = f"log {reasoner} = log {reasoner}(Z | X), log R = log p(Z Y | X), in nats"
    console.print(Text(note, style="dim"), soft_wrap=True)
    return 0


def _shown_data(source: reasoners.Source) -> TaskData:
    """The demonstrations, if p's prompt may show them; loading them is a waste otherwise."""
    from latent_cot.session import data_request

    if source.folder is None or (source.config.init != "prompt" and source.config.method != "few-shot"):
        return TaskData((), (), ())
    return tasks.load(source.config.task).load(data_request(source.config))


def _sample(loop: Loop, reasoner: Adapter, example: Example, options: SampleOptions) -> list[Sample]:
    import torch

    from latent_cot.reward import prefix_log_rewards
    from latent_cot.rollout import count_distinct, rollout
    from latent_cot.scoring import Group, score

    codec = loop.test_rules.codec
    query = loop.query(example)
    prompt = query.policy_prompt if reasoner == "q" else query.model_prompt
    model = loop.lm.dense(reasoner)
    (sampled,) = rollout(
        loop.lm,
        model,
        [prompt],
        loop.test_rules,
        n=options.n,
        temperature=options.temperature,
        generator=torch.Generator().manual_seed(options.seed),
    )
    counts = count_distinct(sampled)
    distinct = list(counts)
    with torch.no_grad():
        scores = score(loop.lm, model, [Group(prompt, distinct)], codec)
    ends = torch.tensor([len(rationale) for rationale in distinct], device=scores.log_pterm.device)
    log_probs = (scores.log_pf.sum(1) + scores.log_pterm.gather(1, ends[:, None])[:, 0]).tolist()
    rewards: list[float | None] = [None] * len(distinct)
    if example.y is not None:
        (table,) = prefix_log_rewards(
            loop.lm,
            loop.lm.dense("p"),
            [Group(query.model_prompt, distinct, query.answer)],
            codec,
            tool_tokens=loop.config.e_step.score_tool_tokens,
        )
        rewards = table.gather(1, ends.cpu()[:, None])[:, 0].tolist()

    samples = [
        Sample(
            rationale,
            counts[rationale],
            log_prob,
            reward,
            answer := loop.task.answer(rationale),
            None if example.answer is None else loop.task.grade(example, answer),
        )
        for rationale, log_prob, reward in zip(distinct, log_probs, rewards, strict=True)
    ]
    return sorted(samples, key=lambda s: (s.log_reward or 0.0, s.log_prob), reverse=True)


def _table(samples: Sequence[Sample], reasoner: str, loop: Loop) -> Table:
    table = Table()
    table.add_column(RATIONALE_HEADING, overflow="fold")
    table.add_column("answer", overflow="fold")
    table.add_column("right")
    table.add_column("×", justify="right")
    table.add_column(f"log {reasoner}", justify="right")
    table.add_column("log R", justify="right")
    for sample in samples:
        table.add_row(
            marked(asdict(sample.rationale), loop.test_rules.codec.decode),
            Text("-" if sample.answer is None else printable(sample.answer)),
            {True: "yes", False: "no", None: "?"}[sample.correct],
            str(sample.count),
            f"{sample.log_prob:.1f}",
            "-" if sample.log_reward is None else f"{sample.log_reward:.1f}",
        )
    return table
