"""What a run folder tells by itself: no model and no torch is loaded.

Figures come from `events.jsonl` and not from `results.json`, so that a run that goes on, or was stopped, can be shown.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from itertools import groupby
from operator import attrgetter
from typing import Any

from latent_cot.config.methods import METHODS
from latent_cot.config.schema import tool_names
from latent_cot.evaluation.splits import numbers_of
from latent_cot.methods.trouble import LOOK_PERFECT
from latent_cot.report.plots import trained_splits
from latent_cot.report.tables import metric_text
from latent_cot.run.reasoners import Source
from latent_cot.run.run_folder import RunFolder
from latent_cot.run.schemas import LoggedRationale
from latent_cot.types import Example, Metric, Rationale, Task, TaskData

Json = dict[str, Any]

POSTERIOR = {"diagnose_before": "before", "diagnose": "after"}
"""Phases that compare q with the posterior -> when, relative to q's training."""
LOGGED_STEPS = 3
"""Of each phase that logs rationales: from so many steps, the first to the last, samples are shown."""
_NOT_FIGURES = {"time", "kind", "round", "unit", "note"}


def collect(source: Source, folder: RunFolder, task: Task, data: TaskData) -> Json:
    """All that the report shows of a run but `samples`.

    Args:
        data: the run's own questions, to tell how many there are, and which of a sweep's numbers were trained on; none
            where they are not known.

    Raises UsageError if a log is broken.
    """
    config = source.config
    events = list(folder.events())
    return {
        "name": folder.name,
        "task": config.task,
        "model": config.model,
        "method": config.method,
        "q_sees": config.q_sees,
        "joint": config.e_step.rewards_joint and not task.has_own_reward,
        "status": folder.about.status,
        "facts": facts(source, task, folder, data),
        "settings": folder.config,
        "notes": [event["text"] for event in events if event["kind"] == "note" and "text" in event],
        "warnings": [
            {name: event.get(name) for name in ("round", "kind", "unit", "warning")}
            for event in events
            if "warning" in event
        ],
        "steps": steps(events),
        "posterior": posterior(events),
        "accuracy": accuracy(events, task, [*data.demonstrations, *data.unlabelled]),
        "metrics": metrics(events, task),
        "logged": logged(folder.rationales()),
    }


# -- what was run ------------------------------------------------------------------------------------------


def facts(source: Source, task: Task, folder: RunFolder, data: TaskData) -> list[list[str]]:
    """[label, value] pairs: what was run, on what, and what it took."""
    config, about = source.config, folder.about
    results = folder.results if source.finished else {}
    budget = results.get("budget")
    resources = results.get("resources", {})
    sees = {"question": "the question only, q(Z | X)", "question-and-answer": "the answer, q(Z | X, Y)"}[config.q_sees]
    samples = METHODS[config.method].trains_q
    spent = "{trajectories:,} rationales sampled, {gradient_steps:,} gradient steps"
    found = {
        "task": task.description,
        "method": METHODS[config.method].description + (f"; here q sees {sees}" if samples else ""),
        "model": f"{config.model}, LoRA of rank {config.lora.rank}",
        "tools": ", ".join(tool_names(config, task)) or "none",
        "data": f"{len(data.demonstrations)} demonstrations, {len(data.unlabelled)} question-answer pairs, "
        f"{len(data.validation)} for validation"
        if data.demonstrations or data.unlabelled
        else "",
        "seed": str(config.seed),
        "status": about.status,
        "started": about.started_at[:16].replace("T", " "),
        "time": f"{timedelta(seconds=round(resources['seconds']))} (h:min:s)" if resources else "",
        "memory": f"{memory / 1e9:.1f} GB at the peak" if (memory := resources.get("peak_memory_bytes")) else "",
        "training": spent.format(**budget) if budget else "",
        "machine": f"{about.platform}, threads: {about.torch_threads}",
        "versions": ", ".join(f"{name} {version}" for name, version in about.versions.items()),
    }
    return [[label, value] for label, value in found.items() if value]


# -- its figures -------------------------------------------------------------------------------------------


def steps(events: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, list[Any]]]:
    """Phase -> figure -> its value at each unit of work, in order; None where a unit has none.

    Each phase has the columns `round` and `unit`, and those of its figures that are numbers.
    """
    units: dict[str, list[Mapping[str, Any]]] = {}
    for event in events:
        if "unit" in event and event["kind"] != "evaluate":
            units.setdefault(event["kind"], []).append(event)
    found = {}
    for phase, of_phase in units.items():
        numbers = (
            name
            for event in of_phase
            for name, value in event.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        )
        names = [name for name in dict.fromkeys(["round", "unit", *numbers]) if name != "time"]
        found[phase] = {name: [_figure(event, name) for event in of_phase] for name in names}
    return found


