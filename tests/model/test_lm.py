"""Adapters: made, copied, merged, saved; and what the model can do, found by trying."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

import pytest
import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import nn

from latent_cot.model import architecture
from latent_cot.model import tree as tree_module
from latent_cot.model.architecture import Capabilities, Trees, run_trees
from latent_cot.model.lm import LanguageModel, _is_of, _renamed
from latent_cot.model.tree import TokenTree
from latent_cot.model.weights import load_model_and_tokenizer
from latent_cot.types import UsageError
from tests.worlds import is_gpt2, language_model, shake

IDS = [5, 6, 7, 8, 9]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def folder(request: pytest.FixtureRequest, tiny_model: Callable[[str], Path]) -> Path:
    return tiny_model(request.param)


@pytest.fixture
def lm(folder: Path) -> LanguageModel:
    return language_model(folder)


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=torch.tensor([IDS])).logits[0]
    return found


def base_logits(folder: Path) -> torch.Tensor:
    return logits(load_model_and_tokenizer(folder, dtype=torch.float32)[0])


def test_fresh_adapters_are_the_base_model(folder: Path) -> None:
    lm = language_model(folder, perturb=False)
    for adapter in ("p", "q"):
        torch.testing.assert_close(logits(lm.merged(adapter)), base_logits(folder))
        assert all(bool(w.any()) for name, w in lm.parameters(adapter).items() if "lora_A" in name)


def test_fresh_adapters_depend_on_the_seed_only(lm: LanguageModel) -> None:
    drawn = []
    for seed in (1, 1, 2):
        lm.reset_adapter("p", seed)
        drawn.append(torch.cat([w.detach().clone().flatten() for w in lm.parameters("p").values()]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_merged_is_unmerged(lm: LanguageModel, folder: Path) -> None:
    found = {}
    for adapter in ("p", "q"):
        with lm.trainable(adapter) as model:
            found[adapter] = logits(model)
        torch.testing.assert_close(logits(lm.merged(adapter)), found[adapter], atol=1e-4, rtol=1e-4)
    base = base_logits(folder)
    for a, b in ((found["p"], found["q"]), (found["p"], base), (found["q"], base)):
        assert float((a - b).abs().max()) > 0.1


def test_the_merged_copy_follows_the_adapter(lm: LanguageModel) -> None:
    """After a training step, a copy and a reset; the other adapter's copy is not touched."""
    other = logits(lm.merged("p"))
    with lm.trainable("q") as model:
        loss = model(input_ids=torch.tensor([IDS]), labels=torch.tensor([IDS])).loss
        loss.backward()
        with torch.no_grad():
            for weight in lm.parameters("q").values():
                assert weight.grad is not None
                weight.sub_(0.5 * weight.grad)
                weight.grad = None
        trained = logits(model)
    torch.testing.assert_close(logits(lm.merged("q")), trained, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits(lm.merged("p")), other)
    lm.copy_adapter("p", "q")
    torch.testing.assert_close(logits(lm.merged("q")), other)
    lm.reset_adapter("q", 0)
    assert not torch.allclose(logits(lm.merged("q")), other)
    torch.testing.assert_close(logits(lm.merged("p")), other)


