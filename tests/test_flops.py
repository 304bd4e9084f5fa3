"""The count of arithmetic against XLA's own, and where updates spend their time."""

import gzip
import json
import re
import time
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from transformer_jax.config import TrainConfig
from transformer_jax.data.batching import stack_rows
from transformer_jax.data.examples import Example
from transformer_jax.models import Transformer
from transformer_jax.models.functions import init_params
from transformer_jax.testing import tiny_batch, tiny_model, tiny_model_config
from transformer_jax.trainer.effort import Effort, share_of_work
from transformer_jax.trainer.profiling import Profiler
from transformer_jax.trainer.progress import Stopwatch
from transformer_jax.training.flops import (
    PEAK_FLOPS,
    forward_flops,
    peak_flops,
    train_flops,
    work_of,
)
from transformer_jax.training.objectives import last_hidden, make_objective
from transformer_jax.training.state import init_state
from transformer_jax.training.step import make_train_step


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gated": True, "num_encoder_layers": 1},
        {"num_decoder_layers": 1, "tied_embeddings": "none"},
    ],
)
def test_the_formula_counts_what_xla_counts(settings):
    """Within 3 % forward and 6 % with gradients: XLA adds softmax, norms, biases and
    the like, which weigh little at this width."""
    config = tiny_model_config(
        d_model=256, d_ff=512, num_heads=2, target_vocab_size=1000,
        source_vocab_size=1000, **settings
    )  # fmt: skip
    model = Transformer(config)
    params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    batch = tiny_batch(
        source_lengths=(24,), target_lengths=(32,), source_width=24, target_width=32
    )

    def logits(params):
        hidden, table, _ = last_hidden(model, params, batch)
        return jnp.einsum("BTD,VD->BTV", hidden, table)

    def counted(function) -> float:
        analysis: Any = jax.jit(function).lower(params).compile().cost_analysis()
        return analysis["flops"]

    work = work_of(batch)
    # A random factor, or XLA would see that one gradient is the same for all.
    factor = jnp.asarray(np.random.default_rng(0).normal(size=(1, 32, 1000)))
    backward = jax.grad(lambda params: (logits(params) * factor).sum())
    assert counted(logits) == pytest.approx(forward_flops(config, work), rel=0.03)
    assert counted(backward) == pytest.approx(train_flops(config, work), rel=0.06)


def test_work_is_counted_by_sentence_whatever_the_rows():
    def example(s, t):
        ids = np.arange(t) + 4
        return Example(inputs=np.arange(s) + 4, decoder_inputs=ids, targets=ids)

    sizes = [(5, 4), (3, 6), (4, 2)]
    each = [example(*size) for size in sizes]
    packed = stack_rows([each[:2], each[2:]], (3, 16, 12), 0)
    apart = stack_rows([[one] for one in each], (4, 8, 8), 0)
    expected = (12, 12, 25 + 9 + 16, 16 + 36 + 4, 20 + 18 + 8)
    assert tuple(work_of(packed)) == tuple(work_of(apart)) == expected


@pytest.mark.parametrize(
    ("kind", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA L40S", 362),
        ("Tesla V100-SXM2-16GB", 125),
        ("TPU v3", 61.5),
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5p", 459),
        ("TPU v5", 459),
        ("TPU v6 lite", 918),
    ],
)
def test_peaks_are_found_by_the_names_that_jax_gives(kind, tera):
    device = SimpleNamespace(platform="accelerator", device_kind=kind)
    assert peak_flops([device, device]) == 2 * tera * 1e12
    names = [name for name, _ in PEAK_FLOPS]
    assert len(set(names)) == len(names)


def test_the_peak_of_an_unknown_device_is_not_guessed():
    device = SimpleNamespace(platform="npu", device_kind="Abacus 1")
    assert peak_flops([device]) is None
    effort = Effort(tiny_model_config(), [device])
    effort.add(tiny_batch())
    assert set(effort.take(1.0)) == {"waiting"}


def test_the_peak_of_a_cpu_is_measured():
    peak = peak_flops(jax.devices("cpu"))
    assert peak is not None
    assert 1e9 < peak < 1e14


