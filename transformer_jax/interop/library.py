"""What every library's module offers, and runs made from and turned into its files.

A module of this folder that stands for a library has:

    EXPRESSIBLE                               values of our settings that it knows
    model_config(settings) -> ModelConfig     refuses what we cannot express
    settings_of(config) -> dict               refuses what they cannot express
    table(config, settings) -> Table
    read(path, options) -> Foreign
    write(path, foreign, config) -> None

and, where there can be such a thing,

    completed(state, settings) -> (state, settings)   arrays under the names of today,
                                                      and settings that they tell
    only_in_training(settings) -> list[str]           what fine-tuning will do in
                                                      another way, in words
"""

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from transformer_jax.checkpoint import CheckpointStore
from transformer_jax.config import Config, ModelConfig, SearchConfig, TokenizerConfig
from transformer_jax.data.tokenizer import Tokenizer, load_tokenizer
from transformer_jax.interop.files import as_array, new_folder
from transformer_jax.interop.layout import SAME_WAVES, with_layout
from transformer_jax.interop.rules import StateDict, Table
from transformer_jax.recipes import config_from_json, config_to_json
from transformer_jax.trees import params_sha256
from transformer_jax.types import Params

LIBRARIES = {
    "marian": "Hugging Face Marian, OPUS-MT",
    "ctranslate2": "CTranslate2, by its converter of Marian models",
    "torch": "torch.nn.Transformer with embeddings and a generator",
    "annotated": "the Annotated Transformer",
    "fairseq": "fairseq transformer",
    "opennmt": "OpenNMT-py 3",
    "sockeye": "Sockeye 3",
    "joeynmt": "JoeyNMT 2",
}
"""Each is the module of that name in `transformer_jax.interop`."""


class Options(NamedTuple):
    """What a library's files may leave unsaid."""

    settings: Path | None = None
    """JSON file with the settings of the model."""
    source_vocab: Path | None = None
    target_vocab: Path | None = None
    source_codes: Path | None = None
    """BPE codes (subword-nmt) or a SentencePiece model of the source."""
    target_codes: Path | None = None


NO_OPTIONS = Options()
"""Everything is in the library's files."""


class Foreign(NamedTuple):
    """A model of another library: its settings, its arrays, its tokenizer."""

    settings: dict[str, Any]
    """As the library names them."""
    state: StateDict
    tokenizer: Tokenizer
    search: SearchConfig = SearchConfig()
    """How the library would translate with it."""


def library(kind: str) -> Any:
    """The module of a library."""
    if kind not in LIBRARIES:
        raise ValueError(
            f"There is no library {kind!r}: choose from {', '.join(LIBRARIES)}."
        )
    return importlib.import_module(f"transformer_jax.interop.{kind}")


def import_state(
    kind: str, state: StateDict, settings: Mapping[str, Any]
) -> tuple[ModelConfig, Params]:
    """Another library's state dict and settings → our settings and parameters.

    Arrays may be numpy's, jax's or PyTorch's. Settings that the weights tell need not
    be given.
    """
    config, table, arrays, _ = _understood(kind, state, settings)
    return config, table.import_params(arrays)


def _understood(
    kind: str, state: StateDict, settings: Mapping[str, Any]
) -> tuple[ModelConfig, Table, dict[str, np.ndarray], dict[str, Any]]:
    """Our settings, the table, and arrays and settings by the names it knows."""
    there = library(kind)
    arrays, theirs = _arrays(kind, state), _settings(kind, settings)
    try:
        if hasattr(there, "completed"):
            arrays, theirs = there.completed(arrays, theirs)
        config = there.model_config(theirs)
    except KeyError as error:
        raise ValueError(
            f"The settings of this model lack {error}, without which {LIBRARIES[kind]} "
            "could not build it either: give it in a file as --settings."
        ) from None
    return config, there.table(config, theirs), arrays, theirs


def _arrays(kind: str, state: Any) -> dict[str, np.ndarray]:
    """The state dict with numpy's arrays."""
    if not isinstance(state, Mapping):
        raise ValueError(
            f"The weights are a {type(state).__name__}, but a model of "
            f"{LIBRARIES[kind]} is arrays by name (a state dict): save "
            "model.state_dict()."
        )
    if odd := [key for key in state if not isinstance(key, str)]:
        raise ValueError(
            f"The weights have {odd[0]!r} among their names, but names are text: save "
            "model.state_dict()."
        )
    return {key: as_array(x, key) for key, x in state.items()}


def _settings(kind: str, settings: Any) -> dict[str, Any]:
    if not isinstance(settings, Mapping):
        raise ValueError(
            f"The settings are a {type(settings).__name__}, but those of "
            f"{LIBRARIES[kind]} have names: give one JSON object."
        )
    return dict(settings)


