"""Variants, budgets and what runs add up to: everything of a comparison that needs no model."""

from __future__ import annotations

import dataclasses
import math
import re
import shlex
import statistics
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latent_cot.config.methods import METHODS, PlannedBudget
from latent_cot.config.schema import SECTIONS, RunConfig
from latent_cot.config.settings import check, differences, from_dict, load_config, parse_yaml, to_dict, with_method
from latent_cot.evaluation import intervals
from latent_cot.report.comparison import differing, paired_difference, plan, records, table
from latent_cot.report.comparison.plan import PlannedRun, Variant, command_of, configure, parse_budget, parse_setting
from latent_cot.run.paths import default_folder
from latent_cot.run.run_folder import RunFolder
from latent_cot.types import Metric, UsageError

OWN = METHODS["em"].planned(RunConfig())


def test_em_spends_what_it_says() -> None:
    assert PlannedBudget(2 * (40 * 8 * 8 + 1050), 2 * (40 * 4 + 40)) == OWN


@pytest.mark.parametrize("source", plan.shipped())
@pytest.mark.parametrize("budget", [OWN, None])
def test_shipped_variants_are_configurations(source: str, budget: PlannedBudget | None) -> None:
    for variant in plan.read_variants(source):
        config = configure(variant, 3, [], [], budget)
        check(config)
        assert (config.method, config.seed) == (variant.method, 3)
        planned = METHODS[config.method].planned(config)
        if budget is not None and planned.trajectories:
            assert 0.95 * budget.trajectories < planned.trajectories <= budget.trajectories


