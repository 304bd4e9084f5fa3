"""JoeyNMT's model folders.

best.ckpt, latest.ckpt, 25000.ckpt   model_state, and the state of training
config.yaml                          what the user wrote, without defaults
src_vocab.txt, trg_vocab.txt         a symbol a line
BPE codes or SentencePiece models    under the names that config.yaml gives them
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from transformer_jax.config import ModelConfig, SearchConfig
from transformer_jax.data.vocabulary_tokenizer import CONTINUED, VocabularyTokenizer
from transformer_jax.interop import vocabularies
from transformer_jax.interop.checks import (
    Kinds,
    arrays,
    check_fields,
    given_settings,
    mapping,
)
from transformer_jax.interop.files import (
    FileError,
    find_file,
    read_pickle,
    read_yaml,
    write_pickle,
)
from transformer_jax.interop.library import Foreign, Options, refuse

VERSION = "2.3.0"
CHECKPOINTS = ("best.ckpt", "latest.ckpt")
SPECIALS = {"unk_id": "<unk>", "pad_id": "<pad>", "bos_id": "<s>", "eos_id": "</s>"}
SIDES = ("src", "trg")
TYPES = {"sentencepiece": "model_file", "subword-nmt": "codes"}
"""tokenizer_type → the entry of tokenizer_cfg that names the file."""


def read_folder(path: Path, options: Options) -> Foreign:
    """A model folder, or a checkpoint in it."""
    folder = path.parent if path.is_file() else path
    weights = path if path.is_file() else _checkpoint(folder)
    file = find_file(folder, ["config.yaml"])
    settings = read_yaml(file) | given_settings(options)
    check_fields(settings, {"data": dict, "model": dict}, str(file))
    data = settings["data"]
    check_fields(data, dict.fromkeys(SIDES, dict), f"'data' in {file}")
    checkpoint = read_pickle(weights)
    if not isinstance(checkpoint, Mapping) or "model_state" not in checkpoint:
        raise FileError(
            f"{weights} is not a checkpoint of JoeyNMT: it has no 'model_state'."
        )
    symbols = mapping(data.get("special_symbols") or {}, "'data.special_symbols'")
    beside = [_named_codes(folder, data[side]) for side in SIDES]
    codes = vocabularies.given_codes(options, beside)
    refuse("joeynmt", _unlike(data, codes))
    names = [f"{side}_vocab.txt" for side in SIDES]
    vocabs = vocabularies.given_vocabs(options, [folder / name for name in names])
    sides = []
    for name, vocab, code in zip(names, vocabs, codes, strict=True):
        lines = vocabularies.read_lines(vocab or find_file(folder, [name]))
        sides.append(vocabularies.splitting_side(_numbered(lines, symbols), code))
    sizes = [len(side.symbols) for side in sides]
    settings |= dict(
        zip(("source_vocab_size", "target_vocab_size"), sizes, strict=True)
    )
    ids = vocabularies.first_ids(SPECIALS)
    return Foreign(
        settings,
        arrays(checkpoint["model_state"], f"'model_state' in {weights}"),
        VocabularyTokenizer(*sides, **ids),
        _search(mapping(settings.get("testing") or {}, f"'testing' in {file}")),
    )


def _checkpoint(folder: Path) -> Path:
    """The best one, else the latest."""
    numbered = [path for path in folder.glob("*.ckpt") if path.stem.isdigit()]
    newest = sorted(numbered, key=lambda path: int(path.stem))[-1:]
    return find_file(folder, [*CHECKPOINTS, *(path.name for path in newest)])


def _numbered(lines: list[str], special: Mapping[str, Any]) -> list[str]:
    """Special symbols first; what is there before is not numbered again."""
    first = [
        special.get(f"{name.removesuffix('_id')}_token", symbol)
        for name, symbol in SPECIALS.items()
    ]
    return list(dict.fromkeys([*first, *(special.get("lang_tags") or []), *lines]))


def _named_codes(folder: Path, side: Mapping[str, Any]) -> Path | None:
    """The file that splits words, which lies in the folder under its own name."""
    entry = TYPES.get(_type(side))
    named = _splitting(side).get(entry) if entry else None
    return folder / Path(str(named)).name if named else None


def _splitting(side: Mapping[str, Any]) -> dict[str, Any]:
    return mapping(side.get("tokenizer_cfg") or {}, "'tokenizer_cfg' in config.yaml")


def _type(side: Mapping[str, Any]) -> str:
    if side.get("level") != "bpe":
        return ""
    return side.get("tokenizer_type", side.get("bpe_type", "sentencepiece"))


def _unlike(
    data: Mapping[str, Any], codes: tuple[Path | None, Path | None]
) -> list[str]:
    """What is done to text that our tokenizer does not do, as a list of words."""
    found = []
    for name, code in zip(SIDES, codes, strict=True):
        side, where = data[name], f"data.{name}"
        more = _splitting(side)
        for switch in ("lowercase", "normalize"):
            if side.get(switch):
                found.append(f"{where}.{switch} is on")
        if more.get("pretokenizer", "none") != "none":
            found.append(f"{where}.tokenizer_cfg.pretokenizer is on")
        if side.get("level") not in ("word", "bpe"):
            found.append(f"{where}.level is {side.get('level')!r}")
        if more.get("separator", CONTINUED) != CONTINUED:
            found.append(f"{where}.tokenizer_cfg.separator is not {CONTINUED}")
        if _type(side) and code is None:
            found.append(
                f"{where}.level is 'bpe', but there is no file to split words with: "
                "give it as --source-codes and --target-codes"
            )
    return found


def _search(testing: Mapping[str, Any]) -> SearchConfig:
    """How config.yaml says that test data be translated."""
    kinds: Kinds = {
        **dict.fromkeys(("beam_size", "max_output_length"), int),
        **dict.fromkeys(("beam_alpha", "alpha"), float),
    }
    check_fields(testing, kinds, "'testing' in config.yaml", needed=False)
    beams = testing.get("beam_size", 1)
    alpha = testing.get("beam_alpha", testing.get("alpha", -1))
    longest = testing.get("max_output_length", -1)
    # Which does not count the end.
    lengths = {"max_length_factor": 0.0, "max_length_offset": longest + 1}
    return SearchConfig(
        method="beam" if beams > 1 else "greedy",
        beam_size=beams,
        length_penalty="gnmt" if alpha > 0 else "none",
        alpha=max(alpha, 0.0),
        **(lengths if longest > 0 else {}),
    )


def write_folder(path: Path, foreign: Foreign, config: ModelConfig) -> None:
    """Vocabularies are renumbered, where special symbols have other numbers here."""
    sides = vocabularies.sides_for(foreign.tokenizer, SPECIALS, config)
    orders = vocabularies.specials_first(foreign.tokenizer, SPECIALS, sides)
    names = (
        ["src_embed.lut.weight"],
        ["trg_embed.lut.weight", "decoder.output_layer.weight"],
    )
    state = foreign.state
    data: dict[str, Any] = {"dataset_type": "plain", "train": ""}
    for i, name in enumerate(SIDES):
        state = vocabularies.reordered(state, orders[i], names[i])
        lines = [f"{sides[i].symbols[number]}\n" for number in orders[i]]
        (path / f"{name}_vocab.txt").write_text("".join(lines), encoding="utf-8")
        about: dict[str, Any] = {"lang": name, "level": "word", "lowercase": False}
        if sides[i].codes:
            kind = "subword-nmt" if sides[i].splitter == "bpe" else "sentencepiece"
            file = {TYPES[kind]: vocabularies.CODES[i]}
            about |= {"level": "bpe", "tokenizer_type": kind, "tokenizer_cfg": file}
        data[name] = {**about, "voc_file": f"{name}_vocab.txt"}
    write_pickle(path / "best.ckpt", {"model_state": state})
    vocabularies.write_codes(path, sides)
    search = foreign.search
    gnmt = search.length_penalty == "gnmt"
    settings = {
        "name": "exported",
        "joeynmt_version": VERSION,
        "model_dir": ".",
        "use_cuda": False,
        "data": data,
        "training": {"batch_size": 64},
        "testing": {
            "load_model": "best.ckpt",
            "beam_size": search.beam_size if search.method == "beam" else 1,
            "beam_alpha": search.alpha if gnmt else -1,
        },
        "model": foreign.settings["model"],
    }
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    (path / "config.yaml").write_text(text, encoding="utf-8")
