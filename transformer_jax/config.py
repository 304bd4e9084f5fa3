"""Every setting of a run: typed, checked, documented, saved as JSON in checkpoints.

A recipe is a Python file with `get_config() -> Config`; `recipes.py` finds it by path
or by name, and tyro turns every field below into a flag: `--model.dropout 0.3`.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from transformer_jax.model_config import MODEL_SIZES, ModelConfig, sized_model
from transformer_jax.validation import Count, Fraction, Positive, settings

__all__ = [
    "MODEL_SIZES",
    "Config",
    "DataConfig",
    "EvaluationConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "SearchConfig",
    "TokenizerConfig",
    "TrainConfig",
    "sized_model",
]

NonNegative = Annotated[float, Field(ge=0)]
Lengths = Annotated[tuple[Positive, ...], Field(min_length=1)]


@settings
class TokenizerConfig:
    """SentencePiece, trained on the training split at first use."""

    algorithm: Literal["bpe", "unigram"] = "bpe"
    """How the pieces are found."""
    vocab_size: Positive = 8000
    """Pieces, the four special ones included (per side when not joint)."""
    joint: bool = True
    """One vocabulary for both languages; needed to tie source and target tables."""
    character_coverage: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of characters with pieces of their own (0.9995 suits Chinese, Japanese)."""
    normalization: Literal["nmt_nfkc", "nmt_nfkc_cf", "identity"] = "nmt_nfkc"
    """nmt_nfkc_cf also folds case; identity leaves the text as it came."""
    sampling: Fraction = 0.0
    """Subword regularisation in training: share of BPE merges dropped (Provilkov et
    al., 2020), or smoothing of unigram sampling (Kudo, 2018). 0.1 is usual, 0 off."""
    max_training_sentences: Positive = 2_000_000
    """Sentences that the tokenizer is trained on, drawn at random from longer data."""


@settings
class DataConfig:
    """Where sentence pairs come from, and how they become batches."""

    name: str = "phrasebook"
    """phrasebook, copy_task, multi30k, parallel_text, or any TFDS translation set, as
    wmt14_translate/de-en."""
    source_language: str = "de"
    """Language to translate from (a feature of the data set)."""
    target_language: str = "en"
    """Language to translate to."""
    dir: Path | None = None
    """Folder with the raw files (multi30k), when they need not be downloaded."""
    tokenized: bool = False
    """multi30k: the authors' tokenised, lower-cased text, which papers score on."""
    train_source: tuple[Path, ...] = ()
    """parallel_text: source files for training, plain or gzip, one sentence a line."""
    train_target: tuple[Path, ...] = ()
    """parallel_text: their translations, line by line."""
    dev_source: tuple[Path, ...] = ()
    """parallel_text: source files for evaluation during training."""
    dev_target: tuple[Path, ...] = ()
    """parallel_text: their translations."""
    train_split: str = "train"
    """Split to train on, in TFDS's words (train[:1%] works)."""
    dev_split: str = "validation"
    """Split for evaluation during training; empty for none."""
    prepared_dir: Path | None = None
    """Where prepared records are kept. Default: inside the workdir for our own data
    sets, TFDS's usual folder for others."""
    batching: Literal["pack", "bucket"] = "pack"
    """pack: several pairs a row, one shape. bucket: one pair a row, few shapes."""
    batch_tokens: Positive = 4096
    """Target positions in a batch, padding included, over all devices and
    micro-batches; source positions are as many."""
    pack_length: Positive = 128
    """Length of a packed row on each side."""
    bucket_lengths: Lengths = (
        *(8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30),
        *(34, 38, 42, 46, 52, 58, 64, 72, 80, 88, 104, 128),
    )
    """Padded lengths of bucketed batches, shortest first. The default keeps padding
    below a tenth of captions and of news text alike; fewer compile faster. Odd lengths
    keep an accelerator from attending by its fused kernel."""
    max_length: Positive = 128
    """Training pairs with more pieces on a side, end included, are left out and
    counted. Evaluation keeps every sentence."""
    max_length_ratio: Annotated[float, Field(ge=1)] = 9.0
    """Training pairs whose sides differ in length by more than this are left out."""
    num_workers: Count | None = None
    """Processes that make batches: 0 is a thread of this one, 1 a process beside it;
    more are so many that encode for such a thread, for data too large to be remembered
    or with subword sampling. None is 0 on a CPU and 1 with an accelerator."""

    def __post_init__(self) -> None:
        if list(self.bucket_lengths) != sorted(set(self.bucket_lengths)):
            raise ValueError(
                f"bucket_lengths is {self.bucket_lengths}: lengths must grow, each "
                "once."
            )
        longest = (
            self.pack_length if self.batching == "pack" else max(self.bucket_lengths)
        )
        if self.max_length > longest:
            raise ValueError(
                f"max_length is {self.max_length}, but the longest row holds {longest}"
                f": lower data.max_length, or raise data."
                f"{'pack_length' if self.batching == 'pack' else 'bucket_lengths'}."
            )
        if self.batch_tokens < longest:
            raise ValueError(
                f"batch_tokens is {self.batch_tokens}: it must hold at least one row "
                f"of {longest} positions."
            )


