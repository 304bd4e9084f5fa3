"""How the cost of a training step grows: time and memory, ours and PyTorch's.

python benchmarks/growth.py --output benchmarks/results/growth.json \
    --picture docs/pictures/growth.png

One thing at a time is changed around one middle: tokens in a batch, length of its rows,
layers in each stack, d_model (with d_ff = 4 · d_model and heads of 32), vocabulary. All
else stays, so longer rows are fewer. Rows are full of random tokens, as many source as
target. Float32, tied embeddings, dropout 0.1, label smoothing 0.1, Adam: whole updates.
PyTorch is the model by hand around `scaled_dot_product_attention`, the fastest one of
`train_step.py`; it gets no `torch.compile`.

Time: both in one process take turns, update by update; medians; compilation and the
first two updates are not counted.

Memory, on a CPU: a fresh process for each of the two and each point, and in it the
peak of resident memory in two updates after another, less what stays resident when
weights, moments and batch are gone again. Blocks from 64 KiB come from the system one
by one and go back as soon as they are free. So libraries, compiler, compiled code and
memory that is kept for later do not count, and everything that updates hold does, in
both alike. Of ours also what XLA plans: arguments, results and temporaries of the
compiled step, less what they share. On a GPU it is the peak that each library's own
allocator counts.

The JSON file is written after each point, the picture at the end.
"""

import concurrent.futures
import ctypes
import dataclasses
import functools
import gc
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import tyro
from growth_picture import OURS, TORCH, draw
from peers.batches import Batches
from train_step import OPTIMIZER, PACKAGES, SMOOTHING, Peer, check_same_size, measure
from train_step_gpu import random_batch

from transformer_jax.compilation import keep_compiled_programs
from transformer_jax.config import sized_model
from transformer_jax.data.batching import Batch
from transformer_jax.trainer.reporting import environment

