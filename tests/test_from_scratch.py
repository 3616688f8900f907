"""`examples/em_from_scratch.py`, the method on one page, beside the library: the same numbers for the same chains."""

from __future__ import annotations

import importlib.util
import random
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from latent_cot import tools
from latent_cot.model.lm import LanguageModel
from latent_cot.model.text import TextCodec
from latent_cot.rationales.batch import Trajectories
from latent_cot.rationales.chain import Chain, ChainRules
from latent_cot.rationales.scoring import Group, Query, score
from latent_cot.types import Example, Rationale
from tests.methods.test_e_step import measure
from tests.worlds import language_model, prefix_log_rewards

FILE = Path(__file__).parents[1] / "examples" / "em_from_scratch.py"


@pytest.fixture(scope="module")
def scratch() -> ModuleType:
    spec = importlib.util.spec_from_file_location("em_from_scratch", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["em_from_scratch"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def world(scratch: ModuleType, folder: Path) -> tuple[LanguageModel, ChainRules, object]:
    """The library's model, whose p and q differ, with its rules, and the page's vocabulary."""
    lm = language_model(folder)
    codec = TextCodec(lm.tokenizer, stop=scratch.STOP, allowed_characters=scratch.ALPHABET)
    rules = ChainRules(codec, [tools.load("calculator")], "step", max_tokens=scratch.MAX_TOKENS)
    return lm, rules, scratch.Vocabulary(lm.tokenizer)


def test_chains_rewards_and_loss_are_the_librarys(scratch: ModuleType, tiny_model: Callable[[str], Path]) -> None:
    """Chains with calls, written over the alphabet at random: the same states, rewards of all prefixes, and SubTB."""
    lm, rules, vocabulary = world(scratch, tiny_model("llama"))
    codec, rng = rules.codec, random.Random(0)
    p, q = lm.merged("p"), lm.merged("q")
    batches, expected = [], []
    for operands in (3, 4):
        example = scratch.make_example(rng, operands)
        texts = [example.z, example.z.split(",")[0], " 7 - 9 =, -2 + 1", " 3", "", example.z + ", 1 * 5 =" + "0" * 40]
        chains, rationales = [], []
        for text in texts:
            chain, growing = scratch.Chain(), Chain(rules)
            for token in [t for part in text.replace("=", "=|").split("|") for t in codec.encode(part)]:
                if not chain.cut:
                    chain.push(token, vocabulary)
                    growing.push(token)
            chain.cut = chain.cut or not chain.states[-1]
            chain.states[-1] = True
            chains.append(chain)
            rationales.append(growing.finish())
        for chain, rationale in zip(chains, rationales, strict=True):
            assert (*chain.tokens,) == rationale.tokens and (*chain.by_policy,) == rationale.policy_mask
            assert (*chain.states,) == rationale.states and chain.cut == rationale.truncated
        assert any(not all(z.policy_mask) for z in rationales) and any(z.truncated for z in rationales)
        prompt, answer = codec.encode_prompt(example.x), codec.encode(example.y)
        (table,) = prefix_log_rewards(lm, [Group(prompt, rationales, answer)], codec)
        rewards = [scratch.log_rewards(p, example, chain, vocabulary) for chain in chains]
        for row, rationale, of_chain in zip(table, rationales, rewards, strict=True):
            states = torch.tensor([*rationale.states, *[False] * (table.shape[1] - len(rationale) - 1)])
            torch.testing.assert_close(row[states], torch.tensor(of_chain), atol=1e-4, rtol=1e-5)
        with torch.no_grad():
            expected.append(float(scratch.pooled_subtb(q, example.x, chains, rewards, vocabulary)))
        query = Query(Example(example.x, question=example.x), prompt, prompt, answer)
        counts = Counter(rationales)
        assert len(counts) == len(rationales)
        batches.append(Trajectories(query, rationales, [1] * len(rationales), table, [1] * len(rationales)))
    info, _ = measure(lm, batches, rules, objective="pooled-subtb")
    assert info.loss == pytest.approx(sum(expected) / 2, rel=1e-4)


def test_demonstrations_and_greedy_chains(scratch: ModuleType, tiny_model: Callable[[str], Path]) -> None:
    lm, rules, vocabulary = world(scratch, tiny_model("llama"))
    example = scratch.make_example(random.Random(1), 4)
    chain = scratch.demonstrated(example.z, vocabulary)
    assert scratch.is_right(chain, example, vocabulary) and chain.states[-1] and not chain.cut
    sampled = scratch.sample(lm.merged("q"), example.x, vocabulary, temperature=0.0)
    mirrored = Rationale((*sampled.tokens,), (*sampled.by_policy,), (*sampled.states,), "", sampled.cut)
    scores = score(lm, lm.merged("q"), [Group(rules.codec.encode_prompt(example.x), [mirrored])], rules.codec)
    tokens, stops = scratch.log_policy(lm.merged("q"), example.x, sampled, vocabulary)
    torch.testing.assert_close(scores.log_pf[0, : len(tokens)], tokens.detach(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scores.log_pterm[0, : len(stops)], stops.detach(), atol=1e-4, rtol=1e-4)


def test_it_runs(
    scratch: ModuleType,
    tiny_model: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From the demonstrations to the accuracy. One M-step on nothing would stop it: a chain that is right is given."""
    folder = tiny_model("llama")
    p = AutoModelForCausalLM.from_pretrained(folder)
    vocabulary = scratch.Vocabulary(AutoTokenizer.from_pretrained(folder))
    before = [weight.clone() for weight in p.parameters()]
    monkeypatch.setattr(scratch, "is_right", lambda chain, example, v: True)
    monkeypatch.setattr(scratch, "MAX_TOKENS", 12)
    torch.manual_seed(0)
    random.seed(0)
    scratch.em(p, vocabulary, size=4, steps=1, tests=1)
    assert any(not torch.equal(old, new) for old, new in zip(before, p.parameters(), strict=True))
    assert "5 operands: p " in capsys.readouterr().out


def test_it_fits_on_a_page() -> None:
    lines = FILE.read_text().splitlines()
    assert len(lines) <= 250
    assert "latent_cot" not in FILE.read_text().replace("latent-cot", "")
