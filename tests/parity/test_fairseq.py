"""fairseq's transformer: our logits against its published definition, written here
again in numpy, with nothing of ours in it; its files as its versions lay them out.

fairseq itself does not build on the Python versions that this package runs on.
"""

import argparse
import functools
import json
import math
from collections import OrderedDict

import jax
import numpy as np
import pytest

from transformer_jax.checkpoint import CheckpointStore
from transformer_jax.config import ModelConfig
from transformer_jax.data.tokenizer import load_tokenizer
from transformer_jax.data.vocabulary_tokenizer import VocabularyTokenizer
from transformer_jax.interop import fairseq, fairseq_files
from transformer_jax.interop.files import FileError, read_pickle, write_pickle
from transformer_jax.interop.library import (
    NO_OPTIONS,
    Foreign,
    Options,
    export_run,
    export_state,
    import_run,
    import_state,
)
from transformer_jax.interop.rules import TableError
from transformer_jax.models import Transformer
from transformer_jax.models.functions import row_positions
from transformer_jax.testing import tiny_model, tiny_tokenizer

D, F, HEADS, SOURCES, TARGETS, LONGEST = 16, 24, 4, 13, 11, 20
PAD, EOS = 1, 2
TINY = {
    "arch": "transformer",
    "task": "translation",
    "encoder_embed_dim": D,
    "decoder_embed_dim": D,
    "encoder_ffn_embed_dim": F,
    "decoder_ffn_embed_dim": F,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "max_source_positions": LONGEST,
    "max_target_positions": LONGEST,
    "dropout": 0.3,
    "source_vocab_size": SOURCES,
    "target_vocab_size": TARGETS,
}
PRE = {"encoder_normalize_before": True, "decoder_normalize_before": True}
LEARNED = {"encoder_learned_pos": True, "decoder_learned_pos": True}
ALL_TIED = {"share_all_embeddings": True, "source_vocab_size": TARGETS}
VARIANTS = {
    "plain": {},
    "pre": PRE,
    "learned": LEARNED,
    "pre_learned_gelu": {**PRE, **LEARNED, "activation_fn": "gelu"},
    "output_tied": {"share_decoder_input_output_embed": True},
    "all_tied": {**ALL_TIED, "no_scale_embedding": True},
    "no_final_norm": {**PRE, "encoder_version": 1, "decoder_version": 1},
}


def random_state(args, seed=0):
    """Random numbers in all that a model of these arguments keeps."""
    draw = np.random.default_rng(seed)
    state = {}

    def put(name, *shape):
        spread = 0.4 if len(shape) > 1 else 0.2
        state[name] = draw.normal(0, spread, shape).astype(np.float32)

    def norm(name):
        put(f"{name}.weight", D)
        state[f"{name}.weight"] += 1
        put(f"{name}.bias", D)

    def linear(name, size_out, size_in):
        put(f"{name}.weight", size_out, size_in)
        put(f"{name}.bias", size_out)

    for side, size in (("encoder", SOURCES), ("decoder", TARGETS)):
        state[f"{side}.version"] = np.array([args.get(f"{side}_version", 3.0)], "f")
        put(f"{side}.embed_tokens.weight", args.get("source_vocab_size", size), D)
        if side == "decoder":
            put(f"{side}.embed_tokens.weight", size, D)
        if args.get("encoder_learned_pos"):
            put(f"{side}.embed_positions.weight", LONGEST + PAD + 1, D)
        else:
            state[f"{side}.embed_positions._float_tensor"] = np.array([np.nan], "f")
        for i in range(args[f"{side}_layers"]):
            layer = f"{side}.layers.{i}"
            for block in ("self_attn", "encoder_attn")[: 1 + (side == "decoder")]:
                for name in ("k", "v", "q", "out"):
                    linear(f"{layer}.{block}.{name}_proj", D, D)
                norm(f"{layer}.{block}_layer_norm")
            linear(f"{layer}.fc1", F, D)
            linear(f"{layer}.fc2", D, F)
            norm(f"{layer}.final_layer_norm")
        if args.get("encoder_normalize_before") and args.get("encoder_version", 3) == 3:
            norm(f"{side}.layer_norm")
    if args.get("share_all_embeddings"):
        state["decoder.embed_tokens.weight"] = state["encoder.embed_tokens.weight"]
    put("decoder.output_projection.weight", TARGETS, D)
    if args.get("share_all_embeddings") or args.get("share_decoder_input_output_embed"):
        state["decoder.output_projection.weight"] = state["decoder.embed_tokens.weight"]
    return state


