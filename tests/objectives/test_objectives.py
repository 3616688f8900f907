"""SubTB: the closed forms against the double loops of the oracle, and the properties of both."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_cot.objectives import OBJECTIVES
from latent_cot.objectives.balance import (
    Balance,
    BalanceInfo,
    below_floor,
    last_state,
    log_flow,
    pooled_subtb,
    subtb,
    temper,
)
from tests.oracles import subtb as oracle

NAMES = sorted(name for name, objective in OBJECTIVES.items() if not objective.log_z_rate)


def loss_of(name: str, b: Balance) -> tuple[torch.Tensor, BalanceInfo]:
    """An objective of these trajectories: of the states that it is one of."""
    objective = OBJECTIVES[name]
    return objective.loss(b._replace(states=last_state(b.states)) if objective.complete_only else b)


@dataclass
class Case:
    """Trajectories of several questions, padded as the engine pads them."""

    log_pf: torch.Tensor
    log_pterm: torch.Tensor
    log_reward: torch.Tensor
    states: torch.Tensor
    group: torch.Tensor
    weight: torch.Tensor
    lengths: list[int]

    def flow(self) -> torch.Tensor:
        return log_flow(self.log_pf, self.log_pterm, self.log_reward, self.states)

    def row(self, b: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[bool]]:
        """What the oracle takes: log_reward, log_pf, log_pterm and states without padding."""
        n = self.lengths[b]
        return (
            self.log_reward[b, : n + 1],
            self.log_pf[b, :n],
            self.log_pterm[b, : n + 1],
            self.states[b, : n + 1].tolist(),
        )

    def balance(self, **options: Any) -> Balance:
        nothing = torch.zeros_like(self.states)
        return Balance(self.flow(), self.states, self.group, self.weight, **{"censored": nothing, **options})

    def loss(self, name: str, **options: Any) -> torch.Tensor:
        return loss_of(name, self.balance(**options))[0]


def make_case(seed: int, groups: int = 2, rows: int = 3, longest: int = 6) -> Case:
    """Random masks and numbers; some tokens are a tool's, some prefixes are no states, some chains are cut."""
    g = torch.Generator().manual_seed(seed)
    size, width = groups * rows, longest
    lengths = torch.randint(0, longest + 1, (size,), generator=g).tolist()
    chosen = torch.rand(size, width, generator=g) < 0.7
    states = torch.rand(size, width + 1, generator=g) < 0.6
    forced = torch.rand(size, generator=g) < 0.3
    for b, n in enumerate(lengths):
        chosen[b, n:] = False
        states[b, n] = True
        states[b, n + 1 :] = False
    log_pf = -3 * torch.rand(size, width, generator=g, dtype=torch.float64)
    log_pterm = -3 * torch.rand(size, width + 1, generator=g, dtype=torch.float64)
    for b, n in enumerate(lengths):
        if forced[b]:
            log_pterm[b, n] = 0.0
    return Case(
        log_pf=torch.where(chosen, log_pf, 0.0),
        log_pterm=torch.where(states, log_pterm, 0.0),
        log_reward=torch.where(states, -20 * torch.rand(states.shape, generator=g, dtype=torch.float64), 0.0),
        states=states,
        group=torch.arange(groups).repeat_interleave(rows),
        weight=torch.randint(1, 4, (size,), generator=g).double(),
        lengths=lengths,
    )


def rows_of(b: Balance, rows: torch.Tensor) -> Balance:
    """The trajectories of these indices."""
    a, states, group, weight, censored = (table[rows] for table in b[:5])
    return Balance(a, states, group, weight, censored, b.log_z, b.huber_delta)


seeds = st.integers(0, 2**32)


