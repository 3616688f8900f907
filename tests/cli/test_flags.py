"""A word of the command line that is no option, or one too many, is told in a line with a remedy."""

from __future__ import annotations

from dataclasses import fields

import pytest

from latent_cot.cli.fit import FitOptions
from latent_cot.cli.flags import flags_of
from latent_cot.config.schema import EStepConfig
from tests.cli.conftest import Cli


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["em", "--e-step.step", "5"], "unknown option '--e-step.step'. Did you mean '--e-step.steps'?"),
        (["em", "--e_step.step=5"], "unknown option '--e-step.step'. Did you mean '--e-step.steps'?"),
        (["em", "--e-step.lr", "1"], "Did you mean '--e-step.learning-rate'?"),
        (["em", "--lr=1"], "'--e-step.learning-rate' or '--init-step.learning-rate' or '--m-step.learning-rate'?"),
        (["em", "--estep.steps", "1"], "Did you mean '--e-step.steps'?"),
        (["em", "--epochs", "3"], "Did you mean '--rounds'?"),
        (["em", "--no-safegard"], "Did you mean '--no-safeguard'?"),
        (["em", "--e-step.colour", "red"], "Known: --e-step.steps, "),
        (["fit", "--colour", "red"], "latent-cot fit --help-all shows what there is"),
        (["eval", ".", "--colour", "red"], "latent-cot eval --help shows what there is"),
        (["plan", "--gpuz", "2"], "Did you mean '--gpu'?"),
        (["sample", ".", "--question", "1", "--anser", "3"], "Did you mean '--answer'?"),
        (["em", "--lora.target-modules", "q_proj", "k", "v"], "write --lora.target-modules q_proj,k,v"),
        (["compare", "--methods=em", "sft", "--seeds", "0"], "write --methods em,sft"),
        (["compare", "--seeds", "0", "1"], "write --seeds 0,1"),
        (["eval", ".", "--split", "a", "b", "c"], "write --split a --split b --split c"),
        (["em", "--e-step.temperatures", "1", "2", "3"], "takes 2 words, and '3' is one more; leave it out"),
        (["compare", "--set", "rounds=3", "shots=1"], "write --set rounds=3 --set shots=1"),
        (["em", "--e-step.temperatures=0.5", "1"], "takes several words; write --e-step.temperatures 0.5 1"),
        (["em", "--rollout.tools=a", "b", "c"], "takes several words; write --rollout.tools a b c"),
        (["compare", "--set", "rounds", "3"], "--set takes 1 word, and '3' is one more; write --set rounds=3"),
        (["sample", ".", "--question", "6", "-", "0"], "put a text with spaces into quotes"),
        (["tasks", "mine.py"], "takes no 'mine.py'. Rows of questions"),
        (["tools", "./mine.py"], "a Python file: --rollout.tools ./my_tool.py"),
        (["em", "--data.options", "digits=2"], "--data.options NAME VALUE: look at 'digits=2'"),
        (["em", "--data.options", "digits", "2", "operands"], "--data.options NAME VALUE: look at 'operands'"),
        (["em", "--json", "mine"], "'mine' belongs to no option"),
    ],
)
def test_what_is_said(cli: Cli, argv: list[str], said: str) -> None:
    called = cli(*argv)
    assert (called.status, called.out) == (2, "")
    assert called.err.startswith("error: ") and called.err.count("\n") == 1
    assert said in called.err


@pytest.mark.parametrize(
    "flags",
    [
        ["--rollout.tools", "calculator", "calculator", "--e-step.temperatures", "0.5", "2"],
        ["--no-safeguard", "--e_step.huber-delta=None", "--data.options", "digits", "2", "form", "words"],
        ["--track", "wandb", "--track=mlflow", "--seed", "3"],
    ],
)
def test_what_there_is_is_left_to_the_parser(cli: Cli, flags: list[str]) -> None:
    called = cli("em", "--print-config", *flags)
    assert called.status == 0, called.err


def test_help_comes_first(cli: Cli) -> None:
    assert cli("em", "--colour", "--help").status == 0


def test_all_settings_are_flags() -> None:
    names = {name for flag in flags_of(FitOptions) for name in flag.names}
    assert {f"--e-step.{item.name.replace('_', '-')}" for item in fields(EStepConfig)} <= names
    assert {"--resume", "--task", "--safeguard", "--no-safeguard"} <= names and "--no-resume" not in names
