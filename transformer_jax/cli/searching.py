"""Options of the verbs that search for translations."""

import dataclasses
from typing import Literal

from transformer_jax.config import SearchConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """Each left out is as the run's recipe says."""

    method: Literal["greedy", "beam", "sampling"] | None = None
    """greedy: the best token at each place; beam: the best few prefixes; sampling:
    tokens drawn at random, --n-best times."""
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
    diversity_rate: float | None = None
    """What later siblings are charged where beam search chooses its prefixes; means
    --method beam. 0 is off."""
    temperature: float | None = None
    """Logits are divided by this; means --method sampling, as do the next ones."""
    top_k: int | None = None
    """Draw only from the k likeliest tokens; 0: from all."""
    top_p: float | None = None
    """Draw only from the fewest likeliest tokens with this probability together; 1:
    from all."""
    seed: int | None = None
    """Start of the random numbers. The same seed draws the same."""
    mbr: Literal["none", "chrf", "bleu"] | None = None
    """Give the samples that are most like all others, by chrF or BLEU (minimum Bayes
    risk); that likeness is their score."""
    mbr_samples: int | None = None
    """Samples that --mbr draws for each line."""


OWNERS = {
    "block": "greedy",
    "beam_size": "beam",
    "diversity_rate": "beam",
    "temperature": "sampling",
    "top_k": "sampling",
    "top_p": "sampling",
    "seed": "sampling",
    "mbr": "sampling",
    "mbr_samples": "sampling",
}
"""Options that only one method has."""
AS_TRAINED = SearchOptions()
"""No option given."""


def chosen_search(
    default: SearchConfig, options: SearchOptions, *, n_best: int | None = None
) -> SearchConfig:
    """The run's way to search, with the options on top.

    >>> chosen_search(SearchConfig(), SearchOptions(beam_size=2)).beam_size
    2
    """
    method = method_meant(options)
    changes = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(SearchOptions)
    }
    changes["n_best"] = n_best
    if method is None and default.method == "greedy" and (n_best or 1) > 1:
        method = "beam"
    changes["method"] = method
    if method not in (None, "greedy"):
        changes["block"] = 1
    if method == "greedy" and n_best is None:
        changes["n_best"] = 1
    if method not in (None, "sampling"):
        changes["mbr"] = "none"
    changes = {name: value for name, value in changes.items() if value is not None}
    return dataclasses.replace(default, **changes)


def method_meant(options: SearchOptions) -> str | None:
    """The method that is given, or whose own options are; None: neither is.

    >>> method_meant(SearchOptions(top_k=5))
    'sampling'
    """
    given = {
        name: owner
        for name, owner in OWNERS.items()
        if getattr(options, name) is not None
    }
    if options.method == "greedy" and options.beam_size == 1:
        del given["beam_size"]  # the same thing in other words
    if options.block == 1:
        del given["block"]  # every method reads one token at a time
    method = options.method or next(iter(given.values()), None)
    for name, owner in given.items():
        if owner != method:
            other = next((each for each in given if given[each] == method), None)
            against = f"--method {method}" if options.method else _flag(other)
            raise ValueError(
                f"{_flag(name)} is {getattr(options, name)}, which is for --method "
                f"{owner}, but {against} is given too: leave out one of them."
            )
    return method


def _flag(name: str | None) -> str:
    return f"--{name}".replace("_", "-")
