"""How a rationale grows: which prefixes are states, and what a tool adds.

`Chain` is the only place that knows. The sampler pushes the tokens it draws; `encode_rationale` pushes
the tokens of a demonstration; so a replayed, demonstrated or sampled rationale has the same masks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from latent_cot.model.text import TextCodec, has_before_its_end
from latent_cot.types import Rationale, Tool, ToolCall, ToolError, UsageError

Granularity = Literal["token", "step"]

MAX_RESULT_TOKENS = 64
"""A tool's result of more tokens counts as a failed call."""


@dataclass(frozen=True)
class ChainRules:
    """What a rationale may look like."""

    codec: TextCodec
    tools: Sequence[Tool] = ()
    granularity: Granularity = "token"
    """`token`: every prefix is a state (but not inside a tool's result). `step`: s_0 and the end of each
    complete step, which is a tool's result or the step delimiter."""
    step_delimiter: str | None = None
    min_tokens: int = 0
    """A prefix with fewer chosen tokens is no state. At 0 the empty rationale s_0 is one."""
    max_tokens: int = 64
    """A chain with this many chosen tokens is cut: stopped by force."""

    def __post_init__(self) -> None:
        if self.granularity == "step" and not self.tools and self.step_delimiter is None:
            what = "the task has no tool and no step_delimiter to end a step"
            raise UsageError(f"--rollout.granularity step: {what}; give token, or the task a step_delimiter")

    @cached_property
    def asking(self) -> dict[str, Set[int]]:
        """Tool's trigger -> the tokens that can complete it: cheap to look up; the text decides."""
        return {tool.trigger: self.codec.ending_with(tool.trigger) for tool in self.tools}

    @cached_property
    def passing(self) -> dict[str, Set[int]]:
        """Tool's trigger -> the tokens that can complete it and go past it; none, if it is of one character."""
        return {tool.trigger: self.codec.going_past(tool.trigger) for tool in self.tools}

    @cached_property
    def allowed(self) -> Mapping[bool, Sequence[int]]:
        """Whether a chain may stop -> the tokens that may come next."""
        actions = self.codec.actions.tolist()
        return {True: actions, False: [token for token in actions if token != self.codec.stop_id]}

    @cached_property
    def ends(self) -> Sequence[int]:
        """The tokens behind which there may be more to do than to sample on: the stop, and what can complete a tool's
        trigger or, where steps are states, the step delimiter."""
        return sorted({self.codec.stop_id}.union(*self.asking.values(), self.delimiting))

    @cached_property
    def delimiting(self) -> frozenset[int]:
        """The tokens that can complete the step delimiter, where steps are states."""
        by_step = self.granularity == "step" and self.step_delimiter is not None
        return self.codec.ending_with(self.step_delimiter or "") if by_step else frozenset()


