"""Tables between our parameters and another library's state dict, read in both ways.

A rule names a path of ours and a key of theirs, and the kind of change between them.
Every path and every key is used by exactly one rule, so nothing is dropped silently,
and exporting what was imported gives every bit back.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from transformer_jax.config import ModelConfig
from transformer_jax.models.functions import init_params
from transformer_jax.models.transformer import Transformer
from transformer_jax.trees import leaves_by_path
from transformer_jax.types import Params

StateDict = Mapping[str, np.ndarray]
"""Arrays by the other library's names."""
FLOATS = ("bfloat16", "float16", "float32", "float64")
"""Types that weights may have; one that our type cannot hold exactly is refused."""
SHOWN = 8
"""Names listed in an error before the rest is only counted."""


class Kind(NamedTuple):
    """An invertible change of one array; both ways get the number of heads N."""

    name: str
    to_ours: Callable[[np.ndarray, int], np.ndarray]
    to_theirs: Callable[[np.ndarray, int], np.ndarray]


SAME = Kind("same", lambda x, n: x, lambda x, n: x)
"""Biases, norms, embedding tables [V, D]."""
TRANSPOSE = Kind("transpose", lambda x, n: x.T, lambda x, n: x.T)
"""PyTorch stores dense kernels as [out, in], Flax as [in, out]."""
HEADS_IN = Kind(
    "heads_in",
    lambda x, n: x.T.reshape(x.shape[1], n, -1),
    lambda x, n: x.reshape(x.shape[0], -1).T,
)
"""Query, key, value kernels: [N·H, D] there, [D, N, H] here."""
HEADS_BIAS = Kind(
    "heads_bias", lambda x, n: x.reshape(n, -1), lambda x, n: x.reshape(-1)
)
"""Their biases: [N·H] there, [N, H] here."""
HEADS_OUT = Kind(
    "heads_out",
    lambda x, n: x.T.reshape(n, -1, x.shape[0]),
    lambda x, n: x.reshape(-1, x.shape[-1]).T,
)
"""Output kernels of attention: [D, N·H] there, [N, H, D] here."""
ROW = Kind("row", lambda x, n: x[0], lambda x, n: x[None])
"""A vector stored as a matrix of one row."""


Order = Callable[[int, int, int], np.ndarray]
"""Rows, parts, heads → numbers of their rows, in the order that puts our parts one
below the other."""


def keys_values_by_head(rows: int, parts: int, heads: int) -> np.ndarray:
    """Key rows of head 0, value rows of head 0, key rows of head 1 … (Sockeye).

    Of three parts the first, the query, stands before them as it is.

    >>> keys_values_by_head(8, 2, 2).tolist()
    [0, 1, 4, 5, 2, 3, 6, 7]
    """
    first = rows // parts * (parts - 2)
    mixed = np.arange(first, rows).reshape(heads, 2, -1)
    return np.concatenate([np.arange(first), mixed.swapaxes(0, 1).reshape(-1)])


class Rule(NamedTuple):
    """Our array and theirs; of several of ours, theirs is all, one below the other.

    `{i}` in the names stands for each layer of the encoder or of the decoder.
    """

    ours: str | tuple[str, ...]
    theirs: str
    kind: Kind = SAME
    order: Order | None = None
    """Of their rows, if our parts are not simply one below the other."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Our arrays."""
        return (self.ours,) if isinstance(self.ours, str) else self.ours


class Alias(NamedTuple):
    """A key that repeats another one, because the two are tied.

    An optional one may be missing in what is imported, and is not exported.
    """

    theirs: str
    of: str
    optional: bool = False


class Derived(NamedTuple):
    """A stored array that follows from the settings: checked, not copied.

    `make` is given the shape that was found. An optional one may be missing in what is
    imported, and is not exported. Without a tolerance any numbers of that shape will
    do: a buffer that is kept, but never read.
    """

    theirs: str
    make: Callable[[tuple[int, ...]], np.ndarray]
    shape: tuple[int, ...] = ()
    optional: bool = False
    tolerance: float | None = 1e-5


Row = Rule | Alias | Derived


class TableError(ValueError):
    """A state dict that a table does not fit."""


