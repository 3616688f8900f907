r"""vLLM as an engine: servers at addresses, or in this process.

A server has to be started so that it takes adapters while it runs, and gives the log-probabilities of what it samples
from (docs/engines.md):

    VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve MODEL --enable-lora --max-lora-rank 16 --max-loras 2 \
        --logprobs-mode processed_logprobs

It reads adapters from a folder, which on another machine has to be a shared one (`TMPDIR`).
"""

from __future__ import annotations

import contextlib
import itertools
import operator
import platform
import shutil
import tempfile
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import urllib3

from latent_cot import disk
from latent_cot.model.engine import Completion, Request
from latent_cot.types import UsageError, first_line

CONNECT_SECONDS, ANSWER_SECONDS = 10.0, 600.0
"""A server that does not take a connection, or gives no answer, for so long, or fails, three times, is lost."""
AT_ONCE = 256
"""Requests in progress at one server."""
MAX_LISTED = 1024
"""Tokens that vLLM lets a request allow, or forbid."""
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""For which vLLM has room."""
_FORBIDDEN = -100.0
"""Added to the logit of a token that is forbidden, at temperatures up to `_HOTTEST`."""
_HOTTEST = 3.0
"""vLLM divides `_FORBIDDEN` by the temperature too: hotter, it would forbid no more."""
_PLAIN = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
"""Of what is left out a server takes the value that the model's `generation_config.json` recommends."""


def alphabet(allowed: Sequence[int], vocabulary: int) -> dict[str, Any]:
    """The sampling parameters that let a request choose `allowed` only, of a model with so many logits. Raises
    UsageError where vLLM cannot."""
    if len(allowed) <= MAX_LISTED:
        return {"allowed_token_ids": list(allowed)}
    others = sorted(set(range(vocabulary)).difference(allowed))
    if len(others) > MAX_LISTED:
        n = min(len(allowed), len(others))
        limit = f"vLLM can allow or forbid {MAX_LISTED:,} tokens"
        raise UsageError(f"--rollout.engine: {limit}, and this task's rationales need {n:,}; use transformers")
    return {"logit_bias": dict.fromkeys(others, _FORBIDDEN)}


def sampling(requests: Sequence[Request], vocabulary: int) -> list[dict[str, Any]]:
    """vLLM's parameters of each request, as its servers and its `SamplingParams` both take them."""
    shared = {id(request.allowed): request.allowed for request in requests}  # one or two, of many tokens
    alphabets = {key: alphabet(allowed, vocabulary) for key, allowed in shared.items()}
    hottest = max((one.temperature for one in requests if "logit_bias" in alphabets[id(one.allowed)]), default=0.0)
    if hottest > _HOTTEST:
        why = f"at temperature {hottest:g} vLLM cannot keep tokens out of this task's rationales"
        raise UsageError(f"--rollout.engine: {why}; give at most {_HOTTEST:g}, or use transformers")
    return [
        {
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": request.seed,
            "stop_token_ids": list(request.ends),
            "ignore_eos": True,  # it is among `ends` where it is the stop
            "logprobs": 0,  # of the chosen token
            **_PLAIN,
            **alphabets[id(request.allowed)],
        }
        for request in requests
    ]


class _Lost(Exception):
    """A server does not answer."""