@settings
class OptimizerConfig:
    """Optax optimizer and learning-rate schedule."""

    name: Literal["adam", "adamw", "adafactor", "lion", "muon"] = "adam"
    """Update rule."""
    b1: Fraction = 0.9
    """Decay of the first moment."""
    b2: Fraction = 0.98
    """Decay of the second moment."""
    eps: Annotated[float, Field(gt=0)] = 1e-9
    """Added to the root of the second moment (Adam, AdamW)."""
    weight_decay: NonNegative = 0.0
    """Decoupled decay of matrices; biases, norms and embeddings are left alone."""
    clip_norm: NonNegative = 0.0
    """Scale gradients down to this global norm; 0 does not clip."""
    schedule: Literal["inverse_sqrt", "paper", "linear", "cosine", "constant"] = (
        "inverse_sqrt"
    )
    """inverse_sqrt: warm-up to `learning_rate`, then its product with sqrt(warmup /
    step). paper: learning_rate * d_model^-0.5 * min(step^-0.5, step * warmup^-1.5).
    linear, cosine: warm-up, then down to `final_ratio` at `schedule_steps`."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Peak rate; for the paper schedule, the factor (1 in the paper)."""
    warmup_steps: Count = 4000
    """Steps of linear warm-up."""
    schedule_steps: Count = 0
    """Horizon of linear and cosine schedules. It is a setting of its own, so that a
    longer run does not bend the curve already travelled."""
    final_ratio: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the peak rate that linear and cosine schedules end at."""

    def __post_init__(self) -> None:
        if (
            self.schedule in ("linear", "cosine")
            and self.schedule_steps <= self.warmup_steps
        ):
            raise ValueError(
                f"schedule_steps is {self.schedule_steps} and warmup_steps "
                f"{self.warmup_steps}: a {self.schedule} schedule needs a horizon past "
                "its warm-up. Set optimizer.schedule_steps (usually to train.steps)."
            )
        if self.schedule in ("paper", "inverse_sqrt") and self.warmup_steps == 0:
            raise ValueError(
                f"warmup_steps is 0: the {self.schedule} schedule needs at least 1."
            )


@settings
class TrainConfig:
    """How long to train, and when to look, save and stop."""

    steps: Count = 100_000
    """Updates in all; a resumed run goes on to this number."""
    label_smoothing: Fraction = 0.1
    """Probability mass spread evenly over the whole vocabulary."""
    accumulate: Positive = 1
    """Micro-batches that each batch is split into: less memory, the same gradient."""
    ema_decay: Fraction = 0.0
    """Decay of an exponential average of the parameters, used for evaluation and
    translation; 0 for none."""
    checkpoint_every: Positive = 1000
    """Steps between checkpoints."""
    evaluate_every: Positive = 1000
    """Steps between evaluations on the dev split."""
    log_every: Positive = 50
    """Steps between lines in the logs."""
    keep_checkpoints: Positive = 10
    """Latest checkpoints kept, for averaging; the best one is kept besides."""
    best_metric: Literal["loss", "bleu", "chrf", "accuracy"] = "bleu"
    """What chooses the best checkpoint."""
    patience: Count = 0
    """Stop after this many evaluations without a better one; 0 never stops early."""
    max_bad_steps: Positive = 20
    """Steps in a row with a non-finite loss or gradient before the run stops; each is
    skipped and counted."""
    curves: bool = True
    """Draw loss, learning-rate and BLEU curves at the end."""
    profile: Annotated[str, Field(pattern=r"^(\d+:\d+)?$")] = ""
    """Updates to trace, as first:last (10:15); the trace is put into the workdir's
    folder profile, for TensorBoard and Perfetto."""

    def __post_init__(self) -> None:
        first, _, last = self.profile.partition(":")
        if self.profile and not 1 <= int(first) <= int(last):
            raise ValueError(
                f"train.profile is {self.profile!r}: it must be first:last, numbers "
                "of updates, counted from 1."
            )


@settings
class SearchConfig:
    """How a translation is searched for."""

    method: Literal["greedy", "beam", "sampling"] = "beam"
    """greedy: the best token at each place; beam: the best few prefixes; sampling:
    tokens drawn at random, by their probability."""
    beam_size: Positive = 5
    """Prefixes kept per sentence by beam search."""
    block: Positive = 1
    """Tokens that greedy search reads at once: the last one and guesses of those that
    follow, which are kept where they are its own choice. 1 guesses nothing."""
    n_best: Positive = 1
    """Translations returned per sentence, best first; of sampling, as many are drawn,
    and may be equal."""
    length_penalty: Literal["gnmt", "average", "none"] = "average"
    """What divides a log-probability. average: length^alpha (fairseq, Marian, Hugging
    Face). gnmt: ((5 + length) / 6)^alpha (Wu et al., 2016). none: nothing."""
    alpha: NonNegative = 1.0
    """Exponent of the length penalty."""
    stop: Literal["first", "beams", "bound"] = "beams"
    """When beam search is done with a sentence. beams: beam_size translations have
    ended (fairseq, CTranslate2). first: as many as are wanted have ended. bound: none
    that is still going on could beat them; slower, never worse in score."""
    max_length_factor: NonNegative = 2.0
    """A translation has at most factor * source pieces + offset pieces."""
    max_length_offset: Positive = 10
    """See max_length_factor."""
    min_length: Count = 0
    """A translation has at least so many pieces, the end not counted, unless its most
    pieces are fewer."""
    no_repeat_ngram: Count = 0
    """No translation holds the same n pieces in a row twice, for this n; 0: it may."""
    ban: tuple[str, ...] = ()
    """Words and phrases that no translation holds, each as the tokenizer cuts it."""
    coverage_penalty: NonNegative = 0.0
    """What source pieces that got little attention cost (beta of Wu et al., 2016,
    equation 14); 0.2 is usual, 0 off."""
    diversity_rate: NonNegative = 0.0
    """Beam search: where prefixes are chosen, the best way to go on from one is charged
    nothing, its second best this, its third best twice this (Li et al., 2016). Scores
    stay what they are; 0 is off."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Sampling: logits are divided by this; below 1 likely tokens become likelier."""
    top_k: Count = 0
    """Sampling: only of the k likeliest tokens; 0: of all."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sampling: only of the fewest likeliest tokens that have this probability between
    them (Holtzman et al., 2020), after top_k; 1: of all."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Sampling: start of its random numbers. The same seed draws the same."""
    mbr: Literal["none", "chrf", "bleu"] = "none"
    """Sampling: give those of mbr_samples that are most like all of them, by chrF or
    BLEU (minimum Bayes risk; Eikema and Aziz, 2020). That mean is their score."""
    mbr_samples: Annotated[int, Field(ge=2)] = 32
    """Samples that mbr draws for each sentence."""

    def __post_init__(self) -> None:
        if self.mbr != "none" and self.method != "sampling":
            raise ValueError(
                f"mbr is {self.mbr!r} and method is {self.method!r}: minimum Bayes "
                "risk needs samples. Set method to 'sampling', or mbr to 'none'."
            )
        if self.block > 1 and self.method != "greedy":
            raise ValueError(
                f"block is {self.block}, but method is {self.method}: only greedy "
                "search guesses ahead. Choose method greedy, or leave block at 1."
            )
        if self.coverage_penalty and (self.block > 1 or self.method == "sampling"):
            raise ValueError(
                f"coverage_penalty is {self.coverage_penalty}, which sampling and "
                "greedy search in blocks do not have: leave it at 0, or choose beam."
            )
        if self.n_best > self.beams:
            more = "mbr_samples" if self.method == "sampling" else "beam_size"
            raise ValueError(
                f"n_best is {self.n_best}, but {self.method} search keeps {self.beams}"
                f": raise {more} or lower n_best."
            )

    @property
    def beams(self) -> int:
        """K: what is kept of a sentence side by side."""
        samples = self.n_best if self.mbr == "none" else self.mbr_samples
        kept = {"greedy": 1, "beam": self.beam_size, "sampling": samples}
        return kept[self.method]


