"""Target tokens a second in training, side by side: ours, PyTorch, Flax.

python benchmarks/train_step.py --data PATH --output benchmarks/results/train_step.json

PATH holds the authors' tokenised Multi30k. Everyone trains the same sizes on the same
text with joint BPE of 10 000: tied embeddings, dropout 0.1, label smoothing 0.1, Adam,
float32, about 2 000 real target tokens in an update. What counts is real target tokens,
not padding.

`bucketed` batches are one pair a row, cut from the whole text in the order of its
lengths, so that no target place and hardly a source place is padding: PyTorch loses
nothing by them, and all but `ours_packed` get the same. The ratio is `ours_bucketed` to
the fastest in PyTorch. `ours_packed` is ours as it trains by default: several pairs a
row, one shape, of the same text.

`torch_builtin` is `torch.nn.Transformer`, `torch_sdpa` a model by hand around
`scaled_dot_product_attention`, `annotated` the architecture of the Annotated
Transformer in PyTorch, `flax_stack` Flax's own modules. PyTorch gets fused Adam, masks
only where rows are padded, and as many threads as there are cores. Freed memory stays
with the process, which all of them share. They take turns, update by update; medians
are kept; compilation and the first round are not counted. Sizes that a run leaves out
keep the numbers that the output file has.

`--device gpu` is another benchmark: see `train_step_gpu.py`.
"""

import dataclasses
import importlib.metadata
import json
import os
import platform
import resource
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

import tyro
from peers.batches import Batches, Text, filled, make_batches, read_text, real_tokens

from transformer_jax.allocation import keep_freed_memory
from transformer_jax.compilation import keep_compiled_programs
from transformer_jax.config import ModelConfig, OptimizerConfig, sized_model

OURS, PACKED = "ours_bucketed", "ours_packed"
PYTORCH = ("torch_builtin", "torch_sdpa", "torch_sdpa_compiled", "annotated")
SMOOTHING = 0.1
OPTIMIZER = OptimizerConfig(schedule="constant", warmup_steps=0, learning_rate=5e-4)
PACKAGES = ("jax", "flax", "optax", "torch", "numpy")
"""Whose versions are kept with the numbers."""
PAUSE = 0.02
"""Seconds between two turns: threads of the one before stop looking for work."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """See above."""

    output: Path
    """JSON file for the numbers."""
    data: Path = Path()
    """Folder with the authors' tokenised files (CPU)."""
    device: Literal["cpu", "gpu"] = "cpu"
    """What is measured."""
    sizes: tuple[str, ...] = ("tiny", "small", "base")
    """Model sizes (on a GPU: base and big)."""
    lengths: tuple[int, ...] = (32, 64, 256, 1024)
    """Of rows (GPU)."""
    batches: int = 2
    """Different batches."""
    rounds: int = 8
    """Timed updates on each batch; base has half of them."""
    compiled: bool = False
    """Also the hand-written model under torch.compile (minutes for each size)."""
    keep_memory: bool = True
    """Whether freed memory stays with the process, as where `transformer-jax train`
    packs its batches."""
    quick: bool = False
    """One batch, 4 rounds for every size."""
    smoke: bool = False
    """Toy sizes, to see whether everything runs."""
    hardware: str = ""
    """What it ran on, in words."""


class Peer(Protocol):
    """A model in training."""

    parameters: int
    """Numbers that are trained."""

    def step(self, place: int) -> float:
        """One update on batch number `place`: its loss for each target token."""
        ...