class Reference:
    """The published definition in numpy, in float64, one sentence pair at a time."""

    def __init__(self, args, state):
        self.args = args
        self.state = {name: x.astype(np.float64) for name, x in state.items()}

    def linear(self, name, x):
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def norm(self, name, x):
        centred = x - x.mean(-1, keepdims=True)
        normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return normed * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def positions(self, side, ids):
        # Counted from the pad id on, over tokens that are no padding.
        real = ids != PAD
        places = np.cumsum(real) * real + PAD
        if self.args.get(f"{side}_learned_pos"):
            return self.state[f"{side}.embed_positions.weight"][places]
        rates = [math.exp(-math.log(10000) * i / (D // 2 - 1)) for i in range(D // 2)]
        angles = places[:, None] * np.array(rates)[None, :]
        waves = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
        return waves * real[:, None]

    def embed(self, side, ids):
        scale = 1.0 if self.args.get("no_scale_embedding") else math.sqrt(D)
        return scale * self.state[f"{side}.embed_tokens.weight"][ids] + self.positions(
            side, ids
        )

    def attend(self, name, x, y, allowed):
        size = D // HEADS
        q = self.linear(f"{name}.q_proj", x) * size**-0.5
        k, v = self.linear(f"{name}.k_proj", y), self.linear(f"{name}.v_proj", y)
        heads = []
        for n in range(HEADS):
            part = slice(n * size, (n + 1) * size)
            scores = np.where(allowed, q[:, part] @ k[:, part].T, -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            heads.append(weights / weights.sum(-1, keepdims=True) @ v[:, part])
        return self.linear(f"{name}.out_proj", np.concatenate(heads, axis=1))

    def sublayer(self, norm, x, function):
        if self.args.get("encoder_normalize_before"):
            return x + function(self.norm(norm, x))
        return self.norm(norm, x + function(x))

    def feed(self, layer, x):
        h = self.linear(f"{layer}.fc1", x)
        if self.args.get("activation_fn") == "gelu":
            h = h * 0.5 * (1 + np.vectorize(math.erf)(h / math.sqrt(2)))
        else:
            h = np.maximum(h, 0)
        return self.linear(f"{layer}.fc2", h)

    def end(self, side, x):
        pre = self.args.get("encoder_normalize_before")
        newest = self.args.get(f"{side}_version", 3) == 3
        return self.norm(f"{side}.layer_norm", x) if pre and newest else x

    def logits(self, source, fed):
        """Source ids [S] and decoder inputs [T], both with padding → [T, V]."""
        real = (source != PAD)[None, :]
        x = self.embed("encoder", source) * (source != PAD)[:, None]
        for i in range(self.args["encoder_layers"]):
            layer = f"encoder.layers.{i}"
            name = f"{layer}.self_attn"
            x = self.sublayer(
                f"{name}_layer_norm",
                x,
                lambda y, name=name: self.attend(name, y, y, real),
            )
            x = self.sublayer(
                f"{layer}.final_layer_norm", x, lambda y, at=layer: self.feed(at, y)
            )
        encoded, x = self.end("encoder", x), self.embed("decoder", fed)
        before = np.tril(np.ones((len(fed), len(fed)), bool)) & (fed != PAD)[None, :]
        for i in range(self.args["decoder_layers"]):
            layer = f"decoder.layers.{i}"
            for name, keys, allowed in (
                (f"{layer}.self_attn", None, before),
                (f"{layer}.encoder_attn", encoded, real),
            ):

                def attend(y, name=name, keys=keys, allowed=allowed):
                    return self.attend(name, y, y if keys is None else keys, allowed)

                x = self.sublayer(f"{name}_layer_norm", x, attend)
            x = self.sublayer(
                f"{layer}.final_layer_norm", x, lambda y, at=layer: self.feed(at, y)
            )
        output = self.state["decoder.output_projection.weight"]
        return self.end("decoder", x) @ output.T


def padded_pair():
    """Three pairs: sources that end with eos, targets that begin with it."""
    source = [[7, 4, 9, 5, EOS, PAD, PAD], [6, EOS, *[PAD] * 5], [*range(4, 10), EOS]]
    fed = [[EOS, 5, 8, PAD, PAD], [EOS, 4, 5, 6, 7], [EOS, 10, PAD, PAD, PAD]]
    return np.array(source, np.int32), np.array(fed, np.int32)


def our_logits(config, params, source, fed):
    segments = [(ids != PAD).astype(np.int32) for ids in (source, fed)]
    apply = jax.jit(functools.partial(Transformer(config).apply, deterministic=True))
    logits = apply(
        {"params": params},
        source,
        fed,
        input_segment_ids=segments[0],
        target_segment_ids=segments[1],
        input_positions=row_positions(segments[0]),
        target_positions=row_positions(segments[1]),
    )
    return np.asarray(logits)


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_the_definition(variant):
    args = {**TINY, **VARIANTS[variant]}
    state = random_state(args)
    source, fed = padded_pair()
    ours = our_logits(*import_state("fairseq", state, args), source, fed)
    reference = Reference(args, state)
    worst = 0.0
    for row in range(len(source)):
        real = fed[row] != PAD
        theirs = reference.logits(source[row], fed[row])[real]
        worst = max(worst, float(np.abs(ours[row][real] - theirs).max()))
        assert np.abs(theirs).max() > 1
    print(f"fairseq {variant}: logits differ by {worst:.1e} at most")
    assert worst < 1e-4


@pytest.mark.parametrize("variant", VARIANTS)
def test_exporting_what_was_imported_gives_every_bit_back(variant):
    args = {**TINY, **VARIANTS[variant]}
    state = random_state(args)
    settings, back = export_state("fairseq", *import_state("fairseq", state, args))
    assert fairseq.model_config(settings) == fairseq.model_config(args)
    assert back.keys() == state.keys()
    for name in state:
        if not name.endswith("_float_tensor"):
            np.testing.assert_array_equal(back[name], state[name], err_msg=name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layernorm_embedding": True}, "layernorm_embedding is True, and must be off"),
        ({"adaptive_softmax_cutoff": "10,20"}, "adaptive_softmax_cutoff"),
        ({"no_token_positional_embeddings": True}, "no_token_positional_embeddings"),
        ({"quant_noise_pq": 0.1}, "quant_noise_pq"),
        ({"decoder_attention_heads": 2}, "decoder_attention_heads is 2"),
        ({"encoder_normalize_before": True}, "encoder_normalize_before"),
        ({"activation_fn": "gelu_accurate"}, "gelu_accurate"),
        ({"decoder_output_dim": 8}, "decoder_output_dim"),
        ({**PRE, "no_decoder_final_norm": True}, "only one has a final norm"),
        ({"task": "multilingual_translation"}, "task is 'multilingual"),
        ({"arch": "transformer_lm_big"}, "arch is 'transformer_lm_big'"),
        ({"encoder_layers_to_keep": "0,1"}, "encoder_layers_to_keep"),
        ({"encoder_langtok": "tgt"}, "encoder_langtok is 'tgt', which is not known"),
        ({**LEARNED, "max_target_positions": 9}, "max_source_positions is not"),
    ],
)
def test_arguments_that_we_cannot_express(change, message):
    with pytest.raises(ValueError, match=message):
        fairseq.model_config({**TINY, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sinusoid_layout": "interleaved"}, "sinusoid_layout is 'interleaved'"),
        ({"position_offset": 0}, "position_offset is 0, and must be 2"),
        ({"decoder_start": "bos"}, "decoder_start"),
        ({"tied_embeddings": "source_target"}, "tied_embeddings"),
        ({"attention_bias": False}, "attention_bias"),
        ({"final_norm": True}, "final_norm is True"),
    ],
)
def test_settings_that_fairseq_cannot_express(change, message):
    ours = vars(fairseq.model_config(TINY))
    with pytest.raises(ValueError, match=message):
        fairseq.settings_of(ModelConfig(**{**ours, **change}))


def test_weights_that_do_not_belong_are_named():
    state = random_state(TINY)
    del state["decoder.layers.1.fc1.bias"]
    state["encoder.layernorm_embedding.bias"] = np.zeros(D, np.float32)
    with pytest.raises(TableError, match=r"layers\.1\.fc1\.bias.*layernorm_embedding"):
        import_state("fairseq", state, TINY)


def of_first_versions(state):
    """The same weights as fairseq 0.6 kept them."""
    old = {}
    for name, x in state.items():
        place, _, last = name.rpartition(".")
        if name == "decoder.output_projection.weight":
            old["decoder.embed_out"] = x
        elif "_proj" not in place or place.endswith("out_proj"):
            for number, norm in enumerate(fairseq_files.NORMS[name.split(".")[0]]):
                place = place.replace(f".{norm}", f".layer_norms.{number}")
            old[f"{place}.{last}"] = x
        elif place.endswith("q_proj"):
            place = place.removesuffix(".q_proj")
            parts = [state[f"{place}.{part}_proj.{last}"] for part in "qkv"]
            old[f"{place}.in_proj_{last}"] = np.concatenate(parts)
    return old


def test_old_names_are_brought_up_to_date():
    state = random_state(TINY)
    old = of_first_versions(state)
    assert "encoder.layers.0.self_attn.in_proj_bias" in old
    assert "decoder.layers.1.layer_norms.1.weight" in old
    now = fairseq_files.upgraded(old, {})
    assert now.keys() == state.keys()
    for name, x in state.items():
        np.testing.assert_array_equal(now[name], x)


def test_an_old_checkpoint_without_versions_has_no_final_norms():
    args = {**TINY, **PRE, "encoder_version": 1, "decoder_version": 1}
    state = random_state(args)
    kept = {k: x for k, x in state.items() if not k.endswith("version")}
    settings = {**TINY, **PRE}
    now = fairseq_files.upgraded(kept, settings)
    assert fairseq.model_config(settings).final_norm is False
    import_state("fairseq", now, settings)


def test_a_dictionary(tmp_path):
    path = tmp_path / "dict.de.txt"
    path.write_text(
        "ein 30\nBier@@ 20\n▁ 3\nein 9 #fairseq:overwrite\nmadeupword0000 0\n"
    )
    assert fairseq_files.read_dictionary(path) == (
        *("<s>", "<pad>", "</s>", "<unk>"),
        *("ein (overwritten)", "Bier@@", "▁", "ein", "madeupword0000"),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [("ein 3\nein 2\n", "line 2: 'ein' is there before"), ("ein\n", "line 1 is 'ein'")],
)
def test_a_wrong_dictionary(tmp_path, text, message):
    path = tmp_path / "dict.de.txt"
    path.write_text(text)
    with pytest.raises(FileError, match=message):
        fairseq_files.read_dictionary(path)


def model_args(args):
    """What fairseq's own arguments hold: no sizes of dictionaries, no versions."""
    here = ("source_vocab_size", "target_vocab_size", "encoder_version")
    args = {k: x for k, x in args.items() if k not in here and k != "decoder_version"}
    return {**args, "source_lang": "de", "target_lang": "en", "adam_eps": 1e-8}


def in_dataclasses(args):
    """`cfg.model` of a model that is configured by dataclasses."""
    nested = {"encoder": {}, "decoder": {}, "_name": args["arch"]}
    for name, value in args.items():
        side, _, rest = name.partition("_")
        place = nested[side] if side in ("encoder", "decoder") else nested
        place[rest if place is not nested else name] = value
    del nested["task"], nested["arch"], nested["source_lang"], nested["target_lang"]
    nested["decoder"]["output_dim"] = "${model.decoder.embed_dim}"
    return nested


def checkpoint_of(layout, args, state):
    """What fairseq saves: `args` up to 0.10, `cfg` since."""
    args = model_args(args)
    task = {"_name": "translation", "source_lang": "de", "target_lang": "en"}
    whole = {
        "args": {"args": argparse.Namespace(**args), "cfg": None},
        "cfg_namespace": {
            "args": None,
            "cfg": {"task": task, "model": argparse.Namespace(**args)},
        },
        "cfg_dataclass": {
            "args": None,
            "cfg": {"task": task, "model": in_dataclasses(args)},
        },
    }[layout]
    extra = {"extra_state": {"epoch": 3, "val_loss": np.float64(2.5)}}
    return {**whole, "model": OrderedDict(state), **extra}


@pytest.fixture
def folder(tmp_path):
    """Dictionaries and codes of the toy model, without its checkpoint."""
    pytest.importorskip("torch")
    folder = tmp_path / "theirs"
    folder.mkdir()
    words = ("ein", "Bi@@", "er", "der", "Wein", "Mann", "Frau", "Kind", "Buch")
    for language, size in (("de", SOURCES), ("en", TARGETS)):
        lines = [f"{word} {9 - n}\n" for n, word in enumerate(words[: size - 4])]
        (folder / f"dict.{language}.txt").write_text("".join(lines))
    return folder


@pytest.mark.parametrize("layout", ["args", "cfg_namespace", "cfg_dataclass"])
def test_a_checkpoint_becomes_a_run_and_a_checkpoint_again(folder, tmp_path, layout):
    args = {**TINY, **PRE}
    state = random_state(args)
    write_pickle(folder / "model.pt", checkpoint_of(layout, args, state))
    config = import_run("fairseq", folder, tmp_path / "run")
    assert config == fairseq.model_config(args)
    store = CheckpointStore(tmp_path / "run")
    tokenizer = load_tokenizer(store.tokenizer_files(0))
    assert tokenizer.encode_source("der Wein zu") == [7, 8, 3]
    export_run("fairseq", tmp_path / "run", tmp_path / "back")
    again = fairseq.read(tmp_path / "back", NO_OPTIONS)
    assert again.tokenizer.files() == tokenizer.files()
    assert fairseq.model_config(again.settings) == config
    for name, x in state.items():
        if not name.endswith("_float_tensor"):
            np.testing.assert_array_equal(again.state[name], x)


def test_what_is_written_has_what_fairseqs_loader_asks_for(folder, tmp_path):
    args = {**TINY, **LEARNED}
    write_pickle(folder / "model.pt", checkpoint_of("args", args, random_state(args)))
    foreign = fairseq.read(folder, NO_OPTIONS)
    (tmp_path / "back").mkdir()
    config = fairseq.model_config(foreign.settings)
    fairseq.write(tmp_path / "back", foreign, config)
    torch = pytest.importorskip("torch")
    with torch.serialization.safe_globals([argparse.Namespace]):
        written = torch.load(tmp_path / "back" / "model.pt", weights_only=True)
    assert isinstance(written["args"], argparse.Namespace)
    assert (written["args"].arch, written["args"].task) == (
        "transformer",
        "translation",
    )
    assert written["optimizer_history"][-1].keys() >= {
        "optimizer_name",
        "lr_scheduler_state",
        "num_updates",
    }
    assert written["extra_state"]["train_iterator"]["epoch"] == 1
    lines = (tmp_path / "back" / "dict.source.txt").read_text().splitlines()
    assert lines[:2] == ["ein 1", "Bi@@ 1"]


def test_a_program_in_a_checkpoint_is_refused(folder):
    class Program:
        def __reduce__(self):
            return print, ("run!",)

    write_pickle(folder / "model.pt", {"args": Program(), "model": {}})
    with pytest.raises(FileError, match=r"refused.*print"):
        fairseq.read(folder, NO_OPTIONS)


def test_settings_may_be_given_beside_bare_weights(folder, tmp_path):
    state = random_state(TINY)
    write_pickle(folder / "model.pt", {"model": state})
    with pytest.raises(FileError, match="--settings FILE"):
        fairseq.read(folder, NO_OPTIONS)
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps(model_args(TINY)))
    foreign = fairseq.read(folder, Options(settings=settings))
    assert isinstance(foreign.tokenizer, VocabularyTokenizer)
    assert foreign.tokenizer.encode_source("ein") == [4]


def test_dictionaries_of_another_model(folder):
    write_pickle(folder / "model.pt", checkpoint_of("args", TINY, random_state(TINY)))
    with (folder / "dict.en.txt").open("a") as file:
        file.write("mehr 1\n")
    with pytest.raises(ValueError, match=r"12 symbols .* target table of the model 11"):
        fairseq.read(folder, NO_OPTIONS)


def test_our_own_run_is_numbered_as_fairseq_numbers(tmp_path):
    """Our tokenizers put pad first, fairseq bos: rows and dictionary move together."""
    pytest.importorskip("torch")
    tokenizer = tiny_tokenizer()
    model, params = tiny_model(
        sinusoid_layout="halves",
        position_offset=2,
        decoder_start="eos",
        source_vocab_size=tokenizer.source_vocab_size,
        target_vocab_size=tokenizer.target_vocab_size,
    )
    settings, state = export_state("fairseq", model.config, params)
    fairseq.write(tmp_path, Foreign(settings, state, tokenizer), model.config)
    back = fairseq.read(tmp_path, NO_OPTIONS)
    text = "der Mann liest ein Buch"
    ours, theirs = (each.encode_source(text) for each in (tokenizer, back.tokenizer))
    for one, other in zip(ours, theirs, strict=True):
        table = "encoder.embed_tokens.weight"
        np.testing.assert_array_equal(state[table][one], back.state[table][other])
    assert back.tokenizer.pad_id == PAD
    assert back.tokenizer.decode_target(theirs) == text
    assert "model" in read_pickle(tmp_path / "model.pt", classes=fairseq_files.CLASSES)
