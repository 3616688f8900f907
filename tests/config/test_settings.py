"""Configurations: layers and their order, strictness, ranges, the presets."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from latent_cot import tasks
from latent_cot.config.schema import RunConfig
from latent_cot.config.settings import (
    check,
    differences,
    flag,
    from_dict,
    load_config,
    parse_yaml,
    presets,
    refuse_code,
    task_preset,
    to_dict,
    to_yaml,
)
from latent_cot.model.weights import DEFAULT_MODEL
from latent_cot.types import UsageError

TEXT = st.text(st.characters(codec="utf-8"), max_size=8)


def _configs() -> st.SearchStrategy[RunConfig]:
    """Configurations with any values of the right types."""

    @st.composite
    def config(draw: st.DrawFn) -> RunConfig:
        def vary(section: Any) -> Any:
            values: dict[str, Any] = {}
            for item in fields(section):
                value = getattr(section, item.name)
                if is_dataclass(value):
                    values[item.name] = vary(value)
                elif item.name in ("huber_delta", "reward_floor"):
                    values[item.name] = draw(st.none() | st.floats(allow_nan=False))
                elif isinstance(value, bool):
                    values[item.name] = draw(st.booleans())
                elif isinstance(value, int):
                    values[item.name] = draw(st.integers(-(2**60), 2**60))
                elif isinstance(value, float):
                    values[item.name] = draw(st.floats(allow_nan=False))
                elif isinstance(value, dict):
                    values[item.name] = draw(st.dictionaries(TEXT, TEXT, max_size=2))
                elif item.name == "samples":
                    values[item.name] = draw(st.none() | st.integers(0, 2**60))
                elif item.name in ("splits", "tools"):
                    values[item.name] = draw(st.none() | st.lists(TEXT, max_size=2).map(tuple))
                elif value is None or item.name in ("model", "task"):
                    values[item.name] = draw(TEXT)
            return replace(section, **values)

        varied = vary(RunConfig())
        assert isinstance(varied, RunConfig)
        return varied

    return config()


@settings(max_examples=25)
@given(_configs())
@example(replace(RunConfig(), output_dir="a\x85b \u2028ü 🎉", seed=2**70))
def test_a_configuration_survives_yaml(config: RunConfig) -> None:
    assert from_dict(to_dict(config), "x") == config
    assert from_dict(parse_yaml(to_yaml(config), "x"), "x") == config


def test_the_layers_override_in_order(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("rounds: 7\ne_step: {steps: 11}\n")
    config = load_config("paper", file)
    assert config.rounds == 7  # the file, over the preset's 1
    assert config.e_step.steps == 11
    assert config.e_step.questions == 32  # the preset, over the default
    assert config.m_step.max_grad_norm == RunConfig().m_step.max_grad_norm  # the default


def test_a_partial_section_keeps_what_it_does_not_name() -> None:
    config = from_dict({"init_step": {"steps": 5}}, "x")
    assert config.init_step == replace(RunConfig().init_step, steps=5)
    assert config.init_step.batch_size != config.m_step.batch_size


def test_an_empty_file_and_an_empty_section_change_nothing(tmp_path: Path) -> None:
    file = tmp_path / "empty.yaml"
    file.write_text("# nothing\ne_step:\n  # steps: 3\n")
    assert load_config(file=file) == load_config()
    file.write_text("")
    assert load_config(file=file) == load_config()


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "0.0001"])
def test_numbers_are_read_as_people_write_them(text: str) -> None:
    config = from_dict(parse_yaml(f"e_step: {{learning_rate: {text}}}", "x"), "x")
    assert config.e_step.learning_rate == 1e-4


def test_an_integer_is_a_number_and_options_are_text() -> None:
    config = from_dict(parse_yaml("{e_step: {huber_delta: 2}, data: {options: {digits: 1}}}", "x"), "x")
    assert type(config.e_step.huber_delta) is float
    assert config.data.options == {"digits": "1"}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("e_step: {learning_rat: 1}", ["unknown setting 'e_step.learning_rat'", "'e_step.learning_rate'"]),
        ("roundz: 1", ["unknown setting 'roundz'", "'rounds'"]),
        ("1: 2", ["unknown setting '1'"]),
        ("rounds: true", ["rounds is True", "an integer"]),
        ("rounds: 2.0", ["rounds is 2.0", "an integer"]),
        ("rounds: '2'", ["rounds is '2'", "an integer"]),
        ("rounds: null", ["rounds is None", "an integer"]),
        ("e_step: {seed_buffer: 1}", ["e_step.seed_buffer is 1", "true or false"]),
        ("condition: xy", ["condition is called q_sees", "earlier version"]),
        ("e_step: {clip: 1.0}", ["e_step.clip is called e_step.max_grad_norm now"]),
        ("e_step: {huber_delta: lots}", ["e_step.huber_delta is 'lots'", "a number"]),
        ("e_step: {decay: cosin}", ["e_step.decay is 'cosin'", "cosine, constant", "Did you mean 'cosine'"]),
        ("e_step: {decay: 1}", ["e_step.decay is 1", "cosine, constant"]),
        ("e_step: 3", ["e_step must be a mapping"]),
        ("model: 3", ["model is 3", "text"]),
        ("evaluation: {splits: 3-operands}", ["evaluation.splits is '3-operands'", "a list"]),
        ("evaluation: {splits: [3]}", ["evaluation.splits is [3]", "a list"]),
        ("data: {options: [a]}", ["data.options is ['a']", "a mapping"]),
        ("data: {options: {digits: [1]}}", ["data.options.digits is [1]", "text"]),
        ("- 1", ["the file must be a mapping"]),
        ("rounds: 1\nrounds: 2", [":2: ", "'rounds' is there twice"]),
        ("a: [", [":1: ", "not valid YAML"]),
        ("a: !!python/object/apply:os.system [ls]", ["not valid YAML"]),
        ("[" * 5000, ["not valid YAML"]),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path: Path, text: str, named: list[str]) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(UsageError) as raised:
        load_config(file=file)
    for part in [str(file), *named]:
        assert part in str(raised.value)


@pytest.mark.parametrize(
    ("content", "named"),
    [(None, "no such file"), (b"\xff\xfe\x00", "not UTF-8"), (b"#" * (2**20 + 1), "larger than 1 MiB")],
)
def test_unreadable_files(tmp_path: Path, content: bytes | None, named: str) -> None:
    file = tmp_path / "x.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError, match=named):
        load_config(file=file)
    with pytest.raises(UsageError, match="cannot be read"):
        load_config(file=tmp_path)


def test_an_unknown_preset() -> None:
    with pytest.raises(UsageError, match=r"--preset papr.*Did you mean 'paper'"):
        load_config("papr")


@pytest.mark.parametrize("name", presets())
def test_each_preset_is_valid(name: str) -> None:
    check(load_config(name))


@pytest.mark.parametrize("task", tasks.names())
@pytest.mark.parametrize("name", presets())
def test_each_presets_model_can_be_fetched(name: str, task: str) -> None:
    """A hub name has an owner, whatever transformers' own examples call it."""
    model = load_config(name, task=task).model
    assert model == DEFAULT_MODEL or "/" in model