class _Server:
    """One address."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        timeout = urllib3.Timeout(connect=CONNECT_SECONDS, read=ANSWER_SECONDS)
        again = urllib3.Retry(  # a request has a seed: it may be repeated
            2,
            allowed_methods=None,
            backoff_factor=0.5,
            status_forcelist=range(500, 600),
            raise_on_status=False,
            respect_retry_after_header=False,
        )
        self.lost = False
        self._pool = urllib3.PoolManager(maxsize=AT_ONCE, timeout=timeout, retries=again)

    def call(self, path: str, body: Mapping[str, Any]) -> str:
        """What it answers. Raises _Lost if it does not, or did not before, and UsageError if it refuses."""
        if self.lost:
            raise _Lost(f"{self.address} does not answer")
        try:
            answer = self._pool.request("POST", f"{self.address}/v1/{path}", json=body)
            content = answer.data.decode("utf-8", "replace")
        except urllib3.exceptions.HTTPError as error:
            self.lost = True
            raise _Lost(f"{self.address} does not answer ({error})") from error
        if answer.status >= 500:
            self.lost = True
            raise _Lost(f"{self.address} fails ({content:.200})")
        if answer.status >= 400:
            raise UsageError(f"--rollout.engine {self.address}: {path}: {_reason(content)}")
        return content

    def complete(self, model: str, prompt: Sequence[int], parameters: Mapping[str, Any]) -> Completion:
        """Sample once."""
        where = f"--rollout.engine {self.address}"
        content = self.call(
            "completions", {"model": model, "prompt": list(prompt), "return_token_ids": True, **parameters}
        )
        try:
            choice = disk.parse_json(content, where)["choices"][0]
            tokens, log_probs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
            return Completion([operator.index(token) for token in tokens], [float(value) for value in log_probs])
        except (UsageError, KeyError, IndexError, TypeError, ValueError) as error:
            raise UsageError(f"{where}: not what vLLM answers: {content!r:.200}") from error


def _reason(content: str) -> str:
    """What an answer says went wrong, with the remedy."""
    try:
        found = disk.parse_json(content, "")
        message = str(found.get("error", found).get("message", content))
    except (UsageError, AttributeError):
        message = content
    remedies = {
        "rank": "start the server with --max-lora-rank of at least --lora.rank",
        "Not Found": "start it with --enable-lora, and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1",
        "context length": "start it with a larger --max-model-len",
    }
    fitting = [remedy for sign, remedy in remedies.items() if sign.lower() in message.lower()]
    return "; ".join([f"{message:.300}", *fitting[:1]])


class _Versions:
    """The folders that adapters are read from, one for each version: what an engine has cached goes by its name. A
    version is there for as long as somebody asks for it."""

    def __init__(self) -> None:
        self.client = f"latent-cot-{uuid.uuid4().hex[:8]}"
        self.loaded: dict[str, list[str]] = {}
        """Adapter -> the names of its versions that the engine has, the present one last."""
        self.number = 0
        self._asked, self._lock = Counter[str](), threading.Lock()
        """For which versions there are requests, and how many calls have made them."""
        self._open = ExitStack()
        # A folder that all of a cluster share has locks that hold within a machine only: what is another's stays.
        where = f"latent-cot-{platform.node()}"
        self._folder = self._open.enter_context(disk.new_folder(Path(tempfile.gettempdir()) / where))

    def folder(self, name: str) -> Path:
        """Of a version."""
        return self._folder / name

    def new(self, adapter: str, save: Callable[[Path], None]) -> str:
        """Write the next version, and return its name."""
        self.number += 1
        name = f"{self.client}-{adapter}-{self.number}"
        save(self.folder(name))
        return name

    def replace(self, adapter: str, name: str) -> list[str]:
        """Make this the present version. Returns those that nobody asks for any more, whose folders go."""
        with self._lock:
            of_adapter = [*self.loaded.get(adapter, ()), name]
            old = [one for one in of_adapter[:-1] if not self._asked[one]]
            self.loaded[adapter] = [one for one in of_adapter if one not in old]
        for one in old:
            shutil.rmtree(self.folder(one), ignore_errors=True)
        return old

    @contextlib.contextmanager
    def asked(self, adapter: str) -> Iterator[str]:
        """The name of the present version, which stays there meanwhile."""
        with self._lock:
            name = self.loaded[adapter][-1]
            self._asked[name] += 1
        try:
            yield name
        finally:
            with self._lock:
                self._asked[name] -= 1

    def close(self) -> None:
        """Remove them all."""
        self._open.close()


class VllmServers:
    """vLLM servers at addresses, among which requests are spread. One that is lost is done without.

    Args:
        addresses: such as `http://localhost:8000`.
        vocabulary: how many logits the base model has.
    """

    def __init__(self, addresses: Sequence[str], vocabulary: int) -> None:
        self.notes: list[str] = []
        self._servers = [_Server(address) for address in addresses]
        self._vocabulary, self._versions = vocabulary, _Versions()
        self._workers = ThreadPoolExecutor(AT_ONCE * len(addresses))

    def put(self, adapter: str, save: Callable[[Path], None]) -> None:
        name = self._versions.new(adapter, save)
        load = {"lora_name": name, "lora_path": str(self._versions.folder(name))}
        for server in self._alive():
            try:
                server.call("load_lora_adapter", load)
            except _Lost as error:
                self._lose(server, error)
            except UsageError as error:
                if "already been loaded" not in str(error):  # it was asked twice, as its first answer was lost
                    raise
        for old in self._versions.replace(adapter, name):
            self._unload(old)

    def complete(self, adapter: str, requests: Sequence[Request]) -> list[Completion]:
        found = dict[int, Completion]()
        parameters = sampling(requests, self._vocabulary)
        with self._versions.asked(adapter) as name:
            while missing := [k for k in range(len(requests)) if k not in found]:
                asked = [
                    (k, server, self._workers.submit(server.complete, name, requests[k].prompt, parameters[k]))
                    for k, server in zip(missing, itertools.cycle(self._alive()), strict=False)
                ]
                for k, server, answer in asked:
                    try:
                        found[k] = answer.result()
                    except _Lost as error:
                        self._lose(server, error)
        return [found[k] for k in range(len(requests))]

    def close(self) -> None:
        self._workers.shutdown(cancel_futures=True)  # what is still asked for, nobody waits for
        for name in itertools.chain(*self._versions.loaded.values()):
            self._unload(name)
        self._versions.close()

    def _alive(self) -> list[_Server]:
        if not self._servers:
            remedy = "start one and go on with --resume, or set rollout.engine to transformers in config.yaml"
            raise UsageError(f"--rollout.engine: no server is left; {' '.join(self.notes)} {remedy}")
        return list(self._servers)

    def _lose(self, server: _Server, error: _Lost) -> None:
        if server in self._servers:
            self._servers.remove(server)
            self.notes.append(f"{error}; servers that are left: {len(self._servers)}.")

    def _unload(self, name: str) -> None:
        for server in self._servers:
            with contextlib.suppress(_Lost, UsageError):  # it holds an adapter more until it is stopped
                server.call("unload_lora_adapter", {"lora_name": name})


def _room(rank: int) -> int:
    """The smallest that vLLM has room for, of ranks at least this. Raises UsageError."""
    if rank > LORA_RANKS[-1]:
        why = f"--lora.rank {rank}: vLLM has adapters of rank {LORA_RANKS[-1]} at most"
        raise UsageError(f"{why}; give a lower one, or --rollout.engine transformers")
    return next(size for size in LORA_RANKS if size >= rank)


class VllmHere:
    """vLLM in this process, with a second copy of the base model.

    Args:
        folder: of the base model.
        precision: `bfloat16` or `float32`.
        rank: of the adapters.
        vocabulary: how many logits the base model has.
    """

    def __init__(self, folder: Path, *, precision: str, rank: int, vocabulary: int, trust_remote_code: bool) -> None:
        try:
            from vllm import LLM
        except ImportError as error:
            raise UsageError(f"--rollout.engine vllm: pip install 'latent-cot[vllm]' ({error})") from error
        self.notes: list[str] = []
        self._vocabulary, self._versions = vocabulary, _Versions()
        room = _room(rank)
        try:
            self._llm: Any = LLM(
                model=str(folder),
                dtype=precision,
                enable_lora=True,
                max_lora_rank=room,
                max_loras=2,
                logprobs_mode="processed_logprobs",
                skip_tokenizer_init=True,
                trust_remote_code=trust_remote_code,
                **_share_of_card(),
            )
        except Exception as error:  # each of its parts has its own
            raise UsageError(f"--rollout.engine vllm: it does not start: {first_line(error)}") from error

    def put(self, adapter: str, save: Callable[[Path], None]) -> None:
        name = self._versions.new(adapter, save)
        for old in self._versions.replace(adapter, name):
            self._llm.llm_engine.remove_lora(_number(old))

    def complete(self, adapter: str, requests: Sequence[Request]) -> list[Completion]:
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest

        with self._versions.asked(adapter) as name:
            answers = self._llm.generate(
                [{"prompt_token_ids": list(request.prompt)} for request in requests],
                [SamplingParams(detokenize=False, **one) for one in sampling(requests, self._vocabulary)],
                lora_request=LoRARequest(name, _number(name), str(self._versions.folder(name))),
                use_tqdm=False,
            )
        return [_completion(answer.outputs[0]) for answer in answers]

    def close(self) -> None:
        del self._llm
        self._versions.close()


def _share_of_card() -> dict[str, float]:
    """Half of what is free of a GPU, on which the model that is trained lies already: the rest is for its training."""
    if not torch.cuda.is_available():
        return {}
    free, total = torch.cuda.mem_get_info()
    return {"gpu_memory_utilization": 0.5 * free / total}


def _number(name: str) -> int:
    """By which vLLM tells versions apart."""
    return int(name.rsplit("-", 1)[1])


def _completion(output: Any) -> Completion:
    tokens = list(output.token_ids)
    return Completion(tokens, [of_one[token].logprob for token, of_one in zip(tokens, output.logprobs, strict=True)])
