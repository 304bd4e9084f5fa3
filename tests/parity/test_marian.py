"""`MarianMTModel` itself: the same logits, greedy and beam output, in both ways."""

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from comparing import TOLERANCE, largest_difference, our_logits, padded_batch
from test_interop_marian import exported, own_run

from transformer_jax.__main__ import main
from transformer_jax.config import SearchConfig
from transformer_jax.interop import marian as theirs
from transformer_jax.interop.files import read_tensors
from transformer_jax.interop.library import export_state, import_state
from transformer_jax.models import Transformer
from transformer_jax.testing import SENTENCES, tiny_tokenizer
from transformer_jax.translation.translator import Translator

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")

LIMIT = 20
"""Tokens of a translation at most."""
VARIANTS: dict[str, dict[str, Any]] = {
    "shared": {},
    "scaled_swish": {"scale_embedding": True, "activation_function": "swish"},
    "relu": {"activation_function": "relu", "encoder_layers": 1},
    "separate": {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 79},
    "untied": {
        "share_encoder_decoder_embeddings": False,
        "tie_word_embeddings": False,
        "decoder_vocab_size": 79,
    },
}


def marian_model(seed: int = 0, **settings: Any) -> Any:
    """The real class, with random numbers in every array, biases and norms included."""
    vocab = settings.pop("vocab_size", 83)
    config = transformers.MarianConfig(
        **{
            "vocab_size": vocab,
            "d_model": 16,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_ffn_dim": 24,
            "decoder_ffn_dim": 24,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "max_position_embeddings": 64,
            "pad_token_id": settings.get("decoder_vocab_size", vocab) - 1,
            "decoder_start_token_id": settings.get("decoder_vocab_size", vocab) - 1,
            "eos_token_id": 0,
            **settings,
        }
    )
    model = transformers.MarianMTModel(config).eval()
    draw = np.random.default_rng(seed)
    with torch.no_grad():
        for name, x in [*model.named_parameters(), *model.named_buffers()]:
            if "embed_positions" not in name:
                norm = "norm" in name and name.endswith("weight")
                wide = 1.0 if "embed" in name or "shared" in name else 0.3
                values = wide * draw.normal(size=tuple(x.shape)) + norm
                x.copy_(torch.from_numpy(values))
    return model


def sentences(model: Any, lengths: tuple[int, ...], width: int, seed: int = 0) -> Any:
    """Random ids, with padding behind them."""
    config = model.config
    last = min(config.vocab_size, config.decoder_vocab_size) - 1
    ids = np.random.default_rng(seed).integers(2, last, (len(lengths), width))
    keep = np.arange(width)[None, :] < np.array(lengths)[:, None]
    return np.where(keep, ids, config.pad_token_id).astype(np.int32)


def hf_logits(model: Any, inputs: np.ndarray, decoder_inputs: np.ndarray) -> np.ndarray:
    source, target = (
        torch.from_numpy(x.copy()).long() for x in (inputs, decoder_inputs)
    )
    pad = model.config.pad_token_id
    inside = target != pad
    inside[:, 0] = True  # the start token is the pad token
    with torch.no_grad():
        return model(
            input_ids=source,
            attention_mask=(source != pad).long(),
            decoder_input_ids=target,
            decoder_attention_mask=inside.long(),
        ).logits.numpy()


def batch_of(model: Any) -> Any:
    pad = model.config.pad_token_id
    inputs = sentences(model, (7, 4, 6), 8)
    targets = sentences(model, (5, 8, 3), 9, seed=1)
    batch = padded_batch(inputs, targets, pad)
    start = np.full((3, 1), pad, np.int32)
    shifted = np.concatenate([start, targets[:, :-1]], axis=1)
    return batch._replace(decoder_inputs=shifted)


