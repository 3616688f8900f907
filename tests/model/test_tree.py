"""Token trees: shared prefixes, ancestors, packing."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latent_cot.model import tree as tree_module
from latent_cot.model.tree import ROW_MULTIPLE, TokenTree, ancestor_mask, flatten, linear_paths, micro_batches

paths = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=6), min_size=1, max_size=6)


def grow(sequences: Sequence[Sequence[int]]) -> tuple[TokenTree, list[list[int]]]:
    tree = TokenTree()
    root = tree.extend(-1, [9])[0]
    return tree, [tree.extend(root, sequence) for sequence in sequences]


@given(paths)
def test_each_distinct_prefix_is_one_node(sequences: list[list[int]]) -> None:
    tree, nodes = grow(sequences)
    prefixes = {tuple(s[: i + 1]) for s in sequences for i in range(len(s))}
    assert len(tree) == len(prefixes) + 1
    for sequence, path in zip(sequences, nodes, strict=True):
        assert tree.path(path[-1]) == [0, *path]
        assert [tree.tokens[node] for node in path] == sequence
        assert [tree.positions[node] for node in path] == list(range(1, len(sequence) + 1))
    assert all(parent < node for node, parent in enumerate(tree.parents))


@given(paths)
def test_branches_keep_equal_tokens_apart(sequences: list[list[int]]) -> None:
    tree, nodes = grow(sequences)
    size = len(tree)
    branch = tree.extend(0, sequences[0], branch="answer")
    assert len(tree) == size + len(sequences[0])
    assert not set(branch) & {node for path in nodes for node in path}
    assert tree.extend(0, sequences[0], branch="answer") == branch


@pytest.mark.parametrize("gaps", [[1], [1, 0, 2, 1]])
def test_gaps_of_another_number_than_the_tokens_are_refused(gaps: list[int]) -> None:
    """Else the path would end where they do."""
    with pytest.raises(ValueError, match="zip"):
        TokenTree().extend(-1, [5, 6, 7], gaps=gaps)


@given(paths)
def test_a_node_sees_its_ancestors_and_itself(sequences: list[list[int]]) -> None:
    tree, _ = grow(sequences)
    mask = ancestor_mask(tree)
    for node in range(len(tree)):
        assert mask[node].nonzero()[0].tolist() == sorted(tree.path(node))


@given(paths)
def test_linear_paths_cover_every_node(sequences: list[list[int]]) -> None:
    tree, _ = grow(sequences)
    found = linear_paths([tree])
    assert {node for _, path in found for node in path} == set(range(len(tree)))
    maximal = {tuple(s) for s in sequences if not any(o[: len(s)] == s and len(o) > len(s) for o in sequences)}
    assert len(found) == len(maximal)


@given(st.lists(paths, min_size=1, max_size=8), st.integers(1, 60))
def test_micro_batches_partition_and_stay_within_the_limit(forest: list[list[list[int]]], max_tokens: int) -> None:
    trees = [grow(sequences)[0] for sequences in forest]
    batches = micro_batches(trees, max_tokens)
    assert sorted(i for batch in batches for i in batch) == list(range(len(trees)))
    for batch in batches:
        assert len(batch) == 1 or max(len(trees[i]) for i in batch) * len(batch) <= max_tokens


@given(
    st.lists(st.tuples(st.lists(st.integers(1, 2), max_size=22), paths), min_size=1, max_size=4),
    st.sampled_from([0, 15, 16, 17]),
    st.sampled_from([0, 20, 1000]),
)
def test_flat_trees_see_what_they_saw(
    forest: list[tuple[list[int], list[list[int]]]], common: int, largest_square: int
) -> None:
    """Each node sees the tokens of its own path, in their order, whatever the trees have in common and however
    large they are."""
    trees = []
    for trunk, sequences in forest:
        tree = TokenTree()
        root = tree.extend(-1, [9] * (common + 1) + trunk)[-1]
        for sequence in sequences:
            tree.extend(root, sequence)
        trees.append(tree)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree_module, "_LARGEST_SQUARE", largest_square)
        flat = flatten(trees)
    cells = torch.cat([block.queries.flatten() for block in flat.blocks])
    assert cells[flat.cell_of].tolist() == list(range(len(flat.input_ids)))
    seen = [
        (block.keys[r, block.attention[r, i]]).tolist()
        for block in flat.blocks
        for r in range(block.queries.shape[0])
        for i in range(block.queries.shape[1])
    ]
    assert all(seen)
    nodes = [(tree, node) for tree in trees for node in range(len(tree))]
    for (tree, node), row in zip(nodes, flat.rows.tolist(), strict=True):
        path = tree.path(node)
        visible = seen[flat.cell_of[row]]
        assert sorted(flat.position_ids[visible].tolist()) == list(range(len(path)))
        by_depth = sorted(visible, key=lambda k: int(flat.position_ids[k]))
        assert flat.input_ids[by_depth].tolist() == [tree.tokens[n] for n in path]
        assert flat.position_ids[row] == tree.positions[node]
    of_trees = len(set(flat.rows.tolist()))
    assert len(flat.input_ids) == -(-of_trees // ROW_MULTIPLE) * ROW_MULTIPLE
    for node in set(range(len(flat.input_ids))) - set(flat.rows.tolist()):
        assert seen[flat.cell_of[node]] == [node]
    visible_nodes = flat.visible()
    for node in range(len(flat.input_ids)):
        assert visible_nodes[node].nonzero().flatten().tolist() == sorted(set(seen[flat.cell_of[node]]))
    shared = sum(map(len, trees)) - of_trees
    assert shared % max(1, len(trees) - 1) == 0
    if len(trees) > 1 and common >= 16:
        assert shared >= 16 * (len(trees) - 1)
