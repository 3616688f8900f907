"""Whatever a data file or a model's folder holds: it is read, or one line says what is wrong with it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig

from latent_cot import tasks
from latent_cot.model.weights import load_model_and_tokenizer, quiet_transformers
from tests.attack.cases import attack, bad_bytes, damaged, written
from tests.attack.test_folders import refused

ROW = {"question": "12 + 7 - 5", "answer": 14, "rationale": " 12 + 7 =, 19 - 5 ="}


@attack(few=100, many=500)
@given(data=st.data())
def test_data_files(data: st.DataObject, tmp_path: Path) -> None:
    name = data.draw(st.sampled_from(tasks.names()))
    kind = data.draw(st.sampled_from(["json", "jsonl", "csv", "txt"]))
    rows = [data.draw(damaged(ROW)) for _ in range(2)]
    content = b"\n".join(map(written, rows)) if kind != "json" else written(rows)
    if kind == "csv":
        content = b"question,answer\n" + content
    file = tmp_path / f"data.{kind}"
    file.write_bytes(data.draw(st.just(content) | bad_bytes(content)))
    refused(lambda: tasks.load(name).read(str(file)), rows=True)


FILES = ("config.json", "tokenizer_config.json", "tokenizer.json", "generation_config.json")
VALUES: dict[str, list[Any]] = {
    "hidden_size": [0, -1, 10**9, "32", [32], 31, None, 1e308],
    "num_hidden_layers": [0, 10**7, -3, "2", 1.5],
    "vocab_size": [1, 10**12, 97],
    "num_attention_heads": [0, 3, 10**9],
    "num_key_value_heads": [0, 3, 10**9],
    "intermediate_size": [10**9],
    "head_dim": [10**9],
    "architectures": ["LlamaForCausalLM", [1], ["Evil"], {}],
    "model_type": ["bert", "", 7, None, "t5"],
    "rope_parameters": [{"rope_type": "none"}, {"rope_theta": 0}, [], "x"],
    "dtype": ["float7", 3],
    "transformers_weights": ["/etc/passwd", "../x.bin", 3],
    "quantization_config": [{"quant_method": "x"}, {"load_in_4bit": True}, 1],
}
ODD = [(key, value) for key, values in VALUES.items() for value in values]


@attack(few=25, many=100)
@given(data=st.data())
def test_model_folders(data: st.DataObject, tmp_path: Path, tiny_model_dir: Path) -> None:
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "model", dirs_exist_ok=True))
    name = data.draw(st.sampled_from(FILES))
    if name == "config.json" and data.draw(st.booleans()):
        key, value = data.draw(st.sampled_from(ODD))
        content = written({**json.loads((folder / name).read_text()), key: value})
    elif not data.draw(st.integers(0, 4)):
        name = "model.safetensors"
        content = data.draw(bad_bytes((folder / name).read_bytes()))
    else:
        kept = (folder / name).read_bytes()
        content = data.draw(damaged(json.loads(kept)).map(written) | bad_bytes(kept))
    (folder / name).write_bytes(content)
    with quiet_transformers():
        refused(lambda: load_model_and_tokenizer(folder, dtype=torch.float32))


@pytest.mark.parametrize(("key", "value"), ODD)
def test_odd_configurations(key: str, value: object, tmp_path: Path, tiny_model_dir: Path) -> None:
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_bytes(written({**config, key: value}))
    refused(lambda: load_model_and_tokenizer(folder, dtype=torch.float32))


def _pickled(folder: Path, name: str) -> None:
    """An index that leads to a pickle, which would run."""
    (folder / "model.safetensors").rename(folder / "w.safetensors")
    torch.save({}, folder.parent / "pickle.bin")
    torch.save({}, folder / "pickle.bin")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("name", ["pickle.bin", "../pickle.bin", "/tmp/x.safetensors", "../x.safetensors"])
def test_an_index_names_safetensors_of_its_folder_only(
    name: str, tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    _pickled(folder, name)
    reached: list[object] = []
    monkeypatch.setattr(torch, "load", lambda *found, **_: reached.append(found))
    assert refused(lambda: load_model_and_tokenizer(folder, dtype=torch.float32))
    assert not reached


@pytest.mark.parametrize(
    "name", ["generation_config.json", "special_tokens_map.json", "vocab.json", "chat_template.jinja"]
)
def test_a_pipe_in_a_models_folder_is_not_waited_for(name: str, tmp_path: Path, tiny_model_dir: Path) -> None:
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    assert refused(lambda: load_model_and_tokenizer(folder, dtype=torch.float32))


def test_an_adapter_in_a_models_folder_does_not_lead_elsewhere(tmp_path: Path, tiny_model_dir: Path) -> None:
    folder, elsewhere = (shutil.copytree(tiny_model_dir, tmp_path / name) for name in ("model", "elsewhere"))
    LoraConfig(base_model_name_or_path=str(elsewhere), task_type="CAUSAL_LM").save_pretrained(str(folder))
    assert refused(lambda: load_model_and_tokenizer(folder, dtype=torch.float32))
