"""Score a Multi30k run on the test sets, and keep the result with its log as JSON.

python benchmarks/multi30k.py --checkpoint runs/m30k --data PATH \
    --output benchmarks/results/multi30k_en_de.json

Averages the last checkpoints, translates test_2016_flickr and test_2017_flickr as the
run's own settings say (beam 5), and scores the tokenised recipe in the papers' way
(tokenised and lower-cased, no further tokenisation) and the raw one as sacreBLEU does.
Nothing is chosen here: the number of checkpoints is set beforehand, as Wu et al. did.
"""

import argparse
import dataclasses
import datetime
import json
import platform
import shlex
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from transformer_jax.checkpoint import CheckpointStore
from transformer_jax.cli import average
from transformer_jax.config import Config
from transformer_jax.data.sources import open_split
from transformer_jax.recipes import config_from_json
from transformer_jax.trainer.reporting import environment
from transformer_jax.translation.evaluation import evaluate_translation
from transformer_jax.translation.translator import Translator

TEST_SETS = ("test_2016_flickr", "test_2017_flickr")


def score_test_set(
    translator: Translator, config: Config, split: str, workdir: Path
) -> dict[str, Any]:
    """BLEU, chrF and speed on one test set."""
    pairs = open_split(config.data, split, workdir=workdir)
    sources = [pairs[i].source for i in range(len(pairs))]
    references = [pairs[i].target for i in range(len(pairs))]
    start = time.monotonic()
    found = [one.text for one in translator.translate(sources, scores=False)]
    seconds = time.monotonic() - start
    if config.data.tokenized:
        names = ("bleu_tokenized_lowercased", "signature_tokenized_lowercased")
        scores = evaluate_translation(found, references, tokenize="none")
    else:
        names = ("sacrebleu", "signature")
        scores = evaluate_translation(found, references)
    return {
        names[0]: scores["bleu"],
        names[1]: scores["bleu_signature"],
        "chrf": scores["chrf"],
        "chrf_signature": scores["chrf_signature"],
        "sentences": len(sources),
        "seconds_with_compilation": round(seconds, 1),
    }


def training_record(log: Path) -> dict[str, Any]:
    """What the log of a run says of it: time, speed and the last dev scores."""
    lines = log.read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    starts = [e for e in events if e["event"] in ("start", "resume")]
    updates = [e for e in events if e["event"] == "train"]
    dev = [e for e in events if e["event"] == "evaluate"]
    return {
        "commits": [e.get("commit") for e in starts],
        "steps": max(e["step"] for e in updates),
        "wall_seconds": max(e["seconds"] for e in events),
        "target_tokens": updates[-1]["tokens"],
        "last_dev": {k: dev[-1][k] for k in ("step", "loss", "bleu")} if dev else None,
    }


def main() -> None:
    """Averages, translates, scores, writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="the run")
    parser.add_argument("--data", type=Path, help="folder with the authors' files")
    parser.add_argument("--last", type=int, default=10, help="checkpoints averaged")
    parser.add_argument("--training-command", default="", help="how it was trained")
    parser.add_argument("--hardware", default=platform.processor() or "cpu")
    parser.add_argument("--output", type=Path, required=True, help="JSON to write")
    args = parser.parse_args()
    config = config_from_json(CheckpointStore(args.checkpoint).config_json())
    if args.data:
        data = dataclasses.replace(config.data, dir=args.data)
        config = dataclasses.replace(config, data=data)
    with tempfile.TemporaryDirectory() as folder:
        averaged = Path(folder) / "averaged"
        average.run(average.Args(args.checkpoint, averaged, last=args.last))
        translator = Translator.load(averaged)
        results: dict[str, Any] = {
            split: score_test_set(translator, config, split, args.checkpoint)
            for split in TEST_SETS
        }
    results |= {
        "training_command": args.training_command,
        "command": shlex.join(["python", *sys.argv]),
        "averaged_checkpoints": args.last,
        "search": json.loads(CheckpointStore(args.checkpoint).config_json())["search"],
        "hardware": args.hardware,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "training": training_record(args.checkpoint / "log.jsonl"),
        **environment(),
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    log = args.output.with_suffix(".log.jsonl")
    shutil.copy(args.checkpoint / "log.jsonl", log)
    print(json.dumps({split: results[split] for split in TEST_SETS}, indent=2))
    print(f"written: {args.output} and {log}")


if __name__ == "__main__":
    main()
