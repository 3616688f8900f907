"""Runs that sample by vLLM's servers: what a user sees when one is lost, is another model's, or is none."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from latent_cot.cli import main
from latent_cot.config.schema import RolloutConfig
from latent_cot.config.settings import from_dict
from latent_cot.model import vllm
from latent_cot.model.engine import Completion, Request
from latent_cot.model.vllm import VllmServers, _room, alphabet
from latent_cot.types import UsageError
from tests.conftest import ROOT
from tests.engines import FakeVllm, ReferenceEngine, serving
from tests.worlds import language_model

SMOKE = ["em", "--task", "arithmetic", "--preset", "smoke", "--precision", "fp32"]
SHORT = [
    *("--evaluation.size", "2", "--evaluation.max-tokens", "4", "--evaluation.diagnostics", "0", "--lora.rank", "4"),
    *("--init-step.steps", "1", "--m-step.steps", "1", "--e-step.steps", "1", "--e-step.samples", "2"),
    *("--data.demonstrations", "2", "--data.unlabelled", "4", "--data.validation", "2"),
]
REQUEST = Request([5, 6], allowed=[7, 8, 9], ends=[9], max_tokens=3, temperature=1.0, top_p=1.0, seed=0)


@pytest.fixture
def servers(tiny_model_dir: Path) -> Iterator[tuple[FakeVllm, FakeVllm]]:
    with serving(ReferenceEngine(tiny_model_dir)) as one, serving(ReferenceEngine(tiny_model_dir)) as other:
        yield one, other


def run(engine: str, folder: Path, model: Path, *more: str) -> int:
    flags = ["--model", str(model), "--output-dir", str(folder), "--rollout.engine", engine]
    return main([*SMOKE, *SHORT, *flags, *more])


def notes(folder: Path) -> list[str]:
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [event["text"] for event in events if event["kind"] == "note"]


def test_a_run_goes_on_with_the_server_that_is_left_and_ends_as_by_itself(
    servers: tuple[FakeVllm, FakeVllm], tiny_model_dir: Path, tmp_path: Path
) -> None:
    lost, kept = servers
    lost.dies_after = 10
    assert run(f"{lost.address},{kept.address}", tmp_path / "run", tiny_model_dir) == 0
    (told,) = [note for note in notes(tmp_path / "run") if lost.address in note]
    assert told.endswith("servers that are left: 1.")
    assert not kept.engine.adapters  # taken back at the end
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    gaps = [event["mismatch"] for event in events if event["kind"] == "e_step"]
    assert gaps
    assert max(gaps) < 1e-3  # in fp32
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert set(results["accuracy"]["1"]) == {"p"}


def test_an_adapter_that_was_loaded_though_the_answer_was_lost(
    servers: tuple[FakeVllm, FakeVllm], tiny_model_dir: Path, tmp_path: Path
) -> None:
    server, _ = servers
    server.lost_answers = 1
    assert run(server.address, tmp_path / "run", tiny_model_dir) == 0


def test_vllm_has_room_for_some_ranks_only() -> None:
    assert [_room(rank) for rank in (1, 4, 8, 12, 512)] == [1, 8, 8, 16, 512]
    with pytest.raises(UsageError, match=r"--lora\.rank 513: vLLM has adapters of rank 512 at most"):
        _room(513)


def test_a_run_without_a_server_is_saved_and_goes_on_by_itself(
    servers: tuple[FakeVllm, FakeVllm], tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (server, _), folder = servers, tmp_path / "run"
    server.dies_after = 30
    assert run(server.address, folder, tiny_model_dir) == 2
    assert "no server is left" in (said := capsys.readouterr().err)
    assert "--resume" in said
    server.dies_after = None
    assert main(["em", "--output-dir", str(folder), "--resume"]) == 0


def answer_of(tokens: str, log_probs: str) -> str:
    return f'{{"choices": [{{"token_ids": {tokens}, "logprobs": {{"token_logprobs": {log_probs}}}}}]}}'


@pytest.mark.parametrize(
    ("path", "answer", "expected"),
    [
        ("load_lora_adapter", (404, '{"detail": "Not Found"}'), "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"),
        ("completions", (400, '{"error": {"message": "maximum context length is 64"}}'), "larger --max-model-len"),
        ("completions", (200, "<html>"), "not what vLLM answers"),
        ("completions", (200, '{"choices": []}'), "not what vLLM answers"),
        ("completions", (200, answer_of('["5"]', "[0.0]")), "not what vLLM answers"),
        ("completions", (200, answer_of("[5]", "[null]")), "not what vLLM answers"),
        ("completions", (200, "[" * 100_000), "not what vLLM answers"),
        ("completions", (200, answer_of("[]", "[]")), "which no rationale may be"),
        ("completions", (200, answer_of("[-1]", "[0.0]")), "which no rationale may be"),
        ("completions", (200, answer_of("[9999999]", "[0.0]")), "which no rationale may be"),
        ("completions", (200, answer_of("[0, 0]", "[0.0]")), "which no rationale may be"),
        ("completions", (500, "out of memory"), "no server is left"),
    ],
)
def test_what_a_server_says_is_told_with_the_remedy(
    servers: tuple[FakeVllm, FakeVllm],
    tiny_model_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    path: str,
    answer: tuple[int, str],
    expected: str,
) -> None:
    server, _ = servers
    server.answers[path] = answer
    assert run(server.address, tmp_path / "run", tiny_model_dir) == 2
    assert expected in (said := capsys.readouterr().err)
    assert "--rollout.engine" in said
    assert "Traceback" not in said


def test_an_adapter_above_the_servers_rank(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(ReferenceEngine(tiny_model_dir), max_rank=2) as server:
        assert run(server.address, tmp_path / "run", tiny_model_dir) == 2
    assert "start the server with --max-lora-rank of at least --lora.rank" in capsys.readouterr().err


def test_a_server_with_another_base_model(
    tiny_model: Callable[[str], Path], tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Another(ReferenceEngine):
        """Of the same shape; what it samples by is near to uniform."""

        def complete(self, adapter: str, requests: list[Request]) -> list[Completion]:  # type: ignore[override]
            found = super().complete(adapter, requests)
            return [Completion(one.tokens, [2.0 * value - 1 for value in one.log_probs]) for one in found]

    with serving(Another(tiny_model_dir)) as server:
        assert run(server.address, tmp_path / "run", tiny_model_dir) == 2
    assert "--logprobs-mode processed_logprobs" in capsys.readouterr().err


def test_an_address_nobody_answers(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm, "CONNECT_SECONDS", 0.5)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        assert run(address, tmp_path / "run", tiny_model_dir) == 2
    assert "does not answer" in capsys.readouterr().err


def test_an_engine_that_is_none_and_one_that_is_not_installed(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for wrong in ("sglang", "localhost:8000", "http://"):
        with pytest.raises(UsageError, match="transformers, vllm, or addresses"):
            from_dict({"rollout": {"engine": wrong}}, "x")
    assert RolloutConfig().engine == "transformers"
    monkeypatch.setitem(__import__("sys").modules, "vllm", None)
    assert run("vllm", tmp_path / "run", tiny_model_dir) == 2
    assert "pip install 'latent-cot[vllm]'" in capsys.readouterr().err


def test_an_alphabet_is_allowed_or_the_rest_forbidden_or_too_much() -> None:
    assert alphabet([3, 5], 50_000) == {"allowed_token_ids": [3, 5]}
    rest = alphabet([i for i in range(5000) if i not in (7, 4999)], 5000)
    assert rest == {"logit_bias": {7: -100.0, 4999: -100.0}}
    with pytest.raises(UsageError, match="use transformers"):
        alphabet(range(0, 5000, 2), 5000)


def test_requests_are_spread_and_come_back_in_order(servers: tuple[FakeVllm, FakeVllm], tiny_model_dir: Path) -> None:
    lm = language_model(tiny_model_dir)
    alone = ReferenceEngine(tiny_model_dir)
    together = VllmServers([server.address for server in servers], alone.vocabulary)
    with lm.sampling_by(together):
        requests = [
            Request([5, 6 + k], [7, 8, 9], [9], max_tokens=3, temperature=1.0, top_p=1.0, seed=k) for k in range(9)
        ]
        found = lm.complete("q", requests)
    with lm.sampling_by(alone):
        expected = lm.complete("q", requests)
    assert [one.tokens for one in found] == [one.tokens for one in expected]
    assert {server.completed for server in servers} == {4, 5}


def test_a_server_that_fails_is_asked_again_and_one_that_is_lost_is_not(servers: tuple[FakeVllm, FakeVllm]) -> None:
    server, _ = servers
    asked = vllm._Server(server.address)
    server.answers["ping"] = (200, "pong")
    server.failures = 2
    assert asked.call("ping", {}) == "pong"
    server.failures = 3
    for _ in range(2):
        with pytest.raises(vllm._Lost):
            asked.call("ping", {})
    assert server.failures == 0, "it would answer now"


def test_nobody_waits_for_what_is_asked_for_when_it_ends(
    servers: tuple[FakeVllm, FakeVllm], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm, "AT_ONCE", 1)
    together = VllmServers([servers[0].address], 99)
    together._versions.loaded["q"] = ["q"]
    calls: list[object] = []

    def complete(*arguments: object) -> Completion:
        calls.append(arguments)
        time.sleep(0.1)
        raise UsageError("no")

    monkeypatch.setattr(vllm._Server, "complete", complete)
    with pytest.raises(UsageError):
        together.complete("q", [REQUEST] * 50)
    together.close()
    assert len(calls) < 5


def test_a_version_stays_while_somebody_asks_for_it(
    servers: tuple[FakeVllm, FakeVllm], tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests that wait for their turn are of the adapter that was the present one when they were made."""
    monkeypatch.setattr(vllm, "AT_ONCE", 1)
    server, lm = servers[0], language_model(tiny_model_dir)
    engine = VllmServers([server.address], server.engine.vocabulary)
    free, complete = threading.Event(), vllm._Server.complete

    def slow(*arguments: Any) -> Completion:
        assert free.wait(60)
        return complete(*arguments)

    monkeypatch.setattr(vllm._Server, "complete", slow)
    with lm.sampling_by(engine), ThreadPoolExecutor() as thread:
        lm.publish("q")
        first = thread.submit(engine.complete, "q", [REQUEST] * 3)
        while not +engine._versions._asked:
            time.sleep(0.01)
        for _ in range(3):
            lm.copy_adapter("p", "q")  # another version
            lm.publish("q")
        held = set(server.engine.adapters)
        free.set()
        assert len(first.result()) == 3
        lm.copy_adapter("p", "q")
        lm.publish("q")
        assert len(server.engine.adapters) == 1 < len(held) == 2, "the first and the present one; then this one"


def test_a_server_is_left_no_choice() -> None:
    """What a request leaves out, a server takes from what the model's maker recommends."""
    (asked,) = vllm.sampling([REQUEST], 5000)
    neutral = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
    assert neutral.items() <= asked.items()


def test_at_a_high_temperature_no_token_can_be_forbidden() -> None:
    few = replace(REQUEST, temperature=1000.0)
    vllm.sampling([few], 5000)
    many = replace(few, allowed=range(4999))
    with pytest.raises(UsageError, match=r"at temperature 1000 .* at most 3"):
        vllm.sampling([few, many], 5000)
    vllm.sampling([few, replace(many, temperature=2.0)], 5000)


def test_the_script_for_two_machines_is_one() -> None:
    script = ROOT / "examples" / "two_machines.slurm"
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    assert "--rollout.engine" in script.read_text()
