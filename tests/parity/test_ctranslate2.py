"""CTranslate2's own converter reads what we export, and translates as we do."""

import pytest
from test_marian import LIMIT, folder_model, save

from transformer_jax.__main__ import main
from transformer_jax.config import SearchConfig
from transformer_jax.data.phrasebook.sentences import phrasebook_pairs
from transformer_jax.translation.translator import Translator

torch = pytest.importorskip("torch")
ctranslate2 = pytest.importorskip("ctranslate2")

pytestmark = pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")


@pytest.mark.parametrize("seed", [3, 4], ids=["short", "long"])
def test_ctranslate2_translates_200_sentences_as_we_do(seed, tmp_path):
    """Its Marian decoder starts from a zero vector: Marian's pad row is one."""
    model = folder_model(seed)
    with torch.no_grad():
        model.model.shared.weight[-1] = 0.0
        model.model.shared.weight[0] *= 0.2
        model.final_logits_bias[0, 0] = 9.0
    hf, run, back, converted = (tmp_path / n for n in ("hf", "run", "back", "ct2"))
    save(model, hf)
    assert main(["import", "--from", "marian", str(hf), "--output", str(run)]) == 0
    words = ["--checkpoint", str(run), "--output", str(back)]
    assert main(["export", "--to", "marian", *words]) == 0
    converter = ctranslate2.converters.TransformersConverter(str(back))
    converter.convert(str(converted))

    sources = [german for german, _ in phrasebook_pairs()["test"][:200]]
    ours = Translator.load(run)
    search = SearchConfig(
        method="greedy", max_length_factor=0.0, max_length_offset=LIMIT
    )
    found = ours.translate(sources, search=search)
    pieces = [
        [*ours.tokenizer.source_pieces(ours.tokenizer.encode_source(text)), "</s>"]
        for text in sources
    ]
    theirs = ctranslate2.Translator(str(converted), compute_type="float32")
    results = theirs.translate_batch(
        pieces, beam_size=1, max_decoding_length=LIMIT, min_decoding_length=0
    )
    different = 0
    for mine, result in zip(found, results, strict=True):
        # At the limit we put the end token, and CTranslate2 one word more.
        wanted = result.hypotheses[0][: LIMIT - 1]
        different += tuple(wanted) != mine.tokens[:-1]
    assert different == 0
    assert len({mine.tokens for mine in found}) >= 5
