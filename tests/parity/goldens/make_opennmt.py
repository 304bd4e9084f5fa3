"""Golden files of OpenNMT-py 3.5.1.

Needs an environment with that library (`remake.sh` makes one): its own options, model,
saver and numbering of text are used, and the state is read back from its checkpoint.
"""
# pyright: reportMissingImports=false

import os
import tempfile
import warnings
from argparse import Namespace
from pathlib import Path
from typing import Any

import golden
import onmt
import torch
from onmt.bin.train import _get_parser
from onmt.inputters.inputter import build_vocab
from onmt.inputters.text_utils import numericalize, tensorify
from onmt.model_builder import build_model
from onmt.models.model_saver import ModelSaver
from onmt.utils.optimizers import Optimizer
from onmt.utils.parse import ArgumentParser

BASE = f"""
-save_model model -encoder_type transformer -decoder_type transformer
-enc_layers {golden.ENCODER_LAYERS} -dec_layers {golden.DECODER_LAYERS}
-hidden_size {golden.D_MODEL} -word_vec_size {golden.D_MODEL} -heads {golden.HEADS}
-transformer_ff {golden.D_FF} -dropout 0 -attention_dropout 0 -optim adam
-learning_rate 1 -param_init_glorot -param_init 0 -vocab_size_multiple 1
"""
SHARED = "-share_vocab -share_embeddings -share_decoder_embeddings"
VARIANTS = {
    "separate": "-position_encoding -add_ffnbias",
    "shared": f"-position_encoding -add_ffnbias -add_qkvbias {SHARED} "
    "-pos_ffn_activation_fn gelu",
    "target_output": "-position_encoding -add_ffnbias -share_decoder_embeddings "
    "-self_attn_type scaled-dot -norm_eps 1e-5",
    "source_target": "-position_encoding -add_ffnbias -share_vocab -share_embeddings",
    "concat_gated_gelu": "-position_encoding -position_encoding_type SinusoidalConcat "
    "-add_ffnbias -add_qkvbias -pos_ffn_activation_fn gated-gelu",
    "silu_no_ffn_bias": "-position_encoding -pos_ffn_activation_fn silu",
    "no_positions": "-add_ffnbias",
    "start_eos_padded_vocab": "-position_encoding -add_ffnbias "
    "-decoder_start_token </s> -vocab_size_multiple 8",
    "rms_rotary": "-add_ffnbias -layer_norm rms -max_relative_positions -1",
}
TABLES = [
    "model.encoder.embeddings.make_embedding.pe.pe",
    "model.decoder.embeddings.make_embedding.pe.pe",
]


def options(variant: str) -> Namespace:
    """What the command line of `onmt_train` would make of a variant's options."""
    words = f"{BASE} {VARIANTS[variant]}".split()
    shared = "-share_vocab" in words
    sides = {
        "src": golden.JOINT_WORDS if shared else golden.SOURCE_WORDS,
        "tgt": golden.JOINT_WORDS if shared else golden.TARGET_WORDS,
    }
    for side, vocabulary in sides.items():
        Path(f"vocab.{side}").write_text("".join(f"{word}\n" for word in vocabulary))
        text = [pair[side == "tgt"] for pair in golden.PAIRS]
        Path(f"train.{side}").write_text("".join(f"{line}\n" for line in text))
    words += ["-src_vocab", "vocab.src", "-tgt_vocab", "vocab.tgt"]
    words += ["-data", "{train: {path_src: train.src, path_tgt: train.tgt}}"]
    opt = _get_parser().parse_args(words)
    ArgumentParser.validate_train_opts(opt)
    ArgumentParser.update_model_opts(opt)
    ArgumentParser.validate_model_opts(opt)
    ArgumentParser.validate_prepare_opts(opt)
    return opt


def batch(vocabs: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The sentences, numbered and padded as in training."""
    examples = [
        numericalize(vocabs, {"src": {"src": source}, "tgt": {"tgt": target}})
        for source, target in golden.PAIRS
    ]
    rows = [
        ({**example, "cid": "train", "cid_line_number": i}, i)
        for i, example in enumerate(examples)
    ]
    return tensorify(vocabs, rows, torch.device("cpu"))


def saved(opt: Namespace, model: torch.nn.Module, vocabs: dict[str, Any]) -> dict:
    """The checkpoint file that training would write, read back."""
    optimizer = Optimizer.from_opt(model, opt)
    ModelSaver(opt.save_model, model, opt, vocabs, optimizer).save(1)
    # The options are a pickled argparse.Namespace, made by the line above.
    return torch.load("model_step_1.pt", weights_only=False)


def make(variant: str, seed: int) -> None:
    """One variant: options, model, checkpoint, forward pass."""
    opt = options(variant)
    vocabs = build_vocab(opt, {"src": [], "tgt": []})
    model = build_model(opt, opt, vocabs, None, -1)
    golden.fill(model, seed)
    model.eval()
    encoder_layers = golden.watch(model.encoder.transformer)
    decoder_layers = golden.watch(model.decoder.transformer_layers)
    encoder_outputs = golden.watch([model.encoder])
    ids = batch(vocabs)
    with torch.no_grad():
        hidden, _ = model(ids["src"], ids["tgt"], ids["srclen"])
        logits = model.generator(hidden)
    checkpoint = saved(opt, model, vocabs)
    state = {
        f"{part}.{key}": tensor
        for part in ("model", "generator")
        for key, tensor in checkpoint[part].items()
    }
    tables = {name: 0 for name in TABLES if name in state}
    state, whole = golden.cut(state, tables)
    vocab = vocabs["tgt"]
    golden.write(
        f"opennmt_{variant}",
        {
            **{f"state/{key}": tensor for key, tensor in state.items()},
            "source": ids["src"][:, :, 0],
            # The model drops the last column itself. Shorter rows keep their </s>.
            "decoder_inputs": ids["tgt"][:, :-1, 0],
            **golden.named("encoder_layer", encoder_layers),
            **golden.named("decoder_layer", decoder_layers),
            "encoded": encoder_outputs[0],
            "decoded": hidden,
            "logits": logits,
        },
        {
            "library": "OpenNMT-py",
            "version": onmt.__version__,
            "top_level": {key: type(part).__name__ for key, part in checkpoint.items()},
            "opt": vars(checkpoint["opt"]),
            "vocab": checkpoint["vocab"],
            "ids": {"unk": vocab["<unk>"], "pad": vocab["<blank>"]}
            | {"bos": vocab["<s>"], "eos": vocab["</s>"]},
            "cut_tables": whole,
        },
    )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for number, variant in enumerate(VARIANTS):
            make(variant, seed=number)