def test_interpolation_scales_the_change_of_the_base_weights(lm: LanguageModel) -> None:
    def changes(adapter: str) -> list[torch.Tensor]:
        layers = [m for m in lm.peft.modules() if isinstance(m, LoraLayer)]
        return [cast("Any", layer).get_delta_weight(adapter).detach().clone() for layer in layers]

    before, other, merged = changes("q"), changes("p"), logits(lm.merged("q"))
    lm.interpolate("q", 0.25)
    torch.testing.assert_close(changes("q"), [0.25 * change for change in before])
    torch.testing.assert_close(changes("p"), other)
    with lm.trainable("q") as model:
        torch.testing.assert_close(logits(lm.merged("q")), logits(model), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(logits(lm.merged("q")), merged, atol=1e-2)


def test_merging_many_times_does_not_drift(lm: LanguageModel) -> None:
    before = logits(lm.merged("q"))
    for _ in range(20):
        lm.copy_adapter("q", "q")
        lm.merged("q")
    assert torch.equal(logits(lm.merged("q")), before)


@pytest.mark.parametrize("adapter", ["p", "q"])
def test_only_the_trained_adapter_gets_gradients(lm: LanguageModel, adapter: Literal["p", "q"]) -> None:
    with lm.trainable(adapter) as model:
        model(input_ids=torch.tensor([IDS])).logits.sum().backward()
    own = {id(weight) for weight in lm.parameters(adapter).values()}
    for name, weight in lm.peft.named_parameters():
        assert (weight.grad is not None) == (id(weight) in own), name
        assert weight.requires_grad == (id(weight) in own), name


def test_parameters_are_disjoint_and_matched(lm: LanguageModel) -> None:
    p, q = lm.parameters("p"), lm.parameters("q")
    assert len(p) == len(q) > 0
    assert not {id(w) for w in p.values()} & {id(w) for w in q.values()}


def test_a_layer_may_be_called_as_an_adapter_is() -> None:
    name = "model.layers.0.attn.q.lora_A.p.weight"
    assert _is_of(name, "p") and not _is_of(name, "q")
    assert _renamed(name, "p", "q") == "model.layers.0.attn.q.lora_A.q.weight"
    assert _renamed("model.p.attn.p.lora_B.p.weight", "p", "prior") == "model.p.attn.p.lora_B.prior.weight"


def test_one_more_adapter_has_no_dropout_switched_on(folder: Path) -> None:
    base, tokenizer = load_model_and_tokenizer(folder, dtype=torch.float32)
    lora = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.5, fan_in_fan_out=is_gpt2(base))
    lm = LanguageModel(base, tokenizer, lora)
    lm.copy_adapter("q", "prior")
    assert not any(module.training for module in lm.peft.modules())


def test_the_frozen_weights_are_held_once(lm: LanguageModel) -> None:
    frozen = {w.data_ptr() for w in lm.peft.get_base_model().parameters()}
    own = [sum(w.data_ptr() not in frozen for w in lm.merged(adapter).parameters()) for adapter in ("p", "q")]
    adapted = sum("lora_A" in name for name in lm.parameters("p"))
    assert own == [adapted, adapted]


# -- saving --------------------------------------------------------------------------------------------