class Chain:
    """A rationale being written."""

    def __init__(self, rules: ChainRules) -> None:
        self.rules = rules
        self.tokens: list[int] = []
        self.policy_mask: list[bool] = []
        self.calls: list[ToolCall] = []
        self.n_chosen = 0
        self.states = [rules.min_tokens == 0]

    def copy(self) -> Chain:
        """A chain that goes on from here by itself."""
        twin = Chain(self.rules)
        twin.tokens, twin.policy_mask, twin.states = self.tokens[:], self.policy_mask[:], self.states[:]
        twin.calls, twin.n_chosen = self.calls[:], self.n_chosen
        return twin

    @property
    def full(self) -> bool:
        """It has as many chosen tokens as it may have, and must stop here."""
        return self.n_chosen >= self.rules.max_tokens

    @property
    def may_stop(self) -> bool:
        """Is the present prefix a state?"""
        return self.states[-1]

    def push(self, token: int) -> list[int]:
        """Add a token that the policy chose. Returns the tokens that a tool adds behind it."""
        self._append(token, chosen=True)
        self.n_chosen += 1
        self._fail_where_passed(token)
        result = self._call_tools(token)
        for injected in result or ():
            self._append(injected, chosen=False)
        self.states[-1] = self._ends_at_state(after_result=result is not None)
        return result or []

    def finish(self) -> Rationale:
        """The rationale, ended here: by the stop, or by force if this prefix is no state or it is full."""
        return Rationale(
            tokens=tuple(self.tokens),
            policy_mask=tuple(self.policy_mask),
            states=(*self.states[:-1], True),
            text=self.rules.codec.decode(self.tokens),
            truncated=self.full or not self.may_stop,
            calls=tuple(self.calls),
        )

    def _append(self, token: int, *, chosen: bool) -> None:
        self.tokens.append(token)
        self.policy_mask.append(chosen)
        self.states.append(False)

    def _ends_at_state(self, *, after_result: bool) -> bool:
        if self.n_chosen < self.rules.min_tokens:
            return False
        if self.rules.granularity == "token":
            return True
        delimiter = self.rules.step_delimiter
        if after_result or delimiter is None or self.tokens[-1] not in self.rules.delimiting:
            return after_result
        return self.rules.codec.decode(self.tokens).endswith(delimiter)

    def _fail_where_passed(self, token: int) -> None:
        """A trigger that this token completes and goes past is a failed call: what follows is no tool's result."""
        codec = self.rules.codec
        for tool in self.rules.tools:
            if token not in self.rules.passing[tool.trigger]:
                continue
            recent = self.tokens[-4 * len(tool.trigger) : -1]  # of at most four bytes a character
            begun, piece = codec.decode(recent)[1 - len(tool.trigger) :], codec.pieces[token]
            if has_before_its_end(tool.trigger, begun + piece):
                error = f"the token {piece!r} goes past the trigger {tool.trigger!r}"
                self.calls.append(ToolCall(tool.name, len(self.tokens), "", None, error=error))

    def _call_tools(self, token: int) -> list[int] | None:
        """The tokens of the result; None if no tool was called, or the call failed."""
        codec = self.rules.codec
        for tool in self.rules.tools:
            if token not in self.rules.asking[tool.trigger]:
                continue
            if not (text := codec.decode(self.tokens)).endswith(tool.trigger):
                continue
            request, position = "", len(self.tokens)
            try:
                request = tool.request(text)
                result = tool(request)
                if not isinstance(result, str):
                    raise UsageError(f"tool {tool.name}: {request!r} gave {result!r}, which is no text; put it right")
                ids = codec.encode(result)
                if len(ids) > MAX_RESULT_TOKENS:
                    raise ToolError(f"the result has {len(ids)} tokens, more than {MAX_RESULT_TOKENS}")
            except ToolError as error:
                self.calls.append(ToolCall(tool.name, position, request, None, error=str(error)))
                return None
            self.calls.append(ToolCall(tool.name, position, request, result, n_tokens=len(ids)))
            return ids
        return None


def stopped_at(rationale: Rationale, n: int, codec: TextCodec) -> Rationale:
    """The rationale that stops at this one's state of `n` tokens. Raises ValueError where that prefix is no state."""
    if not rationale.states[n]:
        raise ValueError(f"the rationale {rationale.text!r:.80} cannot stop after {n} tokens: they are no state")
    if n == len(rationale):
        return rationale
    return Rationale(
        tokens=rationale.tokens[:n],
        policy_mask=rationale.policy_mask[:n],
        states=rationale.states[: n + 1],
        text=codec.decode(rationale.tokens[:n]),
        calls=tuple(call for call in rationale.calls if call.position <= n),
    )


def check_rationale(rationale: Rationale, codec: TextCodec) -> None:
    """Raises ValueError for one that no chain can have become."""
    n, calls = len(rationale), rationale.calls
    if len(rationale.policy_mask) != n or len(rationale.states) != n + 1 or not rationale.states[-1]:
        raise ValueError(f"the masks of the rationale {rationale.text!r:.80} do not fit its tokens")
    if not all(0 <= token < codec.vocab_size for token in rationale.tokens):
        raise ValueError(f"the rationale {rationale.text!r:.80} has a token that the model does not have")
    chosen = [token for token, own in zip(rationale.tokens, rationale.policy_mask, strict=True) if own]
    if codec.stop_id in chosen or not all(map(codec.is_action, chosen)):
        raise ValueError(f"the rationale {rationale.text!r:.80} has a token that may not be chosen")
    if not all(call.position >= 0 and call.n_tokens >= 0 and call.position + call.n_tokens <= n for call in calls):
        raise ValueError(f"the rationale {rationale.text!r:.80} has a call where it has no token")


