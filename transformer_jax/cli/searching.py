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


SAMPLING = ("temperature", "top_k", "top_p", "seed", "mbr", "mbr_samples")
"""Options of sampling alone."""
BEAM = ("beam_size", "diversity_rate")
"""Options of beam search alone."""
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
    method = options.method or _method_meant(options)
    changes = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(SearchOptions)
    }
    changes["n_best"] = n_best
    if method is None and default.method == "greedy" and (n_best or 1) > 1:
        method = "beam"
    changes["method"] = method
    if method == "greedy" and n_best is None:
        changes["n_best"] = 1
    if method not in (None, "sampling"):
        changes["mbr"] = "none"
    changes = {name: value for name, value in changes.items() if value is not None}
    return dataclasses.replace(default, **changes)


def _method_meant(options: SearchOptions) -> str | None:
    """The one method whose own options are given, if any is."""
