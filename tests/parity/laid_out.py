"""Models of golden files, laid out as OpenNMT-py, Sockeye and JoeyNMT do it."""

import argparse
import json
from collections import OrderedDict
from pathlib import Path

import pytest

from transformer_jax.__main__ import main
from transformer_jax.interop.files import read_tensors
from transformer_jax.models.embeddings import sinusoidal_table

torch = pytest.importorskip("torch")
yaml = pytest.importorskip("yaml")

GOLDENS = Path(__file__).parent / "goldens"
GOLDEN = {
    "opennmt": "opennmt_shared",
    "sockeye": "sockeye_pre_shared",
    "joeynmt": "joeynmt_pre_tied",
}


def golden(kind):
    """Tensors with whole sinusoid tables, and what else the golden file says."""
    name = GOLDEN[kind]
    arrays = read_tensors(GOLDENS / f"{name}.safetensors")
    about = json.loads((GOLDENS / f"{name}.json").read_text(encoding="utf-8"))
    state = OrderedDict(
        (key.removeprefix("state/"), torch.from_numpy(array))
        for key, array in arrays.items()
        if key.startswith("state/")
    )
    for key, shape in about.get("cut_tables", {}).items():
        whole = sinusoidal_table(5000, shape[-1]).reshape(shape)
        state[key] = torch.from_numpy(whole)
    return state, about


def part_of(start, state):
    return {
        key.removeprefix(start): x for key, x in state.items() if key.startswith(start)
    }


def lay_out_opennmt(folder, state, about):
    opt = {**about["opt"], "_all_transform": set(about["opt"]["_all_transform"])}
    checkpoint = {
        "model": part_of("model.", state),
        "generator": part_of("generator.", state),
        "vocab": about["vocab"],
        "opt": argparse.Namespace(**opt),
        "optim": {"training_step": 4, "decay_step": 5, "optimizer": {"state": {}}},
    }
    torch.save(checkpoint, folder / "model_step_4.pt")
    return folder / "model_step_4.pt"


def lay_out_sockeye(folder, state, about):
    torch.save(state, folder / "params.00001")
    (folder / "params.best").symlink_to("params.00001")
    for name in ("config", "vocab.src.0.json", "vocab.trg.0.json", "version"):
        (folder / name).write_text(about[name], encoding="utf-8")
    return folder


def lay_out_joeynmt(folder, state, about):
    checkpoint = {
        "model_state": state,
        "optimizer_state": {"state": {}, "param_groups": []},
        "train_iter_state": torch.zeros(4, dtype=torch.uint8),
    }
    torch.save(checkpoint, folder / "5.ckpt")
    (folder / "best.ckpt").symlink_to("5.ckpt")
    text = yaml.safe_dump(about["config"])
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    for name in ("src_vocab.txt", "trg_vocab.txt"):
        text = "".join(f"{line}\n" for line in about[name])
        (folder / name).write_text(text, encoding="utf-8")
    return folder


LAY_OUT = {
    "opennmt": lay_out_opennmt,
    "sockeye": lay_out_sockeye,
    "joeynmt": lay_out_joeynmt,
}


def files_of(kind, folder, spoil=lambda state: None):
    """Where `import` finds a model that was written as the library does."""
    folder.mkdir()
    state, about = golden(kind)
    spoil(state)
    return LAY_OUT[kind](folder, state, {"version": "3.1.34", **about})


def import_to(output, kind, path, *more):
    return main(["import", str(path), "--from", kind, "--output", str(output), *more])