@given(seeds)
def test_subtb_is_the_double_loop(seed: int) -> None:
    case = make_case(seed)
    for question, loss in enumerate(case.loss("subtb")):
        total, mass = torch.zeros((), dtype=torch.float64), 0.0
        for b in (case.group == question).nonzero()[:, 0].tolist():
            if oracle.sub_trajectories(case.row(b)[3]):
                total = total + case.weight[b] * oracle.mean_subtb(*case.row(b))
                mass += float(case.weight[b])
        torch.testing.assert_close(loss, total / max(mass, 1))


@given(seeds)
def test_each_sub_trajectory_counts_once(seed: int) -> None:
    """Also those that end where the chain ends: the reference code counts them twice."""
    case = make_case(seed, groups=1, rows=1)
    terms = math.comb(int(case.states[0].sum()), 2)
    torch.testing.assert_close(case.loss("subtb")[0] * terms, oracle.subtb(*case.row(0)))


def test_eq_3_by_hand() -> None:
    """Two tokens, three states: the three residuals worked out on paper."""
    log_reward = torch.tensor([[-5.0, -3.0, -4.0]])
    log_pterm = torch.tensor([[-1.0, -2.0, 0.0]])
    log_pf = torch.tensor([[-0.5, -0.25]])
    states = torch.ones(1, 3, dtype=torch.bool)
    # a = −5+1, −3+2+0.5, −4+0+0.75 = −4, −0.5, −3.25; differences −3.5, −0.75, 2.75
    expected = (3.5**2 + 0.75**2 + 2.75**2) / 3
    a, group = log_flow(log_pf, log_pterm, log_reward, states), torch.tensor([0])
    balance = Balance(a, states, group, torch.ones(1), torch.zeros_like(states))
    loss, info = subtb(balance)
    assert float(loss) == pytest.approx(expected)
    assert float(info.log_z) == pytest.approx((-4 - 0.5 - 3.25) / 3)
    assert float(oracle.mean_subtb(log_reward[0], log_pf[0], log_pterm[0], [True] * 3)) == pytest.approx(expected)
    # The pooled loss of a single trajectory is a third of that: pairs i < j over n²
    assert float(pooled_subtb(balance)[0]) == pytest.approx(expected * 3 / 9)


@given(seeds)
def test_pooled_is_half_the_mean_squared_difference_of_all_pairs(seed: int) -> None:
    case = make_case(seed)
    loss, info = pooled_subtb(case.balance())
    for question in range(2):
        flows = [
            oracle.flow(*case.row(b))
            for b in (case.group == question).nonzero()[:, 0].tolist()
            for _ in range(int(case.weight[b]))
        ]
        torch.testing.assert_close(loss[question], oracle.pooled(flows))
        torch.testing.assert_close(info.variance[question], oracle.pooled(flows))
        torch.testing.assert_close(info.log_z[question], torch.cat(flows).mean())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("huber_delta", [None, 2.0])
@settings(max_examples=30)
@given(seed=seeds)
def test_loss_and_gradient_vanish_at_the_posterior(name: str, huber_delta: float | None, seed: int) -> None:
    """Rewards that make every a_i of a question equal its log Z."""
    case = make_case(seed)
    log_z = torch.tensor([-7.0, 11.0], dtype=torch.float64)[case.group, None]
    zero_reward = log_flow(case.log_pf, case.log_pterm, torch.zeros_like(case.log_reward), case.states)
    case.log_reward = torch.where(case.states, log_z - zero_reward, 0.0)
    case.log_pf.requires_grad_()
    case.log_pterm.requires_grad_()
    loss = case.loss(name, huber_delta=huber_delta)
    loss.sum().backward()
    assert float(loss.detach().abs().max()) < 1e-20
    for tensor in (case.log_pf, case.log_pterm):
        assert tensor.grad is not None
        assert float(tensor.grad.abs().max()) < 1e-12


# -- value and gradient in every mode: objective × {squared, Huber} × {floor, none} × weights × group sizes --------