def state_of(model: Any) -> dict[str, np.ndarray]:
    return {name: x.numpy() for name, x in model.state_dict().items()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_agree_and_every_bit_comes_back(variant):
    model = marian_model(**VARIANTS[variant])
    state, settings = state_of(model), model.config.to_dict()
    config, params = import_state("marian", state, settings)
    batch = batch_of(model)
    found = our_logits(config, params, batch)
    wanted = hf_logits(model, batch.inputs, batch.decoder_inputs)
    assert largest_difference(found, wanted, batch) <= TOLERANCE
    new_settings, exported = export_state("marian", config, params)
    for name, x in exported.items():
        np.testing.assert_array_equal(x, state[name], err_msg=name)
    other = transformers.MarianMTModel(transformers.MarianConfig(**new_settings))
    missing = other.load_state_dict(
        {name: torch.from_numpy(x) for name, x in exported.items()}, strict=False
    ).missing_keys
    assert all("embed" in name or name == "lm_head.weight" for name in missing)


def save(model: Any, folder: Path, *, as_pickle: bool = False) -> None:
    """A folder as OPUS-MT models have it; the list numbers pieces in its own order."""
    tokenizer = tiny_tokenizer()
    pieces = tokenizer.target_pieces(range(4, tokenizer.target_vocab_size))
    random.Random(0).shuffle(pieces)
    symbols = ["</s>", "<unk>", *pieces, "<pad>"]
    assert len(symbols) == model.config.vocab_size
    model.save_pretrained(folder)
    if as_pickle:
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "vocab.json").write_text(
        json.dumps({s: i for i, s in enumerate(symbols)})
    )
    for side in ("source", "target"):
        (folder / f"{side}.spm").write_bytes(tokenizer.models[0])


def folder_model(seed: int = 0, **settings: Any) -> Any:
    """A model whose vocabulary is that of `save`."""
    size = tiny_tokenizer().target_vocab_size - 4 + 3
    return marian_model(seed, vocab_size=size, **settings)


@pytest.mark.parametrize("as_pickle", [False, True])
def test_a_folder_is_imported_translates_and_comes_back(tmp_path, as_pickle, capsys):
    model = folder_model()
    there, run, back = (tmp_path / name for name in ("hf", "run", "back"))
    save(model, there, as_pickle=as_pickle)
    words = ["import", "--from", "marian", str(there), "--output", str(run)]
    assert main(words) == 0
    words = ["--checkpoint", str(run), "--output", str(back)]
    assert main(["export", "--to", "marian", *words]) == 0
    again = transformers.MarianMTModel.from_pretrained(back).eval()
    batch = batch_of(model)
    np.testing.assert_array_equal(
        hf_logits(again, batch.inputs, batch.decoder_inputs),
        hf_logits(model, batch.inputs, batch.decoder_inputs),
    )
    tokenizer = transformers.MarianTokenizer.from_pretrained(back)
    ours = Translator.load(run).tokenizer
    for source, target in SENTENCES:
        assert tokenizer(source).input_ids == [*ours.encode_source(source), ours.eos_id]
        ids = ours.encode_target(target)
        assert tokenizer.decode(ids) == ours.decode_target(ids)
    stored = read_tensors(there / "model.safetensors") if not as_pickle else {}
    for name, x in stored.items():
        np.testing.assert_array_equal(x, read_tensors(back / "model.safetensors")[name])


def phrases() -> list[str]:
    """Short sources of 1 to 7 words."""
    words = " ".join(source for source, _ in SENTENCES).split()
    return [" ".join(words[i : i + 1 + i % 7]) for i in range(len(words))]


def our_search(beams: int, alpha: float, *, limit: int = LIMIT) -> SearchConfig:
    """Greedy with one beam; translations have `limit` tokens at most."""
    return SearchConfig(
        method="beam" if beams > 1 else "greedy",
        beam_size=beams,
        alpha=alpha,
        stop="bound",
        max_length_factor=0.0,
        max_length_offset=limit,
    )


