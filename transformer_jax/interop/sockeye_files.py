"""Sockeye's model folders.

    params.best                              arrays by name, a pickle of PyTorch's
    config                                   YAML, of objects of its own classes
    vocab.src.0.json, vocab.trg.0.json       symbol → number
    version                                  3.1.34

Text is symbols with spaces between: what splits it into subwords is not in the folder.
It is split at white space here too, unless codes are given or lie in the folder.
"""

import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from transformer_jax.config import ModelConfig, SearchConfig
from transformer_jax.data.vocabulary_tokenizer import VocabularyTokenizer
from transformer_jax.interop import vocabularies
from transformer_jax.interop.checks import (
    Kinds,
    arrays,
    check_fields,
    given_settings,
    is_kind,
    mapping,
)
from transformer_jax.interop.files import (
    FileError,
    find_file,
    read_json,
    read_pickle,
    read_yaml,
    write_pickle,
)
from transformer_jax.interop.library import Foreign, Options

VERSION = "3.1.34"
SPECIALS = {"pad_id": "<pad>", "unk_id": "<unk>", "bos_id": "<s>", "eos_id": "</s>"}
VOCABULARIES = ("vocab.src.0.json", "vocab.trg.0.json")
CLASSES = {
    "config_data": "DataConfig",
    "data_statistics": "DataStatistics",
    "config_embed_source": "EmbeddingConfig",
    "config_embed_target": "EmbeddingConfig",
    "config_encoder": "TransformerConfig",
    "config_decoder": "TransformerConfig",
}
"""Classes of the mappings by the names of the fields that hold them."""
KINDS: Kinds = {
    **dict.fromkeys(("config_encoder", "config_decoder"), dict),
    **dict.fromkeys(("config_embed_source", "config_embed_target"), dict),
    **dict.fromkeys(("vocab_source_size", "vocab_target_size"), int),
    "weight_tying_type": str,
}
"""What `config` must hold."""


def read_folder(path: Path, options: Options) -> Foreign:
    """A model folder, or a file of parameters in it."""
    folder = path.parent if path.is_file() else path
    weights = path if path.is_file() else find_file(folder, ["params.best"])
    file = find_file(folder, ["config"])
    settings = read_yaml(file) | given_settings(options)
    check_fields(settings, KINDS, f"{file}, of a model of Sockeye 3")
    state = arrays(read_pickle(weights), str(weights))
    codes = vocabularies.given_codes(options, [folder / n for n in vocabularies.CODES])
    vocabs = vocabularies.given_vocabs(options, [folder / n for n in VOCABULARIES])
    sides = []
    for name, vocab, code in zip(VOCABULARIES, vocabs, codes, strict=True):
        symbols = _symbols(vocab or find_file(folder, [name]))
        sides.append(vocabularies.splitting_side(symbols, code))
    sizes = settings["vocab_source_size"], settings["vocab_target_size"]
    vocabularies.check_sizes((sides[0], sides[1]), *sizes)
    ids = vocabularies.first_ids(SPECIALS)
    for side in sides:
        if vocabularies.special_ids(side.symbols, SPECIALS) != ids:
            raise ValueError(
                f"A vocabulary in {folder} does not begin with "
                f"{', '.join(SPECIALS.values())}, as Sockeye's do."
            )
    tokenizer = VocabularyTokenizer(*sides, **ids)
    return Foreign(settings, state, tokenizer, _search(settings))


