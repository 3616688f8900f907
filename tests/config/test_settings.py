"""Configurations: layers and their order, strictness, ranges, the presets."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic.fields import FieldInfo

import latent_cot
from latent_cot import tasks
from latent_cot.config.schema import SECTIONS, EngineName, RunConfig, SamplingTemperature
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
    write_yaml,
)
from latent_cot.methods.augmentation import vary
from latent_cot.model.weights import DEFAULT_MODEL
from latent_cot.types import UsageError

TEXT = st.text(st.characters(codec="utf-8"), max_size=8)


def _values(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type, within its range."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind == EngineName:
        return st.sampled_from(["transformers", "vllm", "http://localhost:8000,https://10.0.0.1:1"])
    if origin is Annotated:
        (bounds,) = [one for one in arguments[1:] if isinstance(one, FieldInfo)]
        limits = {type(one).__name__: getattr(one, type(one).__name__.lower(), None) for one in bounds.metadata}
        low, high = limits.get("Ge", limits.get("Gt")), limits.get("Le", limits.get("Lt"))
        if arguments[0] is int:
            return st.integers((low or 0) + ("Gt" in limits), 2**60 if high is None else high - ("Lt" in limits))
        if arguments[0] is float:
            return st.floats(
                *(0.5, 2.0) if kind == SamplingTemperature else (low, high),
                exclude_min="Gt" in limits,
                exclude_max="Lt" in limits,
                allow_nan=False,
                allow_infinity=False,
            )
        return _values(arguments[0])
    if origin in (Union, UnionType):
        return st.one_of(*(st.none() if one is type(None) else _values(one) for one in arguments))
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is tuple:
        return st.lists(TEXT, max_size=2).map(tuple) if ... in arguments else st.tuples(*map(_values, arguments))
    if origin is dict:
        return st.dictionaries(TEXT, TEXT, max_size=2)
    if is_dataclass(kind):
        return _sections(kind)
    return st.booleans() if kind is bool else TEXT


def _sections(kind: Any) -> st.SearchStrategy[Any]:
    hints = get_type_hints(kind, include_extras=True)
    return st.builds(kind, **{item.name: _values(hints[item.name]) for item in fields(kind)})


@settings(max_examples=25)
@given(_sections(RunConfig))
@example(replace(RunConfig(), output_dir="a\x85b \u2028ü 🎉", model="1e5", seed=2**32 - 1))
def test_a_configuration_survives_yaml(config: RunConfig) -> None:
    assert from_dict(to_dict(config), "x") == config
    others = {name: getattr(config, name) for name in set(SECTIONS.values()) - {SECTIONS.get(config.method)}}
    assert replace(from_dict(parse_yaml(to_yaml(config), "x"), "x"), **others) == config


def _leaves(section: Any, path: str = "") -> Iterator[str]:
    for item in fields(section):
        value = getattr(section, item.name)
        yield from _leaves(value, f"{path}{item.name}.") if is_dataclass(value) else [path + item.name]


def test_there_are_few_settings() -> None:
    assert len(list(_leaves(RunConfig()))) <= 85


def test_every_setting_is_read() -> None:
    """As an attribute, in a file that knows its section; variations of rationales are arguments of `vary`."""
    root = Path(latent_cot.__file__).parent
    checks = root / "config" / "settings.py"
    read = [
        {node.attr for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Attribute)}
        for file in root.rglob("*.py")
        if file != checks
    ]
    read.append({"augmentation", *inspect.signature(vary).parameters})
    unread = [path for path in _leaves(RunConfig()) if not any(names.issuperset(path.split(".")) for names in read)]
    assert unread == []


def test_numbers_are_decimal() -> None:
    found = parse_yaml("{a: 10, b: -3, c: 010, d: 1:30, e: 1e-4, f: 0.5, g: 0}", "x")
    assert found == {"a": 10, "b": -3, "c": "010", "d": "1:30", "e": 1e-4, "f": 0.5, "g": 0}
    with pytest.raises(UsageError, match="seed is '1:30'; it should be a valid integer"):
        from_dict(parse_yaml("seed: 1:30", "x"), "x")


def test_options_are_put_on_top_of_each_other() -> None:
    base = from_dict({"data": {"options": {"digits": "1", "operands": "3"}}}, "x")
    assert from_dict({"data": {"options": {"digits": "2"}}}, "x", base).data.options == {"digits": "2", "operands": "3"}


def test_the_layers_override_in_order(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("rounds: 7\ne_step: {steps: 11}\n")
    config = load_config("paper", file)
    assert config.rounds == 7  # the file, over the preset's 1
    assert config.e_step.steps == 11
    assert config.e_step.questions == 32  # the preset, over the default
    assert config.e_step.answer_weight == RunConfig().e_step.answer_weight  # the default


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
        ("rounds: true", ["rounds is True", "a valid integer"]),
        ("rounds: 2.0", ["rounds is 2.0", "a valid integer"]),
        ("rounds: '2'", ["rounds is '2'", "a valid integer"]),
        ("rounds: null", ["rounds is None", "a valid integer"]),
        ("rounds: -1", ["rounds is -1", "greater than or equal to 0"]),
        ("e_step: {mix_replay: 1}", ["e_step.mix_replay is 1", "a valid boolean"]),
        ("e_step: {temperatures: [1.0]}", ["e_step.temperatures"]),
        ("e_step: {replay: 0.5}", ["unknown setting 'e_step.replay'", "'e_step.mix_replay'"]),
        ("e_step: {huber_delta: lots}", ["e_step.huber_delta is 'lots'", "a valid number"]),
        ("e_step: {decay: cosin}", ["e_step.decay is 'cosin'", "'cosine' or 'constant'", "Did you mean 'cosine'"]),
        ("e_step: {decay: 1}", ["e_step.decay is 1", "'cosine' or 'constant'"]),
        ("e_step: 3", ["e_step must be a mapping"]),
        ("model: 3", ["model is 3", "a valid string"]),
        ("evaluation: {splits: 3-operands}", ["evaluation.splits is '3-operands'", "a valid tuple"]),
        ("evaluation: {splits: [3]}", ["evaluation.splits is 3", "a valid string"]),
        ("data: {options: [a]}", ["data.options is ['a']", "a valid dictionary"]),
        ("data: {options: {digits: [1]}}", ["data.options.digits is [1]", "a valid string"]),
        ("{data: a.csv, question: q, tools: calculator}", ["unknown setting 'question'. It is a task's", "by --task"]),
        ("{question: q, choices: c}", ["unknown setting 'question'. It is a task's", "by --task"]),
        ("data: [a.csv]", ["data must be a mapping", "given by --task"]),
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
    [(None, "No such file"), (b"\xff\xfe\x00", "not UTF-8"), (b"#" * (2**20 + 1), "larger than 1 MiB")],
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
        "m_step.steps",
        "m_step.learning_rate",
        "m_step.temperature",
        "m_step.interpolation",
        "augmentation.history_dropout",
        "augmentation.distractor_steps",
        "augmentation.concat_questions",
        "augmentation.gap_share",
    }


def test_a_model_is_interpolated_not_extrapolated() -> None:
    config = RunConfig()
    with pytest.raises(UsageError, match=r"--m-step\.interpolation is 1\.2; it should be less than or equal to 1"):
        check(replace(config, m_step=replace(config.m_step, interpolation=1.2)))


def test_a_preset_has_values_for_a_method() -> None:
    """Over those of the registry, which are over the preset's for all methods."""
    sft = load_config(method="sft")
    assert (sft.m_step.steps, sft.m_step.learning_rate, sft.sft.check_every) == (260, 1e-4, 0)
    assert load_config(method="ppo").e_step.learning_rate == 3e-5
    assert load_config("smoke", method="ppo").e_step.steps == 2
    assert load_config("smoke", method="forward-kl", task="random_numbers").e_step.questions == 1


