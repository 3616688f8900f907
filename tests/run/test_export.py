"""An exported reasoner, used by a process that does not have this package, answers as the run does."""

from __future__ import annotations

import ast
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, cast

import huggingface_hub
import huggingface_hub.constants
import pytest
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import latent_cot as lc
from latent_cot import tasks
from latent_cot.cli import main
from latent_cot.config.schema import data_request
from latent_cot.evaluation.evaluate import Outcome
from latent_cot.model import weights
from latent_cot.model.lm import LanguageModel
from latent_cot.rationales import chain
from latent_cot.run import reasoners
from latent_cot.run.export.card import _literal
from latent_cot.run.export.description import _name, _portable, _tool, _without_folders
from latent_cot.run.export.folder import refuse_unless_free
from latent_cot.run.run_folder import RunFolder
from latent_cot.tools import OF_PROGRAMS
from latent_cot.types import DataRequest, Example, Rationale, Reasoner, Tool, UsageError
from tests.conftest import ROOT
from tests.tiny import build_tiny_model

HUB_ID = "owner/tiny"
REVISION = "0123456789abcdef0123456789abcdef01234567"
N = 100

CANDIDATES_TASK = '''
"""Odd or even: picked by its likelihood, at any token, with a system prompt in braces."""
from latent_cot.types import DataRequest, Example, Task, TaskData

class Parity(Task):
    name = "parity"
    description = "is a number odd?"
    tools = ()
    stop = None
    allowed_characters = "abcdefghijklmnopqrstuvwxyz "
    step_delimiter = None
    default_splits = ("test",)

    def allows(self, piece):
        return "e" not in piece

    def load(self, request):
        made = [self.example(str(n), "odd" if n % 2 else "even") for n in range(40)]
        return TaskData((), tuple(made[:30]), tuple(made[30:]))

    def split(self, name, size=None):
        made = [self.example(str(n), "odd" if n % 2 else "even") for n in range(100, 140)]
        return [self.example("7<|endoftext|>8", "even"), *made][:size]  # its name, not the token

    def read(self, path):
        return []

    def example(self, question, answer=None):
        y = None if answer is None else f"; {answer}"
        return Example(x=f"{{number}} {question}:", y=y, answer=answer, question=question)

    def posterior_prompt(self, example):
        return f"{example.x} {example.answer}."

    def candidates(self, example):
        return {"odd": "; odd", "even": "; even"}

    def answer(self, rationale):
        return None

    def grade(self, example, answer):
        return answer is not None and answer == example.answer

TASK = Parity()
'''


def snapshot(hub: Path, hub_id: str, model: Path) -> None:
    """Let a Hugging Face cache hold `model` under a name."""
    repository = hub / f"models--{hub_id.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(REVISION)
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / REVISION).symlink_to(model)


pytestmark = pytest.mark.usefixtures("fresh_accelerate")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """A Hugging Face cache with the tiny model."""
    folder = tmp_path_factory.mktemp("hub")
    snapshot(folder, HUB_ID, tiny_model_dir)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, hub: Path) -> Path:
    """A short run of a model from the hub: enough that its chains differ, and call the calculator."""
    folder = tmp_path_factory.mktemp("run") / "run"
    steps = "{steps: 100, batch_size: 8, learning_rate: 0.01}"
    settings = f"init_step: {steps}\ndata: {{demonstrations: 40, unlabelled: 8, validation: 4}}\n"
    settings += "lora: {rank: 16, alpha: 32}\n"
    settings += "augmentation: {history_dropout: 0.0, gap_share: 0.0}\n"
    (folder.parent / "settings.yaml").write_text(f"{settings}e_step: {{steps: 1, learning_rate: 0.001}}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub))
        command = ["em", "--preset", "smoke", "--precision", "fp32", "--model", HUB_ID, "--output-dir", str(folder)]
        assert main([*command, "--q-sees", "question", "--config", str(folder.parent / "settings.yaml")]) == 0
    return folder


@pytest.fixture
def offline_hub(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub))


def card(folder: Path) -> tuple[dict[str, Any], str, str]:
    """Front matter, text and program of an export's README."""
    _, front, body = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    [program] = re.findall(r"^```python\n(.*?)^```$", body, re.MULTILINE | re.DOTALL)
    return yaml.safe_load(front), body, program


