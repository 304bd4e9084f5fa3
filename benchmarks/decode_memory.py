"""Memory that decoding takes, as XLA reports it of the compiled programs.

python benchmarks/decode_memory.py --output benchmarks/results/decode_memory.json

By default Transformer-base with 32 000 symbols, 128 sentences side by side with 5 beams
each, sources of up to 64 tokens, and a cache that has grown to 128 target tokens. No
weights are made and nothing is run: the program that adds tokens is compiled for these
shapes, and what it holds is read from `compiled.memory_analysis()`. The state is
donated, so what goes in and what comes out share their memory. While a cache grows,
from three quarters of its size, the old one and the new are there, and the program is
not running.
"""

import dataclasses
import functools
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import tyro

from transformer_jax.config import SearchConfig, sized_model
from transformer_jax.models.functions import init_params
from transformer_jax.models.transformer import Transformer
from transformer_jax.search.beams import Beams, Job
from transformer_jax.trainer.reporting import environment
from transformer_jax.translation import preparing, slots
from transformer_jax.translation.engine import FEWEST_WITH_SIDING
from transformer_jax.translation.methods import SearchPlan
from transformer_jax.translation.planning import most_waiting
from transformer_jax.types import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """See above."""

    output: Path
    """JSON file for the numbers."""
    size: Literal["tiny", "small", "base", "big"] = "base"
    """Of the model."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What weights and caches are held in."""
    vocab_size: int = 32_000
    """V, for source and target."""
    sentences: int = 128
    """B: searched side by side."""
    beam_size: int = 5
    """K: beams of a sentence."""
    source_length: int = 64
    """S: source tokens, end included."""
    target_length: int = 128
    """T: target tokens that the cache has room for."""


def num_bytes(tree: Any) -> int:
    """Of all arrays."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def waiting_sentences(
    args: Args, model: Transformer, plan: SearchPlan, params: Params
) -> slots.Slots:
    """Shapes of the sentences that wait, encoded and begun, for a slot."""
    rows = most_waiting(args.sentences)
    like: Any = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
    ids, job = like((rows, args.source_length)), Job(like((rows, 1)), like((rows,)))
    prepare = functools.partial(
        preparing.prepare, model=model, plan=plan, length=args.source_length
    )
    waiting = jax.eval_shape(prepare, params, ids, ids, job)
    if not preparing.may_begin(model, plan):
        return waiting
    begin = functools.partial(preparing.begin, model=model, plan=plan)
    return jax.eval_shape(begin, params, waiting, None)


def bytes_of_sidings(
    empty: Callable[..., slots.Slots], params: Params, count: int, most: int
) -> int:
    """Of the siding of so many slots, and of its own, with `most` target tokens."""
    if count < FEWEST_WITH_SIDING:
        return 0
    apart = functools.partial(empty, slots=count // 4, cache=most)
    held = num_bytes(jax.eval_shape(apart, params))
    return held + bytes_of_sidings(empty, params, count // 4, most)


def measure(args: Args) -> dict[str, int]:
    """Bytes of each part, and together."""
    model = Transformer(
        sized_model(
            args.size,
            source_vocab_size=args.vocab_size,
            target_vocab_size=args.vocab_size,
            dtype=args.dtype,
            param_dtype=args.dtype,
        )
    )
    params = jax.eval_shape(functools.partial(init_params, model), jax.random.key(0))
    search = SearchConfig(beam_size=args.beam_size)
    plan = SearchPlan(search, args.target_length, start_id=1, eos_id=2, banned=(0,))
    empty = functools.partial(
        preparing.empty_slots, model=model, plan=plan, length=args.source_length
    )
    one = functools.partial(empty, slots=args.sentences, cache=1)
    short = jax.eval_shape(one, params)
    grow = functools.partial(slots.resize, length=args.target_length)
    whole = jax.eval_shape(grow, short.beams.cache)
    state = short._replace(beams=short.beams._replace(cache=whole))
    waiting = waiting_sentences(args, model, plan, params)
    places, enough = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((2,), ()))
    lowered = slots.advance.lower(
        params, state, waiting, places, enough, model=model, plan=plan
    )
    analysis: Any = lowered.compile().memory_analysis()
    beams: Beams = state.beams
    cache = num_bytes(beams.cache)
    numbers = {
        "weights": num_bytes(params),
        "memory_of_sources": num_bytes(state.memory),
        "waiting_sentences": 2 * num_bytes(waiting),  # and those that follow
        "cache": cache,
        "sidings": bytes_of_sidings(empty, params, args.sentences, args.target_length),
        "histories": num_bytes(state.beams) - cache,
        "temporary": analysis.temp_size_in_bytes,
        "not_donated_output": analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes,
    }
    held = sum(numbers.values())
    unused = numbers["temporary"] + numbers["not_donated_output"]
    growing = held - unused + cache * 3 // 4
    return numbers | {"while_searching": held, "while_the_cache_grows": growing}


def main(args: Args) -> None:
    """Measures, prints and keeps the numbers."""
    numbers = measure(args)
    for name, size in numbers.items():
        print(f"{name:20} {size / 2**20:10,.1f} MiB")
    setting = dataclasses.asdict(args)
    setting.pop("output")
    command = shlex.join(["python", *sys.argv])
    result = {"bytes": numbers, "setting": setting, "command": command}
    text = json.dumps(result | environment(), indent=1)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Args))
