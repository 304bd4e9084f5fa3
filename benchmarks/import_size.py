"""Time and memory of importing a model of real size, with random weights.

python benchmarks/import_size.py --output benchmarks/results/import_size.json

A Marian model of Transformer-base size (6 + 6 layers, d_model 512, d_ff 2048, 8 heads,
58 101 symbols) is written as another library would, then imported by a process of its
own, whose largest resident size is read: VmHWM of /proc/self/status (Linux), which
counts from the start of the process; ru_maxrss would count from its parent's peak. What
the process has after its imports and a first array of jax, before it opens the file, is
subtracted.
"""

import dataclasses
import importlib.metadata
import json
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import tyro

VOCAB = 58_101
PACKAGES = ("jax", "numpy", "orbax-checkpoint", "safetensors")
"""Whose versions are kept with the numbers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """See above."""

    output: Path
    """JSON file for the numbers."""
    hardware: str = ""
    """What it ran on, in words."""
    repeats: int = 5
    """How often it is imported. The largest size and the median time are kept."""
    child: Literal["", "write", "import"] = ""
    """Used by the script itself, which does the two in processes of their own."""
    folder: Path = Path()
    """Used by the script itself."""


def write_model(folder: Path) -> dict[str, int]:
    """A folder as OPUS-MT models have it; returns the size of the weights in bytes."""
    import jax

    from transformer_jax.config import sized_model
    from transformer_jax.data.vocabulary_tokenizer import Side, VocabularyTokenizer
    from transformer_jax.interop import marian
    from transformer_jax.interop.library import Foreign, export_state
    from transformer_jax.models import Transformer
    from transformer_jax.models.functions import init_params
    from transformer_jax.testing import tiny_tokenizer

    config = sized_model(
        "base",
        sinusoid_layout="halves_paper",
        decoder_start="pad",
        output_bias=True,
        source_vocab_size=VOCAB,
        target_vocab_size=VOCAB,
    )
    params = init_params(Transformer(config), jax.random.key(0))
    settings, state = export_state("marian", config, params)
    symbols = ("</s>", "<unk>", *(f"s{i}" for i in range(VOCAB - 3)), "<pad>")
    side = Side(symbols, "sentencepiece", tiny_tokenizer().models[0])
    ids = {"pad_id": VOCAB - 1, "bos_id": VOCAB - 1, "eos_id": 0, "unk_id": 1}
    tokenizer = VocabularyTokenizer(side, side, **ids)
    (folder / "hf").mkdir()
    marian.write(folder / "hf", Foreign(settings, state, tokenizer), config)
    return {"bytes": (folder / "hf" / "model.safetensors").stat().st_size}


def import_model(folder: Path) -> dict[str, float]:
    """Imports, and tells seconds and bytes."""
    import jax

    from transformer_jax.interop import marian  # noqa: F401
    from transformer_jax.interop.library import import_run

    jax.block_until_ready(jax.numpy.zeros(3))
    before = largest_resident_size()
    start = time.perf_counter()
    import_run("marian", folder / "hf", folder / "run")
    seconds = time.perf_counter() - start
    bytes_used = largest_resident_size() - before
    return {"seconds": round(seconds, 2), "bytes": bytes_used, "before": before}


def largest_resident_size() -> int:
    """Bytes of this process so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise ValueError("/proc/self/status has no VmHWM here: run this on Linux.")


def in_process(job: str, folder: Path) -> dict[str, Any]:
    """What a job of this script says, done by a process of its own."""
    words = ["--output", "-", "--child", job, "--folder", str(folder)]
    command = [sys.executable, __file__, *words]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(args: Args) -> None:
    """Writes the model, imports it, prints and keeps the numbers."""
    if args.child:
        job = {"write": write_model, "import": import_model}[args.child]
        print(json.dumps(job(args.folder)))
        return
    with tempfile.TemporaryDirectory() as name:
        size = in_process("write", Path(name))["bytes"]
        found = []
        for _ in range(args.repeats):
            found.append(in_process("import", Path(name)))
            shutil.rmtree(Path(name) / "run")
    largest = max(each["bytes"] for each in found)
    result = {
        "file_bytes": size,
        "import_seconds": statistics.median(each["seconds"] for each in found),
        "import_bytes": largest,
        "times_file_size": round(largest / size, 2),
        "times_file_size_each": [round(each["bytes"] / size, 2) for each in found],
        "bytes_before": found[0]["before"],
        "command": "python benchmarks/import_size.py",
        "hardware": args.hardware or platform.processor(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "date": time.strftime("%Y-%m-%d"),
    }
    args.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main(tyro.cli(Args))