def solve_with_card(folder: Path, hub: Path, questions: Sequence[Any]) -> list[tuple[str, str | None]]:
    """(chain, answer) of each question, by the README's program as it stands, in a process of its own."""
    _, _, program = card(folder)
    assert (folder / "solve.py").read_text(encoding="utf-8") == program
    program += (
        f"\n    import json, sys\n    assert 'latent_cot' not in sys.modules\n"
        f"    print(json.dumps(solve(json.loads({json.dumps(json.dumps(questions))}))))\n"
    )
    environment = {**os.environ, "HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    asked = questions[:1] if isinstance(questions[0], str) else []  # on the command line too
    done = subprocess.run(
        [sys.executable, "-c", program, *asked],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ours = [
        line for line in done.stderr.splitlines() if "deprecated" in line and "is_gradient_check" not in line
    ]  # PEFT asks for that
    assert not ours
    return [(chain, answer) for chain, answer in json.loads(done.stdout.splitlines()[-1])]


def solve_here(run: Path, reasoner: Reasoner, split: str, n: int, *, trusted: bool = False) -> list[Outcome]:
    """What `latent-cot eval` finds."""
    source = reasoners.find(str(run), None, trusted=trusted)
    task = tasks.load(source.config.task)
    loop = reasoners.load(source, task.load(data_request(source.config)))
    return list(loop.answer_tests(reasoner, task.split(split, n), seed=0, votes=1, temperature=0.0))


# -- the same answers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("reasoner", "flags"), [("q", []), ("q", ["--merge"])])
@pytest.mark.usefixtures("offline_hub")
def test_the_cards_program_gives_the_runs_greedy_chains(
    reasoner: Reasoner, flags: list[str], run: Path, hub: Path, tmp_path: Path
) -> None:
    target = tmp_path / "exported"
    assert main(["export", str(run), str(target), "--reasoner", reasoner, *flags]) == 0
    outcomes = solve_here(run, reasoner, "4-operands", N)
    assert len({o.rationales[0].text for o in outcomes}) > N / 3, "the chains are too much alike to tell anything"
    assert sum(call.result is not None for o in outcomes for call in o.rationales[0].calls) > N / 4
    assert sum(o.answer is not None for o in outcomes) > N / 20
    found = solve_with_card(target, hub, [outcome.example.question for outcome in outcomes])
    assert found == [(outcome.rationales[0].text, outcome.answer) for outcome in outcomes]


@pytest.mark.usefixtures("offline_hub")
def test_results_that_are_too_long_are_refused_by_both(
    run: Path, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chain, "MAX_RESULT_TOKENS", 4)
    target = tmp_path / "exported"
    assert main(["export", str(run), str(target), "--reasoner", "q"]) == 0
    outcomes = [
        outcome
        for split in ("4-digits", "6-digits", "8-operands")
        for outcome in solve_here(run, "q", split, 500)
        if any(call.result or "more than 4" in (call.error or "") for call in outcome.rationales[0].calls)
    ]  # few: this model writes most calls wrongly
    calls = [call for outcome in outcomes for call in outcome.rationales[0].calls]
    assert any("more than 4" in (call.error or "") for call in calls) and any(call.result for call in calls)
    found = solve_with_card(target, hub, [outcome.example.question for outcome in outcomes])
    assert found == [(outcome.rationales[0].text, outcome.answer) for outcome in outcomes]


def test_a_task_with_candidates_and_braces_in_its_prompt(tmp_path: Path, hub: Path, tiny_model_dir: Path) -> None:
    """p judges by itself what follows its chains, q leaves that to the base model."""
    (tmp_path / "parity.py").write_text(CANDIDATES_TASK)
    settings = "q_sees: question\np_init: base\nrollout: {granularity: token, tools: []}\n"
    settings += "m_step: {steps: 8, learning_rate: 0.02}\n"
    (tmp_path / "settings.yaml").write_text(f"{settings}evaluation: {{splits: [test]}}\n")
    folder, target = tmp_path / "run", tmp_path / "exported"
    arguments = ["--task", str(tmp_path / "parity.py"), "--model", str(tiny_model_dir), "--output-dir", str(folder)]
    base = ["em", "--preset", "smoke", "--precision", "fp32", "--config", str(tmp_path / "settings.yaml")]
    assert main([*base, *arguments]) == 0
    cases: list[tuple[Reasoner, list[str]]] = [("p", []), ("q", ["--merge"])]
    for reasoner, flags in cases:
        command = ["export", str(folder), str(target), "--reasoner", reasoner, "--trust-code", "--force", *flags]
        assert main(command) == 0
        outcomes = solve_here(folder, reasoner, "test", 20, trusted=True)
        found = solve_with_card(target, hub, [outcome.example.question for outcome in outcomes])
        assert found == [(outcome.rationales[0].text, outcome.answer) for outcome in outcomes]
        assert {answer for _, answer in found} <= {"odd", "even"}
        assert any(chain for chain, _ in found) and not any("e" in chain for chain, _ in found)


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """A server of OpenAI's completions API, with no more of it than transformers' and vLLM's have: greedy text of a
    merged export, streamed, until `generation_config.json` says stop."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    stop, forbidden = model.generation_config.eos_token_id, model.generation_config.suppress_tokens

    class Handler(BaseHTTPRequestHandler):
        @torch.no_grad()
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.path == "/v1/completions" and asked["stream"] and asked["temperature"] == 0
            self.send_response(200)
            self.end_headers()
            ids, shown = tokenizer(asked["prompt"]).input_ids, asked["prompt"]
            for _ in range(asked["max_tokens"]):
                logits = model(torch.tensor([ids])).logits[0, -1]
                assert set(range(len(logits))) - set(forbidden) == {int(token) for token in asked["logit_bias"]}
                logits[forbidden] = -torch.inf
                ids.append(int(logits.argmax()))
                text = tokenizer.decode(ids)
                chunk = {"choices": [{"text": text[len(shown) :]}]}
                try:
                    self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
                except OSError:  # it was closed
                    return
                shown = text
                if ids[-1] == stop:
                    break
            self.wfile.write(b"data: [DONE]\n\n")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.usefixtures("offline_hub")
def test_chains_that_a_server_writes(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`examples/served.py`: the run's chains, up to the stop, which a server takes anywhere."""
    target = tmp_path / "exported"
    assert main(["export", str(run), str(target), "--reasoner", "q", "--merge"]) == 0
    outcomes = solve_here(run, "q", "4-operands", 40)
    questions = [outcome.example.question for outcome in outcomes]
    capsys.readouterr()
    with serving(target) as url, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["served.py", str(target), *questions, "--url", url])
        runpy.run_path(str(ROOT / "examples" / "served.py"), run_name="__main__")
    found = capsys.readouterr().out.splitlines()
    expected = [f"{outcome.example.question} ->{outcome.rationales[0].text}" for outcome in outcomes]
    # It may stop earlier, never write anything else.
    assert all(wanted.startswith(line) for line, wanted in zip(found, expected, strict=True))
    assert any("=" in line for line in found if line in expected)


SERVED: dict[str, dict[str, Any]] = {
    "latent_cot.json": {"tools": [], "fields": ["question"], "special_tokens": True, "prompt": "{question} ="},
    "config.json": {"text_config": {"vocab_size": 8}},
    "generation_config.json": {},
}


@pytest.mark.parametrize(
    ("files", "settings", "said"),
    [
        ([], {}, "no exported model"),
        (["latent_cot.json"], {}, "an adapter alone; a server needs a model: latent-cot export --merge"),
        (["latent_cot.json", "config.json"], {}, "no exported model .*generation_config"),
        (list(SERVED), {"tools": [{"name": "modulo"}]}, "no tool 'modulo'.*by --tools FILE"),
        (list(SERVED), {"fields": ["question", "answer"]}, "hold the answer, too: solve.py takes both"),
    ],
)
def test_what_cannot_be_served_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], settings: dict[str, Any], said: str
) -> None:
    for file in files:
        changes = settings if file == "latent_cot.json" else {}
        (tmp_path / file).write_text(json.dumps(SERVED[file] | changes))
    monkeypatch.setattr(sys, "argv", ["served.py", str(tmp_path), "1 + 2"])
    with pytest.raises(SystemExit, match=said):
        runpy.run_path(str(ROOT / "examples" / "served.py"), run_name="__main__")


