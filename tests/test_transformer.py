"""What must hold for every variant of the model."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.analysis.attention import capture_attention
from transformer_jax.config import MODEL_SIZES, ModelConfig, sized_model
from transformer_jax.models import (
    Transformer,
    encode_memory,
    make_step_fn,
)
from transformer_jax.models.cache import init_cache
from transformer_jax.models.dropout import Dropout
from transformer_jax.models.functions import init_params
from transformer_jax.models.scanning import scan_layers
from transformer_jax.testing import tiny_batch, tiny_model
from transformer_jax.training.objectives import make_objective
from transformer_jax.trees import leaves_by_path

VARIANTS = {
    "post-norm": {},
    "pre-norm": {"norm_position": "pre"},
    "post-norm with a final norm": {"final_norm": True},
    "learned positions": {"positions": "learned", "max_positions": 32},
    "halves": {"sinusoid_layout": "halves"},
    "offset": {"position_offset": 2},
    "gelu": {"activation": "gelu"},
    "swiglu": {"activation": "silu", "gated": True},
    "no attention bias": {"attention_bias": False},
    "output bias": {"output_bias": True},
    "nothing tied": {"tied_embeddings": "none", "source_vocab_size": 30},
    "target tied": {"tied_embeddings": "target_output", "source_vocab_size": 30},
    "source tied": {"tied_embeddings": "source_target"},
    "deep encoder": {"num_encoder_layers": 3, "num_decoder_layers": 1},
    "remat": {"remat": True},
    "scanned layers": {"scan_layers": True},
    "attention in chunks": {"attention": "chunked"},
}
every_variant = pytest.mark.parametrize("name", VARIANTS)


@functools.partial(jax.jit, static_argnums=0)
def logits_of(model, params, batch):
    return model.apply(
        {"params": params},
        batch.inputs,
        batch.decoder_inputs,
        input_segment_ids=batch.input_segment_ids,
        target_segment_ids=batch.target_segment_ids,
        input_positions=batch.input_positions,
        target_positions=batch.target_positions,
        deterministic=True,
    )


encoded = jax.jit(encode_memory, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def one_step(model, params, *operands):
    return make_step_fn(model, params)(*operands)


def decode_by_steps(model, params, batch, *, block=1, beams=1):
    memory = encoded(model, params, batch.inputs, batch.input_segment_ids)
    B, T = batch.targets.shape
    cache = init_cache(model.config, B, T, beams=beams)
    tokens = jnp.repeat(jnp.asarray(batch.decoder_inputs), beams, axis=0)
    outputs = []
    for start in range(0, T, block):
        places = jnp.full((B * beams,), start)
        block_tokens = tokens[:, start : start + block]
        output, cache = one_step(model, params, block_tokens, places, cache, memory)
        outputs.append(output.logits)
    return jnp.concatenate(outputs, axis=1)


@every_variant
def test_decoding_step_by_step_equals_decoding_at_once(name):
    model, params = tiny_model(**VARIANTS[name])
    batch = tiny_batch()
    at_once = logits_of(model, params, batch)
    by_steps = decode_by_steps(model, params, batch)
    real = batch.target_segment_ids > 0
    chex.assert_trees_all_close(by_steps[real], at_once[real], atol=1e-4)


def test_decoding_a_single_row_equals_decoding_at_once():
    model, params = tiny_model()
    batch = tiny_batch(source_lengths=(5,), target_lengths=(6,))
    chex.assert_trees_all_close(
        decode_by_steps(model, params, batch)[:, :6],
        logits_of(model, params, batch)[:, :6],
        atol=1e-4,
    )


@pytest.mark.parametrize("block", [2, 3, 7])
def test_decoding_block_by_block_equals_decoding_at_once(block):
    model, params = tiny_model()
    batch = tiny_batch()
    real = batch.target_segment_ids > 0
    by_blocks = decode_by_steps(model, params, batch, block=block)
    chex.assert_trees_all_close(
        by_blocks[real], logits_of(model, params, batch)[real], atol=1e-4
    )


def test_beams_share_the_memory_of_their_sentence():
    model, params = tiny_model()
    batch = tiny_batch()
    one = decode_by_steps(model, params, batch)
    three = decode_by_steps(model, params, batch, beams=3)
    chex.assert_trees_all_close(three, jnp.repeat(one, 3, axis=0), atol=1e-4)


@every_variant
def test_a_later_target_token_changes_nothing_before_it(name):
    model, params = tiny_model(**VARIANTS[name])
    batch = tiny_batch(target_lengths=(7, 7, 7))
    changed = np.array(batch.decoder_inputs)
    changed[:, 4] = (changed[:, 4] + 1) % 20
    before = logits_of(model, params, batch)
    after = logits_of(model, params, batch._replace(decoder_inputs=changed))
    chex.assert_trees_all_equal(before[:, :4], after[:, :4])
    assert float(jnp.abs(before[:, 4:] - after[:, 4:]).max()) > 1e-3


WIDE = (3, 12)


def padded(batch, *, to):
    """With empty places up to a shape."""
    rows, width = to
    pad = lambda x: np.pad(x, ((0, rows - x.shape[0]), (0, width - x.shape[1])))  # noqa: E731
    return type(batch)(*(pad(x) for x in batch))


@every_variant
def test_padding_changes_nothing(name):
    model, params = tiny_model(**VARIANTS[name])
    tight, wide = tiny_batch(), padded(tiny_batch(), to=WIDE)
    wide = wide._replace(inputs=np.where(wide.input_segment_ids, wide.inputs, 9))
    real = tight.target_segment_ids > 0
    chex.assert_trees_all_close(
        logits_of(model, params, wide)[:, : real.shape[1]][real],
        logits_of(model, params, tight)[real],
        atol=1e-4,
    )


@every_variant
def test_packing_sentences_into_a_row_changes_nothing(name):
    model, params = tiny_model(**VARIANTS[name])
    apart = tiny_batch()

    def packed(ids, segments, *, fill=lambda k, part: part):
        parts = [fill(k, ids[k][segments[k] > 0]) for k in range(3)]
        return np.concatenate(parts)[None, :]

    S, T = apart.input_segment_ids, apart.target_segment_ids
    number = lambda k, part: np.full_like(part, k + 1)  # noqa: E731
    together = type(apart)(
        inputs=packed(apart.inputs, S),
        input_segment_ids=packed(S, S, fill=number),
        input_positions=packed(apart.input_positions, S),
        decoder_inputs=packed(apart.decoder_inputs, T),
        targets=packed(apart.targets, T),
        target_segment_ids=packed(T, T, fill=number),
        target_positions=packed(apart.target_positions, T),
    )
    together = padded(together, to=WIDE)  # a shape that was compiled before
    chex.assert_trees_all_close(
        logits_of(model, params, together)[0],
        logits_of(model, params, apart)[T > 0],
        atol=1e-4,
    )


@pytest.mark.parametrize("norm_position", ["post", "pre"])
def test_rows_of_padding_alone_give_no_nan(norm_position):
    model, params = tiny_model(norm_position=norm_position)
    batch = tiny_batch(source_lengths=(5, 0, 4), target_lengths=(4, 0, 2))
    objective = make_objective(model, 0.1, deterministic=True)
    gradient = jax.jit(jax.grad(objective, has_aux=True))
    grads, metrics = gradient(params, batch, None)
    chex.assert_tree_all_finite((grads, metrics))


def test_dropout_is_random_in_training_and_off_otherwise():
    model, params = tiny_model(
        dropout=0.5, attention_dropout=0.2, activation_dropout=0.2
    )
    batch = tiny_batch()
    training = jax.jit(make_objective(model, 0.1, deterministic=False))
    one, two = (float(training(params, batch, jax.random.key(k))[0]) for k in (0, 1))
    assert one != two
    again = float(training(params, batch, jax.random.key(0))[0])
    assert one == again
    plain, _ = tiny_model()
    still, expected = (
        float(
            jax.jit(make_objective(m, 0.1, deterministic=True))(params, batch, None)[0]
        )
        for m in (model, plain)
    )
    assert still == expected


def test_remat_gives_the_same_gradients():
    batch = tiny_batch()
    grads = []
    for remat in (False, True):
        model, params = tiny_model(remat=remat)
        objective = make_objective(model, 0.1, deterministic=True)
        gradient = jax.jit(jax.grad(objective, has_aux=True))
        grads.append(gradient(params, batch, None)[0])
    chex.assert_trees_all_close(*grads, atol=1e-4)


@pytest.mark.parametrize(("norm_position", "remat"), [("post", False), ("pre", True)])
def test_a_loop_over_layers_gives_the_same_loss_and_gradients(norm_position, remat):
    batch = tiny_batch()
    found = []
    for scan in (False, True):
        model, params = tiny_model(
            scan_layers=scan,
            remat=remat and scan,
            norm_position=norm_position,
            num_decoder_layers=3,
        )
        objective = make_objective(model, 0.1, deterministic=True)
        gradient = jax.jit(jax.value_and_grad(objective, has_aux=True))
        found.append(gradient(params, batch, None))
    chex.assert_trees_all_close(*found, atol=1e-4)


def test_with_a_loop_over_layers_the_program_does_not_grow_with_depth():
    def products(depth, *, scan):
        model, params = tiny_model(
            scan_layers=scan, num_encoder_layers=depth, num_decoder_layers=depth
        )
        objective = make_objective(model, 0.1, deterministic=True)
        gradient = jax.jit(jax.grad(objective, has_aux=True))
        return gradient.lower(params, tiny_batch(), None).as_text().count("dot_general")

    assert products(2, scan=True) == products(5, scan=True) < products(2, scan=False)


def test_a_loop_over_layers_draws_dropout_for_each_of_them():
    """Two equal layers that did not would drop the same numbers."""
    layer = Halver(parent=None)
    ones = jnp.ones((4, 1000))

    def run(rng):
        options = {"deterministic": False, "remat": True, "length": 2}
        return scan_layers(layer, {}, ones, rng=rng, **options)

    out = jax.jit(run)(jax.random.key(0))
    # Kept twice, and scaled by two each time: a quarter of the numbers.
    assert abs(float((out == 4).mean()) - 0.25) < 0.04
    assert float((out > 0).mean()) == float((out == 4).mean())
    chex.assert_trees_all_equal(out, jax.jit(run)(jax.random.key(0)))


class Halver(nn.Module):
    """Drops half of what it gets."""

    @nn.compact
    def __call__(self, x, deterministic):
        return Dropout(0.5)(x, deterministic=deterministic)


def test_a_loop_over_layers_trains_with_dropout_and_shows_its_attention():
    model, params = tiny_model(scan_layers=True, dropout=0.5, remat=True)
    batch = tiny_batch()
    training = jax.jit(
        jax.grad(make_objective(model, 0.1, deterministic=False), has_aux=True)
    )
    one, two = (training(params, batch, jax.random.key(k))[1]["loss"] for k in (0, 1))
    assert float(one.sum) != float(two.sum)
    again = training(params, batch, jax.random.key(0))[1]["loss"]
    assert float(one.sum) == float(again.sum)
    whole, _ = tiny_model()
    chex.assert_trees_all_equal(
        capture_attention(model, params, batch), capture_attention(whole, params, batch)
    )


def test_bfloat16_keeps_softmax_norms_and_loss_in_float32():
    """Exponentials, logarithms, roots and the sums of softmax, norms and loss."""
    model, params = tiny_model(dtype="bfloat16")
    objective = make_objective(model, 0.1, deterministic=True)
    gradient = jax.grad(objective, has_aux=True)
    jaxpr = jax.make_jaxpr(gradient)(params, tiny_batch(), None)
    careful = ("exp", "log", "rsqrt", "sqrt", "reduce_sum", "reduce_max", "div")
    found = {
        (equation.primitive.name, str(equation.outvars[0].aval.dtype))
        for equation in equations(jaxpr.jaxpr)
        if equation.primitive.name in careful
    }
    products = {
        equation.invars[0].aval.dtype == jnp.bfloat16
        for equation in equations(jaxpr.jaxpr)
        if equation.primitive.name == "dot_general"
        # The loss has the mean of the logits from one row, as exactly as itself.
        and all(operand.aval.ndim > 1 for operand in equation.invars)
    }
    assert {("exp", "float32"), ("rsqrt", "float32"), ("log", "float32")} <= found
    low = {name for name, dtype in found if dtype == "bfloat16"}
    assert low <= {"reduce_sum"}, "only gradients of biases are summed low"
    assert products == {True}


def equations(jaxpr):
    """Of a jaxpr and of those inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for part in value if isinstance(value, list | tuple) else [value]:
                inner = getattr(part, "jaxpr", part)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def num_parameters(config: ModelConfig) -> int:
    """Counted by hand from section 3 of the paper, with biases."""
    D, F = config.d_model, config.d_ff
    attention, norm = 4 * (D * D + D), 2 * D
    feed_forward = D * F + F + F * D + D
    encoder = config.num_encoder_layers * (attention + feed_forward + 2 * norm)
    decoder = config.num_decoder_layers * (2 * attention + feed_forward + 3 * norm)
    return encoder + decoder + config.target_vocab_size * D


