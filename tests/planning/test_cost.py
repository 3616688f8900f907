"""The cost model against counts by hand, and against what the engine itself keeps."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    Gemma3Config,
    Gemma3TextConfig,
    GPT2Config,
    MambaConfig,
    OPTConfig,
    PretrainedConfig,
)

from latent_cot.config.schema import COMPLETE_ONLY, DIAGNOSTIC_SAMPLES
from latent_cot.config.settings import load_config
from latent_cot.objectives import OBJECTIVES
from latent_cot.planning import rounds
from latent_cot.planning.cost import Cost, CostModel, batches
from latent_cot.planning.hardware import GPUS, Hardware, Pass
from latent_cot.planning.rounds import Texts
from latent_cot.planning.shape import SHAPES, _first, gated, shape_of
from latent_cot.run.session import Session, open_session
from latent_cot.types import UsageError

NOTHING = Pass(0.0, 0.0)
TOY = gated(layers=2, width=8, inner=16, heads=2, kv_heads=1, vocabulary=100, tied=True)
FLAT = Hardware(1e6, 1e3, 1e3, 1e9, 0.0, 0.0, NOTHING, NOTHING, NOTHING)
N = 2 * (8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 16)
"""Weights of the toy's layers."""


@pytest.fixture(scope="module")
def session(tiny_model_dir: Path) -> Session:
    config = load_config("smoke")
    return open_session(replace(config, model=str(tiny_model_dir), precision="fp32"))


def test_weights_are_counted_by_hand() -> None:
    assert TOY.linear == N
    assert TOY.weights == N + 800
    assert TOY.lora_weights(3) == 2 * 3 * ((8 + 8) * 2 + (8 + 4) * 2 + (8 + 16) * 3)


@pytest.mark.parametrize(("name", "weights"), [("smollm2-135m", 134_515_008), ("7b", 7_615_616_512)])
def test_short_names_have_the_published_number_of_weights(name: str, weights: int) -> None:
    """Without norms and biases, which are some ten thousandths."""
    assert SHAPES[name].weights == pytest.approx(weights, rel=1e-3)


def test_a_configuration_gives_the_shape_of_the_model(session: Session, tiny_model_dir: Path) -> None:
    shape, lm = shape_of(str(tiny_model_dir)), session.lm
    rank = session.config.lora.rank
    assert shape.lora_weights(rank) == sum(weight.numel() for weight in lm.parameters("q").values())
    base = sum(w.numel() for name, w in lm.peft.get_base_model().named_parameters() if "lora_" not in name)
    assert shape.weights == pytest.approx(base, abs=shape.layers)


@pytest.mark.parametrize(
    ("config", "inner", "kv_heads"),
    [
        (OPTConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=2, ffn_dim=48, vocab_size=98), 48, 4),
        (GPT2Config(n_embd=32, n_head=4, n_layer=2, n_inner=48, vocab_size=98), 48, 4),
        (FalconConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=2, vocab_size=98), 128, 1),
        (
            FalconConfig(
                hidden_size=32,
                num_attention_heads=4,
                num_hidden_layers=2,
                vocab_size=98,
                num_kv_heads=2,
                new_decoder_architecture=True,
                ffn_hidden_size=48,
            ),
            48,
            2,
        ),
    ],
)
def test_other_families_have_other_names(tmp_path: Path, config: PretrainedConfig, inner: int, kv_heads: int) -> None:
    config.save_pretrained(tmp_path)
    shape = shape_of(str(tmp_path))
    assert (shape.inner, shape.kv_heads) == (inner, kv_heads)
    made = AutoModelForCausalLM.from_config(config)
    assert shape.weights == pytest.approx(sum(one.numel() for one in made.parameters()), abs=shape.layers)


def test_layers_of_different_sizes_are_planned_as_the_largest() -> None:
    config = SimpleNamespace(ffn_dim=None, intermediate_size=[64, 96, 64])  # as Gemma 3n has it
    assert _first(config, "ffn_dim", "intermediate_size") == 96


def test_what_sees_pictures_is_not_counted(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    text = Gemma3TextConfig(**sizes, num_key_value_heads=2, head_dim=8, vocab_size=98)
    Gemma3Config(text_config=text, vision_config={**sizes, "image_size": 28, "patch_size": 14}).save_pretrained(
        tmp_path
    )
    alone = AutoModelForCausalLM.from_config(text)
    expected = sum(one.numel() for one in alone.parameters())
    assert shape_of(str(tmp_path)).weights == pytest.approx(expected, abs=2)


def test_a_model_without_attention_is_refused(tmp_path: Path) -> None:
    MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=98).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"no heads of attention, and only such are planned.*Give a folder"):
        shape_of(str(tmp_path))