def contenders(
    model: ModelConfig, batches: Batches, *, compiled: bool
) -> dict[str, Callable[[], Peer]]:
    """Everyone, to be made."""
    import torch
    from peers.flax_stack import FlaxStack
    from peers.ours import Ours
    from peers.torch_annotated import Annotated, divergence
    from peers.torch_builtin import BuiltIn
    from peers.torch_sdpa import HandWritten
    from peers.torch_training import TorchPeer

    torch.manual_seed(0)
    torch.set_num_threads(os.cpu_count() or 1)
    rest = (OPTIMIZER, SMOOTHING, batches.bucketed)
    found: dict[str, Callable[[], Peer]] = {
        OURS: lambda: Ours(model, *rest),
        PACKED: lambda: Ours(model, OPTIMIZER, SMOOTHING, batches.packed),
        "flax_stack": lambda: FlaxStack(model, *rest),
        "torch_builtin": lambda: TorchPeer(BuiltIn(model), *rest),
        "torch_sdpa": lambda: TorchPeer(HandWritten(model), *rest),
        "annotated": lambda: TorchPeer(Annotated(model), *rest, divergence),
    }
    if compiled:
        found["torch_sdpa_compiled"] = lambda: TorchPeer(
            HandWritten(model), *rest, compiled=True
        )
    return found


def measure(
    makers: dict[str, Callable[[], Peer]], batches: Batches, rounds: int
) -> dict[str, dict[str, Any]]:
    """Numbers of each contender. Not counted are the first update on each batch, which
    compiles, and the first round, in which the process grows to what all need."""
    peers: dict[str, Peer] = {}
    numbers: dict[str, dict[str, Any]] = {}
    count = len(batches.bucketed)
    for name, make in makers.items():
        start = time.perf_counter()
        peers[name] = make()
        losses = [peers[name].step(place) for place in range(count)]
        numbers[name] = {
            "parameters": peers[name].parameters,
            "first_seconds": round(time.perf_counter() - start, 1),
            "first_loss": round(losses[0], 3),
        }
    seconds = {name: [[] for _ in range(count)] for name in peers}
    faults: dict[str, list[int]] = {name: [] for name in peers}
    for turn in range(1 + rounds):
        for place in range(count):
            for name, peer in peers.items():
                time.sleep(PAUSE)
                before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
                start = time.perf_counter()
                loss = peer.step(place)
                taken = time.perf_counter() - start
                after = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
                if turn > 0:
                    seconds[name][place].append(taken)
                    faults[name].append(after - before)
                if place == 0:
                    numbers[name]["last_loss"] = round(loss, 3)
    for name, each in seconds.items():
        fed = batches.packed if name == PACKED else batches.bucketed
        total = sum(map(statistics.median, each))
        speed = sum(map(real_tokens, fed)) / total
        numbers[name]["target_tokens_per_second"] = round(speed, 1)
        numbers[name]["page_faults"] = int(statistics.median(faults[name]))
        numbers[name]["seconds"] = [[round(s, 4) for s in one] for one in each]
    return numbers


def check_same_size(size: str, numbers: dict[str, dict[str, Any]], ours: str) -> None:
    """Everyone must train a model of the same size."""
    parameters = numbers[ours]["parameters"]
    for name, each in numbers.items():
        # The norms after the Annotated Transformer's stacks are some more.
        if abs(each["parameters"] / parameters - 1) > 0.01:
            raise ValueError(
                f"{name} has {each['parameters']} parameters at size {size}, and ours "
                f"has {parameters}: their speeds cannot be compared. Correct the peer."
            )


def check_alike(size: str, numbers: dict[str, dict[str, Any]]) -> None:
    """Everyone must train a model of the same size, and all losses must fall."""
    check_same_size(size, numbers, OURS)
    for name, each in numbers.items():
        if not each["last_loss"] < each["first_loss"]:
            raise ValueError(
                f"The loss of {name} went from {each['first_loss']} to "
                f"{each['last_loss']} at size {size}: it should fall. Correct the peer."
            )


