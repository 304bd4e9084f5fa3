"""Samples follow from text and seed in every process, with the right frequencies."""

import collections
import io
import itertools
import json
import math
import random
import subprocess
import sys

import pytest
import sentencepiece

from transformer_jax.data.subword_sampling import (
    Lattice,
    Pieces,
    SubwordSampler,
    merge,
    read_pieces,
)

TEXT = [
    "ein mann in einem blauen hemd steht auf einer leiter und putzt ein fenster .",
    "zwei junge weiße männer sind im freien in der nähe vieler büsche .",
    "ein kleines mädchen klettert in ein spielhaus aus holz , das « bunt » ist .",
    "a little girl climbing into a wooden playhouse that &quot; shines &quot; .",
    "a group of people standing in front of an igloo don 't laugh .",
]
ODD = ["", " ", "  two  spaces ", "中文 ☃☃ mann", "ﬁne ½\tx²\u3000▁a▁", "a<b>n<b> <b>"]
SETTINGS = [
    {},
    {"byte_fallback": True, "vocab_size": 360},
    {"user_defined_symbols": ["<b>", "<b>n", "e<b"]},
    {"normalization_rule_name": "identity", "remove_extra_whitespaces": False},
    {"split_by_whitespace": False, "vocab_size": 120},
    {"treat_whitespace_as_suffix": True},
    {"add_dummy_prefix": False},
]


def train(algorithm, **settings):
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT),
        model_writer=written,
        model_type=algorithm,
        minloglevel=2,
        **{"vocab_size": 90, "hard_vocab_limit": False, **settings},
    )
    model = written.getvalue()
    return model, sentencepiece.SentencePieceProcessor(model_proto=model)


def make_sampler(algorithm, strength, **settings):
    model, library = train(algorithm, **settings)
    return SubwordSampler(model, normalize=library.normalize, strength=strength)


def make_pieces(algorithm, scores):
    ids = {piece: number for number, piece in enumerate(scores)}
    none = frozenset()
    return Pieces(algorithm, ids, scores, none, none, 9, -20.0, (), unk_id=99)


def random_draws(seed):
    draw = random.Random(seed)
    return iter(lambda: draw.getrandbits(32), None)


def odd_texts(count):
    draw = random.Random(0)
    letters = "aeinmdst  <b>▁.½ß中é\u0301\x00😀"
    return ["".join(draw.choices(letters, k=draw.randrange(40))) for _ in range(count)]


WORDS = {"user_defined_symbols": ["ein", "einem", "n d"]}


