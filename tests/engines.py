"""Engines to test with: one that is obviously right, and a server that speaks as vLLM does."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import torch
from peft import PeftModel

from latent_cot.model.engine import Completion, Request
from latent_cot.model.weights import load_model_and_tokenizer
from tests.oracles.scoring import last_logits

SECONDS_TO_START = 600
"""That a vLLM server may take: it compiles."""


class ReferenceEngine:
    """Runs a whole sequence for each token, with PEFT's own model of the adapter."""

    def __init__(self, folder: Path) -> None:
        self.notes: list[str] = []
        self.folder = folder
        self.adapters: dict[str, PeftModel] = {}
        self.requests: list[Request] = []
        self.vocabulary = int(load_model_and_tokenizer(folder, dtype=torch.float32)[0].config.vocab_size)

    def put(self, adapter: str, save: Callable[[Path], None]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            save(Path(folder))
            self.load(adapter, Path(folder))

    def load(self, adapter: str, folder: Path) -> None:
        base, _ = load_model_and_tokenizer(self.folder, dtype=torch.float32)
        self.adapters[adapter] = PeftModel.from_pretrained(base, str(folder)).eval()

    def complete(self, adapter: str, requests: Sequence[Request]) -> list[Completion]:
        self.requests += requests
        return [self._complete(self.adapters[adapter], request) for request in requests]

    @torch.no_grad()
    def _complete(self, model: torch.nn.Module, request: Request) -> Completion:
        generator = torch.Generator().manual_seed(request.seed)
        tokens: list[int] = []
        log_probs: list[float] = []
        while len(tokens) < request.max_tokens and not (tokens and tokens[-1] in request.ends):
            logits = last_logits(model, [*request.prompt, *tokens])[list(request.allowed)]
            log_prob = (logits / (request.temperature or 1.0)).log_softmax(-1)
            greedy = request.temperature == 0
            k = int(log_prob.argmax() if greedy else torch.multinomial(log_prob.exp(), 1, generator=generator))
            tokens.append(request.allowed[k])
            log_probs.append(float(log_prob[k]))
        return Completion(tokens, log_probs)

    def close(self) -> None:
        self.adapters.clear()


class FakeVllm(ThreadingHTTPServer):
    """A server with the part of vLLM's interface that is used, and its faults on demand."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, engine: ReferenceEngine, max_rank: int = 64, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.engine, self.max_rank = engine, max_rank
        self.answers: dict[str, tuple[int, str]] = {}
        """Path -> status and content of what is answered instead."""
        self.dies_after: int | None = None
        """Completions after which it hangs up."""
        self.completed = 0
        self.failures = 0
        """Requests that are answered by 503 before others are."""
        self.lost_answers = 0
        """Adapters that are loaded, and said not to be, before others are."""
        self.lock = threading.Lock()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeVllm

    def do_GET(self) -> None:
        self._answer(200, {"data": [{"id": str(self.server.engine.folder)}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        path, server = self.path.removeprefix("/v1/"), self.server
        if server.failures:
            server.failures -= 1
            self._send(503, "busy")
        elif path in server.answers:
            status, content = server.answers[path]
            self._send(status, content)
        elif path == "load_lora_adapter":
            rank = json.loads((Path(body["lora_path"]) / "adapter_config.json").read_text())["r"]
            if rank > server.max_rank:
                message = f"LoRA rank {rank} is greater than max_lora_rank {server.max_rank}."
                self._answer(400, {"error": {"message": message}})
                return
            if body["lora_name"] in server.engine.adapters:
                message = f"The lora adapter '{body['lora_name']}' has already been loaded."
                self._answer(400, {"error": {"message": message}})
                return
            with server.lock:
                server.engine.load(body["lora_name"], Path(body["lora_path"]))
            if server.lost_answers:
                server.lost_answers -= 1
                self._send(502, "bad gateway")
            else:
                self._send(200, "Success: LoRA adapter added.")
        elif path == "unload_lora_adapter":
            del server.engine.adapters[body["lora_name"]]
            self._send(200, "Success")
        else:
            self._complete(body)

    def _complete(self, body: dict[str, Any]) -> None:
        server = self.server
        with server.lock:
            server.completed += 1
            if server.dies_after is not None and server.completed > server.dies_after:
                self.close_connection = True
                return
            vocabulary = range(server.engine.vocabulary)
            forbidden = {int(token) for token in body.get("logit_bias", ())}
            allowed = body.get("allowed_token_ids") or [token for token in vocabulary if token not in forbidden]
            sampling = {name: body[name] for name in ("max_tokens", "temperature", "top_p", "seed")}
            request = Request(body["prompt"], allowed, body["stop_token_ids"], **sampling)
            (completion,) = server.engine.complete(body["model"], [request])
        choice = {"token_ids": completion.tokens, "logprobs": {"token_logprobs": completion.log_probs}}
        self._answer(200, {"choices": [choice]})

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        self._send(status, json.dumps(content))

    def _send(self, status: int, content: str) -> None:
        data = content.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def serving(engine: ReferenceEngine, **settings: Any) -> Iterator[FakeVllm]:
    """A server that runs in a thread."""
    server = FakeVllm(engine, **settings)
    often = {"poll_interval": 0.01}  # how soon it sees that it is to end
    thread = threading.Thread(target=server.serve_forever, kwargs=often, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def vllm_server(model: Path, log: Path) -> Iterator[str]:
    """vLLM itself, as docs/engines.md says to start it; the address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = (
        f"--model {model} --host 127.0.0.1 --port {port} --dtype float32 --max-model-len 512 --enforce-eager "
        "--enable-lora --max-lora-rank 16 --max-loras 2 --logprobs-mode processed_logprobs"
    )
    own = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *flags.split()]
    with log.open("wb") as said:
        server = subprocess.Popen(command, env=os.environ | own, stdout=said, stderr=said, cwd=log.parent)
    try:
        for _ in range(SECONDS_TO_START):
            assert server.poll() is None, log.read_text()[-2000:]
            with contextlib.suppress(OSError), urlopen(f"http://127.0.0.1:{port}/health"):
                break
            time.sleep(1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()
