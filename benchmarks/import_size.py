"""Time and memory of importing a model of real size, with random weights.

python benchmarks/import_size.py --output benchmarks/results/import_size.json

A Marian model of Transformer-base size (6 + 6 layers, d_model 512, d_ff 2048, 8 heads,
58 101 symbols) is written as another library would, then imported by a process of its
own, whose largest resident size is read. What the process needs before it opens the
file (Python, jax) is measured first and subtracted.
"""

import dataclasses
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import tyro

VOCAB = 58_101


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """See above."""

    output: Path
    """JSON file for the numbers."""
    hardware: str = ""
    """What it ran on, in words."""
    child: str = ""
    """Used by the script itself."""


def write_model(folder: Path) -> int:
    """A folder as OPUS-MT models have it; returns the size of the weights in bytes."""
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
    marian.write(folder, Foreign(settings, state, tokenizer), config)
    return (folder / "model.safetensors").stat().st_size


def child(folder: Path) -> dict[str, float]:
    """Imports, and tells seconds and bytes."""
    from transformer_jax.interop import marian  # noqa: F401
    from transformer_jax.interop.library import import_run

    jax.block_until_ready(jax.numpy.zeros(3))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    start = time.perf_counter()
    import_run("marian", folder / "hf", folder / "run")
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": round(seconds, 2), "bytes": peak - before}


def main(args: Args) -> None:
    """Writes the model, runs the child, prints and keeps the numbers."""
    if args.child:
        print(json.dumps(child(Path(args.child))))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "hf").mkdir()
        size = write_model(folder / "hf")
        command = [sys.executable, __file__, "--output", "-", "--child", name]
        text = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(text.stdout.splitlines()[-1])
    result = {
        "file_bytes": size,
        "import_seconds": found["seconds"],
        "import_bytes": found["bytes"],
        "times_file_size": round(found["bytes"] / size, 2),
        "command": "python benchmarks/import_size.py",
        "hardware": args.hardware or platform.processor(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "numpy": np.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
    args.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main(tyro.cli(Args))
