"""The E-step with the cost model of the paper's own code, written anew and plainly: the yardstick of `estep.py`.

It computes what `latent_cot.methods.e_step` computes (the same alphabet, stop, tool calls and states, the same log q,
log-rewards and the loss `subtb`), the way the reference code (github.com/GFNOrg/gfn-lm-tuning, folder
`infill_subj_arithmetic`) goes about it. Each cost, and where the reference has it:

* One question at a time, its prompt repeated for each of its trajectories (`main.py`, `train`: a micro-batch is one
  question; `encoded_input.repeat(bsz, 1)`).
* Sampling token by token *with* gradients, through the key-value cache and the unmerged LoRA layers; the graph of all
  steps is kept until the end (`utils.py`, `generate_and_return_eos_logprob`).
* When a tool has answered any trajectory, the cache of all is dropped and the whole of each is encoded again, padded
  on the left to the longest (same function: `past_key_values = None`).
* A trajectory that has ended stays in the batch, and is scored with it, until the last one has ended (same function:
  `active_seqs`).
* The logits of the whole vocabulary at every position of every pass, the alphabet being a mask on them
  (`vocab_nice_mask`, in sampling and in `score_fast`).
* One full scoring pass under p for each prefix: up to `max_tokens` + 1 passes of question, prefix and answer
  (same function, `logrewards[:, i + 1]`). Demonstrations before the question are encoded once and their cache is
  copied for each pass (`rewards.py`, `FrozenModelWithPrompt`): `demonstrations` below.
* Every trajectory by itself: equal ones are sampled, scored and updated as often as they occur.
* SubTB as a loop over the lengths of sub-trajectories (`main.py`, `modified_subtb`).

Where the two part, this is the cheaper one, or as dear:

* The reference encodes the prompt a second time at its first step, if tools are on; here it is encoded once.
* After its last trajectory has ended it makes one more scoring pass; here there is none.
* With `granularity="step"`, which the reference has not, trajectories that are not at a state are not scored.
* The reference's position ids are off in cached steps behind padding; here they are right, at no cost.
* p is `lm.merged("p")`, its adapter merged: what the reference pays for its base model with adapters switched off.
* It runs on the same model object as `latent_cot.methods.e_step`: layers that are faster there are faster here.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from transformers import DynamicCache, PreTrainedModel

from latent_cot.model.lm import LanguageModel
from latent_cot.rationales.chain import Chain, ChainRules
from latent_cot.rationales.scoring import Query
from latent_cot.types import Rationale


@dataclass
class Seconds:
    """Wall-clock seconds of each part."""

    sampling: float = 0.0
    """Rationales and their log q, with gradients."""
    reward: float = 0.0
    """Scoring all prefixes under p."""
    backward: float = 0.0
    """The loss and its gradient."""

    @property
    def total(self) -> float:
        return self.sampling + self.reward + self.backward

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Add the time the block takes to `part`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, part, getattr(self, part) + time.perf_counter() - started)


@dataclass(frozen=True)
class PlainTrajectories:
    """The B trajectories of one question, of at most N tokens. Tensors are detached."""

    rationales: Sequence[Rationale]
    """B of them; equal ones are listed as often as they were sampled."""
    log_pf: torch.Tensor
    """(B, N) log q of each token the policy chose, nats; 0 for a tool's tokens and padding."""
    log_pterm: torch.Tensor
    """(B, N + 1) log q of stopping at each state, nats; 0 at a forced stop and where there is no state."""
    log_reward: torch.Tensor
    """(B, N + 1) untempered, in nats; −inf where the prefix is no state."""


@dataclass(frozen=True)
class PlainResult:
    """What one E-step gave. Its gradient is left in q's weights."""

    loss: float
    """Mean over the questions."""
    trajectories: Sequence[PlainTrajectories]
    """Of each question."""
    seconds: Seconds
    scoring_passes: int
    """Forward passes under p, of all questions together."""


