"""What is refused, or told, before a run begins."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import BloomConfig, BloomForCausalLM, PreTrainedTokenizerFast

from latent_cot.config.schema import DataConfig
from latent_cot.config.settings import from_dict, load_config
from latent_cot.model.limits import Limit
from latent_cot.model.text import TextCodec
from latent_cot.rationales.chain import ChainRules, encode_rationale
from latent_cot.rationales.rollout import rollout
from latent_cot.rationales.scoring import Group, score
from latent_cot.run.preflight import (
    Examples,
    check_demonstrations,
    check_examples,
    check_lengths,
    check_tools,
    check_triggers,
    load_examples,
)
from latent_cot.run.session import open_session
from latent_cot.tasks.common import check_answers
from latent_cot.tools._foreign import guard_task
from latent_cot.types import DataRequest, Example, Rationale, Task, TaskData, UsageError
from tests.loops import CONFIG, make
from tests.tiny import END, build_tokenizer
from tests.worlds import ALPHABET, CountTool, FakeTool, PlainTask, ToyTask, language_model


class LongTool(FakeTool):
    def __call__(self, request: str) -> str:
        return "1" * 20


class Arrow(CountTool):
    name = "arrow"
    trigger = "->"


def test_tools_that_could_never_be_called() -> None:
    task = ToyTask()
    check_tools(task, ["count"], [CountTool()])
    with pytest.raises(UsageError, match=r"--rollout\.tools other: its trigger '=' and that of count, '=', cannot be"):
        check_tools(task, ["count", "other"], [CountTool(), CountTool()])
    with pytest.raises(UsageError, match=r"--rollout\.tools arrow: its trigger '->' has '-', which is not among"):
        check_tools(task, ["count", "arrow"], [CountTool(), Arrow()])
    check_tools(PlainTask(), ["arrow"], [Arrow()])  # whose rationales are of any characters


class Double(CountTool):
    name = "double"
    trigger = "⇒"


@pytest.fixture(scope="module")
def of_bytes() -> PreTrainedTokenizerFast:
    """A byte-level vocabulary, in which an arrow is three tokens."""
    vocabulary = {piece: i for i, piece in enumerate([END, *sorted(ByteLevel.alphabet())])}
    backend = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer, backend.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END)


def test_a_trigger_that_no_token_can_end_is_refused(of_bytes: PreTrainedTokenizerFast) -> None:
    """Its characters are allowed, but the bytes that they are to this tokenizer are not."""
    narrow = TextCodec(of_bytes, allowed_characters=f" 0123456789={Double.trigger}")
    check_tools(dataclasses.replace(ToyTask(), allowed_characters=f" {Double.trigger}"), ["double"], [Double()])
    check_triggers(ChainRules(narrow, [CountTool()]))
    with pytest.raises(UsageError, match=r"^tool double: no token .* ends its trigger '⇒'; give the tool another"):
        check_triggers(ChainRules(narrow, [CountTool(), Double()]))
    check_triggers(ChainRules(TextCodec(of_bytes, triggers=[Double.trigger]), [Double()]))  # of any token
    stops = TextCodec(of_bytes, stop="=", allowed_characters="12=")
    with pytest.raises(UsageError, match=r"^tool count: no token"):  # but the one that ends a rationale
        check_triggers(ChainRules(stops, [CountTool()]))


def test_a_step_delimiter_that_no_token_can_end_is_refused(of_bytes: PreTrainedTokenizerFast) -> None:
    narrow = TextCodec(of_bytes, allowed_characters=" 0123456789,⇒")
    check_triggers(ChainRules(narrow, granularity="step", step_delimiter=","))
    check_triggers(ChainRules(narrow, step_delimiter="⇒"))  # which is not looked at
    with pytest.raises(UsageError, match=r"ends the task's step_delimiter '⇒'; give the task another"):
        check_triggers(ChainRules(narrow, granularity="step", step_delimiter="⇒"))


def test_a_session_refuses_a_trigger_that_its_model_cannot_write(tmp_path: Path, tiny_model_dir: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from latent_cot.tools import tool\n"
        "@tool(trigger='⇒')\ndef halve(request):\n    return ' 1'\n"
        "from latent_cot.tasks.plain import PlainTask\n"
        "from latent_cot.types import Example, TaskData\n"
        "class Mine(PlainTask):\n"
        "    name, description, default_splits = 'mine', 'mine', ()\n"
        "    allowed_characters, tools = ' 12⇒', (f'{__file__}:halve',)\n"
        "    def load(self, request):\n"
        "        return TaskData((), (Example('Q: 1', '. 1', answer='1'),), ())\n"
        "    def split(self, name, size=None): return []\n"
        "    def example(self, question, answer=None): return Example(question, answer=answer)\n",
        encoding="utf-8",
    )
    smoke = load_config("smoke")
    config = dataclasses.replace(smoke, task=f"{file}:Mine", model=str(tiny_model_dir), p_init="base")
    config = dataclasses.replace(config, evaluation=dataclasses.replace(smoke.evaluation, splits=()))
    data = DataConfig(demonstrations=0, unlabelled=1, validation=0)
    with pytest.raises(UsageError, match=r"^tool halve: no token that a rationale may have with this model ends"):
        open_session(dataclasses.replace(config, data=data, precision="fp32"))


@pytest.mark.parametrize(
    ("given", "in_tests", "most", "said"),
    [
        # X and Y have 40 tokens, X with Y before it 72; a rationale has 8.
        ("question", False, 48, []),
        ("question", False, 47, ["behind 1 questions there is no room for a rationale of 8 tokens"]),
        ("question-and-answer", False, 80, []),
        ("question-and-answer", False, 79, ["behind 1 questions there is no room for a rationale of 8 tokens"]),
        ("question", True, 79, ["behind 1 questions there is no room for a rationale of 8 tokens"]),
    ],
)
def test_what_q_reads_is_counted(tiny_model_dir: Path, given: Any, in_tests: bool, most: int, said: list[str]) -> None:
    class Told(ToyTask):
        answer_given = in_tests

        def posterior_prompt(self, example: Example) -> str:
            return "y" * 32 + super().posterior_prompt(example)

    lm = language_model(tiny_model_dir)
    codec = TextCodec(lm.tokenizer, allowed_characters="ab")
    example = Example("x" * 30, "y" * 10)
    data = TaskData((), (), ()) if in_tests else data_of(example)
    found = Examples(Told(), [], data, {"test": [example]} if in_tests else {}, [])
    notes = check_lengths(dataclasses.replace(CONFIG, q_sees=given), found, ChainRules(codec), Limit(most, "a table"))
    assert len(notes) == len(said) and all(one in note for one, note in zip(said, notes, strict=True))
    if given != "question":
        with pytest.raises(UsageError, match="has 72 tokens, without a rationale"):
            check_lengths(dataclasses.replace(CONFIG, q_sees=given), found, ChainRules(codec), Limit(72, "a table"))


def test_what_a_prompt_shows_is_counted(tiny_model_dir: Path) -> None:
    codec = TextCodec(language_model(tiny_model_dir).tokenizer, allowed_characters="ab")
    shown = Example("x" * 30, "y" * 10, "ab", "y", "x")
    data = TaskData((shown, shown), (), ())
    found = Examples(ToyTask(), [], data, {}, [])

    def refused(limit: int, **changes: Any) -> list[str]:
        return check_lengths(dataclasses.replace(CONFIG, **changes), found, ChainRules(codec), Limit(limit, "a table"))

    few_shot: dict[str, Any] = {"method": "few-shot", "q_sees": "question", "shots": 2}
    assert refused(200, **few_shot) == [] and refused(120) == []
    (note,) = refused(130, **few_shot)  # 2 of 43 tokens, X and Y of 40
    assert "--shots)" in note
    with pytest.raises(UsageError, match=r"has 126 tokens, without a rationale, .*; give fewer --shots, take"):
        refused(120, **few_shot)
    with pytest.raises(UsageError, match="has 126 tokens"):
        refused(120, p_init="prompt", shots=2, q_sees="question")


def test_room_for_a_tools_result_is_told(tiny_model_dir: Path) -> None:
    codec = TextCodec(language_model(tiny_model_dir).tokenizer, allowed_characters="ab=")
    found = Examples(ToyTask(), [], data_of(Example("x" * 30, "y" * 10)), {}, [])

    def notes(most: int, *tools: CountTool) -> list[str]:
        return check_lengths(CONFIG, found, ChainRules(codec, tools), Limit(most, "a table"))

    assert notes(112, CountTool()) == [] and notes(111) == []
    (note,) = notes(111, CountTool())
    counts = "What a tool puts in, 64 tokens at most a call, counts too, and behind 1 questions a full rationale"
    assert note.startswith(f"{counts} leaves less room, of 111 (a table): --rollout.max-tokens")
    (note,) = notes(47, CountTool())
    assert note.startswith("In tokens, the model's texts have 47 at most")
    assert note.endswith(f"(--rollout.max-tokens, --evaluation.max-tokens). {counts} leaves less room.")


def test_demonstrations_arrive_at_their_answers(tiny_model: Callable[[str], Path]) -> None:
    task, rules = ToyTask(), make(language_model(tiny_model("llama"), perturb=False), CONFIG).rules
    right = task.load(DataRequest()).demonstrations
    assert check_demonstrations(task, right, rules) == []
    short = dataclasses.replace(rules, max_tokens=1)
    with pytest.raises(
        UsageError, match=r"^2 of 2 validation rationales have more than 1 tokens: raise --rollout\.max"
    ):
        check_demonstrations(task, right, short, what="validation rationales")
    longest = max(sum(encode_rationale(one.z or "", rules).policy_mask) for one in right)
    (full,) = check_demonstrations(task, right, dataclasses.replace(rules, max_tokens=longest))
    assert f"have {longest} tokens, as many as a rationale may have, and teach no stop" in full
    assert f"--rollout.max-tokens {longest + 1} mends it" in full
    wrong = dataclasses.replace(right[0], answer="77")
    (note,) = check_demonstrations(task, [*right, wrong], rules)
    assert note == "1 of 3 demonstrations do not arrive at their own answer: 'a' at '2', not at '77'."
    with pytest.raises(UsageError, match="no demonstration of toy arrives at its own answer: 'a' at '2', not at '77'"):
        check_demonstrations(task, [wrong], rules)

    def number(self: Task, rationale: Rationale) -> Any:
        return 7

    guarded = guard_task(type("Numbers", (ToyTask,), {"answer": number})(), "task toy")
    with pytest.raises(UsageError, match=r"'a' at None, not at '2' \(`answer` gave an int instead of text\); look at"):
        check_demonstrations(guarded, right[:1], rules)
    written = dataclasses.replace(right[0], z=" zz=", meta={"source": "mine.jsonl:3"})
    with pytest.raises(UsageError, match=r"^mine\.jsonl:3: demonstration"):
        check_demonstrations(task, [written], rules)


def test_where_an_answer_is_picked_among_candidates_it_is_not_read_off(tiny_model: Callable[[str], Path]) -> None:
    task = PlainTask()
    config = dataclasses.replace(CONFIG, rollout=dataclasses.replace(CONFIG.rollout, granularity="token"))
    rules = make(language_model(tiny_model("llama"), perturb=False), config, task).rules
    shown = dataclasses.replace(task.load(DataRequest()).unlabelled[0], z=" b")
    assert check_demonstrations(task, [shown], rules) == []


EXAMPLE = Example("Q: a", ". A: 2", " a=", "2", "a")


def data_of(*examples: Example, validation: tuple[Example, ...] = ()) -> TaskData:
    return TaskData((), examples, validation)


def test_examples_need_answers_and_there_must_be_some() -> None:
    task = ToyTask()
    assert check_examples(task, data_of(EXAMPLE), DataConfig(demonstrations=0, unlabelled=1, validation=0)) == []
    asked = DataConfig(demonstrations=0, unlabelled=9, validation=5)
    assert check_examples(task, data_of(EXAMPLE), asked) == ["There are 1 of 9 unlabelled, 0 of 5 validation."]
    with pytest.raises(UsageError, match="toy has no examples to train with: look at the task's `load`"):
        check_examples(task, data_of(), asked)
    with pytest.raises(UsageError, match=r"no examples to train with: 9 rows dropped: in a test file\.$"):
        check_examples(task, dataclasses.replace(data_of(), notes=("9 rows dropped: in a test file.",)), asked)
    unknown = dataclasses.replace(EXAMPLE, y=None, answer=None, meta={"source": "mine.jsonl:3"})
    with pytest.raises(UsageError, match=r"mine\.jsonl:3: 'a': no answer, and --data\.unlabelled need one"):
        check_examples(task, data_of(EXAMPLE, unknown), asked)
    with pytest.raises(UsageError, match=r"--data\.validation need one"):
        check_examples(task, data_of(EXAMPLE, validation=(unknown,)), asked)


def test_what_is_odd_about_examples_is_told() -> None:
    task, asked = ToyTask(), DataConfig(demonstrations=0, unlabelled=2, validation=1)
    other = dataclasses.replace(EXAMPLE, x="Q: b ", question="b")
    known, spaced = check_examples(task, data_of(EXAMPLE, other, validation=(EXAMPLE,)), asked)
    assert known.startswith("1 validation questions are training questions,") and known.endswith("the first is 'a'.")
    assert spaced.startswith("1 prompts end with a space ") and spaced.endswith("the first is 'b'.")
    unlike = dataclasses.replace(EXAMPLE, answer="another", y=". It is another.")
    (said,) = check_examples(task, data_of(EXAMPLE, unlike), DataConfig(demonstrations=0, unlabelled=2, validation=0))
    assert said.startswith("2 training examples have a question that has another answer elsewhere: the first is 'a'")
    (said,) = check_examples(task, data_of(EXAMPLE), DataConfig(demonstrations=0, unlabelled=0, validation=0))
    assert said == "The task gives more than was asked for: 1 unlabelled (0)."
    only = DataConfig(demonstrations=0, unlabelled=1, validation=1)
    assert len(check_examples(task, data_of(EXAMPLE, validation=(EXAMPLE,)), only)) == 1
    task = type("One", (ToyTask,), {"one_question": True})()
    assert check_examples(task, data_of(EXAMPLE, validation=(EXAMPLE,)), only) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"z": "a="}, "2 rationales begin directly behind the question"),
        ({"y": "It is 2."}, "6 `y` begin directly behind the rationale"),
        ({"y": ""}, "6 `y` have no text (any rationale explains it)"),
        ({"y": ". It is 2."}, "All `y` are the same, of 3 answers: p would learn nothing of these."),
    ],
)
def test_where_texts_are_joined(changes: dict[str, Any], said: str) -> None:
    task = ToyTask()
    data = task.load(DataRequest(demonstrations=2, unlabelled=4))
    assert not check_examples(task, dataclasses.replace(data, validation=()), DataConfig(2, 4, 0))
    shown = tuple(dataclasses.replace(one, **changes) for one in data.demonstrations)
    others = tuple(one if "z" in changes else dataclasses.replace(one, **changes) for one in data.unlabelled)
    notes = check_examples(task, TaskData(shown, others, ()), DataConfig(2, 4, 0))
    assert [note for note in notes if note.startswith(said)]


def test_half_of_the_demonstrations_may_not_be_wrong(tiny_model: Callable[[str], Path]) -> None:
    task, rules = ToyTask(), make(language_model(tiny_model("llama"), perturb=False), CONFIG).rules
    right = task.load(DataRequest()).demonstrations
    wrong = [dataclasses.replace(one, answer="77") for one in right]
    assert check_demonstrations(task, [*right, *wrong], rules)
    with pytest.raises(
        UsageError, match=r"^4 of 6 demonstrations of toy do not arrive at their own answer: 'a' at '2',"
    ):
        check_demonstrations(task, [*wrong, *right, *wrong], rules)


def test_an_answer_must_be_among_the_candidates() -> None:
    task = PlainTask()
    labelled = task.load(DataRequest()).unlabelled[0]
    candidates = task.candidates(labelled)
    assert candidates
    check_examples(task, data_of(labelled), DataConfig(unlabelled=1))
    with pytest.raises(UsageError, match="its answer 'else' is none of"):
        check_examples(task, data_of(dataclasses.replace(labelled, answer="else")), DataConfig(unlabelled=1))


def test_test_questions_need_answers() -> None:
    check_answers(ToyTask(), "test", [EXAMPLE])
    with pytest.raises(UsageError, match=r"^mine\.jsonl: 1 of 2 questions have no answer to compare with.* 'a'"):
        check_answers(ToyTask(), "mine.jsonl", [EXAMPLE, dataclasses.replace(EXAMPLE, answer=None)])


def test_texts_that_are_too_long_are_refused(tiny_model: Callable[[str], Path]) -> None:
    """By the sampler and the scorer."""
    lm = language_model(tiny_model("gpt2"))
    codec = TextCodec(lm.tokenizer, allowed_characters=ALPHABET)
    assert lm.limit is not None and lm.limit.tokens == 512
    assert language_model(tiny_model("llama")).limit is None  # its positions are rotary
    long = dataclasses.replace(EXAMPLE, x="x" * 500)
    rollout(lm, "q", [codec.encode(long.x)], ChainRules(codec, max_tokens=12))
    with pytest.raises(UsageError, match=r"a text of 513 tokens .* longer than the model's 512"):
        rollout(lm, "q", [codec.encode(long.x + "x" * 13)], ChainRules(codec, max_tokens=1))
    chain = Rationale((5,) * 9, (True,) * 9, (True,) * 10, "")
    with pytest.raises(UsageError, match=r"a text of 513 tokens .* longer than the model's 512"):
        score(lm, lm.merged("q"), [Group(codec.encode(long.x), [chain], [4] * 5)], codec, answers_at="end")


def test_a_question_that_is_too_long_is_named_before_a_run(tmp_path: Path, tiny_model: Callable[[str], Path]) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"question": f"What is {n}{'7' * 600 * (n % 2)}?", "answer": str(n)} for n in range(20)]
    file.write_text("\n".join(map(json.dumps, rows)))
    config = dataclasses.replace(load_config("smoke", task="qa"), model=str(tiny_model("gpt2")), p_init="base")
    data = dataclasses.replace(config.data, options={"data": str(file)}, demonstrations=0, unlabelled=12, validation=2)
    with pytest.raises(UsageError, match=r"rows\.jsonl.* has 6\d\d tokens, .*texts have 512 at most"):
        open_session(dataclasses.replace(config, data=data, precision="fp32"))
    plain = dataclasses.replace(config, data=data, precision="fp32", model=str(tiny_model("llama")))
    open_session(plain)  # its positions are rotary
    file.write_text("\n".join(map(json.dumps, [{"question": f"What is {n}?", "answer": str(n)} for n in range(20)])))
    for tokens, said in ((400, False), (511, True)):
        rollout_config = dataclasses.replace(config.rollout, max_tokens=tokens)
        notes = open_session(dataclasses.replace(plain, model=config.model, rollout=rollout_config)).notes
        assert any(f"no room for a rationale of {tokens} tokens" in note for note in notes) == said


def test_what_tools_put_in_may_leave_no_room(tiny_model: Callable[[str], Path]) -> None:
    """It is not known before how much that is. In a table of positions there would be nothing to look up."""
    lm = language_model(tiny_model("gpt2"))
    codec = TextCodec(lm.tokenizer, allowed_characters="1=")
    rules = ChainRules(codec, [LongTool()], max_tokens=12)
    with pytest.raises(UsageError, match=r"with what tools put in .* longer than the model's 512"):
        rollout(lm, "q", [[5] * 500], rules, n=8, generator=torch.Generator().manual_seed(0))
    rollout(lm, "q", [[5] * 300], rules, n=8, generator=torch.Generator().manual_seed(0))


def test_validation_questions_are_kept_out_of_tests_as_training_questions_are(tmp_path: Path) -> None:
    """Where the tests name the file that training names."""
    file = tmp_path / "sums.jsonl"
    rows = [{"question": f"Tom has {n} apples and buys 3. How many?", "answer": n + 3} for n in range(40)]
    file.write_text("".join(json.dumps({**row, "equation": f"{n} + 3"}) + "\n" for n, row in enumerate(rows)))
    data = {"train_file": str(file), "demonstrations": 5, "unlabelled": 10, "validation": 10}
    changes = {"data": data, "evaluation": {"splits": [str(file)]}}
    found = load_examples(from_dict(changes, "x", load_config(task="word_problems")))
    (asked,) = ({example.question for example in split} for split in found.tests.values())
    own = (*found.data.demonstrations, *found.data.unlabelled, *found.data.validation)
    assert len(asked) == 15 and not asked & {example.question for example in own}
    assert f"Split {file}: 25 questions of training or validation were dropped." in found.notes


@pytest.mark.parametrize(
    ("validation", "diagnostics", "method", "told"),
    [
        (0, 32, "em", "and it has none"),
        (5, 32, "em", "and it has 5"),
        (40, 4, "forward-kl", "and it has 4 (--data.validation, --evaluation.diagnostics)"),
        (6, 32, "em", None),
        (0, 0, "em", None),  # so asked for
        (0, 32, "rejection", None),  # which never takes anything back
    ],
)
def test_too_few_validation_questions_are_told(
    validation: int, diagnostics: int, method: str, told: str | None
) -> None:
    changes = {"data": {"validation": validation}, "evaluation": {"diagnostics": diagnostics}}
    notes = load_examples(from_dict(changes, "x", load_config(method=method))).notes
    found = [note for note in notes if note.startswith("Training that does harm will not be taken back")]
    assert found == [] if told is None else told in found[0]
    off = from_dict({"safeguard": False}, "x", from_dict(changes, "x", load_config(method=method)))
    assert not [note for note in load_examples(off).notes if "taken back" in note]


def test_gaps_that_a_model_would_not_see_are_told(tmp_path: Path, tiny_model_dir: Path) -> None:
    """ALiBi's distances are those of columns."""
    tokenizer = build_tokenizer()
    sizes: dict[str, Any] = {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": len(tokenizer)}
    BloomForCausalLM(BloomConfig(**sizes)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config = dataclasses.replace(load_config("smoke"), precision="fp32")
    for folder, share, told in ((tmp_path, 0.8, True), (tmp_path, 0.0, False), (tiny_model_dir, 0.8, False)):
        augmentation = dataclasses.replace(config.augmentation, gap_share=share)
        asked = dataclasses.replace(config, model=str(folder), augmentation=augmentation)
        notes = open_session(asked, load_data=False).notes
        assert any("--augmentation.gap-share does nothing" in note for note in notes) == told


def test_copies_of_one_chain_are_told(tmp_path: Path) -> None:
    changes = {"task": "random_numbers", "evaluation": {"temperature": 0.0, "samples": 5}}
    said = "All 5 rationales of a test question will be the same one: --evaluation.temperature is 0."
    assert said in load_examples(from_dict(changes, "x", load_config(task="random_numbers"))).notes
    warm = from_dict(
        {"evaluation": {"temperature": 1.0}}, "x", from_dict(changes, "x", load_config(task="random_numbers"))
    )
    assert said not in load_examples(warm).notes


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({}, False),  # the preset has q(Z | X)
        ({"q_sees": "question-and-answer"}, True),
        ({"q_sees": "question-and-answer", "m_step": {"target": "joint"}}, False),
        ({"q_sees": "question-and-answer", "method": "sft"}, False),
    ],
)
def test_a_p_that_only_decides_needs_a_q_that_can_be_asked(flags: dict[str, Any], said: bool) -> None:
    config = from_dict(flags, "x", load_config("smoke", task="subjectivity"))
    assert any("p only learns to decide" in note for note in load_examples(config).notes) == said


def test_fewer_demonstrations_than_the_prompt_was_to_show_are_told(tmp_path: Path) -> None:
    rows = [{"question": f"Tom has {n} apples and buys 3. How many?", "answer": n + 3} for n in range(40)]
    shown = [{**row, "rationale": f" {n} + 3 = {n + 3}"} if n < 2 else row for n, row in enumerate(rows)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in shown))
    (tmp_path / "mine.yaml").write_text("data: mine.jsonl\ntools: calculator\n")
    for shots, said in ((2, False), (5, True)):
        config = from_dict({"method": "few-shot", "shots": shots}, "x", load_config(task=str(tmp_path / "mine.yaml")))
        notes = load_examples(config).notes
        assert any(f"--shots {shots}: the prompt shows 2 demonstrations" in note for note in notes) == said
