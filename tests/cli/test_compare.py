"""`latent-cot compare` on the tiny model: all methods, stopped, resumed, done already, repeated by its own commands."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest
from accelerate.state import AcceleratorState

from latent_cot.api.carry_out import Carried
from latent_cot.cli import compare, main
from latent_cot.config.methods import METHODS
from latent_cot.methods.method import Method
from latent_cot.methods.state import Phase
from latent_cot.report.comparison.plan import read_variants
from latent_cot.report.terminal import Display
from latent_cot.run import session
from tests.cli.conftest import Cli

SMOKE = ["compare", "--preset", "smoke", "--set", "precision=fp32"]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """All methods, one seed. Do not write into it."""
    AcceleratorState._reset_state(reset_partial_state=True)
    folder = tmp_path_factory.mktemp("compared") / "all"
    assert main([*SMOKE, "--model", str(tiny_model_dir), "--output-dir", str(folder)]) == 0
    return folder


def adapters(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name / "adapter_model.safetensors").read_bytes() for name in "pq"}


def refuse_to_load(*_: Any, **__: Any) -> None:
    raise AssertionError("a model is loaded though nothing is left to do")


def test_every_method_has_a_row_and_a_run(compared: Path) -> None:
    found = json.loads((compared / "comparison.json").read_text())
    assert [run["variant"] for run in found["runs"]] == list(METHODS)
    assert {(row["variant"], row["reasoner"]) for row in found["rows"]} >= {("em-x", "q"), ("em", "p"), ("sft", "p")}
    for row in found["rows"]:
        assert list(row["cells"]) == ["3-operands", "4-operands"]
        assert all(cell["n"] == 8 for cell in row["cells"].values())
    for run in found["runs"]:
        spent, most = run["budget"], found["budget"]
        assert spent["planned"]["trajectories"] <= most["trajectories"]
        assert spent["trajectories"] <= spent["planned"]["trajectories"]
        assert run["config"]["method"] == run["method"]
        assert {"torch", "transformers", "latent_cot"} <= run["versions"].keys()
        assert run["command"].startswith("latent-cot fit --method ")
        for reasoner, splits in run["right"].items():
            for split, marks in splits.items():
                assert marks.count("1") == run["accuracy"][reasoner][split]["correct"] and len(marks) == 8
    assert len({json.dumps(run["questions"]) for run in found["runs"]}) == 1
    text = (compared / "comparison.md").read_text()
    assert all(f"| {name}, " in text for name in METHODS)


def test_what_is_done_is_not_done_again(
    cli: Cli, compared: Path, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "all"
    shutil.copytree(compared, folder)
    monkeypatch.setattr(session, "open_session", refuse_to_load)
    again = [*SMOKE, "--model", tiny_model_dir, "--output-dir", folder]
    called = cli(*again, "--json", "--against", "em:p")
    assert called.status == 0, called.err
    before = json.loads((compared / "comparison.json").read_text())
    assert called.json["rows"] == before["rows"]
    assert before["differences"] == []
    rows = {(row["variant"], row["reasoner"]) for row in before["rows"]}
    compared_with_p = {(one["variant"], one["reasoner"]) for one in called.json["differences"]}
    assert compared_with_p == rows - {("em", "p")}
    for one in called.json["differences"]:
        (row,) = (
            row for row in before["rows"] if (row["variant"], row["reasoner"]) == (one["variant"], one["reasoner"])
        )
        (p,) = (row for row in before["rows"] if (row["variant"], row["reasoner"]) == ("em", "p"))
        for split, difference in one["splits"].items():
            means = row["cells"][split]["mean"], p["cells"][split]["mean"]
            assert (difference["first"], difference["second"]) == pytest.approx(means)
    assert "| sft, p | em, p |" in (folder / "comparison.md").read_text()
    assert called.err.count("finished already") == len(METHODS)

    fewer = cli(*again, "--methods", "sft,em")
    assert fewer.status == 0
    assert "The table is without decode, em-x, " in fewer.out and "name them too" in " ".join(fewer.out.split())

    changed = cli(*again, "--set", "sft:m_step.learning_rate=0.5")
    assert changed.status == 2
    assert "sft/seed0: holds a run with other settings (--m-step.learning-rate 0.0003 there, 0.5 here)" in changed.err


def test_other_questions_and_other_training_data_are_told(
    cli: Cli, compared: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """A file was changed after `sft` had been finished."""
    folder = shutil.copytree(compared, tmp_path / "all")
    command = [*SMOKE, "--model", tiny_model_dir, "--output-dir", folder]
    assert cli(*command, "--json").json["notes"] == []
    file = folder / "sft/seed0/results.json"
    results = json.loads(file.read_text())
    results["questions"]["3-operands"] = results["training"] = results["weights"] = "of another file"
    file.write_text(json.dumps(results))
    notes = [
        "3-operands: sft (seed 0) had other test questions than the rest of that seed; do not compare them.",
        "sft (seed 0) had other training data than the rest of that seed, with the same settings.",
        "sft (seed 0) had another base model than the rest, of the same name.",
    ]
    called = cli(*command)
    assert all(note in " ".join(called.out.split()) for note in notes)
    assert all(note in (folder / "comparison.md").read_text().splitlines() for note in notes)
    assert cli(*command, "--json").json["notes"] == notes


@pytest.mark.parametrize(
    ("lost", "because"),
    [("questions", "does not say of which questions"), ("accuracy", "or has none"), ("split", "has no accuracy of")],
)
def test_figures_that_are_not_there_are_told(
    cli: Cli, compared: Path, tiny_model_dir: Path, tmp_path: Path, lost: str, because: str
) -> None:
    folder = shutil.copytree(compared, tmp_path / "all")
    file = next(folder.glob("sft/seed*/results.json"))
    results = json.loads(file.read_text())
    if lost == "split":
        for reasoners in results["accuracy"].values():
            for splits in reasoners.values():
                splits.popitem()
    else:
        del results[lost]
    file.write_text(json.dumps(results))
    called = cli(*SMOKE, "--model", tiny_model_dir, "--output-dir", folder)
    said = " ".join(called.err.split())
    assert called.status == 2 and because in said and "take the folder away, and it is run again" in said


@pytest.mark.parametrize("method", ["rejection", "em"])
def test_a_run_again_by_its_recorded_command(
    cli: Cli, compared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """On a model of its own: that the comparison's runs share one has changed nothing."""
    monkeypatch.chdir(tmp_path)
    runs = json.loads((compared / "comparison.json").read_text())["runs"]
    (run,) = [run for run in runs if run["variant"] == method]
    called = cli(*shlex.split(run["command"])[1:], "--output-dir", "again")
    assert called.status == 0, called.err
    assert adapters(Path("again")) == adapters(compared / method / "seed0")


