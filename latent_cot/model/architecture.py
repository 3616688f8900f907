"""What a causal LM of any architecture can do, found by trying, and the ways to run it over token trees.

Whether a mask of four dimensions, or position ids, are honoured depends on the architecture, and so does what its
output layer makes of the last hidden state. So each way is tried on a few tokens when a model is loaded, and held
against the one that always works.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from latent_cot.model import attention
from latent_cot.model.tree import TokenTree, flatten, linear_paths, pack

Trees = Literal["flat", "padded", "paths"]


def run_flat(model: PreTrainedModel, trees: Sequence[TokenTree], *, linear_head: bool) -> torch.Tensor:
    """(nodes, H) hidden states, or logits, at the nodes of `trees`, run one behind the other."""
    device = model.device
    batch = flatten(trees)
    features = features_of(
        model,
        linear_head,
        input_ids=batch.input_ids[None].to(device),
        position_ids=batch.position_ids[None].to(device),
        attention_mask=attention.lay_out(batch, model),
    )
    return features[0].index_select(0, batch.rows.to(device))


def run_padded(model: PreTrainedModel, trees: Sequence[TokenTree], *, linear_head: bool) -> torch.Tensor:
    """(nodes, H) hidden states, or logits, at the nodes of `trees`, each a row under its ancestor mask."""
    device = model.device
    batch = pack(trees)
    features = features_of(
        model,
        linear_head,
        input_ids=batch.input_ids.to(device),
        position_ids=batch.position_ids.to(device),
        attention_mask=attention.additive(batch.attention.to(device), model.dtype),
    )
    return features.flatten(0, 1).index_select(0, batch.rows.to(device))


def run_paths(model: PreTrainedModel, trees: Sequence[TokenTree], *, linear_head: bool) -> torch.Tensor:
    """(nodes, H) hidden states, or logits, at the nodes of `trees`, each leaf's path run by itself."""
    device = model.device
    paths = linear_paths(trees)
    longest = max(len(path) for _, path in paths)
    input_ids = torch.zeros(len(paths), longest, dtype=torch.long)
    mask, position_ids = torch.zeros_like(input_ids), torch.zeros_like(input_ids)
    offsets = [0]
    for tree in trees:
        offsets.append(offsets[-1] + len(tree))
    where: dict[int, int] = {}
    for row, (t, path) in enumerate(paths):
        input_ids[row, : len(path)] = torch.tensor([trees[t].tokens[node] for node in path])
        position_ids[row, : len(path)] = torch.tensor([trees[t].positions[node] for node in path])
        mask[row, : len(path)] = 1
        for column, node in enumerate(path):
            where.setdefault(offsets[t] + node, row * longest + column)
    arguments = {"input_ids": input_ids, "attention_mask": mask}
    if not all(tree.gapless for tree in trees):
        arguments["position_ids"] = position_ids  # only then: not every architecture takes them
    features = features_of(model, linear_head, **{name: value.to(device) for name, value in arguments.items()})
    index = torch.tensor([where[node] for node in range(offsets[-1])], device=features.device)
    return features.flatten(0, 1)[index]


def features_of(model: PreTrainedModel, linear_head: bool, **arguments: torch.Tensor) -> torch.Tensor:
    output = model.base_model(use_cache=False, **arguments) if linear_head else model(use_cache=False, **arguments)
    features: torch.Tensor = output.last_hidden_state if linear_head else output.logits
    return features


@dataclass(frozen=True)
class Capabilities:
    """What an architecture can do, found by trying it on a few tokens when it is loaded."""

    linear_head: bool
    """Its logits are its output embedding times its last hidden state (no soft-capping, no scaling), so
    that logits can be computed for some rows and some tokens only."""
    trees: Trees
    """How token trees are run. `flat`: one behind the other, without padding, by an attention function of our
    own (attention.py). `padded`: side by side, where the model honours a four-dimensional attention mask and
    position ids. `paths`: each path of a tree by itself: slower, the same numbers."""
    cache_argument: str
    """The name its forward pass gives the key-value cache."""
    window: int | None
    """Some layers look back no further than so many tokens; None: all see everything. The mask of a token tree would
    take the place of that of a window, so longer trees are run path by path."""
    cascade: bool = False
    """What all rows of a cache begin with can be kept apart, once for all of them (kv_cache.py)."""

    @property
    def gaps(self) -> bool:
        """Padding may stand between two tokens of a row: distances are those of positions, not of columns."""
        return self.trees != "paths" and self.window is None

    @classmethod
    @torch.no_grad()
    def of(cls, model: PreTrainedModel) -> Capabilities:
        tokens = some_tokens(model, 9)
        tree = TokenTree()
        trunk = tree.extend(-1, tokens[:4])
        tree.extend(trunk[-1], tokens[4:6])
        tree.extend(trunk[1], tokens[6:9])
        expected = run_paths(model, [tree], linear_head=False)

        linear_head = False
        head = model.get_output_embeddings()
        if head is not None:
            try:
                hidden = run_paths(model, [tree], linear_head=True)
                # The same numbers went into it: what soft-capping changes may be less than what bf16 rounds elsewhere.
                linear_head = close(head(hidden), expected, tolerance=3e-3)
            except (AttributeError, TypeError, RuntimeError):
                linear_head = False
        second = TokenTree()
        second.extend(-1, tokens[5:8])
        trees: Trees = "paths"
        expected = torch.cat([expected, run_paths(model, [second], linear_head=False)])
        for kind, run in (("padded", run_padded), ("flat", run_flat)):
            if kind == "flat" and not attention.install(model):
                continue
            try:
                if close(run(model, [tree, second], linear_head=False), expected):
                    trees = cast("Trees", kind)
                    continue
            except (TypeError, ValueError, RuntimeError, AttributeError, IndexError):
                pass
            if kind == "flat":
                attention.uninstall(model)
        parameters = inspect.signature(model.base_model.forward).parameters
        return cls(linear_head, trees, "cache" if "cache" in parameters else "past_key_values", _window(model))


def table_of_positions(model: PreTrainedModel) -> int | None:
    """The length of a table of learned positions, if there is one: an embedding of as many rows as there are positions,
    or of a few more, that is not the tokens'."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding) and m is not model.get_input_embeddings()]
    learned = isinstance(limit, int) and any(limit <= table.num_embeddings <= limit + 4 for table in tables)
    return limit if learned else None


def _window(model: PreTrainedModel) -> int | None:
    """The narrowest window of attention that a configuration speaks of."""
    config = model.config.get_text_config()
    names = ["attention_chunk_size", "window_size", "attention_window_size", "local_attention"]
    if getattr(config, "use_sliding_window", True) is not False:
        names.append("sliding_window")
    widths = [getattr(config, name, None) for name in names]
    return min((width for width in widths if isinstance(width, int) and width > 0), default=None)


def some_tokens(model: PreTrainedModel, n: int) -> list[int]:
    """From all of the vocabulary: the first ones are special, and trained models say strange things of them."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(model.config.get_text_config().vocab_size, (n,), generator=generator).tolist()


def is_half(x: torch.Tensor) -> bool:
    return x.dtype in (torch.bfloat16, torch.float16)


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float | None = None) -> bool:
    """Equal up to rounding; a wrong mask, position or scale is far off."""
    if tolerance is None:
        tolerance = 0.05 if is_half(b) else 1e-3
    return bool(a.shape == b.shape and (a - b).float().norm() <= tolerance * b.float().norm())
