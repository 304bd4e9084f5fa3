"""CTranslate2's own converter reads what we export, and translates as we do.

Sources are sentences of the phrasebook, which is generated text.
"""

from pathlib import Path
from typing import Any

import pytest
from test_interop_marian import exported, own_run
from test_marian import folder_model, our_search, save

from transformer_jax.__main__ import main
from transformer_jax.data.phrasebook.sentences import phrasebook_pairs
from transformer_jax.translation.translator import Translator

torch = pytest.importorskip("torch")
ctranslate2 = pytest.importorskip("ctranslate2")

pytestmark = pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")

LIMIT = 20
"""Tokens of a translation at most."""
PATIENCE = 8.0
"""CTranslate2 stops when beams · patience hypotheses are finished, we when none can
become better: with more patience it looks as far."""


RUNS: dict[str, dict[str, Any]] = {
    "shared": {"decoder_start": "bos"},
    "target_output": {"decoder_start": "eos", "tied_embeddings": "target_output"},
    "unscaled": {
        "decoder_start": "pad",
        "scale_embeddings": False,
        "activation": "gelu",
    },
    "untied": {"decoder_start": "bos", "tied_embeddings": "none"},
}


def compare(run: Path, folder: Path) -> None:
    """Translates 200 sentences with a run and with a Marian folder made from it.

    At the limit we put the end token and CTranslate2 one word more, so beams are
    compared where neither comes that far; greedy words all the same.
    """
    converted = folder.parent / "converted"
    ctranslate2.converters.TransformersConverter(str(folder)).convert(str(converted))
    theirs = ctranslate2.Translator(str(converted), compute_type="float32")
    ours = Translator.load(run)
    sources = [german for german, _ in phrasebook_pairs()["test"][:200]]
    pieces = [
        [*ours.tokenizer.source_pieces(ours.tokenizer.encode_source(text)), "</s>"]
        for text in sources
    ]
    for beams in (1, 4):
        found = ours.translate(sources, search=our_search(beams, 1.0))
        results = theirs.translate_batch(
            pieces,
            beam_size=beams,
            patience=PATIENCE,
            length_penalty=1.0,
            max_decoding_length=LIMIT,
            min_decoding_length=0,
        )
        equal = at_limit = 0
        for mine, result in zip(found, results, strict=True):
            wanted = tuple(result.hypotheses[0])
            if beams > 1 and max(len(wanted) + 1, len(mine.tokens)) >= LIMIT:
                at_limit += 1
            else:
                assert wanted[: LIMIT - 1] == mine.tokens[:-1]
                equal += 1
        print(f"beam {beams}: {equal} of 200 sentences equal, {at_limit} at the limit")
        assert equal >= len(sources) // 2
        assert len({mine.tokens for mine in found}) >= 5


@pytest.mark.parametrize("name", RUNS)
def test_a_run_of_ours_is_translated_with_as_we_do(tmp_path, name):
    """Whatever the decoder starts from, which is never zero in a run of ours."""
    run = own_run(tmp_path / "run", output_bias=True, **RUNS[name])
    exported(run, tmp_path / "hf", "ctranslate2")
    compare(run, tmp_path / "hf")


@pytest.mark.parametrize("kind", ["marian", "ctranslate2"])
@pytest.mark.parametrize("seed", [3, 4], ids=["short", "long"])
def test_an_imported_model_is_translated_with_as_we_do(tmp_path, seed, kind):
    """The pad row of OPUS-MT models is zero, so either folder will do."""
    model = folder_model(seed)
    with torch.no_grad():
        model.model.shared.weight[-1] = 0.0
        model.model.shared.weight[0] *= 0.2
        model.final_logits_bias[0, 0] = 9.0
    hf, run, back = (tmp_path / name for name in ("hf", "run", "back"))
    save(model, hf)
    assert main(["import", "--from", "marian", str(hf), "--output", str(run)]) == 0
    exported(run, back, kind)
    compare(run, back)