def random_balance(
    seed: int, name: str, *, huber_delta: float | None, floor: bool, weighted: bool, rows: int
) -> Balance:
    """Two questions with `rows` trajectories each. Under a floor some states are known only by an upper bound, whole
    trajectories among them."""
    case = make_case(seed, rows=rows, longest=4)
    g = torch.Generator().manual_seed(seed + 1)
    censored = (torch.rand(case.states.shape, generator=g) < 0.5) & case.states & floor
    weight = case.weight if weighted else torch.ones_like(case.weight)
    log_z = torch.tensor([-9.0, -4.0], dtype=torch.float64) if OBJECTIVES[name].log_z_rate else None
    return Balance(case.flow(), case.states, case.group, weight, censored, log_z, huber_delta)


def of_definition(name: str, b: Balance, question: int) -> torch.Tensor:
    """What the oracle says of one question."""
    mine = b.group == question
    return oracle.question_loss(
        name,
        b.a[mine],
        b.states[mine],
        b.weight[mine],
        b.censored[mine],
        b.huber_delta,
        None if b.log_z is None else b.log_z[question],
    )


def in_every_mode(test: Any) -> Any:
    for mark in (
        pytest.mark.parametrize("name", sorted(OBJECTIVES)),
        pytest.mark.parametrize("huber_delta", [None, 2.0]),
        pytest.mark.parametrize("floor", [False, True]),
        pytest.mark.parametrize("weighted", [False, True]),
        pytest.mark.parametrize("rows", [1, 3]),
    ):
        test = mark(test)
    return test


@in_every_mode
def test_loss_is_its_definition(name: str, huber_delta: float | None, floor: bool, weighted: bool, rows: int) -> None:
    for seed in range(8):
        b = random_balance(seed, name, huber_delta=huber_delta, floor=floor, weighted=weighted, rows=rows)
        b.a.requires_grad_()
        losses, info = loss_of(name, b)
        for question in range(2):
            torch.testing.assert_close(losses[question], of_definition(name, b, question))
        assert not info.variance.requires_grad and not info.log_z.requires_grad


@in_every_mode
def test_gradient_is_that_of_finite_differences(
    name: str, huber_delta: float | None, floor: bool, weighted: bool, rows: int
) -> None:
    """Of a, and of a learned log Z. Nothing that a loss depends on may be held constant: under a floor, or a cap, the
    gradient through a question's mean is not zero."""
    for seed in range(2):
        b = random_balance(seed, name, huber_delta=huber_delta, floor=floor, weighted=weighted, rows=rows)
        inputs = [x.clone().requires_grad_() for x in (b.a, b.log_z) if x is not None]

        def loss(a: torch.Tensor, log_z: torch.Tensor | None = None, b: Balance = b) -> torch.Tensor:
            return loss_of(name, b._replace(a=torch.where(b.states, a, 0.0), log_z=log_z))[0]

        assert torch.autograd.gradcheck(loss, inputs)


@in_every_mode
def test_gradient_is_that_of_the_definition(
    name: str, huber_delta: float | None, floor: bool, weighted: bool, rows: int
) -> None:
    """Finite differences of the double loop, which shares no line with the loss."""
    step = 1e-6
    for seed in range(2):
        b = random_balance(seed, name, huber_delta=huber_delta, floor=floor, weighted=weighted, rows=rows)
        a = b.a.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss_of(name, b._replace(a=a))[0].sum(), a)
        for row, place in b.states.nonzero().tolist():
            up, down = b.a.clone(), b.a.clone()
            up[row, place] += step
            down[row, place] -= step
            values = [float(of_definition(name, b._replace(a=moved), int(b.group[row]))) for moved in (up, down)]
            assert float(gradient[row, place]) == pytest.approx((values[0] - values[1]) / (2 * step), abs=1e-5)


