"""The folder of an exported reasoner: weights, tokenizer, generation settings, and a model card.

    adapter_model.safetensors, adapter_config.json   the adapter in PEFT's format; or, merged into the base model,
    model.safetensors, config.json                   ... a model in transformers' format
    tokenizer.json, tokenizer_config.json            the base model's tokenizer
    generation_config.json                           greedy decoding, the stop, the number of tokens
    latent_cot.json                                  what transformers has no words for: prompt, alphabet, tools, ...
    README.md, solve.py                              the model card, and a program that uses all this

Everything appears at once, by renaming, or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from transformers import GenerationConfig

from latent_cot import __version__, disk
from latent_cot.methods.method import Method
from latent_cot.model import lora, weights
from latent_cot.model.lm import LanguageModel
from latent_cot.run.export.card import render
from latent_cot.run.export.description import Base
from latent_cot.types import Reasoner, UsageError, finite

SETTINGS = "latent_cot.json"
"""Its presence makes a folder an exported reasoner."""


def refuse_unless_free(target: Path, run: Path, *, force: bool) -> None:
    """Raises UsageError if the export may not be put there."""
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target}: is a file; give a folder")
    if target.resolve() == Path.cwd():
        raise UsageError(
            f"{target}: is the working folder, which would be replaced by another; give a new folder in it"
        )
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not force:
        raise UsageError(f"{target}: is not empty; give a new folder, or replace it with --force")
    if not (target / SETTINGS).is_file() or target.resolve() in [run.resolve(), *run.resolve().parents]:
        raise UsageError(f"{target}: holds no exported reasoner (no {SETTINGS}), so --force does not replace it")


def build(
    loop: Method,
    reasoner: Reasoner,
    base: Base,
    description: Mapping[str, Any],
    target: Path,
    *,
    merge: bool,
) -> None:
    """Write everything into `target`; what is there is replaced (see `refuse_unless_free`).

    Args:
        loop: with the run's adapters, see `reasoners.load`.
        merge: the whole model, instead of an adapter.

    Raises UsageError if it cannot be written.
    """
    if not loop.lm.is_finite(reasoner):
        raise UsageError(f"{reasoner} has weights that are no numbers: its training came apart; train it again")
    target = target.absolute()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with disk.new_folder(target) as new:
            if merge:
                _save_merged(loop.lm, reasoner, base, new, trust=loop.config.trust_remote_code)
            else:
                _save_adapter(loop.lm, reasoner, base, new)
            _write_settings(loop, description, new, merge)
            card = new / "README.md"
            text, program = render(description, base, merge)
            disk.write(card, text.encode())
            disk.write(new / "solve.py", program.encode())
            for path in new.rglob("*"):  # a tokenizer may have a folder of chat templates
                if path.is_file():
                    path.chmod(card.stat().st_mode)  # safetensors' files can be read by their owner only
            disk.put_folder(new, target)
    except (OSError, SafetensorError) as error:  # transformers writes by safetensors, which has an error of its own
        raise UsageError(f"{target}: cannot be written ({error}); give another folder") from error


def _write_settings(loop: Method, description: Mapping[str, Any], folder: Path, merge: bool) -> None:
    """The tokenizer's, those of generation, and ours."""
    tokenizer = loop.lm.tokenizer
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # prompts of different lengths are padded
    tokenizer.save_pretrained(folder)
    GenerationConfig(  # greedy, as in tests; tools, and where a chain may end, are beyond it
        do_sample=False,
        max_new_tokens=description["max_tokens"],
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=description["stop_id"],
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=description["forbidden"] or None,
    ).save_pretrained(folder)
    # The programs are in the model card, the tokens in the generation settings.
    settings = {key: value for key, value in description.items() if key not in ("answer", "forbidden", "turn")}
    settings["tools"] = [{key: tool[key] for key in ("name", "description", "trigger")} for tool in settings["tools"]]
    settings |= {"format": 1, "latent_cot": __version__, "merged": merge}
    text = json.dumps(finite(settings), indent=2, ensure_ascii=False, allow_nan=False)
    disk.write(folder / SETTINGS, f"{text}\n".encode())


def _save_adapter(lm: LanguageModel, reasoner: Reasoner, base: Base, folder: Path) -> None:
    lm.save_adapter(reasoner, folder)
    config = LoraConfig.from_pretrained(str(folder))
    config.base_model_name_or_path, config.revision = base.name, base.revision
    config.save_pretrained(folder)


@torch.no_grad()
def _save_merged(lm: LanguageModel, reasoner: Reasoner, base: Base, folder: Path, trust: bool) -> None:
    """The weights that the run was tested with, to the last bit (in the same precision): merged and rounded as
    `LanguageModel.merged` does."""
    wrapped = lm.peft.get_base_model()
    model, _ = weights.load_model_and_tokenizer(base.folder, dtype=lm.dtype, trust_remote_code=trust)
    for name, layer in wrapped.named_modules():
        if isinstance(layer, LoraLayer):
            target: Any = model.get_submodule(name)
            target.weight.copy_(lora.merged_weight(layer, reasoner))
    with weights.quiet_transformers():
        model.save_pretrained(folder)