def e_step(
    lm: LanguageModel,
    queries: Sequence[Query],
    rules: ChainRules,
    *,
    samples: int,
    temperature: float = 1.0,
    reward_temperature: float = 1.0,
    tool_tokens: bool = False,
    demonstrations: int = 0,
    forced: Sequence[Sequence[Rationale]] | None = None,
    generator: torch.Generator | None = None,
) -> PlainResult:
    """Sample, score and differentiate, question by question; the optimiser is the caller's.

    Args:
        lm: its adapter q is trained, its adapter p is the reward model.
        samples: trajectories a question.
        temperature: of the sampling; log q is at 1.
        reward_temperature: log R is divided by this in the loss.
        tool_tokens: whether a tool's tokens count in the reward.
        demonstrations: how many tokens at the beginning of the queries' `model_prompt`, the same in all, are encoded
            once.
        forced: the rationales to take for each question instead of sampling; `samples` of them each.
        generator: on the CPU, for the sampling.

    Raises ValueError if `demonstrations` is more than the prompts have in common, or if the policy could not have
    written a forced rationale under `rules`.
    """
    seconds = Seconds()
    model_p = lm.merged("p")
    with seconds.of("reward"):
        shots = _Demonstrations(lm, model_p, queries, demonstrations)
    trajectories: list[PlainTrajectories] = []
    loss_sum, passes = 0.0, 0
    with lm.trainable("q") as model_q:
        for k, query in enumerate(queries):
            reward = _PrefixReward(lm, model_p, query, rules, shots, tool_tokens=tool_tokens, seconds=seconds)
            batch = _Trajectories(rules, samples, None if forced is None else forced[k])
            started, scoring_before = time.perf_counter(), seconds.reward
            _roll_out(lm, model_q, query.policy_prompt, batch, reward, temperature=temperature, generator=generator)
            log_pf, log_pterm, log_reward = batch.log_pf(), batch.log_pterm(), batch.log_reward()
            seconds.sampling += time.perf_counter() - started - (seconds.reward - scoring_before)
            with seconds.of("backward"):
                loss = modified_subtb(log_pf, log_pterm, log_reward / reward_temperature)
                if loss.requires_grad:  # not if every trajectory was stopped by force at s_0
                    lm.accelerator.backward(loss / len(queries))
            loss_sum += float(loss.detach())
            passes += reward.passes
            trajectories.append(PlainTrajectories(batch.finish(), log_pf.detach(), log_pterm.detach(), log_reward))
    return PlainResult(loss_sum / len(queries), trajectories, seconds, passes)


def modified_subtb(log_pf: torch.Tensor, log_pterm: torch.Tensor, log_reward: torch.Tensor) -> torch.Tensor:
    """Eq. 3 of the paper, one sub-trajectory length after the other.

    Args:
        log_pf: (B, N).
        log_pterm: (B, N + 1).
        log_reward: (B, N + 1) tempered; −inf where the prefix is no state.

    Returns (), nats²: of each trajectory the mean over its sub-trajectories between states, of these the mean over the
    trajectories that have any. (The reference divides by the number of sub-trajectories of the whole batch.)
    """
    states = log_reward.isfinite()
    flow = torch.where(states, log_reward, 0.0) - log_pterm - torch.nn.functional.pad(log_pf.cumsum(1), (1, 0))
    order = torch.argsort(states.to(torch.uint8), dim=1, descending=True, stable=True)  # the states first
    flow, states = flow.gather(1, order), states.gather(1, order)
    total = flow.new_zeros(flow.shape[0])
    terms = flow.new_zeros(flow.shape[0])
    for length in range(1, flow.shape[1]):
        residual = flow[:, length:] - flow[:, :-length]
        both = states[:, length:]  # the earlier one is a state if the later one is
        total = total + (residual**2 * both).sum(1)
        terms = terms + both.sum(1)
    return (total / terms.clamp(min=1)).sum() / (terms > 0).sum().clamp(min=1)


@dataclass
class _Step:
    """One token of every trajectory."""

    place: list[int]
    """Tokens each trajectory had."""
    chose: list[bool]
    """Those that chose a token (not the stop) in this step."""
    could_stop: list[bool]
    """Those in progress that might have stopped."""
    log_chosen: torch.Tensor
    """(B,) log q of what was chosen."""
    log_stop: torch.Tensor
    """(B,) log q(⊤)."""