def test_no_code_of_an_export_is_run_to_serve_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tool's name could be that of a file."""
    (tmp_path / "evil.py").write_text("print('run')\nfrom latent_cot.tools.calculator import Calculator as TOOL\n")
    for file, content in SERVED.items():
        tool = {"tools": [{"name": f"{tmp_path / 'evil.py'}:TOOL"}]} if file == "latent_cot.json" else {}
        (tmp_path / file).write_text(json.dumps(content | tool))
    monkeypatch.setattr(sys, "argv", ["served.py", str(tmp_path), "1 + 2"])
    with pytest.raises(SystemExit, match=r"no tool .*evil\.py"):
        runpy.run_path(str(ROOT / "examples" / "served.py"), run_name="__main__")
    assert not capsys.readouterr().out


def test_what_a_server_refuses_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(422)
            self.end_headers()
            self.wfile.write(b"unexpected field: add_special_tokens")

        def log_message(self, *_: Any) -> None:
            pass

    for file, content in SERVED.items():
        more = {"special_tokens": False, "max_tokens": 9, "stop": "."} if file == "latent_cot.json" else {}
        (tmp_path / file).write_text(json.dumps(content | more))
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/v1"
        monkeypatch.setattr(sys, "argv", ["served.py", str(tmp_path), "1 + 2", "--url", url])
        try:
            with pytest.raises(SystemExit, match=r"422.*unexpected field: add_special_tokens"):
                runpy.run_path(str(ROOT / "examples" / "served.py"), run_name="__main__")
        finally:
            server.shutdown()
            thread.join()


