"""Texts that translations must hold or must not, as the ids of their pieces."""

from collections.abc import Mapping, Sequence

from transformer_jax.config import SearchConfig
from transformer_jax.data.tokenizer import Tokenizer


def asked_of_lines(
    numbers: Sequence[int],
    tokenizer: Tokenizer,
    ban: Sequence[str],
    positions: int,
    *,
    prefixes: Sequence[str | None] | None,
    phrases: Sequence[Sequence[str]] | None,
) -> tuple[list[tuple[int, ...]], list[dict[str, tuple[int, ...]]]]:
    """Prefixes and phrases that are asked of the lines with these `numbers` → the ids
    of each line's prefix, and of its phrases by their text; both must find room in the
    `positions` that the model knows."""
    for given, name in ((prefixes, "prefixes"), (phrases, "lists of phrases")):
        if given is not None and len(given) != len(numbers):
            raise ValueError(
                f"There are {len(numbers)} lines and {len(given)} {name}: give one for "
                "each line, None or an empty one where a translation is free."
            )
    prefixes = prefixes or [None] * len(numbers)
    phrases = phrases or [()] * len(numbers)
    banned: list[tuple[int, ...]] = []
    if any(phrases):
        singles, sequences = banned_ids(ban, tokenizer)
        banned = [*((each,) for each in singles), *sequences]
    forced, required = [], []
    for number, text, texts in zip(numbers, prefixes, phrases, strict=True):
        name = f"The prefix of line {number}"
        forced.append(prefix_ids(text, tokenizer, name=name))
        pieces = len(forced[-1])
        if pieces >= positions:
            raise ValueError(
                f"{name} has {pieces} pieces, but the model knows {positions} "
                "positions, one of them for the end: shorten it."
            )
        name = f"The translation of line {number}"
        required.append(required_ids(texts, tokenizer, banned, name=name))
        pieces += sum(map(len, required[-1].values()))
        if pieces >= positions:
            raise ValueError(
                f"{name} is to hold {pieces} pieces, but the model knows {positions} "
                "positions, one of them for the end: ask for less."
            )
    return forced, required


def prefix_ids(text: str | None, tokenizer: Tokenizer, *, name: str) -> tuple[int, ...]:
    """What a target begins with, without start and end; a blank text: nothing.

    >>> from transformer_jax.testing import NumberTokenizer
    >>> prefix_ids("7 8", NumberTokenizer(), name="Prefix 1")
    (7, 8)
    """
    if text is None or not text.strip():
        return ()
    ids = tuple(tokenizer.encode_target(text))
    if tokenizer.eos_id in ids:
        raise ValueError(
            f"{name} is {text!r}, which holds the end token: leave it out, as a target "
            "goes on after its prefix."
        )
    return ids


def banned_ids(
    texts: Sequence[str], tokenizer: Tokenizer
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """The texts of one piece, and those of more, which are sequences.

    A text with a character that the tokenizer does not know is never written, and so
    needs no ban.

    >>> from transformer_jax.testing import NumberTokenizer
    >>> banned_ids(["7", "8 9", "3"], NumberTokenizer())
    ((7,), ((8, 9),))
    """
    found = {text: tuple(tokenizer.encode_target(text)) for text in texts}
    for text, ids in found.items():
        if not ids or tokenizer.eos_id in ids:
            raise ValueError(
                f"ban holds {text!r}, which has no pieces or holds the end token: give "
                "words that a translation could hold."
            )
    written = {ids for ids in found.values() if tokenizer.unk_id not in ids}
    singles = (ids[0] for ids in written if len(ids) == 1)
    longer = (ids for ids in written if len(ids) > 1)
    return tuple(sorted(singles)), tuple(sorted(longer))


def prefix_width(prefixes: Sequence[Sequence[int]]) -> int:
    """Room for the longest and the start token: a power of two, so that few programs
    are compiled.

    >>> [prefix_width([(), (7,) * length]) for length in (0, 1, 2, 3, 4)]
    [1, 2, 4, 4, 8]
    """
    return 1 << max((len(each) for each in prefixes), default=0).bit_length()


def required_ids(
    texts: Sequence[str],
    tokenizer: Tokenizer,
    banned: Sequence[Sequence[int]] = (),
    *,
    name: str,
) -> dict[str, tuple[int, ...]]:
    """The ids of each phrase that a target must hold; blank ones are left out.

    One that cannot be written has none: where the tokenizer does not know a character
    of it, or it holds what is `banned`.

    >>> from transformer_jax.testing import NumberTokenizer
    >>> required_ids(["7 8", "", "9 3"], NumberTokenizer(), name="Line 1")
    {'7 8': (7, 8), '9 3': ()}
    """
    if isinstance(texts, str):
        raise ValueError(
            f"{name} is to hold {texts!r}, one text where a list of phrases belongs: "
            f"give a list for each line, here [{texts!r}]."
        )
    found = {}
    for text in texts:
        if not text.strip():
            continue
        ids = tuple(tokenizer.encode_target(text))
        if {tokenizer.eos_id, tokenizer.bos_id, tokenizer.pad_id}.intersection(ids):
            raise ValueError(
                f"{name} is to hold {text!r}, in which there is the pad, start or end "
                "token: leave it out, as a phrase comes inside a translation."
            )
        written = tokenizer.unk_id not in ids
        written = written and not any(is_in(each, ids) for each in banned)
        found[text] = ids if written else ()
    return found


def missing_phrases(
    required: Mapping[str, Sequence[int]], ids: Sequence[int]
) -> tuple[str, ...]:
    """Those that a target does not hold.

    >>> missing_phrases({"7 8": (7, 8), "9": (9,), "?": ()}, (8, 7, 8))
    ('9', '?')
    """
    held = {text for text, phrase in required.items() if phrase and is_in(phrase, ids)}
    return tuple(text for text in required if text not in held)


def is_in(phrase: Sequence[int], ids: Sequence[int]) -> bool:
    """Whether the phrase's ids come in a row."""
    size = len(phrase)
    ends = range(size, len(ids) + 1)
    return any(tuple(ids[end - size : end]) == tuple(phrase) for end in ends)


def checked_shape(
    phrases: Sequence[Sequence[Sequence[int]]], search: SearchConfig
) -> tuple[int, int] | None:
    """Room for the most phrases of one target and for the longest phrase: powers of
    two, so that few programs are compiled; None where no target must hold any.

    Raises ValueError for searches that know no phrases.

    >>> search = SearchConfig()
    >>> checked_shape([[(7, 8, 9)], [], [(7,), (8,), (9,)]], search)
    (4, 4)
    """
    count = max((len(each) for each in phrases), default=0)
    if not count:
        return None
    check_method(search)
    width = max(len(phrase) for each in phrases for phrase in each)
    return 1 << (count - 1).bit_length(), 1 << (width - 1).bit_length()


def check_method(search: SearchConfig) -> None:
    """Raises ValueError for searches that know no phrases."""
    if search.method != "beam":
        raise ValueError(
            "There are phrases that translations must hold, and method is "
            f"{search.method}: only beam search goes several ways at once, to find "
            "room for them. Choose method beam, or leave out the phrases."
        )