def test_a_tasks_own_preset_is_over_the_general_one(tmp_path: Path) -> None:
    general = ("cpu", "paper", "smoke")
    assert set(presets()) == set(general)
    for task in tasks.names():
        for name in general:
            config = load_config(name, task=task)
            check(config)
            assert config.task == task
    assert load_config("paper", task="arithmetic").rollout.min_tokens == 5
    assert load_config("paper", task="arithmetic").lora.rank == 64
    file = tmp_path / "mine.yaml"
    file.write_text("task: arithmetic\nrollout: {min_tokens: 3}\n")
    assert load_config("paper", file).rollout.min_tokens == 3
    file.write_text("task: someones.py\n")
    other = load_config("paper", file)
    assert (other.task, other.rollout.min_tokens, other.lora.rank) == ("someones.py", 0, 64)
    with pytest.raises(UsageError, match=r"--task arithmetic: the settings in .* are those of someones\.py"):
        load_config("paper", file, task="arithmetic")
    assert task_preset("no_such_task", "paper") == task_preset("../arithmetic", "paper") == {}


def test_the_default_preset_is_the_defaults_but_for_what_the_task_changes() -> None:
    assert "cpu" in presets()
    assert load_config() == load_config("cpu")
    changed = {path for path, _, _ in differences(RunConfig(), load_config())}
    assert changed == {
        "rounds",
        "init_step.steps",
        "init_step.max_batch_tokens",
        "e_step.reward_floor",
        "sft.learning_rate",
        "sft.questions",
        "ppo.learning_rate",
        "grpo.learning_rate",
        "rejection.rounds",
        "forward_kl.rounds",
        "m_step.steps",
        "m_step.max_batch_tokens",
        "m_step.learning_rate",
        "m_step.temperature",
        "m_step.interpolation",
        "augmentation.history_dropout",
        "augmentation.distractor_steps",
        "augmentation.kept_steps",
        "augmentation.concat_questions",
        "augmentation.gap_share",
        "augmentation.largest_gap",
    }


@pytest.mark.parametrize("section", ["init_step", "m_step", "sft"])
def test_a_model_is_interpolated_not_extrapolated(section: str) -> None:
    config = RunConfig()
    config = replace(config, **{section: replace(getattr(config, section), interpolation=1.2)})
    with pytest.raises(UsageError, match=f"--{section.replace('_', '-')}.interpolation is 1.2"):
        check(config)


def test_lessons_have_shares_and_drop_steps_only_where_there_are_steps() -> None:
    for flags in (
        {"history_dropout": 1.5},
        {"gap_share": 1.5},
        {"words_with_gaps": 2.0},
        {"largest_gap": 0},
        {"kept_steps": 0},
    ):
        lessons = replace(RunConfig().augmentation, **flags)
        with pytest.raises(UsageError, match="--augmentation"):
            check(replace(RunConfig(), augmentation=lessons))
    by_token = replace(load_config(), rollout=replace(RunConfig().rollout, granularity="token"))
    with pytest.raises(UsageError, match="granularity"):
        check(by_token)
    answers_only = replace(load_config(), m_step=replace(RunConfig().m_step, target="candidates"))
    with pytest.raises(UsageError, match=r"concat-questions.*m-step\.target candidates"):
        check(answers_only)