def test_the_cache_is_the_keys_and_values_of_each_layer(session: Session, tiny_model_dir: Path) -> None:
    """Of three rows of five tokens, and with columns to spare."""
    lm = session.lm
    model = lm.merged("q")
    cache: Any = lm.new_cache(model)
    ids = torch.zeros(3, 5, dtype=torch.long)
    with torch.no_grad():
        lm.decode_step(model, ids, torch.ones_like(ids), torch.arange(5).expand(3, -1), cache)
    kept = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert kept % (3 * shape_of(str(tiny_model_dir)).cached) == 0
    assert kept >= 15 * shape_of(str(tiny_model_dir)).cached


def test_a_forward_pass_takes_two_operations_a_weight() -> None:
    """And 4 x context x width for attention in each layer."""
    cost = CostModel(TOY, FLAT, rank=3).score(tokens=10, context=7, passes=1, answer_rows=0)
    assert cost.seconds == pytest.approx(10 * (2 * N + 2 * 4 * 7 * 8) / 1e6)
    assert cost.binds == "arithmetic"


def test_an_update_takes_four_and_six_of_an_adapter() -> None:
    costs = CostModel(TOY, FLAT, rank=3)
    attention = 3 * 2 * 4 * 7 * 8
    expected = 10 * (4 * N + 6 * TOY.lora_weights(3) + attention) / 1e6
    assert costs.update(10, 7, 1, 0).seconds == pytest.approx(expected)
    again = replace(costs, checkpointing=True).update(10, 7, 1, 0).seconds
    assert again - expected == pytest.approx(10 * 2 * N / 1e6)


def test_decoding_a_row_reads_all_weights_and_its_cache() -> None:
    cost = CostModel(TOY, FLAT, rank=3).rollout(prompts=0, prompt=4, rows=1, steps=10)
    context = 4 + 10 / 2
    assert cost.seconds == pytest.approx(10 * 2 * (N + context * TOY.cached) / 1e3)
    assert cost.binds == "bandwidth"


def test_decoding_many_rows_is_bound_by_arithmetic() -> None:
    costs = CostModel(TOY, replace(FLAT, read=1e9), rank=3)
    few, many = (costs.rollout(0, 4, rows, 10) for rows in (100, 200))
    assert many.binds == "arithmetic"
    assert many.seconds == pytest.approx(2 * few.seconds)


def test_small_operations_are_those_of_each_pass_and_layer() -> None:
    slow = replace(FLAT, score=Pass(0.5, 0.0))
    costs = [CostModel(TOY, device, 3).score(10, 7, 4, 0) for device in (FLAT, slow)]
    assert costs[1].seconds - costs[0].seconds == pytest.approx(4 * 2 * 0.5)


def test_shards_divide_what_is_held_and_gather_it_in_each_pass() -> None:
    whole = CostModel(TOY, replace(FLAT, link=1.0), 3)
    part = replace(whole, shards=4)
    tables = TOY.weights - TOY.linear
    assert part.held(2, 2)["base weights"] == FLAT.number * (TOY.linear / 4 + tables)
    assert part.held(2, 2)["merged copies"] == part.merge().seconds == 0
    assert part.held(2, 2)["adapters"] == whole.held(2, 2)["adapters"]
    assert whole.score(10, 7, 5, 0).link == 0
    assert part.score(10, 7, 5, 0).seconds == pytest.approx(5 * 2 * N * 3 / 4)
    assert part.update(10, 7, 5, 0).link == 2 * part.score(10, 7, 5, 0).link, "forward and backward"


def test_a_process_holds_as_much_as_was_measured() -> None:
    """docs/performance.md: 81.4 million weights at rest in each of two processes."""
    held = CostModel(SHAPES["smollm2-135m"], GPUS["h100"], 16, shards=2).held(2, 2)["base weights"]
    assert held / GPUS["h100"].number == pytest.approx(81.4e6, rel=0.01)


def test_checkpointing_keeps_little() -> None:
    costs = CostModel(SHAPES["7b"], GPUS["h100"], 16)
    assert replace(costs, checkpointing=True).activations(1000, 50) < 0.1 * costs.activations(1000, 50)


