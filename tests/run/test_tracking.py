"""What trackers are given of a run, once and in order, however often it is stopped."""

from __future__ import annotations

import json
import re
import signal
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from latent_cot.cli import main
from latent_cot.methods.method import Method
from latent_cot.methods.state import Phase
from latent_cot.report.terminal import Display
from latent_cot.run import tracking
from latent_cot.run.run_folder import RunFolder
from latent_cot.types import UsageError

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


class Recorder(GeneralTracker):
    """A tracker in memory. `runs` has one entry a process that opened it."""

    name = "recorder"
    requires_logging_directory = False
    main_process_only = False
    runs: list[Recorder]
    fails_at = -1

    def __init__(self, project: str, **arguments: Any) -> None:
        super().__init__()
        self.project, self.arguments = project, arguments
        self.settings: dict[str, Any] = {}
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.finished = 0

    @property
    def tracker(self) -> Recorder:
        return self

    def start(self) -> None:
        print("a client that prints to standard output")
        self.runs.append(self)

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.settings |= values

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        assert step is not None
        if step == self.fails_at:
            raise ConnectionError("the server is down\nfor good")
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    kind = type("Fresh", (Recorder,), {"runs": []})
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "recorder", kind)
    return kind


def em(folder: Path, model: Path, *flags: str) -> int:
    """A run that is short rather than good: 30 units or so."""
    sizes = {"data.unlabelled": 2, "rollout.max-tokens": 30, "evaluation.max-tokens": 6, "evaluation.size": 2}
    small = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    base = ["em", "--preset", "smoke", "--precision", "fp32", "--model", str(model), "--output-dir", str(folder)]
    return main([*base, *small, *flags])


def stop_after(monkeypatch: pytest.MonkeyPatch, name: str, unit: int) -> None:
    """Have a run stopped by a signal when that unit is done."""
    show = Display.on_unit

    def interrupt(self: Display, loop: Method, phase: Phase, info: Mapping[str, Any]) -> None:
        show(self, loop, phase, info)
        if (phase.name, loop.state.unit) == (name, unit):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Display, "on_unit", interrupt)


def units(folder: Path) -> int:
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return sum(event["kind"] != "note" for event in events)


# -- a whole run ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """A run that was stopped by a signal, and gone on with, in TensorBoard."""
    folder = tmp_path_factory.mktemp("tracked") / "run"
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, "e_step", 1)
        assert em(folder, tiny_model_dir, "--track", "tensorboard") == 130
    AcceleratorState._reset_state(reset_partial_state=True)
    time.sleep(1.0)  # TensorBoard sorts files by the second they were begun in, and within it "9" comes after "10"
    assert main(["em", "--output-dir", str(folder), "--resume", "--track", "tensorboard"]) == 0
    return folder


