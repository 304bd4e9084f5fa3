"""`torch.nn.Transformer` itself, with random numbers in every parameter."""

import json
import pickle
import re
from typing import Any

import jax
import numpy as np
import pytest
from comparing import TOLERANCE, largest_difference, our_logits

from transformer_jax.data.batching import Batch
from transformer_jax.interop import torch as theirs
from transformer_jax.interop.files import FileError, read_pickle, write_pickle
from transformer_jax.interop.library import (
    Options,
    export_state,
    import_state,
)
from transformer_jax.testing import tiny_batch

torch = pytest.importorskip("torch")

# It says when its shortcut for padded batches applies, and when not.
pytestmark = [
    pytest.mark.filterwarnings("ignore:enable_nested_tensor is True"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
]

SETTINGS: dict[str, Any] = {
    "nhead": 2,
    "d_model": 16,
    "num_encoder_layers": 1,
    "num_decoder_layers": 2,
    "dim_feedforward": 24,
    "src_vocab_size": 24,
    "tgt_vocab_size": 24,
    "maxlen": 32,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "post": {"norm_first": False},
    "pre": {"norm_first": True},
    "post_gelu": {"norm_first": False, "activation": "gelu", "layer_norm_eps": 1e-3},
    "pre_gelu": {"norm_first": True, "activation": "gelu"},
    "batch_first": {"batch_first": True, "src_vocab_size": 29},
    "no_biases": {"bias": False, "generator_bias": False},
    "no_final_norm": {"final_norm": False, "scale_embeddings": False},
    "learned": {"positions": "learned", "norm_first": True},
    "tied": {"tied_embeddings": "all"},
    "source_target": {"tied_embeddings": "source_target"},
    "target_output": {"tied_embeddings": "target_output", "src_vocab_size": 29},
}


def torch_model(settings: dict[str, Any], seed: int = 0) -> Any:
    """The real module, with random numbers in every parameter."""
    from seq2seq import Seq2SeqTransformer

    model = Seq2SeqTransformer(settings).eval()
    draw = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            norm = "norm" in name and name.endswith("weight")
            values = 0.3 * draw.normal(size=tuple(parameter.shape)) + norm
            parameter.copy_(torch.from_numpy(values))
    return model


def torch_logits(model: Any, batch: Batch) -> np.ndarray:
    ids = [torch.from_numpy(np.array(x)) for x in (batch.inputs, batch.decoder_inputs)]
    masks = [
        torch.from_numpy(np.asarray(segments) == 0)
        for segments in (batch.input_segment_ids, batch.target_segment_ids)
    ]
    with torch.no_grad():
        return model(*ids, *masks).numpy()


def numpy_state(model: Any) -> dict[str, np.ndarray]:
    return {name: x.numpy() for name, x in model.state_dict().items()}


def whole(variant: str) -> dict[str, Any]:
    """Settings with the defaults filled in."""
    config = theirs.model_config({**SETTINGS, **VARIANTS[variant]})
    return {**theirs.settings_of(config), **SETTINGS, **VARIANTS[variant]}


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_give_the_same_logits_here_and_back_there(variant):
    from seq2seq import Seq2SeqTransformer

    settings, batch = whole(variant), tiny_batch()
    model = torch_model(settings)
    config, params = import_state("torch", numpy_state(model), settings)
    ours, logits = our_logits(config, params, batch), torch_logits(model, batch)
    assert largest_difference(ours, logits, batch) <= TOLERANCE

    exported_settings, state = export_state("torch", config, params)
    back = Seq2SeqTransformer(exported_settings).eval()
    tensors = {name: torch.from_numpy(x) for name, x in state.items()}
    back.load_state_dict(tensors, strict=True)
    again = torch_logits(back, batch)
    if config.positions == "learned":
        np.testing.assert_array_equal(again, logits)
    else:  # our sinusoids are computed in float64
        assert largest_difference(again, logits, batch) <= TOLERANCE


def test_sinusoids_of_5000_positions_are_recognised():
    settings = {**whole("pre"), "maxlen": 5000, "d_model": 32}
    state = numpy_state(torch_model(settings))
    import_state("torch", state, settings)
    state[theirs.SINUSOIDS] = state[theirs.SINUSOIDS].transpose(1, 0, 2)
    import_state("torch", state, settings)


@pytest.mark.parametrize("nested", [False, True])
def test_a_pt_file_needs_only_the_heads(tmp_path, nested):
    settings = {**whole("tied"), "norm_first": True, "pad_id": 0, "unk_id": 1}
    model = torch_model(settings)
    state = model.state_dict()
    torch.save({"model": state, "epoch": 3} if nested else state, tmp_path / "it.pt")
    given = {"nhead": 2, "norm_first": True, "pad_id": 0, "unk_id": 1}
    (tmp_path / "settings.json").write_text(json.dumps(given))
    options = Options(settings=tmp_path / "settings.json")
    found = theirs.read(tmp_path / "it.pt", options)
    assert found.settings["tied_embeddings"] == "all"
    config, params = import_state("torch", found.state, found.settings)
    assert config.num_decoder_layers == 2
    assert found.tokenizer.encode_source("7 4") == [7, 4]
    batch = tiny_batch()
    ours = our_logits(config, params, batch)
    assert largest_difference(ours, torch_logits(model, batch), batch) <= TOLERANCE


class Malicious:
    """Creates a file as soon as it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def as_zip(value, path):
    torch.save(value, path)


def as_legacy(value, path):
    torch.save(value, path, _use_new_zipfile_serialization=False)


def as_pickle(value, path):
    path.write_bytes(pickle.dumps(value, protocol=2))


@pytest.mark.parametrize("write", [as_zip, as_legacy, as_pickle])
def test_a_pickle_with_a_program_is_refused(tmp_path, write):
    trap = tmp_path / "created"
    state = {"generator.weight": [0.5], "x": Malicious(trap)}
    write(state, tmp_path / "model.pt")
    with pytest.raises(FileError, match=r"model\.pt.*") as refusal:
        read_pickle(tmp_path / "model.pt")
    assert not trap.exists()
    said = str(refusal.value)
    # PyTorch itself advises to switch the check off.
    for advice in ("weights_only", "torch.load", "likely succeed", "\n"):
        assert advice not in said
    if write is not as_pickle:
        assert re.search(r"is refused.*open.*any program", said)


@pytest.mark.parametrize(
    "content", [b"not a pickle at all", pickle.dumps([1], protocol=4)]
)
def test_what_torch_did_not_write_is_told_in_our_words(tmp_path, content):
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(FileError, match=r"cannot be read by PyTorch") as refusal:
        read_pickle(tmp_path / "model.pt")
    assert "weights_only" not in str(refusal.value)


def test_every_flipped_byte_of_the_numbers_is_found(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"weight": torch.arange(64, dtype=torch.float32)}, path)
    content = path.read_bytes()
    first = content.index(np.arange(64, dtype=np.float32).tobytes())
    for place in range(first, first + 256, 51):
        damaged = bytearray(content)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(FileError, match=r"model\.pt is damaged: its part .*data/0"):
            read_pickle(path)
    path.write_bytes(content)
    assert read_pickle(path)["weight"].shape == (64,)


ODD: dict[str, Any] = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "meta": lambda: torch.ones(3, device="meta"),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    "float8_e4m3fn": lambda: torch.ones(3).to(torch.float8_e4m3fn),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.filterwarnings("ignore")  # PyTorch is about to give some of them up
def test_a_tensor_without_plain_numbers_is_named(tmp_path, kind):
    state = {"model": {"a.weight": ODD[kind]()}}
    torch.save(state, tmp_path / "model.pt")
    message = rf"a\.weight is a tensor of the kind {kind}.*ordinary tensor of float32"
    with pytest.raises(FileError, match=rf"model\.pt: model: {message}"):
        read_pickle(tmp_path / "model.pt")
    with pytest.raises(FileError, match=message):
        import_state("torch", state["model"], {"nhead": 2})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_modules_own_parameters_are_taken(dtype):
    model = torch_model(whole("tied")).to(dtype)
    given = {"nhead": 2}
    states = [model.state_dict(), model.state_dict(keep_vars=True)]
    assert any(x.requires_grad for x in states[1].values())
    if dtype == torch.float16:
        states = states[:1]
    for state in states:
        # The table of sinusoids was made in float32.
        state[theirs.SINUSOIDS] = torch_model(whole("tied")).state_dict()[
            theirs.SINUSOIDS
        ]
        config, params = import_state("torch", state, given)
        assert config.tied_embeddings == "all"
        table = params["shared_embedding"]["embedding"]
        assert table.dtype == np.float32
        wanted = model.src_tok_emb.embedding.weight.detach().float().numpy()
        np.testing.assert_array_equal(table, wanted)


def test_bfloat16_is_written_bit_by_bit(tmp_path):
    numbers = torch.tensor([0.5, -3.0, 1e-30]).to(torch.bfloat16)
    ours = np.asarray(jax.numpy.asarray([0.5, -3.0, 1e-30], jax.numpy.bfloat16))
    write_pickle(tmp_path / "model.pt", {"x": ours})
    found = torch.load(tmp_path / "model.pt")["x"]
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, numbers)


def test_fields_of_an_allowed_class_are_kept_and_its_code_is_not(tmp_path):
    from argparse import Namespace

    written = {"args": Namespace(heads=2, names=["a"]), "weight": torch.ones(2)}
    torch.save(written, tmp_path / "model.pt")
    with pytest.raises(FileError, match=r"argparse\.Namespace"):
        read_pickle(tmp_path / "model.pt")
    found = read_pickle(tmp_path / "model.pt", classes=["argparse.Namespace"])
    fields = found["args"]
    assert type(fields) is dict
    assert (fields["heads"], fields["names"]) == (2, ["a"])
    np.testing.assert_array_equal(found["weight"], np.ones(2))


def test_a_truncated_pickle_says_so(tmp_path):
    torch.save({"weight": torch.ones(100)}, tmp_path / "model.pt")
    content = (tmp_path / "model.pt").read_bytes()
    (tmp_path / "model.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(FileError, match=r"cannot be read by PyTorch.*Is it whole\?"):
        read_pickle(tmp_path / "model.pt")


def test_written_pickles_are_read_back(tmp_path):
    value = {"model": {"weight": np.arange(4.0)}, "step": 3}
    write_pickle(tmp_path / "model.pt", value)
    found = read_pickle(tmp_path / "model.pt")
    np.testing.assert_array_equal(found["model"]["weight"], np.arange(4.0))
    assert found["step"] == 3
