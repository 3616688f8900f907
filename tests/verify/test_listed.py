"""q against the exact posterior of a real model's questions, where their rationales can be listed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import yaml

from latent_cot import configure
from latent_cot.cli import main
from latent_cot.run.session import open_session
from latent_cot.tasks.word_problems import TASK, working
from latent_cot.verify.real_model import CheckedEStep, figures
from tests.oracles import scoring


def test_figures_by_hand() -> None:
    """p(Z Y | X) = 1/4, 1/12, 0; q = 1/2, 1/4, 0 and 1/4 on what is not listed."""
    log_reward = torch.tensor([1 / 4, 1 / 12, 1e-300], dtype=torch.float64).log()
    log_q = torch.tensor([1 / 2, 1 / 4, 1e-300], dtype=torch.float64).log()
    found = figures(log_reward, log_q, torch.tensor([True, False, False]))
    assert found.log_z == pytest.approx(math.log(1 / 3))
    assert (found.posterior_right, found.q_right, found.mass) == pytest.approx((3 / 4, 1 / 2, 3 / 4))
    assert found.kl == pytest.approx(2 / 3 * math.log(2 / 3 / (3 / 4)) + 1 / 3 * math.log(1 / 3 / (1 / 4)))
    assert found.total_variation == pytest.approx((1 / 4 + 0 + 1 / 4) / 2)


def test_what_is_listed() -> None:
    texts = TASK.texts(TASK.example("Ann has 7 pens and 2 pens. How many?", "9")) or []
    assert len(set(texts)) == len(texts) == 16 * (1 + 36) - 6  # 7 - 7 and 2 - 2: three numbers divided by 0
    assert {" 7 + 2 =", " 7 - 2 =, 5 * 2 =", " 2 / 7 =, 2/7 * 7 ="} <= set(texts)
    assert TASK.texts(TASK.example("7 pens, 2 pens, 3 pens?", "12")) is None
    assert TASK.texts(TASK.example("7 pens?", "7")) is None
    words = TASK.configured({"form": "words"})
    assert words.texts(words.example("7 pens and 2 pens?", "9")) is None
    assert working.written_numbers("$1,200 and 3.50, or 1200") == ["1200", "3.5"]
    assert " 0 - 0 =" in working.equations(["0", "2"])  # what divides by zero is none


def test_an_e_step_is_compared_with_the_sums(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {
        "model": str(tiny_model_dir),
        "precision": "fp32",
        "data": {"demonstrations": 4, "unlabelled": 8, "validation": 3},
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    command = ["verify", "--task", "word_problems", "--preset", "smoke", "--config", str(tmp_path / "c.yaml"), "--json"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["compare_before"]) == len(found["compare"]) == len(found["questions"]) >= 1
    for of_one in (*found["compare_before"], *found["compare"]):
        assert of_one["kl"] >= 0 and 0 <= of_one["total_variation"] <= 1 and 0 <= of_one["q_right"] <= of_one["mass"]
    moved = [a["kl"] != b["kl"] for a, b in zip(found["compare_before"], found["compare"], strict=True)]
    assert all(moved)
    assert [one["log_z"] for one in found["compare_before"]] == [one["log_z"] for one in found["compare"]]


@pytest.mark.parametrize("flags", [["--preset", "smoke"], ["--task", "word_problems", "--quick"]])
def test_flags_that_would_be_ignored_are_refused(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", *flags]) == 2
    assert "leave" in capsys.readouterr().err


def test_an_engine_would_not_be_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text("rollout: {engine: 'http://127.0.0.1:1'}\ne_step: {max_staleness: 4}\n")
    assert main(["verify", "--task", "word_problems", "--preset", "smoke", "--config", str(tmp_path / "c.yaml")]) == 2
    assert "the check samples by transformers; leave it out" in capsys.readouterr().err


def test_the_sums_are_those_of_the_oracle(tiny_model_dir: Path) -> None:
    data = {"demonstrations": 4, "unlabelled": 8, "validation": 3}
    loop = open_session(
        configure(
            "smoke", task="word_problems", model=str(tiny_model_dir), precision="fp32", data=data, max_batch_tokens=200
        )
    )
    checked = CheckedEStep(loop.config, loop.lm, loop.task, loop.data, {}, loop.rules, loop.test_rules)
    example, rationales = checked.chosen[0]
    checked.chosen[:] = [(example, rationales[:12])]  # more than one part
    (found,) = checked._compared()
    query, codec, lm = checked.query(example), checked.rules.codec, loop.lm
    actions = codec.actions.tolist()
    log_reward, log_q = list[float](), list[float]()
    for one in rationales[:12]:
        for model, prompt, kept in (
            (lm.merged("p"), query.model_prompt, log_reward),
            (lm.merged("q"), query.policy_prompt, log_q),
        ):
            with torch.no_grad():
                log_pf, log_pterm = scoring.log_policy(model, prompt, one, actions, codec.stop_id)
                own = float(log_pf.sum())
                if kept is log_reward:
                    kept.append(own + float(scoring.log_text(model, [*prompt, *one.tokens], query.answer)))
                else:
                    kept.append(own + float(log_pterm[-1]))
    right = torch.tensor([checked.is_correct(example, one) for one in rationales[:12]])
    expected = figures(torch.tensor(log_reward).double(), torch.tensor(log_q).double(), right)
    assert vars(found) == pytest.approx(vars(expected), abs=1e-4)
