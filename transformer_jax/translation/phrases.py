"""Texts that translations must hold or must not, as the ids of their pieces."""

from collections.abc import Sequence

from transformer_jax.data.tokenizer import Tokenizer


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
