"""Drawing one of many with probability ∝ exp(log-weight), where weights come, go and span hundreds of nats."""

from __future__ import annotations

import math
from array import array


class SamplingTree:
    """A complete binary tree over log-weights: setting one and drawing one take O(log n).

    A node is the log-sum-exp of its two children and of nothing else, computed anew whenever one of them changes.
    So nothing accumulates, as differences added to a Fenwick tree would, and nothing has to be scaled to a largest
    weight that may leave. The tree is a function of the weights in it: however they came, the draws are the same.
    The relative error of a probability is below log₂ n times the rounding of a node: 10⁻¹¹ for a million weights of
    e⁻¹⁰⁰⁰. A share below 10⁻³⁰⁰ of a node is taken as 0.
    """

    def __init__(self) -> None:
        self._leaves = 1
        # Node i has the children 2 i and 2 i + 1; the root is 1, the leaves are the second half.
        self._log_sum = array("d", [-math.inf, -math.inf])
        self._left_share = array("d", [1.0])  # of each inner node's sum; kept, so that drawing needs no exp

    def __setitem__(self, leaf: int, log_weight: float) -> None:
        """Set a weight, in nats; −inf: it is never drawn. Leaves 0, 1, 2, ... come into being when they are set."""
        while leaf >= self._leaves:
            self._double()
        log_sum, left_share = self._log_sum, self._left_share
        node = self._leaves + leaf
        log_sum[node] = log_weight
        while node > 1:
            node >>= 1
            left, right = log_sum[2 * node], log_sum[2 * node + 1]
            if right == -math.inf:
                total, share = left, 1.0
            elif left >= right:
                ratio = math.exp(right - left)
                total, share = left + math.log1p(ratio), 1 / (1 + ratio)
            else:
                ratio = math.exp(left - right)
                total, share = right + math.log1p(ratio), ratio / (1 + ratio)
            left_share[node] = share
            if total == log_sum[node]:
                break  # what is above depends on this node's sum only
            log_sum[node] = total

    def draw(self, u: float) -> int:
        """The leaf at quantile `u` in [0, 1) of the weights, in the order of the leaves.

        At least one weight must be finite.
        """
        left_share, leaves = self._left_share, self._leaves
        node = 1
        while node < leaves:
            share = left_share[node]
            node *= 2
            if u < share or share == 1.0:  # 1.0: there may be nothing on the right, and u may have rounded to 1
                u /= share
            else:
                u = (u - share) / (1 - share)
                node += 1
        return node - leaves

    def _double(self) -> None:
        """Make the tree the left half of one of twice the size."""
        log_sum = array("d", [-math.inf]) * (4 * self._leaves)
        left_share = array("d", [1.0]) * (2 * self._leaves)
        width = 1
        while width <= self._leaves:  # the nodes of one depth are the first half of those of the next
            log_sum[2 * width : 3 * width] = self._log_sum[width : 2 * width]
            if width < self._leaves:
                left_share[2 * width : 3 * width] = self._left_share[width : 2 * width]
            width *= 2
        log_sum[1] = self._log_sum[1]
        self._log_sum, self._left_share = log_sum, left_share
        self._leaves *= 2
