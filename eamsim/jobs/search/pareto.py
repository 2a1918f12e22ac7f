"""The Pareto front: what no other choice beats."""

from __future__ import annotations

import numpy as np


def undominated(costs: np.ndarray) -> np.ndarray:
    """bool [points]: those of float [points, goals], less is better, that no other equals or betters in every goal and betters in one."""
    order = np.lexsort(costs.T[::-1])
    front = np.empty((0, costs.shape[1]))
    kept = np.zeros(len(costs), np.bool_)
    for index in order:  # whoever dominates a point comes before it, or is its equal
        point = costs[index]
        is_beaten = (front <= point).all(axis=1) & (front < point).any(axis=1)
        if not is_beaten.any():
            kept[index] = True
            front = np.vstack([front, point])
    return kept
