"""Golden files of JoeyNMT 2.3.0.

Needs an environment with that library (`remake.sh` makes one): its own vocabulary,
batch, model builder and checkpoint format are used.
"""
# pyright: reportMissingImports=false

import copy
import os
import tempfile
from pathlib import Path
from typing import Any

import golden
import joeynmt
import torch
import yaml
from joeynmt.batch import Batch
from joeynmt.config import load_config, parse_global_args
from joeynmt.model import build_model
from joeynmt.vocabulary import Vocabulary, build_vocab


def stack(layers: int, **changes: Any) -> dict[str, Any]:
    """The settings of one stack, as in the library's sample configurations."""
    return {
        "type": "transformer",
        "num_layers": layers,
        "num_heads": golden.HEADS,
        "embeddings": {"embedding_dim": golden.D_MODEL, "scale": True, "dropout": 0.0},
        "hidden_size": golden.D_MODEL,
        "ff_size": golden.D_FF,
        "dropout": 0.0,
        "layer_norm": "pre",
        "activation": "relu",
        **changes,
    }


def config(*, unset: str = "", **changes: Any) -> dict[str, Any]:
    """A whole configuration.

    Args:
        unset: A setting of the stacks that is left out, for the library's default.
        changes: Settings of the model, or with the prefix `both_` of both stacks.
    """
    both = {k.removeprefix("both_"): v for k, v in changes.items() if "both_" in k}
    own = {k: v for k, v in changes.items() if "both_" not in k}
    encoder = stack(golden.ENCODER_LAYERS, **both)
    decoder = stack(golden.DECODER_LAYERS, **both)
    for side in (encoder, decoder):
        side.pop(unset, None)
    model = {
        "initializer": "xavier_uniform",
        "tied_embeddings": False,
        "tied_softmax": False,
        "encoder": encoder,
        "decoder": decoder,
        **own,
    }
    side = {"level": "word", "lowercase": False}
    return {
        "name": "golden",
        "joeynmt_version": joeynmt.__version__,
        "model_dir": "model",
        "use_cuda": False,
        "data": {
            "train": "train",
            "dataset_type": "plain",
            "src": {"lang": "src", "voc_file": "src.txt", **side},
            "trg": {"lang": "trg", "voc_file": "trg.txt", **side},
        },
        "training": {"batch_size": 3},
        "testing": {},
        "model": model,
    }


UNSCALED = {"embedding_dim": golden.D_MODEL}
VARIANTS = {
    "pre": config(),
    "post": config(both_layer_norm="post"),
    "pre_tied": config(tied_embeddings=True, tied_softmax=True),
    "post_tied": config(
        tied_embeddings=True,
        tied_softmax=True,
        both_layer_norm="post",
        both_activation="gelu",
    ),
    "pre_target_output": config(
        tied_softmax=True, both_activation="swish", both_embeddings=UNSCALED
    ),
    "post_source_target": config(tied_embeddings=True, both_layer_norm="post"),
    "norm_unset": config(unset="layer_norm"),
    "alpha": config(both_alpha=1.5, both_layer_norm="post"),
    "xavier_normal": config(both_layer_norm="post", initializer="xavier_normal"),
}


def vocabularies(settings: dict[str, Any]) -> tuple[Vocabulary, Vocabulary]:
    """Vocabularies that the library reads from files, as it does in training."""
    joint = settings["model"]["tied_embeddings"]
    source = golden.JOINT_WORDS if joint else golden.SOURCE_WORDS
    target = golden.JOINT_WORDS if joint else golden.TARGET_WORDS
    Path("src.txt").write_text("".join(f"{word}\n" for word in source))
    Path("trg.txt").write_text("".join(f"{word}\n" for word in target))
    Path("config.yaml").write_text(yaml.safe_dump(settings))
    args = parse_global_args(load_config("config.yaml"), mode="train")
    return build_vocab(args.data)


def batch(source_vocab: Vocabulary, target_vocab: Vocabulary) -> Batch:
    """The sentences, numbered and padded as the library's data sets do it."""
    sources, targets = zip(*golden.PAIRS, strict=True)
    source, lengths, _ = source_vocab.sentences_to_ids(
        [line.split() for line in sources], bos=False, eos=True
    )
    target, _, _ = target_vocab.sentences_to_ids(
        [line.split() for line in targets], bos=True, eos=True
    )
    return Batch(
        src=torch.tensor(source),
        src_length=torch.tensor(lengths),
        src_prompt_mask=None,
        trg=torch.tensor(target),
        trg_prompt_mask=None,
        indices=torch.arange(len(sources)),
        device=torch.device("cpu"),
        pad_index=target_vocab.pad_index,
        eos_index=target_vocab.eos_index,
    )


def make(variant: str, seed: int) -> None:
    """One variant: configuration, model, checkpoint, forward pass."""
    settings = copy.deepcopy(VARIANTS[variant])
    source_vocab, target_vocab = vocabularies(settings)
    model = build_model(settings["model"], source_vocab, target_vocab)
    golden.fill(model, seed)
    model.eval()
    encoder_layers = golden.watch(model.encoder.layers)
    decoder_layers = golden.watch(model.decoder.layers)
    encoder_outputs = golden.watch([model.encoder])
    ids = batch(source_vocab, target_vocab)
    with torch.no_grad():
        logits, hidden, _, _ = model._encode_decode(**vars(ids))
    # The other entries of a real checkpoint are states of the training.
    torch.save({"model_state": model.state_dict()}, "best.ckpt")
    checkpoint = torch.load("best.ckpt", weights_only=True)["model_state"]
    tables = {"encoder.pe.pe": 1, "decoder.pe.pe": 1}
    state, whole = golden.cut(checkpoint, tables)
    source_vocab.to_file(Path("src_vocab.txt"))
    target_vocab.to_file(Path("trg_vocab.txt"))
    golden.write(
        f"joeynmt_{variant}",
        {
            **{f"state/{key}": tensor for key, tensor in state.items()},
            "source": ids.src,
            "decoder_inputs": ids.trg_input,
            **golden.named("encoder_layer", encoder_layers),
            **golden.named("decoder_layer", decoder_layers),
            "encoded": encoder_outputs[0],
            "decoded": hidden,
            "logits": logits,
        },
        {
            "library": "JoeyNMT",
            "version": joeynmt.__version__,
            "config": settings,
            "alpha": {  # what the built layers hold, whatever the settings say
                "encoder": model.encoder.layers[0].alpha,
                "decoder": model.decoder.layers[0].alpha,
            },
            "src_vocab.txt": Path("src_vocab.txt").read_text().splitlines(),
            "trg_vocab.txt": Path("trg_vocab.txt").read_text().splitlines(),
            "ids": {
                name: getattr(target_vocab, f"{name}_index")
                for name in ("unk", "pad", "bos", "eos")
            },
            "cut_tables": whole,
        },
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for number, variant in enumerate(VARIANTS):
            make(variant, seed=100 + number)
