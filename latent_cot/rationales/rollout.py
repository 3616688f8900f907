"""Batched sampling of rationales with a key-value cache and tools called inline.

Every row of the batch advances by exactly one token a step. A row whose chain has asked for a tool is fed
the result's tokens, one a step, while the other rows sample theirs: nothing stalls, and the cache is never
thrown away, whatever the lengths of the results.

A row is a distinct chain, not a sample. The n samples of a question begin as one row, and a row branches
when its samples disagree about the next token: each still draws its own token, from the same distribution
as if it had been alone, but what they share is computed once. A sampler that is sure of itself needs a
fraction of the rows. Rows that end leave the batch, and waiting prompts take their places.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.generation.logits_process import TopPLogitsWarper

from latent_cot.model.kv_cache import KVCache
from latent_cot.model.lm import AdapterName, LanguageModel
from latent_cot.model.tree import shared_prefix
from latent_cot.rationales import categorical, engine_rollout
from latent_cot.rationales.chain import Chain, ChainRules
from latent_cot.types import Rationale, UsageError

# Prompts are let in when this share of the places is free: a pass for each one would be slow.
_LET_IN_AT = 0.25
# Columns that no row uses any more are dropped when there are this many: it costs a copy of the cache.
_DEAD_COLUMNS = 32


@dataclass
class _Row:
    """A distinct chain of one prompt."""

    chain: Chain
    samples: list[int]
    """The samples whose chain this is so far."""
    start: int
    """The cache's column of its first token (behind the prefix that all prompts share)."""
    position: int
    """Position of its next token."""
    pending: deque[int] = field(default_factory=deque)
    """A tool's tokens that have still to be fed."""

    def branch(self, samples: list[int]) -> _Row:
        return _Row(self.chain.copy(), samples, self.start, self.position)


Draw = Callable[..., Sequence[Sequence[Rationale]]]
"""`rollout` of some model and reasoner: prompts, rules, n, temperature and generator -> rationales of each prompt."""

Counts = Mapping[Rationale, int]
"""Distinct rationale -> how often it was sampled, in order of first occurrence."""


@torch.no_grad()
def rollout(
    lm: LanguageModel,
    reasoner: AdapterName,
    prompts: Sequence[Sequence[int]],
    rules: ChainRules,
    *,
    n: int = 1,
    temperature: float | Sequence[Sequence[float]] = 1.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
    max_tokens: int | None = None,
) -> list[list[Rationale]]:
    """Sample `n` rationales for each prompt: here, or by the engine that `lm` has.

    Args:
        reasoner: the adapter to sample from.
        prompts: token ids, of any lengths; each is run once and shared by its n rationales.
        temperature: of all rationales, or of each of the n of each prompt; 0 is greedy.
        top_p: below 1, nucleus sampling: only the likeliest tokens are drawn whose probabilities, at this temperature,
            come to that much.
        generator: on the CPU. The same generator state gives the same rationales, with as many processes.
        batch_size: samples in progress at once, if there are more; None: all.
        max_tokens: of the prompts that are run at once, padding included, if they are several; None: any number.

    Returns one list of `n` rationales a prompt.
    """
    heat = torch.as_tensor(temperature, dtype=torch.float32).expand(len(prompts), n)
    share = lm.processes.share(range(len(prompts)))
    generator = lm.processes.generator(generator)
    prompts, heat = [prompts[i] for i in share], heat[share]
    if not prompts:
        return lm.processes.join([])
    if lm.engine is None:
        own = _rollout_here(lm, reasoner, prompts, rules, heat, top_p, generator, batch_size, max_tokens)
    else:
        complete = partial(lm.complete, reasoner)
        own = engine_rollout.rollout(
            complete, prompts, rules, n=n, temperature=heat.tolist(), top_p=top_p, generator=generator
        )
    return lm.processes.join(own)


def _rollout_here(
    lm: LanguageModel,
    reasoner: AdapterName,
    prompts: Sequence[Sequence[int]],
    rules: ChainRules,
    heat: torch.Tensor,
    top_p: float,
    generator: torch.Generator | None,
    batch_size: int | None,
    max_tokens: int | None,
) -> list[list[Rationale]]:
    """By the model itself; `heat` (prompts, n) is the temperature of each sample."""
    n, heat = heat.shape[1], heat.flatten()
    actions, whole = rules.codec.actions.to(lm.device), top_p == 1
    log_probs: list[list[float]] = [[] for _ in heat]
    batch = _Batch(lm, lm.merged(reasoner), prompts, rules, n, max(n, batch_size or n * len(prompts)), max_tokens)
    while batch.admit():
        draws = batch.draws()
        logits = lm.logits(batch.hidden, actions).cpu()
        may_stop = torch.tensor([row.chain.may_stop for row in batch.rows], dtype=torch.bool)
        logits[~may_stop, rules.codec.stop_index] = -torch.inf
        chosen, log_prob = _sample(logits, draws, heat, top_p, generator)
        for (_, sample), value in zip(draws, log_prob, strict=True):
            log_probs[sample].append(value)
        batch.advance({sample: action for (_, sample), action in zip(draws, chosen, strict=True)})
    known = [tuple(own) if whole and heat[k] == 1 else None for k, own in enumerate(log_probs)]
    return [
        [replace(batch.finished[k], log_probs=known[k]) for k in range(i * n, (i + 1) * n)] for i in range(len(prompts))
    ]


