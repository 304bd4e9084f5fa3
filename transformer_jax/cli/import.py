"""transformer-jax import: a run from another library's model."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

Library = Literal[
    "marian", "torch", "annotated", "fairseq", "opennmt", "sockeye", "joeynmt"
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """Make a run from another library's model.

    translate, score, evaluate and train --init-from take it as any other run. Nothing
    is dropped: a model that cannot be expressed exactly is refused, with the list of
    what differs. Files are not trusted: arrays are read, programs in them never run.

    marian     a folder with config.json, model.safetensors (or pytorch_model.bin),
               vocab.json, source.spm, target.spm, as OPUS-MT models have them
    torch      a folder with model.safetensors (or .pt) and config.json
    annotated  the same, of the Annotated Transformer
    fairseq    a checkpoint (.pt); dict.*.txt beside it or as --source-vocab
    opennmt    a checkpoint (.pt) of OpenNMT-py 3
    sockeye    a model folder of Sockeye 3
    joeynmt    a model folder of JoeyNMT 2
    """

    path: Annotated[Path, tyro.conf.Positional]
    """The model's file or folder."""
    kind: Annotated[Library, tyro.conf.arg(name="from")]
    """The library that it is of."""
    output: Path
    """The run to write; must not be there yet."""
    settings: Path | None = None
    """JSON file with the model's settings, where its own files lack them."""
    source_vocab: Path | None = None
    """Symbols of the source, one a line in the order of their ids, where the model's
    own files lack them. Without any, text is token ids with spaces between."""
    target_vocab: Path | None = None
    """Symbols of the target; default: those of the source."""
    source_codes: Path | None = None
    """BPE codes (subword-nmt) or SentencePiece model of the source. Default: what the
    model's folder has, else words are split at white space."""
    target_codes: Path | None = None
    """The same of the target; default: that of the source."""


def run(args: Args) -> int:
    """Writes the run and says what it is."""
    from transformer_jax.checkpoint import CheckpointStore
    from transformer_jax.data.tokenizer import load_tokenizer
    from transformer_jax.interop.library import Options, import_run
    from transformer_jax.interop.vocabularies import described

    options = Options(
        **{name: getattr(args, name) for name in Options._fields},
    )
    model = import_run(args.kind, args.path, args.output, options)
    print(
        f"{args.output}: {model.num_encoder_layers}+{model.num_decoder_layers} layers, "
        f"d_model {model.d_model}, {model.source_vocab_size:,} source and "
        f"{model.target_vocab_size:,} target symbols, from {args.path}"
    )
    store = CheckpointStore(args.output)
    tokenizer = load_tokenizer(store.tokenizer_files(0))
    print(f"tokenizer: {described(tokenizer)}")
    for note in (store.origin() or {})["only_in_training"]:
        print(f"only in training: {note}")
    print(f"next         transformer-jax translate --checkpoint {args.output}")
    return 0
