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


# Softmax on a CPU is up to five times as fast on rows of whole vectors.
_KEY_MULTIPLE = 32
# Trees of one batch that begin alike are run with that beginning in common, if it has this many tokens: the
# demonstrations of a prompt, say.
_SHORTEST_PREFIX = 16


@dataclass(frozen=True)
class Block:
    """Trees side by side, as attention needs them: R rows of up to Q nodes, which see up to K nodes."""

    queries: torch.Tensor
    """(R, Q) long: nodes; padded with any."""
    keys: torch.Tensor
    """(R, K) long: nodes that the row's nodes may see; padded with any."""
    attention: torch.Tensor
    """(R, Q, K) bool: which of them each does see; a padded node sees one."""
    own_keys: bool
    """Keys are the same nodes as queries: no node is a key of two rows."""


@dataclass(frozen=True)
class FlatTrees:
    """Several trees as one row without padding. Nodes are counted in the order of that row."""

    input_ids: torch.Tensor
    """(N,) long."""
    position_ids: torch.Tensor
    """(N,) long: depth in the tree."""
    blocks: Sequence[Block]
    cell_of: torch.Tensor
    """(N,) long: the place of each node among the blocks' queries, flattened, block after block."""
    rows: torch.Tensor
    """(nodes,) long: the row's node that each tree's nodes are, tree after tree. The trees' common beginning
    is in the row only once."""


def flatten(trees: Sequence[TokenTree]) -> FlatTrees:
    """Lay trees one behind the other."""
    shared = _shared_trunk(trees)
    tokens, depths = trees[0].tokens[:shared], trees[0].depths[:shared]
    rows: list[np.ndarray] = []
    starts = []
    for tree in trees:
        starts.append(len(tokens))
        rows.append(np.concatenate([np.arange(shared), len(tokens) + np.arange(len(tree) - shared)]))
        tokens = tokens + tree.tokens[shared:]
        depths = depths + tree.depths[shared:]

    trunk = np.arange(shared)
    blocks = []
    if shared:
        causal = np.tril(np.ones((shared, shared), dtype=bool))
        blocks.append(Block(*map(torch.from_numpy, (trunk[None], trunk[None], causal[None])), own_keys=True))
    longest = max(len(tree) for tree in trees)
    width = -(-longest // _KEY_MULTIPLE) * _KEY_MULTIPLE - shared
    queries = np.repeat(np.array(starts)[:, None], width, 1)
    attention = np.zeros((len(trees), width, shared + width), dtype=bool)
    attention[:, :, 0] = True
    for r, tree in enumerate(trees):
        size = len(tree) - shared
        queries[r, :size] += np.arange(size)
        attention[r, :size, : len(tree)] = ancestor_mask(tree)[shared:]
    keys = np.concatenate([np.repeat(trunk[None], len(trees), 0), queries], 1)
    blocks.append(Block(*map(torch.from_numpy, (queries, keys, attention)), own_keys=not shared))

    cells = [np.arange(shared)]
    cells += [shared + r * width + np.arange(len(tree) - shared) for r, tree in enumerate(trees)]
    return FlatTrees(
        torch.tensor(tokens),
        torch.tensor(depths),
        blocks,
        torch.from_numpy(np.concatenate(cells)),
        torch.from_numpy(np.concatenate(rows)),
    )


def _shared_trunk(trees: Sequence[TokenTree]) -> int:
    """Nodes with which all trees begin, in a line; 0 if too few. Each tree keeps at least one of its own."""
    if len(trees) < 2:
        return 0
    limit = min(map(len, trees)) - 1
    shared = 0
    first = trees[0].tokens
    while shared < limit and all(
        tree.parents[shared] == shared - 1 and tree.tokens[shared] == first[shared] for tree in trees
    ):
        shared += 1
    return shared if shared >= _SHORTEST_PREFIX else 0


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
    """Indices of trees in groups of similar size, each of at most `max_tokens` if padded (or one tree)."""
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
