"""How good the model is on the dev split: loss, accuracy, BLEU, sample translations."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax

from transformer_jax import parallel
from transformer_jax.config import Config
from transformer_jax.data.batching import Batch
from transformer_jax.data.pipeline import eval_batches
from transformer_jax.data.sources import Pair
from transformer_jax.data.tokenizer import Tokenizer
from transformer_jax.trainer.engine import Engine
from transformer_jax.trainer.progress import perplexity
from transformer_jax.training.metrics import compute
from transformer_jax.translation.evaluation import dev_loss, evaluate_translation
from transformer_jax.translation.translator import Translator
from transformer_jax.types import Params

LOWER_IS_BETTER = {"loss": True, "bleu": False, "chrf": False, "accuracy": False}


class Sample(NamedTuple):
    """A dev sentence as it is translated now."""

    source: str
    reference: str
    translation: str


class DevReport(NamedTuple):
    """loss, nll, perplexity, accuracy, bleu, chrf, and a few translations."""

    values: dict[str, float]
    samples: list[Sample]


@dataclasses.dataclass(frozen=True)
class DevSet:
    """The dev split, ready to be evaluated again and again."""

    engine: Engine
    tokenizer: Tokenizer
    pairs: Sequence[Pair]

    @property
    def config(self) -> Config:
        """The settings of the run."""
        return self.engine.config

    def evaluate(self, params: Params) -> DevReport:
        """Every dev sentence counts in the loss; `max_sentences` are translated."""
        settings = self.config.evaluation
        values = self._loss(params)
        count = settings.max_sentences or len(self.pairs)
        pairs = self.pairs[:count]
        translations = self._translate(params, [pair.source for pair in pairs])
        scores = evaluate_translation(
            translations,
            [pair.target for pair in pairs],
            lowercase=settings.lowercase,
            tokenize=settings.tokenize,
            metrics=("bleu", "chrf"),
        )
        values |= {"bleu": scores["bleu"], "chrf": scores["chrf"]}
        samples = [
            Sample(pairs[i].source, pairs[i].target, translations[i])
            for i in spread(len(pairs), settings.num_samples)
        ]
        return DevReport(values, samples)

    def _loss(self, params: Params) -> dict[str, float]:
        mesh = self.engine.mesh
        batches = eval_batches(
            self.pairs,
            self.tokenizer,
            self.config.model,
            batch_tokens=self.config.evaluation.batch_tokens,
            rows_multiple=parallel.num_data_shards(mesh),
        )
        step = self.engine.eval_step
        metrics = dev_loss(step, params, (self._put(b.batch) for b in batches))
        values = compute(jax.device_get(metrics))
        return values | {"perplexity": perplexity(values["nll"])}

    def _put(self, batch: Batch) -> Batch:
        """The rows of this process, on its devices."""
        rows = batch.inputs.shape[0] // jax.process_count()
        start = rows * jax.process_index()
        mine = jax.tree.map(lambda x: x[start : start + rows], batch)
        return parallel.put_batch(mine, self.engine.mesh)

    def _translate(self, params: Params, sources: list[str]) -> list[str]:
        translator = Translator(
            self.engine.model,
            on_one_device(params),
            self.tokenizer,
            self.config.evaluation.search,
        )
        found = translator.translate(
            sources, batch_tokens=self.config.evaluation.batch_tokens
        )
        return [translation.text for translation in found]


def on_one_device(params: Params) -> Params:
    """Whole parameters on this process's first device, for search."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        params = multihost_utils.process_allgather(params, tiled=True)
    return jax.device_put(params, jax.local_devices()[0])


def spread(length: int, count: int) -> list[int]:
    """`count` places, evenly over `length`.

    >>> spread(10, 3), spread(2, 5)
    ([0, 3, 6], [0, 1])
    """
    count = min(count, length)
    return [i * length // count for i in range(count)] if count else []
