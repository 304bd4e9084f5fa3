"""Text comes back, training and sampling repeat themselves, mistakes are explained."""

import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import sentencepiece

from transformer_jax.config import TokenizerConfig
from transformer_jax.data.tokenizer import (
    SentencePieceTokenizer,
    draw_sentences,
    load_tokenizer,
    train_sentencepiece,
)

GERMAN = [
    "ein mann in einem blauen hemd steht auf einer leiter und putzt ein fenster .",
    "zwei junge weiße männer sind im freien in der nähe vieler büsche .",
    "ein kleines mädchen klettert in ein spielhaus aus holz , das « bunt » ist .",
    "eine gruppe von menschen steht vor einem iglu & lacht .",
]
ENGLISH = [
    "a man in a blue shirt is standing on a ladder cleaning a window .",
    "two young , white males are outside near many bushes .",
    "a little girl climbing into a wooden playhouse that &quot; shines &quot; .",
    "a group of people standing in front of an igloo don 't laugh .",
]
ALGORITHMS = pytest.mark.parametrize("algorithm", ["bpe", "unigram"])


def train(seed=0, sources=GERMAN, targets=ENGLISH, **settings):
    config = TokenizerConfig(**{"vocab_size": 60, **settings})
    return train_sentencepiece(config, sources, targets, seed=seed)


@ALGORITHMS
@pytest.mark.parametrize("joint", [True, False])
def test_tokenised_text_comes_back_exactly(algorithm, joint):
    tokenizer = train(algorithm=algorithm, joint=joint, normalization="identity")
    for text in [*ENGLISH, "", " a  b ", "a man", "near near", " "]:
        assert tokenizer.decode_target(tokenizer.encode_target(text)) == text


def test_identity_leaves_what_nfkc_would_change():
    odd = ["ﬁne ½ of x² ， ok", "a\u00a0b"]
    kept = train(sources=odd * 3, targets=ENGLISH, normalization="identity")
    assert [kept.decode_target(kept.encode_source(text)) for text in odd] == odd
    changed = train(sources=odd * 3, targets=ENGLISH)
    text = changed.decode_target(changed.encode_source(odd[0]))
    assert text == "fine 1⁄2 of x2 , ok"


def test_special_tokens_have_the_agreed_ids_and_never_come_from_text():
    tokenizer = train()
    ids = (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id)
    assert ids == (0, 1, 2, 3)
    assert not set(tokenizer.encode_source("<s> <pad> </s>")) & {0, 1, 2}


@ALGORITHMS
def test_vocabularies_have_the_size_asked_for(algorithm):
    joint = train(algorithm=algorithm, vocab_size=70)
    assert (joint.source_vocab_size, joint.target_vocab_size) == (70, 70)
    assert joint.joint
    separate = train(algorithm=algorithm, vocab_size=60, joint=False)
    assert (separate.source_vocab_size, separate.target_vocab_size) == (60, 60)
    assert not separate.joint
    assert separate.encode_source("ein mann") != separate.encode_target("ein mann")


def test_a_sequence_of_any_ids_decodes():
    tokenizer = train()
    ids = [*range(-3, tokenizer.target_vocab_size + 50), 2**40]
    assert "⁇" in tokenizer.decode_target(ids)
    assert len(tokenizer.target_pieces(ids)) == len(ids)
    assert len(tokenizer.source_pieces(ids)) == len(ids)
    assert tokenizer.decode_target([]) == ""
    assert tokenizer.decode_target([0, 1, 2]) == ""
    framed = [1, *tokenizer.encode_target("a man"), 2, 0, 0]
    assert tokenizer.decode_target(framed) == "a man"


def test_pieces_spell_the_text():
    tokenizer = train()
    pieces = tokenizer.source_pieces(tokenizer.encode_source("zwei männer"))
    assert "".join(pieces) == "▁zwei▁männer"
    assert tokenizer.target_pieces([0, 1, 2, 3]) == ["<pad>", "<s>", "</s>", "<unk>"]


@ALGORITHMS
@pytest.mark.parametrize("joint", [True, False])
def test_training_twice_gives_the_same_files(algorithm, joint):
    first = train(algorithm=algorithm, joint=joint).files()
    assert first == train(algorithm=algorithm, joint=joint).files()


def test_longer_text_is_drawn_from_by_the_seed():
    lines = [str(number) for number in range(1000)]
    drawn = draw_sentences(lines, 100, seed=1)
    assert drawn == draw_sentences(iter(lines), 100, seed=1)
    assert drawn != draw_sentences(lines, 100, seed=2)
    assert len(set(drawn)) == 100
    assert set(drawn) <= set(lines)
    # The mean of 0..999 is 499.5; that of 100 draws strays by about 27.
    assert abs(sum(map(int, drawn)) / 100 - 499.5) < 110
    few = train(max_training_sentences=3, vocab_size=50)
    assert few.files() == train(max_training_sentences=3, vocab_size=50).files()