def replayed(rationale: Rationale, rules: ChainRules) -> Rationale:
    """A rationale, perhaps of another run, as the trajectory of these rules: the same tokens are chosen once more, and
    the tools called.

    Raises UsageError where that gives another one, as its tokenizer, its tools or its rules were others.
    """
    it, codec, chain = f"rationale {rationale.text!r:.80}", rules.codec, Chain(rules)
    other = UsageError(f"{it}: was written with another tokenizer, other tools or other rules; score its text instead")
    for token in (token for token, own in zip(rationale.tokens, rationale.policy_mask, strict=True) if own):
        if not codec.is_action(token) or token == codec.stop_id:
            raise other
        if chain.full:
            raise UsageError(f"{it} has more than {rules.max_tokens} tokens: raise --evaluation.max-tokens")
        chain.push(token)
    found = chain.finish()
    if (found.tokens, found.text) != (rationale.tokens, rationale.text):
        raise other
    return replace(found, truncated=found.truncated or rationale.truncated)


_NUMBER = re.compile(r"\s*[-\u2212]?[0-9]+")


def _begins_with(result: str, text: str, step_delimiter: str | None) -> bool:
    """Whether a text begins with a tool's result and goes on as behind one: not with more of a number or a word. Where
    nothing ends a step, a line of its own may begin with the number that the last one came to."""
    if not (own := re.escape(result.strip())):
        return False
    if step_delimiter:  # or a word, such as a unit
        ends = rf"\s*{own}\s*(?:{re.escape(step_delimiter)}|$)|[^\S\r\n]*{own}[^\S\r\n]+[^\W\d]"
        return re.match(ends, text) is not None
    return re.match(rf"[^\S\r\n]*{own}(?:[;\s]|,(?![0-9]{{3}})|\.(?![0-9])|\Z)", text) is not None


def encode_rationale(text: str, rules: ChainRules, *, written: bool = False) -> Rationale:
    """A demonstrated rationale (without the tools' results) as the trajectory that would sample it.

    Args:
        written: the text may hold the tools' results, as `Rationale.text` does; they are not taken for the model's.

    Raises UsageError if the policy could not have written it: a token outside the allowed alphabet, a
    tool call that fails, too many tokens, or an end that is no state.
    """
    chain = Chain(rules)
    codec = rules.codec
    it = f"{'rationale' if written else 'demonstration'} {text!r}"
    rest = text.removeprefix(" ") if codec.begins_a_line else text
    while rest:
        # A tool's result goes in right after its trigger, so what follows is encoded by itself, as the
        # sampler would see it: with the result before it.
        cuts = [rest.find(tool.trigger) + len(tool.trigger) for tool in rules.tools if tool.trigger in rest]
        segment = rest[: min(cuts)] if cuts else rest
        rest, called = rest[len(segment) :], len(chain.calls)
        for token in codec.encode(segment):
            if not codec.is_action(token) or token == codec.stop_id:
                why = f"{it}: the token {codec.pieces[token]!r} is not one a rationale may contain"
                remedy = "it ends a rationale" if token == codec.stop_id else "the task's `allowed_characters` lack it"
                raise UsageError(f"{why}: {remedy}; change the one or the other")
            if chain.full:
                remedy = "raise --rollout.max-tokens or, in tests, --evaluation.max-tokens"
                raise UsageError(f"{it} has more than {rules.max_tokens} tokens: {remedy}")
            chain.push(token)
        if len(chain.calls) == called or (result := chain.calls[-1].result) is None:
            continue
        if written:
            if not rest.startswith(result) and (other := _NUMBER.match(rest)) and _NUMBER.match(result):
                raise UsageError(f"{it}: {chain.calls[-1].tool} writes {result!r} there, not {other[0]!r}")
            rest = rest.removeprefix(result)
        elif _begins_with(result, rest, rules.step_delimiter):
            raise UsageError(
                f"{it}: it holds the result {result.strip()!r} that {chain.calls[-1].tool} writes; leave it out"
            )
    for call in chain.calls:
        if call.error:
            raise UsageError(f"{it}: the call {call.request!r} fails: {call.error}")
    if not chain.may_stop:
        few = chain.n_chosen < rules.min_tokens
        why = f"it has fewer than {rules.min_tokens} tokens: --rollout.min-tokens" if few else "an incomplete step"
        raise UsageError(f"{it} ends where a chain may not stop ({why})")
    return chain.finish()