@pytest.mark.parametrize("settings", [*SETTINGS, WORDS], ids=str)
def test_dropping_no_merge_is_the_plain_encoding(settings):
    model, library = train("bpe", **settings)
    sampler = SubwordSampler(model, normalize=library.normalize, strength=0.0)
    for text in [*TEXT, *ODD, *odd_texts(300)]:
        assert sampler.sample(text, seed=1) == library.encode(text)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_coldest_unigram_sample_is_the_plain_encoding(settings):
    model, library = train("unigram", **settings)
    sampler = SubwordSampler(model, normalize=library.normalize, strength=1e5)

    def score(ids):
        return sum(map(library.get_score, ids))

    for text in [*TEXT, *ODD, *odd_texts(300)]:
        sampled, plain = sampler.sample(text, seed=1), library.encode(text)
        if sampled != plain:  # only where two segmentations are equally probable
            assert score(sampled) == pytest.approx(score(plain), abs=1e-3)


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_sample_says_what_the_text_says(algorithm, settings):
    model, library = train(algorithm, **settings)
    sampler = SubwordSampler(model, normalize=library.normalize, strength=0.3)
    for text in [*TEXT, *ODD, *odd_texts(100)]:
        plain = library.decode(library.encode(text))
        assert {library.decode(sampler.sample(text, seed)) for seed in range(5)} == {
            plain
        }


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_other_processes_draw_the_same(algorithm, tmp_path):
    model, library = train(algorithm)
    (tmp_path / "model").write_bytes(model)
    script = (
        "import json, pathlib, sentencepiece, sys\n"
        "from transformer_jax.data.subword_sampling import SubwordSampler\n"
        "model = pathlib.Path(sys.argv[1]).read_bytes()\n"
        "library = sentencepiece.SentencePieceProcessor(model_proto=model)\n"
        "draw = SubwordSampler(model, normalize=library.normalize, strength=0.3)\n"
        "seeds = eval(sys.argv[2])\n"
        "print(json.dumps([draw.sample(sys.argv[3], seed) for seed in seeds]))\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "model")]

    def other_process(order):
        call = [*command, order, TEXT[0]]
        run = subprocess.run(call, capture_output=True, check=True, text=True)
        return json.loads(run.stdout)

    sampler = SubwordSampler(model, normalize=library.normalize, strength=0.3)
    here = [sampler.sample(TEXT[0], seed) for seed in range(-3, 40)]
    assert other_process("range(-3, 40)") == here
    # What has been drawn before changes nothing.
    assert other_process("range(39, -4, -1)") == here[::-1]
    assert len(set(map(tuple, here))) > 30


def test_a_word_is_drawn_anew_at_each_place():
    sampler = make_sampler("unigram", 0.1, add_dummy_prefix=False)
    samples = [sampler.sample("▁mädchen▁mädchen", seed) for seed in range(50)]
    halves = [(ids[: len(ids) // 2], ids[len(ids) // 2 :]) for ids in samples]
    assert sum(first == second for first, second in halves) < 25


def paper_distribution(scores, word, dropout):
    """Algorithm 1 of Provilkov et al., with the probability of every outcome."""
    outcome = collections.Counter()

    def step(symbols, probability):
        pairs = [
            (-scores[a + b], place)
            for place, (a, b) in enumerate(itertools.pairwise(symbols))
            if a + b in scores
        ]
        for _, place in sorted(pairs):
            merged = "".join(symbols[place : place + 2])
            kept = (*symbols[:place], merged, *symbols[place + 2 :])
            step(kept, probability * (1 - dropout))
            probability *= dropout
        outcome[symbols] += probability

    step(tuple(word), 1.0)
    return outcome


def close(counts, expected, draws):
    """Whether each count is within five standard deviations of its expectation."""
    assert set(counts) <= set(expected)
    for outcome, probability in expected.items():
        spread = math.sqrt(draws * probability * (1 - probability)) + 1
        if abs(counts[outcome] - draws * probability) > 5 * spread:
            return False
    return True


@pytest.mark.parametrize("dropout", [0.1, 0.5, 1.0])
def test_merges_are_dropped_as_in_the_paper(dropout):
    scores = {"ab": -1.0, "bc": -2.0, "aa": -3.0, "aab": -4.0, "abc": -5.0, "ca": -6.0}
    pieces, draws, word = make_pieces("bpe", scores), random_draws(0), "aabcaab"
    expected = paper_distribution(scores, word, dropout)
    counts = collections.Counter(
        tuple(merge(pieces, word, draws, dropout=dropout)) for _ in range(20_000)
    )
    assert close(counts, expected, 20_000)


@pytest.mark.parametrize("smoothing", [0.2, 1.0])
def test_segmentations_are_drawn_by_their_smoothed_probability(smoothing):
    scores = {"a": -3.0, "b": -2.5, "ab": -4.0, "ba": -3.5, "aba": -5.0, "bab": -9.0}
    pieces, draws, word = make_pieces("unigram", scores), random_draws(1), "ababxab"
    weights = {}
    for cuts in itertools.product([False, True], repeat=len(word) - 1):
        places = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), len(word)]
        parts = tuple(word[i:j] for i, j in itertools.pairwise(places))
        if all(part in scores or part == "x" for part in parts):
            score = sum(scores.get(part, pieces.unknown_score) for part in parts)
            weights[parts] = math.exp(smoothing * score)
    total = sum(weights.values())
    expected = {parts: weight / total for parts, weight in weights.items()}
    lattice = Lattice(pieces, word, smoothing=smoothing)
    counts = collections.Counter(tuple(lattice.draw(draws)) for _ in range(20_000))
    assert close(counts, expected, 20_000)


def test_unused_pieces_are_taken_apart_again():
    scores = {"a": -9.0, "b": -9.0, "ab": -1.0, "abb": -2.0, "abba": -3.0}
    unused = frozenset({"ab", "abb"})
    pieces = make_pieces("bpe", scores)._replace(unused=unused)
    assert merge(pieces, "abba", iter([]), dropout=0) == ["abba"]
    assert merge(pieces, "abbab", iter([]), dropout=0) == ["a", "b", "b", "a", "b"]


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_pieces_are_read_as_the_library_reads_them(algorithm):
    settings = {"byte_fallback": True, "vocab_size": 360, "unk_id": 2, "bos_id": 0}
    settings |= {"eos_id": 1, "user_defined_symbols": ["<b>"]}
    model, library = train(algorithm, **settings)
    pieces = read_pieces(model)
    assert pieces.algorithm == algorithm
    assert pieces.unk_id == library.unk_id() == 2
    assert pieces.user_defined == {"<b>"}
    assert all(library.piece_to_id(piece) == i for piece, i in pieces.ids.items())
    for piece, score in pieces.scores.items():
        assert score == library.get_score(library.piece_to_id(piece))
    names = [f"<0x{byte:02X}>" for byte in range(256)]
    assert list(pieces.byte_ids) == [library.piece_to_id(name) for name in names]
    assert len(pieces.ids) + 256 + 3 == library.get_piece_size()


def test_models_of_other_kinds_are_explained():
    model, _ = train("char")
    with pytest.raises(ValueError, match="type unigram or bpe"):
        read_pieces(model)


@pytest.mark.parametrize(("algorithm", "strength"), [("bpe", 0.9), ("unigram", 0.1)])
def test_text_without_spaces_has_more_than_a_few_samples(algorithm, strength):
    sampler = make_sampler(algorithm, strength)
    text = "einemmannin" * 20
    assert len({tuple(sampler.sample(text, seed)) for seed in range(300)}) > 256
    much = "einemmannin" * 2000  # in seconds, since no step looks at it all
    assert sampler.sample(much, seed=0) != sampler.sample(much, seed=1)
