"""A tool, a reward and a grader that misbehave: it costs the chain, is counted, and ends a run that is all failures."""

from __future__ import annotations

import gc
import math
import os
import signal
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from latent_cot import tasks, tools
from latent_cot.tools import _foreign
from latent_cot.types import Example, Rationale, Task, ToolError, UsageError
from tests.attack.cases import FULL

BODIES = {
    "nothing": "pass",
    "a number": "return 7",
    "bytes": "return b'1'",
    "a list": "return ['1']",
    "a tensor": "import torch; return torch.tensor(1.0)",
    "an infinity": "return float('inf')",
    "not a number": "return float('nan')",
    "too far": "return 1e308",
    "true": "return True",
    "a megabyte": "return 'x' * 2**20",
    "half a character": "return '\\ud800'",
    "an error": "raise ValueError('one\\ntwo')",
    "an error of an error": "raise type('E', (Exception,), {'__str__': lambda self: 1 / 0})()",
    "an exit": "raise SystemExit(3)",
    "no memory": "raise MemoryError",
    "no end": "while True: pass",
    "a long sleep": "import time; time.sleep(60)",
    "no end within": "try:\n    while True: pass\nexcept Exception: return ' 1'",
    "no bottom": "return misbehaves(*arguments)",
    "a generator": "yield 1",
}
"""60 with the three places where they are put: a tool, a reward, a grader."""

TOOL = """
from latent_cot.tools import tool

def misbehaves(*arguments):
{body}

@tool(name="odd", trigger="=", isolated={isolated})
def odd(request):
    \"\"\"Odd.\"\"\"
    return misbehaves(request)
"""
TASK = """
from latent_cot.tasks.plain import PlainTask
from latent_cot.types import Example, TaskData

def misbehaves(*arguments):
{body}

class Odd(PlainTask):
    name, description, default_splits = "odd", "odd", ("test",)
    def example(self, question, answer=None): return Example(question, answer=answer)
    def load(self, request): return TaskData((), (), ())
    def split(self, name, size=None): return []
    def {method}(self, *arguments): return misbehaves(self, *arguments)
"""
EXAMPLE, RATIONALE = Example("x", answer="1"), Rationale((), (), (True,), " 1")


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """And without the garbage collector: an alarm within its callback (hypothesis has one) is told as an error."""
    monkeypatch.setattr(_foreign, "SECONDS", 0.2)
    gc.disable()
    yield
    gc.enable()


def written(folder: Path, text: str, body: str, **other: object) -> str:
    file = folder / "mine.py"
    file.write_text(text.format(body=textwrap.indent(body, "    "), **other))
    return str(file)


def guard_of(one: object) -> _foreign.Guard:
    guard = one.guard  # type: ignore[attr-defined]
    assert isinstance(guard, _foreign.Guard)
    return guard


@pytest.mark.parametrize(
    "isolated", [False, pytest.param(True, marks=pytest.mark.skipif(not FULL, reason="in full only"))]
)
@pytest.mark.parametrize("kind", BODIES)
def test_a_tool(kind: str, isolated: bool, tmp_path: Path) -> None:
    tool = tools.load(written(tmp_path, TOOL, BODIES[kind], isolated=isolated))
    if isolated:
        tool._process.start()  # type: ignore[attr-defined]
    start = time.perf_counter()
    for _ in range(2):
        with pytest.raises(ToolError, match="the tool failed: "):
            tool("1 + 1")
    assert time.perf_counter() - start < 30  # and not for ever
    guard = guard_of(tool)
    assert guard.failures.total() == guard.calls["__call__"] == 2
    assert "2 of 2 calls failed" in str(guard.note) and "\n" not in str(guard.note)


@pytest.mark.parametrize("kind", BODIES)
def test_a_reward(kind: str, tmp_path: Path) -> None:
    task = tasks.load(written(tmp_path, TASK, BODIES[kind], method="log_reward"))
    assert task.has_own_reward
    value = task.log_reward(EXAMPLE, "x")
    if kind == "a number":  # which is one
        assert value == 7 and not guard_of(task).failures
    else:
        assert value == -math.inf and guard_of(task).failures.total() == 1