def data_in(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What `config` says of the training data."""
    return mapping(settings.get("config_data") or {}, "'config_data' in 'config'")


def _search(settings: Mapping[str, Any]) -> SearchConfig:
    """What sockeye-translate does when it is told nothing: translations as long as two
    deviations above the mean ratio of lengths in the training data."""
    found = data_in(settings).get("data_statistics") or {}
    ratios = {"length_ratio_mean": 1.0, "length_ratio_std": 0.0}
    ratios |= {name: x for name, x in found.items() if name in ratios and x is not None}
    check_fields(ratios, dict.fromkeys(ratios, float), "data_statistics in 'config'")
    factor = ratios["length_ratio_mean"] + 2 * ratios["length_ratio_std"]
    return SearchConfig(
        beam_size=5,
        length_penalty="average",
        max_length_factor=factor,
        max_length_offset=math.ceil(factor),  # for the end of the source
    )


def _symbols(path: Path) -> list[str]:
    if path.suffix != ".json":
        return vocabularies.read_symbols(path)
    numbers = mapping(read_json(path), str(path))
    symbols = {i: symbol for symbol, i in numbers.items() if is_kind(i, int)}
    if symbols.keys() != set(range(len(numbers))):
        raise FileError(f"{path} does not number its symbols from 0 without a gap.")
    return [symbols[number] for number in range(len(numbers))]


def write_folder(path: Path, foreign: Foreign, config: ModelConfig) -> None:
    """Vocabularies are renumbered, where special symbols have other numbers here."""
    sides = vocabularies.sides_for(foreign.tokenizer, SPECIALS, config)
    orders = vocabularies.specials_first(foreign.tokenizer, SPECIALS, sides)
    state = foreign.state
    for order, names in zip(
        orders,
        (
            ["embedding_source.embedding.weight"],
            [
                "embedding_target.embedding.weight",
                "output_layer.weight",
                "output_layer.bias",
            ],
        ),
        strict=True,
    ):
        state = vocabularies.reordered(state, order, names)
    for name, side, order in zip(VOCABULARIES, sides, orders, strict=True):
        numbers = {side.symbols[i]: number for number, i in enumerate(order)}
        text = json.dumps(numbers, indent=4, ensure_ascii=False)
        (path / name).write_text(text, encoding="utf-8")
    write_pickle(path / "params.best", state)
    (path / "config").write_text(config_text(foreign.settings), encoding="utf-8")
    (path / "version").write_text(VERSION, encoding="utf-8")
    vocabularies.write_codes(path, sides)


def config_text(settings: Mapping[str, Any]) -> str:
    """YAML with the names of Sockeye's classes.

    >>> print(config_text({"config_encoder": {"num_layers": 2}}), end="")
    !ModelConfig
    config_encoder: !TransformerConfig
      num_layers: 2
    """
    node = yaml.SafeDumper(io.StringIO()).represent_data(dict(settings))
    _tag(node, "ModelConfig")
    return yaml.serialize(node, Dumper=yaml.SafeDumper)


def _tag(node: yaml.Node, name: str) -> None:
    """Gives mappings the name of the class that the field they are in is of."""
    if isinstance(node, yaml.MappingNode):
        node.tag = f"!{name}"
        for key, value in node.value:
            _tag(value, CLASSES.get(str(key.value), ""))


def data_config(source: int, target: int, lengths: Mapping[str, int]) -> dict[str, Any]:
    """What Sockeye wants to know of data: of use are the ratios of lengths only."""
    statistics = {
        "average_len_target_per_bucket": [],
        "buckets": [],
        "length_ratio_mean": 1.0,
        "length_ratio_std": 0.5,
        "length_ratio_stats_per_bucket": None,
        "max_observed_len_source": lengths["max_seq_len_source"],
        "max_observed_len_target": lengths["max_seq_len_target"],
        "num_discarded": 0,
        "num_sents": 0,
        "num_sents_per_bucket": [],
        "num_tokens_source": 0,
        "num_tokens_target": 0,
        "num_unks_source": 0,
        "num_unks_target": 0,
        "size_vocab_source": source,
        "size_vocab_target": target,
    }
    return {
        **lengths,
        "data_statistics": statistics,
        "eop_id": -1,
        "num_source_factors": 1,
        "num_target_factors": 1,
    }


def embedding_config(vocab_size: int, width: int) -> dict[str, Any]:
    """One side's embeddings."""
    return {
        "vocab_size": vocab_size,
        "num_embed": width,
        "dropout": 0.0,
        "num_factors": 1,
        "factor_configs": None,
        "allow_sparse_grad": False,
    }