Device = Literal["cpu", "gpu"]
HEAD_SIZE = 32
MIB = 2**20
M_MMAP_THRESHOLD = -3
"""Of malloc.h."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """See above."""

    output: Path
    """JSON file for the numbers."""
    picture: Path | None = None
    """PNG file. Default: beside the JSON file, with its name."""
    device: Device = "cpu"
    """What is measured."""
    rounds: int = 5
    """Timed updates at each point."""
    quick: bool = False
    """Toy sizes and 3 rounds, to see whether everything runs."""
    redraw: bool = False
    """Measures nothing: draws what is in the JSON file."""
    hardware: str = ""
    """What it ran on, in words."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """What a step is like."""

    tokens: int
    """In a batch, source and target each."""
    length: int
    """Of its rows."""
    depth: int
    """Layers in each stack."""
    width: int
    """D, `d_model`."""
    vocabulary: int
    """V."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """A middle, and by field of `Point` the values that it gets one after another."""

    middle: Point
    values: dict[str, tuple[int, ...]]


QUICK = Plan(
    Point(tokens=256, length=16, depth=1, width=32, vocabulary=500),
    {
        "tokens": (256, 1024),
        "length": (16, 64),
        "depth": (1, 2),
        "width": (32, 64),
        "vocabulary": (500, 4000),
    },
)
PLANS = {
    "cpu": Plan(
        Point(tokens=1024, length=64, depth=2, width=128, vocabulary=4000),
        {
            "tokens": (512, 1024, 2048, 4096),
            "length": (16, 64, 256, 1024),
            "depth": (1, 2, 4, 8),
            "width": (32, 64, 128, 256),
            "vocabulary": (1000, 4000, 16_000, 64_000),
        },
    ),
    "gpu": Plan(
        Point(tokens=16_384, length=128, depth=6, width=512, vocabulary=32_000),
        {
            "tokens": (4096, 8192, 16_384, 32_768),
            "length": (32, 128, 512, 1024),
            "depth": (1, 3, 6, 12),
            "width": (256, 512, 1024, 2048),
            "vocabulary": (8000, 16_000, 32_000, 64_000),
        },
    ),
}


def makers(point: Point, device: Device) -> dict[str, Callable[[], Peer]]:
    """Both contenders, to be made. PyTorch is imported only where it is made."""
    sizes = dict.fromkeys(("source_vocab_size", "target_vocab_size"), point.vocabulary)
    layers = dict.fromkeys(("num_encoder_layers", "num_decoder_layers"), point.depth)
    model = sized_model(
        "tiny",
        d_model=point.width,
        d_ff=4 * point.width,
        num_heads=max(point.width // HEAD_SIZE, 1),
        dropout=0.1,
        **sizes,
        **layers,
    )
    rest = (OPTIMIZER, SMOOTHING, [batch_of(point)])

    def ours() -> Peer:
        from peers.ours import Ours

        return Ours(model, *rest)

    def theirs() -> Peer:
        import torch
        from peers.torch_sdpa import HandWritten
        from peers.torch_training import TorchPeer

        torch.manual_seed(0)
        torch.set_num_threads(os.cpu_count() or 1)
        if device == "cpu":
            return TorchPeer(HandWritten(model), *rest)
        # As jax multiplies float32 on a GPU unless it is told otherwise.
        torch.set_float32_matmul_precision("high")
        return TorchPeer(HandWritten(model), *rest, device="cuda")

    return {OURS: ours, TORCH: theirs}


def batch_of(point: Point) -> Batch:
    """Full rows."""
    if point.tokens % point.length:
        raise ValueError(
            f"{point.tokens} tokens do not fill rows of {point.length}: take a "
            "multiple of the length."
        )
    return random_batch(point.tokens // point.length, point.length, point.vocabulary)


def times(point: Point, device: Device, rounds: int) -> dict[str, dict[str, Any]]:
    """Median milliseconds of an update of each, and every single one's seconds."""
    batches = Batches([batch_of(point)], [batch_of(point)])
    numbers = measure(makers(point, device), batches, rounds)
    check_same_size(str(point), numbers, OURS)
    return {
        name: {
            "milliseconds": round(1e3 * statistics.median(each["seconds"][0]), 2),
            "seconds": each["seconds"][0],
            "parameters": each["parameters"],
            "losses": [each["first_loss"], each["last_loss"]],
        }
        for name, each in numbers.items()
    }


def memory(name: str, point: Point, device: Device) -> dict[str, float]:
    """MiB that the updates of one contender hold. To be called in a fresh process."""
    keep_compiled_programs()
    if device == "cpu":
        # Else a block may lie where the compiler's were, and add nothing to the peak.
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**16)
    peer: Any = makers(point, device)[name]()
    found = {"planned_mebibytes": planned(peer)} if name == OURS else {}
    peer.step(0)  # PyTorch makes Adam's moments in it
    if device == "gpu":
        found["mebibytes"] = peak_on_gpu(peer, name)
    else:
        give_back()
        # Linux sets the peak to what is resident now.
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        for _ in range(2):
            peer.step(0)
        peak = resident("VmHWM")
        program = getattr(peer, "train_step", None)  # its code is no part of a step
        del peer
        give_back()
        found["mebibytes"] = peak - resident("VmRSS")
        del program
    return {key: round(value, 1) for key, value in found.items()}


def planned(ours: Any) -> float:
    """MiB that XLA plans for our step, which is compiled with it."""
    ours.train_step = ours.train_step.lower(
        ours.state, ours.batches[0], ours.rng
    ).compile()
    plan: Any = ours.train_step.memory_analysis()
    held = plan.temp_size_in_bytes + plan.argument_size_in_bytes
    return (held + plan.output_size_in_bytes - plan.alias_size_in_bytes) / MIB


def peak_on_gpu(peer: Any, name: str) -> float:
    """MiB, by the allocator of the library. That of jax cannot be told to begin anew,
    so the making of the weights is in it; it takes less than an update."""
    import jax
    import torch

    if name == OURS:
        stats: Any = jax.devices()[0].memory_stats()
        return stats["peak_bytes_in_use"] / MIB
    torch.cuda.reset_peak_memory_stats()
    peer.step(0)
    return torch.cuda.max_memory_allocated() / MIB


