"""The Python interface: what `import latent_cot` offers."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import latent_cot as lc
from latent_cot.api.rationales import Rationales
from latent_cot.api.results import Results
from latent_cot.cli import main
from latent_cot.config.settings import load_config, parse_yaml, write_yaml
from latent_cot.methods.method import Method
from latent_cot.methods.scored import ScoredRationale, Stop, Token, pieces
from latent_cot.methods.state import State
from latent_cot.model.text import TextCodec
from latent_cot.run.interrupts import stop_signals
from latent_cot.run.run_folder import RunFolder
from latent_cot.run.session import open_session
from latent_cot.types import Rationale, ToolCall
from tests.conftest import ROOT
from tests.tiny import build_tokenizer

QUESTION = "6 - 0 - 4 - 8"
CHAIN = " 6 - 0 = 6, 6 - 4 = 2, 2 - 8 = -6"
HOSTILE = '<script>alert("x")</script>&\x1b[31m\u202e'


# -- the package -------------------------------------------------------------------------------------------


def test_importing_loads_next_to_nothing() -> None:
    code = (
        "import sys; before = set(sys.modules); import latent_cot as lc; dir(lc); lc.configure; "
        "print([m for m in ('torch', 'transformers', 'pandas', 'datasets', 'sympy') if m in sys.modules])"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_name_is_there_and_explained() -> None:
    for name in lc.__all__:
        assert getattr(lc, name).__doc__ or name in ("Callback", "Reasoner")  # aliases
        assert name in dir(lc)
    with pytest.raises(AttributeError, match="'latent_cot' has no attribute 'lode'"):
        lc.lode  # noqa: B018


# -- configuring and training ------------------------------------------------------------------------------


def test_settings_on_top_of_a_preset(tmp_path: Path) -> None:
    config = lc.configure(
        "smoke", rounds=3, e_step={"steps": 7}, rollout={"tools": ("calculator",)}, output_dir=tmp_path
    )
    assert (config.rounds, config.e_step.steps, config.e_step.samples) == (3, 7, 4)
    assert config.rollout.tools == ("calculator",)
    assert config.output_dir == str(tmp_path)
    assert lc.configure(rounds=np.int64(3)).rounds == 3
    splits = np.array(["3-operands", "4-operands"])
    assert lc.configure(evaluation={"splits": splits}).evaluation.splits == ("3-operands", "4-operands")
    assert lc.configure().q_sees == "question-and-answer" and lc.configure(method="em-x").q_sees == "question"
    assert lc.configure(task="random_numbers") == load_config(task="random_numbers") != lc.configure()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"roundz": 2}, "unknown setting 'roundz'. Did you mean 'rounds'"),
        ({"e_step": {"stepz": 2}}, "Did you mean 'e_step.steps'"),
        ({"e_step.steps": 2}, r"unknown setting 'e_step.steps'. Write e_step: {steps: 2}"),
        ({"rounds": "two"}, "rounds is 'two'; it should be a valid integer"),
        ({"e_step": {"samples": 0}}, "e_step.samples is 0; it should be greater than 0"),
        ({"model": object()}, "is no setting that a file could hold; .* a model by a name"),
        ({"rollout": {"tools": [lc.tools.load("calculator")]}}, "is no setting that a file could hold; .* Python file"),
        ({"task": lc.tasks.load("arithmetic")}, "a task is given by its name, or by the file that defines it"),
    ],
)
def test_bad_settings(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(lc.UsageError, match=message):
        lc.configure(**wrong)


def test_a_callback_sees_each_unit_and_may_stop(run: lc.Run, tmp_path: Path, settings: dict[str, Any]) -> None:
    """Stopped in the E-step and resumed, the run is the one that was never stopped."""
    units: list[lc.Unit] = []
    others: list[int] = []

    def stop_in_the_e_step(unit: lc.Unit) -> bool:
        units.append(unit)
        return unit.phase == "e_step"

    def count(unit: lc.Unit) -> None:  # called in the last unit too, behind the one that stops
        others.append(unit.number)

    stopped = lc.train(
        lc.configure("smoke"), output_dir=tmp_path / "run", callbacks=[stop_in_the_e_step, count], **settings
    )
    assert stopped.status == "stopped"
    assert len(units) == len(others)
    last = units[-1]
    assert (last.round, last.phase, last.number, last.of) == (1, "e_step", 1, 2)
    assert 0 < last.share < 1
    assert math.isfinite(last.figures["loss"])
    assert "samples" not in last.figures and last.samples[0]["rationale"]["tokens"]
    with pytest.raises(lc.UsageError, match=r"results\.json: no such file"):
        _ = stopped.results

    finished = lc.resume(lc.load(tmp_path / "run"), callbacks=[units.append], progress=False)
    assert finished.status == "finished"
    assert units[-1].share == 1
    assert finished.results["accuracy"] == run.results["accuracy"]
    assert finished.results["posterior"] == run.results["posterior"]
    assert list(finished.rationales()) == list(run.rationales())


@pytest.mark.parametrize("method", ["sft", "few-shot", "grpo"])
def test_a_run_answers_when_it_is_loaded_as_it_did_in_training(
    tmp_path: Path, settings: dict[str, Any], method: str
) -> None:
    """How it answers may depend on its training data, which are loaded again only where they are needed."""
    config = lc.configure(
        "smoke", method=method, output_dir=tmp_path / "run", **{k: settings[k] for k in ("model", "precision")}
    )
    lc.train(config, progress=False)
    loaded = lc.load(tmp_path / "run").in_memory()
    training = open_session(config).loop(state=State(m_steps=loaded.state.m_steps))
    assert loaded.reasoners == training.reasoners
    example = next(iter(training.tests.values()))[0]
    for reasoner in training.reasoners:
        assert loaded.sampler_of(reasoner) == training.sampler_of(reasoner) is not None
        assert loaded.judge_of(reasoner) == training.judge_of(reasoner)
        assert loaded.test_text(reasoner, example) == training.test_text(reasoner, example)


@pytest.mark.parametrize("error", [RuntimeError("the disk of the figures is full"), KeyboardInterrupt()])
def test_what_was_done_when_a_callback_raises_is_saved(
    run: lc.Run, tmp_path: Path, settings: dict[str, Any], error: BaseException
) -> None:
    """Round 0 and a step of the E-step; the run that goes on is the one in which nothing was raised."""
    folder, units = tmp_path / "run", list[lc.Unit]()

    def fail(unit: lc.Unit) -> None:
        if unit.phase == "e_step":
            raise error

    with pytest.raises(type(error)):
        lc.train(lc.configure("smoke"), output_dir=folder, callbacks=[fail], **settings)
    assert lc.load(folder).status == ("failed" if isinstance(error, Exception) else "stopped")
    finished = lc.resume(folder, callbacks=[units.append], progress=False)
    assert (units[0].phase, units[0].number) == ("e_step", 2)
    for name in ("accuracy", "posterior"):
        assert finished.results[name] == run.results[name]
    assert list(finished.rationales()) == list(run.rationales())
    for name in "pq":
        weights = f"{name}/adapter_model.safetensors"
        assert run.path is not None and (folder / weights).read_bytes() == (run.path / weights).read_bytes()


def test_an_error_within_a_unit_saves_nothing(
    run: lc.Run, tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The adapter may have taken its step, and the state not know of it."""
    folder = tmp_path / "run"

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of order")

    with monkeypatch.context() as patch:
        patch.setattr(Method, "sample_questions", fail)
        with pytest.raises(RuntimeError, match="out of order"):
            lc.train(lc.configure("smoke"), output_dir=folder, **settings)
    assert lc.load(folder).status == "failed" and not list(folder.glob("checkpoints/*"))
    assert lc.resume(folder, progress=False).results["accuracy"] == run.results["accuracy"]