def test_effort_is_a_share_of_time_and_of_the_peak():
    device = SimpleNamespace(platform="tpu", device_kind="TPU v4")
    config, batch = tiny_model_config(), tiny_batch()
    effort = Effort(config, [device])
    with effort.waiting():
        pass
    effort.add(batch)
    effort.add(batch)
    values = effort.take(0.5)
    flops = 2 * train_flops(config, work_of(batch))
    assert values["mfu"] == pytest.approx(flops / 0.5 / 275e12)
    assert 0 < values["waiting"] < 0.1
    assert effort.take(1.0) == {"waiting": 0.0, "mfu": 0.0}


@pytest.mark.parametrize(
    ("shape", "processes", "share"),
    [
        ((4, 1, 1), [0, 0, 0, 0], 1),
        ((4, 1, 1), [0, 0, 1, 1], 1),
        ((2, 1, 2), [0, 0, 1, 1], 1),
        ((1, 1, 4), [0, 0, 1, 1], 1 / 2),  # both hold all rows
        ((1, 1, 4), [0, 1, 1, 1], 1 / 4),
        ((2, 1, 2), [0, 1, 0, 1], 1 / 2),
    ],
)
def test_rows_that_processes_share_are_counted_once(shape, processes, share):
    devices = [SimpleNamespace(process_index=process) for process in processes]
    mesh: Any = SimpleNamespace(
        devices=np.array(devices).reshape(shape),
        shape=dict(zip(("data", "fsdp", "tensor"), shape, strict=True)),
    )
    assert share_of_work(mesh) == share
    device = SimpleNamespace(platform="tpu", device_kind="TPU v4")
    config, batch = tiny_model_config(), tiny_batch()
    effort = Effort(config, [device], share)
    effort.add(batch)
    flops = train_flops(config, work_of(batch))
    assert effort.take(1.0)["mfu"] == pytest.approx(share * flops / 275e12)


def test_a_trace_is_written_that_viewers_open(tmp_path):
    profiler = Profiler(tmp_path, "2:3", Stopwatch())
    step = jax.jit(lambda x: x @ x)
    x = jnp.ones((8, 8))
    folders = []
    for number in range(1, 5):
        with profiler.update(number):
            x = step(x)
        folders.append(profiler.done(number, x))
    assert folders == [None, None, tmp_path / "profile", None]
    assert profiler.close() is None
    assert list(folders[2].rglob("*.xplane.pb"))  # TensorBoard's
    (path,) = folders[2].rglob("perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    assert sum(event.get("name") == "train" for event in events) == 2


def test_starting_and_writing_a_trace_is_no_time_in_updates(monkeypatch, tmp_path):
    watch, called = Stopwatch(), []

    def stands_still(*_, **__):
        called.append(watch.seconds())
        time.sleep(0.01)
        assert watch.seconds() == called[-1]

    monkeypatch.setattr(jax.profiler, "start_trace", stands_still)
    monkeypatch.setattr(jax.profiler, "stop_trace", stands_still)
    profiler = Profiler(tmp_path, "1:1", watch)
    with profiler.update(1):
        time.sleep(0.01)
    assert profiler.done(1, jnp.ones(())) == profiler.folder
    assert called[1] - called[0] > 0.005
    before = watch.seconds()
    time.sleep(0.01)
    assert watch.seconds() > before


def test_operations_carry_the_names_that_a_reader_of_a_trace_looks_for():
    model, params = tiny_model(num_encoder_layers=1, num_decoder_layers=1)
    optimizer = optax.sgd(0.1)
    objective = make_objective(model, 0.1, deterministic=True)
    step = jax.jit(make_train_step(objective, optimizer))
    state = init_state(params, optimizer)
    lowered = step.lower(state, tiny_batch(), jax.random.key(0))
    text = lowered.as_text(debug_info=True)
    for name in ("encoder/.*layer_0/.*self_attention", "decoder/.*layer_0/"):
        assert re.search(name, text)
    assert re.search(r"loss\W", text)
    assert re.search(r"optimizer\W", text)


def test_what_cannot_be_traced_is_refused():
    for wrong in ("5", "9:3", "0:2"):
        with pytest.raises(ValueError, match=r"train\.profile is"):
            TrainConfig(profile=wrong)