def resident(what: Literal["VmHWM", "VmRSS"]) -> float:
    """MiB of this process: at its peak, or now."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (line,) = (line for line in lines if line.startswith(f"{what}:"))
    return int(line.split()[1]) / 1024


def give_back() -> None:
    """What nobody refers to is freed, and what is free goes back to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def in_processes(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """What they return, each in a fresh process, side by side."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        len(calls), mp_context=context, max_tasks_per_child=1
    ) as pool:
        return [each.result() for each in [pool.submit(call) for call in calls]]


def check_possible(device: Device) -> None:
    """Says what is missing before anything is measured."""
    if importlib.util.find_spec("torch") is None:
        raise ValueError(
            "PyTorch is not installed, and this benchmark compares with it: "
            "pip install 'transformer_jax[compare]', or pip install torch."
        )
    import jax
    import torch

    theirs = "gpu" if torch.cuda.is_available() else "cpu"
    if jax.default_backend() != device or (device == "gpu" and theirs == "cpu"):
        raise ValueError(
            f"--device {device}, but jax computes on {jax.default_backend()} here and "
            f"PyTorch can compute on {theirs}: install both for the GPU, or set "
            "JAX_PLATFORMS=cpu and give --device cpu."
        )
    if device == "cpu" and not os.access("/proc/self/clear_refs", os.W_OK):
        raise ValueError(
            "The peak of resident memory is read from /proc/self/status and set back "
            f"by /proc/self/clear_refs, which {platform.system()} does not offer here: "
            "measure on Linux."
        )


def measure_point(point: Point, device: Device, rounds: int) -> dict[str, Any]:
    """All numbers of both."""
    numbers = times(point, device, rounds)
    gc.collect()
    calls = [functools.partial(memory, name, point, device) for name in numbers]
    for each, held in zip(numbers.values(), in_processes(calls), strict=True):
        each |= held
    return numbers


def measure_all(args: Args) -> None:
    """Measures, prints and keeps the numbers."""
    plan = QUICK if args.quick else PLANS[args.device]
    rounds = min(args.rounds, 3) if args.quick else args.rounds
    setting = {
        "command": shlex.join(["python", *sys.argv]),
        "hardware": args.hardware or platform.processor(),
        "threads": os.cpu_count(),
        **environment(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "date": time.strftime("%Y-%m-%d"),
    }
    known: dict[Point, dict[str, Any]] = {}
    found: dict[str, dict[str, Any]] = {}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    for axis, values in plan.values.items():
        for value in values:
            point = dataclasses.replace(plan.middle, **{axis: value})
            if point not in known:
                known[point] = measure_point(point, args.device, rounds)
                print_point(axis, value, known[point])
            found.setdefault(axis, {})[str(value)] = known[point]
            middle = dataclasses.asdict(plan.middle)
            result = {"middle": middle, "growth": found} | setting
            text = json.dumps(result, indent=1)
            args.output.write_text(text + "\n", encoding="utf-8")


def print_point(axis: str, value: int, numbers: dict[str, dict[str, Any]]) -> None:
    """One line."""
    cells = [
        f"{name} {each['milliseconds']:8,.1f} ms {each['mebibytes']:8,.1f} MiB"
        for name, each in numbers.items()
    ]
    print(f"{axis:10} {value:7,}   {'   '.join(cells)}", flush=True)


def main(args: Args) -> None:
    """Measures, unless only the picture is asked for, and draws."""
    if not args.redraw:
        # Both libraries share the memory: jax must not take it all at its start.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        keep_compiled_programs()
        check_possible(args.device)
        measure_all(args)
    picture = args.picture or args.output.with_suffix(".png")
    draw(json.loads(args.output.read_text(encoding="utf-8")), picture)
    print(picture)


if __name__ == "__main__":
    main(tyro.cli(Args))