def _sample(
    logits: torch.Tensor,
    draws: Sequence[tuple[int, int]],
    heat: torch.Tensor,
    top_p: float,
    generator: torch.Generator | None,
) -> tuple[list[int], list[float]]:
    """(the action, its log-probability) of each of `draws`, which are (the row, the sample); of a greedy one that is 0.
    `logits` (rows, A); `heat` the temperature of every sample there is.

    Each sample draws by a number of its own; what it draws from is the same for all of its row and temperature.
    """
    highest, greedy = logits.max(-1)
    if not bool((highest < torch.inf).all()):  # NaN is not below it either
        flags = "--init-step, --e-step or --m-step.learning-rate, whichever was last"
        raise UsageError(f"the model's logits are no numbers: its training has come apart; lower {flags}")
    if not draws:
        return [], []
    kinds: dict[tuple[int, float], int] = {}
    degrees = heat.tolist()
    kind_of = torch.tensor([kinds.setdefault((row, degrees[sample]), len(kinds)) for row, sample in draws])
    rows, heats = torch.tensor([row for row, _ in kinds]), torch.tensor([degree for _, degree in kinds])
    if not bool(heats.any()):
        return greedy[rows][kind_of].tolist(), [0.0] * len(draws)
    scaled = logits[rows].sub_(highest[rows, None]).div_(heats.clamp(min=1e-6)[:, None])
    if top_p < 1:
        # The warper wants token ids, and does not look at them.
        scaled = TopPLogitsWarper(top_p)(torch.empty(0, dtype=torch.long), scaled)
    weights = scaled.exp_()
    numbers = torch.rand(len(draws), dtype=torch.float64, generator=generator)
    drawn = torch.where(heats[kind_of] == 0, greedy[rows][kind_of], categorical.draw(weights, kind_of, numbers))
    log_prob = weights[kind_of, drawn].log() - weights.sum(-1).log()[kind_of]
    return drawn.tolist(), log_prob.tolist()