@dataclass
class _Trajectories:
    """The trajectories of one question while they are written."""

    rules: ChainRules
    size: int
    forced: Sequence[Rationale] | None
    steps: list[_Step] = field(default_factory=list)
    rewards: list[tuple[int, int, float]] = field(default_factory=list)
    """(trajectory, tokens it had, log-reward)."""

    def __post_init__(self) -> None:
        if self.forced is not None and len(self.forced) != self.size:
            raise ValueError(f"{len(self.forced)} forced rationales, but {self.size} samples")
        self.chains = [Chain(self.rules) for _ in range(self.size)]
        self.plans = [
            [token for token, chosen in zip(rationale.tokens, rationale.policy_mask, strict=True) if chosen]
            for rationale in self.forced or ()
        ]
        self.done = [self._must_end(b) for b in range(self.size)]

    def _must_end(self, b: int) -> bool:
        chain = self.chains[b]
        planned_end = bool(self.plans) and chain.n_chosen == len(self.plans[b])
        return chain.full or (planned_end and not chain.may_stop)

    def planned(self) -> list[int] | None:
        """The forced token of each trajectory, or the stop."""
        if self.forced is None:
            return None
        stop = self.rules.codec.stop_id
        return [
            plan[chain.n_chosen] if chain.n_chosen < len(plan) else stop
            for plan, chain in zip(self.plans, self.chains, strict=True)
        ]

    def advance(self, actions: Sequence[int]) -> tuple[bool, list[int]]:
        """Take a token each. Returns whether a tool has answered, and which trajectories have grown to a state."""
        answered, grown = False, []
        for b, (chain, token) in enumerate(zip(self.chains, actions, strict=True)):
            if self.done[b]:
                continue
            if token == self.rules.codec.stop_id:
                self.done[b] = True
                continue
            answered |= bool(chain.push(token))
            self.done[b] = self._must_end(b)
            if chain.may_stop or self.done[b]:
                grown.append(b)
        return answered, grown

    def finish(self) -> list[Rationale]:
        rationales = [chain.finish() for chain in self.chains]
        for got, wanted in zip(rationales, self.forced or rationales, strict=True):
            if got != wanted:
                raise ValueError(
                    f"the policy cannot have written {wanted.text!r} under these rules: it is {got.text!r}"
                )
        return rationales

    @property
    def longest(self) -> int:
        return max(len(chain.tokens) for chain in self.chains)

    def log_pf(self) -> torch.Tensor:
        """(B, N), see `PlainTrajectories`."""
        cells = [(t, b) for t, step in enumerate(self.steps) for b in range(self.size) if step.chose[b]]
        return self._scatter(self.longest, cells, [step.log_chosen for step in self.steps])

    def log_pterm(self) -> torch.Tensor:
        """(B, N + 1)."""
        cells = [(t, b) for t, step in enumerate(self.steps) for b in range(self.size) if step.could_stop[b]]
        return self._scatter(self.longest + 1, cells, [step.log_stop for step in self.steps])

    def log_reward(self) -> torch.Tensor:
        """(B, N + 1)."""
        table = torch.full((self.size, self.longest + 1), -torch.inf)
        for b, place, value in self.rewards:
            table[b, place] = value
        return table if not self.steps else table.to(self.steps[0].log_stop.device)

    def _scatter(self, width: int, cells: Sequence[tuple[int, int]], by_step: Sequence[torch.Tensor]) -> torch.Tensor:
        """Put the value of (step, trajectory) where the trajectory was at that step."""
        if not cells:
            return torch.zeros(self.size, width)
        values = torch.stack(list(by_step))
        t, b = torch.tensor(cells, device=values.device).unbind(1)
        place = torch.tensor([self.steps[step].place[row] for step, row in cells], device=values.device)
        return values.new_zeros(self.size, width).index_put((b, place), values[t, b])


