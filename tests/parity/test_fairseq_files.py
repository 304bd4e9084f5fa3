"""fairseq's files as its versions lay them out: read, written, and read again."""

import argparse
import json
from collections import OrderedDict

import numpy as np
import pytest
from fairseq_reference import (
    ALL_TIED,
    LEARNED,
    PAD,
    PRE,
    SOURCES,
    TARGETS,
    TINY,
    D,
    random_state,
)

from transformer_jax.checkpoint import CheckpointStore
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
from transformer_jax.testing import tiny_model, tiny_tokenizer


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
    with pytest.raises(ValueError, match="12 symbols, but the model 11 target"):
        fairseq.read(folder, NO_OPTIONS)


def test_what_is_given_for_the_source_serves_the_target_too(folder, tmp_path):
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({**TINY, **ALL_TIED}))
    state = random_state({**TINY, **ALL_TIED})
    write_pickle(folder / "model.pt", {"model": state})
    # fastBPE's codes count each merge; by hand: B i, then Bi e; r is left over.
    (tmp_path / "codes").write_text("B i 7\nBi e 5\n")
    given = Options(
        settings=settings,
        source_vocab=folder / "dict.en.txt",
        source_codes=tmp_path / "codes",
    )
    more = "".join(f"{word} 1\n" for word in "abcde")
    (folder / "dict.en.txt").write_text(f"Bie@@ 3\nr 2\n{more}")
    tokenizer = fairseq.read(folder, given).tokenizer
    assert tokenizer.encode_source("Bier") == [4, 5]
    assert tokenizer.encode_target("Bier") == [4, 5]


def exported(folder, tokenizer, **rows):
    """A toy model of ours in fairseq's files; as they were, and as they are read."""
    sizes = {
        "source_vocab_size": tokenizer.source_vocab_size,
        "target_vocab_size": tokenizer.target_vocab_size,
    }
    model, params = tiny_model(
        sinusoid_layout="halves",
        position_offset=2,
        decoder_start="eos",
        tied_embeddings="none",
        **{**sizes, **rows},
    )
    settings, state = export_state("fairseq", model.config, params)
    fairseq.write(folder, Foreign(settings, state, tokenizer), model.config)
    return state, fairseq.read(folder, NO_OPTIONS)


def test_two_sentencepiece_models_come_back(tmp_path):
    pytest.importorskip("torch")
    tokenizer = tiny_tokenizer(joint=False, vocab_size=60)
    assert len(set(tokenizer.models)) == 2
    _, back = exported(tmp_path, tokenizer)
    assert isinstance(back.tokenizer, VocabularyTokenizer)
    codes = back.tokenizer.source.codes, back.tokenizer.target.codes
    assert codes == tokenizer.models
    german, english = "die Frau liest ein Buch", "the woman reads a book"
    ours, theirs = (
        (
            each.source_pieces(each.encode_source(german)),
            each.target_pieces(each.encode_target(english)),
        )
        for each in (tokenizer, back.tokenizer)
    )
    assert ours == theirs


def test_rows_without_a_symbol_get_those_that_fairseq_makes_up(tmp_path):
    pytest.importorskip("torch")
    state, back = exported(tmp_path, tiny_tokenizer(), source_vocab_size=108)
    names = ["source", "target"]
    lines = [(tmp_path / f"dict.{n}.txt").read_text().splitlines() for n in names]
    assert [len(each) for each in lines] == [104, 96]
    # As `Dictionary.pad_to_multiple_` of fairseq names and counts them.
    assert lines[0][96:] == [f"madeupword{number:04d} 0" for number in range(8)]
    for key in (*fairseq_files.EMBEDDED, fairseq_files.OUTPUT):
        assert back.state[key].shape == state[key].shape
        rows = [sorted(map(bytes, each[key])) for each in (state, back.state)]
        assert rows[0] == rows[1], key