def test_a_batch_is_begun_for_what_is_left() -> None:
    assert [batches(n, 10) for n in (0, 10, 11)] == [1, 1, 2]


def test_costs_add_up() -> None:
    cost = (Cost(1, arithmetic=1) + Cost(2, bandwidth=2)) * 3
    assert cost == Cost(9, arithmetic=3, bandwidth=6)
    assert cost.binds == "bandwidth"


def test_chains_that_wait_take_places_of_those_that_end() -> None:
    """20 chains of 10 tokens, 5 at once: 4 x 10 steps, all rows busy."""
    texts = Texts(prompt=4, chain=10, longest=10, answer=2, states=1, distinct=1.0)
    costs = CostModel(TOY, FLAT, 3)
    assert rounds.sample(costs, texts, 20, 1, 5) == costs.rollout(20, 4, rows=5, steps=40)
    assert rounds.sample(costs, texts, 20, 1, 20) == costs.rollout(20, 4, rows=20, steps=10)


def test_a_reward_has_a_node_for_each_token_of_y_but_the_last() -> None:
    texts = Texts(prompt=4, chain=10, longest=10, answer=3, states=2, distinct=0.5)
    costs = CostModel(TOY, FLAT, 3)
    tokens = 2 * (4 + 8 * 0.5 * 10) + 2 * 8 * 0.5 * 2 * 2
    assert rounds.reward(costs, texts, 2, 8, 10**6) == costs.score(tokens, 9, 1, 2 * 8 * 0.5 * 2 * 3)


def test_a_round_is_linear_in_its_steps() -> None:
    config = load_config()
    texts = Texts(16, 24, 40, 8, 2, 1.0)
    costs = CostModel(SHAPES["smollm2-135m"], GPUS["h100"], 16)
    once = rounds.plan(config, texts, costs, 1, 4)
    twice = rounds.plan(
        replace(config, m_step=replace(config.m_step, steps=2 * config.m_step.steps)), texts, costs, 1, 4
    )
    assert twice.later["M-step"].seconds == pytest.approx(2 * once.later["M-step"].seconds)
    assert {k: v for k, v in twice.later.items() if k != "M-step"} == {
        k: v for k, v in once.later.items() if k != "M-step"
    }
    assert math.isclose(twice.peak, once.peak)


def test_a_question_is_never_divided() -> None:
    """However few tokens a pass may have, an update of q has one question's tree, and one of p a whole text."""
    costs, texts = CostModel(SHAPES["7b"], GPUS["h100"], 16), Texts(60, 1000, 1000, 8, 2, 1.0)
    config = load_config()
    tree, text = costs.activations(60 + 8 * 1000, 60 + 1000), 60 + 1000 + 8 - 1
    for limit in (3072, 1536):
        working = rounds.plan(replace(config, max_batch_tokens=limit), texts, costs, 1, 4).working
        assert working["E-step: activations"] == tree
    assert rounds.m_step_memory(costs, texts, 8, 500)["M-step: activations"] == costs.activations(text, text)


def test_tests_are_planned_as_they_sample() -> None:
    costs, texts = CostModel(SHAPES["7b"], GPUS["h100"], 16), Texts(16, 24, 40, 8, 2, 1.0)
    config = load_config()

    def of(**changes: Any) -> rounds.Round:
        return rounds.plan(replace(config, evaluation=replace(config.evaluation, **changes)), texts, costs, 1, splits=4)

    assert of(samples=10).later["evaluation"] == of(votes=10, temperature=0.5).later["evaluation"]
    assert of(samples=10).later["evaluation"].seconds > of().later["evaluation"].seconds
    part = "rollout: keys and values"
    assert of(max_tokens=4000).working[part] > of(max_tokens=400).working[part] > of(max_tokens=40).working[part]


