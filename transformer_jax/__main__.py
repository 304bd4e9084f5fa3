"""The command `transformer-jax`: finds the verb, reports mistakes in one message."""

import contextlib
import difflib
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Sequence

import transformer_jax
from transformer_jax.compilation import keep_compiled_programs

VERBS = {
    "train": "train a model, or go on with a training that was stopped",
    "translate": "translate lines of text",
    "shortlist": "learn which pieces a piece may become, for translate --shortlist",
    "score": "log-probabilities of given translations",
    "evaluate": "BLEU, chrF and TER of a run, or of a file of translations",
    "average": "average the parameters of several checkpoints",
    "attention": "draw what attention looks at in a sentence",
    "import": "make a run from another library's model",
    "export": "write a run's weights as another library's model",
    "compare": "find the first layer in which two models differ",
    "inspect": "what is in a run: step, parameters, settings",
    "demo": "train on the phrasebook in minutes, then translate",
}
"""Each verb is the module of that name in `transformer_jax.cli`."""

HELP = """\
usage: transformer-jax VERB [options]

The encoder-decoder Transformer in JAX and Flax.

verbs:
{verbs}

  transformer-jax VERB --help   lists the options of a verb

options:
  --version   versions of the package and of jax, and the devices
  --debug     show the traceback of an error
  -h, --help  show this text

A first run:

  transformer-jax train --config phrasebook --workdir runs/phrasebook
  echo "ich möchte ein Bier" | transformer-jax translate --checkpoint runs/phrasebook
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; returns its exit code: 0, 1 for an error, 2 for a wrong usage."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        with _plain_warnings():
            return _dispatch(words)
    except BrokenPipeError:
        # The reader of our output has left; nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        if debug:
            traceback.print_exc()
        else:
            print(f"error: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        if debug:
            raise
        kind = type(error).__name__
        print(f"error: {kind}: {error}\n--debug shows where.", file=sys.stderr)
        return 1


class _Plainly(logging.Handler):
    """Writes records to stderr as `warning: …`, above a progress bar if any."""

    def emit(self, record: logging.LogRecord) -> None:
        import tqdm

        level = record.levelname.lower()
        tqdm.tqdm.write(f"{level}: {record.getMessage()}", file=sys.stderr)


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """What the package logs is told in the form of the command's own messages."""
    logger, handler = logging.getLogger("transformer_jax"), _Plainly(logging.WARNING)
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = True


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(help_text(), end="")
        return 0 if words else 2
    if words[0] == "--version":
        print(versions())
        return 0
    verb, *rest = words
    if verb not in VERBS:
        close = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        print(
            f"error: there is no verb {verb!r}.{hint} Verbs: {', '.join(VERBS)}.",
            file=sys.stderr,
        )
        return 2
    keep_compiled_programs()
    module = importlib.import_module(f"transformer_jax.cli.{verb}")
    prog = f"transformer-jax {verb}"
    if hasattr(module, "parse"):
        return module.run(module.parse(rest, prog=prog))
    import tyro

    return module.run(tyro.cli(module.Args, prog=prog, args=rest))


def help_text() -> str:
    """The verbs and the options that all of them share."""
    width = max(map(len, VERBS)) + 2
    lines = [f"  {verb:<{width}}{purpose}" for verb, purpose in VERBS.items()]
    return HELP.format(verbs="\n".join(lines))


def versions() -> str:
    """Package, jax and devices."""
    import jax

    devices = jax.devices()
    return (
        f"transformer_jax {transformer_jax.__version__}\n"
        f"jax {jax.__version__}\n"
        f"devices: {len(devices)} × {devices[0].device_kind} ({devices[0].platform})"
    )


if __name__ == "__main__":
    sys.exit(main())