def export_state(
    kind: str,
    config: ModelConfig,
    params: Params,
    *,
    imported: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Our settings and parameters → another library's settings and state dict.

    Where its sinusoids are ours in another order, so are the weights then. `imported`
    holds "settings" and "shapes" as they were when the model came from this library:
    what our settings do not say is taken from there.
    """
    there = library(kind)
    config, params = _in_layout_of(there, config, params)
    settings, shapes = there.settings_of(config), {}
    if imported:
        first = there.model_config(imported["settings"])
        first, _ = _in_layout_of(there, first, {})
        kept = _kept(settings, there.settings_of(first), imported["settings"])
        if there.model_config(kept) == there.model_config(settings):
            settings = kept
        if first.d_model == config.d_model:
            shapes = imported["shapes"]
    return settings, there.table(config, settings).export_params(params, shapes)


def _in_layout_of(
    there: Any, config: ModelConfig, params: Params
) -> tuple[ModelConfig, Params]:
    expressible = getattr(there, "EXPRESSIBLE", {})
    layouts = expressible.get("sinusoid_layout", (config.sinusoid_layout,))
    if config.sinusoid_layout in SAME_WAVES and layouts[0] in SAME_WAVES:
        return with_layout(config, params, layouts[0])
    return config, params


def _kept(
    now: Mapping[str, Any], then: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """What is `now`, but in the words that were `given`, where nothing has changed
    since `then`.

    >>> _kept({"act": "silu", "eps": 2, "new": 0}, {"act": "silu", "eps": 1},
    ...       {"act": "swish", "eps": 1.0, "other": 5})
    {'act': 'swish', 'eps': 2, 'new': 0}
    """
    found = {}
    for name, value in now.items():
        before, first = then.get(name), given.get(name)
        if all(isinstance(each, Mapping) for each in (value, before, first)):
            found[name] = _kept(value, before, first)  # pyright: ignore[reportArgumentType]
        else:
            found[name] = first if name in given and value == before else value
    return found


def import_run(
    kind: str, path: Path, output: Path, options: Options = NO_OPTIONS
) -> ModelConfig:
    """Makes a run with one checkpoint, of step 0, from another library's files."""
    foreign: Foreign = library(kind).read(path, options)
    model, table, state, settings = _understood(kind, foreign.state, foreign.settings)
    params = table.import_params(state)
    tokenizer = foreign.tokenizer
    joint = tokenizer.source_vocab_size == tokenizer.target_vocab_size
    config = Config(
        model=model,
        tokenizer=TokenizerConfig(
            joint=joint or model.source_is_target_table,
            vocab_size=max(tokenizer.source_vocab_size, tokenizer.target_vocab_size),
        ),
        search=foreign.search,
    )
    notes = getattr(library(kind), "only_in_training", lambda _: [])
    origin = {
        "library": kind,
        "only_in_training": notes(settings),
        "path": str(path),
        "params_sha256": params_sha256(params),
        # Settings may hold what JSON does not know, which no model needs.
        "settings": json.loads(json.dumps(settings, default=str)),
        "shapes": table.derived_shapes(state),
    }
    with new_folder(output) as folder:
        store = CheckpointStore(folder)
        store.write_run(config_to_json(config), tokenizer.files(), origin=origin)
        store.save(0, {"params": params}, note=f"imported from {kind}: {path}")
    return model


def export_run(
    kind: str, checkpoint: Path, output: Path, *, step: int | None = None
) -> None:
    """Writes a run's checkpoint as the files that another library loads."""
    store = CheckpointStore(checkpoint)
    step = store.chosen_step(step)
    config = config_from_json(store.config_json(step))
    tokenizer = load_tokenizer(store.tokenizer_files(step))
    params = store.restore_params(step=step)
    imported = _imported_from(kind, store.origin())
    settings, state = export_state(kind, config.model, params, imported=imported)
    foreign = Foreign(settings, state, tokenizer, config.search)
    with new_folder(output) as folder:
        library(kind).write(folder, foreign, config.model)


def _imported_from(
    kind: str, origin: Mapping[str, Any] | None
) -> Mapping[str, Any] | None:
    """What a run, or the runs that its weights went through, noted when they were
    imported from this library."""
    while origin and "library" not in origin:
        origin = origin.get("origin")
    return origin if origin and origin["library"] == kind else None


def refuse(kind: str, differences: list[str]) -> None:
    """Raises if there is anything that a model here or there cannot express."""
    if differences:
        listed = "; ".join(differences)
        raise ValueError(
            f"This model cannot be moved from or to {LIBRARIES[kind]} without changing "
            f"what it computes. What differs: {listed}."
        )


def differences(
    config: ModelConfig, expressible: Mapping[str, tuple[Any, ...]]
) -> list[str]:
    """Settings or properties of ours with values that a library cannot express.

    The layout of sinusoids matters only where there are some.

    >>> differences(ModelConfig(gated=True), {"gated": (False,)})
    ['gated is True, and must be False']
    """
    return [
        f"{name} is {value!r}, and must be {' or '.join(map(repr, allowed))}"
        for name, allowed in expressible.items()
        if (value := getattr(config, name)) not in allowed
        and (name != "sinusoid_layout" or config.positions == "sinusoidal")
    ]


def final_norm_differences(config: ModelConfig) -> list[str]:
    """The same for a library whose stacks end with norms if those inside come first.

    >>> final_norm_differences(ModelConfig(norm_position="pre", final_norm=False))
    ["final_norm is False with norm_position 'pre'"]
    """
    if config.has_final_norm == (config.norm_position == "pre"):
        return []
    return [
        f"final_norm is {config.has_final_norm} with norm_position "
        f"{config.norm_position!r}"
    ]
