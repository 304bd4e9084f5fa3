"""Metrics as sums and weights, so that padding and odd last batches cost nothing."""

from typing import NamedTuple

import jax

from transformer_jax.types import Array


class Mean(NamedTuple):
    """A weighted mean that is not divided yet: `sum` / `weight` when it is printed."""

    sum: Array
    weight: Array


Metrics = dict[str, Mean]
"""Sums by name; `loss` is weighted by the number of target tokens."""


def merge(a: Metrics, b: Metrics) -> Metrics:
    """Add two sets of metrics.

    >>> merge({"loss": Mean(6.0, 2.0)}, {"loss": Mean(1.0, 5.0)})
    {'loss': Mean(sum=7.0, weight=7.0)}
    """
    return jax.tree.map(lambda x, y: x + y, a, b)


def compute(metrics: Metrics) -> dict[str, float]:
    """Divide: name → mean, or 0 where there is no weight.

    >>> compute({"loss": Mean(6.0, 2.0)})
    {'loss': 3.0}
    """
    return {
        name: float(mean.sum) / float(mean.weight) if float(mean.weight) else 0.0
        for name, mean in metrics.items()
    }