class _Batch:
    """The rows in progress, their cache, and the prompts that wait."""

    def __init__(
        self,
        lm: LanguageModel,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        rules: ChainRules,
        n: int,
        places: int,
        max_tokens: int | None,
    ) -> None:
        self.lm, self.model, self.prompts, self.rules = lm, model, prompts, rules
        self.n, self.places, self.max_tokens = n, places, max_tokens
        # The longest first: a prompt can only join rows that have as many columns as it has tokens.
        self.waiting = deque(sorted(range(len(prompts)), key=lambda i: -len(prompts[i])))
        self.rows: list[_Row] = []
        self.hidden = torch.empty(0)
        """(rows, H) at the last token of each row."""
        self.finished: dict[int, Rationale] = {}
        self.cache = lm.new_cache(model)
        self.columns = 0
        """Of the cache, behind the prefix."""
        # Behind it stands the padding of the shorter ones.
        self.prefix = shared_prefix(prompts) if self.cache.joinable and lm.capabilities.gaps else 0
        """Tokens with which all prompts begin: run once, and in memory once."""
        self.prefix_cache: KVCache | None = None
        if self.prefix:
            self.prefix_cache = lm.new_cache(model)
            ids = torch.tensor([prompts[0][: self.prefix]], device=lm.device)
            positions = torch.arange(self.prefix, device=lm.device)[None]
            lm.decode_step(model, ids, torch.ones_like(ids), positions, self.prefix_cache)

    # -- one step ------------------------------------------------------------------------------------

    def admit(self) -> bool:
        """Let waiting prompts take free places. Returns False when there is nothing left to do."""
        free = (self.places - sum(len(row.samples) for row in self.rows)) // self.n
        if not self.rows:
            self.cache = self.lm.new_cache(self.model)
            self.columns = 0
            self.hidden = torch.empty(0)
        elif not self.cache.joinable or free * self.n < _LET_IN_AT * self.places:
            return True
        chosen = [self.waiting.popleft() for _ in range(min(free, len(self.waiting)))]
        while chosen:
            n = self._at_once(chosen)
            if n < len(chosen) and not self.cache.joinable:  # the others have to wait
                self.waiting.extendleft(reversed(chosen[n:]))
                chosen = chosen[:n]
            self._prefill(chosen[:n])
            chosen = chosen[n:]
        return bool(self.rows)

    def _at_once(self, chosen: Sequence[int]) -> int:
        """How many of these prompts, of which the first is the longest, one pass may run."""
        longest = len(self.prompts[chosen[0]]) - self.prefix
        return len(chosen) if self.max_tokens is None else max(1, self.max_tokens // max(1, longest))

    def draws(self) -> list[tuple[int, int]]:
        """(the row, the sample) of each sample that is to choose a token now; a sample is prompt x n + k."""
        return [(place, k) for place, row in enumerate(self.rows) if not row.pending for k in row.samples]

    def advance(self, action_of: dict[int, int]) -> None:
        """Give each row its next token, let rows branch and leave, and run the model on the tokens."""
        going: list[tuple[int, _Row, int]] = []  # (the row it was, row, token)
        for place, row in enumerate(self.rows):
            if row.pending:
                going.append((place, row, row.pending.popleft()))
            else:
                going.extend((place, *branch) for branch in self._choose(row, action_of))
        if not going:
            self.rows = []
            return
        sources, self.rows, tokens = _keep_in_place(going)
        if sources != list(range(self.hidden.shape[0])):
            self.cache.rearrange(sources, self.lm.device)
        self.columns += 1
        self._drop_dead_columns()
        device = self.lm.device
        positions = torch.tensor([row.position for row in self.rows], device=device)
        self.hidden = self.lm.decode_step(
            self.model, torch.tensor(tokens, device=device)[:, None], self._mask(), positions[:, None], self.cache
        )
        for row in self.rows:
            row.position += 1

    def _choose(self, row: _Row, action_of: dict[int, int]) -> list[tuple[_Row, int]]:
        """What becomes of a row: (row, token) for each token that one of its samples chose, less the ends."""
        codec = self.rules.codec
        samples_of: dict[int, list[int]] = {}
        for index in row.samples:
            samples_of.setdefault(action_of[index], []).append(index)
        if codec.stop_index in samples_of:
            self._finish(row.chain, samples_of.pop(codec.stop_index))
        going = []
        for action, samples in samples_of.items():
            branch = row.branch(samples)
            token = int(codec.actions[action])
            branch.pending.extend(branch.chain.push(token))
            if branch.chain.full:  # a result that is still pending need not be fed any more
                self._finish(branch.chain, branch.samples)
            else:
                going.append((branch, token))
        return going

    def _finish(self, chain: Chain, samples: Sequence[int]) -> None:
        rationale = chain.finish()
        self.finished.update(dict.fromkeys(samples, rationale))

    # -- the cache -----------------------------------------------------------------------------------

    def _prefill(self, chosen: Sequence[int]) -> None:
        """Run prompts, each once, and add a row for each."""
        device, prefix = self.lm.device, self.prefix
        rests = [self.prompts[i][prefix:] for i in chosen]
        ids = pad_sequence([torch.tensor(rest) for rest in rests], batch_first=True, padding_side="left")
        is_token = pad_sequence([torch.ones(len(rest)) for rest in rests], batch_first=True, padding_side="left")
        mask = pad(is_token.long(), (prefix, 0), value=1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, prefix:]
        cache = self.lm.new_cache(self.model, self.prefix_cache)
        hidden = self.lm.decode_step(self.model, ids.to(device), mask.to(device), positions.to(device), cache)
        if self.rows:
            self.cache.join(cache)
            self.hidden = torch.cat([self.hidden, hidden])
        else:
            self.cache, self.columns, self.hidden = cache, ids.shape[1], hidden
        for i, rest in zip(chosen, rests, strict=True):
            samples = list(range(i * self.n, (i + 1) * self.n))
            start = self.columns - len(rest)
            self.rows.append(_Row(Chain(self.rules), samples, start, prefix + len(rest)))

    def _mask(self) -> torch.Tensor:
        """(rows, prefix + columns) long: 1 from each row's first token on, and for the prefix."""
        starts = torch.tensor([row.start for row in self.rows])[:, None]
        own = (torch.arange(self.columns) >= starts).long()
        return pad(own, (self.prefix, 0), value=1).to(self.lm.device)

    def _drop_dead_columns(self) -> None:
        if not self.cache.joinable:
            return
        dead = min(row.start for row in self.rows)
        if self.waiting:  # those who wait must still find room
            dead = min(dead, self.columns - (len(self.prompts[self.waiting[0]]) - self.prefix))
        # A model that counts columns, whatever stands in them, has no room for dead ones.
        if dead >= (_DEAD_COLUMNS if self.lm.capabilities.columns is None else 1):
            self.cache.drop_columns(dead)
            self.columns -= dead
            for row in self.rows:
                row.start -= dead


def _keep_in_place(going: Sequence[tuple[int, _Row, int]]) -> tuple[list[int], list[_Row], list[int]]:
    """Arrange rows so that as few as possible have to be copied: the first branch of a row stays where the
    row was, the others fill the gaps. Returns each place's source, row and token."""
    placed: dict[int, tuple[int, _Row, int]] = {}
    others = []
    for entry in going:
        if entry[0] < len(going) and entry[0] not in placed:
            placed[entry[0]] = entry
        else:
            others.append(entry)
    gaps = (place for place in range(len(going)) if place not in placed)
    placed.update(zip(gaps, others, strict=True))
    arranged = [placed[place] for place in range(len(going))]
    return [e[0] for e in arranged], [e[1] for e in arranged], [e[2] for e in arranged]