def test_the_error_of_a_callback_is_the_one_to_be_seen(
    tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise lc.UsageError("the disk is full")

    monkeypatch.setattr(RunFolder, "save", fail)
    with pytest.raises(ZeroDivisionError):
        lc.train(lc.configure("smoke"), output_dir=tmp_path / "run", callbacks=[lambda _: 1 / 0 > 0], **settings)


def test_a_run_does_not_go_on_with_other_phases_behind_it(tmp_path: Path, settings: dict[str, Any]) -> None:
    """It counts them: the rest of one would be left out. What follows may change."""
    stopped = lc.train(
        lc.configure("smoke"),
        output_dir=tmp_path / "run",
        callbacks=[lambda unit: unit.phase == "diagnose"],
        **settings,
    )
    assert stopped.status == "stopped"
    file = tmp_path / "run" / "config.yaml"
    config = parse_yaml(file.read_text(), "")
    file.write_text(write_yaml({**config, "e_step": {**config["e_step"], "steps": 0}}))
    with pytest.raises(lc.UsageError, match="other phases up to where it stopped"):
        lc.resume(lc.load(tmp_path / "run"), progress=False)
    later = {"rounds": 2, "evaluation": {**config["evaluation"], "every_round": False}}
    file.write_text(write_yaml({**config, **later}))
    assert lc.resume(lc.load(tmp_path / "run"), callbacks=[lambda _: True], progress=False).status == "stopped"


@pytest.mark.parametrize("phase", ["draw", "evaluate"])
def test_a_run_does_not_go_on_with_other_slices_of_questions(
    tmp_path: Path, settings: dict[str, Any], phase: str
) -> None:
    """It counts them: questions would be left out, or be asked twice. Steps of training may become more."""

    def stop(unit: lc.Unit) -> bool:
        return unit.phase == phase

    config = lc.configure("smoke", rollout={"batch_size": 4}, evaluation={"every_round": False})
    lc.train(config, output_dir=tmp_path / "run", callbacks=[stop], **settings)
    file = tmp_path / "run" / "config.yaml"
    text = file.read_text()
    file.write_text(text.replace("batch_size: 4\n", "batch_size: 2\n", 1))
    with pytest.raises(lc.UsageError, match=r"goes through its questions by other settings \(rollout\.batch_size"):
        lc.resume(lc.load(tmp_path / "run"), progress=False)
    changed = parse_yaml(text, "")
    changed["evaluation"]["splits"].reverse()
    file.write_text(write_yaml(changed))
    with pytest.raises(lc.UsageError, match=r"by other settings \(.*evaluation\.splits"):
        lc.resume(lc.load(tmp_path / "run"), progress=False)
    file.write_text(text)
    assert lc.resume(lc.load(tmp_path / "run"), progress=False).status == "finished"


def test_a_run_goes_on_only_with_all_that_it_had(tmp_path: Path, settings: dict[str, Any]) -> None:
    folder = tmp_path / "run"
    lc.train(lc.configure("smoke"), output_dir=folder, callbacks=[lambda unit: unit.phase == "e_step"], **settings)
    before = {path: path.read_bytes() for path in folder.glob("*.jsonl")}

    def refused(because: str) -> None:
        with pytest.raises(lc.UsageError, match=because):
            lc.resume(lc.load(folder), progress=False)
        assert {path: path.read_bytes() for path in folder.glob("*.jsonl")} == before

    config = folder / "config.yaml"
    text = config.read_text()
    config.write_text(text[: text.index("m_step:")])
    refused(r"config\.yaml: lacks m_step\.steps, m_step\.batch_size,.* which it had; restore it")
    config.write_text(text.replace("  size: 8\n", "  size: 9\n"))
    refused("the test 3-operands has other questions than when this run was tested on it")
    config.write_text(text)
    (folder / "checkpoints").rename(folder / "elsewhere")
    refused("is stopped, and its checkpoints are gone")
    (folder / "elsewhere").rename(folder / "checkpoints")

    events = folder / "events.jsonl"
    events.write_bytes(events.read_bytes()[:-9])
    config.write_text(text.replace("interpolation: 1.0", "interpolation: 0.5"))
    for _ in range(2):
        lc.resume(lc.load(folder), callbacks=[lambda _: True], progress=False)
    notes = [event["text"] for event in RunFolder.open(folder).events() if event["kind"] == "note"]
    assert len(notes) == len(set(notes))
    assert "config.yaml has m_step.interpolation 0.5 now; it was 1.0." in notes
    assert any(note.startswith("events.jsonl has lost its end: ") for note in notes)


def test_a_run_can_be_looked_at_without_its_model(run: lc.Run, tmp_path: Path) -> None:
    assert run.path is not None
    folder = Path(shutil.copytree(run.path, tmp_path / "run"))
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace(run.config.model, "/nowhere/model"))
    seen = lc.load(folder)
    assert seen.status == "finished" and seen.results == run.results
    assert main(["report", str(folder), "--no-model"]) == 0
    with pytest.raises(lc.UsageError, match=r"config\.yaml: its `model` is /nowhere/model, which is not there"):
        seen.sample("1 + 2", n=1)