@pytest.fixture(scope="module")
def events(tracked: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(tracked / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    accumulator.Reload()
    return accumulator


def test_every_figure_of_every_unit_is_tracked_once(tracked: Path, events: EventAccumulator) -> None:
    expected: dict[str, list[float]] = {}
    for line in (tracked / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        for name, value in event.items():
            figure = isinstance(value, int | float) and name not in ("round", "unit")
            if figure and event["kind"] not in ("note", "evaluate"):
                expected.setdefault(f"round{event['round']}/{event['kind']}/{name}", []).append(value)
    found = {tag: [scalar.value for scalar in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    per_unit = {tag: values for tag, values in found.items() if tag.startswith("round")}
    assert per_unit.keys() == expected.keys() and "round1/e_step/loss" in expected
    for tag, values in expected.items():
        assert per_unit[tag] == pytest.approx(values, rel=1e-5), tag


def test_steps_rise_and_none_is_given_twice(tracked: Path, events: EventAccumulator) -> None:
    of_tag = {tag: [scalar.step for scalar in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert all(steps == sorted(set(steps)) for steps in of_tag.values())
    phases = ("init", "diagnose_before", "e_step", "diagnose", "draw", "m_step")
    firsts = [min(s for tag, steps in of_tag.items() if f"/{phase}/" in tag for s in steps) for phase in phases]
    assert firsts == sorted(set(firsts)), "a later phase has later steps"
    assert max(map(max, of_tag.values())) == units(tracked)


def test_accuracies_are_a_curve_over_rounds(tracked: Path, events: EventAccumulator) -> None:
    results = json.loads((tracked / "results.json").read_text())["accuracy"]
    found = [scalar.value for scalar in events.Scalars("accuracy/p/3-operands")]
    assert found == pytest.approx([results[number]["p"]["3-operands"]["accuracy"] for number in "01"])
    assert not any(tag.startswith("accuracy/q/") for tag in events.Tags()["scalars"]), "it has read the answers"
    assert {"posterior/before/variance", "posterior/after/ess"} <= set(events.Tags()["scalars"])


def test_hyperparameters(tracked: Path) -> None:
    [hyperparameters] = (tracked / "tensorboard").rglob("hparams.yml")  # the resumed run has not stored them again
    assert "e_step.objective: pooled-subtb" in hyperparameters.read_text()


# -- any tracker ---------------------------------------------------------------------------------------


def test_any_tracker(
    recorder: type[Recorder], tmp_path: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert em(tmp_path / "run", tiny_model_dir, "--track", "recorder", "--json") == 0
    assert json.loads(capsys.readouterr().out), "standard output has nothing but the results"
    [run] = recorder.runs
    assert run.project == "latent-cot" and run.finished == 1
    assert run.settings["e_step.samples"] == 4 and run.settings["evaluation.splits"] == "['3-operands', '4-operands']"
    assert [s for s, _ in run.logged] == sorted({s for s, _ in run.logged})


def test_a_killed_run_gives_no_step_twice(recorder: type[Recorder], tmp_path: Path, tiny_model_dir: Path) -> None:
    """Killed after units that no checkpoint has: they are done again, and not tracked again."""

    class Killed(BaseException):
        pass

    folder = tmp_path / "run"
    show = Display.on_unit

    def kill(*_: Any) -> None:
        raise Killed

    def kill_in_the_e_step(self: Display, loop: Method, phase: Phase, info: Mapping[str, Any]) -> None:
        show(self, loop, phase, info)
        if (phase.name, loop.state.unit) == ("e_step", 2):
            kill()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Display, "on_unit", kill_in_the_e_step)
        patch.setattr(RunFolder, "save", kill)  # who is killed saves nothing
        with pytest.raises(Killed):
            em(folder, tiny_model_dir, "--track", "recorder")
    AcceleratorState._reset_state(reset_partial_state=True)
    assert main(["em", "--output-dir", str(folder), "--resume", "--track", "recorder"]) == 0
    first, second = recorder.runs
    assert first.finished == 1
    counts = Counter(step for run in (first, second) for step, _ in run.logged)
    assert set(counts.values()) == {1}
    tags = Counter((step, tag) for run in (first, second) for step, found in run.logged for tag in found)
    assert set(tags.values()) == {1}
    assert min(step for step, _ in second.logged) > max(step for step, _ in first.logged)


def test_a_run_with_fewer_steps_than_it_had_loses_no_unit(
    recorder: type[Recorder], tmp_path: Path, tiny_model_dir: Path
) -> None:
    """What is left of a run may be changed in its configuration: what is tracked still goes on where it was."""
    folder = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, "validate", 1)
        assert em(folder, tiny_model_dir, "--track", "recorder", "--rounds", "2", "--m-step.steps", "6") == 130
    before, settings = units(folder), folder / "config.yaml"
    text = settings.read_text()
    changed = re.sub(r"(?ms)^(m_step:.*?^  steps: )6$", r"\g<1>1", text)
    assert changed != text
    settings.write_text(changed)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert main(["em", "--output-dir", str(folder), "--resume", "--track", "recorder"]) == 0
    first, second = recorder.runs
    steps = [step for run in (first, second) for step, _ in run.logged]
    assert steps == sorted(set(steps))
    tracked = {tag for _, found in second.logged for tag in found}
    assert units(folder) - before > len(second.logged) > 0
    assert any(tag.startswith("round2/diagnose_before") for tag in tracked), tracked


def test_a_tracker_that_fails_is_left_out(
    recorder: type[Recorder], tmp_path: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder.fails_at = 4  # the accuracies of round 0
    assert em(tmp_path / "run", tiny_model_dir, "--track", "recorder", "--track", "tensorboard") == 0
    assert "--track recorder: failed, and is left out from now on (the server is down)" in capsys.readouterr().out
    [run] = recorder.runs
    assert [step for step, _ in run.logged] == [1, 2]
    assert "tensorboard" in json.loads((tmp_path / "run" / "tracking.json").read_text())["runs"]


def test_compare_tracks_each_run_by_itself(recorder: type[Recorder], tmp_path: Path, tiny_model_dir: Path) -> None:
    base = ["compare", "--preset", "smoke", "--model", str(tiny_model_dir), "--set", "precision=fp32"]
    command = [*base, "--methods", "few-shot,sft", "--output-dir", str(tmp_path / "compare"), "--track", "recorder"]
    assert main(command) == 0
    assert [run.settings["method"] for run in recorder.runs] == ["few-shot", "sft"]
    assert all(run.finished == 1 and run.logged for run in recorder.runs)
    assert main(command) == 0
    assert len(recorder.runs) == 2, "what is finished is not tracked again"


# -- what is refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["tensorbord"], "Did you mean 'tensorboard'"),
        (["tensorboard", "tensorboard"], "given twice"),
        (["wandb"], "latent-cot[track-wandb]"),
        (["comet_ml"], "pip install comet-ml"),
    ],
)
def test_names(names: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerate.tracking._available_trackers", ["tensorboard"])
    with pytest.raises(UsageError) as caught:
        tracking.check(names)
    assert message in str(caught.value)


def test_a_tracker_that_does_not_start(
    recorder: type[Recorder], tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Recorder) -> None:
        raise RuntimeError("no API key")

    monkeypatch.setattr(recorder, "start", refuse)
    folder = RunFolder.create(tmp_path / "run", {"seed": 0})
    opened = tracking.Tracking(["recorder"], folder, {}, warn=pytest.fail)
    with pytest.raises(UsageError, match="--track recorder: cannot be started: no API key"):
        opened.__enter__()


# -- names ---------------------------------------------------------------------------------------------


def test_settings_are_flat() -> None:
    settings = {"e_step": {"steps": 40, "options": {}}, "tools": ("a", "b"), "none": None, "on": True}
    assert tracking.flat(settings) == {
        "e_step.steps": 40,
        "e_step.options": "{}",
        "tools": "('a', 'b')",
        "none": "None",
        "on": True,
    }


def test_metrics_of_a_task_are_tracked_by_round() -> None:
    figure = {"value": 0.5, "n": 3, "interval_95": [0.4, 0.6]}
    results = {"accuracy": {}, "metrics": {"1": {"q": {"test": {"BLEU (4)": figure}}}}, "posterior": {}}
    assert tracking._of_round(results, Phase(1, "evaluate")) == {"BLEU (4)/q/test": 0.5}
    assert tracking._of_round(results, Phase(0, "evaluate")) == {}
    assert tracking._of_round(results, Phase(1, "e_step")) == {}


# -- the packages themselves, where they are installed ---------------------------------------------------


def test_weights_and_biases_without_a_network(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="the extra `track-wandb` is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(patch, "e_step", 1)
        assert em(folder, tiny_model_dir, "--track", "wandb") == 130
    identity = json.loads((folder / "tracking.json").read_text())["runs"]["wandb"]
    AcceleratorState._reset_state(reset_partial_state=True)
    assert main(["em", "--output-dir", str(folder), "--resume", "--track", "wandb"]) == 0
    assert json.loads((folder / "tracking.json").read_text())["runs"]["wandb"] == identity
    assert len(list((folder / "wandb").glob(f"offline-run-*-{identity}"))) == 2


def test_mlflow_in_a_file(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow: Any = pytest.importorskip("mlflow", reason="the extra `track-mlflow` is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)  # its artifacts
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(patch, "e_step", 1)
        assert em(folder, tiny_model_dir, "--track", "mlflow", "--evaluation.splits", "operands=3,digits=1") == 130
    AcceleratorState._reset_state(reset_partial_state=True)
    assert main(["em", "--output-dir", str(folder), "--resume", "--track", "mlflow"]) == 0
    identity = json.loads((folder / "tracking.json").read_text())["runs"]["mlflow"]
    client = mlflow.MlflowClient()
    steps = [metric.step for metric in client.get_metric_history(identity, "round1/e_step/loss")]
    assert len(steps) == 2 and steps == sorted(set(steps))
    assert client.get_run(identity).data.params["e_step.objective"] == "pooled-subtb"
