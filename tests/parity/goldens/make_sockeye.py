"""Golden files of Sockeye 3.1.34.

Needs an environment with that library (`remake.sh` makes one): its own command line,
model, readers of text and model folder are used.
"""
# pyright: reportMissingImports=false

import argparse
import os
import tempfile
from pathlib import Path

import golden
import torch
from sockeye import arguments, data_io, vocab
from sockeye import constants as C  # noqa: N812, its own name for it
from sockeye.model import ModelConfig, SockeyeModel
from sockeye.train import create_model_config

BASE = f"""
--output model --source train.src --target train.trg
--validation-source train.src --validation-target train.trg --num-layers
{golden.ENCODER_LAYERS}:{golden.DECODER_LAYERS}
--transformer-model-size {golden.D_MODEL} --transformer-attention-heads {golden.HEADS}
--transformer-feed-forward-num-hidden {golden.D_FF} --transformer-dropout-attention 0
--transformer-dropout-act 0 --transformer-dropout-prepost 0
"""
POST = ["--transformer-preprocess", "", "--transformer-postprocess", "drn"]
SEPARATE = ["--weight-tying-type", "none"]
VARIANTS = {
    "pre_shared": [],
    "pre_separate": SEPARATE,
    "post_shared": [*POST, "--transformer-activation-type", "swish1"],
    "post_separate": [*POST, *SEPARATE, "--transformer-activation-type", "gelu"],
    "pre_target_output": ["--weight-tying-type", "trg_softmax"],
    "post_source_target": [*POST, "--weight-tying-type", "src_trg"],
    "glu_learned": [
        *SEPARATE,
        "--transformer-feed-forward-use-glu",
        "--transformer-activation-type=gelu",
        "--transformer-positional-embedding-type=learned",
    ],
    "n_drn": ["--transformer-postprocess", "drn"],
    "length_task": ["--length-task", "ratio", "--length-task-layers", "1"],
    "ssru": ["--decoder", "ssru_transformer"],
}


def vocabulary(words: list[str]) -> vocab.Vocab:
    """The numbering that the library makes of a text with each of these words once."""
    return vocab.build_vocab([" ".join(words)])


def settings(variant: str, sizes: tuple[int, int]) -> ModelConfig:
    """What the command line of `sockeye-train` would make of a variant's options."""
    parser = argparse.ArgumentParser()
    arguments.add_train_cli_args(parser)
    args = parser.parse_args([*BASE.split(), *VARIANTS[variant]])
    statistics = data_io.DataStatistics(
        num_sents=len(golden.PAIRS),
        num_discarded=0,
        num_tokens_source=12,
        num_tokens_target=13,
        num_unks_source=1,
        num_unks_target=1,
        max_observed_len_source=6,
        max_observed_len_target=6,
        size_vocab_source=sizes[0],
        size_vocab_target=sizes[1],
        length_ratio_mean=1.0,
        length_ratio_std=0.5,
        buckets=[(golden.POSITIONS, golden.POSITIONS)],
        num_sents_per_bucket=[len(golden.PAIRS)],
        average_len_target_per_bucket=[4.0],
    )
    data = data_io.DataConfig(
        data_statistics=statistics,
        max_seq_len_source=golden.POSITIONS,
        max_seq_len_target=golden.POSITIONS,
        num_source_factors=1,
        num_target_factors=1,
    )
    return create_model_config(
        args, [sizes[0]], [sizes[1]], golden.POSITIONS, golden.POSITIONS, data
    )


def padded(rows: list[list[int]]) -> torch.Tensor:
    """[B, L, 1]: rows of ids, one factor."""
    tensors = [torch.tensor(row) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(
        tensors, batch_first=True, padding_value=C.PAD_ID
    )[:, :, None]


def write_text() -> None:
    """The sentences as files: the command line asks for some, the readers read them."""
    sources, targets = zip(*golden.PAIRS, strict=True)
    Path("train.src").write_text("".join(f"{line}\n" for line in sources))
    Path("train.trg").write_text("".join(f"{line}\n" for line in targets))


def batch(
    source_vocab: vocab.Vocab, target_vocab: vocab.Vocab
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Source, its lengths, and decoder inputs, as the library's readers number them."""
    source_reader, target_reader = data_io.create_sequence_readers(
        ["train.src"], ["train.trg"], [source_vocab], [target_vocab]
    )
    source_rows = list(source_reader[0])
    lengths = torch.tensor([[len(row), 0] for row in source_rows])
    target_rows = [[*row, C.EOS_ID] for row in target_reader[0]]
    target, _ = data_io.create_target_and_shifted_label_sequences(padded(target_rows))
    return padded(source_rows), lengths, target


def save(model: SockeyeModel, source: vocab.Vocab, target: vocab.Vocab) -> Path:
    """A model folder, as training leaves it."""
    folder = Path("model")
    folder.mkdir(exist_ok=True)
    model.save_config(str(folder))
    model.save_version(str(folder))
    vocab.save_source_vocabs([source], str(folder))
    vocab.save_target_vocabs([target], str(folder))
    model.save_parameters(str(folder / C.PARAMS_BEST_NAME))
    return folder


def make(variant: str, seed: int) -> None:
    """One variant: options, model, folder, forward pass."""
    separate = not {"none", "trg_softmax"}.isdisjoint(VARIANTS[variant])
    source_vocab = vocabulary(golden.SOURCE_WORDS if separate else golden.JOINT_WORDS)
    target_vocab = vocabulary(golden.TARGET_WORDS if separate else golden.JOINT_WORDS)
    config = settings(variant, (len(source_vocab), len(target_vocab)))
    model = SockeyeModel(config)
    golden.fill(model, seed)
    folder = save(model, source_vocab, target_vocab)
    model.eval()
    encoder_layers = golden.watch(model.encoder.layers)
    decoder_layers = golden.watch(model.decoder.layers)
    encoder_outputs = golden.watch([model.encoder])
    decoder_outputs = golden.watch([model.decoder.final_process])
    source, lengths, target = batch(source_vocab, target_vocab)
    with torch.no_grad():
        outputs = model(source, lengths, target, None)
    state = torch.load(folder / C.PARAMS_BEST_NAME, weights_only=True)
    time_first = {
        **golden.named("encoder_layer", encoder_layers),
        **golden.named("decoder_layer", decoder_layers),
        "decoded": decoder_outputs[0],
    }
    golden.write(
        f"sockeye_{variant}",
        {
            **{f"state/{key}": tensor for key, tensor in state.items()},
            "source": source[:, :, 0],
            "decoder_inputs": target[:, :, 0],
            **{key: tensor.transpose(0, 1) for key, tensor in time_first.items()},
            "encoded": encoder_outputs[0],
            "logits": outputs[C.LOGITS_NAME],
        },
        {
            "library": "Sockeye",
            "version": (folder / C.VERSION_NAME).read_text(),
            "options": [*BASE.split(), *VARIANTS[variant]],
            "files": sorted(path.name for path in folder.iterdir()),
            "config": (folder / C.CONFIG_NAME).read_text(),
            **{
                name: (folder / name).read_text()
                for name in (C.VOCAB_SRC_NAME % 0, C.VOCAB_TRG_NAME % 0)
            },
            "ids": {
                "unk": C.UNK_ID,
                "pad": C.PAD_ID,
                "bos": C.BOS_ID,
                "eos": C.EOS_ID,
            },
        },
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder_name:
        os.chdir(folder_name)
        write_text()
        for number, name in enumerate(VARIANTS):
            make(name, seed=200 + number)