@pytest.mark.parametrize(
    ("method", "body", "said"),
    [
        ("load", "return None", "`load` returns None instead of a TaskData"),
        ("load", "return TaskData(None, (), ())", "`load` returns None instead of a list of Example"),
        ("load", "return TaskData(({'x': '1'},), (), ())", "`load` returns a dict instead of an Example"),
        ("split", "return (one for one in ())", "`split` returns a generator instead of a list of Example"),
        ("read", "return [1]", "`read` returns an int instead of an Example"),
        ("example", "return {'x': '1'}", "`example` returns a dict instead of an Example"),
        ("example", "return Example('1', answer=7)", "an Example whose `answer` is an int instead of text"),
        ("example", "return Example(None)", "an Example whose `x` is None instead of text"),
        ("example", "return {}['moon']", "`example` raised KeyError: 'moon'"),
        ("split", "return [][1]", "`split` raised IndexError: list index out of range"),
        ("split", "raise SystemExit", "`split` raised SystemExit"),
        ("candidates", "return ['a', 'b']", "`candidates` returns a list instead of a mapping"),
        ("candidates", "return {}['moon']", "`candidates` raised KeyError: 'moon'"),
        ("allows", "return 1 / 0", "`allows` raised ZeroDivisionError"),
        ("sweep", "return 'x'", "`sweep` returns a str instead of a Sweep"),
        ("measure", "return None", "`measure` returns None instead of a mapping"),
        ("posterior_prompt", "return None", "`posterior_prompt` returns None instead of a text"),
        ("texts", "return 7", "`texts` returns an int instead of texts, or None"),
        ("seed_prompt", "return 7", "`seed_prompt` returns an int instead of a text, or None"),
        ("can_be_joined", "return {}['moon']", "`can_be_joined` raised KeyError: 'moon'"),
        ("is_held_out", "return 1 / 0", "`is_held_out` raised ZeroDivisionError"),
    ],
)
def test_data_that_are_none(method: str, body: str, said: str, tmp_path: Path) -> None:
    """No chain can go on without them: the file is named at once."""
    file = written(tmp_path, TASK, body, method=method)
    task = tasks.load(file)
    with pytest.raises(UsageError) as error:
        getattr(task, method)("x")
    assert str(error.value).startswith(f"{file}: ") and said in str(error.value)
    assert task.grade(EXAMPLE, "1") is True


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return None", "`configured` returns None instead of a Task"),
        ("return {}['moon']", "`configured` raised KeyError"),
    ],
)
def test_options_that_nobody_takes(body: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        tasks.load(written(tmp_path, TASK, body, method="configured"), {"a": "b"})


@pytest.mark.parametrize(
    ("member", "said"),
    [
        ("stop = 5", "stop must be a text or None, not 5"),
        ("mistakes = ['a']", "mistakes must be a mapping"),
        (
            "metrics = {'m': 'text'}\n    measure = lambda self, questions: {}",
            "must map names to latent_cot.types.Metric",
        ),
        ("allowed_characters, step_delimiter = 'ab', 'a.'", "no step could end: '.' of the step_delimiter"),
    ],
)
def test_members_that_cannot_be(member: str, said: str, tmp_path: Path) -> None:
    file = written(tmp_path, TASK, "return True", method="grade")
    path = Path(file)
    head, line, rest = path.read_text().partition("    name")
    path.write_text(f"{head}    {member}\n{line}{rest}")
    with pytest.raises(UsageError, match=said):
        tasks.load(file)


@pytest.mark.parametrize("kind", BODIES)
def test_a_grader(kind: str, tmp_path: Path) -> None:
    task = tasks.load(written(tmp_path, TASK, BODIES[kind], method="grade"))
    assert not task.has_own_reward
    assert task.grade(EXAMPLE, "1") is (kind == "true")
    assert guard_of(task).failures.total() == (kind != "true")
    assert task.answer(RATIONALE) is None  # that of all tasks


def test_what_is_right_goes_through(tmp_path: Path) -> None:
    tool = tools.load(written(tmp_path, TOOL, "return ' 2'", isolated=False))
    assert (tool.request("1, 1 + 1="), tool("1 + 1")) == ("1 + 1", " 2")
    task = tasks.load(written(tmp_path, TASK, "return float('-inf')", method="log_reward"))
    assert task.log_reward(EXAMPLE, "x") == -math.inf
    assert guard_of(tool).note is None and guard_of(task).note is None


def test_a_refusal_is_no_failure(tmp_path: Path) -> None:
    body = "from latent_cot.types import ToolError; raise ToolError('not mine')"
    for isolated in (False, True):
        tool = tools.load(written(tmp_path, TOOL, body, isolated=isolated))
        with pytest.raises(ToolError, match=r"^not mine$"):
            tool("1 + 1")
        assert guard_of(tool).note is None


@pytest.mark.parametrize("failing", [0.3, 0.8])
def test_a_run_ends_where_most_calls_fail(failing: float) -> None:
    guard = _foreign.Guard("tool odd")

    def go() -> None:
        for number in range(100):
            fails = number % 10 < 10 * failing
            try:
                guard.call("f", lambda fails=fails: [] if fails else "1", check=_foreign._text)
            except _foreign.Failure:
                assert fails

    if failing > _foreign.MAX_FAILED:
        with pytest.raises(
            UsageError, match=r"tool odd: 1\d of 2\d calls failed: 1\d a list instead of text .*mend it"
        ):
            go()
    else:
        go()
        assert guard.failures == {("f", "a list instead of text"): 30}


def test_a_tool_whose_requests_work_ends_the_run_too(tmp_path: Path) -> None:
    """And a task with a grade that always fails, whose answers do not."""
    tool = tools.load(written(tmp_path, TOOL, "return str(1 / 0)", isolated=False))
    body = "1 / 0"
    task = tasks.load(written(tmp_path, TASK, body, method="grade"))

    def ask() -> None:
        for _ in range(21):
            with suppress(ToolError):
                tool(tool.request("1 + 1="))

    def grade() -> None:
        for _ in range(21):
            task.grade(EXAMPLE, task.answer(RATIONALE))

    for name, asked in (("tool", ask), ("mine.py:", grade)):
        with pytest.raises(UsageError, match=rf"{name}.*20 of 20 calls failed: 20 ZeroDivisionError"):
            asked()


def test_a_tool_that_ends_its_process(tmp_path: Path) -> None:
    tool = tools.load(
        written(tmp_path, TOOL, "import os\nif arguments[0] == 'die': os._exit(1)\nreturn ' 2'", isolated=True)
    )
    with pytest.raises(ToolError, match="its process ended"):
        tool("die")
    assert tool("1 + 1") == " 2"  # by another


def test_a_signal_to_the_group_of_the_run_is_not_the_tools(tmp_path: Path) -> None:
    """Ctrl-C ends the run after its unit of work, which the tool has a part in."""
    tool = tools.load(written(tmp_path, TOOL, "import os; return f' {os.getpid()}'", isolated=True))
    process = int(tool("1"))
    assert os.getpgid(process) != os.getpgid(0)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(process, number)
        assert int(tool("1")) == process


@pytest.mark.parametrize("isolated", [False, True])
def test_what_a_call_costs(isolated: bool, tmp_path: Path) -> None:
    """Less than 1 ms, beyond the tool itself, on a machine with nothing else to do; the fastest of ten means counts."""
    tool = tools.load(written(tmp_path, TOOL, "return ' 2'", isolated=isolated))
    means = []
    for _ in range(10):
        start = time.perf_counter()
        for _ in range(50):
            tool("1 + 1")
        means.append((time.perf_counter() - start) / 50)
    print(f"a call costs {1e3 * min(means):.3f} ms, isolated: {isolated}")
    assert min(means) < (0.001 if FULL else 0.02)


def test_what_is_built_in_pays_nothing() -> None:
    calculator = tools.load("calculator")
    assert type(calculator).__module__ == "latent_cot.tools.calculator"
    assert not hasattr(tasks.load("arithmetic"), "guard")


def test_a_file_that_names_what_is_built_in_leaves_that_alone(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("from latent_cot.tasks.arithmetic import TASK\n")
    assert hasattr(tasks.load(str(file)), "guard")
    assert not hasattr(tasks.load("arithmetic"), "guard")


def test_a_task_of_somebodys_is_still_what_it_was(tmp_path: Path) -> None:
    task = tasks.load(written(tmp_path, TASK, "return None", method="answer"))
    assert type(task).__name__ == "Odd" and isinstance(task, Task)
    assert isinstance(task.configured({}), Task)


def test_a_task_remembers_what_it_has_loaded(tmp_path: Path) -> None:
    task = tasks.load(written(tmp_path, TASK, "self, *_ = arguments; return self.loaded", method="log_reward"))
    task.loaded = 7  # type: ignore[attr-defined]
    assert task.log_reward(EXAMPLE, "x") == 7


def test_no_time_limit_in_another_thread(tmp_path: Path) -> None:
    """Signals go to the main one. Nothing breaks."""
    import threading

    found: list[str] = []
    tool: Callable[[str], str] = tools.load(written(tmp_path, TOOL, "return ' 2'", isolated=False))
    thread = threading.Thread(target=lambda: found.append(tool("1 + 1")))
    thread.start()
    thread.join()
    assert found == [" 2"]


def test_the_note_of_a_session(tmp_path: Path) -> None:
    from latent_cot.run.session import Session

    tool = tools.load(written(tmp_path, TOOL, "return 7", isolated=False))
    with pytest.raises(ToolError):
        tool("1 + 1")
    holder = SimpleNamespace(task=tasks.load("arithmetic"), rules=SimpleNamespace(tools=[tool]))
    assert Session.failures.fget(holder) == [guard_of(tool).note]  # type: ignore[attr-defined]