def measure_size(size: str, text: Text, args: Args) -> dict[str, Any]:
    """All numbers of one size."""
    positions, row_length = (256, 64) if args.smoke else (2048, 64)
    batches = make_batches(text, args.batches, positions, row_length)
    changes = {"num_encoder_layers": 1, "num_decoder_layers": 1, "d_ff": 64}
    model = sized_model(
        size,
        dropout=0.1,
        source_vocab_size=text.vocab_size,
        target_vocab_size=text.vocab_size,
        **(changes if args.smoke else {}),
    )
    makers = contenders(model, batches, compiled=args.compiled)
    fewer = size == "base" and not args.quick
    rounds = -(-args.rounds // 2) if fewer else args.rounds
    numbers = measure(makers, batches, rounds)
    check_alike(size, numbers)
    return {
        "keep_memory": args.keep_memory,
        "contenders": numbers,
        "packed_filled": round(filled(batches.packed), 3),
        "bucketed_filled": round(filled(batches.bucketed), 3),
        "target_tokens": {
            "packed": [real_tokens(batch) for batch in batches.packed],
            "bucketed": [real_tokens(batch) for batch in batches.bucketed],
        },
        "bucketed_shapes": [
            [*batch.inputs.shape, batch.targets.shape[1]] for batch in batches.bucketed
        ],
    }


def ratios(sizes: dict[str, Any]) -> dict[str, Any]:
    """Ours by the others, by target tokens a second."""
    found: dict[str, dict[str, Any]] = {
        "fastest_pytorch": {},
        "ratio_to_fastest_pytorch": {},
        "ratio_to_fastest_pytorch_packed": {},
        "ratio_to_flax": {},
    }
    for size, each in sizes.items():
        speed = {
            name: numbers["target_tokens_per_second"]
            for name, numbers in each["contenders"].items()
        }
        best = max((n for n in PYTORCH if n in speed), key=lambda name: speed[name])
        found["fastest_pytorch"][size] = best
        for name, ratio in (
            ("ratio_to_fastest_pytorch", speed[OURS] / speed[best]),
            ("ratio_to_fastest_pytorch_packed", speed[PACKED] / speed[best]),
            ("ratio_to_flax", speed[OURS] / speed["flax_stack"]),
        ):
            found[name][size] = round(ratio, 3)
    return found


def print_size(size: str, numbers: dict[str, dict[str, Any]]) -> None:
    """One line for each contender."""
    print(size)
    ours = numbers[OURS]["target_tokens_per_second"]
    for name, each in numbers.items():
        speed = each["target_tokens_per_second"]
        print(
            f"  {name:20} {speed:9,.0f} target tokens/s   {OURS} is "
            f"{ours / speed:5.2f}x   loss {each['first_loss']:.2f} → "
            f"{each['last_loss']:.2f}   {each['page_faults']:,} page faults   "
            f"{each['parameters']:,} parameters",
            flush=True,
        )


def kept_sizes(output: Path) -> dict[str, Any]:
    """Numbers by size that the file has."""
    if not output.is_file():
        return {}
    return json.loads(output.read_text(encoding="utf-8"))["sizes"]


def measure_cpu(args: Args) -> Iterator[dict[str, Any]]:
    """All sizes: the numbers, and those that the output file has of others."""
    if args.quick:
        args = dataclasses.replace(args, batches=1, rounds=4)
    keep_compiled_programs()
    if args.keep_memory:
        keep_freed_memory()
    text, sizes = read_text(args.data), kept_sizes(args.output)
    for size in args.sizes:
        sizes[size] = measure_size(size, text, args)
        print_size(size, sizes[size]["contenders"])
        yield {**ratios(sizes), "sizes": sizes}
    for name, each in ratios(sizes).items():
        print(name, each)


def main(args: Args) -> None:
    """Measures, prints and keeps the numbers, each as soon as it is there."""
    results = measure_cpu(args)
    if args.device == "gpu":
        from train_step_gpu import measure_gpu

        sizes = ("base", "big") if args.sizes == Args.sizes else args.sizes
        known = kept_sizes(args.output)
        results = measure_gpu(sizes, args.lengths, known, smoke=args.smoke)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    commands = [shlex.join(["python", *sys.argv])]
    if args.output.is_file():  # of the sizes that are kept
        kept = json.loads(args.output.read_text(encoding="utf-8"))["command"]
        commands = [one for one in kept.split("; ") if one not in commands] + commands
    for result in results:
        about = {
            "command": "; ".join(commands),
            "hardware": args.hardware or platform.processor(),
            "threads": os.cpu_count(),
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
            "date": time.strftime("%Y-%m-%d"),
        }
        text = json.dumps(result | about, indent=2) + "\n"
        args.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Args))