def test_a_finished_run_that_goes_on_is_not_finished(run: lc.Run, tmp_path: Path) -> None:
    assert run.path is not None
    folder = Path(shutil.copytree(run.path, tmp_path / "run"))
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("rounds: 1", "rounds: 2"))
    goes_on = lc.resume(lc.load(folder), callbacks=[lambda _: True], progress=False)
    assert goes_on.status == "stopped"
    assert not (folder / "results.json").exists() and not (folder / "p").exists()
    assert goes_on.sample("1 + 2", n=1)


def test_what_train_does_not_take() -> None:
    config = lc.configure("smoke")
    with pytest.raises(lc.UsageError, match=r"train\('smoke'\): give a configuration, lc\.configure\('smoke'\), or"):
        lc.train("smoke")  # type: ignore[arg-type]
    with pytest.raises(lc.UsageError, match=r"unknown 'callback'\. Did you mean 'callbacks'"):
        lc.train(config, callback=print)
    with pytest.raises(lc.UsageError, match=r"preset cpu: there is a configuration already; name it in configure\(\)"):
        lc.train(config, preset="cpu")


def test_callbacks_are_functions_that_say_whether_to_stop(tmp_path: Path, settings: dict[str, Any]) -> None:
    def train(callback: Any, folder: str = "run") -> lc.Run:
        return lc.train(lc.configure("smoke"), output_dir=tmp_path / folder, callbacks=[callback], **settings)

    losses = np.array([1.0, 0.5])
    assert train(lambda unit: losses.mean() < 1, "stopped").status == "stopped"
    with pytest.raises(lc.UsageError, match="callbacks: 5 cannot be called"):
        train(5)
    assert not (tmp_path / "run").exists()
    with pytest.raises(lc.UsageError, match="returned 'stop'; return True to stop the run, else False or None"):
        train(lambda unit: "stop")


def test_a_method_has_settings_of_its_own() -> None:
    with pytest.raises(lc.UsageError, match="method ppo: it has settings of its own; name it in configure"):
        lc.train(lc.configure("smoke"), method="ppo")


def test_ctrl_c_saves_and_returns(tmp_path: Path, settings: dict[str, Any]) -> None:
    def interrupt(unit: lc.Unit) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    stopped = lc.train(lc.configure("smoke"), output_dir=tmp_path / "run", callbacks=[interrupt], **settings)
    assert stopped.status == "stopped"
    assert len(stopped.events.query("kind == 'init'")) == 1