@pytest.mark.parametrize("name", ["pooled-subtb", "vargrad"])
def test_what_is_below_the_floor_draws_the_known_up(name: str) -> None:
    """Worked out on paper. The mean is that of the one known a, 0, and the other two are 5 below it: (25 + 25) / 3 is
    the loss, −10/3 its derivative by either, and 20/3 that by the mean. Without the last, a floor only pushes down.
    VarGrad looks at no earlier state."""
    earlier = torch.tensor([[7.0], [1.0], [-9.0]]) if name == "vargrad" else torch.empty(3, 0)
    a = torch.cat([earlier, torch.tensor([[-5.0], [-5.0], [0.0]])], 1).requires_grad_()
    censored = torch.cat([torch.zeros_like(earlier).bool(), torch.tensor([[True], [True], [False]])], 1)
    states, group = torch.ones_like(a, dtype=torch.bool), torch.tensor([0, 0, 0])
    loss, info = loss_of(name, Balance(a, states, group, torch.ones(3), censored=censored))
    assert float(loss.detach()) == pytest.approx(50 / 3)
    assert float(info.variance) == pytest.approx(50 / 3) and float(info.log_z) == 0
    loss.sum().backward()
    assert a.grad is not None
    assert a.grad[:, -1].tolist() == pytest.approx([-10 / 3, -10 / 3, 20 / 3])
    assert not a.grad[:, :-1].any()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("huber_delta", [None, 2.0])
@pytest.mark.parametrize("floor", [False, True])
def test_the_gradient_of_a_question_adds_up_to_zero(name: str, huber_delta: float | None, floor: bool) -> None:
    """These losses do not change when a constant is added to all a of a question, so neither up nor down prevails."""
    for seed in range(20):
        b = random_balance(seed, name, huber_delta=huber_delta, floor=floor, weighted=True, rows=3)
        a = b.a.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss_of(name, b._replace(a=a))[0].sum(), a)
        for question in range(2):
            assert float(gradient[b.group == question].sum()) == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=30)
@given(seed=seeds)
def test_huber_is_the_square_below_delta(name: str, seed: int) -> None:
    case = make_case(seed)
    torch.testing.assert_close(case.loss(name, huber_delta=1e3), case.loss(name))
    assert bool((case.loss(name, huber_delta=0.5) <= case.loss(name) + 1e-12).all())


def test_huber_is_linear_beyond_delta() -> None:
    a, states = torch.tensor([[0.0, 10.0]]), torch.ones(1, 2, dtype=torch.bool)
    group, weight = torch.tensor([0]), torch.ones(1)
    balance = Balance(a, states, group, weight, torch.zeros_like(states), huber_delta=3.0)
    assert float(subtb(balance)[0]) == pytest.approx(2 * 3 * 10 - 9)
    assert float(pooled_subtb(balance)[0]) == pytest.approx(2 * 3 * 5 - 9)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("huber_delta", [None, 2.0])
@settings(max_examples=20)
@given(seed=seeds, constant=st.floats(-100, 100))
def test_a_constant_added_to_a_questions_rewards_changes_nothing(
    name: str, huber_delta: float | None, seed: int, constant: float
) -> None:
    case = make_case(seed)
    before = case.loss(name, huber_delta=huber_delta)
    case.log_reward = torch.where(case.states & (case.group == 1)[:, None], case.log_reward + constant, case.log_reward)
    torch.testing.assert_close(case.loss(name, huber_delta=huber_delta), before)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("huber_delta", [None, 2.0])
@settings(max_examples=20)
@given(seed=seeds)
def test_padding_changes_nothing(name: str, huber_delta: float | None, seed: int) -> None:
    case = make_case(seed)
    before = case.loss(name, huber_delta=huber_delta)
    junk = torch.full((6, 3), 1e4, dtype=torch.float64)
    case.log_pterm = torch.cat([case.log_pterm, junk], 1)
    case.log_reward = torch.cat([case.log_reward, -junk], 1)
    case.log_pf = torch.nn.functional.pad(case.log_pf, (0, 3))
    case.states = torch.nn.functional.pad(case.states, (0, 3))
    torch.testing.assert_close(case.loss(name, huber_delta=huber_delta), before)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("huber_delta", [None, 2.0])
