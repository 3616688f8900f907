"""How a rationale grows: the masks, the tools, and demonstrations."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from latent_cot.config.settings import load_config
from latent_cot.model.text import TextCodec
from latent_cot.rationales.chain import MAX_RESULT_TOKENS, Chain, ChainRules, encode_rationale, stopped_at
from latent_cot.run.session import open_session
from latent_cot.types import Rationale, ToolCall, ToolError, UsageError
from tests.tiny import build_tokenizer, tiny_llama
from tests.worlds import ALPHABET, CountTool, FakeTool, random_chain


@pytest.fixture(scope="module", params=["llama", "multi_digit"])
def codec(request: pytest.FixtureRequest, tiny_model: Callable[[str], Path]) -> TextCodec:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model(request.param))
    return TextCodec(tokenizer, allowed_characters=ALPHABET + "abc")


def write(rules: ChainRules, text: str) -> Chain:
    chain = Chain(rules)
    for token in rules.codec.encode(text):
        chain.push(token)
    return chain


@pytest.fixture(scope="module")
def single(tiny_model: Callable[[str], Path]) -> TextCodec:
    """One token a character, so that masks can be written down."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model("llama"))
    return TextCodec(tokenizer, allowed_characters=ALPHABET + "abc")


T, F = True, False


def test_the_masks_of_a_call_at_token_granularity(single: TextCodec) -> None:
    """`ab=` asks, ` 3` is written (1 + 2 + ...): no state between the trigger and the end of the result."""
    rationale = write(ChainRules(single, [CountTool()]), "ab=").finish()
    assert rationale.text == "ab= 2"
    assert rationale.policy_mask == (T, T, T, F, F)
    assert rationale.states == (T, T, T, F, F, T)
    assert not rationale.truncated
    assert rationale.calls == (ToolCall("count", 3, "ab", " 2", n_tokens=2),)


def test_the_masks_of_a_call_at_step_granularity(single: TextCodec) -> None:
    chain = write(ChainRules(single, [CountTool()], granularity="step"), "ab=c")
    assert chain.states == [T, F, F, F, F, T, F]
    assert not chain.may_stop
    assert chain.finish().truncated, "a chain that ends at no state has been ended by force"


def test_a_delimiter_ends_a_step(single: TextCodec) -> None:
    rules = ChainRules(single, granularity="step", step_delimiter=", ")
    assert write(rules, "a, b,").states == [T, F, F, T, F, F]


def test_a_failed_call_leaves_the_chain_going(single: TextCodec) -> None:
    class Broken(CountTool):
        def __call__(self, request: str) -> str:
            raise ToolError("no")

    rationale = write(ChainRules(single, [Broken()]), "a=b").finish()
    assert rationale.text == "a=b"
    assert rationale.states == (T, T, T, T)
    assert rationale.calls == (ToolCall("count", 2, "a", None, error="no"),)


@pytest.mark.parametrize(("length", "fails"), [(MAX_RESULT_TOKENS, False), (MAX_RESULT_TOKENS + 1, True)])
def test_a_result_that_is_too_long_is_a_failed_call(single: TextCodec, length: int, fails: bool) -> None:
    class Long(CountTool):
        def __call__(self, request: str) -> str:
            return "1" * length

    rationale = write(ChainRules(single, [Long()]), "=").finish()
    assert (rationale.calls[0].error is not None) == fails
    assert len(rationale) == 1 + (0 if fails else length)


def test_a_result_of_no_token_is_no_failure(single: TextCodec) -> None:
    class Silent(CountTool):
        def __call__(self, request: str) -> str:
            return ""

    rationale = write(ChainRules(single, [Silent()]), "a=").finish()
    assert rationale.states == (T, T, T)
    assert rationale.calls == (ToolCall("count", 2, "a", ""),)


def test_a_trigger_in_a_result_does_not_ask(single: TextCodec) -> None:
    class Chatty(CountTool):
        def __call__(self, request: str) -> str:
            return "1="

    rationale = write(ChainRules(single, [Chatty()]), "=").finish()
    assert rationale.text == "=1="
    assert len(rationale.calls) == 1


