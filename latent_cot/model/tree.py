"""Token trees: many sequences that share prefixes, each distinct prefix computed once.

The K rationales of a question share its prompt, and often their first steps; the reward needs the
answer Y after every state of every rationale. As separate sequences these are thousands of tokens, most
of them repeated. As one tree with an attention mask in which a token sees its ancestors only, each
distinct prefix costs one token, and one forward pass scores them all. It is exact: a token's position is
its depth, and what it attends to is what it would have attended to in its own sequence.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

import numpy as np
import torch


@dataclass
class TokenTree:
    """Nodes are token ids; parents come before their children. Node 0 begins the prompt."""

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    """-1 for the root."""
    positions: list[int] = field(default_factory=list)
    """What the model is told of where a token stands: its depth, and what `extend` was told to leave out before it."""
    _children: dict[tuple[int, int, Hashable], int] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.tokens)

    def extend(self, node: int, tokens: Sequence[int], branch: Hashable = None, gaps: Sequence[int] = ()) -> list[int]:
        """Walk from `node` (-1: before the root) along `tokens`, adding what is not there yet.

        Paths of the same `branch` share nodes; others are kept apart even where their tokens agree. `gaps` says how
        many positions to leave out before each token (of walks that share a node, the first one's count); empty: none.
        Returns the node of each token. Raises ValueError for gaps of another number than the tokens.
        """
        path = []
        for token, gap in zip(tokens, gaps or [0] * len(tokens), strict=True):
            key = (node, token, branch)
            child = self._children.get(key)
            if child is None:
                child = len(self.tokens)
                self._children[key] = child
                self.tokens.append(token)
                self.parents.append(node)
                self.positions.append(gap + (self.positions[node] + 1 if node >= 0 else 0))
            path.append(child)
            node = child
        return path

    @property
    def gapless(self) -> bool:
        """Whether every token's position is its depth."""
        before = (self.positions[parent] if parent >= 0 else -1 for parent in self.parents)
        return all(place == last + 1 for place, last in zip(self.positions, before, strict=True))

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
    mask = np.eye(len(tree), dtype=bool)
    for node, parent in enumerate(tree.parents):
        if parent >= 0:
            mask[node] |= mask[parent]
    return mask


ROW_MULTIPLE = 32
"""What the number of rows of a product is brought to. For each size of each product in bf16 oneDNN makes a kernel and
keeps it: half a megabyte, of which there may be a thousand."""

# Softmax on a CPU is up to five times as fast on rows of whole vectors.
_KEY_MULTIPLE = 32
# A common beginning of fewer tokens is not worth a pass, or a block, of its own.
_SHORTEST_PREFIX = 16
# In larger trees most pairs of nodes have nothing to do with each other: they are attended to path by path.
_LARGEST_SQUARE = 256


@dataclass(frozen=True)
class Block:
    """Parts of trees side by side, as attention needs them: R rows of up to Q nodes, which see up to K nodes."""

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
    """Several trees as one row, one behind the other. Nodes are counted in the order of that row.

    A few nodes that belong to no tree bring it to a multiple of `ROW_MULTIPLE`; each sees itself only."""

    input_ids: torch.Tensor
    """(N,) long."""
    position_ids: torch.Tensor
    """(N,) long."""
    blocks: Sequence[Block]
    """Each node is a query of one row of one block."""
    cell_of: torch.Tensor
    """(N,) long: the place of each node among the blocks' queries, flattened, block after block."""
    rows: torch.Tensor
    """(nodes,) long: the row's node that each tree's nodes are, tree after tree. The trees' common beginning
    is in the row only once."""

    def visible(self) -> torch.Tensor:
        """(N, N) bool: which nodes (columns) each node (rows) sees."""
        seen = torch.zeros(len(self.input_ids), len(self.input_ids))
        for block in self.blocks:  # padded entries repeat others, and add nothing
            where = (block.queries[:, :, None], block.keys[:, None])
            seen.index_put_(where, block.attention.float(), accumulate=True)
        return seen > 0


def flatten(trees: Sequence[TokenTree]) -> FlatTrees:
    """Lay trees one behind the other."""
    shared = shared_prefix([_trunk(tree) for tree in trees])
    trunk = np.arange(shared)
    tokens, positions = trees[0].tokens[:shared], trees[0].positions[:shared]
    nodes_of: list[np.ndarray] = []
    squares: list[_Row] = []
    paths: dict[tuple[int, int], list[_Row]] = {}
    for tree in trees:
        nodes = np.concatenate([trunk, len(tokens) + np.arange(len(tree) - shared)])
        nodes_of.append(nodes)
        tokens = tokens + tree.tokens[shared:]
        positions = positions + tree.positions[shared:]
        if len(tree) - shared <= _LARGEST_SQUARE:
            squares.append(_Row(nodes[shared:], nodes, ancestor_mask(tree)[shared:]))
        else:
            for row in _paths(tree, nodes, shared):
                q, k = row.mask.shape
                paths.setdefault((q.bit_length(), -(-k // _KEY_MULTIPLE)), []).append(row)
    spare = -len(tokens) % ROW_MULTIPLE
    width = max((len(row.queries) for row in squares), default=ROW_MULTIPLE)  # no wider than the trees beside them
    for begin in range(0, spare, width):
        nodes = len(tokens) + np.arange(begin, min(begin + width, spare))
        squares.append(_Row(nodes, nodes, np.eye(len(nodes), dtype=bool)))
    tokens, positions = tokens + [0] * spare, positions + [0] * spare
    blocks = [_block([_Row(trunk, trunk, np.tri(shared, dtype=bool))])] if shared else []
    if squares:
        blocks.append(_block(squares, own_keys=not shared))
    blocks += [_block(rows) for rows in paths.values()]

    cell_of = np.empty(len(tokens), dtype=np.int64)
    start = 0
    for block, real in blocks:
        cells = block.queries.numpy().ravel()
        cell_of[cells[real]] = start + np.flatnonzero(real)
        start += cells.size
    return FlatTrees(
        torch.tensor(tokens),
        torch.tensor(positions),
        [block for block, _ in blocks],
        torch.from_numpy(cell_of),
        torch.from_numpy(np.concatenate(nodes_of)),
    )


@dataclass(frozen=True)
class _Row:
    """Nodes (Q,), what they may see (K,), and which of it each does see (Q, K)."""

    queries: np.ndarray
    keys: np.ndarray
    mask: np.ndarray


def _paths(tree: TokenTree, nodes: np.ndarray, shared: int) -> Iterator[_Row]:
    """Cut a tree into paths, each as long as it will go: a node's first child goes on with its path, every
    other child begins one of its own. A path sees itself and the way that leads to it."""
    paths: dict[int, list[int]] = {}  # by their last node
    for node in range(shared, len(tree)):
        paths[node] = [*paths.pop(tree.parents[node], []), node]
    for path in sorted(paths.values()):
        before = tree.path(tree.parents[path[0]])
        mask = np.ones((len(path), len(before) + len(path)), dtype=bool)
        mask[:, len(before) :] = np.tri(len(path), dtype=bool)
        yield _Row(nodes[path], nodes[before + path], mask)


def _block(rows: Sequence[_Row], *, own_keys: bool = False) -> tuple[Block, np.ndarray]:
    """Rows side by side, and which of the queries, flattened, are no padding."""
    wide = -(-max(len(row.keys) for row in rows) // _KEY_MULTIPLE) * _KEY_MULTIPLE
    most = wide if own_keys else max(len(row.queries) for row in rows)
    queries = np.empty((len(rows), most), dtype=np.int64)
    keys = np.empty((len(rows), wide), dtype=np.int64)
    attention = np.zeros((len(rows), most, wide), dtype=bool)
    attention[:, :, 0] = True
    real = np.zeros((len(rows), most), dtype=bool)
    for r, row in enumerate(rows):
        q, k = row.mask.shape
        queries[r], keys[r] = row.queries[0], row.keys[0]
        queries[r, :q], keys[r, :k] = row.queries, row.keys
        attention[r, :q, :k] = row.mask
        real[r, :q] = True
    block = Block(torch.from_numpy(queries), torch.from_numpy(keys), torch.from_numpy(attention), own_keys)
    return block, real.ravel()


def shared_prefix(sequences: Sequence[Sequence[Hashable]]) -> int:
    """How many tokens all sequences begin with, such as those of demonstrations; 0 if too few. Each keeps at least one
    of its own."""
    if len(sequences) < 2:
        return 0
    columns = zip(*(sequence[:-1] for sequence in sequences), strict=False)
    shared = sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, columns))
    return shared if shared >= _SHORTEST_PREFIX else 0


def _trunk(tree: TokenTree) -> list[tuple[int, int]]:
    """(token, position) of a tree up to the node behind which it branches."""
    line = next((node for node, parent in enumerate(tree.parents) if parent != node - 1), len(tree))
    return list(zip(tree.tokens[:line], tree.positions[:line], strict=True))


def micro_batches(trees: Sequence[TokenTree], max_tokens: int) -> list[list[int]]:
    """Indices of trees in groups of similar size, each of at most `max_tokens` if padded (or one tree)."""
    batches: list[list[int]] = []
    for i in sorted(range(len(trees)), key=lambda i: len(trees[i])):
        if batches and len(trees[i]) * (len(batches[-1]) + 1) <= max_tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def linear_paths(trees: Sequence[TokenTree]) -> list[tuple[int, list[int]]]:
    """(tree, nodes from root to leaf) for every leaf: the same sequences, one by one, for a model that
    does not take a mask of its own."""
    return [(t, tree.path(leaf)) for t, tree in enumerate(trees) for leaf in tree.leaves()]