@settings(max_examples=20)
@given(seed=seeds, order=st.permutations(range(6)))
def test_the_order_of_trajectories_changes_nothing(
    name: str, huber_delta: float | None, seed: int, order: list[int]
) -> None:
    case = make_case(seed)
    permuted = rows_of(case.balance(huber_delta=huber_delta), torch.tensor(order))
    after = loss_of(name, permuted)[0]
    torch.testing.assert_close(after, case.loss(name, huber_delta=huber_delta))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("huber_delta", [None, 2.0])
@settings(max_examples=20)
@given(seed=seeds)
def test_a_weight_is_the_number_of_times_listed(name: str, huber_delta: float | None, seed: int) -> None:
    case = make_case(seed)
    counts = case.weight.long()
    once = case.balance(huber_delta=huber_delta)._replace(weight=torch.ones_like(case.weight))
    loss, info = loss_of(name, rows_of(once, torch.arange(6).repeat_interleave(counts)))
    weighted, weighted_info = loss_of(name, case.balance(huber_delta=huber_delta))
    torch.testing.assert_close(weighted, loss)
    torch.testing.assert_close(weighted_info, info)


def test_large_equal_flows_do_not_cancel_in_float32() -> None:
    """nΣa² − (Σa)² of values near −3000 would be off by more than the loss itself."""
    a = -3000 + torch.tensor([[0.0, 0.01, 0.02, -0.01]])
    states = torch.ones(1, 4, dtype=torch.bool)
    exact = oracle.pooled([a[0]])
    for name, factor in {"pooled-subtb": 1.0, "subtb": 16 / 6}.items():  # n² pairs, or those with i < j
        loss = loss_of(name, Balance(a, states, torch.tensor([0]), torch.ones(1), torch.zeros_like(states)))[0]
        assert float(loss) == pytest.approx(factor * float(exact), rel=0.05)


# -- the objectives of complete trajectories -----------------------------------------------------------


@given(seeds)
def test_trajectory_balance_is_its_formula(seed: int) -> None:
    """(log Z + log q(Z ⊤) − log R(Z))², weighted, and its gradient with respect to log Z."""
    case = make_case(seed)
    log_z = torch.tensor([-3.0, 2.0], dtype=torch.float64, requires_grad=True)
    loss, info = loss_of("tb", case.balance(log_z=log_z))
    loss.sum().backward()
    assert log_z.grad is not None
    torch.testing.assert_close(info.log_z, log_z.detach())
    for question in range(2):
        rows = (case.group == question).nonzero()[:, 0].tolist()
        mass = sum(float(case.weight[b]) for b in rows)
        expected = slope = 0.0
        for b in rows:
            n = case.lengths[b]
            log_q = float(case.log_pf[b, :n].sum() + case.log_pterm[b, n])
            residual = float(log_z[question].detach()) + log_q - float(case.log_reward[b, n])
            expected += float(case.weight[b]) * residual**2 / mass
            slope += float(case.weight[b]) * 2 * residual / mass
        assert float(loss[question].detach()) == pytest.approx(expected)
        assert float(log_z.grad[question]) == pytest.approx(slope)


