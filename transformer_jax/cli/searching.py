"""Options of the verbs that search for translations."""

import dataclasses
from typing import Literal

from transformer_jax.config import SearchConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """Each left out is as the run's recipe says."""

    method: Literal["greedy", "beam"] | None = None
    """greedy: the best token at each place; beam: the best few prefixes."""
    beam_size: int | None = None
    """Prefixes kept per sentence; means --method beam."""
    block: int | None = None
    """Tokens that greedy search reads at once, guesses included; above 1, means
    --method greedy. The translations are the same."""
    length_penalty: Literal["gnmt", "average", "none"] | None = None
    """What divides a log-probability to make the score. average: length^alpha. gnmt:
    ((5 + length) / 6)^alpha. none: nothing."""
    alpha: float | None = None
    """Exponent of the length penalty."""
    stop: Literal["first", "beams", "bound"] | None = None
    """When beam search is done with a sentence. beams: as many translations as beams
    have ended. first: as many as are wanted have. bound: none that is still going on
    could beat them; slower, never worse in score."""
    max_length_factor: float | None = None
    """A translation has at most factor * source pieces + offset pieces."""
    max_length_offset: int | None = None
    """See --max-length-factor."""
    min_length: int | None = None
    """A translation has at least so many pieces, the end not counted."""
    no_repeat_ngram: int | None = None
    """No translation holds the same n pieces in a row twice; 0: it may."""
    ban: tuple[str, ...] | None = None
    """Words and phrases that no translation holds: --ban beer "the dog"."""
    coverage_penalty: float | None = None
    """What source pieces that got little attention cost in the score (beta of Wu et
    al., 2016); 0.2 is usual, 0 off."""


AS_TRAINED = SearchOptions()
"""No option given."""


def chosen_search(
    default: SearchConfig, options: SearchOptions, *, n_best: int | None = None
) -> SearchConfig:
    """The run's way to search, with the options on top.

    >>> chosen_search(SearchConfig(), SearchOptions(beam_size=2)).beam_size
    2
    """
    if options.method == "greedy" and (options.beam_size or 1) > 1:
        raise ValueError(
            f"--beam-size is {options.beam_size}, but --method greedy keeps one "
            "prefix: leave out one of them."
        )
    if (options.block or 1) > 1 and options.method is None:
        if options.beam_size or (n_best or 1) > 1:
            raise ValueError(
                f"--block is {options.block}, but only greedy search guesses ahead, "
                "and it keeps one prefix: leave out --block, or both --beam-size and "
                "--n-best."
            )
        options = dataclasses.replace(options, method="greedy")
    changes = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(SearchOptions)
    }
    changes["n_best"] = n_best
    if options.method is None and (options.beam_size or (n_best or 1) > 1):
        changes["method"] = "beam"
    if changes["method"] not in (None, "greedy") and options.block is None:
        changes["block"] = 1
    if options.method == "greedy" and n_best is None:
        changes["n_best"] = 1
    changes = {name: value for name, value in changes.items() if value is not None}
    return dataclasses.replace(default, **changes)
