"""Marian's config.json and generation_config.json, checked as they are read."""

import logging
from collections.abc import Mapping
from typing import Any

from transformer_jax.config import ModelConfig, SearchConfig

logger = logging.getLogger(__name__)

DEFAULTS: Mapping[str, Any] = {
    "encoder_layers": 12,
    "decoder_layers": 12,
    "encoder_ffn_dim": 4096,
    "decoder_ffn_dim": 4096,
    "encoder_attention_heads": 16,
    "decoder_attention_heads": 16,
    "d_model": 1024,
    "vocab_size": 58101,
    "decoder_vocab_size": None,
    "max_position_embeddings": 1024,
    "dropout": 0.1,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "activation_function": "gelu",
    "scale_embedding": False,
    "share_encoder_decoder_embeddings": True,
    "tie_word_embeddings": True,
    "decoder_start_token_id": 58100,
    "pad_token_id": 58100,
    "bos_token_id": None,
    "eos_token_id": 0,
}
"""What MarianConfig of Transformers 5 supposes when config.json does not say."""
MAY_BE_NULL = ("decoder_vocab_size", "bos_token_id")
IDS = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
NOT_SEARCHED: Mapping[str, tuple[Any, ...]] = {
    "do_sample": (False,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0.0,),
    "repetition_penalty": (1.0,),
    "encoder_repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "sequence_bias": ({},),
    "force_words_ids": ([],),
    "forced_bos_token_id": (),
    "forced_decoder_ids": ([],),
}
"""Settings of `generate` that our search does not have, with values that do nothing."""


def with_defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that matter, whole and of the right types.

    >>> with_defaults({"d_model": 16})["d_model"], with_defaults({})["d_model"]
    (16, 1024)
    """
    there = {**DEFAULTS, **settings}
    wrong = []
    for name, default in DEFAULTS.items():
        value = there[name]
        if value is None and name in MAY_BE_NULL:
            continue
        needed = "a whole number, 0 or more"
        right = _is_count(value)
        if isinstance(default, bool):
            needed, right = "true or false", isinstance(value, bool)
        elif isinstance(default, float):
            needed = "a number"
            right = isinstance(value, int | float) and not isinstance(value, bool)
        elif isinstance(default, str):
            needed, right = "a name", isinstance(value, str)
        if not right:
            wrong.append(f"{name} is {value!r}, and must be {needed}")
    if wrong:
        raise ValueError(
            f"The settings of this Marian model are damaged: {'; '.join(wrong)}. Copy "
            "or download config.json again, or correct it."
        )
    return there


def special_ids(
    config: ModelConfig, *, pad: int, bos: int | None, eos: int
) -> dict[str, Any]:
    """The entries of config.json that number special tokens."""
    start = {"pad": pad, "bos": bos, "eos": eos}[config.decoder_start]
    return {
        "pad_token_id": pad,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "forced_eos_token_id": eos,
        "decoder_start_token_id": start,
    }


def with_generation(
    settings: Mapping[str, Any], generation: Mapping[str, Any]
) -> dict[str, Any]:
    """config.json, where special tokens that it does not number are numbered by
    generation_config.json.

    `generate` asks the latter only, so the two must not differ.
    """
    there = with_defaults({**generation, **settings})
    wrong = [
        f"{name} is {there[name]} there and {generation[name]} here"
        for name in IDS
        if generation.get(name) is not None and generation[name] != there[name]
    ]
    if wrong:
        raise ValueError(
            "config.json and generation_config.json number special tokens differently, "
            "and `generate` follows the second, training the first: "
            f"{'; '.join(wrong)}. Correct the one that is wrong."
        )
    ids = {name: generation[name] for name in IDS if name in generation}
    return {**ids, **settings}


def search_of(
    settings: Mapping[str, Any], generation: Mapping[str, Any]
) -> SearchConfig:
    """How `generate` would search; old models say that in config.json.

    What it does besides is listed in a warning, except for banned words: those are
    refused unless they are the two that our search bans too.
    """
    asked = {**settings, **generation}
    beams, alpha = asked.get("num_beams") or 1, asked.get("length_penalty")
    alpha = 1.0 if alpha is None else alpha
    if not _is_count(beams):
        raise ValueError(f"num_beams is {beams!r}, and must be a whole number.")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or alpha < 0:
        raise ValueError(
            f"length_penalty is {alpha!r}, and must be a number, 0 or more, for a "
            "search of ours: change it in generation_config.json."
        )
    _check_banned(asked)
    others = [
        f"{name} = {asked[name]!r}"
        for name, idle in NOT_SEARCHED.items()
        if asked.get(name) is not None and asked[name] not in idle
    ]
    if others:
        logger.warning(
            "The search of this Marian model has settings that ours lacks, and that "
            "are left out: %s.",
            ", ".join(others),
        )
    # Unless it stops early, it bounds what a beam may become: loosely, or as we do.
    return SearchConfig(
        method="beam" if beams > 1 else "greedy",
        beam_size=beams,
        alpha=alpha,
        stop="beams" if asked.get("early_stopping") is True else "bound",
    )


def generation_of(
    config: ModelConfig, search: SearchConfig, ids: Mapping[str, Any]
) -> dict[str, Any]:
    """generation_config.json: our search, as nearly as `generate` can do it."""
    pad, bos, eos = (ids[f"{name}_token_id"] for name in ("pad", "bos", "eos"))
    never = [[pad]] if bos is None or bos in (pad, eos) else [[pad], [bos]]
    asked: dict[str, Any] = {"num_beams": 1, "length_penalty": 1.0}
    if search.method == "beam" and search.beam_size > 1:
        early = "never" if search.stop == "bound" else True
        asked = {"num_beams": search.beam_size, "early_stopping": early}
        asked["length_penalty"] = (
            0.0 if search.length_penalty == "none" else search.alpha
        )
        if search.length_penalty == "gnmt" and search.alpha:
            logger.warning(
                "This run divides by ((5 + length) / 6)^alpha, which `generate` cannot "
                "do: in generation_config.json it divides by length^alpha."
            )
    longest = min(512, config.max_positions)
    return {**ids, **asked, "max_length": longest, "bad_words_ids": never}


def _check_banned(asked: Mapping[str, Any]) -> None:
    banned = asked.get("bad_words_ids") or []
    own = [[asked[name]] for name in ("pad_token_id", "bos_token_id") if name in asked]
    more = [each for each in banned if each not in own] if _is_listed(banned) else None
    if more is None:
        raise ValueError(
            f"bad_words_ids is {banned!r}, and must be a list of lists of ids: correct "
            "generation_config.json."
        )
    if more:
        raise ValueError(
            f"bad_words_ids of generation_config.json bans {more}, but a search of "
            "ours bans the padding and the start token only, and would translate "
            "otherwise. Remove the others there, if you can do without."
        )


def _is_listed(banned: Any) -> bool:
    return isinstance(banned, list) and all(isinstance(each, list) for each in banned)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