@given(seeds, st.booleans())
def test_trajectory_balance_of_every_prefix_is_its_formula(seed: int, censor: bool) -> None:
    """Every prefix is a complete trajectory; one whose reward is an upper bound counts if q gives it more."""
    case = make_case(seed, longest=4)
    log_z = torch.tensor([-3.0, 2.0], dtype=torch.float64, requires_grad=True)
    censored = case.states & (torch.arange(case.states.shape[1]) % 2 == 0) & censor
    loss, info = loss_of("prefix-tb", case.balance(log_z=log_z, censored=censored))
    loss.sum().backward()
    assert log_z.grad is not None
    torch.testing.assert_close(info.log_z, log_z.detach())
    for question in range(2):
        total = mass = slope = 0.0
        known = False
        for b in (case.group == question).nonzero()[:, 0].tolist():
            for i in case.states[b].nonzero()[:, 0].tolist():
                weight = float(case.weight[b])
                log_q = float(case.log_pf[b, :i].sum() + case.log_pterm[b, i])
                residual = float(log_z[question].detach()) + log_q - float(case.log_reward[b, i])
                bound = bool(censored[b, i])
                known = known or not bound
                total += weight * (max(residual, 0.0) if bound else residual) ** 2
                slope += weight * 2 * (max(residual, 0.0) if bound else residual)
                mass += weight
        assert float(loss[question].detach()) == pytest.approx(total / mass if known else 0.0)
        assert float(log_z.grad[question]) == pytest.approx(slope / mass if known else 0.0)


# -- tempering -----------------------------------------------------------------------------------------


def test_temper_floors_and_divides() -> None:
    reward = torch.tensor([[-10.0, -50.0, -90.0], [-100.0, -20.0, 7.0]])
    states = torch.tensor([[True, True, True], [True, True, False]])
    tempered = temper(reward, states, torch.tensor([0, 0]), temperature=2.0, floor=20.0)
    torch.testing.assert_close(tempered, torch.tensor([[-5.0, -15.0, -45.0], [-15.0, -10.0, 0.0]]))


def test_the_floor_is_that_of_the_own_question() -> None:
    reward = torch.tensor([[-90.0, -1.0], [-90.0, -80.0]])
    states = torch.ones(2, 2, dtype=torch.bool)
    tempered = temper(reward, states, torch.tensor([0, 1]), floor=20.0)
    torch.testing.assert_close(tempered, torch.tensor([[-21.0, -1.0], [-90.0, -80.0]]))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("huber_delta", [None, 3.0])
@pytest.mark.parametrize("floor", [None, 20.0])
@pytest.mark.parametrize("impossible", ["a state", "a trajectory", "a question", "everything"])
def test_impossible_rationales_leave_loss_and_gradient_finite(
    name: str, huber_delta: float | None, floor: float | None, impossible: str
) -> None:
    case = make_case(3)
    which = {
        "a state": (slice(1, 2), slice(0, 1)),
        "a trajectory": (slice(1, 2), slice(None)),
        "a question": (slice(0, 3), slice(None)),
        "everything": (slice(None), slice(None)),
    }[impossible]
    case.states[1, 0] = True
    reward = case.log_reward.float()
    reward[which] = -torch.inf
    reward = torch.where(case.states, reward, -torch.inf)
    tempered = temper(reward, case.states, case.group, temperature=0.7, floor=floor)
    assert bool(tempered.isfinite().all())
    log_pf = case.log_pf.float().requires_grad_()
    log_pterm = case.log_pterm.float()
    a = log_flow(log_pf, log_pterm, tempered, case.states)
    loss, info = loss_of(name, case.balance(huber_delta=huber_delta)._replace(a=a, weight=case.weight.float()))
    loss.sum().backward()
    assert bool(loss.isfinite().all())
    assert bool(info.variance.isfinite().all())
    assert log_pf.grad is not None
    assert bool(log_pf.grad.isfinite().all())


def test_a_question_without_a_possible_rationale_has_equal_rewards() -> None:
    reward = torch.tensor([[-math.inf, -math.inf], [-3.0, -4.0]])
    tempered = temper(reward, torch.ones(2, 2, dtype=torch.bool), torch.tensor([0, 1]), floor=20.0)
    torch.testing.assert_close(tempered, torch.tensor([[0.0, 0.0], [-3.0, -4.0]]))


# -- censoring: of a reward below the floor only an upper bound is used --------------------------------