CHAT_TEMPLATE = (
    "{% for m in messages %}<|pad|>{{ m.role }}\n{{ m.content | trim }}<|endoftext|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|pad|>assistant\n{% endif %}"
)


def test_a_prompt_has_the_special_tokens_before_it_only(tmp_path: Path, hub: Path) -> None:
    model = build_tiny_model(tmp_path / "model", variant="distinct_pad")
    tokenizer = AutoTokenizer.from_pretrained(model)
    bos = tokenizer.convert_tokens_to_ids("<|pad|>")
    special = [("<|pad|>", bos), ("<|endoftext|>", tokenizer.eos_token_id)]
    form = TemplateProcessing(single="<|pad|> $A <|endoftext|>", special_tokens=special)
    tokenizer.backend_tokenizer.post_processor = form
    tokenizer.save_pretrained(model)
    (tmp_path / "parity.py").write_text(CANDIDATES_TASK)
    settings = "p_init: base\nrollout: {granularity: token, tools: []}\nevaluation: {splits: [test]}\n"
    (tmp_path / "settings.yaml").write_text(settings)
    folder, target = tmp_path / "run", tmp_path / "exported"
    arguments = ["--task", str(tmp_path / "parity.py"), "--model", str(model), "--output-dir", str(folder)]
    base = ["em", "--preset", "smoke", "--precision", "fp32", "--config", str(tmp_path / "settings.yaml")]
    assert main([*base, *arguments]) == 0
    assert main(["export", str(folder), str(target), "--reasoner", "p", "--trust-code"]) == 0
    assert json.loads((target / "latent_cot.json").read_text())["begins"] == [bos]
    outcomes = solve_here(folder, "p", "test", 12, trusted=True)
    found = solve_with_card(target, hub, [outcome.example.question for outcome in outcomes])
    assert found == [(outcome.rationales[0].text, outcome.answer) for outcome in outcomes]