def _roll_out(
    lm: LanguageModel,
    model: PreTrainedModel,
    prompt: Sequence[int],
    batch: _Trajectories,
    reward: _PrefixReward,
    *,
    temperature: float,
    generator: torch.Generator | None,
) -> None:
    """Write the trajectories of `batch` token by token, with gradients, and score each new state under p."""
    codec, device = batch.rules.codec, lm.device
    everyone = list(range(batch.size))
    reward.score(batch, [b for b in everyone if batch.chains[b].may_stop or batch.done[b]])
    cache: DynamicCache | None = None
    mask = torch.empty(0)
    while not all(batch.done):
        if cache is None:
            cache = DynamicCache(config=model.config)
            ids, mask = _padded([[*prompt, *chain.tokens] for chain in batch.chains], left=True)
            ids, mask = ids.to(device), mask.to(device)
        else:
            ids = torch.tensor([[*prompt, *chain.tokens][-1:] for chain in batch.chains], device=device)
            mask = torch.cat([mask, mask.new_ones(batch.size, 1)], 1)
        logits = _forward(lm, model, ids, mask, cache)[:, -1]
        may_stop = torch.tensor([chain.may_stop for chain in batch.chains], device=device)
        logits = logits.masked_fill(_blocked(batch.rules, may_stop, logits.shape[-1]), -torch.inf)
        log_probs = logits.log_softmax(-1)
        actions = batch.planned()
        if actions is None:
            with torch.no_grad():
                probabilities = (logits / temperature).softmax(-1).cpu()
                actions = torch.multinomial(probabilities, 1, generator=generator)[:, 0].tolist()
        in_progress = [not done for done in batch.done]
        batch.steps.append(
            _Step(
                place=[len(chain.tokens) for chain in batch.chains],
                chose=[going and token != codec.stop_id for going, token in zip(in_progress, actions, strict=True)],
                could_stop=[going and chain.may_stop for going, chain in zip(in_progress, batch.chains, strict=True)],
                log_chosen=log_probs.gather(1, torch.tensor(actions, device=device)[:, None])[:, 0],
                log_stop=log_probs[:, codec.stop_id],
            )
        )
        answered, grown = batch.advance(actions)
        if answered:
            cache = None
        reward.score(batch, grown)


class _Demonstrations:
    """What p reads before every question, encoded once."""

    def __init__(self, lm: LanguageModel, model: PreTrainedModel, queries: Sequence[Query], n: int) -> None:
        beginnings = {tuple(query.model_prompt[:n]) for query in queries}
        if len(beginnings) > 1 or any(len(query.model_prompt) <= n for query in queries):
            raise ValueError(f"the prompts of p do not have {n} first tokens in common and one more each")
        self.n = n
        self.cache = DynamicCache(config=model.config)
        if n:
            with torch.no_grad():
                ids = torch.tensor([list(queries[0].model_prompt[:n])], device=lm.device)
                _forward(lm, model, ids, torch.ones_like(ids), self.cache)

    def copies(self, size: int) -> DynamicCache:
        """The cache for a batch of `size`, to be extended."""
        cache = copy.deepcopy(self.cache)
        if self.n:
            cache.batch_repeat_interleave(size)
        return cache