@dataclasses.dataclass(frozen=True)
class Table:
    """All rules between a model of these settings and a state dict."""

    config: ModelConfig
    rows: Sequence[Row]

    def rules(self) -> Iterator[Rule]:
        """The rules that move parameters, one for each layer."""
        for row in self.rows:
            if isinstance(row, Rule):
                yield from _each_layer(row, self.config)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Our arrays by path."""
        return _shapes(self.config)

    def check(self) -> None:
        """Raises unless every path of ours is used exactly once, and every key once."""
        ours = [path for rule in self.rules() for path in rule.parts]
        theirs = [rule.theirs for rule in self.rules()]
        theirs += [row.theirs for row in self.rows if not isinstance(row, Rule)]
        for names, wanted in ((ours, self.shapes().keys()), (theirs, set(theirs))):
            wrong = sorted(wanted ^ set(names))
            wrong += sorted({name for name in names if names.count(name) > 1})
            if wrong:
                raise TableError(f"Not in exactly one rule: {_listed(wrong)}.")
        originals = {rule.theirs for rule in self.rules()}
        of_none = [
            row.theirs
            for row in self.rows
            if isinstance(row, Alias) and row.of not in originals
        ]
        if of_none:
            raise TableError(f"Copies of no rule's key: {_listed(of_none)}.")

    def import_params(self, state: StateDict) -> Params:
        """Our parameters from their state dict, as views of its arrays if possible.

        Raises TableError, which names every key that is missing, left over, of another
        shape or type, or holds numbers that are not finite or not exact in our type.
        """
        self.check()
        wanted, heads = self.shapes(), self.config.num_heads
        self._check_keys(state)
        found: dict[str, np.ndarray] = {}
        problems = []
        for rule in self.rules():
            shape = self._shape_there(rule, wanted)
            array = state[rule.theirs]
            if array.shape != shape:
                problems.append(
                    f"{rule.theirs} is {list(array.shape)}, not {list(shape)}"
                )
            elif not np.isfinite(array).all():
                problems.append(f"{rule.theirs} holds NaN or infinity")
            elif (cast := exactly(array, self._dtype)) is None:
                problems.append(
                    f"{rule.theirs} is {array.dtype} with numbers that {self._dtype} "
                    f"cannot hold exactly (save the weights as {self._dtype})"
                )
            else:
                array = cast
                if rule.order:
                    array = array[rule.order(len(array), len(rule.parts), heads)]
                parts = np.split(array, len(rule.parts)) if rule.parts[1:] else [array]
                for path, part in zip(rule.parts, parts, strict=True):
                    found[path] = rule.kind.to_ours(part, heads)
        problems += self._check_repeated(state)
        if problems:
            raise TableError(f"The weights do not fit: {_listed(problems, '; ')}.")
        return unflatten_dict({tuple(path.split("/")): x for path, x in found.items()})

    def derived_shapes(self, state: StateDict) -> dict[str, tuple[int, ...]]:
        """Shapes of the stored arrays that follow from the settings."""
        return {
            row.theirs: state[row.theirs].shape
            for row in self.rows
            if isinstance(row, Derived) and row.theirs in state
        }

    def export_params(
        self, params: Params, shapes: Mapping[str, Sequence[int]] | None = None
    ) -> dict[str, np.ndarray]:
        """Their state dict from our parameters, tied copies and tables included.

        `shapes` are those of derived arrays, where they differ from the library's own.
        """
        self.check()
        ours = {path: np.asarray(x) for path, x in leaves_by_path(params).items()}
        if wrong := sorted(self.shapes().keys() ^ ours.keys()):
            raise TableError(f"The parameters are of another model: {_listed(wrong)}.")
        heads = self.config.num_heads
        state: dict[str, np.ndarray] = {}
        for rule in self.rules():
            parts = [rule.kind.to_theirs(ours[path], heads) for path in rule.parts]
            whole = np.concatenate(parts) if parts[1:] else parts[0]
            if rule.order:
                whole = whole[np.argsort(rule.order(len(whole), len(parts), heads))]
            state[rule.theirs] = np.ascontiguousarray(whole)
        for row in self.rows:
            if isinstance(row, Alias) and not row.optional:
                state[row.theirs] = state[row.of].copy()
            elif isinstance(row, Derived) and not row.optional:
                shape = (shapes or {}).get(row.theirs, row.shape)
                state[row.theirs] = row.make(tuple(shape))
        return state

    @property
    def _dtype(self) -> np.dtype:
        return jax.numpy.dtype(self.config.param_dtype)

    def _shape_there(self, rule: Rule, ours: Mapping[str, tuple[int, ...]]) -> tuple:
        heads = self.config.num_heads
        empty = np.broadcast_to(np.zeros((), np.int8), ours[rule.parts[0]])
        first, *rest = rule.kind.to_theirs(empty, heads).shape
        return (len(rule.parts) * first, *rest)

    def _check_keys(self, state: StateDict) -> None:
        needed = {rule.theirs for rule in self.rules()}
        others = [row for row in self.rows if not isinstance(row, Rule)]
        needed |= {row.theirs for row in others if not row.optional}
        known = needed | {row.theirs for row in others}
        missing, unknown = sorted(needed - state.keys()), sorted(state.keys() - known)
        # Of a derived array only the values count.
        free = {row.theirs for row in others if isinstance(row, Derived)}
        odd, wrong = [], []
        for key, x in sorted(state.items()):
            if not hasattr(x, "shape") or not hasattr(x, "dtype"):
                odd.append(f"{key} ({type(x).__name__})")
            elif not (x.dtype.name in FLOATS or (key in free and x.dtype.kind in "iu")):
                wrong.append(f"{key} ({x.dtype})")
        problems = [f"not arrays: {_listed(odd)}"] if odd else []
        if wrong:
            problems.append(f"not of floating-point numbers: {_listed(wrong)}")
        if missing:
            problems.append(f"missing: {_listed(missing)}")
        if unknown:
            problems.append(f"not known in such a model: {_listed(unknown)}")
        if problems:
            raise TableError(f"The weights do not fit: {'; '.join(problems)}.")

    def _check_repeated(self, state: StateDict) -> Iterator[str]:
        for row in self.rows:
            if isinstance(row, Rule) or row.theirs not in state:
                continue
            array = state[row.theirs]
            if isinstance(row, Alias):
                if not np.array_equal(array, state[row.of]):
                    yield f"{row.theirs} should be {row.of} again, but is not"
            else:
                made = row.make(array.shape)
                same = made.shape == array.shape and (
                    row.tolerance is None
                    or np.allclose(array, made, rtol=0, atol=row.tolerance)
                )
                if not same:
                    yield f"{row.theirs} is not what the settings make it"


def exactly(x: np.ndarray, dtype: np.dtype) -> np.ndarray | None:
    """The same numbers in another type, or None if that cannot hold them all.

    >>> exactly(np.array([0.5, 3.0]), np.dtype(np.float32))
    array([0.5, 3. ], dtype=float32)
    >>> exactly(np.array([0.1]), np.dtype(np.float32)) is None
    True
    """
    if x.dtype == dtype:
        return x
    with np.errstate(over="ignore", under="ignore"):
        cast = x.astype(dtype)
    return cast if np.array_equal(cast.astype(x.dtype), x) else None


@functools.cache
def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    model = Transformer(config)
    params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    return {path: x.shape for path, x in leaves_by_path(params).items()}


def _each_layer(rule: Rule, config: ModelConfig) -> Iterator[Rule]:
    if "{i}" not in rule.theirs:
        yield rule
        return
    encoder = rule.parts[0].startswith("encoder/")
    layers = config.num_encoder_layers if encoder else config.num_decoder_layers
    for i in range(layers):
        ours = tuple(part.replace("{i}", str(i)) for part in rule.parts)
        theirs = rule.theirs.replace("{i}", str(i))
        yield rule._replace(ours=ours if ours[1:] else ours[0], theirs=theirs)


def _listed(names: Sequence[str], separator: str = ", ") -> str:
    more = len(names) - SHOWN
    shown = separator.join(names[:SHOWN])
    return f"{shown}{separator}and {more} more" if more > 0 else shown


def attention(
    ours: str, query: str, key: str, value: str, out: str, *, bias: bool
) -> list[Row]:
    """Rules of an attention block whose projections are four layers of their own.

    `ours` is its path, the others are theirs without `.weight` and `.bias`.
    """
    rows: list[Row] = []
    for name, theirs in (("query", query), ("key", key), ("value", value)):
        rows.append(Rule(f"{ours}/{name}/kernel", f"{theirs}.weight", HEADS_IN))
        if bias:
            rows.append(Rule(f"{ours}/{name}/bias", f"{theirs}.bias", HEADS_BIAS))
    rows.append(Rule(f"{ours}/out/kernel", f"{out}.weight", HEADS_OUT))
    if bias:
        rows.append(Rule(f"{ours}/out/bias", f"{out}.bias"))
    return rows


def dense(ours: str, theirs: str, *, bias: bool = True) -> list[Row]:
    """Rules of a dense layer."""
    rows: list[Row] = [Rule(f"{ours}/kernel", f"{theirs}.weight", TRANSPOSE)]
    return [*rows, Rule(f"{ours}/bias", f"{theirs}.bias")] if bias else rows


def norm(
    ours: str,
    theirs: str,
    *,
    names: tuple[str, str] = ("weight", "bias"),
    bias: bool = True,
) -> list[Row]:
    """Rules of a layer norm."""
    rows: list[Row] = [Rule(f"{ours}/scale", f"{theirs}.{names[0]}")]
    return [*rows, Rule(f"{ours}/bias", f"{theirs}.{names[1]}")] if bias else rows


def token_tables(
    config: ModelConfig, source: str, target: str, output: str
) -> list[Row]:
    """Rules of the embedding tables and the output projection, tied or not.

    The names are theirs without `.weight` and `.bias`; a tied array is stored under
    each of its names.
    """
    source, target = f"{source}.weight", f"{target}.weight"
    rows: list[Row]
    if config.source_is_target_table:
        rows = [Rule("shared_embedding/embedding", target), Alias(source, target)]
    else:
        rows = [
            Rule("source_embedding/embedding", source),
            Rule("target_embedding/embedding", target),
        ]
    if config.output_is_target_table:
        rows.append(Alias(f"{output}.weight", target))
    else:
        rows.append(Rule("output/kernel", f"{output}.weight", TRANSPOSE))
    if config.output_bias:
        rows.append(Rule("output/bias", f"{output}.bias"))
    return rows