def test_only_the_same_run_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method that is run otherwise with the same settings, such as EM that takes nothing back, is no repetition."""
    plain = dataclasses.replace(METHODS["em"], safeguarded=False)
    monkeypatch.setattr(plan, "METHODS", {**METHODS, "em-plain": plain})
    variants = [Variant(name, name, {}) for name in ("em", "em-x", "em-plain")]
    subjectivity, arithmetic = load_config(task="subjectivity"), load_config(task="arithmetic")
    kept = plan.without_repeated(variants, lambda _: subjectivity)
    assert [one.name for one in kept] == ["em", "em-plain"]
    of_own = {"em-x": dataclasses.replace(arithmetic, q_sees="question")}
    assert len(plan.without_repeated(variants, lambda one: of_own.get(one.name, arithmetic))) == 3


def test_the_rows_of_a_fair_comparison_cost_the_same() -> None:
    """But for those of which the file says otherwise."""
    own = PlannedBudget(3610, 480)
    other = {
        **dict.fromkeys(("em", "em-x"), PlannedBudget(3610, 600)),
        "em-no-e-step": PlannedBudget(1050, 480),
        **dict.fromkeys(("rejection", "rejection-cold", "rejection-2", "rejection-4"), PlannedBudget(3584, 480)),
        "sft-260": PlannedBudget(0, 260),
        "sft-480": PlannedBudget(0, 480),
        "em-posterior": PlannedBudget(6760, 600),
        "em-posterior-2": PlannedBudget(3572, 549),
    }
    variants = plan.read_variants(str(Path(__file__).parents[2] / "docs/results/arithmetic-fair.yaml"))
    assert set(other) < {variant.name for variant in variants}
    for variant in variants:
        config = configure(variant, 3, [], [], None)
        check(config)
        assert METHODS[config.method].planned(config) == other.get(variant.name, own), variant.name


def test_what_is_shipped() -> None:
    assert {"ablations", "data-efficiency", "few-shot"} <= set(plan.shipped())


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["must be a mapping"]),
        ("a: 1", ["a: write it as"]),
        ("a: {method: sfd}", ["no method 'sfd'", "Did you mean 'sft'"]),
        ("a: {method: em, override: {}}", ["a: write it as"]),
        ("../a: {method: em}", ["../a: a variant's name"]),
        ("a: [", ["not valid YAML"]),
        ("a: {method: em, overrides: {seed: 4}}", ["a: a comparison sets seed itself; use --seeds"]),
    ],
)
def test_bad_variants(tmp_path: Path, text: str, parts: list[str]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UsageError) as refused:
        plan.read_variants(str(file))
    assert all(part in str(refused.value) for part in [str(file), *parts])


def test_no_such_variants() -> None:
    with pytest.raises(UsageError, match=r"--variants ablation: cannot be read.* Did you mean 'ablations'\?"):
        plan.read_variants("ablation")


def test_settings() -> None:
    names = ["em", "ppo"]
    assert parse_setting("ppo:policy-gradient.kl=0.1", names) == ("ppo", {"policy_gradient": {"kl": 0.1}})
    assert parse_setting("--e-step.huber-delta=None", names) == (None, {"e_step": {"huber_delta": None}})
    for nothing in ("", "null", "~"):
        assert parse_setting(f"data.train_file={nothing}", names) == (None, {"data": {"train_file": None}})
    assert parse_setting("evaluation.splits=[3-operands, a]", names)[1] == {
        "evaluation": {"splits": ["3-operands", "a"]}
    }
    for text in ("true", "####", "Q: {question} A:", " abc", ""):
        record = {"data": {"options": {"my-own": text}}}
        assert parse_setting(f"em:data.options.my-own={text}", names) == ("em", record), "text, as it stands"
    for text in ("policy_gradient.kl", "=3", "grpo:policy_gradient.kl=1"):
        with pytest.raises(UsageError, match="--set"):
            parse_setting(text, names)
    for text, flag in {"seed=5": "--seeds", "ppo:seed=5": "--seeds", "output-dir=/x": "--output-dir"}.items():
        with pytest.raises(UsageError, match=rf"--set {text}: .*; use {flag}"):
            parse_setting(text, names)


def test_budgets() -> None:
    assert parse_budget("none", OWN) is None
    assert parse_budget("trajectories=100", OWN) == PlannedBudget(100, OWN.gradient_steps)
    assert parse_budget("trajectories=100,gradient-steps=7", OWN) == PlannedBudget(100, 7)
    for text in ("100", "trajectories=-1", "trajectories=x", "tokens=3", "", f"trajectories={'9' * 5000}"):
        with pytest.raises(UsageError, match=r"--budget.*write it as"):
            parse_budget(text, OWN)


def test_fine_tuning_that_nothing_stops_takes_no_more_steps_than_suit_it() -> None:
    sft, twice = Variant("sft", "sft", {}), PlannedBudget(3610, 800)
    stopped = configure(sft, 0, [{"task": "random_numbers"}], [], twice)
    assert stopped.sft.check_every and stopped.m_step.steps == 800
    tuned = configure(sft, 0, [{"task": "arithmetic"}], [], twice)
    assert not tuned.sft.check_every and tuned.m_step.steps == 260
    assert configure(sft, 0, [{"task": "arithmetic"}], [], PlannedBudget(3610, 100)).m_step.steps == 100


def test_a_setting_that_the_budget_contradicts() -> None:
    variant = Variant("mine", "ppo", {"e_step": {"steps": 5}})
    with pytest.raises(UsageError, match=r"mine: --e-step.steps is 5, but the budget makes it 112.*--budget none"):
        configure(variant, 0, [], [], OWN)
    assert configure(variant, 0, [], [], None).e_step.steps == 5


def test_a_file_that_the_budget_contradicts(tmp_path: Path) -> None:
    file, variant = tmp_path / "f.yaml", Variant("ppo", "ppo", {})
    file.write_text("e_step: {steps: 50}\n")
    with pytest.raises(UsageError, match=r"ppo: --e-step.steps is 50, but the budget makes it 112"):
        configure(variant, 0, [], [], OWN, file=str(file))
    assert configure(variant, 0, [], [], None, file=str(file)).e_step.steps == 50
    file.write_text("# nothing\ne_step:\n")
    assert configure(variant, 0, [], [], OWN, file=str(file)).e_step.steps == 112
    file.write_text("seed: 5\n")
    with pytest.raises(UsageError, match=r"f\.yaml: a comparison sets seed itself; use --seeds"):
        configure(variant, 0, [], [], None, file=str(file))


def test_a_budget_too_small_for_a_step_names_the_variant() -> None:
    with pytest.raises(UsageError, match=r"^mine: --budget: too few trajectories"):
        configure(Variant("mine", "ppo", {}), 0, [], [], PlannedBudget(1, 1))
    with pytest.raises(UsageError, match=r"^mine: --budget: too few gradient steps"):
        configure(Variant("mine", "rejection", {"rounds": 3}), 0, [], [], PlannedBudget(10**6, 2))


def test_the_layers_of_a_runs_settings() -> None:
    """Common settings, then the variant's, then those of --set for it alone."""
    variant = Variant("mine", "ppo", {"policy_gradient": {"kl": 0.2, "reward": "correct"}})
    common = {"policy_gradient": {"kl": 0.1}, "e_step": {"warmup": 5}}
    config = configure(variant, 7, [common], [{"policy_gradient": {"reward": "log-reward"}}], OWN)
    own = config.policy_gradient
    assert (own.kl, own.reward, config.e_step.warmup, config.seed) == (0.2, "log-reward", 5, 7)