def test_a_chat_template(tmp_path: Path, hub: Path) -> None:
    """p, q and the exported program read the same turns."""
    model = build_tiny_model(tmp_path / "model", variant="distinct_pad")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = {"default": CHAT_TEMPLATE, "with_tools": CHAT_TEMPLATE}
    tokenizer.save_pretrained(model)
    settings = "init_step: {steps: 30, learning_rate: 0.01}\nrollout: {max_tokens: 120}\ndata: {demonstrations: 8}\n"
    (tmp_path / "settings.yaml").write_text(f"{settings}evaluation: {{max_tokens: 40, size: 4}}\n")
    folder, target = tmp_path / "run", tmp_path / "exported"
    arguments = ["--task", "qa", "--model", str(model), "--output-dir", str(folder), "--q-sees", "question"]
    base = ["em", "--preset", "smoke", "--precision", "fp32", "--config", str(tmp_path / "settings.yaml")]
    assert main([*base, *arguments]) == 0
    notes = [event["text"] for event in RunFolder.open(folder).events() if event["kind"] == "note"]
    assert any("chat template" in note for note in notes)
    cases: list[Reasoner] = ["p", "q"]
    for reasoner in cases:
        assert main(["export", str(folder), str(target), "--reasoner", reasoner, "--force"]) == 0
        outcomes = solve_here(folder, reasoner, "test", 8)
        found = solve_with_card(target, hub, [outcome.example.question for outcome in outcomes])
        assert found == [(outcome.rationales[0].text, outcome.answer) for outcome in outcomes]
        assert any(chain for chain, _ in found)
        ending = "1 + 2?<|endoftext|>\n<|pad|>assistant\n 3"  # which it does not
        [(chain, _)] = solve_with_card(target, hub, [ending])
        assert chain == lc.load(folder).sample(ending, n=1, temperature=0, reasoner=reasoner)[0].text
        prompt = json.loads((target / "latent_cot.json").read_text())["prompt"]
        assert prompt == "<|pad|>user\nQuestion: {question} Answer:<|endoftext|>\n<|pad|>assistant\n"
        turn = ("<|pad|>user\n", "Question: {question} Answer:", "<|endoftext|>\n<|pad|>assistant\n")
        assert repr(turn).replace("'", '"') in (target / "solve.py").read_text(), (
            "as the run encodes them, each by itself"
        )
        (others,) = [path for path in target.iterdir() if path.is_dir()]
        assert others.stat().st_mode & 0o111, "a folder of templates can be entered"


@pytest.mark.real_model
@pytest.mark.parametrize("flags", [[], ["--merge"]])
def test_the_real_model_answers_alike(flags: list[str], tmp_path: Path) -> None:
    """The run is the folder in LATENT_COT_RUN, or a short one in fp32. In bf16 two ways to compute the same logits are
    rounded differently, and where two tokens are nearly as likely, as they often are after a short training, answers
    differ: of a trained run, one of a hundred may."""
    folder = Path(os.environ.get("LATENT_COT_RUN", tmp_path / "run"))
    if not folder.exists():
        settings = "rounds: 1\ninit_step: {steps: 40, batch_size: 8}\ndata: {demonstrations: 50, unlabelled: 8}\n"
        (tmp_path / "settings.yaml").write_text(f"{settings}evaluation: {{splits: [4-operands], max_tokens: 60}}\n")
        arguments = ["--config", str(tmp_path / "settings.yaml"), "--output-dir", str(folder)]
        assert main(["em", "--preset", "smoke", "--precision", "fp32", "--q-sees", "question", *arguments]) == 0
    base = weights.resolve(weights.DEFAULT_MODEL)
    snapshot(tmp_path / "hub", weights.HUB_ID, base)
    target = tmp_path / "exported"
    assert main(["export", str(folder), str(target), "--reasoner", "q", *flags]) == 0
    outcomes = solve_here(folder, "q", "4-operands", N)
    found = solve_with_card(target, tmp_path / "hub", [outcome.example.question for outcome in outcomes])
    alike = sum(answer == outcome.answer for (_, answer), outcome in zip(found, outcomes, strict=True))
    assert alike >= N - 1


