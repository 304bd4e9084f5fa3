"""The optax chain: clipping, update rule, decoupled weight decay, learning rate."""

import jax
import optax
import optax.contrib

from transformer_jax.config import Config, OptimizerConfig
from transformer_jax.training.schedules import make_schedule
from transformer_jax.trees import STACKED
from transformer_jax.types import Array, Params


def decay_mask(params: Params) -> Params:
    """True where weight decay applies: projections, not biases, norms or embeddings.

    >>> decay_mask({"up": {"kernel": 1, "bias": 1}, "norm": {"scale": 1}})
    {'norm': {'scale': False}, 'up': {'bias': False, 'kernel': True}}
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: getattr(path[-1], "key", None) == "kernel", params
    )


def muon_dimensions(params: Params) -> Params:
    """Which axes of a kernel Muon takes as a matrix's sides; None where Adam rules.

    Attention projections [D, N, H] and [N, H, D] count as D × N·H matrices; of layers
    that are stacked, each has its own.
    """

    def sides(path: tuple, x: Array) -> optax.contrib.MuonDimensionNumbers | None:
        if getattr(path[-1], "key", None) != "kernel":
            return None
        names = [getattr(each, "key", None) for each in path]
        first = int(STACKED in names)
        ins = 2 if x.ndim - first == 3 and names[-2] == "out" else 1
        axes = tuple(range(first, x.ndim))
        return optax.contrib.MuonDimensionNumbers(
            reduction_axis=axes[:ins], output_axis=axes[ins:]
        )

    return jax.tree_util.tree_map_with_path(sides, params)


def sees_stacked_layers(config: Config) -> bool:
    """Whether a run's gradients and optimizer see layers that are stacked. Adafactor
    looks at the size of each parameter, and so sees them apart.

    >>> sees_stacked_layers(Config())
    False
    """
    return config.model.scan_layers and config.optimizer.name != "adafactor"


def make_optimizer(
    config: OptimizerConfig, d_model: int
) -> optax.GradientTransformation:
    """The optimizer that the settings name; `d_model` scales the paper's schedule.

    Muon (Jordan et al., 2024) updates the projections with Adam's update size (Liu et
    al., 2025), and Adam everything else, so that one learning rate serves both.
    """
    schedule = make_schedule(config, d_model)
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    if config.name == "muon":
        muon = optax.contrib.muon(
            schedule,
            adam_b1=config.b1,
            adam_b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            muon_weight_dimension_numbers=muon_dimensions,
            consistent_rms=0.2,
        )
        return optax.chain(*clip, muon)
    rule = {
        "adam": lambda: optax.scale_by_adam(config.b1, config.b2, config.eps),
        "adamw": lambda: optax.scale_by_adam(config.b1, config.b2, config.eps),
        "lion": lambda: optax.scale_by_lion(config.b1, config.b2),
        "adafactor": _adafactor,
    }[config.name]()
    decay = optax.add_decayed_weights(config.weight_decay, mask=decay_mask)
    return optax.chain(
        *clip,
        rule,
        *([decay] if config.weight_decay else []),
        optax.scale_by_learning_rate(schedule),
    )


def _adafactor() -> optax.GradientTransformation:
    """Shazeer and Stern (2018) without momentum: steps relative to parameter size."""
    return optax.chain(
        optax.scale_by_factored_rms(),
        optax.clip_by_block_rms(1.0),
        optax.scale_by_param_block_rms(),
    )