def test_lessons_have_shares_and_drop_steps_only_where_there_are_steps() -> None:
    for flags in (
        {"history_dropout": 1.5},
        {"gap_share": 1.5},
        {"distractor_steps": -1},
    ):
        lessons = replace(RunConfig().augmentation, **flags)
        with pytest.raises(UsageError, match="--augmentation"):
            check(replace(RunConfig(), augmentation=lessons))
    by_token = replace(RunConfig(), rollout=replace(RunConfig().rollout, granularity="token"))
    for name in ("history_dropout", "gap_share"):
        own: dict[str, Any] = {name: 0.5}
        varied = replace(by_token, augmentation=replace(RunConfig().augmentation, **own))
        with pytest.raises(UsageError, match=rf"--augmentation\.{name.replace('_', '-')}.*granularity token"):
            check(varied)
    answers_only = replace(load_config(), m_step=replace(RunConfig().m_step, target="candidates"))
    with pytest.raises(UsageError, match=r"concat-questions.*m-step\.target candidates"):
        check(answers_only)


def test_the_papers_share_of_demonstrations() -> None:
    """50 of weight 1 and 1,000 of weight 0.2: a fifth of the draws."""
    c = load_config("paper")
    weight = c.data.demonstrations * c.e_step.demonstration_weight
    assert weight / (weight + c.data.unlabelled) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rounds": -1}, "--rounds is -1"),
        ({"seed": -1}, "--seed is -1"),
        ({"seed": 2**32}, "--seed is 4294967296; it should be less than"),
        ({"e_step": {"questions": 0}}, "--e-step.questions is 0; it should be greater than 0"),
        ({"e_step": {"learning_rate": float("nan")}}, "--e-step.learning-rate is nan"),
        ({"e_step": {"learning_rate": float("inf")}}, "--e-step.learning-rate is inf"),
        ({"e_step": {"reward_temperatures": [0.0, 1.0]}}, "--e-step.reward-temperatures"),
        ({"e_step": {"huber_delta": 0.0}}, "--e-step.huber-delta is 0.0"),
        ({"e_step": {"replay_share": -0.5}}, "--e-step.replay-share is -0.5"),
        ({"e_step": {"temperatures": (2.0, 1.5)}}, "--e-step.temperatures 2.0 1.5: the first is above"),
        ({"data": {"demonstrations": 0, "unlabelled": 0}}, "--data.demonstrations and --data.unlabelled"),
        ({"data": {"unlabelled": 0}, "e_step": {"demonstration_weight": 0.0}}, "no question is left"),
        ({"p_init": "prompt", "shots": 51}, "--shots is 51"),
        ({"lora": {"dropout": 1.0}}, "--lora.dropout is 1.0"),
        ({"rollout": {"min_tokens": 41}}, "--rollout.min-tokens is 41"),
        (
            {"rollout": {"min_tokens": 1}, "e_step": {"objective": "subtb"}},
            "--e-step.objective subtb ties the states of a chain to each other only",
        ),
        ({"m_step": {"batch_size": 0}}, "--m-step.batch-size is 0"),
        ({"evaluation": {"votes": 3}}, "--evaluation.votes is 3"),
        (
            {"m_step": {"samples": 3, "temperature": 0.0}},
            "--m-step.samples is 3: --m-step.temperature 0 draws the same",
        ),
        ({"e_step": {"tempered_share": 0.05}}, "--e-step.tempered-share is 0.05: that is no whole one of"),
        ({"e_step": {"replay_share": 0.05, "mix_replay": True}}, "--e-step.replay-share is 0.05: that is no whole"),
        (
            {"e_step": {"replay_share": 0.95, "mix_replay": True}},  # 7.6 of 8
            "and that is nothing with --e-step.replay-share 0.95: lower it",
        ),
        (
            {"e_step": {"replay_share": 0.5, "mix_replay": True, "tempered_share": 0.9}},  # 3.6 of 4
            "and that is nothing with --e-step.tempered-share 0.9: lower it",
        ),
        ({"e_step": {"objective": "vargrad", "samples": 1}}, "--e-step.samples is 1; vargrad"),
        ({"evaluation": {"temperature": 1e39}}, "--evaluation.temperature is 1e+39; it should be 0, which is greedy"),
        ({"e_step": {"temperatures": (1.0, 1e4)}}, "--e-step.temperatures is 10000"),
        ({"evaluation": {"size": 0}}, "--evaluation.size is 0"),
        ({"evaluation": {"splits": ("[a,b]",)}}, "--evaluation.splits [a,b]: a flag has no brackets"),
    ],
)
def test_a_value_out_of_range_names_its_flag(changes: dict[str, Any], named: str) -> None:
    config = RunConfig()
    for name, value in changes.items():
        own = getattr(config, name)
        config = replace(config, **{name: replace(own, **value) if isinstance(value, dict) else value})
    with pytest.raises(UsageError) as raised:
        check(config)
    assert named in str(raised.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"rounds": 0},
        {"m_step": {"steps": 0, "warmup": 0}},
        {"e_step": {"huber_delta": None, "reward_floor": None, "reward_temperature_steps": 0}},
        {"evaluation": {"votes": 3, "temperature": 0.5}},
        {"evaluation": {"diagnostics": 0}},
        {"e_step": {"replay_share": 0.9, "mix_replay": True}},  # 7.2 of 8: one is sampled
        # Of settings that the method does not read.
        {"method": "sft", "data": {"unlabelled": 0}, "e_step": {"demonstration_weight": 0.0}},
        {"e_step": {"steps": 0, "demonstration_weight": 0.0}, "data": {"unlabelled": 0}},
        {"method": "sft", "augmentation": {"concat_questions": 1}, "m_step": {"target": "answer"}},
    ],
)
def test_what_is_allowed(changes: dict[str, Any]) -> None:
    check(from_dict(changes, "x"))


def test_a_flag_is_spelt_with_dashes() -> None:
    assert flag("e_step.learning_rate") == "--e-step.learning-rate"


@pytest.mark.parametrize("name", ["3e-4", "1e5", "no", "007", "runs/mine"])
def test_a_name_that_looks_like_a_number_stays_a_name(name: str) -> None:
    assert parse_yaml(write_yaml({"output_dir": name}), "x") == {"output_dir": name}


def test_the_printed_form_is_plain_yaml() -> None:
    printed = yaml.safe_load(to_yaml(RunConfig()))
    assert {**to_dict(RunConfig()), **printed} == to_dict(RunConfig())


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
