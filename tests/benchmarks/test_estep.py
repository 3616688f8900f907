"""The benchmark in its small form: what it counts, not how long it takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import estep
from benchmarks.machine import Machine
from benchmarks.meter import Meter, linear_weights
from latent_cot.model.kv_cache import KVCache
from tests.worlds import language_model

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def test_it_measures_each_part(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", "tiny", "--steps", "1", "--workload", "default", "--workload", "paper", "--json"]
    assert estep.main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    for workload in ("default", "paper"):
        figures = report[workload]
        assert figures["trajectories_per_second"] > 0
        for part in ("rollout", "reward", "update"):
            assert figures["parts"][part]["seconds"] > 0
            assert figures["parts"][part]["tokens"] > 0
            assert 0 < figures["parts"][part]["limit_seconds"] < figures["parts"][part]["seconds"]
    paper = report["paper"]
    assert paper["questions"] == 1
    assert paper["samples"] == 16
    assert paper["times_plain"] > 0
    assert report["peak_memory_bytes"] > 0


def test_words_are_long_and_all_different(capsys: pytest.CaptureFixture[str]) -> None:
    assert estep.main(["--model", "tiny", "--steps", "1", "--workload", "words", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)["words"]
    assert figures["questions"] * figures["samples"] == figures["distinct_per_step"] == 128
    assert 60 <= figures["tokens_per_trajectory"] <= 120


def test_the_report_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert estep.main(["--model", "tiny", "--steps", "1", "--workload", "paper"]) == 0
    text = capsys.readouterr().out
    assert "paper:" in text
    assert "of the limit" in text


def test_arithmetic_is_counted(tiny_model: Callable[[str], Path]) -> None:
    """Against a count by hand, for a decoding step of two rows behind three cached tokens."""
    lm = language_model(tiny_model("llama"))
    config: Any = lm.peft.get_base_model().config
    meter = Meter(lm, Machine(matmul_flops=1e9, read_bytes=1e6, description={}))
    width, inner = config.hidden_size, config.intermediate_size
    keys = config.num_key_value_heads * (width // config.num_attention_heads)
    by_hand = config.num_hidden_layers * (2 * width * width + 2 * width * keys + 3 * width * inner)
    assert linear_weights(lm) == by_hand

    cache: KVCache = lm.new_cache(lm.merged("q"))
    with meter.on(), torch.no_grad():
        ids, mask = torch.tensor([[5, 6, 7], [5, 6, 7]]), torch.tensor([[1, 1, 1], [0, 1, 1]])
        lm.decode_step(lm.merged("q"), ids, mask, torch.tensor([[0, 1, 2], [0, 0, 1]]), cache)
        before = meter.parts["other"].flops
        assert before == 5 * 2 * by_hand  # padding is not counted
        mask = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])
        lm.decode_step(lm.merged("q"), torch.tensor([[8], [9]]), mask, torch.tensor([[3], [2]]), cache)
    part = meter.parts["other"]
    assert part.flops - before == 2 * 2 * by_hand
    cached = config.num_hidden_layers * 2 * 2 * 3 * keys * 4
    assert part.memory_seconds == pytest.approx((2 * by_hand * 4 + cached) / 1e6)