def test_stopped_and_gone_on_with(
    cli: Cli, compared: Path, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*SMOKE, "--model", tiny_model_dir, "--output-dir", tmp_path / "all", "--methods", "few-shot,grpo,sft"]
    show = Display.on_unit

    def interrupt(self: Display, loop: Method, phase: Phase, info: Mapping[str, Any]) -> None:
        show(self, loop, phase, info)
        if (phase.name, loop.state.unit) == ("policy", 1):
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Display, "on_unit", interrupt)
        stopped = cli(*command)
    assert stopped.status == 130
    assert "Stopped in grpo, seed 0 (2 of 3)" in stopped.out
    assert not (tmp_path / "all" / "comparison.json").exists()

    resumed = cli(*command)
    assert resumed.status == 0, resumed.err
    assert "few-shot, seed 0 (1 of 3): finished already" in resumed.out
    assert "grpo, seed 0 (2 of 3): going on" in resumed.out
    for method in ("grpo", "sft"):
        assert adapters(tmp_path / "all" / method / "seed0") == adapters(compared / method / "seed0")


def test_variants_and_a_dry_run(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("short: {method: em, overrides: {rounds: 1}}\nlong: {method: em, overrides: {rounds: 3}}\n")
    folder = tmp_path / "all"
    called = cli(
        "compare", "--variants", file, "--methods", "sft", "--seeds", "0,4", "--dry-run", "--output-dir", folder
    )
    assert called.status == 0, called.err
    assert "sft/seed0: to do; 0 trajectories, 260 gradient steps" in called.out  # of the 600: no more than suit it
    assert "short/seed4: to do; 3610 trajectories, 600 gradient steps" in called.out
    assert "long/seed4: to do; 3534 trajectories, 1344 gradient steps" in called.out
    assert "latent-cot fit --method em --seed 4 --rounds 3 --e-step.steps 2" in called.out
    assert not folder.exists()


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (["--task", "subjectivity"], ["em"]),
        (["--task", "arithmetic"], ["em", "em-x"]),
        (["--task", "subjectivity", "--set", "em-x:m-step.learning-rate=0.00123"], ["em", "em-x"]),
        (["--task", "subjectivity", "--methods", "em,em-x"], ["em", "em-x"]),
    ],
)
def test_the_same_run_is_not_made_twice(cli: Cli, tmp_path: Path, given: list[str], found: list[str]) -> None:
    called = cli("compare", *given, "--dry-run", "--output-dir", tmp_path / "all")
    assert called.status == 0, called.err
    assert [name for name in ("em", "em-x") if f"/{name}/seed0: to do" in called.out] == found
    assert len(given) > 2 or "gflownet/seed0: to do" in called.out