def test_symbols_without_a_row_are_not_exported(tmp_path):
    with pytest.raises(ValueError, match="100 symbols, but the model 92 target"):
        exported(tmp_path, tiny_tokenizer(), target_vocab_size=92)
    assert not [*tmp_path.iterdir()]


LAYER = "encoder.layers.0.self_attn"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"encoder.version": np.zeros(0)},
            r"encoder\.version is \[\], and must",
        ),
        ({"decoder.version": np.array([np.nan])}, r"version is \[nan\], and must be"),
        ({f"{LAYER}.in_proj_weight": np.ones((7, D))}, r"in_proj_weight is \[7, 16\]"),
        ({f"{LAYER}.in_proj_bias": np.ones(())}, "query, key and value"),
        ({"foo.layer_norms.9.weight": np.ones(D)}, r"foo\.layer_norms\.9\.weight"),
        ({"encoder.layers.0.layer_norms.9.bias": np.ones(D)}, r"layer_norms\.9\.bias"),
        (
            {"encoder.layers.0.layer_norms.0.weight": np.ones(D)},
            "self_attn_layer_norm.weight twice.*layer_norms.0.weight",
        ),
        ({f"{LAYER}.in_proj_bias": np.ones(3 * D)}, "q_proj.bias twice.*in_proj_bias"),
        (
            {"decoder.embed_out": np.ones((TARGETS, D))},
            "output_projection.weight tw",
        ),
    ],
)
def test_damaged_arrays_give_one_clear_error(change, message):
    settings = dict(TINY)

    def imported():
        now = fairseq_files.upgraded({**random_state(TINY), **change}, settings)
        import_state("fairseq", now, settings)

    with pytest.raises(ValueError, match=message) as refusal:
        imported()
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"args": "transformer"},
            "'args' in the checkpoint must hold names with",
        ),
        ({"args": None, "cfg": [1]}, "'cfg' in the checkpoint must hold names"),
        ({"args": None, "cfg": {"model": "x"}}, r"'cfg\.model' in the checkpoint must"),
        ({"model": [1, 2]}, "'model' in .* holds no state dict"),
        ({"model": {"encoder.version": 3}}, "'model' in .* holds no state dict"),
        (
            {"args": {**TINY, "encoder_layers": "6", "dropout": "x"}},
            "encoder_layers is '6', and must be a whole number; dropout is 'x'",
        ),
        (
            {"args": {**TINY, "encoder_normalize_before": "yes"}},
            "must be true or f",
        ),
    ],
)
def test_damaged_checkpoints_give_one_clear_error(folder, tmp_path, change, message):
    whole = checkpoint_of("args", TINY, random_state(TINY))
    write_pickle(folder / "model.pt", {**whole, **change})
    with pytest.raises(ValueError, match=message) as refusal:
        import_run("fairseq", folder, tmp_path / "run")
    assert len(str(refusal.value).splitlines()) == 1


def test_settings_given_as_a_list(folder, tmp_path):
    write_pickle(folder / "model.pt", {"model": random_state(TINY)})
    (tmp_path / "settings.json").write_text("[1]")
    with pytest.raises(FileError, match=r"settings\.json must hold names with values"):
        fairseq.read(folder, Options(settings=tmp_path / "settings.json"))


def test_our_own_run_is_numbered_as_fairseq_numbers(tmp_path):
    """Our tokenizers put pad first, fairseq bos: rows and dictionary move together."""
    pytest.importorskip("torch")
    tokenizer = tiny_tokenizer()
    state, back = exported(tmp_path, tokenizer)
    text = "der Mann liest ein Buch"
    ours, theirs = (each.encode_source(text) for each in (tokenizer, back.tokenizer))
    for one, other in zip(ours, theirs, strict=True):
        table = "encoder.embed_tokens.weight"
        np.testing.assert_array_equal(state[table][one], back.state[table][other])
    assert back.tokenizer.pad_id == PAD
    assert back.tokenizer.decode_target(theirs) == text
    assert "model" in read_pickle(tmp_path / "model.pt", classes=fairseq_files.CLASSES)
