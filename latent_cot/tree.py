"""Token trees: many sequences that share prefixes, each distinct prefix computed once.

The K rationales of a question share its prompt, and often their first steps; the reward needs the
answer Y after every state of every rationale. As separate sequences these are thousands of tokens, most
of them repeated. As one tree with an attention mask in which a token sees its ancestors only, each
distinct prefix costs one token, and one forward pass scores them all. It is exact: a token's position is
its depth, and what it attends to is what it would have attended to in its own sequence.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch


@dataclass
class TokenTree:
    """Nodes are token ids; parents come before their children. Node 0 begins the prompt."""

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    """-1 for the root."""
    depths: list[int] = field(default_factory=list)
    _children: dict[tuple[int, int, Hashable], int] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.tokens)

    def extend(self, node: int, tokens: Sequence[int], branch: Hashable = None) -> list[int]:
        """Walk from `node` (-1: before the root) along `tokens`, adding what is not there yet.

        Paths of the same `branch` share nodes; others are kept apart even where their tokens agree.
        Returns the node of each token.
        """
        path = []
        for token in tokens:
            key = (node, token, branch)
            child = self._children.get(key)
            if child is None:
                child = len(self.tokens)
                self._children[key] = child
                self.tokens.append(token)
                self.parents.append(node)
                self.depths.append(self.depths[node] + 1 if node >= 0 else 0)
            path.append(child)
            node = child
        return path

    def path(self, node: int) -> list[int]:
        """The nodes from the root to `node`."""
        path = []
        while node >= 0:
            path.append(node)
            node = self.parents[node]
        return path[::-1]

    def leaves(self) -> list[int]:
        """Nodes without a child."""
        parents = set(self.parents)
        return [node for node in range(len(self)) if node not in parents]


def ancestor_mask(tree: TokenTree) -> np.ndarray:
    """(L, L) bool: entry (i, j) is True if j is i or one of its ancestors."""
    size = len(tree)
    mask = np.zeros((size, size), dtype=bool)
    for node, parent in enumerate(tree.parents):
        if parent >= 0:
            mask[node] = mask[parent]
        mask[node, node] = True
    return mask


@dataclass(frozen=True)
class PackedTrees:
    """Several trees as one padded batch for a transformer."""

    input_ids: torch.Tensor
    """(R, L) long; 0 where padded."""
    position_ids: torch.Tensor
    """(R, L) long: depth in the tree."""
    attention: torch.Tensor
    """(R, 1, L, L) bool; a padded position sees only itself."""
    rows: torch.Tensor
    """(nodes,) long: position of each tree's nodes, tree after tree, in the flattened (R * L)."""


def pack(trees: Sequence[TokenTree]) -> PackedTrees:
    """One row a tree."""
    longest = max(len(tree) for tree in trees)
    input_ids = np.zeros((len(trees), longest), dtype=np.int64)
    position_ids = np.zeros_like(input_ids)
    attention = np.zeros((len(trees), longest, longest), dtype=bool)
    attention[:, np.arange(longest), np.arange(longest)] = True
    rows = []
    for r, tree in enumerate(trees):
        size = len(tree)
        input_ids[r, :size] = tree.tokens
        position_ids[r, :size] = tree.depths
        attention[r, :size, :size] = ancestor_mask(tree)
        rows.append(r * longest + np.arange(size))
    return PackedTrees(
        torch.from_numpy(input_ids),
        torch.from_numpy(position_ids),
        torch.from_numpy(attention)[:, None],
        torch.from_numpy(np.concatenate(rows)),
    )


def micro_batches(trees: Sequence[TokenTree], max_tokens: int) -> list[list[int]]:
    """Indices of trees in groups of similar size, each padding to at most `max_tokens` (or one tree)."""
    order = sorted(range(len(trees)), key=lambda i: (len(trees[i]), i))
    batches: list[list[int]] = []
    for i in order:
        if batches and len(trees[i]) * (len(batches[-1]) + 1) <= max_tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def linear_paths(trees: Sequence[TokenTree]) -> list[tuple[int, list[int]]]:
    """(tree, nodes from root to leaf) for every leaf: the same sequences, one by one, for a model that
    does not take a mask of its own."""
    return [(t, tree.path(leaf)) for t, tree in enumerate(trees) for leaf in tree.leaves()]