def test_settings_that_a_method_does_not_read_are_told(cli: Cli, tmp_path: Path) -> None:
    own = ["--set", "sft:e_step.steps=3", "--set", "ppo:policy_gradient.kl=0.2"]
    common = ["--set", "e_step.prior=model", "--set", "m_step.steps=5", "--set", "shots=3"]
    called = cli("compare", "--methods", "sft,ppo", *own, *common, "--budget", "none", "--dry-run")
    assert called.status == 0, called.err
    told = [line for line in called.out.splitlines() if " read" in line]
    assert told == [
        "sft: --method sft does not read --e-step.steps.",
        "None of the methods reads --e-step.prior, --shots.",
    ]


def test_options_of_the_task_are_put_together(cli: Cli, tmp_path: Path) -> None:
    options = ["--set", "data.options.operands=3", "--set", "data.options.digits=2"]
    called = cli("compare", "--methods", "sft", "--dry-run", *options, "--output-dir", tmp_path / "all")
    assert "--data.options operands 3 digits 2" in called.out


def test_code_that_a_variant_names_is_not_run(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('it ran')\n")
    (tmp_path / "task.yaml").write_text("data: rows.csv\n")
    (tmp_path / "rows.csv").write_text("question,answer\n" + "".join(f"q{n},{n}\n" for n in range(40)))
    variants = tmp_path / "variants.yaml"
    variants.write_text(
        f"bad: {{method: sft, overrides: {{data: {{options: {{grade: '{tmp_path}/evil.py:right'}}}}}}}}\n"
    )
    command = ["compare", "--task", tmp_path / "task.yaml", "--variants", variants, "--output-dir", tmp_path / "all"]
    called = cli(*command, "--dry-run")
    assert called.status == 2 and "bad: " in called.err and "add --trust-code" in called.err
    trusted = cli(*command, "--dry-run", "--trust-code")
    assert trusted.status == 0 and trusted.out.rstrip().endswith("--trust-code")


@pytest.mark.parametrize("source", ["ablations", "data-efficiency", "few-shot", "without-lessons"])
def test_shipped_variants(cli: Cli, source: str, tmp_path: Path) -> None:
    called = cli("compare", "--variants", source, "--dry-run", "--output-dir", tmp_path / "all")
    assert called.status == 0, called.err
    assert called.out.count("latent-cot fit") == len(read_variants(source)) >= 4


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--methods", "sfd"], ["--methods sfd", "Did you mean 'sft'?"]),
        (["--methods", "sft,sft"], ["sft: is compared twice"]),
        (["--seeds", "0,x"], ["--seeds 0,x", "0,1,2"]),
        (["--seeds", "1,1"], ["--seeds 1,1"]),
        (["--seeds", "1,01"], ["--seeds 1,01"]),
        (["--against", "emm"], ["--against emm: 'emm' is not compared. Did you mean 'em'?"]),
        (["--against", "ppo:p"], ["--against ppo:p: the reasoners of ppo are q"]),
        (["--against", "em", "--task", "random_numbers"], ["--against: random_numbers has figures instead"]),
        (["--budget", "10"], ["--budget 10", "trajectories="]),
        (["--budget", "trajectories=10"], ["--budget: too few"]),
        (["--variants", "nowhere.yaml"], ["--variants nowhere.yaml", "No such file"]),
        (["--set", "grppo:policy_gradient.kl=1"], ["--set grppo:policy_gradient.kl=1", "Did you mean 'grpo'?"]),
        (["--set", "e_step.stepz=3"], ["unknown setting 'e_step.stepz'"]),
        (["--set", "evaluation.size=0"], ["--set: evaluation.size is 0"]),
        (["--preset", "tpu"], ["--preset tpu"]),
        (["--set", "seed=5"], ["--set seed=5", "use --seeds"]),
        (["--set", "sft:method=em"], ["--set sft:method=em", "use --methods or --variants"]),
        (["--set", "evaluation.splits=[]"], ["there are no test splits, and so nothing to compare"]),
        (["--seeds", "4294967296"], ["--seeds 4294967296", "below 4294967296"]),
        (["--set", "sft:task=random_numbers"], ["sft: its task is random_numbers", "arithmetic"]),
        (["--task", "arithmetik"], ["unknown task 'arithmetik'", "Did you mean 'arithmetic'?"]),
        (["--task", "arithmetic,random_numbers"], ["--task arithmetic,random_numbers: ", "give one task"]),
    ],
)
def test_bad_input(cli: Cli, argv: list[str], parts: list[str]) -> None:
    called = cli("compare", *argv, "--dry-run")
    assert called.status == 2, called
    assert not called.out
    assert called.err.startswith("error: ") and "Traceback" not in called.err
    for part in parts:
        assert part in called.err


