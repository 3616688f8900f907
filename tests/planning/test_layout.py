"""Which layout is suggested."""

from __future__ import annotations

from dataclasses import replace

import pytest

from latent_cot.config.settings import load_config
from latent_cot.planning.cost import CostModel
from latent_cot.planning.hardware import GPUS
from latent_cot.planning.layout import Layout, layouts, split, suggested
from latent_cot.planning.rounds import Texts
from latent_cot.planning.shape import SHAPES

TEXTS = Texts(prompt=16, chain=40, longest=40, answer=8, states=3, distinct=1.0)


def ways(model: str, gpu: str = "h100", devices: int = 8, questions: int = 8) -> list[Layout]:
    config = load_config()
    config = replace(config, e_step=replace(config.e_step, questions=questions))
    return layouts(config, TEXTS, CostModel(SHAPES[model], GPUS[gpu], 16), devices, 4)


def test_one_device_has_one_layout() -> None:
    assert [one.name for one in ways("7b", devices=1)] == ["one device"]


def test_what_is_too_large_for_one_device_is_sharded() -> None:
    found = ways("72b")
    assert [one.fits for one in found] == [False, False, True]
    best = suggested(found)
    assert best is not None and best.name == "sharded"


def test_nothing_is_suggested_where_nothing_fits() -> None:
    assert suggested(ways("72b", gpu="l4")) is None


def test_more_devices_are_suggested_where_there_is_work_for_them() -> None:
    """8 questions a step are one a device, which decodes as slowly as 8."""
    few, many = suggested(ways("7b")), suggested(ways("7b", questions=512))
    assert few is not None and few.name == "one device"
    assert many is not None and many.name == "data parallel"


def test_data_parallel_is_faster_and_dearer() -> None:
    one, several, _ = ways("7b")
    assert several.seconds < one.seconds
    assert several.device_hours > one.device_hours
    assert several.round.peak < one.round.peak, "each has the activations of fewer questions"


@pytest.mark.parametrize(("samplers", "devices", "expected"), [(1.0, 8, (4, 4)), (3.0, 8, (6, 2)), (0.1, 2, (1, 1))])
def test_samplers_and_trainers_are_equally_busy(samplers: float, devices: int, expected: tuple[int, int]) -> None:
    assert split(samplers, devices) == expected
