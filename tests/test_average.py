"""The verbs average and inspect."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.checkpoint import CheckpointStore, params_sha256
from transformer_jax.cli import average, inspect
from transformer_jax.config import Config, TrainConfig
from transformer_jax.recipes import config_to_json

TOKENIZER = {"tokenizer.json": b"{}"}
BLEU = {1: 10.0, 2: 30.0, 3: 20.0, 4: 30.0}


def params_of(step):
    return {"up": {"kernel": jax.random.normal(jax.random.key(step), (3, 5))}}


@pytest.fixture
def run(tmp_path):
    store = CheckpointStore(tmp_path / "run")
    config = Config(train=TrainConfig(best_metric="bleu"), seed=7)
    store.write_run(config_to_json(config), TOKENIZER)
    for step, bleu in BLEU.items():
        store.save(
            step,
            {"params": params_of(step), "training": {"step": jnp.int32(step)}},
            data_position={"data": step},
            metrics={"bleu": bleu, "loss": 1 / bleu},
            best=step == 2,
        )
    return store


def mean_of(*steps):
    drawn = [np.asarray(params_of(step)["up"]["kernel"], np.float64) for step in steps]
    return np.mean(drawn, axis=0).astype(np.float32)


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"last": 2}, (3, 4)),
        ({"last": 1}, (4,)),
        ({"best": 2}, (2, 4)),
        ({"best": 3}, (2, 3, 4)),
        ({"steps": (3, 1, 3)}, (1, 3)),
    ],
)
def test_the_output_is_a_run_with_the_mean(run, tmp_path, capsys, options, steps):
    output = tmp_path / "averaged"
    args = average.Args(checkpoint=run.workdir, output=output, **options)
    assert average.run(args) == 0
    made = CheckpointStore(output)
    np.testing.assert_array_equal(
        made.restore_params()["up"]["kernel"], mean_of(*steps)
    )
    assert made.steps() == [max(steps)]
    assert made.config_json() == run.config_json()
    assert made.tokenizer_files() == TOKENIZER
    assert made.position(max(steps)) is None
    listed = f"average of steps {', '.join(map(str, steps))} of"
    assert listed in made.note(max(steps))
    assert listed in capsys.readouterr().out


def test_nothing_is_overwritten(run, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("precious")
    for output in (run.workdir, tmp_path / "there", tmp_path / "there" / "file"):
        with pytest.raises(ValueError, match="exists already"):
            average.run(average.Args(checkpoint=run.workdir, output=output, last=2))
    assert (tmp_path / "there" / "file").read_text() == "precious"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "has 4 checkpoints, and 5"),
        ({"last": 9}, "has 4 checkpoints, and 9"),
        ({"best": 9}, "has 4 checkpoints with a dev bleu"),
        ({"last": 0}, "1 or more"),
        ({"best": -1}, "1 or more"),
        ({"steps": (1, 8)}, "no checkpoint of step 8"),
        ({"last": 1, "best": 1}, "one of --last, --best"),
    ],
)
def test_what_cannot_be_averaged_is_told_and_nothing_written(
    run, tmp_path, options, message
):
    output = tmp_path / "averaged"
    with pytest.raises(ValueError, match=message):
        average.run(average.Args(checkpoint=run.workdir, output=output, **options))
    assert not output.exists()


def test_a_folder_that_is_no_run_cannot_be_averaged(tmp_path):
    with pytest.raises(ValueError, match="There is no folder"):
        average.run(
            average.Args(checkpoint=tmp_path / "nowhere", output=tmp_path / "x")
        )


def test_inspect_shows_the_latest_checkpoint(run, capsys):
    assert inspect.run(inspect.Args(checkpoint=run.workdir, json=True)) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["step"] == 4
    assert facts["steps"] == [1, 2, 3, 4]
    assert facts["best_step"] == 2
    assert facts["parameter_count"] == 15
    assert facts["params_sha256"] == params_sha256(params_of(4))
    assert facts["metrics"]["bleu"] == 30.0
    assert facts["config"]["seed"] == 7
    assert facts["resumable"]
    assert "ema_params_sha256" not in facts


def test_inspect_shows_a_chosen_step_in_words(run, capsys):
    assert inspect.run(inspect.Args(checkpoint=run.workdir, step=3)) == 0
    text = capsys.readouterr().out
    assert params_sha256(params_of(3)) in text
    assert "bleu 20" in text
    assert "  seed 7" in text
    with pytest.raises(ValueError, match="no checkpoint of step 5"):
        inspect.run(inspect.Args(checkpoint=run.workdir, step=5))


def test_inspect_tells_parameters_from_their_average(tmp_path):
    store = CheckpointStore(tmp_path / "run")
    store.write_run(config_to_json(Config()), TOKENIZER)
    store.save(1, {"params": params_of(1), "ema_params": params_of(2)})
    facts = inspect.inspect_run(store.workdir)
    assert facts["params_sha256"] == params_sha256(params_of(1))
    assert facts["ema_params_sha256"] == params_sha256(params_of(2))
    assert not facts["resumable"]