def test_what_is_below_the_floor() -> None:
    """Prefixes far below the best; of whole rationales, the last state of each row, the impossible ones only."""
    low, never = -90.0, -math.inf
    reward = torch.tensor([[-1.0, low, -21.0, -21.0], [low, -1.0, low, low], [-1.0, never, never, low], [never] * 4])
    states = torch.tensor([[True] * 4, [True] * 4, [True, True, True, False], [True] * 4])
    censored = below_floor(reward, states, torch.arange(4), 20.0)
    assert censored.tolist() == [
        [False, True, False, False],
        [True, False, True, False],
        [False, True, True, False],
        [True, True, True, True],
    ]
    none = below_floor(reward, states, torch.arange(4), None)
    assert none.tolist() == [[False] * 4, [False] * 4, [False, True, True, False], [True] * 4]


def censor(case: Case, seed: int) -> torch.Tensor:
    """Some states' rewards become upper bounds; each trajectory keeps one that is exact: its last."""
    censored = torch.rand(case.states.shape, generator=torch.Generator().manual_seed(seed)) < 0.4
    for b, n in enumerate(case.lengths):
        censored[b, n] = False
    return censored & case.states


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=20)
@given(seed=seeds)
def test_the_posterior_stays_the_optimum_under_a_floor(name: str, seed: int) -> None:
    """Where a bound is above the reward, a is above log Z: no loss and no gradient."""
    case = make_case(seed)
    censored = censor(case, seed)
    zero_reward = log_flow(case.log_pf, case.log_pterm, torch.zeros_like(case.log_reward), case.states)
    case.log_reward = torch.where(case.states, -7.0 - zero_reward + 5.0 * censored, 0.0)
    case.log_pf.requires_grad_()
    loss = case.loss(name, censored=censored)
    loss.sum().backward()
    assert float(loss.detach().abs().max()) < 1e-20
    assert case.log_pf.grad is not None
    assert float(case.log_pf.grad.abs().max()) < 1e-12
    # Were q's share larger than the bound allows, there would be a loss.
    case.log_reward = torch.where(case.states, -7.0 - zero_reward - 5.0 * censored, 0.0)
    counted = bool(censored.any()) and name != "vargrad"
    assert (float(case.loss(name, censored=censored).detach().sum()) > 1e-6) == counted


def test_vargrad_where_no_complete_trajectory_is_above_the_floor() -> None:
    """There is no mean to be compared with, so there is nothing to learn: the mean is not 0."""
    a = torch.tensor([[-22.0, -25.0], [-22.0, -30.0]], requires_grad=True)
    states = torch.ones(2, 2, dtype=torch.bool)
    censored = torch.tensor([[False, True], [False, True]])
    loss, _ = loss_of("vargrad", Balance(a, states, torch.tensor([0, 0]), torch.ones(2), censored=censored))
    assert float(loss.detach()) == 0


def test_a_worthless_chain_that_was_sampled_counts_under_a_floor() -> None:
    """One good rationale, log R = 0, and e^40 worthless ones, log R = −60, with nearly all of q's probability. Each has
    too little of it to violate its bound, so that bounded they would have no loss, and q could stay there."""
    log_reward = torch.tensor([[0.0], [-60.0]])
    log_q = torch.tensor([[-5.0], [-40.0]])
    states, group, weight = torch.ones(2, 1, dtype=torch.bool), torch.tensor([0, 0]), torch.ones(2)
    losses = []
    for floor in (10.0, None):
        censored = below_floor(log_reward, states, group, floor)
        a = temper(log_reward, states, group, floor=floor) - log_q
        losses.append(float(pooled_subtb(Balance(a, states, group, weight, censored=censored))[0]))
    bounded = torch.tensor([[False], [True]])
    losses.append(
        float(pooled_subtb(Balance(torch.tensor([[5.0], [30.0]]), states, group, weight, censored=bounded))[0])
    )
    assert losses == [pytest.approx(12.5**2), pytest.approx(12.5**2), 0.0]
