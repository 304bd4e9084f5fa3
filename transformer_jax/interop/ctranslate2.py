"""CTranslate2: a Marian folder for its own converter, which it is to be read by once.

    transformer-jax export --to ctranslate2 --checkpoint RUN --output FOLDER
    ct2-transformers-converter --model FOLDER --output_dir CONVERTED

The converter takes more of a Marian model for granted than Hugging Face's class does:

- Padding is the last symbol; its row is cut off.
- The decoder starts from zeros, whatever decoder_start_token_id says. Only the first
  position ever sees the start token, so its embedding is added to the first row of the
  decoder's positions, and the folder names padding, with a row of zeros, as the start.
- There is one vocabulary. Two are refused.
- Nothing but padding is banned, which is cut off. It and a start token of its own get
  a bias that no logit can make up for.

MarianMTModel translates alike with such a folder, since it loads the positions too; but
its `save_pretrained` leaves them out. For Transformers `--to marian` is the right one:
the two are the same where the decoder starts from padding and its row is zero.

Banned symbols do not count in its softmax: scores are a little higher than ours. Greedy
translations are the same. With beams, CTranslate2 stops when beams · patience
hypotheses are finished, and we when none can become better: it finds what we find with
more patience (of 2 nearly always, of 4 in all of 1000 sentences that were tried),
except where those scores turn what is nearly a tie.
"""

import dataclasses
import math
from pathlib import Path

import numpy as np

from transformer_jax.config import ModelConfig
from transformer_jax.interop import marian_files as files
from transformer_jax.interop.library import NO_OPTIONS, Foreign, Options, refuse
from transformer_jax.interop.marian import (
    EXPRESSIBLE,
    model_config,
    settings_of,
    table,
)
from transformer_jax.models.embeddings import sinusoidal_table

__all__ = ["EXPRESSIBLE", "model_config", "read", "settings_of", "table", "write"]

POSITIONS = "model.decoder.embed_positions.weight"
BANNED = -1e4
"""Bias of a symbol that is never to be chosen; float16 can hold it."""


def read(path: Path, options: Options = NO_OPTIONS) -> Foreign:
    """Refuses: what has been converted is fused, cut and often quantized."""
    raise ValueError(
        "Models of CTranslate2 cannot be imported: import the model that was converted."
    )


def write(path: Path, foreign: Foreign, config: ModelConfig) -> None:
    """What CTranslate2's converter of Marian models reads as we mean it."""
    foreign = files.numbered_as_marian(foreign, config)
    if files.two_vocabularies(foreign.tokenizer):
        refuse(
            "ctranslate2",
            ["source and target have vocabularies of their own, and must share one"],
        )
    if np.any(files.start_embedding(foreign, config)):
        foreign = started_by_position(foreign, config)
        config = dataclasses.replace(config, decoder_start="pad")
    files.write_folder(path, foreign, config)


def started_by_position(foreign: Foreign, config: ModelConfig) -> Foreign:
    """The same model started from padding, whose row is zero.

    PE'(0) = PE(0) + E(start) · √d, without the root where embeddings are not scaled.
    """
    tokenizer, state = foreign.tokenizer, dict(foreign.state)
    scale = math.sqrt(config.d_model) if config.scale_embeddings else 1.0
    shape = config.max_positions, config.d_model
    positions = sinusoidal_table(*shape, layout="halves_paper")
    positions[0] += scale * files.start_embedding(foreign, config)
    state[POSITIONS] = positions
    name = files.decoder_table(state)
    state[name] = state[name].copy()
    state[name][tokenizer.pad_id] = 0.0
    never = {tokenizer.pad_id, tokenizer.bos_id} - {tokenizer.eos_id}
    state[files.BIAS] = state[files.BIAS].copy()
    state[files.BIAS][0, sorted(never)] = BANNED
    return foreign._replace(state=state)
