"""Boosted trees as arrays, checked before they predict, without native code, bit for bit as LightGBM.

LightGBM's parser trusts its text: a wrong child means an endless loop or a crash of the process.

Axes: N samples, F features, T trees; tree t has L_t leaves and L_t - 1 inner nodes. Nodes and leaves of all
trees are concatenated.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

CATEGORICAL, DEFAULT_LEFT, MISSING = 1, 2, 12  # bits of LightGBM's decision_type
MISSING_ZERO, MISSING_NAN = 4, 8
ZERO = float(np.float32(1e-35))  # LightGBM: up to it, absolute values count as zero, where zero is missing
STATES = 1 << 20  # samples x trees that are evaluated at a time


@dataclass(frozen=True, eq=False)
class Trees:
    """Regression trees with numerical splits, whose values are summed.

    A child >= 0 is an inner node of the same tree, a negative one the leaf ~child.
    """

    num_leaves: np.ndarray  # [T] int32
    feature: np.ndarray  # [sum L - T] int32
    threshold: np.ndarray  # [sum L - T] float64: values up to it go left
    decision: np.ndarray  # [sum L - T] uint8
    left: np.ndarray  # [sum L - T] int32
    right: np.ndarray  # [sum L - T] int32
    gain: np.ndarray  # [sum L - T] float64: decrease of the loss by the split
    value: np.ndarray  # [sum L] float64, of the leaves

    @classmethod
    def of(cls, booster: Any) -> Trees:
        """The trees of a LightGBM booster, up to its best iteration."""
        blocks = booster.model_to_string().split("\nTree=")[1:]
        fields = [
            dict(line.split("=", 1) for line in block.splitlines()[1:] if "=" in line) for block in blocks
        ]
        names = {
            "feature": "split_feature",
            "threshold": "threshold",
            "decision": "decision_type",
            "left": "left_child",
            "right": "right_child",
            "gain": "split_gain",
            "value": "leaf_value",
        }

        def joined(name: str, key: str) -> np.ndarray:
            return np.array([float(word) for tree in fields for word in tree.get(key, "").split()]).astype(
                DTYPES[name]
            )

        return cls(
            joined("num_leaves", "num_leaves"), **{name: joined(name, key) for name, key in names.items()}
        )

    def check(self, num_features: int) -> None:
        """Raise a ValueError unless these are trees: each node and leaf is reached once from the tree's root.

        Args:
            num_features: F.
        """
        for field in fields(self):
            array = getattr(self, field.name)
            if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype != DTYPES[field.name]:
                raise ValueError(f"{field.name}: expected [n] {DTYPES[field.name]}")
        if (self.num_leaves < 1).any():
            raise ValueError("num_leaves: expected at least 1")
        leaves, nodes = (
            int(self.num_leaves.sum(dtype=np.int64)),
            int(self.num_leaves.sum(dtype=np.int64)) - len(self.num_leaves),
        )
        if len(self.value) != leaves or any(len(part) != nodes for part in self._nodes):
            raise ValueError(f"expected {leaves} leaves and {nodes} nodes")
        if ((self.feature < 0) | (self.feature >= num_features)).any():
            raise ValueError(f"feature: expected 0 to {num_features - 1}")
        if np.isnan(self.threshold).any() or not np.isfinite(self.value).all():
            raise ValueError("thresholds and values: expected numbers")
        if (self.decision & ~np.uint8(DEFAULT_LEFT | MISSING)).any() or (
            self.decision & MISSING == MISSING
        ).any():
            raise ValueError("decision: expected numerical splits")
        counts = self.num_leaves.astype(np.int64) - 1
        first_node, first_leaf = _firsts(counts), _firsts(counts + 1)
        tree = np.repeat(np.arange(len(counts)), counts)
        own = np.arange(nodes) - first_node[tree]  # each node's number in its tree
        children = np.concatenate([self.left, self.right]).astype(np.int64)
        parents, trees = np.tile(own, 2), np.tile(tree, 2)
        inner = children >= 0
        numbers = np.where(inner, children, ~children)
        legal = numbers < np.where(inner, counts[trees], counts[trees] + 1)
        if not legal.all() or (inner & (numbers <= parents)).any():  # rising numbers exclude cycles
            raise ValueError("children: expected later nodes, or leaves, of the same tree")
        times_node = np.bincount(first_node[trees[inner]] + numbers[inner], minlength=nodes)
        times_leaf = np.bincount(first_leaf[trees[~inner]] + numbers[~inner], minlength=leaves)
        roots = first_node[counts > 0]
        expected_nodes, expected_leaves = np.ones(nodes, np.int64), np.ones(leaves, np.int64)
        expected_nodes[roots], expected_leaves[first_leaf[counts == 0]] = 0, 0
        if (times_node != expected_nodes).any() or (times_leaf != expected_leaves).any():
            raise ValueError("children: expected each node and leaf once")

    def predict(self, X: np.ndarray) -> np.ndarray:
        """The sums [N] of the trees' values for features [N, F] float64; NaN is missing."""
        size = max(1, STATES // max(1, len(self.num_leaves)))
        return np.concatenate(
            [np.empty(0), *(self._predict(X[i : i + size]) for i in range(0, len(X), size))]
        )

    def importance(self, num_features: int) -> np.ndarray:
        """[F]: how much the splits by each feature decrease the loss."""
        return np.bincount(self.feature, self.gain, minlength=num_features)

    @property
    def _nodes(self) -> tuple[np.ndarray, ...]:
        return self.feature, self.threshold, self.decision, self.left, self.right, self.gain

    def _predict(self, X: np.ndarray) -> np.ndarray:
        """All trees at once, level by level; a leaf that is reached stays."""
        counts = self.num_leaves.astype(np.int64) - 1
        first_node, first_leaf = _firsts(counts), _firsts(counts + 1)
        samples, trees = (part.ravel() for part in np.indices((len(X), len(counts))))
        nodes = np.where(counts > 0, 0, ~0)[trees]
        active = np.flatnonzero(nodes >= 0)
        while len(active):
            node = first_node[trees[active]] + nodes[active]
            value, missing = X[samples[active], self.feature[node]], self.decision[node] & MISSING
            value = np.where(np.isnan(value) & (missing != MISSING_NAN), 0.0, value)
            is_missing = np.isnan(value) | ((missing == MISSING_ZERO) & (np.abs(value) <= ZERO))
            left = np.where(
                is_missing, self.decision[node] & DEFAULT_LEFT != 0, value <= self.threshold[node]
            )
            nodes[active] = np.where(left, self.left[node], self.right[node])
            active = active[nodes[active] >= 0]
        values = self.value[first_leaf[trees] + ~nodes].reshape(len(X), len(counts))
        sums = np.zeros(len(X))
        for tree_N in values.T:  # tree by tree, as in LightGBM: another order rounds differently
            sums += tree_N
        return sums


DTYPES: dict[str, Any] = {
    "num_leaves": np.dtype(np.int32),
    "feature": np.dtype(np.int32),
    "threshold": np.dtype(np.float64),
    "decision": np.dtype(np.uint8),
    "left": np.dtype(np.int32),
    "right": np.dtype(np.int32),
    "gain": np.dtype(np.float64),
    "value": np.dtype(np.float64),
}


def _firsts(counts: np.ndarray) -> np.ndarray:
    """The start of each part, from the parts' lengths."""
    return np.cumsum(counts) - counts