def test_a_rounded_digest_of_the_base_model_is_the_same_in_every_precision(folder: Path) -> None:
    lora = LoraConfig(r=4, target_modules="all-linear")
    loaded = (load_model_and_tokenizer(folder, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    exact, narrow = (LanguageModel(base, tokenizer, lora) for base, tokenizer in loaded)
    assert exact.base_digest() != narrow.base_digest()
    before = exact.base_digest(rounded=True)
    assert before == narrow.base_digest(rounded=True)
    with torch.no_grad():
        next(w for name, w in exact.peft.named_parameters() if "lora_" not in name).mul_(2)
    assert exact.base_digest(rounded=True) != before


def test_a_saved_adapter_is_the_same_in_another_model(lm: LanguageModel, folder: Path, tmp_path: Path) -> None:
    expected = logits(lm.merged("q"))
    lm.save_adapter("q", tmp_path / "saved")
    other = language_model(folder)
    shake(other, 0)
    other.merged("p")
    other.load_adapter("p", tmp_path / "saved")
    assert torch.equal(logits(other.merged("p")), expected)
    for mine, theirs in zip(lm.parameters("q").values(), other.parameters("p").values(), strict=True):
        assert torch.equal(mine, theirs)


def test_peft_loads_a_saved_adapter(lm: LanguageModel, folder: Path, tmp_path: Path) -> None:
    lm.save_adapter("q", tmp_path / "saved")
    base, _ = load_model_and_tokenizer(folder, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(base, str(tmp_path / "saved")).eval()
    torch.testing.assert_close(logits(loaded), logits(lm.merged("q")), atol=1e-4, rtol=1e-4)


def damage_truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def damage_shapes(file: Path) -> None:
    save_file({name: weight[:1].clone() for name, weight in load_file(file).items()}, file)


def damage_names(file: Path) -> None:
    save_file({f"other.{name}": weight for name, weight in load_file(file).items()}, file)


@pytest.mark.parametrize("damage", [damage_truncate, damage_shapes, damage_names, Path.unlink])
def test_a_damaged_adapter_is_refused(lm: LanguageModel, tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    file = tmp_path / "saved" / "adapter_model.safetensors"
    lm.save_adapter("q", tmp_path / "saved")
    before = logits(lm.merged("q"))
    damage(file)
    with pytest.raises(UsageError, match=r"adapter_model\.safetensors"):
        lm.load_adapter("q", tmp_path / "saved")
    assert torch.equal(logits(lm.merged("q")), before)


# -- capabilities -----------------------------------------------------------------------------------------


def test_what_the_tiny_models_can_do(lm: LanguageModel) -> None:
    assert lm.capabilities.trees == "flat"
    assert lm.capabilities.linear_head


def test_a_capped_head_is_found_out(folder: Path) -> None:
    """Logits that are squashed after the head are no linear map of the hidden state."""
    base, _ = load_model_and_tokenizer(folder, dtype=torch.float32)
    forward = base.forward

    def capped(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits = 2 * torch.tanh(output.logits / 2)
        return output

    base.forward = capped
    assert not Capabilities.of(base).linear_head


def test_a_model_that_ignores_its_mask_takes_no_trees(folder: Path) -> None:
    base, _ = load_model_and_tokenizer(folder, dtype=torch.float32)
    base.set_attn_implementation("eager")
    forward = base.forward

    def plain(*args: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    base.forward = plain
    assert Capabilities.of(base).trees == "paths"


def test_a_model_with_an_attention_of_its_own_gets_a_mask(folder: Path) -> None:
    base, _ = load_model_and_tokenizer(folder, dtype=torch.float32)
    base.set_attn_implementation("eager")
    assert Capabilities.of(base).trees == "masked"
    assert base.config._attn_implementation == "eager"


@pytest.mark.parametrize("largest_square", [0, 256])
@pytest.mark.parametrize("shared", [0, 20])
def test_gradients_through_trees_are_those_through_paths(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, largest_square: int, shared: int
) -> None:
    """Small trees and large ones, with a beginning in common or not."""
    monkeypatch.setattr(tree_module, "_LARGEST_SQUARE", largest_square)
    trees = []
    for size in (2, 5, 3):
        tree = TokenTree()
        root = tree.extend(-1, [*range(30, 30 + shared), *IDS[:size]])
        tree.extend(root[-1], [20, 21, 24])
        tree.extend(tree.extend(root[-1], [22])[0], [23])
        trees.append(tree)
    found = []
    kinds: tuple[Trees, ...] = ("flat", "masked", "paths")
    for kind in kinds:
        with lm.trainable("q") as model:
            lm.logits(run_trees(model, trees, kind, linear_head=True)).log_softmax(-1)[:, 3].sum().backward()
        gradients = {name: weight.grad for name, weight in lm.parameters("q").items()}
        assert all(gradient is not None and bool(gradient.any()) for gradient in gradients.values())
        found.append(gradients)
        for weight in lm.parameters("q").values():
            weight.grad = None
    for name, gradient in found[2].items():
        torch.testing.assert_close(found[0][name], gradient, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(found[1][name], gradient, atol=1e-4, rtol=1e-3)


def test_what_an_adapted_layer_returns_may_be_written_into(lm: LanguageModel) -> None:
    """Gemma 3n scales it in place."""
    _, layer = lm._adapted[0]
    x = torch.randn(2, 3, layer.in_features, generator=torch.Generator().manual_seed(0))
    gradients = []
    for in_place in (True, False):
        with lm.trainable("q"):
            y = layer(x)
            y = y.mul_(2.0) if in_place else y * 2.0
            y.square().sum().backward()
        weights = [weight for weight in lm.parameters("q").values() if weight.grad is not None]
        gradients.append([weight.grad for weight in weights])
        for weight in weights:
            weight.grad = None
    assert len(gradients[0]) == 2
    torch.testing.assert_close(gradients[0], gradients[1])


def test_gradient_checkpointing_changes_no_gradient(folder: Path) -> None:
    """Each layer runs twice in an update, and once without gradients."""
    tree = TokenTree()
    tree.extend(tree.extend(-1, IDS)[-1], [20, 21])
    gradients, runs = [], []
    for checkpointing in (False, True):
        lm = language_model(folder, gradient_checkpointing=checkpointing)
        calls = 0

        def count(*_: Any) -> None:
            nonlocal calls
            calls += 1

        layer = next(module for _, module in lm._adapted)
        layer.register_forward_hook(count)
        with lm.trainable("q") as model:
            lm.logits(lm.hidden(model, [tree])).log_softmax(-1)[:, 3].sum().backward()
        gradients.append({name: weight.grad for name, weight in lm.parameters("q").items()})
        runs.append(calls)
        with torch.no_grad():
            lm.hidden(lm.peft.get_base_model(), [tree])  # type: ignore[arg-type]
        assert calls == runs[-1] + 1
    assert runs == [1, 2]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_hidden_states_come_tree_after_tree(lm: LanguageModel) -> None:
    """Whichever way they are computed."""
    trees = []
    for size in (2, 5, 3):
        tree = TokenTree()
        root = tree.extend(-1, IDS[:size])
        tree.extend(root[0], [20, 21])
        tree.extend(root[-1], [22])
        trees.append(tree)
    model = lm.merged("q")
    expected = torch.cat(
        [
            model(input_ids=torch.tensor([[tree.tokens[n] for n in tree.path(node)]])).logits[0, -1:]
            for tree in trees
            for node in range(len(tree))
        ]
    )
    with torch.no_grad():
        by_tree = lm.logits(lm.hidden(model, trees))
        by_path = lm.logits(run_trees(model, trees, "paths", linear_head=lm.capabilities.linear_head))
        some = lm.logits(lm.hidden(model, trees), torch.tensor([3, 50]))
        most = lm.logits(lm.hidden(model, trees), torch.arange(5, by_tree.shape[1]))
    torch.testing.assert_close(most, by_tree[:, 5:])
    torch.testing.assert_close(by_tree, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(by_path, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(some, expected[:, [3, 50]], atol=1e-4, rtol=1e-4)


def test_paths_need_no_larger_passes_than_their_trees(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reward is asked for behind each prefix: as paths these are many times the tokens that they are as a tree."""
    tree = TokenTree()
    trunk = tree.extend(-1, list(range(30, 38)))
    for node in trunk:
        tree.extend(node, [20, 21])
    model, sizes, features_of = lm.merged("q"), list[int](), architecture.features_of

    def spied(*arguments: Any, **inputs: Any) -> torch.Tensor:
        sizes.append(inputs["input_ids"].numel())
        return features_of(*arguments, **inputs)

    monkeypatch.setattr(architecture, "features_of", spied)
    passes: list[None] = []
    expected = run_trees(model, [tree, tree], "paths", linear_head=True)
    assert len(sizes) == 1 and sizes[0] > 2 * len(tree), "with gradients everything is kept anyway"
    with torch.no_grad():
        found = run_trees(model, [tree, tree], "paths", linear_head=True, between=lambda: passes.append(None))
    assert len(passes) + 1 == len(sizes[1:]) > 1
    assert max(sizes[1:]) <= 2 * len(tree)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