def generated(model: Any, tokenizer: Any, sources: list[str], **asked: Any) -> Any:
    """Ids of translations, padding left out, and their scores if beams were asked for.

    What is not asked for is taken from generation_config.json.
    """
    found = model.generate(
        **tokenizer(sources, return_tensors="pt", padding=True),
        max_new_tokens=LIMIT,
        return_dict_in_generate=True,
        output_scores=True,
        **asked,
    )
    pad = model.config.pad_token_id
    ids = [[i for i in row[1:].tolist() if i != pad] for row in found.sequences]
    scores = found.sequences_scores if asked["num_beams"] > 1 else [np.nan] * len(ids)
    return ids, [float(score) for score in scores]


def uncounted(translator: Translator) -> Translator:
    """The same, without banned symbols in the softmax: as in folders for CTranslate2,
    whose converter cuts padding off."""
    tokenizer, params = translator.tokenizer, dict(translator.params)
    output = dict(params.get("output", {}))
    bias = np.array(output.get("bias", np.zeros(tokenizer.target_vocab_size)))
    bias[sorted({tokenizer.pad_id, tokenizer.bos_id} - {tokenizer.eos_id})] = -1e4
    params["output"] = {**output, "bias": bias.astype(np.float32)}
    config = dataclasses.replace(translator.model.config, output_bias=True)
    return Translator(Transformer(config), params, tokenizer, translator.search)


def score_of(model: Any, tokenizer: Any, source: str, ids: list[int], alpha: float):
    """log P(ids | source) / length^alpha, the end token counted like any other."""
    start = model.config.decoder_start_token_id
    encoded = tokenizer([source], return_tensors="pt")
    with torch.no_grad():
        logits = model(
            **encoded, decoder_input_ids=torch.tensor([[start, *ids[:-1]]])
        ).logits[0]
    chosen = logits.log_softmax(-1)[torch.arange(len(ids)), torch.tensor(ids)]
    return float(chosen.sum()) / len(ids) ** alpha


def compare_searches(
    model: Any, folder: Path, translator: Translator, *, alpha: float, **asked: Any
) -> tuple[int, int, int]:
    """How many sentences there are, are equal, and are explained.

    Two things set the searches apart. At the length limit `generate` gives the end
    token for nothing, and we count it. And unless early_stopping is "never", it stops
    before every hope is lost. In both cases ours must score higher, the end counted.
    """
    tokenizer = transformers.MarianTokenizer.from_pretrained(folder)
    sources, beams = phrases(), asked["num_beams"]
    found = translator.translate(sources, search=our_search(beams, alpha))
    ids, scores = generated(model, tokenizer, sources, **asked)
    exact = asked.get("early_stopping") == "never" or beams == 1
    equal = explained = 0
    for source, ours, wanted, score in zip(sources, found, ids, scores, strict=True):
        at_limit = beams > 1 and max(len(wanted), len(ours.tokens)) == LIMIT
        if tuple(tokenizer.convert_ids_to_tokens(wanted)) == ours.tokens:
            equal += 1
            if beams > 1 and not at_limit:
                assert ours.score == pytest.approx(score, rel=1e-4, abs=1e-5)
        else:
            assert at_limit or not exact, source
            counted = score_of(model, tokenizer, source, wanted, alpha)
            assert ours.score >= counted - 1e-5
            explained += 1
    assert len({ours.tokens for ours in found}) >= 3
    print(f"{equal} of {len(sources)} sentences equal, {explained} explained")
    return len(sources), equal, explained


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize(
    ("beams", "alpha", "early_stopping"),
    [(1, 1.0, None), *((4, a, e) for a in (1.0, 0.3) for e in ("never", False))],
)
def test_search_gives_the_tokens_of_generate(
    tmp_path, beams, alpha, seed, early_stopping
):
    """`never` is HF's search that goes on until no beam can become better: the exact
    one. False is its default. Pad is likely here, and banned."""
    model = folder_model(seed)
    with torch.no_grad():
        model.model.shared.weight[0] *= 0.2
        model.final_logits_bias[0, 0] = 8.0 + seed / 7
        model.final_logits_bias[0, -1] += 5.0
    save(model, tmp_path / "hf")
    run = tmp_path / "run"
    words = ["import", "--from", "marian", str(tmp_path / "hf"), "--output", str(run)]
    assert main(words) == 0
    asked = {
        "num_beams": beams,
        "do_sample": False,
        "length_penalty": alpha,
        "early_stopping": early_stopping,
        "bad_words_ids": [[model.config.pad_token_id]],
        "forced_eos_token_id": 0,
    }
    total, equal, explained = compare_searches(
        model, tmp_path / "hf", Translator.load(run), alpha=alpha, **asked
    )
    assert equal + explained == total
    assert equal >= total // 4


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        ("bos", "marian"),
        ("bos", "ctranslate2"),
        ("eos", "ctranslate2"),
        ("pad", "marian"),
    ],
)
@pytest.mark.parametrize("beams", [1, 4])
def test_generate_translates_with_a_run_of_ours_as_we_do(tmp_path, beams, start, kind):
    """What is searched for, and what is banned, stands in generation_config.json."""
    search = our_search(beams, 1.0)
    run = own_run(
        tmp_path / "run", search=search, decoder_start=start, output_bias=True
    )
    folder = tmp_path / "hf"
    assert exported(run, folder, kind)["generation_config"]["num_beams"] == beams
    model = transformers.MarianMTModel.from_pretrained(folder).eval()
    ours = Translator.load(run)
    total, equal, explained = compare_searches(
        model,
        folder,
        uncounted(ours) if kind == "ctranslate2" else ours,
        alpha=1.0,
        num_beams=beams,
        **({"early_stopping": "never"} if beams > 1 else {}),
    )
    assert equal + explained == total
    assert equal >= total // 4


