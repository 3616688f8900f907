"""Finding and loading tools: the built-in ones, and files of the user's own."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from latent_cot import tools
from latent_cot.tools._foreign import MAX_CHARACTERS, MIN_CALLS, ForeignTool
from latent_cot.types import ToolError, UsageError

ROOT = Path(__file__).parents[2]
README = ROOT / "tools" / "README.md"

Write = Callable[..., str]

ECHO = """
class Echo:
    name = "echo"
    description = "says it again"
    trigger = "!"

    def request(self, text: str) -> str:
        return text.removesuffix("!")

    def __call__(self, request: str) -> str:
        return " " + request
"""


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str, name: str = "mine.py") -> str:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)


# --- built-in ---


def test_names() -> None:
    assert "calculator" in tools.names()
    assert tools.names() == sorted(tools.names())


def test_listing_names_imports_no_tool_and_loading_no_torch() -> None:
    done = run_python(
        "import sys\n"
        "from latent_cot import tools\n"
        "names = tools.names()\n"
        "assert not [name for name in names if f'latent_cot.tools.{name}' in sys.modules]\n"
        "print([tools.load(name).description for name in names])\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    assert done.returncode == 0, done.stderr


def test_plain_import_says_how_to_import() -> None:
    done = run_python("import tools")
    assert done.returncode != 0
    assert "import this package as `latent_cot.tools`" in done.stderr


def test_loads_a_new_instance_each_time() -> None:
    assert tools.load("calculator") is not tools.load("calculator")


def test_unknown_name() -> None:
    with pytest.raises(UsageError, match=r"unknown tool 'calculater'. Did you mean 'calculator'?"):
        tools.load("calculater")
    with pytest.raises(UsageError, match=r"Known: calculator.*\./my_tool\.py"):
        tools.load("zzz")
    for name in ("", "_calculator", "__init__", "os", "calculator.Calculator", "./calculator", "a\0b"):
        with pytest.raises(UsageError, match="unknown tool"):
            tools.load(name)


# --- a user's file ---


def test_the_only_class(write: Write) -> None:
    path = write("import re\nfrom latent_cot.tools.calculator import Calculator\nclass Helper: pass\n" + ECHO)
    tool = tools.load(path)
    assert tool.name == "echo"
    assert tool("hello") == " hello"


def test_relative_path(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(write(ECHO)).parent)
    assert tools.load("./mine.py").name == "echo"
    assert tools.load("mine.py:Echo").name == "echo"


def test_instance_called_tool(write: Write) -> None:
    path = write(
        "from latent_cot.tools.calculator import Calculator\n" + ECHO + "\nTOOL = Calculator(max_operands=3)\n"
    )
    assert tools.load(path)("9 - 3 + 8") == " 14"
    assert tools.load(f"{path}:Echo").name == "echo"


def test_a_dataclass(write: Write) -> None:
    text = "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass" + ECHO.replace(
        'name = "echo"', 'name: str = "echo"'
    )
    assert tools.load(write(text)).name == "echo"


def test_a_base_class_may_be_private(write: Write) -> None:
    text = ECHO.replace("class Echo", "class _Base") + '\nclass Loud(_Base):\n    name = "loud"\n'
    assert tools.load(write(text)).name == "loud"


def test_two_files_of_one_name(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(ECHO.replace('"echo"', f'"{name}"'), encoding="utf-8")
    loaded = [tools.load(str(tmp_path / name / "mine.py")) for name in ("a", "b")]
    assert [tool.name for tool in loaded] == ["a", "b"]
    assert len({type(tool.tool).__module__ for tool in loaded if isinstance(tool, ForeignTool)}) == 2


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent.py: no such tool file"):
        tools.load(str(tmp_path / "absent.py"))
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(UsageError, match="no such tool file"):
        tools.load(str(tmp_path / "folder.py"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", "defines no tool, and no TOOL; put @latent_cot", id="empty"),
        pytest.param(
            ECHO.replace("__call__", "call").replace('trigger = "!"', ""),
            "defines no tool, and no TOOL",
            id="class lacks members",
        ),
        pytest.param("TOOL = 3\n", "the tool lacks name, description", id="TOOL is no tool"),
        pytest.param("TOOL = print\n", "the tool lacks name", id="TOOL is a function"),
        pytest.param(ECHO.replace('"!"', '""'), "trigger must be a string that is not empty", id="no trigger"),
        pytest.param(ECHO.replace('"echo"', "3"), "name must be a string", id="name is no string"),
        pytest.param(ECHO.replace('"echo"', '"an echo"'), "'an echo' must be made of letters", id="name with a space"),
        pytest.param(ECHO.replace('"echo"', '"lambda"'), "'lambda' is a name of Python's", id="name is a keyword"),
        pytest.param(ECHO.replace('"echo"', '"max"'), "'max' is a name of Python's", id="name is a builtin"),
        pytest.param(ECHO.replace('"echo"', '"decode"'), "'decode' is a name of Python's", id="name of the program"),
        pytest.param(
            ECHO + ECHO.replace("Echo", "Other"),
            "defines Echo, Other, and no TOOL",
            id="two tools",
        ),
        pytest.param(
            ECHO.replace("name =", "def __init__(self, n): pass\n    name ="),
            r"Echo\(\) failed: TypeError.*TOOL = Echo",
            id="class takes arguments",
        ),
        pytest.param(
            "from latent_cot.tools import tool\n\n@tool(trigger='#')\ndef f() -> str:\n    return ''\n",
            r"mine\.py:3: .*f: a tool is called with one text, the request: too many positional arguments",
            id="function without an argument",
        ),
        pytest.param("x = 1\ny = (\n", r"mine\.py:2: .*SyntaxError", id="syntax error"),
        pytest.param("x = 1\n\nimport absent_module_q\n", r"mine\.py:3: .*ModuleNotFoundError", id="import error"),
        pytest.param("def f():\n    1 / 0\nf()\n", r"mine\.py:2: .*ZeroDivisionError", id="raises"),
        pytest.param("import sys\nsys.exit(0)\n", r"mine\.py:2: .*SystemExit", id="exits"),
    ],
)
def test_bad_file(write: Write, text: str, message: str) -> None:
    path = write(text)
    with pytest.raises(UsageError, match=message) as caught:
        tools.load(path)
    assert "mine.py" in str(caught.value)


def test_a_mistake_in_a_file_that_is_imported(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("x = 1\nimport broken_module_q\n")
    (Path(path).parent / "broken_module_q.py").write_text("\n" * 40 + "def f(:\n")
    monkeypatch.syspath_prepend(str(Path(path).parent))
    with pytest.raises(UsageError, match=r"mine\.py:2: SyntaxError"):
        tools.load(path)


def test_named_member(write: Write) -> None:
    path = write(ECHO + ECHO.replace("Echo", "Other").replace('"echo"', '"other"'))
    assert tools.load(f"{path}:Other").name == "other"
    with pytest.raises(UsageError, match=r"defines no 'Othr'. Did you mean 'Other'?"):
        tools.load(f"{path}:Othr")


def test_any_callable_is_a_tool(write: Write) -> None:
    maker = "import functools\nfrom latent_cot.tools import tool\nTOOL = tool(trigger='#', name='f')({})\n"
    assert tools.load(write(maker.format("functools.partial(str.upper)")))("a") == "A"
    assert tools.load(write(maker.format("str.upper"), "method.py"))("a") == "A"
    assert tools.load(write(maker.format("str"), "no_signature.py"))("a") == "a"
    nameless = maker.format("functools.partial(str.upper)").replace(", name='f'", "")
    with pytest.raises(UsageError, match="give the tool a name"):
        tools.load(write(nameless, "nameless.py"))


def test_a_function_is_a_tool(write: Write) -> None:
    text = """
