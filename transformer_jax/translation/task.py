"""What several devices do together."""

from collections import deque
from typing import NamedTuple

from transformer_jax.translation.engine import Decoder
from transformer_jax.translation.methods import SearchPlan
from transformer_jax.translation.offers import Offer
from transformer_jax.translation.planning import Group
from transformer_jax.translation.sentences import Sentence


class Task(NamedTuple):
    """Sentences that devices share, and what they need to search them."""

    queue: deque[Sentence]
    plan: SearchPlan
    group: Group
    devices: int
    """More would have nothing to do."""
    many: bool
    """Whether there are so many sentences that more programs pay: those of sidings, and
    for finer lengths."""
    whole: Offer | None
    """What sentences without a list of their own choose from."""

    def suits(self, decoder: Decoder) -> bool:
        """Whether one that is there can do it; up to four times as many slots as wanted
        are no reason to compile for fewer, but for a sentence that is alone."""
        shape, group = (decoder.plan, decoder.length), self.group
        most = min(group.allowed, 4 * group.slots) if group.slots > 1 else 1
        enough = group.slots <= decoder.slots <= most
        return shape == (self.plan, group.length) and enough