@pytest.mark.parametrize("start", ["bos", "eos", "pad"])
def test_logits_of_an_exported_run_of_ours_agree(tmp_path, start):
    """Symbols have other numbers there, and logits other places."""
    run = own_run(tmp_path / "run", decoder_start=start)
    folder = tmp_path / "hf"
    numbers = exported(run, folder)["vocab"]
    model = transformers.MarianMTModel.from_pretrained(folder).eval()
    ours = Translator.load(run)
    size = ours.tokenizer.target_vocab_size
    theirs = np.array([numbers[s] for s in ours.tokenizer.target_pieces(range(size))])
    draw = np.random.default_rng(0)
    inputs, targets = (draw.integers(4, size, (3, width)) for width in (7, 8))
    inputs[1, 4:] = targets[2, 5:] = ours.tokenizer.pad_id
    batch = padded_batch(
        inputs.astype(np.int32), targets.astype(np.int32), ours.tokenizer.pad_id
    )
    first = getattr(ours.tokenizer, f"{start}_id")
    fed = np.concatenate([np.full((3, 1), first), targets[:, :-1]], axis=1)
    batch = batch._replace(decoder_inputs=fed.astype(np.int32))
    found = our_logits(ours.model.config, ours.params, batch)
    wanted = hf_logits(model, theirs[inputs], theirs[fed])[:, :, theirs]
    assert largest_difference(found, wanted, batch) <= TOLERANCE


def test_what_cannot_be_expressed_is_refused_with_the_list():
    settings = {
        **marian_model().config.to_dict(),
        "decoder_ffn_dim": 48,
        "activation_function": "gelu_new",
    }
    with pytest.raises(ValueError, match=r"encoder_ffn_dim is 24 .* gelu_new"):
        theirs.model_config(settings)
    config = jax.tree.map(
        lambda x: x, theirs.model_config(marian_model().config.to_dict())
    )
    with pytest.raises(ValueError, match="norm_position is 'pre', and must be 'post'"):
        theirs.settings_of(type(config)(norm_position="pre"))