def _figure(event: Mapping[str, Any], name: str) -> Any:
    """None for those that only look perfect."""
    return None if event.get("one_chain") and name in LOOK_PERFECT else rounded(event.get(name))


def posterior(events: Iterable[Mapping[str, Any]]) -> list[Json]:
    """How near q was to the posterior: a row a round and `when` ("before" or "after" q's training)."""
    # A unit's figures are means over all questions so far: the last one's count.
    rows = {(event["round"], POSTERIOR[event["kind"]]): event for event in events if event["kind"] in POSTERIOR}
    return [
        {"round": number, "when": when, **{name: _figure(event, name) for name in event if name not in _NOT_FIGURES}}
        for (number, when), event in sorted(rows.items(), key=lambda item: (item[0][0], item[0][1] == "after"))
    ]


def accuracy(events: Iterable[Mapping[str, Any]], task: Task, training: Sequence[Example]) -> list[Json]:
    """The share of right answers: a row a round, reasoner and split, with its 95 % interval.

    `numbers` are those that name the split, such as that of operands, if the task has such splits; `trained`
    tells whether there was a training question with the same numbers.
    """
    latest = {
        (event["round"], event["reasoner"], event["split"]): event
        for event in events
        if event["kind"] == "evaluate" and {"accuracy", "n", "interval_95"} <= event.keys()
    }
    numbers = {split: numbers_of(task, split) for _, _, split in latest}
    trained = trained_splits({split: found for split, found in numbers.items() if found}, training)
    return [
        {
            **{name: event[name] for name in ("round", "reasoner", "split", "accuracy", "n")},
            "interval": event["interval_95"],
            "numbers": numbers[event["split"]],
            "trained": event["split"] in trained if numbers[event["split"]] and training else None,
        }
        for event in latest.values()
    ]


def metrics(events: Iterable[Mapping[str, Any]], task: Task) -> list[Json]:
    """The figures that a task has instead of right answers: a row a round, reasoner, split and metric."""
    latest: dict[tuple[Any, ...], Json] = {}
    for event in (event for event in events if event["kind"] == "evaluate"):
        for name, found in (event.get("metrics") or {}).items():
            place = {"round": event["round"], "reasoner": event["reasoner"], "split": event["split"], "metric": name}
            metric = task.metrics.get(name, Metric(""))
            about = {"description": metric.description, "better": metric.better, "text": metric_text(found, metric)}
            figures = {"value": rounded(found["value"]), "n": found["n"], "interval": found["interval_95"]}
            latest[tuple(place.values())] = {**place, **about, **figures}
    return list(latest.values())


def rounded(value: Any) -> Any:
    """A figure to 5 significant digits: more cannot be seen."""
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value


# -- its rationales ----------------------------------------------------------------------------------------


def logged(rationales: Iterable[LoggedRationale]) -> list[Json]:
    """Rationales that were sampled while training, at the first, the middle and the last steps of each phase."""
    chosen: list[LoggedRationale] = []
    for _, group in groupby(rationales, attrgetter("round", "phase")):
        found = list(group)
        units = list(dict.fromkeys(one.unit for one in found))
        wanted = {units[round(k * (len(units) - 1) / (LOGGED_STEPS - 1))] for k in range(LOGGED_STEPS)}
        chosen += [one for one in found if one.unit in wanted]
    return [
        {
            **{name: getattr(one, name) for name in ("round", "phase", "unit", "question", "count")},
            "text": segments(one.rationale),
            "cut": one.rationale.truncated,
            "log_reward": rounded(one.log_reward),
        }
        for one in chosen
    ]


def segments(rationale: Rationale) -> list[list[str]]:
    """A rationale's text in [kind, text] parts: "own" what the model wrote, "tool" a tool's result, "failed" why a call
    failed (which is no part of the text).

    The log has the text and the tokens, but only the tokenizer knows which tokens are which characters: a call's
    request is looked for in the text, and its result behind that. A result that is not found stays in an "own" part.
    """
    text, shown, cursor = rationale.text, 0, 0
    parts: list[list[str]] = []
    for call in rationale.calls:
        asked = text.find(call.request, cursor)
        cursor = cursor if asked < 0 else asked + len(call.request)
        begin = -1 if call.result is None or asked < 0 else text.find(call.result, cursor)
        if call.result is not None and begin >= 0:
            parts += [["own", text[shown:begin]], ["tool", call.result]]
            shown = cursor = begin + len(call.result)
    parts.append(["own", text[shown:]])
    parts += [["failed", f"{call.request}: {call.error}"] for call in rationale.calls if call.error]
    return [part for part in parts if part[1]]