@pytest.mark.parametrize("task", ["continuation", "infilling", "random_numbers", "subjectivity", "word_problems"])
def test_the_smoke_preset_of_every_task_is_on_its_budget(cli: Cli, task: str, tmp_path: Path) -> None:
    called = cli("compare", "--preset", "smoke", "--task", task, "--output-dir", tmp_path / "all", "--dry-run")
    assert called.status == 0, called.err


def test_a_file_of_settings_does_not_choose_the_method(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("method: sft\n")
    called = cli("compare", "--methods", "ppo,em", "--config", file, "--dry-run")
    assert called.status == 2 and "use --methods or --variants" in called.err


def test_a_folder_that_cannot_be_written_is_told_before_the_work(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "open_session", refuse_to_load)
    (tmp_path / "file").touch()
    called = cli(*SMOKE, "--output-dir", tmp_path / "file" / "runs")
    assert called.status == 2 and f"cannot write to {tmp_path / 'file'}" in called.err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--methods", "em,sft", "--set", "sft:data.train_file=typo.jsonl"], "sft: typo.jsonl: no such file"),
        (["--methods", "em,sft", "--task", "continuation"], "sft: --method sft learns --data.demonstrations"),
    ],
)
def test_what_a_variant_lacks_is_told_before_the_work(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str], message: str
) -> None:
    monkeypatch.setattr(session, "open_session", refuse_to_load)
    called = cli(*SMOKE, *argv, "--output-dir", tmp_path / "new")
    assert called.status == 2 and message in called.err and not list(tmp_path.iterdir())


