"""How good the model is on the dev split: loss, accuracy, BLEU, sample translations."""

import dataclasses
import itertools
import json
from collections.abc import Sequence
from typing import NamedTuple

import jax

from transformer_jax import parallel
from transformer_jax.config import Config
from transformer_jax.data.batching import Batch
from transformer_jax.data.pipeline import eval_batches
from transformer_jax.data.sources import Pair
from transformer_jax.data.tokenizer import Tokenizer
from transformer_jax.processes import gather, share
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
        mine = parallel.rows_here(batch, self.engine.mesh)
        return parallel.put_batch(mine, self.engine.mesh)

    def _translate(self, params: Params, sources: list[str]) -> list[str]:
        """Each process translates its share, on all of its devices side by side."""
        mine = share(len(sources))
        translator = Translator(
            self.engine.model,
            whole_params(params),
            self.tokenizer,
            self.config.evaluation.search,
            devices=self.engine.mesh.local_devices,
        )
        found = translator.translate(
            sources[mine.start : mine.stop],
            batch_tokens=self.config.evaluation.batch_tokens,
            first_line=1 + mine.start,
            scores=False,
        )
        texts = gather(json.dumps([each.text for each in found]).encode())
        return list(itertools.chain.from_iterable(map(json.loads, texts)))


def whole_params(params: Params) -> Params:
    """Parameters that are cut over the mesh, whole, for the devices of this process.

    Search has a copy of them on each device: a token at a time, devices that shared
    out a model would mostly wait for each other.
    """
    if jax.process_count() == 1:
        return params
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(params, tiled=True)


def spread(length: int, count: int) -> list[int]:
    """`count` places, evenly over `length`.

    >>> spread(10, 3), spread(2, 5)
    ([0, 3, 6], [0, 1])
    """
    count = min(count, length)
    return [i * length // count for i in range(count)] if count else []