@settings
class EvaluationConfig:
    """Evaluation on the dev split during training."""

    search: SearchConfig = SearchConfig(method="greedy")
    """How dev sentences are translated."""
    max_sentences: Count = 0
    """Translate only the first sentences of the dev split; 0 for all."""
    batch_tokens: Positive = 4096
    """Positions in an evaluation batch, padding included."""
    num_samples: Count = 3
    """Sample translations shown after each evaluation."""
    lowercase: bool = False
    """Score BLEU without regard to case."""
    tokenize: Literal["13a", "none", "char", "zh", "intl", "ja-mecab", "ko-mecab"] = (
        "13a"
    )
    """sacreBLEU's tokenizer; none for text that is tokenised already."""


@settings
class ParallelConfig:
    """The device mesh."""

    data: Annotated[int, Field(ge=-1)] = -1
    """Devices that share out the batch; -1: all that the other axes leave."""
    fsdp: Positive = 1
    """Devices that share out the batch and the parameters too."""
    tensor: Positive = 1
    """Devices that share out heads, feed-forward widths and vocabulary."""
    wrapper: Literal["jit", "pmap"] = "jit"
    """jit over the mesh, or the old pmap (data axis only)."""


@settings
class Config:
    """A whole run."""

    model: ModelConfig = ModelConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    search: SearchConfig = SearchConfig()
    """How `translate` searches unless told otherwise."""
    parallel: ParallelConfig = ParallelConfig()
    seed: Count = 0
    """Start of every random number: parameters, dropout, order of the data."""

    def __post_init__(self) -> None:
        if self.model.source_is_target_table and not self.tokenizer.joint:
            raise ValueError(
                f"tied_embeddings is {self.model.tied_embeddings!r}, which shares the "
                "source and target tables, but tokenizer.joint is off: set "
                "model.tied_embeddings to 'target_output' or 'none', or turn joint on."
            )