class _PrefixReward:
    """log p(z_{1:i} ⊤ Y | X) of the trajectories of one question, one prefix a pass."""

    def __init__(
        self,
        lm: LanguageModel,
        model: PreTrainedModel,
        query: Query,
        rules: ChainRules,
        shots: _Demonstrations,
        *,
        tool_tokens: bool,
        seconds: Seconds,
    ) -> None:
        self.lm, self.model, self.rules, self.shots = lm, model, rules, shots
        self.prompt = list(query.model_prompt[shots.n :])
        self.answer = list(query.answer)
        self.tool_tokens = tool_tokens
        self.seconds = seconds
        self.passes = 0

    @torch.no_grad()
    def score(self, batch: _Trajectories, fresh: Sequence[int]) -> None:
        """Note the log-reward of the present prefix of the trajectories `fresh`."""
        if not fresh:
            return
        with self.seconds.of("reward"):
            # Those that ended earlier are scored with them once more, as in the reference.
            rows = [b for b in range(batch.size) if b in fresh or batch.done[b]]
            values = self._log_rewards([batch.chains[b] for b in rows]).tolist()
            self.passes += 1
            for b, value in zip(rows, values, strict=True):
                if b in fresh:
                    batch.rewards.append((b, len(batch.chains[b].tokens), value))

    def _log_rewards(self, chains: Sequence[Chain]) -> torch.Tensor:
        """(B,) in nats."""
        device, start = self.lm.device, len(self.prompt)
        ids, mask = _padded([[*self.prompt, *chain.tokens, *self.answer] for chain in chains], left=False)
        # Of each token after the first: is it drawn from the alphabet, was the stop allowed there, does it count?
        alphabet = torch.zeros(ids.shape, dtype=torch.bool)
        may_stop, counts = alphabet.clone(), alphabet.clone()
        for row, chain in enumerate(chains):
            end = start + len(chain.tokens)
            alphabet[row, start:end] = torch.tensor(chain.policy_mask, dtype=torch.bool)
            may_stop[row, start:end] = torch.tensor(chain.states[:-1], dtype=torch.bool)
            counts[row, start:end] = True if self.tool_tokens else alphabet[row, start:end]
            counts[row, end : end + len(self.answer)] = True
        ids, mask = ids.to(device), torch.nn.functional.pad(mask, (self.shots.n, 0), value=1).to(device)
        logits = _forward(self.lm, self.model, ids, mask, self.shots.copies(len(chains)))[:, :-1]
        stops = self._log_stops(chains, logits)
        blocked = _blocked(self.rules, may_stop[:, 1:].to(device), logits.shape[-1])
        logits = logits.masked_fill(blocked & alphabet[:, 1:, None].to(device), -torch.inf)
        log_probs = logits.log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
        return torch.where(counts[:, 1:].to(device), log_probs, 0.0).sum(1) + stops

    def _log_stops(self, chains: Sequence[Chain], logits: torch.Tensor) -> torch.Tensor:
        """(B,) of ending each chain by the stop, which counts unless Y begins with it; 0 where the end is forced."""
        stop_id = self.rules.codec.stop_id
        if self.answer[:1] == [stop_id]:
            return logits.new_zeros(len(chains))
        last = [len(self.prompt) + len(chain.tokens) - 1 for chain in chains]
        free = torch.tensor([chain.may_stop and not chain.full for chain in chains], device=logits.device)
        ends = logits[range(len(chains)), last]
        log_stop = ends.masked_fill(_blocked(self.rules, torch.ones_like(free), ends.shape[-1]), -torch.inf)
        return torch.where(free, log_stop.log_softmax(-1)[:, stop_id], 0.0)


def _forward(
    lm: LanguageModel, model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, cache: DynamicCache
) -> torch.Tensor:
    """(B, n, V) float32 logits after each of `ids` (B, n); `mask` (B, past + n) is 0 where padded. Extends `cache`."""
    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    arguments = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "use_cache": True}
    with lm.accelerator.autocast():
        logits: torch.Tensor = model(**arguments, **{lm.capabilities.cache_argument: cache}).logits
    return logits.float()


def _blocked(rules: ChainRules, may_stop: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """(..., V) bool: what the policy may not choose, given where it may stop (...)."""
    blocked = torch.ones(vocabulary, dtype=torch.bool, device=may_stop.device)
    blocked[rules.codec.actions.to(may_stop.device)] = False
    stop = torch.zeros_like(blocked)
    stop[rules.codec.stop_id] = True
    return blocked | (stop & ~may_stop[..., None])


def _padded(rows: Sequence[Sequence[int]], *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, L) ids, padded on one side, and their mask, 0 where padded."""
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(rows):
        columns = slice(longest - len(tokens), None) if left else slice(None, len(tokens))
        ids[row, columns] = torch.tensor(tokens)
        mask[row, columns] = 1
    return ids, mask
