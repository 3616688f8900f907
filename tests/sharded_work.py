"""What `test_sharding.py` runs in several processes: `python -m tests.sharded_work MODEL FOLDER SAVED CHECKPOINTED`

Each process writes what it has found. SAVED is where another number of processes has saved the half of a training,
CHECKPOINTED is 1 for gradient checkpointing.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

from torch import nn
from torch.distributed.tensor import DTensor

from latent_cot.methods import likelihood
from latent_cot.model.lm import LanguageModel
from latent_cot.model.optimise import AdapterOptimiser, Schedule, load_optimizer, save_optimizer
from latent_cot.model.text import TextCodec
from latent_cot.model.tree import TokenTree
from latent_cot.rationales.chain import ChainRules
from latent_cot.rationales.scoring import Group
from tests.methods.test_e_step import queries
from tests.shared_work import gradients, loops
from tests.worlds import FakeTool, language_model, random_chain


def rules_for(lm: LanguageModel) -> ChainRules:
    return ChainRules(TextCodec(lm.tokenizer, allowed_characters="1,="), [FakeTool()], max_tokens=5)


def held(lm: LanguageModel) -> dict[str, int]:
    """Numbers of the base model's weights: in all its layers and elsewhere, those of them that this process holds, and
    the most that it holds at once in a forward pass."""
    base: nn.Module = lm.peft.get_base_model()
    weights = {name: weight for name, weight in base.named_parameters() if "lora_" not in name}

    def here() -> dict[bool, int]:
        """By whether they are a layer's."""
        now: dict[bool, int] = {True: 0, False: 0}
        for name, weight in base.named_parameters():
            if name in weights:
                now[".layers." in name] += (weight.to_local() if isinstance(weight, DTensor) else weight).numel()
        return now

    resting, seen = here(), [0]
    hooks = [one.register_forward_pre_hook(lambda *_: seen.append(sum(here().values()))) for one in base.modules()]
    tree = TokenTree()
    tree.extend(-1, [1, 2, 3])
    lm.hidden(lm.merged("p"), [tree])
    for hook in hooks:
        hook.remove()
    layers = sum(weight.numel() for name, weight in weights.items() if ".layers." in name)
    return {"layers": layers, "layers here": resting[True], "others here": resting[False], "most": max(seen)}


def models(lm: LanguageModel) -> dict[str, list[float]]:
    """Hidden states of each model, all of them asked for before one is run."""
    tree = TokenTree()
    tree.extend(-1, [5, 6, 7])
    lm.copy_adapter("p", "prior")
    merged = {name: lm.merged(name) for name in ("p", "q", "prior")}
    found = {name: lm.hidden(model, [tree]).flatten().tolist() for name, model in merged.items()}
    with lm.without_adapters() as base:
        found["base"] = lm.hidden(base, [tree]).flatten().tolist()
    return {**found, "q again": lm.hidden(merged["q"], [tree]).flatten().tolist()}


def half(lm: LanguageModel, *, resume: Path | None = None, save: Path | None = None) -> list[list[float]]:
    """Train p for two steps, from scratch or from what was saved, and save it; returns its weights."""
    rules, rng = rules_for(lm), random.Random(1)
    optimiser = AdapterOptimiser(lm.parameters("p"), Schedule(1e-2, 4, 1), 1.0, processes=lm.processes)
    if resume is None:
        lm.reset_adapter("p", 5)
    else:
        lm.load_adapter("p", resume)
        load_optimizer(optimiser.adam, resume)
    asked = queries(5)
    groups = [Group(one.model_prompt, [random_chain(rules, rng, 5) for _ in range(2)], one.answer) for one in asked]
    for step in (0, 1) if resume is None else (2, 3):
        likelihood.likelihood_step(lm, "p", groups, rules, optimiser, step, max_tokens=100)
    if save is not None and lm.processes.main:
        lm.save_adapter("p", save)
        save_optimizer(optimiser.adam, save)
    return [weight.flatten().tolist() for weight in lm.parameters("p").values()]


def main(model: str, folder: str, saved: str, checkpointed: str) -> None:
    lm = language_model(Path(model), gradient_checkpointing=bool(int(checkpointed)))
    found: dict[str, Any] = {"sharded": lm.sharded, "held": held(lm), "digest": lm.base_digest()}
    found["models"] = models(lm)
    found["gradients"] = gradients(lm, rules_for(lm))
    found["loops"] = loops(lm)
    half(lm, save=Path(folder) / "half")
    found["resumed"] = half(lm, resume=Path(saved))
    (Path(folder) / f"{lm.processes.index}.json").write_text(json.dumps(found))
    lm.accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