def test_a_trigger_of_several_characters(codec: TextCodec) -> None:
    class Wide(CountTool):
        trigger = " ="

        def request(self, text: str) -> str:
            return text.removesuffix(" =")

    rules = ChainRules(codec, [Wide()])
    assert write(rules, "a=b").finish().text == "a=b"
    assert write(rules, "a =").finish().text == "a = 1"


def test_a_short_chain_may_not_stop(single: TextCodec) -> None:
    """Only chosen tokens count."""
    chain = write(ChainRules(single, [CountTool()], min_tokens=3), "a=bc")
    assert chain.finish().text == "a= 1bc"
    assert chain.states == [F, F, F, F, F, T, T]


def test_a_chain_is_full_after_max_tokens_chosen_ones(single: TextCodec) -> None:
    chain = Chain(ChainRules(single, [CountTool()], max_tokens=2))
    chain.push(single.encode("a")[0])
    full = [chain.full]
    chain.push(single.encode("=")[0])
    assert [*full, chain.full] == [False, True]
    rationale = chain.finish()
    assert rationale.truncated
    assert rationale.text == "a= 1"
    assert rationale.states[-1]


def test_step_granularity_needs_something_that_ends_a_step(single: TextCodec) -> None:
    with pytest.raises(UsageError, match="step"):
        ChainRules(single, granularity="step")


@given(
    seed=st.integers(0, 2**32),
    granularity=st.sampled_from(["token", "step"]),
    min_tokens=st.integers(0, 4),
    length=st.integers(0, 12),
)
def test_invariants_of_any_chain(codec: TextCodec, seed: int, granularity: Any, min_tokens: int, length: int) -> None:
    rules = ChainRules(codec, [FakeTool()], granularity=granularity, min_tokens=min_tokens, max_tokens=10)
    rationale = random_chain(rules, random.Random(seed), length)
    n = len(rationale)
    assert len(rationale.policy_mask) == n
    assert len(rationale.states) == n + 1
    assert rationale.states[-1]
    assert rationale.text == codec.decode(rationale.tokens)
    assert sum(rationale.policy_mask) <= 10
    written = sum(call.n_tokens for call in rationale.calls)
    assert sum(rationale.policy_mask) == n - written
    for call in rationale.calls:
        assert (call.result is None) == (call.error is not None)
        span = range(call.position, call.position + call.n_tokens)
        assert not any(rationale.policy_mask[i] for i in span)
        assert not any(rationale.states[i] for i in span), "a state before a result, or inside it"
        assert rationale.policy_mask[call.position - 1]
    for i in range(n):
        if rationale.states[i]:
            assert sum(rationale.policy_mask[:i]) >= min_tokens


@given(
    seed=st.integers(0, 2**32),
    granularity=st.sampled_from(["token", "step"]),
    min_tokens=st.integers(0, 4),
    length=st.integers(0, 12),
)
def test_a_rationale_stops_at_any_state_as_the_chain_does(
    codec: TextCodec, seed: int, granularity: Any, min_tokens: int, length: int
) -> None:
    rules = ChainRules(codec, [FakeTool()], granularity=granularity, min_tokens=min_tokens, max_tokens=10)
    whole = random_chain(rules, random.Random(seed), length)
    for n, is_state in enumerate(whole.states):
        if not is_state:
            with pytest.raises(ValueError, match="no state"):
                stopped_at(whole, n, codec)
            continue
        chain = Chain(rules)
        for token, chosen in zip(whole.tokens[:n], whole.policy_mask[:n], strict=True):
            if chosen:
                chain.push(token)
        assert stopped_at(whole, n, codec) == chain.finish()


# -- demonstrations ------------------------------------------------------------------------------------