@pytest.mark.parametrize(("q_sees", "more"), [("question", (1, 2)), ("question-and-answer", (0, 0))])
def test_a_later_round_may_compare_p_with_q_besides(q_sees: Any, more: tuple[int, int]) -> None:
    """By so many rollouts and passes."""
    costs, texts = CostModel(SHAPES["7b"], GPUS["h100"], 16), Texts(16, 24, 40, 8, 2, 1.0)
    one, two = (
        rounds.plan(replace(load_config(), rounds=n, q_sees=q_sees), texts, costs, 1, 4).later["checks"] for n in (1, 2)
    )
    n, config = DIAGNOSTIC_SAMPLES, load_config()
    checked = config.evaluation.diagnostics
    drawn = rounds.sample(costs, texts, checked, n, config.rollout.batch_size)
    scored = rounds.reward(costs, texts, checked, n, config.max_batch_tokens)
    assert two.seconds == pytest.approx((one + drawn * more[0] + scored * more[1]).seconds)
    units = batches(checked * n, config.rollout.batch_size)
    checks = drawn * 3 + scored * 7 + costs.merge() * (2 * units)
    assert one.seconds == pytest.approx(checks.seconds)


@pytest.mark.parametrize(
    ("changes", "times"),
    [({}, 2), ({"q_sees": "question"}, 1), ({"p_init": "base"}, 1), ({"p_init": "base", "rounds": 0}, 0)],
)
def test_a_q_that_sees_the_answer_learns_to_read_it_first(changes: dict[str, Any], times: int) -> None:
    costs, texts = CostModel(SHAPES["7b"], GPUS["h100"], 16), Texts(16, 24, 40, 8, 2, 1.0)
    config = load_config()
    p_only = rounds.plan(replace(config, q_sees="question"), texts, costs, 1, 4).initial["fine-tuning"]
    found = rounds.plan(replace(config, **changes), texts, costs, 1, 4).initial["fine-tuning"]
    assert p_only.seconds > 0 and found == p_only * times


def test_some_objectives_ask_for_y_once_a_chain() -> None:
    assert {name for name, one in OBJECTIVES.items() if one.complete_only} == set(COMPLETE_ONLY)
    costs, texts = CostModel(SHAPES["7b"], GPUS["h100"], 16), Texts(16, 24, 40, 8, 15, 1.0)
    config = load_config()
    seconds = {
        (name, states): rounds.plan(
            replace(config, e_step=replace(config.e_step, objective=name)), replace(texts, states=states), costs, 1, 4
        )
        .later["E-step: reward"]
        .seconds
        for name in ("pooled-subtb", "vargrad")
        for states in (1, 15)
    }
    assert seconds["vargrad", 15] == seconds["vargrad", 1] == seconds["pooled-subtb", 1]
    assert seconds["pooled-subtb", 15] > seconds["pooled-subtb", 1]


@pytest.mark.parametrize("method", ["em", "forward-kl"])
def test_what_is_learned_again_is_a_chain_of_twice_as_many_questions(method: str) -> None:
    config, texts = load_config(method=method), Texts(16, 24, 40, 8, 2, 0.5)
    costs = CostModel(SHAPES["smollm2-135m"], GPUS["h100"], 16)
    once, thrice = (
        rounds.plan(replace(config, e_step=replace(config.e_step, updates=n)), texts, costs, 1, 4) for n in (1, 3)
    )
    batch = once.later["E-step: update"]
    tokens = 2 * config.e_step.questions * (16 + 24)
    again = costs.update(tokens, texts.context, batches(tokens, config.max_batch_tokens // 3), 0)
    sampled = rounds.tree_tokens(texts, config.e_step.questions, config.e_step.samples)
    weighed = costs.score(sampled, texts.context, batches(sampled, config.max_batch_tokens), 0)
    more = (weighed + again * 2) * config.e_step.steps
    assert thrice.later["E-step: update"].seconds == pytest.approx((batch + more).seconds)


def test_a_later_round_begins_with_what_was_drawn() -> None:
    """A pass under p and one under q over a chain of each question; not in the only round, nor for tempered chains."""
    config, texts = load_config(method="em"), Texts(16, 24, 40, 8, 2, 0.5)
    costs = CostModel(SHAPES["smollm2-135m"], GPUS["h100"], 16)

    def draw(rounds_: int, temperature: float) -> float:
        m_step = replace(config.m_step, temperature=temperature)
        return rounds.plan(replace(config, rounds=rounds_, m_step=m_step), texts, costs, 1, 4).later["draw"].seconds

    questions = config.data.demonstrations + config.data.unlabelled
    tokens = questions * (16 + 24)
    under_q = costs.score(tokens, texts.context, batches(tokens, config.max_batch_tokens), 0).seconds
    more = draw(2, 1.0) - draw(1, 1.0)
    assert 2 * under_q < more < 3 * under_q, "p reads Y as well"
    assert draw(2, 0.5) == draw(1, 0.5) == draw(1, 1.0)
