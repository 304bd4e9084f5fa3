"""transformer-jax demo: train on the phrasebook in minutes, then translate with it."""

import dataclasses
import datetime
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformer_jax.allocation import keep_freed_memory
from transformer_jax.recipes import load_recipe

if TYPE_CHECKING:
    from transformer_jax.data.sources import Pair
    from transformer_jax.trainer.loop import TrainResult
    from transformer_jax.translation.translator import Translator

SENTENCES_FILE = "sentences.txt"
RESULTS_FILE = "results.json"
OWN_SENTENCES = """\
ich möchte ein Bier
wann kommt der Zug an?
der Apfel ist billiger als die Birnen
warum kauft deine Schwester ohne mich ein?
am Dienstag wollen wir dem Nachbarn einen Brief schicken
sie weiß, dass der müde Hund nicht singen kann
"""
NUM_SHOWN, LONGEST_SHOWN = 8, 40


@dataclasses.dataclass(frozen=True)
class Args:
    """Train on the phrasebook, a generated German-English corpus, and translate.

    The first time takes minutes; afterwards the finished run is there, and only the
    sentences are translated. Edit sentences.txt in the run's folder and run it again.
    """

    workdir: Path = Path("runs/phrasebook")
    """Folder of the run."""
    config: str = "phrasebook"
    """Recipe to train; its data set needs a split named test."""


def run(args: Args) -> int:
    """Trains or takes the finished run, scores it, and shows translations."""
    config = load_recipe(args.config)
    if config.data.batching == "pack":
        keep_freed_memory()
    from transformer_jax.data.sources import open_split
    from transformer_jax.trainer.loop import train
    from transformer_jax.translation.translator import Translator

    result = train(config, args.workdir)
    if result.signal is not None:
        return result.exit_code
    translator = Translator.load(args.workdir)
    split = open_split(config.data, "test", workdir=args.workdir)
    pairs = [split[index] for index in range(len(split))]
    scores = _scores(args, result, translator, pairs)
    shown = [pair for pair in pairs if max(map(len, pair)) <= LONGEST_SHOWN]
    shown = shown[:: max(len(shown) // NUM_SHOWN, 1)][:NUM_SHOWN]
    print("\nSentences that training never saw\n")
    show(
        [pair.source for pair in shown],
        [pair.target for pair in shown],
        translate(translator, [pair.source for pair in shown]),
    )
    own = own_sentences(args.workdir / SENTENCES_FILE)
    print(f"\nYour sentences, from {args.workdir / SENTENCES_FILE}\n")
    show(own, None, translate(translator, own))
    print(_closing(args, scores))
    return 0


def translate(translator: "Translator", lines: Sequence[str]) -> list[str]:
    """The best translation of each line."""
    found = translator.translate(list(lines), scores=False)
    return [each.text for each in found]


def show(
    sources: Sequence[str], references: Sequence[str] | None, found: Sequence[str]
) -> None:
    """Prints source, reference and translation side by side, or below each other
    where the terminal is too narrow."""
    columns = {"source": sources, "reference": references, "translation": found}
    columns = {name: texts for name, texts in columns.items() if texts}
    widths = [2 + max(map(len, [name, *texts])) for name, texts in columns.items()]
    if 2 + sum(widths) > shutil.get_terminal_size(fallback=(132, 24)).columns:
        for row in zip(*columns.values(), strict=True):
            for name, text in zip(columns, row, strict=True):
                print(f"  {name:<13}{text}")
            print()
        return
    for row in [tuple(columns), *zip(*columns.values(), strict=True)]:
        cells = (f"{text:<{width}}" for text, width in zip(row, widths, strict=True))
        print("  " + "".join(cells).rstrip())


def own_sentences(path: Path) -> list[str]:
    """The reader's sentences; the file is made with a few at first."""
    if not path.exists():
        path.write_text(OWN_SENTENCES, encoding="utf-8")
    lines = path.read_text(encoding="utf-8").split("\n")
    return [line.strip() for line in lines if line.strip()]


def _scores(
    args: Args, result: "TrainResult", translator: "Translator", pairs: "list[Pair]"
) -> dict[str, Any]:
    """BLEU on the whole test split, from results.json when it is of this training."""
    path = args.workdir / RESULTS_FILE
    if path.exists():
        known = json.loads(path.read_text(encoding="utf-8"))
        if known.get("step") == result.step:
            return known
    from transformer_jax.trainer.reporting import environment
    from transformer_jax.translation.evaluation import evaluate_translation

    print(f"\nTranslating the test split, {len(pairs):,} sentences …", flush=True)
    start = time.monotonic()
    found = translate(translator, [pair.source for pair in pairs])
    seconds = time.monotonic() - start
    scores = evaluate_translation(found, [pair.target for pair in pairs])
    exact = sum(a == pair.target for a, pair in zip(found, pairs, strict=True))
    results = {
        "bleu": scores["bleu"],
        "signature": scores["bleu_signature"],
        "chrf": scores["chrf"],
        "exact_matches": exact / len(pairs),
        "sentences": len(pairs),
        "seconds": round(result.progress.seconds, 1),
        "tokens_per_second": round(result.progress.tokens_per_second, 1),
        "translation_seconds": round(seconds, 1),
        "step": result.step,
        "best_step": result.progress.best_step,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        **environment(),
    }
    text = json.dumps(results, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
    return results


def _closing(args: Args, scores: dict[str, Any]) -> str:
    """The score, where things are, and what to try next."""
    run, command = args.workdir, _command()
    return f"""
BLEU {scores["bleu"]:.2f} on {scores["sentences"]:,} held-out sentences
  {scores["signature"]}
  trained in {scores["seconds"]:,.0f} s, {scores["tokens_per_second"]:,.0f} \
target tokens/s on {scores["devices"]} × {scores["device"]}

checkpoints  {run}
curves       {run / "curves.png"}
logs         {run / "log.jsonl"}
results      {run / RESULTS_FILE}

Try next
  edit {run / SENTENCES_FILE} and run this again
  echo "ich möchte ein Bier" | {command} translate --checkpoint {run}
  {command} attention --checkpoint {run} \\
      --sentence "ich möchte ein Bier" --output {run / "attention"}
  {command} train --config multi30k_en_de --workdir runs/multi30k_en_de
"""


def _command() -> str:
    """How this program was called, if that is short."""
    called = Path(sys.argv[0])
    if called.name != "transformer-jax":
        return "python -m transformer_jax"
    inside = called.is_absolute() and called.is_relative_to(Path.cwd())
    if inside:
        called = called.relative_to(Path.cwd())
    return called.name if called.is_absolute() else str(called)