def test_a_demonstration_is_the_chain_that_samples_it(codec: TextCodec) -> None:
    """Its tokens, masks and calls: what is replayed has the tools' output in it."""
    rules = ChainRules(codec, [CountTool()], granularity="step")
    rationale = encode_rationale("ab=, 12=", rules)
    assert rationale.text == "ab= 2, 12= 6"
    chain = Chain(rules)
    for token, chosen in zip(rationale.tokens, rationale.policy_mask, strict=True):
        if chosen:
            chain.push(token)
    assert chain.finish() == rationale
    assert [call.result for call in rationale.calls] == [" 2", " 6"]


def test_an_empty_demonstration(single: TextCodec) -> None:
    assert encode_rationale("", ChainRules(single)) == Rationale((), (), (True,), "")


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("aXb", {}, "'X'"),
        ("abcabc", {"max_tokens": 5}, "max-tokens"),
        ("ab=c", {"granularity": "step"}, "may not stop"),
        ("a", {"min_tokens": 2}, "may not stop"),
    ],
)
def test_a_demonstration_the_policy_could_not_write_is_refused(
    single: TextCodec, text: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        encode_rationale(text, ChainRules(single, [CountTool()], **settings))


def test_a_demonstration_without_the_results_is_wanted(single: TextCodec) -> None:
    rules = ChainRules(single, [CountTool()], step_delimiter=",")
    for text in ("a= 1, b", "a=1", "ab=, 12= 6,", "a= 1 b, c"):
        with pytest.raises(UsageError, match=r"it holds the result '[16]' that count writes; leave it out"):
            encode_rationale(text, rules)
    assert encode_rationale("a= 12", rules).text == "a= 1 12", "what follows is a number of its own"
    assert encode_rationale("a= 1 + 1", rules).text == "a= 1 1 + 1"


@pytest.mark.parametrize("text", ["a= 1, b", "a=1", "ab=, 12= 6,", "a= 1 b", "a= 1. b", "a= 1\nb"])
def test_a_result_is_left_out_where_no_delimiter_ends_a_step(tiny_model: Callable[[str], Path], text: str) -> None:
    codec = TextCodec(AutoTokenizer.from_pretrained(tiny_model("llama")))
    with pytest.raises(UsageError, match=r"it holds the result '[16]' that count writes; leave it out"):
        encode_rationale(text, ChainRules(codec, [CountTool()]))


@pytest.mark.parametrize("behind", ["", " 12", " 1b", " 1,000", " 1.5", "\n1 + 1", ", 1"])
def test_what_goes_on_otherwise_is_no_result(tiny_model: Callable[[str], Path], behind: str) -> None:
    codec = TextCodec(AutoTokenizer.from_pretrained(tiny_model("llama")))
    assert encode_rationale(f"a={behind}", ChainRules(codec, [CountTool()])).text == f"a= 1{behind}"


@pytest.mark.parametrize("delimiter", [None, ","])
def test_a_result_that_is_nothing_is_in_no_demonstration(single: TextCodec, delimiter: str | None) -> None:
    class Silent(CountTool):
        def __call__(self, request: str) -> str:
            return ""

    rules = ChainRules(single, [Silent()], step_delimiter=delimiter)
    assert encode_rationale("a=, b", rules).text == "a=, b"


def test_a_written_result_that_the_tool_does_not_give_is_refused(single: TextCodec) -> None:
    """What is written behind a call is else taken for what the model wrote behind the result."""
    rules = ChainRules(single, [CountTool()])
    assert encode_rationale("a= 1b", rules, written=True) == encode_rationale("a=b", rules)
    assert encode_rationale("a= 14", rules, written=True).text == "a= 14"  # what it wrote went on so
    with pytest.raises(UsageError, match="rationale 'a= 9b': count writes ' 1' there, not ' 9'"):
        encode_rationale("a= 9b", rules, written=True)


def test_a_demonstration_whose_call_fails_is_refused(single: TextCodec) -> None:
    class Broken(CountTool):
        def __call__(self, request: str) -> str:
            raise ToolError("the sky is falling")

    with pytest.raises(UsageError, match="the sky is falling"):
        encode_rationale("a=", ChainRules(single, [Broken()]))


def test_no_token_passes_a_tool_by() -> None:
    """A tokenizer that merges over words may have " = 1" as one token: a result that no tool wrote."""
    merges = [("=", "1"), ("=", "="), (" ", "="), (" =", " "), (" = ", "1")]
    merges += [("=1", "="), ("=", " "), (" ", "1")]
    tokenizer = build_tokenizer(merges=merges)
    codec = TextCodec(tokenizer, allowed_characters=ALPHABET, triggers=["="])
    pieces = {codec.pieces[token] for token in codec.actions.tolist()}
    assert {"=", " =", "==", " 1"} <= pieces, "these end with the trigger, or have none"
    assert pieces.isdisjoint({"=1", " = ", " = 1", "=1=", "= "})
    free = TextCodec(tokenizer, triggers=["="])
    gone = set(TextCodec(tokenizer).actions.tolist()) - set(free.actions.tolist())
    assert {codec.pieces[token] for token in gone} == {"=1", " = ", " = 1", "=1=", "= "}
    rationale = encode_rationale("1 + 1 =, 1 =", ChainRules(codec, [CountTool()]))
    assert rationale.text == "1 + 1 = 6, 1 = 6", "a demonstration is cut behind the trigger"


def test_a_run_has_no_token_that_passes_its_tools_by(tmp_path: Path) -> None:
    """SmolLM2 has "=-", which the arithmetic's alphabet allows."""
    tokenizer = build_tokenizer(merges=[("=", "-")])
    tiny_llama(tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config = replace(load_config("smoke"), model=str(tmp_path), precision="fp32")
    session = open_session(config, load_data=False)
    pieces = session.rules.codec.pieces
    assert "=-" in pieces and "=-" not in {pieces[token] for token in session.rules.codec.actions.tolist()}


class Arrow(CountTool):
    name = "arrow"
    trigger = "->"

    def request(self, text: str) -> str:
        return text.removesuffix("->").rsplit(",", 1)[-1]


@pytest.fixture(scope="module")
def straddling() -> TextCodec:
    tokenizer = build_tokenizer(merges=[(">", "="), (">", "-"), (">-", ">")])
    return TextCodec(tokenizer, triggers=["->", "="])


def pushed(rules: ChainRules, *pieces: str) -> Rationale:
    chain = Chain(rules)
    for piece in pieces:
        chain.push(rules.codec.pieces.index(piece))
    return chain.finish()


def test_a_trigger_that_a_token_goes_past_is_a_failed_call(straddling: TextCodec) -> None:
    """As "-" and ">=": no tool was called, and what follows is the model's guess."""
    arrow = ChainRules(straddling, [Arrow()])
    rationale = pushed(arrow, "5", "-", ">=", " ", "3")
    assert rationale.text == "5->= 3" and rationale.failed
    error = "the token '>=' goes past the trigger '->'"
    assert rationale.calls == (ToolCall("arrow", 3, "", None, error=error),)
    assert stopped_at(rationale, 2, straddling).calls == ()
    assert pushed(arrow, "5", "-", ">").text == "5-> 1"
    assert not pushed(arrow, "5", " ", ">=").calls, "it had not begun"
    assert not pushed(arrow, "-", "5", ">=").calls
    (call,) = pushed(arrow, "5", "-", ">->").calls
    assert call.request == "5->", "behind the first is nothing but the trigger itself"


def test_a_token_that_goes_past_one_trigger_may_call_another_tool(straddling: TextCodec) -> None:
    """As an export does, which looks at the end of the text."""
    rationale = pushed(ChainRules(straddling, [Arrow(), CountTool()]), "5", "-", ">=")
    assert [(call.tool, call.result, call.position) for call in rationale.calls] == [
        ("arrow", None, 3),
        ("count", " 3", 3),
    ]
    assert rationale.failed and rationale.text == "5->= 3"


def test_nothing_goes_past_a_trigger_of_one_character(straddling: TextCodec) -> None:
    rules = ChainRules(straddling, [Arrow(), CountTool()])
    assert rules.passing["="] == frozenset()
    assert {straddling.pieces[token] for token in rules.passing["->"]} == {">=", ">-", ">->"}