def test_flags_that_the_method_does_not_read_are_told(cli: Cli, tmp_path: Path) -> None:
    own = ["--method", "sft", "--preset", "smoke", "--precision", "fp32", "--m-step.steps", "1"]
    unread = [
        "--no-safeguard",
        "--q-sees",
        "question",
        "--rounds",
        "3",
        "--m-step.no-weighted",
        "--e-step.objective=subtb",
    ]
    unread += ["--policy-gradient.kl", "0.5"]
    called = cli("fit", *own, *unread, "--output-dir", tmp_path / "run")
    assert called.status == 0, called.err
    flags = "--no-safeguard, --q-sees, --rounds, --m-step.no-weighted, --e-step.objective, --policy-gradient.kl"
    assert f"--method sft does not read {flags}." in " ".join(called.out.split())
    assert "not read" not in cli("fit", *own, "--output-dir", tmp_path / "other").out


def test_methods_are_listed(cli: Cli) -> None:
    assert [entry["name"] for entry in cli("methods", "--json").json] == list(METHODS)
    assert all(f"{name}: " in cli("methods").out for name in METHODS)


def test_em_is_for_em(cli: Cli, compared: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("method: sft\n")
    called = cli("em", "--config", file)
    assert called.status == 2
    assert "latent-cot fit" in called.err
    resumed = cli("em", "--resume", "--output-dir", compared / "sft" / "seed0")
    assert resumed.status == 2 and "the method is sft: latent-cot em is EM only" in resumed.err
    assert "--policy-gradient.kl" in cli("fit", "--help-all").out


def test_a_q_that_was_not_trained_is_not_shown(cli: Cli, compared: Path, tmp_path: Path) -> None:
    """What q would see is set, and sft reads nothing of it."""
    folder = Path(shutil.copytree(compared / "sft" / "seed0", tmp_path / "run"))
    assert "q_sees: question-and-answer\n" in (folder / "config.yaml").read_text()
    refused = cli("sample", folder, "--reasoner", "q", "--question", "1 + 2", "--answer", 3)
    assert refused.status == 2 and "q" in refused.err


def test_fit_of_a_method_leaves_a_run_for_eval_and_sample(cli: Cli, compared: Path) -> None:
    for method, reasoner, other in [("ppo", "q", "p"), ("few-shot", "p", "q")]:
        folder = compared / method / "seed0"
        recorded = json.loads((folder / "results.json").read_text())["accuracy"]
        last = recorded[max(recorded, key=int)][reasoner]["3-operands"]
        found = cli("eval", folder, "--split", "3-operands", "--size", 8, "--json").json["results"]
        assert found == {reasoner: {"3-operands": last}}
        refused = cli("eval", folder, "--reasoner", other)
        assert f"a run of {method} answers with {reasoner}" in refused.err
        sampled = cli("sample", folder, "--question", "6 - 0 - 4", "-n", 2, "--json")
        assert sampled.json["reasoner"] == reasoner


def test_a_signal_while_a_run_is_finished_stops_the_comparison(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    carried: list[Path] = []

    def carry(_: Any, path: Path, *__: Any, **___: Any) -> Carried:
        carried.append(path)
        return Carried(cast("Any", None), {}, signal.SIGTERM)

    monkeypatch.setattr(compare, "carry_out", carry)
    called = cli(*SMOKE, "--methods", "few-shot,em", "--output-dir", tmp_path / "new")
    assert called.status == 143 and "Stopped in few-shot" in called.out
    assert carried == [tmp_path / "new" / "few-shot" / "seed0"]


def test_a_budget_is_not_counted_for_questions_that_are_not_there(cli: Cli, tmp_path: Path) -> None:
    """EM draws for each question, the others sample as often as they are told: they would get more."""
    rows = [{"question": f"what is {n}?", "answer": str(n)} for n in range(30)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.yaml").write_text("data: rows.jsonl\n")
    command = ["compare", "--preset", "smoke", "--task", tmp_path / "mine.yaml", "--methods", "rejection"]
    command += ["--set", "data.demonstrations=0", "--set", "data.unlabelled=25", "--output-dir", tmp_path / "found"]
    called = cli(*command)
    assert called.status == 2
    assert re.search(
        r"there are \d+ of 25 unlabelled, and the budget is counted by them: give --set data.unlabelled=\d+, or",
        called.err,
    ), called.err
