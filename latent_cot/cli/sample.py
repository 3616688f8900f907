"""`latent-cot sample`: rationales for one question, and what the reasoner and the reward make of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from latent_cot import tasks
from latent_cot.cli.options import Switch, parse, print_json, progress_console
from latent_cot.config.settings import check_temperature
from latent_cot.report.terminal import RATIONALE_HEADING, marked
from latent_cot.run import reasoners
from latent_cot.run.printable import printable
from latent_cot.types import Example, UsageError

if TYPE_CHECKING:
    from latent_cot.methods.loop import Loop
    from latent_cot.methods.scored import ScoredRationale
    from latent_cot.model.lm import Adapter


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


def run(argv: Sequence[str]) -> int:
    """The command; returns 0."""
    options = parse(SampleOptions, argv, "sample")
    if options.n < 1:
        raise UsageError(f"-n is {options.n}; it must be at least 1")
    check_temperature(options.temperature)
    source = reasoners.find(options.target, options.task, trusted=options.trust_code)
    if options.reasoner == "q" and source.folder is None:
        source.require("q")  # unlike a test, a sample may come from a q that sees the answer
    reasoner: Adapter = options.reasoner or source.reasoners[0]

    task = tasks.load(source.config.task)
    example = task.example(options.question, options.answer)
    loop = reasoners.load(source, reasoners.shown_data(source, task), Console(stderr=True))
    samples = _sample(loop, reasoner, example, options)

    if options.json:
        head = {**source.describe(), "reasoner": reasoner, "question": example.question}
        settings = {"n": options.n, "temperature": options.temperature, "seed": options.seed}
        print_json({**head, "gold": example.answer, **settings, "samples": [_to_json(s, reasoner) for s in samples]})
        return 0
    console = progress_console(to_stderr=False)
    heading = f"{example.question}: {options.n} from {reasoner}, {len(samples)} of them distinct, the best first"
    console.print(Text(printable(heading)), soft_wrap=True)
    console.print(_table(samples, reasoner, loop))
    reward = "log p(Z Y | X)" if loop.reward.task is None else "the task's own log-reward"
    note = f"log {reasoner} = log {reasoner}(Z | X), log R = {reward}, in nats"
    console.print(Text(note, style="dim"), soft_wrap=True)
    return 0


def _sample(loop: Loop, reasoner: Adapter, example: Example, options: SampleOptions) -> list[ScoredRationale]:
    from latent_cot.methods.scored import sample_rationales, score_rationales

    counts = sample_rationales(loop, example, reasoner, n=options.n, temperature=options.temperature, seed=options.seed)
    scored = score_rationales(loop, example, counts, with_q=reasoner == "q", proposal=None).rationales
    return sorted(scored, key=lambda s: (s.log_reward or 0.0, s.log_prob(reasoner)), reverse=True)


def _to_json(sample: ScoredRationale, reasoner: Adapter) -> dict[str, Any]:
    """Without the token ids and masks, which mean nothing outside."""
    z = sample.rationale
    return {
        "text": z.text,
        "n_tokens": len(z),
        "truncated": z.truncated,
        "calls": [asdict(call) for call in z.calls],
        "count": sample.count,
        "log_prob": sample.log_prob(reasoner),
        "log_reward": sample.log_reward,
        "answer": sample.answer,
        "correct": sample.correct,
    }


def _table(samples: Sequence[ScoredRationale], reasoner: Adapter, loop: Loop) -> Table:
    table = Table()
    table.add_column(RATIONALE_HEADING, overflow="fold")
    graded = not loop.task.is_measured
    if graded:
        table.add_column("answer", overflow="fold")
        table.add_column("right")
    table.add_column("×", justify="right")
    table.add_column(f"log {reasoner}", justify="right")
    table.add_column("log R", justify="right")
    for sample in samples:
        answer = "-" if sample.answer is None else printable(sample.answer)
        right = {True: "yes", False: "no", None: "?"}[sample.correct]
        table.add_row(
            marked(asdict(sample.rationale), loop.test_rules.codec.decode),
            *([Text(answer), Text(right)] if graded else []),
            str(sample.count),
            f"{sample.log_prob(reasoner):.1f}",
            "-" if sample.log_reward is None else f"{sample.log_reward:.1f}",
        )
    return table
