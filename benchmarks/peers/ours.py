"""Our training step, as `transformer_jax train` runs it on one device."""

from collections.abc import Sequence

import jax

from transformer_jax import parallel
from transformer_jax.config import ModelConfig, OptimizerConfig, ParallelConfig
from transformer_jax.data.batching import Batch
from transformer_jax.models.functions import init_params
from transformer_jax.models.transformer import Transformer
from transformer_jax.training.metrics import Mean
from transformer_jax.training.objectives import make_objective
from transformer_jax.training.optimizer import make_optimizer
from transformer_jax.training.state import TrainState, init_state
from transformer_jax.training.step import make_train_step
from transformer_jax.types import PRNGKey


class Ours:
    """One state, trained on given batches."""

    def __init__(
        self,
        model: ModelConfig,
        optimizer: OptimizerConfig,
        smoothing: float,
        batches: Sequence[Batch],
        *,
        one_per_row: bool = False,
    ) -> None:
        mesh = parallel.make_mesh(ParallelConfig(), jax.devices()[:1])
        module = Transformer(model)
        chain = make_optimizer(optimizer, model.d_model)
        rng = jax.random.key(0)

        def init(rng: PRNGKey) -> TrainState:
            return init_state(init_params(module, rng), chain)

        # Where the step leaves its state: else the second update compiles once more.
        shardings = parallel.state_shardings(jax.eval_shape(init, rng), mesh)
        self.state = jax.jit(init, out_shardings=shardings)(rng)
        self.parameters = sum(x.size for x in jax.tree.leaves(self.state.params))
        objective = make_objective(
            module, smoothing, deterministic=False, one_per_row=one_per_row
        )
        step = make_train_step(objective, chain)
        self.train_step = parallel.jit_train_step(step, mesh, self.state)
        self.rng = rng
        self.batches = [parallel.put_batch(batch, mesh) for batch in batches]

    def update(self, place: int) -> Mean:
        """One update on a batch, without waiting for it: its loss."""
        batch = self.batches[place]
        self.state, metrics = self.train_step(self.state, batch, self.rng)
        return metrics["loss"]

    def step(self, place: int) -> float:
        """One update on a batch: its loss for each target token."""
        loss = jax.block_until_ready(self.update(place))
        return float(loss.sum) / float(loss.weight)
