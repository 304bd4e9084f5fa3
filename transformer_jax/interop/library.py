"""What every library's module offers, and runs made from and turned into its files.

A module of this folder that stands for a library has:

    EXPRESSIBLE                               values of our settings that it knows
    model_config(settings) -> ModelConfig     refuses what we cannot express
    settings_of(config) -> dict               refuses what they cannot express
    table(config, settings) -> Table
    read(path, options) -> Foreign
    write(path, foreign, config) -> None
    only_in_training(settings) -> list[str]   what fine-tuning will do in another way,
                                              in words; if there can be such a thing
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from transformer_jax.checkpoint import CheckpointStore
from transformer_jax.config import Config, ModelConfig, SearchConfig, TokenizerConfig
from transformer_jax.data.tokenizer import Tokenizer, load_tokenizer
from transformer_jax.interop.files import new_folder
from transformer_jax.interop.layout import SAME_WAVES, with_layout
from transformer_jax.interop.rules import StateDict
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
    """Another library's state dict and settings → our settings and parameters."""
    there = library(kind)
    try:
        config = there.model_config(settings)
    except KeyError as error:
        raise ValueError(
            f"The settings of this model lack {error}, without which {LIBRARIES[kind]} "
            "could not build it either: give it in a file as --settings."
        ) from None
    return config, there.table(config, settings).import_params(state)


def export_state(
    kind: str, config: ModelConfig, params: Params
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Our settings and parameters → another library's settings and state dict.

    Where its sinusoids are ours in another order, so are the weights then.
    """
    there = library(kind)
    expressible = getattr(there, "EXPRESSIBLE", {})
    layouts = expressible.get("sinusoid_layout", (config.sinusoid_layout,))
    if config.sinusoid_layout in SAME_WAVES and layouts[0] in SAME_WAVES:
        config, params = with_layout(config, params, layouts[0])
    settings = there.settings_of(config)
    return settings, there.table(config, settings).export_params(params)


def import_run(
    kind: str, path: Path, output: Path, options: Options = NO_OPTIONS
) -> ModelConfig:
    """Makes a run with one checkpoint, of step 0, from another library's files."""
    foreign: Foreign = library(kind).read(path, options)
    model, params = import_state(kind, foreign.state, foreign.settings)
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
    store = CheckpointStore(new_folder(output))
    notes = getattr(library(kind), "only_in_training", lambda _: [])
    origin = {
        "library": kind,
        "only_in_training": notes(foreign.settings),
        "path": str(path),
        "params_sha256": params_sha256(params),
    }
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
    settings, state = export_state(kind, config.model, params)
    foreign = Foreign(settings, state, tokenizer, config.search)
    library(kind).write(new_folder(output), foreign, config.model)


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
