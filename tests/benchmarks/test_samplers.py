"""The simulation where its outcome is known in closed form."""

from __future__ import annotations

import json
import math

import pytest

from benchmarks.samplers import Setting, main, settings, simulate


@pytest.mark.parametrize(("sample", "train"), [(3.0, 2.0), (2.0, 3.0), (1.0, 1.0)])
def test_one_sampler_and_the_trainer_wait_for_the_slower(sample: float, train: float) -> None:
    found = simulate(Setting(1, sample, train), 100_000)
    period = max(sample, train)
    assert found.trainer_busy == pytest.approx(train / period, rel=1e-3)
    assert found.useful == pytest.approx(sample / period, rel=1e-3)
    assert found.waiting == pytest.approx(1 - sample / period, abs=1e-3)
    assert found.updates == pytest.approx(100_000 / period, rel=1e-3)
    assert found.share_dropped == found.failed == 0


def test_failures_cost_what_renewal_theory_says() -> None:
    """A batch of S seconds takes (M + R) (exp(S / M) - 1) on average, for failures once in M seconds of work, which are
    exponential, and R seconds to restart."""
    found = simulate(Setting(1, 10, 0.01, mtbf=30, restart=5), 1_000_000)
    assert 1_000_000 / found.updates == pytest.approx((30 + 5) * math.expm1(10 / 30), rel=0.01)


def test_enough_samplers_keep_the_trainer_busy() -> None:
    found = simulate(Setting(16, 8.0, 1.0), 10_000)
    assert found.trainer_busy == pytest.approx(1, abs=0.01)
    assert found.useful == pytest.approx(8 / 16, rel=0.02)


def test_staleness_is_the_updates_while_a_batch_was_sampled_and_waited() -> None:
    """A trainer that is never busy: each batch meets the updates of the other samplers."""
    found = simulate(Setting(5, 10.0, 1e-6), 10_000)
    assert found.staleness == pytest.approx(4, abs=1.01)


def test_stale_batches_are_dropped() -> None:
    free, capped = (simulate(Setting(8, 4.0, 2.0, max_staleness=cap), 10_000) for cap in (math.inf, 3))
    assert free.share_dropped == 0 and free.staleness > 3
    assert capped.share_dropped > 0.1 and capped.staleness <= 3
    shares = (capped.useful, capped.dropped, capped.waiting, capped.failed)
    assert sum(shares) == pytest.approx(1, abs=0.01)


def test_shares_of_the_samplers_time_add_up_with_failures() -> None:
    found = simulate(Setting(8, 4.0, 0.4, mtbf=60, restart=20), 100_000)
    assert found.useful + found.dropped + found.waiting + found.failed == pytest.approx(1, abs=0.01)
    assert found.failed > 0.2


def test_a_seed_gives_the_same() -> None:
    setting = Setting(8, 4.0, 0.4, mtbf=60, restart=20)
    assert simulate(setting, 10_000, 1) == simulate(setting, 10_000, 1)
    assert simulate(setting, 10_000, 1) != simulate(setting, 10_000, 2)


def test_the_settings_are_those_of_the_page() -> None:
    found = settings(6.0, 5.0, 3600, 60, 4)
    assert sorted({one.samplers for one in found}) == [1, 8, 64, 1024]
    assert len(found) == len(set(found)) == 14


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    times = ["--sample", "60", "--train", "50"]
    assert main([*times, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 14
    assert main(times) == 0
    assert "trainer busy" in capsys.readouterr().out