from latent_cot.tools import tool


@tool(name="double", trigger="=>")
def double(request: str) -> str:
    \"\"\"Twice a number.

    Of its digits only.\"\"\"
    return f" {2 * int(request)}"


@tool(name="triple", trigger="3>", description="thrice")
def triple(request: str) -> str:
    return f" {3 * int(request)}"
"""
    path = write(text)
    double, triple = (tools.load(f"{path}:{name}") for name in ("double", "triple"))
    assert (double.name, double.description, double.trigger) == ("double", "Twice a number.", "=>")
    assert (triple.name, triple.description) == ("triple", "thrice")
    for chain in ("4 =>", " 1 => 2, 4 =>", "first\n 4=>"):
        assert double(double.request(chain)) == " 8"
    with pytest.raises(UsageError, match="defines double, triple, and no TOOL"):
        tools.load(path)
    blank = write(text.replace("Twice a number.", " ").replace("Of its digits only.", ""), "blank.py")
    assert tools.load(f"{blank}:double").description == "double"
    only = write(text.partition('\n\n@tool(name="triple')[0])
    assert tools.load(only)("2") == " 4"
    assert tools.load(write("from latent_cot.tools.calculator import Calculator\n" + ECHO, "b.py")).name == "echo"


# --- the README ---


def readme_blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_readme_example(write: Write) -> None:
    tool = tools.load(write(readme_blocks()[0], "modulo.py"))
    assert tool.name == "modulo"
    assert tool(tool.request(" 17 mod 5 ->")) == " 2"
    assert tool("-7 mod 3") == " 2"
    assert tool.request(" 30 - 13 = 17,17 mod 5 ->") == "17 mod 5"
    assert tool.request(" 17, 1,000 mod 7 ->") == "1,000 mod 7", "refused, not read as 000"
    for bad in ("", "17 mod 0", "17 mod", "٣ mod 2", "9" * 10_000 + " mod 2", "17 mod 5\n", "\ud800", "1,000 mod 7"):
        with pytest.raises(ToolError):
            tool(bad)


def test_a_file_is_run_once_and_again_where_it_has_changed(write: Write) -> None:
    """However soon, and of whatever size: the edit of a moment later is no older bytecode."""
    kinds = set()
    for _ in range(2):
        for word in ("one", "two", "six"):
            path = write(f"{ECHO}    word = {word!r}\n")
            first, again = (tools.load(path) for _ in range(2))
            assert isinstance(first, ForeignTool) and isinstance(again, ForeignTool)
            assert type(first.tool) is type(again.tool) and vars(type(first.tool))["word"] == word
            kinds.add(type(first.tool))
    assert len(kinds) == 6
    write("1 / 0\n")
    with pytest.raises(UsageError, match=r"mine\.py:1: ZeroDivisionError"):
        tools.load(path)


def test_readme_usage(write: Write) -> None:
    definition, usage = readme_blocks()
    folder = Path(write(definition, "modulo.py")).parent
    shown = re.search(r'# "(.*)"$', usage, re.MULTILINE)
    assert shown is not None
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{usage}"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == shown[1] + "\n"


def test_readme_lists_every_tool_and_the_limits() -> None:
    from latent_cot.tools import calculator

    text = README.read_text(encoding="utf-8")
    for name in tools.names():
        assert f"| `{name}` | `{tools.load(name).trigger}` |" in text
    for row, limit in {
        "characters of a request": calculator.MAX_REQUEST_CHARACTERS,
        "digits of an operand, decimals included": calculator.MAX_OPERAND_DIGITS,
        "characters of a result": calculator.MAX_RESULT_CHARACTERS,
    }.items():
        assert f"| {row} | {limit} |" in text


LONG = """
from latent_cot.tools import tool

@tool(name="upper", trigger="#", isolated={isolated})
def upper(request):
    \"\"\"Upper case.\"\"\"
    return request.upper()
"""


@pytest.mark.parametrize("isolated", [False, True])
def test_a_long_request_is_refused_and_not_counted(write: Write, isolated: bool) -> None:
    """What the chain has written for long without a comma, the toolkit's own code reads."""
    tool = tools.load(write(LONG.format(isolated=isolated)))
    assert isinstance(tool, ForeignTool)
    assert len(tool.request("a" * MAX_CHARACTERS + "#")) == MAX_CHARACTERS
    for _ in range(2 * MIN_CALLS):  # of failures a run would have ended
        with pytest.raises(ToolError, match=r"^the request has 4097 characters, at most 4096$"):
            tool.request("a" * (MAX_CHARACTERS + 1) + "#")
    assert tool.guard.note is None
    assert tool("a") == "A"


def test_a_request_that_is_no_text_is_counted(write: Write) -> None:
    tool = tools.load(write(ECHO.replace('return text.removesuffix("!")', "return 7")))
    with pytest.raises(ToolError, match="the tool failed: an int instead of text"):
        tool.request("1!")
    assert isinstance(tool, ForeignTool) and tool.guard.failures.total() == 1