@ALGORITHMS
@pytest.mark.parametrize("joint", [True, False])
def test_saved_and_loaded_is_the_same_tokenizer(algorithm, joint):
    tokenizer = train(algorithm=algorithm, joint=joint, sampling=0.2)
    for copy in (
        load_tokenizer(tokenizer.files()),
        pickle.loads(pickle.dumps(tokenizer)),
    ):
        assert copy.files() == tokenizer.files()
        for text in GERMAN:
            assert copy.encode_source(text) == tokenizer.encode_source(text)
            sampled = copy.encode_target(text, seed=5)
            assert sampled == tokenizer.encode_target(text, seed=5)


@ALGORITHMS
def test_sampling_is_a_function_of_text_and_seed(algorithm):
    tokenizer = train(algorithm=algorithm, sampling=0.3)
    text = GERMAN[0]
    drawn = [tokenizer.encode_source(text, seed=seed) for seed in range(20)]
    again = [tokenizer.encode_source(text, seed=seed) for seed in range(20)]
    assert drawn == again
    assert len({tuple(ids) for ids in drawn}) > 10
    assert {tokenizer.decode_target(ids) for ids in drawn} == {text}
    plain = tokenizer.encode_source(text)
    assert plain == tokenizer.encode_source(text)
    # Seeds of any size.
    for seed in (2**32 - 1, 2**32, 2**63 + 5, -1):
        first = tokenizer.encode_source(text, seed=seed)
        assert first == tokenizer.encode_source(text, seed=seed)


def test_without_sampling_a_seed_changes_nothing():
    tokenizer = train(sampling=0.0)
    assert tokenizer.encode_source(GERMAN[0], seed=3) == tokenizer.encode_source(
        GERMAN[0]
    )


def test_threads_do_not_disturb_one_anothers_samples():
    tokenizer = train(sampling=0.3)
    jobs = [(text, seed) for seed in range(100) for text in GERMAN]

    def sample(job: tuple[str, int]) -> list[int]:
        return tokenizer.encode_source(job[0], seed=job[1])

    alone = [sample(job) for job in jobs]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(sample, jobs)) == alone


@ALGORITHMS
@pytest.mark.parametrize("joint", [True, False])
def test_too_large_a_vocabulary_names_the_largest_possible(algorithm, joint):
    with pytest.raises(ValueError, match=r"50000.*supports at most \d+ pieces") as info:
        train(algorithm=algorithm, joint=joint, vocab_size=50_000)
    largest = int(str(info.value).split("at most ")[1].split()[0])
    source = GERMAN if not joint else [*GERMAN, *ENGLISH]
    fits = train(algorithm=algorithm, vocab_size=largest, sources=source, targets=[])
    assert fits.source_vocab_size == largest
    with pytest.raises(ValueError, match="at most"):
        train(algorithm=algorithm, vocab_size=largest + 1, sources=source, targets=[])


def test_too_small_a_vocabulary_names_the_smallest_possible():
    with pytest.raises(ValueError, match=r"is 10, .* at least \d+\. Raise"):
        train(vocab_size=10)


def test_text_without_words_is_explained():
    with pytest.raises(ValueError, match="no text to train the joint vocabulary"):
        train(sources=[], targets=[""])
    with pytest.raises(ValueError, match="no text to train the target vocabulary"):
        train(targets=[], joint=False)


def test_damaged_files_are_explained():
    files = train().files()
    missing = {name: files[name] for name in files if name != "joint.model"}
    with pytest.raises(ValueError, match=r"lack 'joint\.model'"):
        load_tokenizer(missing)
    with pytest.raises(ValueError, match=r"lack 'tokenizer\.json'"):
        load_tokenizer({})
    with pytest.raises(ValueError, match="is damaged"):
        load_tokenizer({**files, "tokenizer.json": b"{"})
    with pytest.raises(ValueError, match="cannot be read"):
        load_tokenizer({**files, "joint.model": b"garbage"})
    with pytest.raises(ValueError, match="kind 'words'"):
        load_tokenizer({**files, "tokenizer.json": b'{"kind": "words"}'})


def test_models_must_agree_on_special_tokens():
    one = train().files()["joint.model"]
    written = io.BytesIO()  # with the library's own ids: unk 0, no pad
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(GERMAN),
        model_writer=written,
        vocab_size=60,
        minloglevel=2,
    )
    with pytest.raises(ValueError, match="must agree"):
        SentencePieceTokenizer(one, written.getvalue())
