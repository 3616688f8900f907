"""Importance weights against brute force, and the two gradients that they estimate."""

from __future__ import annotations

import math
import operator
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latent_cot.objectives.importance import baseline_weight, bound_error, forward_kl, importance_weights

LOG = st.floats(-60, 0, width=32)


@given(st.lists(st.lists(st.tuples(LOG, LOG, st.integers(1, 4)), min_size=1, max_size=4), min_size=1, max_size=3))
def test_weights_are_the_ratios(batch: list[list[tuple[float, float, int]]]) -> None:
    rows = [(p, q, float(n), g) for g, question in enumerate(batch) for p, q, n in question]
    p, q, n, group = map(torch.tensor, zip(*rows, strict=True))
    weight, info = importance_weights(p.double(), q.double(), n.double(), group)
    place = 0
    for g, question in enumerate(batch):
        ratios = [math.exp(a - b) for a, b, _ in question]
        total = sum(n * r for r, (_, _, n) in zip(ratios, question, strict=True))
        size = sum(n for _, _, n in question)
        expected = [n * r / total for r, (_, _, n) in zip(ratios, question, strict=True)]
        assert weight[place : place + len(question)].tolist() == pytest.approx(expected, rel=1e-6)
        assert float(info.bound[g]) == pytest.approx(math.log(total / size), abs=1e-6)
        # One sample at a time, the repeated ones too.
        single = [r / total for r, (_, _, n) in zip(ratios, question, strict=True) for _ in range(n)]
        assert float(info.ess[g]) == pytest.approx(1 / sum(w * w for w in single) / size, rel=1e-6)
        place += len(question)


def test_impossible_samples() -> None:
    target = torch.tensor([-math.inf, -2.0, -math.inf])
    weight, info = importance_weights(target, torch.full((3,), -1.0), torch.ones(3), torch.tensor([0, 0, 1]))
    assert weight.tolist() == [0.0, 1.0, 0.0]
    assert info.ess.tolist() == [0.5, 0.0]
    assert info.bound[1] == -math.inf


def test_the_gradients_are_those_of_the_forward_kl_and_of_the_evidence() -> None:
    """With every rationale once, and q uniform, the weighted sums are the exact expectations under the posterior."""
    torch.manual_seed(0)
    logits, joint = torch.randn(6).double().requires_grad_(), torch.randn(6).double().requires_grad_()
    log_q, log_p = logits.log_softmax(0), joint.log_softmax(0)
    posterior = log_p.detach().exp() / log_p.detach().exp().sum()
    group, once = torch.zeros(6, dtype=torch.long), torch.ones(6).double()
    uniform = torch.full((6,), -math.log(6)).double()
    weight, info = importance_weights(log_p.detach(), uniform, once, group)

    kl = (posterior * (posterior.log() - log_q)).sum()
    (exact,) = torch.autograd.grad(kl, logits)
    (found,) = torch.autograd.grad(-(weight * logits.log_softmax(0)).sum(), logits)
    assert torch.allclose(found, exact)

    unnormalised = joint[:4].logsumexp(0)  # log Σ_Z p(Z, Y): four of six rationales reach Y
    (exact,) = torch.autograd.grad(unnormalised, joint)
    weight, info = importance_weights(joint[:4].detach(), uniform[:4] * 0, once[:4], group[:4])
    (found,) = torch.autograd.grad((weight * joint[:4]).sum(), joint)
    assert torch.allclose(found, exact)
    assert float(info.bound[0]) == pytest.approx(float(unnormalised.detach()) - math.log(4))


COUNTS = st.lists(st.tuples(st.floats(1e-3, 1), st.integers(1, 4)), min_size=1, max_size=6)


@given(COUNTS)
def test_the_baseline_weight_is_the_best_of_a_control_variate(rows: list[tuple[float, int]]) -> None:
    """Cov(A, B) / Var(B), sample by sample, where each rationale's gradient is a direction of its own."""
    amounts, counts = zip(*rows, strict=True)
    total, n, size = math.fsum(amounts), sum(counts), len(rows)
    weight, share = [amount / total for amount in amounts], [count / n for count in counts]
    covariance = variance = 0.0
    for k, count in enumerate(counts):
        of_posterior = [(i == k) - weight[i] for i in range(size)]
        of_q = [(i == k) - share[i] for i in range(size)]
        for _ in range(count):
            covariance += weight[k] / count / n * sum(map(operator.mul, of_posterior, of_q))
            variance += 1 / n**2 * sum(map(operator.mul, of_q, of_q))
    found = baseline_weight(torch.tensor(weight).double(), torch.tensor(counts).double())
    expected = min(1.0, covariance / variance) if size > 1 else 1.0
    assert found == pytest.approx(expected, abs=1e-6)


def test_the_baseline_weight_is_nothing_for_one_of_several_rationales_and_all_for_even_ones() -> None:
    assert baseline_weight(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([1.0, 4.0, 3.0])) == 0.0
    assert baseline_weight(torch.tensor([0.25] * 4), torch.ones(4)) == 1.0
    assert baseline_weight(torch.tensor([1.0]), torch.tensor([8.0])) == 1.0


@given(st.lists(st.tuples(LOG, LOG, LOG), min_size=1, max_size=5), st.sampled_from([0.0, 0.3, 1.0]), st.floats(0.1, 1))
def test_what_q_gives_the_samples_is_subtracted(rows: list[tuple[float, float, float]], b: float, part: float) -> None:
    log_q, seen, target = (torch.tensor(of).double() for of in zip(*rows, strict=True))
    weight = part * (target + seen).softmax(0)
    log_q.requires_grad_()
    (found,) = torch.autograd.grad(forward_kl(log_q, weight, seen, b), log_q)
    ratios = [math.exp(q + s) for q, s in zip(log_q.tolist(), seen.tolist(), strict=True)]
    given_by_q = [ratio / math.fsum(ratios) for ratio in ratios]
    expected = [b * part * u - w for u, w in zip(given_by_q, weight.tolist(), strict=True)]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    assert torch.autograd.gradcheck(lambda x: forward_kl(x, weight, seen, b), log_q)


@given(st.lists(st.tuples(LOG, LOG), min_size=2, max_size=6))
def test_no_samples_move_a_q_that_is_the_posterior(rows: list[tuple[float, float]]) -> None:
    """Whichever they are, and however often each was drawn."""
    log_q, seen = (torch.tensor(of).double() for of in zip(*rows, strict=True))
    weight = (log_q + seen).softmax(0)
    log_q.requires_grad_()
    (gradient,) = torch.autograd.grad(forward_kl(log_q, weight, seen, 1.0), log_q)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-9, rtol=0)


@pytest.mark.parametrize("weights", [[1.0] * 8, [8.0] + [0.0] * 7, [1.0, 2.0, 0.5, 0.1]])
def test_the_error_of_the_bound_is_that_of_a_mean_with_one_worthless_sample_more(weights: list[float]) -> None:
    n, more = len(weights), [*weights, 0.0]
    ess = sum(weights) ** 2 / sum(w * w for w in weights) / n
    expected = statistics.stdev(more) / math.sqrt(n + 1) / statistics.fmean(more)
    assert bound_error(ess, n) == pytest.approx(expected)