def test_the_papers_share_of_demonstrations() -> None:
    """50 of weight 1 and 1,000 of weight 0.2: a fifth of the draws."""
    c = load_config("paper")
    weight = c.data.demonstrations * c.e_step.demonstration_weight
    assert weight / (weight + c.data.unlabelled * c.e_step.pair_weight) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rounds": -1}, "--rounds is -1"),
        ({"seed": -1}, "--seed is -1"),
        ({"seed": 2**32}, "--seed is 4294967296; it must be below"),
        ({"e_step": {"questions": 0}}, "--e-step.questions is 0; it must be above 0"),
        ({"e_step": {"learning_rate": float("nan")}}, "--e-step.learning-rate is nan"),
        ({"e_step": {"learning_rate": float("inf")}}, "--e-step.learning-rate is inf"),
        ({"e_step": {"reward_temperature": 0.0}}, "--e-step.reward-temperature is 0.0"),
        ({"e_step": {"huber_delta": 0.0}}, "--e-step.huber-delta is 0.0"),
        ({"e_step": {"on_policy": -0.5}}, "--e-step.on-policy is -0.5"),
        ({"e_step": {"on_policy": 0.0, "tempered": 0.0, "replay": 0.0}}, "--e-step.replay are all 0"),
        ({"e_step": {"pair_weight": 0.0, "demonstration_weight": 0.0}}, "--e-step.pair-weight leave"),
        ({"e_step": {"temperature_low": 2.0}}, "--e-step.temperature-low is 2.0, above"),
        ({"data": {"demonstrations": 0, "unlabelled": 0}}, "--data.demonstrations and --data.unlabelled"),
        ({"data": {"demonstrations": 0}, "e_step": {"pair_weight": 0.0}}, "leave no question"),
        ({"p_init": "prompt", "shots": 51}, "--shots is 51"),
        ({"lora": {"dropout": 1.0}}, "--lora.dropout is 1.0"),
        ({"rollout": {"min_tokens": 41}}, "--rollout.min-tokens is 41"),
        ({"m_step": {"batch_size": 0}}, "--m-step.batch-size is 0"),
        ({"evaluation": {"votes": 3}}, "--evaluation.votes is 3"),
        ({"evaluation": {"temperature": 1e39}}, "--evaluation.temperature is 1e+39; it must be 0, which is greedy"),
        ({"e_step": {"temperature_high": 1e4}}, "--e-step.temperature-high is 10000"),
        ({"evaluation": {"size": 0}}, "--evaluation.size is 0"),
        ({"evaluation": {"splits": ["[a,b]"]}}, "--evaluation.splits [a,b]: a flag has no brackets"),
    ],
)
def test_a_value_out_of_range_names_its_flag(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError) as raised:
        check(from_dict(changes, "x"))
    assert named in str(raised.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"rounds": 0},
        {"m_step": {"steps": 0, "warmup": 0}},
        {"e_step": {"huber_delta": None, "reward_floor": None, "reward_temperature_steps": 0}},
        {"evaluation": {"votes": 3, "temperature": 0.5}},
        {"evaluation": {"diagnostics": 0}},
    ],
)
def test_what_is_allowed(changes: dict[str, Any]) -> None:
    check(from_dict(changes, "x"))


def test_a_flag_is_spelt_with_dashes() -> None:
    assert flag("e_step.learning_rate") == "--e-step.learning-rate"


def test_the_printed_form_is_plain_yaml() -> None:
    assert yaml.safe_load(to_yaml(RunConfig())) == to_dict(RunConfig())


@pytest.mark.parametrize(
    "overrides",
    [
        {"task": "their.py"},
        {"task": "folder/task.so"},
        {"rollout": {"tools": ["calculator", "their.py:Tool"]}},
        {"rollout": {"tools": ["their.so"]}},
        {"trust_remote_code": True},
    ],
)
def test_code_that_a_run_names_is_not_run_unasked(overrides: dict[str, Any]) -> None:
    config = from_dict(overrides, "config.yaml")
    with pytest.raises(UsageError, match="--trust-code"):
        refuse_code(config, "run/config.yaml", trusted=False)
    refuse_code(config, "run/config.yaml", trusted=True)
    refuse_code(from_dict({}, "config.yaml"), "run/config.yaml", trusted=False)


def test_aliases_of_aliases_are_not_written_out() -> None:
    """300 bytes that stand for 10^9 entries."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]" for k in range(1, 9)]
    bomb = parse_yaml("\n".join(lines), "x")["a8"]
    for record in ({"seed": bomb}, {"data": {"options": {"operands": bomb}}}, {"e_step": bomb}):
        with pytest.raises(UsageError, match="x: ") as raised:
            from_dict(record, "x")
        assert len(str(raised.value)) < 1000
