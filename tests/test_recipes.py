import dataclasses
import math
import re
from pathlib import Path

import pytest

from transformer_jax.config import (
    Config,
    DataConfig,
    ModelConfig,
    TrainConfig,
    sized_model,
)
from transformer_jax.recipes import (
    changed_settings,
    check_same_run,
    config_from_json,
    config_to_json,
    find_recipe,
    flat_settings,
    load_recipe,
    may_change,
    recipe_names,
)

UNUSUAL = Config(
    model=sized_model("tiny", norm_position="pre", final_norm=True),
    data=DataConfig(train_source=(Path("a.de"), Path("b.de.gz")), dir=Path("raw")),
    seed=5,
)


def write_recipe(folder: Path, text: str) -> str:
    path = folder / "mine.py"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("config", [Config(), UNUSUAL])
def test_json_brings_every_setting_back(config):
    assert config_from_json(config_to_json(config)) == config


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_by_name_and_by_path(name):
    assert load_recipe(name) == load_recipe(str(find_recipe(name)))


def test_a_recipe_is_any_python_file_with_get_config(tmp_path):
    path = write_recipe(
        tmp_path,
        "from transformer_jax.config import Config\n"
        "def get_config(): return Config(seed=7)\n",
    )
    assert load_recipe(path) == Config(seed=7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(: pass", "SyntaxError"),
        ("x = 1", "must define get_config"),
        ("def get_config(): return 3", "it gives 3"),
        (
            "from transformer_jax.config import *\n"
            "def get_config(): return Config(model=ModelConfig(dropout=2))",
            "model.dropout is 2: it must be less than 1",
        ),
    ],
)
def test_a_recipe_that_fails_is_named_with_the_reason(tmp_path, text, message):
    path = write_recipe(tmp_path, text)
    with pytest.raises(ValueError, match=message) as caught:
        load_recipe(path)
    assert path in str(caught.value)


def test_a_misspelt_name_is_corrected():
    with pytest.raises(ValueError, match=r"Did you mean phrasebook\?"):
        find_recipe("phrasbook")


def test_a_missing_file_is_named():
    with pytest.raises(ValueError, match=r"No recipe file no/such\.py"):
        find_recipe("no/such.py")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dropout": 1.5}, "model.dropout is 1.5: it must be less than 1."),
        ({"dropuot": 0.1}, "no setting model.dropuot. Did you mean dropout?"),
        ({"norm_position": "mid"}, "it must be 'post' or 'pre'."),
        ({"num_heads": 7}, "num_heads is 7 and d_model is 512"),
    ],
)
def test_a_wrong_setting_is_told_in_plain_words(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        ModelConfig(**fields)
    assert "http" not in str(caught.value)
    assert "pydantic" not in str(caught.value)


def test_no_setting_may_be_infinite_or_no_number():
    for name, value in flat_settings(Config()).items():
        if isinstance(value, float):
            section, field = name.split(".")[-2:]
            for bad in (math.inf, math.nan):
                made = getattr(Config(), section)
                with pytest.raises(ValueError, match=rf"{field} is (inf|nan): it must"):
                    dataclasses.replace(made, **{field: bad})


def test_json_of_something_else_is_refused_with_the_name():
    with pytest.raises(ValueError, match=r"no setting model\.colour") as caught:
        config_from_json('{"model": {"colour": 3}, "train": {"steps": -1}}')
    assert "train.steps is -1" in str(caught.value)
    assert "http" not in str(caught.value)


def test_each_difference_is_told_with_both_values(tmp_path):
    new = dataclasses.replace(
        Config(), seed=2, model=ModelConfig(dropout=0.3), train=TrainConfig(steps=5)
    )
    assert [change.name for change in changed_settings(Config(), new)] == [
        "model.dropout",
        "train.steps",
        "seed",
    ]
    with pytest.raises(ValueError, match=r"model\.dropout: 0\.1 there, 0\.3 now") as e:
        check_same_run(Config(), new, tmp_path)
    assert "train.steps" not in str(e.value)


def test_lengths_of_buckets_bind_the_runs_that_use_them(tmp_path):
    def config(batching, *lengths):
        return Config(data=DataConfig(batching=batching, bucket_lengths=lengths))

    check_same_run(config("pack", 8, 128), config("pack", 16, 128), tmp_path)
    for old, new in (("bucket", "bucket"), ("pack", "bucket"), ("bucket", "pack")):
        with pytest.raises(ValueError, match=r"data\.b"):
            check_same_run(config(old, 8, 128), config(new, 16, 128), tmp_path)


def test_what_may_change_does_not_touch_an_update():
    free = {name for name in flat_settings(Config()) if may_change(name)}
    assert {"train.steps", "parallel.data", "search.alpha", "data.dir"} <= free
    paths = {name for name in flat_settings(Config()) if "_source" in name}
    assert paths == {"data.train_source", "data.dev_source"}
    assert paths <= free
    bound = {"train.accumulate", "train.label_smoothing", "seed", "data.batch_tokens"}
    assert not bound & free
    changing = {name for name in free if name.startswith(("model.", "optimizer."))}
    assert changing == {"model.attention", "model.remat"}