def test_what_cannot_be_said_of_a_signal_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of `... | tee log` Ctrl-C ends tee first. A closed terminal sends a signal, and its shell another."""

    def fails(*_: Any) -> int:
        raise BrokenPipeError

    monkeypatch.setattr(os, "write", fails)
    with stop_signals() as stopped_by:
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)
        assert stopped_by() == signal.SIGHUP
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as by nohup
    try:
        with stop_signals() as stopped_by:
            signal.raise_signal(signal.SIGHUP)
            assert stopped_by() is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_signals_are_left_alone_in_other_threads() -> None:
    found: list[int | None] = []

    def work() -> None:
        with stop_signals() as stopped_by:
            found.append(stopped_by())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [None]


def test_train_again_with_resume(run: lc.Run, settings: dict[str, Any]) -> None:
    again = lc.train(lc.configure("smoke"), output_dir=run.path, resume=True, **settings)
    assert again.status == "finished"
    unread = {"kl": 0.5}  # by EM
    assert (
        lc.train(output_dir=run.path, resume=True, policy_gradient=unread, preset="smoke", **settings).path == run.path
    )
    with pytest.raises(lc.UsageError, match=r"holds a run with e_step\.steps 2, not 3"):
        lc.train(lc.configure("smoke"), output_dir=run.path, resume=True, e_step={"steps": 3}, **settings)
    with pytest.raises(lc.UsageError, match="holds a run"):
        lc.train(lc.configure("smoke"), output_dir=run.path, **settings)
    with pytest.raises(lc.UsageError, match="a base model is no run"):
        lc.resume(settings["model"])
    assert run.path is not None
    with pytest.raises(lc.UsageError, match=r"config\.yaml: a file; give the folder of a run or of a model, such as "):
        lc.resume(run.path / "config.yaml")
    with pytest.raises(lc.UsageError, match=r"callbacks is a list of them: \[print\]"):
        lc.resume(run, callbacks=print)  # type: ignore[arg-type]


def test_a_finished_run_whose_file_asks_for_more_goes_on(tmp_path: Path, run: lc.Run, settings: dict[str, Any]) -> None:
    assert run.path is not None
    folder = shutil.copytree(run.path, tmp_path / "longer")
    file = folder / "config.yaml"
    text = file.read_text()
    assert text.count("rounds: 1\n") == 1
    file.write_text(text.replace("rounds: 1\n", "rounds: 2\n"))
    lc.train(lc.configure("smoke"), output_dir=folder, rounds=2, resume=True, **settings)
    assert set(json.loads((folder / "results.json").read_text())["accuracy"]) == {"0", "1", "2"}
    before = (folder / "results.json").stat().st_mtime_ns
    lc.train(lc.configure("smoke"), output_dir=folder, rounds=2, resume=True, **settings)
    assert (folder / "results.json").stat().st_mtime_ns == before, "it was finished"
    stop: list[lc.Callback] = [lambda _: True]
    again = lc.train(lc.configure("smoke"), output_dir=folder, rounds=3, resume=True, callbacks=stop, **settings)
    assert again.status == "stopped" and again.config.rounds == 3
    with pytest.raises(lc.UsageError, match="holds a run with rounds 3, not 2"):
        lc.train(lc.configure("smoke"), output_dir=folder, rounds=2, resume=True, **settings)


def test_without_a_round_there_is_no_q(tmp_path: Path, settings: dict[str, Any]) -> None:
    for q_sees in ("question", "question-and-answer"):
        folder = tmp_path / q_sees
        run = lc.train(lc.configure("smoke", rounds=0), output_dir=folder, **settings | {"q_sees": q_sees})
        assert run.status == "finished" and run.reasoners == run.adapters == ("p",)
        assert run.sample(QUESTION, n=2).reasoner == "p" and run.score(QUESTION, CHAIN)[0].log_q is None
        assert set(run.evaluate("3-operands", size=2, progress=False).figures) == {"p"}
        with pytest.raises(lc.UsageError, match="--reasoner q: without a round there is no q; use p"):
            run.evaluate(reasoner="q")
        assert main(["export", str(folder), str(tmp_path / f"exported-{q_sees}")]) == 0


def test_a_stopped_run_goes_on_and_can_be_asked(
    tmp_path: Path, settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, config = tmp_path / "run", lc.configure("smoke")
    stop: list[lc.Callback] = [lambda unit: unit.phase == "init"]
    with pytest.raises(lc.UsageError, match="--track tensorbored: there is no such tracker"):
        lc.train(config, output_dir=folder, track="tensorbored", **settings)
    stopped = lc.train(config, output_dir=folder, callbacks=stop, track="tensorboard", **settings)
    assert stopped.status == "stopped" and list((folder / "tensorboard").rglob("events.*"))
    (written,) = stopped.score(QUESTION, CHAIN)
    before = written.log_p
    assert list(stopped.reasoners) == ["p"] and written.log_q is None, "q is made at the beginning of the first round"
    assert stopped.sample(QUESTION, n=2).reasoner == "p"
    with pytest.raises(lc.UsageError, match="--reasoner q: this run has not come to its first round; use p"):
        stopped.evaluate(reasoner="q")
    html = tmp_path / "report.html"
    few = ["--split", "3-operands", "--questions", "1", "--samples", "2"]
    assert main(["report", str(folder), "--output", str(html), *few]) == 0
    data = re.search(r'id="report-data">(.*?)</script>', html.read_text(encoding="utf-8"))
    assert data is not None
    (of_run,) = json.loads(data[1])["runs"]
    assert [list(one["by"]) for one in of_run["samples"]["before_after"]] == [["base", "p"]]
    again = lc.train(config, output_dir=folder, resume=True, callbacks=[lambda unit: True], **settings)
    assert again.status == "stopped"
    between = again.score(QUESTION, CHAIN).items[0].log_p
    assert stopped.score(QUESTION, CHAIN).items[0].log_p == between != before, "what has gone on by its path is loaded"
    further = lc.resume(stopped, callbacks=[lambda unit: unit.phase == "m_step"], progress=False)
    after = further.score(QUESTION, CHAIN).items[0].log_p
    assert stopped.score(QUESTION, CHAIN).items[0].log_p == after != before, "what was in memory is not its any more"
    assert list(stopped.reasoners) == list(further.reasoners) == ["q", "p"]
    init = again.events[again.events["kind"] == "init"]
    assert init["unit"].tolist() == [1, 2], "it went on where it was"
    capsys.readouterr()
    few = ["--split", "3-operands", "--size", "2", "--max-tokens", "8", "--json"]
    assert main(["eval", str(folder), *few]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["finished"] is False and "not finished" in err
    assert set(json.loads(out)["results"]) == {"p", "q"}


# -- what a run left ---------------------------------------------------------------------------------------


def test_results_and_events(run: lc.Run) -> None:
    assert run.path is not None
    assert run.config.output_dir == str(run.path)
    record = json.loads((run.path / "results.json").read_text())
    assert dict(run.results) == record
    frame = run.results.to_pandas()
    assert list(frame["round"]) == sorted(frame["round"])
    assert set(frame["reasoner"]) == {"p", "q"}
    row = frame.query("round == 1 and reasoner == 'q' and split == '4-operands'").iloc[0]
    expected = record["accuracy"]["1"]["q"]["4-operands"]
    assert [row["accuracy"], row["low"], row["high"], row["n"]] == [
        *(expected["accuracy"], *expected["interval_95"], expected["n"])
    ]
    events = run.events
    assert len(events) == len((run.path / "events.jsonl").read_text().splitlines())
    assert events["time"].is_monotonic_increasing
    assert events.query("kind == 'e_step'")["loss"].notna().all()
    assert {str(events[name].dtype) for name in ("round", "unit", "n", "correct")} == {"Int64"}


def test_results_come_in_the_order_of_the_splits() -> None:
    found = {"accuracy": 0.5, "correct": 1, "n": 2, "interval_95": [0.1, 0.9]}
    record = {"accuracy": {"10": {"p": {"b": found, "a": found}}, "2": {"p": {"a": found, "b": found}}}}
    frame = Results(record, {}, ["b", "a"]).to_pandas()
    assert list(zip(frame["round"], frame["split"], strict=True)) == [(2, "b"), (2, "a"), (10, "b"), (10, "a")]
    assert repr(Results(record, {}, ["b", "a"])).splitlines()[1].split() == ["b", "50.0", "(10-90)", "50.0", "(10-90)"]


def test_damaged_results_are_named() -> None:
    broken: list[dict[str, Any]] = [{}, {"accuracy": {"one": {}}}, {"accuracy": {"1": {"p": ["x"]}}}]
    for record in broken:
        with pytest.raises(lc.UsageError, match=r"results\.json: its part 'accuracy' is not as a run writes it"):
            Results(record, {}, []).to_pandas()


def test_logged_rationales(run: lc.Run, tmp_path: Path) -> None:
    logged = list(run.rationales())
    assert {(one.phase, one.log_reward is None) for one in logged} == {("e_step", False), ("draw", True)}
    frame, dataset = run.rationales().to_pandas(), run.rationales().to_dataset()
    assert len(frame) == len(dataset) == len(logged)
    assert list(frame["text"]) == dataset["text"][:] == [one.rationale.text for one in logged]
    assert dataset[0]["tokens"] == list(logged[0].rationale.tokens)
    assert dataset[0]["tool_calls"][0]["tool"] == "calculator"


def test_a_damaged_log_is_named(run: lc.Run, tmp_path: Path) -> None:
    assert run.path is not None
    (tmp_path / "config.yaml").write_text((run.path / "config.yaml").read_text())
    (tmp_path / "rationales.jsonl").write_text('{"round": 1, "rationale": {}}\n')
    with pytest.raises(lc.UsageError, match=r"rationales\.jsonl, line 1: .*take the line out"):
        list(lc.load(tmp_path).rationales())


def test_code_in_a_run_folder_needs_trust(run: lc.Run, tmp_path: Path) -> None:
    assert run.path is not None
    task = tmp_path / "mine.py"
    task.write_text("from latent_cot.tasks.arithmetic import TASK\n")
    folder = tmp_path / "run"
    folder.mkdir()
    settings = (run.path / "config.yaml").read_text().replace("task: arithmetic", f"task: {task}")
    (folder / "config.yaml").write_text(settings)
    with pytest.raises(lc.UsageError, match=r"names code to run: .*mine\.py"):
        lc.load(folder)
    assert lc.load(folder, trust_code=True).task.name == "arithmetic"


# -- sampling and scoring ----------------------------------------------------------------------------------


def test_samples_add_up(run: lc.Run) -> None:
    found = run.sample(QUESTION, n=6)
    assert found.reasoner == "q" and found.n == sum(item.count for item in found) == 6
    assert found.question == QUESTION and found.example.answer == "-6"
    weights = [item.weight for item in found if item.weight is not None]
    assert len(weights) == len(found)
    assert sum(weights) == pytest.approx(1)
    assert weights == sorted(weights, reverse=True)
    for item in found:
        assert item.text == "".join(token.text for token in item.tokens)
        assert item.log_q is not None and item.stops[-1].log_q is not None
        total_q = sum(token.log_q for token in item.tokens if token.log_q is not None) + item.stops[-1].log_q
        total_p = sum(token.log_p for token in item.tokens if token.log_p is not None) + item.stops[-1].log_p
        assert item.log_q == pytest.approx(total_q)
        assert item.log_p == pytest.approx(total_p)
        assert item.log_reward == item.stops[-1].log_reward
        assert item.stops[-1].position == len(item.tokens)
        assert [token.chosen for token in item.tokens] == [token.log_q is not None for token in item.tokens]
    # The definition: the weights are R / q, the bound the log of their mean, the ESS (Σ w)² / Σ w² ÷ n.
    raw = [
        math.exp((item.log_reward or 0) - (item.log_q or 0) - (found.bound or 0))
        for item in found
        for _ in range(item.count)
    ]
    assert sum(raw) / 6 == pytest.approx(1, rel=1e-4)
    assert found.ess == pytest.approx(sum(raw) ** 2 / sum(w**2 for w in raw) / 6, rel=1e-4)


def test_some_of_the_rationales(run: lc.Run) -> None:
    found = run.sample(QUESTION, n=6)
    some = found[:2]
    assert isinstance(some, Rationales) and some.items == found.items[:2] and some.ess is None
    assert found[::-1].ess == found.ess and found[-1] == found.items[-1]
    assert len(repr(found[0])) < 300 and repr(found[0].text)[:20] in repr(found[0])


def test_the_same_seed_gives_the_same_sample(run: lc.Run) -> None:
    assert run.sample(QUESTION, n=3, seed=1) == run.sample(QUESTION, n=3, seed=1)
    assert run.sample(QUESTION, n=3, seed=1) != run.sample(QUESTION, n=3, seed=2)


def test_several_questions(run: lc.Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    questions: list[str | lc.Example] = [QUESTION, run.task.example("1 + 2"), "3 - 1 + 5"]
    found = run.sample(questions, n=3, seed=1, progress=False)
    assert [one.question for one in found] == [QUESTION, "1 + 2", "3 - 1 + 5"] and [one.n for one in found] == [3] * 3
    assert [one.example.answer for one in found] == ["-6", "3", "7"]
    assert all(sum(item.weight or 0 for item in one) == pytest.approx(1) for one in found)
    assert run.sample(iter(questions), n=3, seed=1, progress=False) == found, "the seed decides"
    assert run.sample([QUESTION], n=3, seed=1, progress=False) == [run.sample(QUESTION, n=3, seed=1)]
    assert run.sample([], progress=False) == []
    # In several batches they are others, and the same again; no batch repeats the noise of another.
    monkeypatch.setattr(type(run.in_memory()), "test_batch_size", 1)
    monkeypatch.setattr("latent_cot.methods.evaluator.BATCHES_AT_ONCE", 1)
    monkeypatch.setattr("latent_cot.report.terminal.LINE_SECONDS", 0.0)
    capsys.readouterr()
    once, again, *others = run.sample([QUESTION] * 6, n=3, seed=1)
    assert "questions 6/6" in capsys.readouterr().err
    assert any(set(one.items) != set(once.items) for one in (again, *others))
    assert run.sample([QUESTION] * 6, n=3, seed=1, progress=False) == [once, again, *others]


def test_no_weights_where_a_method_decodes_in_another_way(run: lc.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Method, "draws_as_it_is", False)
    found = run.sample(QUESTION, n=6)
    assert found[0].weight is None and found.ess is None and found.bound is None


def test_no_weights_from_a_tempered_sample(run: lc.Run) -> None:
    found = run.sample(QUESTION, n=2, temperature=0, reasoner="p")
    assert [item.count for item in found] == [2]
    assert found[0].weight is None and found.ess is None and found.bound is None
    assert found[0].log_reward is not None


def test_scoring_a_chain_with_or_without_the_results(run: lc.Run) -> None:
    whole, early = run.score(QUESTION, CHAIN, " 6 - 0 = 6, 6 - 4 =")
    assert whole.text == CHAIN and whole.correct
    assert early.text == " 6 - 0 = 6, 6 - 4 = 2" and not early.correct
    assert whole.weight is None
    (bare,) = run.score(QUESTION, " 6 - 0 =, 6 - 4 =, 2 - 8 =")
    assert bare.rationale == whole.rationale
    assert bare.log_q == pytest.approx(whole.log_q, abs=1e-4)
    # The states of the shorter chain are those of the longer one: the same prefixes.
    for a, b in zip(early.stops, whole.stops, strict=False):
        assert a.position == b.position
        assert a.log_q == pytest.approx(b.log_q, abs=1e-4)
        assert a.log_p == pytest.approx(b.log_p, abs=1e-4)
        assert a.log_reward == pytest.approx(b.log_reward, abs=1e-3)


def test_what_was_sampled_can_be_scored(run: lc.Run) -> None:
    """With its calls that failed, and where it was cut, which a text may not have."""
    found = run.sample(QUESTION, n=16, reasoner="p", seed=1)
    assert any(item.rationale.failed or item.rationale.truncated for item in found)
    scored = run.score(QUESTION, *found)
    assert [item.rationale for item in scored] == [item.rationale for item in found]
    for a, b in zip(scored, found, strict=True):
        assert (a.log_p, a.log_reward) == pytest.approx((b.log_p, b.log_reward), abs=1e-4)
    assert run.score(QUESTION, found[0].rationale)[0].rationale == found[0].rationale
    logged = next(iter(run.rationales()))
    assert run.score(logged.question, logged)[0].rationale.tokens == logged.rationale.tokens
    other = dataclasses.replace(found[0].rationale, text="in other words")
    with pytest.raises(lc.UsageError, match="'in other words': was written with another tokenizer, other tools"):
        run.score(QUESTION, other)


def test_samples_are_those_of_the_command_line(run: lc.Run, capsys: pytest.CaptureFixture[str]) -> None:
    from latent_cot.cli import main

    found = run.sample(QUESTION, n=4, seed=3)
    capsys.readouterr()
    assert main(["sample", str(run.path), "--question", QUESTION, "-n", "4", "--seed", "3", "--json"]) == 0
    printed = {one["text"]: one for one in json.loads(capsys.readouterr().out)["samples"]}
    assert printed.keys() == {item.text for item in found}
    for item in found:
        assert printed[item.text]["log_prob"] == pytest.approx(item.log_q, abs=1e-4)
        assert printed[item.text]["log_reward"] == pytest.approx(item.log_reward, abs=1e-3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n": "2"}, "n is '2'; it must be a whole number"),
        ({"n": 2.0}, r"n is 2\.0; it must be a whole number"),
        ({"n": None}, "n is None; it must be a whole number"),
        ({"seed": 1.5}, r"seed is 1\.5; it must be a whole number"),
        ({"temperature": "1"}, "temperature is '1'; it must be a number"),
        ({"answer": 3.5}, r"an answer is a text, or a whole number: 3\.5"),
    ],
)
def test_settings_of_another_type(run: lc.Run, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(lc.UsageError, match=message):
        run.sample(QUESTION, **wrong)


def test_an_answer_may_be_a_number(run: lc.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    n: Any = np.int64(1)
    assert run.sample(QUESTION, n=n, answer=-6) == run.sample(QUESTION, n=1, answer="-6")

    def example(question: str, answer: str | None = None) -> lc.Example:
        return lc.Example(str(int(question)))

    asked = lc.load(run.path or "")
    monkeypatch.setattr(type(asked.task), "example", staticmethod(example))
    with pytest.raises(lc.UsageError, match=r"no question of arithmetic: '6 - 0 - 4 - 8' .invalid literal for int"):
        asked.sample(QUESTION)


def test_bad_questions_and_chains(run: lc.Run) -> None:
    with pytest.raises(lc.UsageError, match="question"):
        run.sample("how many?")
    with pytest.raises(lc.UsageError, match="n is 0"):
        run.sample(QUESTION, n=0)
    with pytest.raises(lc.UsageError, match="temperature is nan"):
        run.sample(QUESTION, temperature=math.nan)
    with pytest.raises(lc.UsageError, match="not one a rationale may contain"):
        run.score(QUESTION, " six")
    with pytest.raises(lc.UsageError, match="may not stop"):
        run.score(QUESTION, " 6 - 0")
    with pytest.raises(lc.UsageError, match="rationales is 0"):
        run.score(QUESTION)
    for wrong in (lc.Example("x").z, [CHAIN, CHAIN], run.sample(QUESTION, n=2)):
        with pytest.raises(lc.UsageError, match=r"is a text, and no .*score\(question, \*texts\)") as refused:
            run.score(QUESTION, wrong)  # type: ignore[arg-type]
        assert len(str(refused.value)) < 200
    with pytest.raises(lc.UsageError, match="answer '77': an Example has its own"):
        run.sample(lc.Example("1 + 2"), answer="77")
    with pytest.raises(lc.UsageError, match="answer '3': is that of one question, and there are several"):
        run.sample(["1 + 2"], answer="3")  # type: ignore[call-overload]
    with pytest.raises(lc.UsageError, match="a question is a text, or an Example: 5"):
        run.sample(["1 + 2", 5])  # type: ignore[list-item]
    with pytest.raises(lc.UsageError, match="a question is a text, or an Example: 5"):
        run.sample(5)  # type: ignore[call-overload]
    with pytest.raises(lc.UsageError, match="colour by 'z': give 'q' or 'p'"):
        run.score(QUESTION, CHAIN).coloured_by("z")  # type: ignore[arg-type]
    with pytest.raises(lc.UsageError, match="reasoner z: a run of em answers with q or p"):
        run.sample(QUESTION, reasoner="z")  # type: ignore[call-overload]


def test_what_can_be_loaded(run: lc.Run, tiny_model_dir: Path, tmp_path: Path) -> None:
    assert lc.load(run) is run
    task = tmp_path / "mine.py"
    task.write_text("from latent_cot.tasks.arithmetic import TASK\n")
    assert lc.load(tiny_model_dir, task=task, trust_code=True).config.task == str(task)
    with pytest.raises(lc.UsageError, match=r"load takes the folder of a run, .* and no int"):
        lc.load(5)  # type: ignore[arg-type]
    with pytest.raises(lc.UsageError, match=r"a task is given by its name, .* and no Arithmetic"):
        lc.load(tiny_model_dir, task=run.task)  # type: ignore[arg-type]


def test_a_base_model(tiny_model_dir: Path) -> None:
    base = lc.load(tiny_model_dir, task="arithmetic")
    assert (base.status, base.path, base.reasoners) == ("untrained", None, ("p",))
    found = base.sample(QUESTION, n=2)
    assert found.reasoner == "p"
    assert all(item.log_q is None and item.weight is not None for item in found)
    with pytest.raises(lc.UsageError, match="no q"):
        found.coloured_by("q")
    with pytest.raises(lc.UsageError, match="--reasoner q: an untrained model"):
        base.sample(QUESTION, reasoner="q")
    with pytest.raises(lc.UsageError, match="a base model has no results"):
        _ = base.results


@pytest.mark.parametrize("text", ["12 = 34", "é", "日本 x", "a\u0301"])
def test_pieces_are_the_text(text: str) -> None:
    codec = TextCodec(build_tokenizer(merges=[("1", "2"), (" ", "=")]))
    tokens = codec.encode(text)
    assert "".join(pieces(tokens, codec.decode)) == codec.decode(tokens)


def test_a_character_of_several_tokens() -> None:
    """As with byte-level tokenizers: half a character decodes to a replacement character."""
    text = "a€b"
    data = text.encode()

    def decode(ids: Any) -> str:
        return bytes(data[i] for i in ids).decode(errors="replace")

    assert pieces(range(len(data)), decode) == ["a", "", "", "€", "b"]


# -- evaluating --------------------------------------------------------------------------------------------


def test_evaluation(run: lc.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from latent_cot.cli import main

    found = run.evaluate("operands=4..5", size=3, max_tokens=8, progress=False)
    assert found.points == {
        "4-operands": {"operands": 4, "digits": 1, "trained": True},
        "5-operands": {"operands": 5, "digits": 1, "trained": False},
    }
    frame = found.to_pandas()
    assert list(frame["operands"]) == [4, 5, 4, 5] and list(frame["n"]) == [3] * 4
    answers = found.answers()
    assert len(answers) == 12
    wrong = answers.query("reasoner == 'q' and not correct")
    assert wrong["mistake"].notna().all()
    assert found.mistakes_of("q")["count"].sum() == len(wrong)
    with pytest.raises(lc.UsageError, match="reasoner 'z': those that were asked are q, p"):
        found.mistakes_of("z")
    # Beside another evaluation of some of the questions.
    frame = found.difference(run.evaluate("4-operands", size=3, max_tokens=8, progress=False))
    assert list(frame["reasoner"]) == list(frame["against"]) == ["q", "p"]
    assert set(frame["split"]) == {"4-operands"} and list(frame["difference"]) == [0, 0] and list(frame["n"]) == [3, 3]
    q, p = (run.evaluate("5-operands", size=3, reasoner=one, progress=False) for one in run.reasoners)
    (beside,) = q.difference(p).to_dict("records")
    assert (beside["reasoner"], beside["against"], beside["figure"]) == ("q", "p", "right")
    assert beside["first"] == q.figures["q"]["5-operands"]["accuracy"]
    with pytest.raises(lc.UsageError, match="no question in common"):
        q.difference(run.evaluate("3-operands", size=1, reasoner="q", max_tokens=8, progress=False))
    # As the command line has it.
    capsys.readouterr()
    options = ["--split", "operands=4..5", "--size", "3", "--max-tokens", "8", "--json"]
    assert main(["eval", str(run.path), *options]) == 0
    assert json.loads(capsys.readouterr().out)["results"] == found.figures
    file = tmp_path / "questions.jsonl"
    file.write_text('{"question": "1 + 2 - 3 + 9 - 4", "answer": 5}\n')
    assert list(run.evaluate(files=file, size=1, progress=False).figures["p"]) == [str(file)]
    # And what was asked for once is not kept.
    assert run.evaluate("4-operands", size=1, reasoner="p", progress=False).answers()["chain"].str.len().item() > 8


def test_bad_evaluations(run: lc.Run, settings: dict[str, Any]) -> None:
    with pytest.raises(lc.UsageError, match="no test split"):
        run.evaluate("5-operandz")
    with pytest.raises(lc.UsageError, match="votes is 3: at temperature 0"):
        run.evaluate(votes=3, temperature=0)
    with pytest.raises(lc.UsageError, match="size is '2'; it must be a whole number"):
        run.evaluate(size="2")  # type: ignore[arg-type]
    with pytest.raises(lc.UsageError, match="files is 5; give a name, or a list of names"):
        run.evaluate(files=5)  # type: ignore[arg-type]
    with pytest.raises(lc.UsageError, match="size is 0"):
        run.evaluate(size=0)
    with pytest.raises(lc.UsageError, match=r"samples: the task arithmetic has right answers; .*: use votes"):
        run.evaluate(samples=3)
    with pytest.raises(lc.UsageError, match="an untrained model has the reasoner p only"):
        lc.load(settings["model"]).evaluate(reasoner="q")


def test_a_task_with_metrics_instead_of_right_answers(tmp_path: Path, settings: dict[str, Any]) -> None:
    small: dict[str, Any] = {
        "p_init": "base",
        "rollout": {"granularity": "token", "max_tokens": 4},
        "m_step": {"steps": 0},
    }
    evaluation = {"splits": None, "samples": 20, "max_tokens": 4, "diagnostics": 1}
    config = lc.configure("smoke", task="random_numbers", evaluation=evaluation, **small)
    run = lc.train(config, output_dir=tmp_path / "run", **settings)
    frame = run.results.to_pandas()
    assert set(frame["metric"]) <= set(run.task.metrics)
    assert frame["value"].notna().any()
    with pytest.raises(lc.UsageError, match="votes: the task random_numbers has no right answers, only figures"):
        run.evaluate(votes=3)
    found = run.evaluate(progress=False)
    assert set(found.to_pandas()["metric"]) == set(frame["metric"])
    answers = found.answers()
    assert len(answers) == len(found.figures) and not found.outcomes  # there is one question
    assert answers["rationales"][0][0]["text"]
    name = frame["metric"].iloc[0]
    assert name in repr(run.results) and name in run.results._repr_html_() and name in found._repr_html_()


# -- exporting ---------------------------------------------------------------------------------------------


def test_a_run_is_exported(run: lc.Run, settings: dict[str, Any], tmp_path: Path) -> None:
    assert run.export(tmp_path / "q") == tmp_path / "q"
    assert {"README.md", "adapter_model.safetensors"} <= {file.name for file in (tmp_path / "q").iterdir()}
    with pytest.raises(lc.UsageError, match="is not empty"):
        run.export(tmp_path / "q")
    with pytest.raises(lc.UsageError, match="a base model has no adapter to export"):
        lc.load(settings["model"]).export(tmp_path / "base")


# -- looks -------------------------------------------------------------------------------------------------


def hostile_rationales() -> Rationales:
    call = ToolCall(HOSTILE, 1, HOSTILE, HOSTILE, n_tokens=1)
    failed = ToolCall("calculator", 3, HOSTILE, None, error=HOSTILE)
    z = Rationale((1, 2, 3), (True, False, True), (True, False, True, True), HOSTILE * 3, calls=(call, failed))
    tokens = (Token(HOSTILE, True, -1.0, -2.0), Token(HOSTILE, False, None, None), Token(HOSTILE, True, -0.5, -0.1))
    stops = tuple(Stop(i, -1.0, -1.0, -3.0) for i in (0, 2, 3))
    item = ScoredRationale(z, 1, -2.5, -3.1, -3.0, 1.0, HOSTILE, False, tokens, stops)
    example = lc.Example(HOSTILE, question=HOSTILE)
    return Rationales(example, (item,), "q", 1.0, -0.5, "q")


def test_hostile_text_is_shown_and_not_run() -> None:
    found = {"accuracy": 0.5, "correct": 1, "n": 2, "interval_95": [0.1, 0.9]}
    results = Results({"accuracy": {"1": {HOSTILE: {HOSTILE: found}}}}, {}, [])
    run = lc.load(f"{HOSTILE}", task="arithmetic")
    for shown in (hostile_rationales(), results, run):
        html = shown._repr_html_()
        assert "<script" not in html
        assert "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;&amp;\\x1b[31m\\u202e" in html
        for text in (html, repr(shown)):
            assert "\x1b" not in text and "\u202e" not in text


def test_a_rationale_in_html(run: lc.Run) -> None:
    (item,) = run.score(QUESTION, CHAIN)
    html = run.score(QUESTION, CHAIN)._repr_html_()
    assert html.count('<b class="tool"') == 3 + 1  # and once in the legend
    assert html.count("⊤</i>") == len(item.stops) + 1
    assert 'title="calculator: 6 - 0"' in html
    assert f"log p {item.tokens[0].log_p:.2f}".replace("-", "−") in html
    assert " 6 - 0 =‹6›, 6 - 4 =‹2›, 2 - 8 =‹-6›" in repr(run.score(QUESTION, CHAIN))
    assert "finished" in repr(run) and "3-operands" in run._repr_html_()
    by_p = run.score(QUESTION, CHAIN).coloured_by("p")._repr_html_()
    assert "log p of a token" in by_p and "log q of a token" in html
