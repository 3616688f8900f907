"""What a causal LM of any architecture can do, found by trying, and the ways to run it over token trees.

Whether a mask of four dimensions, or position ids, are honoured depends on the architecture, and so does what its
output layer makes of the last hidden state. So each way is tried on a few tokens when a model is loaded, and held
against the one that always works.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from latent_cot.model import attention
from latent_cot.model.limits import limits_of
from latent_cot.model.tree import TokenTree, flatten, linear_paths

Trees = Literal["flat", "masked", "paths"]


def run_trees(
    model: PreTrainedModel,
    trees: Sequence[TokenTree],
    kind: Trees,
    *,
    linear_head: bool,
    between: Callable[[], object] = lambda: None,
) -> Tensor:
    """(nodes, H) hidden states, or logits, at the nodes of `trees`, run in one of the ways of `Capabilities.trees`.

    Args:
        between: called before each forward pass but the first.
    """
    if kind == "paths":
        return _run_paths(model, trees, linear_head, between)
    device = model.device
    batch = flatten(trees)
    if kind == "flat":
        mask = attention.lay_out(batch, model)
    else:
        mask = attention.additive(batch.visible()[None, None].to(device), model.dtype)
    ids, places = (row[None].to(device) for row in (batch.input_ids, batch.position_ids))
    features = features_of(model, linear_head, input_ids=ids, position_ids=places, attention_mask=mask)
    return features[0].index_select(0, batch.rows.to(device))


def _run_paths(
    model: PreTrainedModel, trees: Sequence[TokenTree], linear_head: bool, between: Callable[[], object]
) -> Tensor:
    """(nodes, H) hidden states, or logits, at the nodes of `trees`, each leaf's path run by itself."""
    paths = linear_paths(trees)
    offsets = list(accumulate(map(len, trees), initial=0))
    # Without gradients nothing is kept of a pass: none needs more tokens than the trees have, or the longest path.
    longest = max(len(path) for _, path in paths)
    at_once = len(paths) if torch.is_grad_enabled() else max(1, offsets[-1] // longest)
    found: list[Tensor] = []
    place: dict[int, int] = {}
    """Node -> its row of what was found."""
    for first in range(0, len(paths), at_once):
        if first:
            between()
        part = paths[first : first + at_once]
        width = max(len(path) for _, path in part)
        ids, places, mask = (torch.zeros(len(part), width, dtype=torch.long) for _ in range(3))
        cells: list[int] = []
        for row, (t, path) in enumerate(part):
            size = len(path)
            ids[row, :size], places[row, :size] = torch.tensor([trees[t].tokens, trees[t].positions])[:, path]
            mask[row, :size] = 1
            for column, node in enumerate(path):
                if offsets[t] + node not in place:
                    place[offsets[t] + node] = len(place)
                    cells.append(row * width + column)
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        if not all(tree.gapless for tree in trees):
            inputs["position_ids"] = places  # only then: not every architecture takes them
        features = features_of(model, linear_head, **{name: value.to(model.device) for name, value in inputs.items()})
        found.append(features.flatten(0, 1)[torch.tensor(cells, device=features.device)])
    order = torch.tensor([place[node] for node in range(offsets[-1])])
    return torch.cat(found)[order.to(found[0].device)]


def features_of(model: PreTrainedModel, linear_head: bool, *, use_cache: bool = False, **inputs: Any) -> Tensor:
    """(B, n, H) hidden states of the last layer or, without a linear head, (B, n, V) logits."""
    output = (model.base_model if linear_head else model)(use_cache=use_cache, **inputs)
    features: Tensor = output.last_hidden_state if linear_head else output.logits
    return features


@dataclass(frozen=True)
class Capabilities:
    """What an architecture can do, found by trying it on a few tokens when it is loaded."""

    linear_head: bool
    """Its logits are its output embedding times its last hidden state (no soft-capping, no scaling), so
    that logits can be computed for some rows and some tokens only."""
    trees: Trees
    """How token trees are run. `flat`: one behind the other, by an attention function of our own (attention.py).
    `masked`: likewise, where the model honours a four-dimensional attention mask and position ids: a score is computed
    for every pair of nodes. `paths`: each path of a tree by itself: slower, the same numbers."""
    cache_argument: str
    """The name its forward pass gives the key-value cache."""
    window: int | None
    """Some layers look back no further than so many tokens; None: all see everything. The mask of a token tree would
    take the place of that of a window, so longer trees are run path by path."""
    columns: int | None = None
    """A row may have no more of them: behind, attention is another (limits.py). Longer trees are run path by path."""
    positions: bool = True
    """What it says depends on the positions it is given. ALiBi's and a recurrence's depends on what stands before."""
    cascade: bool = False
    """What all rows of a cache begin with can be kept apart, once for all of them (kv_cache.py)."""

    @property
    def gaps(self) -> bool:
        """Padding may stand between two tokens of a row: distances are those of positions, not of columns."""
        return self.trees != "paths" and self.window is None and self.columns is None

    @classmethod
    @torch.no_grad()
    def of(cls, model: PreTrainedModel) -> Capabilities:
        tokens = some_tokens(model, 9)
        tree = TokenTree()
        trunk = tree.extend(-1, tokens[:4])
        tree.extend(trunk[-1], tokens[4:6])
        tree.extend(trunk[1], tokens[6:9])
        expected = run_trees(model, [tree], "paths", linear_head=False)

        linear_head = False
        with suppress(AttributeError, TypeError, RuntimeError):
            hidden = run_trees(model, [tree], "paths", linear_head=True)
            logits = cast("nn.Module", model.get_output_embeddings())(hidden)
            # The same numbers went into it: what soft-capping changes may be less than what bf16 rounds elsewhere.
            same = close(logits, expected, tolerance=3e-3 if is_half(expected) else 1e-5)
            linear_head = same and not _changes_logits(model)
        second = TokenTree()
        second.extend(-1, tokens[5:8])
        both = [tree, second]
        expected = run_trees(model, both, "paths", linear_head=False)

        def right(kind: Trees) -> bool:
            with suppress(TypeError, ValueError, RuntimeError, AttributeError, IndexError):
                return close(run_trees(model, both, kind, linear_head=False), expected)
            return False

        trees: Trees = "masked" if right("masked") else "paths"
        if attention.install(model):
            if right("flat"):
                trees = "flat"
            else:
                model.set_attn_implementation("sdpa")
        parameters = inspect.signature(model.base_model.forward).parameters
        cache = "cache" if "cache" in parameters else "past_key_values"
        columns = min((limit.tokens for limit in limits_of(model) if limit.of_rows), default=None)
        return cls(linear_head, trees, cache, _window(model), columns, _reads_positions(model, tokens[:4]))


def _window(model: PreTrainedModel) -> int | None:
    """The narrowest window of attention that a configuration speaks of."""
    config = model.config.get_text_config()
    names = ["attention_chunk_size", "window_size", "attention_window_size", "local_attention"]
    if getattr(config, "use_sliding_window", True) is not False:
        names.append("sliding_window")
    widths = [getattr(config, name, None) for name in names]
    return min((width for width in widths if isinstance(width, int) and width > 0), default=None)


def _reads_positions(model: PreTrainedModel, tokens: list[int]) -> bool:
    """Whether it makes a difference that a position between two tokens is left out."""
    ids = torch.tensor([tokens], device=model.device)
    at = torch.arange(len(tokens), device=model.device)[None]
    # Without a mask, transformers takes a gap for the beginning of another text.
    given: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with suppress(TypeError, ValueError, RuntimeError, AttributeError, IndexError):
        plain, gap = (features_of(model, False, **given, position_ids=places) for places in (at, at + (at > 1)))
        return not torch.equal(plain, gap)
    return False


def _changes_logits(model: PreTrainedModel) -> bool:
    """Whether its configuration caps or scales logits. The trial cannot tell: small ones hardly change, and
    training makes them larger."""
    config = model.config.get_text_config()
    scales = [getattr(config, name, None) for name in ("logit_scale", "logits_scaling", "lm_head_multiplier")]
    return bool(getattr(config, "final_logit_softcapping", None)) or any(scale not in (None, 1) for scale in scales)


def some_tokens(model: PreTrainedModel, n: int) -> list[int]:
    """From all of the vocabulary: the first ones are special, and trained models say strange things of them."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(model.config.get_text_config().vocab_size, (n,), generator=generator).tolist()


def is_half(x: Tensor) -> bool:
    return x.dtype in (torch.bfloat16, torch.float16)


def close(a: Tensor, b: Tensor, tolerance: float | None = None) -> bool:
    """Equal up to rounding; a wrong mask, position or scale is far off."""
    if tolerance is None:
        tolerance = 0.05 if is_half(b) else 1e-3
    return bool(a.shape == b.shape and (a - b).float().norm() <= tolerance * b.float().norm())