@pytest.mark.parametrize("size", MODEL_SIZES)
def test_named_sizes_have_the_parameters_that_the_paper_counts(size):
    config = sized_model(size, source_vocab_size=37_000, target_vocab_size=37_000)
    shapes = jax.eval_shape(lambda: init_params(Transformer(config), jax.random.key(0)))
    total = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert total == num_parameters(config)
    if size == "base":
        assert round(total / 1e6) in range(62, 67)  # 65 million in table 3


def test_bfloat16_computes_low_and_keeps_float32_where_it_matters():
    model, params = tiny_model(dtype="bfloat16")
    batch = tiny_batch()
    logits = logits_of(model, params, batch)
    assert logits.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    full, _ = tiny_model()
    expected = logits_of(full, params, batch)
    real = batch.target_segment_ids > 0
    error = jnp.abs(logits - expected)[real].max()
    assert 0 < float(error) < 0.1 * float(jnp.abs(expected).max())


def test_tied_tables_are_one_parameter():
    counts = {}
    for tied in ("all", "target_output", "source_target", "none"):
        _, params = tiny_model(tied_embeddings=tied)
        names = leaves_by_path(params)
        counts[tied] = sum("embedding" in n or n.startswith("output") for n in names)
    assert counts == {"all": 1, "target_output": 2, "source_target": 2, "none": 3}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_heads": 3}, "num_heads is 3 and d_model is 512"),
        ({"d_model": 7, "num_heads": 7}, "must be even"),
        ({"dropout": 1.0}, "less than 1"),
    ],
)
def test_impossible_models_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**settings)


def test_one_table_needs_one_vocabulary():
    with pytest.raises(ValueError, match="one table needs one vocabulary"):
        tiny_model(source_vocab_size=30)
