"""Rows that were asked, or have learned from, something else than those beside them: what they read has changed between
two runs, say. They are looked for within a seed, as each may have data of its own."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from latent_cot.report.comparison.records import Record


def notes(records: Sequence[Record]) -> list[str]:
    """A sentence for each set of rows whose test questions are not those of most others of the same seed, one for those
    whose training data are not, though their settings are, and one for those whose task's files, or base model, are
    not, though they have the same name."""
    splits: dict[str, list[str]] = {}
    for split in dict.fromkeys(split for record in records for split in record["questions"]):
        tested = [record for record in records if split in record["questions"]]
        if names := _others(tested, [(one["seed"],) for one in tested], [one["questions"][split] for one in tested]):
            splits.setdefault(names, []).append(split)
    found = [
        f"{', '.join(asked)}: {names} had other test questions than the rest of that seed; do not compare them."
        for names, asked in splits.items()
    ]
    known = [record for record in records if record.get("training")]  # earlier versions did not record it
    groups = [(one["seed"], json.dumps(one["config"]["data"], sort_keys=True)) for one in known]
    if names := _others(known, groups, [one["training"] for one in known]):
        found.append(f"{names} had other training data than the rest of that seed, with the same settings.")
    known = [record for record in records if record.get("task_files")]
    if names := _others(known, [_names_code(one["config"]) for one in known], [one["task_files"] for one in known]):
        found.append(f"{names} had another task file, or tool, than the rest: prompts and grades may be others.")
    known = [record for record in records if record.get("weights")]
    if names := _others(known, [(one["config"]["model"],) for one in known], [one["weights"] for one in known]):
        found.append(f"{names} had another base model than the rest, of the same name.")
    return found


def _names_code(config: Mapping[str, Any]) -> Hashable:
    """All that names files of a task: they differ where these do."""
    return json.dumps([config["task"], config["rollout"]["tools"], config["data"]["options"]], sort_keys=True)


def _others(records: Sequence[Record], groups: Sequence[Hashable], digests: Sequence[str]) -> str:
    """The rows whose digest is not that of most in their group, as `sft (seed 0), em (seeds 0, 1)`; of two that are as
    frequent the first is the usual one. Empty: there are none."""
    counts: dict[Hashable, Counter[str]] = {}
    for group, digest in zip(groups, digests, strict=True):
        counts.setdefault(group, Counter())[digest] += 1
    usual = {group: of_group.most_common(1)[0][0] for group, of_group in counts.items()}
    rows: dict[str, list[int]] = {}
    for record, group, digest in zip(records, groups, digests, strict=True):
        if digest != usual[group]:
            rows.setdefault(record["variant"], []).append(record["seed"])
    return ", ".join(f"{variant} ({_seeds(seeds)})" for variant, seeds in rows.items())


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