def other_config(method: str) -> RunConfig:
    """Settings of all types that differ from the defaults."""
    config = with_method(RunConfig(), method)
    return dataclasses.replace(
        config,
        seed=5,
        model="some where/else",
        data=dataclasses.replace(config.data, options={"digits": "1,2", "operators": "+-"}),
        e_step=dataclasses.replace(
            config.e_step, huber_delta=None, learning_rate=3e-5, mix_replay=True, temperatures=(0.9, 1.1)
        ),
        evaluation=dataclasses.replace(
            config.evaluation, splits=("3-operands", "operands=4,digits=2"), every_round=False
        ),
        policy_gradient=dataclasses.replace(config.policy_gradient, kl=1e-7),
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("preset", [None, "smoke"])
def test_the_command_of_a_run_gives_its_configuration(
    method: str, preset: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    from latent_cot.cli.fit import run

    config = other_config(method)
    words = shlex.split(command_of(PlannedRun(method, config), preset))
    assert words[:2] == ["latent-cot", "fit"]
    assert run([*words[2:], "--print-config", "--output-dir", "x"]) == 0
    printed = parse_yaml(capsys.readouterr().out, "x")
    whole = to_dict(dataclasses.replace(config, output_dir="x"))
    assert printed == {name: value for name, value in whole.items() if name in printed}
    assert whole.keys() - printed.keys() == set(SECTIONS.values()) - {SECTIONS.get(config.method)}


def test_the_commands_of_two_variants_of_a_method_have_folders_of_their_own() -> None:
    config = dataclasses.replace(load_config("smoke", method="ppo"), seed=3)
    folder = f"{default_folder(config)}-ppo-twice"
    assert command_of(PlannedRun("ppo", config), "smoke") + f" --output-dir {folder}" == command_of(
        PlannedRun("ppo-twice", config), "smoke"
    )


def test_differences() -> None:
    a = RunConfig()
    b = dataclasses.replace(a, rounds=3, policy_gradient=dataclasses.replace(a.policy_gradient, kl=0.5))
    assert list(differences(a, a)) == []
    assert list(differences(a, b)) == [("rounds", 2, 3), ("policy_gradient.kl", 0.05, 0.5)]


def test_a_run_that_is_there(tmp_path: Path) -> None:
    config = dataclasses.replace(load_config("smoke"), output_dir=str(tmp_path / "run"))
    run = PlannedRun("em", config)
    assert not records.is_finished(run)
    folder = RunFolder.create(run.folder, to_dict(dataclasses.replace(config, output_dir="elsewhere")))
    assert not records.is_finished(run)
    folder.write_json("results.json", {})
    assert records.is_finished(run)
    other = dataclasses.replace(config, m_step=dataclasses.replace(config.m_step, warmup=3))
    with pytest.raises(UsageError, match=r"\(--m-step.warmup 1 there, 3 here\).*--output-dir"):
        records.is_finished(PlannedRun("em", other))


def test_settings_that_a_method_does_not_read_may_differ(tmp_path: Path) -> None:
    policy = dataclasses.replace(RunConfig().policy_gradient, kl=3.0)
    there = dataclasses.replace(RunConfig(), policy_gradient=policy)
    for method, there_step, is_found in (
        ("ppo", {"steps": 9}, False),  # which reads kl
        ("rejection", {"steps": 9}, False),
        ("rejection", {"keep": "all"}, True),
        ("rejection", {"learning_rate": 0.5}, False),
        ("em", {}, True),
        ("em", {"steps": 9}, False),
    ):
        folder = tmp_path / f"{method} {there_step}"
        sought = from_dict({"method": method, "output_dir": str(folder)}, "")
        recorded = from_dict({"method": method, "m_step": there_step}, "", there)
        RunFolder.create(folder, to_dict(recorded)).write_json("results.json", {})
        with nullcontext() if is_found else pytest.raises(UsageError, match="holds a run with other settings"):
            assert records.is_finished(PlannedRun("em", sought))


def record(variant: str, seed: int, **right: tuple[int, int]) -> dict[str, Any]:
    """A run with one reasoner; split -> (right, n)."""
    splits = {name: {"accuracy": a / n, "correct": a, "n": n} for name, (a, n) in right.items()}
    return {
        "variant": variant,
        "seed": seed,
        "accuracy": {"p": splits},
        "metrics": {},
        "budget": {"trajectories": 100 * (seed + 1), "gradient_steps": 10},
        "resources": {"phases": {"init": 1.0, "m_step": 2.0, "evaluate": 50.0, "diagnose_before": 9.0}},
    }


RECORDS = [
    record("sft", 0, near=(9, 10), far=(2, 10)),
    record("sft", 1, near=(7, 10), far=(0, 10)),
    record("em", 0, near=(10, 10)),
]


def test_rows() -> None:
    sft, em = table.summarise(RECORDS)
    near = sft.cells["near"]
    assert (near.mean, near.n) == (0.8, 20)
    assert near.deviation == pytest.approx(statistics.stdev([0.9, 0.7]))
    assert near.interval_95 is not None
    low, high = near.interval_95  # Wilson's for 8 of 10, by its formula: both seeds had the same ten questions
    z, p, n = 1.959964, 0.8, 10
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    assert [low, high] == pytest.approx([centre - half, centre + half], abs=1e-6)
    assert em.cells["near"].deviation is None
    assert (sft.trajectories, sft.gradient_steps, sft.seconds, sft.seeds) == (150, 10, 3.0, (0, 1))


def test_the_written_tables() -> None:
    rows = table.summarise(RECORDS)
    text = table.to_markdown("toy", [table.table_of(rows, {})], {}, {"sft seed 0": "latent-cot fit --method sft"})
    assert "| sft, p | 80.0 ± 14.1 (49-94) | 10.0 ± 14.1 (2-40) | 150 | 10 | 0.1 |" in text
    assert "| em, p | 100.0 (72-100) | - | 100 | 10 | 0.1 |" in text
    assert "over 2 seeds" in text and "n = 10 to 20" in text
    assert "- sft seed 0: `latent-cot fit --method sft`" in text
    alone = table.table_of([row for row in rows if row.variant == "em"], {}).caption
    assert alone == "% right: one seed (95 % interval for the questions of one seed), n = 10 answers"


# -- metrics instead of right answers ------------------------------------------------------------------------

METRICS = {
    "likelihood": Metric("mean log p, nats", format="{:.1f}"),
    "diversity": Metric("1 − mean cosine"),
    "unused": Metric("nobody has it"),
}


def measured(variant: str, seed: int, likelihood: float | None, diversity: float) -> dict[str, Any]:
    figures = {
        "likelihood": {"value": likelihood, "n": 5, "interval_95": [0.0, 1.0]},
        "diversity": {"value": diversity, "n": 5, "interval_95": None},
    }
    return record(variant, seed) | {"accuracy": {}, "metrics": {"q": {"test": figures}}}


MEASURED = [measured("sft", 0, None, 0.25), measured("em", 0, -10.0, 0.5), measured("em", 1, -13.0, 0.75)]


def test_metrics_over_seeds() -> None:
    sft, em = table.summarise(MEASURED)
    assert (em.variant, em.reasoner, em.seeds, em.cells) == ("em", "q", (0, 1), {})
    found = em.metrics["test"]
    assert (found["likelihood"].mean, found["likelihood"].n) == (-11.5, 10)
    assert found["likelihood"].deviation == pytest.approx(statistics.stdev([-10.0, -13.0]))
    assert math.isnan(sft.metrics["test"]["likelihood"].mean)
    assert sft.metrics["test"]["diversity"].deviation is None


def test_a_metric_that_a_seed_lacks_is_that_of_the_others() -> None:
    runs = [measured("em", 0, -10.0, 0.5), measured("em", 1, -13.0, 0.75)]
    for lacking in runs:
        figures = lacking["metrics"]["q"]["test"]
        kept = figures.pop("diversity")
        (em,) = table.summarise(runs)
        mean = em.metrics["test"]["diversity"]
        assert (mean.mean, mean.n) == ({0: 0.75, 1: 0.5}[lacking["seed"]], 5)
        figures["diversity"] = kept


def test_the_table_of_metrics() -> None:
    rows = table.summarise(MEASURED)
    figures = table.table_of(rows, METRICS).figures
    assert figures["likelihood"] == ["-", "-11.5 ± 2.1"]
    assert figures["diversity"] == ["0.25", "0.625 ± 0.177"]
    text = table.to_markdown("t", [table.table_of(rows, METRICS)], METRICS, {})
    assert "| method, reasoner | likelihood | diversity | trajectories |" in text
    assert "mean ± standard deviation over 2 seeds, n = 5 to 10 questions of all seeds together" in text
    assert "likelihood: mean log p, nats." in text


# -- rows beside each other ----------------------------------------------------------------------------------


def marked(variant: str, seed: int, asked: str = "a", **right: str) -> dict[str, Any]:
    """A run on the split "near": reasoner -> which questions are right; of `asked`, whatever that is."""
    return {
        **record(variant, seed, near=(1, 4)),
        "accuracy": {name: {"near": {}} for name in right},
        "right": {name: {"near": marks} for name, marks in right.items()},
        "questions": {"near": asked},
    }


MARKED = [
    marked("em", 0, q="0011", p="1111"),
    marked("em", 1, q="0011", p="0111"),
    marked("sft", 0, p="1000"),
    marked("sft", 1, p="1010"),
    marked("ppo", 0, q="0001"),
    marked("ppo", 1, q="1011"),
]


REASONERS = {"em": ("q", "p"), "sft": ("p",), "ppo": ("q",)}


def test_rows_beside_one_of_them() -> None:
    found = paired_difference.differences(MARKED, paired_difference.parse_target("em", REASONERS))
    assert [(one.name, one.against, one.seeds) for one in found] == [
        ("sft, p", ("em", "p"), (0, 1)),
        ("ppo, q", ("em", "q"), (0, 1)),
    ]
    sft = found[0].splits["near"]
    # By hand: sft (1, 0, .5, 0) and em (.5, 1, 1, 1) over the seeds.
    assert (sft.n, sft.first, sft.second, sft.higher, sft.lower) == (4, 0.375, 0.875, 1, 3)
    between = intervals.of_matched_proportions(np.array([0.5, -1, -0.5, -1]))
    assert sft.interval_95 == between
    # The seeds' differences are -.75 and -.25: mean -.5, standard error .25, and t = 12.706 of one degree of freedom.
    assert found[0].over_seeds["near"] == (-1.0, 1.0)  # of -0.5 +- 12.706 * 0.25
    low, high = (f"{100 * x:+.1f}" for x in between)
    shown = f"-50.0 ({low} to {high}; seeds -100.0 to +100.0)"
    assert paired_difference.difference_text(found[0], "near") == shown
    text = table.to_markdown("toy", [paired_difference.table_of(found)], {}, {})
    assert "% right, less that of the row named:" in text
    assert f"| sft, p | em, p | {shown} |" in text


def test_one_seed_has_no_interval_over_seeds() -> None:
    sft, _ = paired_difference.differences(MARKED[::2], paired_difference.parse_target("em", REASONERS))
    assert sft.over_seeds == {"near": None}
    assert "seeds" not in paired_difference.difference_text(sft, "near")


def test_all_rows_beside_one_reasoner() -> None:
    found = paired_difference.differences(MARKED, paired_difference.parse_target("em:p", REASONERS))
    assert [(one.name, one.against) for one in found] == [
        ("em, q", ("em", "p")),
        ("sft, p", ("em", "p")),
        ("ppo, q", ("em", "p")),
    ]


def test_what_was_asked_other_questions_has_no_difference() -> None:
    others = [*MARKED[:2], marked("sft", 0, asked="b", p="1000"), marked("sft", 1, asked="b", p="1010")]
    target = ("em", "p")
    _, sft = paired_difference.differences(others, target)
    assert sft.name == "sft, p" and not sft.splits
    known = paired_difference.differences(MARKED, target)
    assert "| sft, p | em, p | - |" in paired_difference.table_of([sft, *known]).markdown()


def test_seeds_may_be_asked_other_questions_each() -> None:
    """As where each drops its own training questions from a file: rows are paired within a seed, not over all."""
    records = [
        *(marked("em", 0, p="1111"), marked("sft", 0, p="1000")),
        *(marked("em", 1, asked="b", p="01"), marked("sft", 1, asked="b", p="00")),
    ]
    (sft,) = paired_difference.differences(records, ("em", "p"))
    assert not sft.splits
    assert sft.means == {"near": pytest.approx(-0.625)}
    low, high = -1.0, -0.625 + 12.706 * 0.125  # -2.2 is no difference of shares
    assert sft.over_seeds["near"] == pytest.approx((low, high), abs=1e-3)
    assert paired_difference.difference_text(sft, "near") == f"-62.5 (seeds {100 * low:+.1f} to {100 * high:+.1f})"


def test_rows_that_were_asked_other_questions_are_named() -> None:
    assert differing.notes(MARKED) == []
    of_seeds = [marked(name, seed, asked=str(seed), p="1") for seed in (0, 1) for name in ("em", "sft", "ppo")]
    assert differing.notes(of_seeds) == [], "each seed has its own"
    others = [{**one, "questions": {"near": "x", "far": "x", "third": "x"}} for one in of_seeds]
    for k in (1, 4):
        others[k] = {**others[k], "questions": {"near": "y", "far": "y", "third": "x"}}
    others[5] = {**others[5], "questions": {"near": "x", "far": "x", "third": "z"}}
    assert differing.notes(others) == [
        "near, far: sft (seeds 0, 1) had other test questions than the rest of that seed; do not compare them.",
        "third: ppo (seed 1) had other test questions than the rest of that seed; do not compare them.",
    ]
    (two,) = differing.notes([marked("em", 0, asked="new", p="1"), marked("sft", 0, asked="old", p="1")])
    assert two.startswith("near: sft (seed 0) had")


def test_rows_that_have_learned_from_other_data_are_named() -> None:
    def taught(variant: str, training: str, seed: int = 0, **data: int) -> dict[str, Any]:
        return {**marked(variant, seed, p="1"), "training": training, "config": {"data": data}}

    fewer = [taught("em", "a", unlabelled=9), taught("few", "b", unlabelled=3), taught("em", "c", 1, unlabelled=9)]
    assert differing.notes([*fewer, taught("old", "", unlabelled=9)]) == []
    assert differing.notes([*fewer, taught("sft", "d", unlabelled=9), taught("sft", "c", 1, unlabelled=9)]) == [
        "sft (seed 0) had other training data than the rest of that seed, with the same settings."
    ]


def test_rows_of_another_base_model_are_named() -> None:
    def based(variant: str, weights: str, model: str = "./ours") -> dict[str, Any]:
        return {**marked(variant, 0, p="1"), "weights": weights, "config": {"model": model}}

    rows = [based("em", "a"), based("sft", "a"), based("large", "c", "./larger"), based("old", "")]
    assert differing.notes(rows) == []
    assert differing.notes([*rows, based("ppo", "b")]) == [
        "ppo (seed 0) had another base model than the rest, of the same name."
    ]


def test_rows_of_another_task_of_that_name_are_named() -> None:
    def graded(variant: str, files: str | None, task: str = "./ours.yaml", tools: list[str] | None = None) -> Any:
        config = {"task": task, "rollout": {"tools": tools}, "data": {"options": {}}}
        return {**marked(variant, 0, p="1"), "task_files": files, "config": config}

    rows = [graded("em", "a"), graded("sft", "a"), graded("other", "c", "./theirs.py"), graded("shipped", None, "qa")]
    rows.append(graded("a tool of its own", "d", tools=["mine.py:Tool"]))
    assert differing.notes(rows) == []
    (note,) = differing.notes([*rows, graded("ppo", "b")])
    assert note.startswith("ppo (seed 0) had another task file, or tool,")


def test_what_rows_are_compared_with() -> None:
    assert paired_difference.parse_target("em:p", REASONERS) == ("em", "p")
    with pytest.raises(UsageError, match="'emm' is not compared"):
        paired_difference.parse_target("emm", REASONERS)
    with pytest.raises(UsageError, match="--against ppo:p: the reasoners of ppo are q"):
        paired_difference.parse_target("ppo:p", REASONERS)


def test_accuracies_are_drawn_along_the_numbers_of_their_splits(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    splits = {"3-operands": (9, 10), "4-operands": (8, 10), "5-operands": (2, 10)}
    numbers = {name: {"operands": 3 + k, "digits": 1} for k, name in enumerate(splits)}
    both = table.summarise([record(name, 0, **splits) for name in ("sft", "em")])
    table.save_plot(both, tmp_path / "lines.svg", "toy", numbers)
    drawn = (tmp_path / "lines.svg").read_text()
    assert ">operands<" in drawn and ">3-operands<" not in drawn and ">em, p<" in drawn
    # Nothing may be left out: with a split without numbers, or a row without one of the splits, nothing is drawn.
    table.save_plot(both, tmp_path / "lines.svg", "toy", {k: numbers[k] for k in list(numbers)[:2]})
    assert not (tmp_path / "lines.svg").exists()
    fewer = table.summarise([record("sft", 0, **splits), record("em", 0, **dict(list(splits.items())[:2]))])
    table.save_plot(fewer, tmp_path / "lines.svg", "toy", numbers)
    assert not (tmp_path / "lines.svg").exists()


def test_the_names_of_many_rows_fit(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    splits = {"3-operands": (9, 10), "4-operands": (8, 10), "5-operands": (2, 10)}
    numbers = {name: {"operands": 3 + k} for k, name in enumerate(splits)}
    rows = table.summarise([record(f"variant-{k}", 0, **splits) for k in range(40)])
    table.save_plot(rows, tmp_path / "many.svg", "toy", numbers)
    drawn = (tmp_path / "many.svg").read_text()
    height = float(re.findall(r'viewBox="0 0 [\d.]+ ([\d.]+)"', drawn)[0])
    places = [float(y) for y in re.findall(r' y="([\d.-]+)"[^>]*>variant-\d+, p<', drawn)]
    assert len(places) == 40 and min(places) > 0 and max(places) < height