# -- the files -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("offline_hub")
def test_another_precision_than_the_runs_is_told(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`precision: auto` is decided by the machine."""
    elsewhere = tmp_path / "run"
    shutil.copytree(run, elsewhere)
    config = elsewhere / "config.yaml"
    config.write_text(config.read_text().replace("precision: fp32", "precision: bf16"))
    for folder, told in ((run, False), (elsewhere, True)):
        target = tmp_path / f"exported-{told}"
        assert main(["export", str(folder), str(target), "--reasoner", "q", "--merge"]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert ("is in bf16 on this machine; the run was trained in fp32" in said) == told
        assert ("trained and tested in another precision" in (target / "README.md").read_text()) == told


def test_results_without_a_figure_are_exported(run: Path, tmp_path: Path, offline_hub: None) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    results = json.loads((folder / "results.json").read_text())
    number = max(results["accuracy"])
    unknown = {"accuracy": None, "correct": 0, "n": 0, "interval_95": [0.0, 1.0]}
    results["accuracy"][number]["q"] = {"empty": unknown}
    results["posterior"] = {number: {"before": {}}}
    (folder / "results.json").write_text(json.dumps(results))
    assert main(["export", str(folder), str(tmp_path / "exported"), "--reasoner", "q"]) == 0
    assert "| `empty` | - | 0.0 to 100.0 | 0 |" in (tmp_path / "exported" / "README.md").read_text()


@pytest.mark.parametrize("text", ["a\u2028b\u2029c", "\u200b\xad\x85\x1b", "a\"'\\\n"])
def test_text_in_a_program_is_that_text(text: str) -> None:
    assert ast.literal_eval(_literal(text)) == text
    assert ast.literal_eval(_literal((text, text))) == (text, text)


@pytest.mark.usefixtures("offline_hub")
@pytest.mark.parametrize("flags", [[], ["--merge"]])
def test_no_file_of_an_export_names_a_path_of_this_machine(
    run: Path, hub: Path, tmp_path: Path, flags: list[str]
) -> None:
    target = tmp_path / "exported"
    assert main(["export", str(run), str(target), "--reasoner", "q", *flags]) == 0
    texts = {path.name: path.read_text(errors="replace") for path in target.iterdir()}
    of_machine = [str(tmp_path), str(run.parent), str(hub), str(weights.resolve(weights.DEFAULT_MODEL).parent)]
    assert not [name for name, text in texts.items() if any(path in text for path in of_machine)]


@pytest.mark.usefixtures("offline_hub")
def test_others_can_load_what_it_names(run: Path, tmp_path: Path) -> None:
    target = tmp_path / "exported"
    assert main(["export", str(run), str(target), "--reasoner", "q"]) == 0
    config = json.loads((target / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (HUB_ID, REVISION)
    assert (
        load_file(target / "adapter_model.safetensors").keys()
        == load_file(run / "q" / "adapter_model.safetensors").keys()
    )
    generation = GenerationConfig.from_pretrained(target)
    tokenizer = AutoTokenizer.from_pretrained(target)
    assert (generation.do_sample, generation.max_new_tokens) == (False, 40)
    assert tokenizer.decode([generation.eos_token_id]) == "."
    settings = json.loads((target / "latent_cot.json").read_text())
    assert settings["prompt"] == "Question: {question} = ? Answer:"
    assert [tool["trigger"] for tool in settings["tools"]] == ["="]
    assert {path.stat().st_mode & 0o777 for path in target.iterdir()} == {(target / "README.md").stat().st_mode & 0o777}


@pytest.mark.usefixtures("offline_hub")
def test_what_cannot_be_written_is_said(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """safetensors has an error of its own for a full disk."""

    def fill(*_: object) -> None:
        raise SafetensorError("No space left on device (os error 28)")

    monkeypatch.setattr(LanguageModel, "save_adapter", fill)
    assert main(["export", str(run), str(tmp_path / "new")]) == 2
    assert "No space left" in capsys.readouterr().err and not list(tmp_path.iterdir())
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(run), "."]) == 2
    assert "is the working folder" in capsys.readouterr().err


def test_no_folder_is_told() -> None:
    assert (
        _name("/home/me/my files/t.csv") == "t.csv"
        and _name("hub:owner/name?split=test") == "hub:owner/name?split=test"
    )
    files = ["/home/me/my files/t.csv", "hub:owner/name"]
    for note in (
        "/home/me/my files/t.csv: 5 questions.",
        "hub:owner/name: 1/2 of them",
        "https://a.b/c/d, /etc/x.csv",
    ):
        found = _without_folders(note, files)
        assert found == note.replace("/home/me/my files/", "").replace("/etc/", "")


@pytest.mark.usefixtures("offline_hub")
def test_the_card_says_what_was_measured(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), str(tmp_path / "exported"), "--reasoner", "q"]) == 0
    front, body, _ = card(tmp_path / "exported")
    assert front["base_model"] == HUB_ID and front["library_name"] == "peft"
    measured = json.loads((run / "results.json").read_text())["accuracy"]["1"]["q"]
    for split, one in measured.items():
        low, high = (f"{100 * bound:.1f}" for bound in one["interval_95"])
        assert f"| `{split}` | {100 * one['accuracy']:.1f} | {low} to {high} | {one['n']} |" in body
    assert "demonstrated rationale: 40; questions with no more than their answer: 8" in body
    assert "before q's training (n = 4 questions)" in body
    assert "## Limits" in body and "## Licence" in body


@pytest.mark.usefixtures("offline_hub")
def test_an_unfinished_run_says_so(run: Path, tmp_path: Path) -> None:
    stopped = Path(shutil.copytree(run, tmp_path / "stopped"))
    for name in ("p", "q"):
        shutil.rmtree(stopped / name)
    (stopped / "results.json").unlink()
    assert main(["export", str(stopped), str(tmp_path / "exported"), "--reasoner", "p"]) == 0
    assert "was not finished" in card(tmp_path / "exported")[1]
    assert "This is p" not in card(tmp_path / "exported")[1], "the figures may be of an earlier moment"
    settings = json.loads((tmp_path / "exported" / "latent_cot.json").read_text(), parse_constant=pytest.fail)
    assert settings["outcome"]["decoding"]["votes"] == 1


# -- what is refused, and that a failure leaves nothing behind --------------------------------------------


def refused(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    assert main(["export", *map(str, argv)]) == 2
    return capsys.readouterr().err


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "exported").touch()
    with pytest.raises(UsageError, match="is a file; give a folder"):
        refuse_unless_free(tmp_path / "exported", tmp_path / "run", force=True)


class Doubler:
    """A tool without a form that exports can carry along."""

    name, description, trigger = "to-double", "twice as much", "=>"


def test_a_tool_without_a_portable_form_is_left_to_write() -> None:
    told = _tool(cast("Tool", Doubler()))
    assert told["is_left_to_write"] and told["function"] == "to_double"
    written: dict[str, Any] = {}
    exec(told["portable"], written)  # noqa: S102 -- ours, with the tool's name in it
    with pytest.raises(NotImplementedError, match="what the tool to-double does"):
        written["to_double"]("1 =>")
    with pytest.raises(UsageError, match=r"must define to_double\(text\)"):
        _portable(type("Odd", (), {"portable": "x = 1"})(), "tool to-double", "to_double", "text")


@pytest.mark.usefixtures("offline_hub")
def test_a_folder_that_is_not_empty(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "mine").touch()
    assert "--force" in refused(capsys, run, target)
    assert "holds no exported reasoner" in refused(capsys, run, target, "--force")
    assert [path.name for path in target.iterdir()] == ["mine"]
    assert "holds no exported reasoner" in refused(capsys, run, run.parent, "--force")
    (target / "mine").unlink()
    assert main(["export", str(run), str(target)]) == 0
    assert "--force" in refused(capsys, run, target)
    assert main(["export", str(run), str(target), "--merge", "--force"]) == 0
    assert not (target / "adapter_config.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


@pytest.mark.usefixtures("offline_hub")
def test_all_or_nothing(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> str:
        raise OSError("no space left on device")

    target = tmp_path / "target"
    assert main(["export", str(run), str(target)]) == 0
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    monkeypatch.setattr("latent_cot.run.export.folder.render", fail)
    assert main(["export", str(run), str(target), "--force"]) == 2
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
    assert main(["export", str(run), str(tmp_path / "other")]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_a_model_that_has_moved_is_named_as_the_runs(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(run, tmp_path / "run")
    file = folder / "config.yaml"
    file.write_text(re.sub("(?m)^model: .*", "model: /no/such/model", file.read_text()))
    found = refused(capsys, folder, tmp_path / "target")
    assert "config.yaml: its `model` is /no/such/model, which is not there any more" in found and "--model" not in found


def test_a_base_model_is_no_run(tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no adapter to export" in refused(capsys, tiny_model_dir, tmp_path / "target")


def test_no_tool_has_a_name_of_the_program() -> None:
    program = (ROOT / "latent_cot" / "run" / "export" / "program.txt").read_text()
    imported = re.findall(r"(?m)^(?:from \S+ )?import (.*)$", program)
    made = re.findall(r"(?m)^(?:def |class )?([A-Za-z_]+)(?:\(| = |:$)", program)
    assert {name for names in imported for name in names.split(", ")} | set(made) == OF_PROGRAMS


# -- portable forms ------------------------------------------------------------------------------------


def test_the_portable_answer_is_the_tasks() -> None:
    task: Any = tasks.load("arithmetic")
    namespace: dict[str, Any] = {}
    exec(compile(task.portable, "portable", "exec"), namespace)  # noqa: S102
    example: Example = task.load(DataRequest(demonstrations=1, unlabelled=0, validation=0)).demonstrations[0]
    assert example.z is not None
    assert namespace["answer"](example.z, " 14") == "14"
    assert namespace["answer"](example.z, None) is None
    assert task.answer(Rationale((), (), (True,), "")) is None
