"""TFDS's own translation sets by name, on mock data; unknown names are explained."""

import importlib
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from transformer_jax.config import DataConfig
from transformer_jax.data.sources import (
    OWN_BUILDERS,
    Pair,
    open_split,
    prepared_builder,
)
from transformer_jax.recipes import load_recipe

RECIPES = pytest.mark.parametrize("recipe", ["wmt14_en_de", "ted_pt_en"])


@RECIPES
def test_tfds_sets_are_read_by_name_and_language(recipe, tmp_path):
    config = load_recipe(recipe).data
    with tfds.testing.mock_data(num_examples=7):
        source = open_split(config, config.train_split, workdir=tmp_path)
        dev = open_split(config, config.dev_split, workdir=tmp_path)
        found = [source[index] for index in range(len(source))]
    assert len(found) == len(dev) == 7
    assert all(isinstance(pair, Pair) and pair.source and pair.target for pair in found)
    assert "tensorflow" not in sys.modules


@RECIPES
def test_the_direction_is_chosen_by_the_config(recipe, tmp_path):
    config = load_recipe(recipe).data
    settings = {"name": config.name, "prepared_dir": tmp_path}
    languages = config.source_language, config.target_language
    forth, back = (
        DataConfig(source_language=a, target_language=b, **settings)
        for a, b in (languages, languages[::-1])
    )
    with tfds.testing.mock_data(num_examples=3):
        there = open_split(forth, "train", workdir=tmp_path)[0]
        again = open_split(back, "train", workdir=tmp_path)[0]
    assert (there.source, there.target) == (again.target, again.source)


def test_an_unknown_language_is_named_with_those_there_are(tmp_path):
    config = DataConfig(
        name="ted_hrlr_translate/pt_to_en",
        source_language="pl",
        target_language="en",
        prepared_dir=tmp_path,
    )
    with (
        tfds.testing.mock_data(),
        pytest.raises(ValueError, match=r"source_language is 'pl'.* has pt, en\."),
    ):
        open_split(config, "train", workdir=tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("phrasebok", r"no data set 'phrasebok'\. Did you mean phrasebook\?"),
        ("no_such_set_at_all", r"no data set .*wmt14_translate/de-en"),
        ("wmt14_translate/de-xx", r"data\.name is 'wmt14_translate/de-xx'"),
    ],
)
def test_an_unknown_data_set_is_explained(name, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        prepared_builder(DataConfig(name=name), workdir=tmp_path)


def test_a_failing_download_says_what_to_do(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.CRITICAL)

    def no_network(*args, **kwargs):
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(tfds.download.DownloadManager, "download", no_network)
    monkeypatch.setattr(
        tfds.download.DownloadManager, "download_and_extract", no_network
    )
    config = DataConfig(
        name="ted_hrlr_translate/pt_to_en",
        source_language="pt",
        prepared_dir=tmp_path / "prepared",
    )
    with pytest.raises(ValueError, match=r"not known.*network.*--data\.prepared-dir"):
        prepared_builder(config, workdir=tmp_path)


def test_records_that_another_process_finished_first_are_used(tmp_path, monkeypatch):
    """Both prepare; the slower one finds the folder taken."""
    files = {}
    for name, text in (("train_source", "a\n"), ("train_target", "b\n")):
        (tmp_path / name).write_text(text)
        files[name] = (tmp_path / name,)
    config = DataConfig(name="parallel_text", **files)
    prepare: Any = tfds.core.DatasetBuilder.download_and_prepare

    def overtaken(builder: Any, **settings: Any) -> None:
        prepare(builder, **settings)
        raise OSError("Directory not empty")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", overtaken)
    assert open_split(config, "train", workdir=tmp_path)[0] == ("a", "b")


def make_ted_records(folder: Path) -> Path:
    """What TFDS leaves of ted_hrlr_translate/pt_to_en, with one pair in it."""
    files = {}
    for name, text in (("train_source", "sim\n"), ("train_target", "yes\n")):
        (folder / name).write_text(text)
        files[name] = (folder / name,)
    config = DataConfig(
        name="parallel_text", source_language="pt", target_language="en", **files
    )
    prepared_builder(config, workdir=folder)
    made = folder / "prepared/ted_hrlr_translate/pt_to_en/1.0.0"
    shutil.copytree(next((folder / "data/parallel_text").glob("*/1.0.0")), made)
    for path in made.glob("parallel_text*"):
        path.rename(made / path.name.replace("parallel_text", "ted_hrlr_translate"))
    about = made / "dataset_info.json"
    about.write_text(about.read_text().replace("parallel_text", "ted_hrlr_translate"))
    return made


def test_records_prepared_by_tfds_are_read_and_other_formats_explained(tmp_path):
    made = make_ted_records(tmp_path)
    config = DataConfig(
        name="ted_hrlr_translate/pt_to_en",
        source_language="pt",
        target_language="en",
        prepared_dir=tmp_path / "prepared",
    )
    pairs = open_split(config, "train", workdir=tmp_path)
    assert [pairs[index] for index in range(len(pairs))] == [("sim", "yes")]
    about = made / "dataset_info.json"
    about.write_text(about.read_text().replace("array_record", "tfrecord"))
    for path in made.glob("*.array_record*"):
        path.rename(made / path.name.replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match=r"tfrecord.*--data\.prepared-dir; it"):
        open_split(config, "train", workdir=tmp_path)


@pytest.mark.parametrize("name", ["phrasebook", "copy_task"])
def test_our_generated_sets_open_by_name(name, tmp_path):
    data = load_recipe(name).data
    splits = prepared_builder(data, workdir=tmp_path).info.splits
    assert {"train", "validation"} <= set(splits)
    pairs = open_split(data, data.dev_split, workdir=tmp_path)
    assert len(pairs) == splits["validation"].num_examples
    assert all(isinstance(text, str) and text for text in pairs[0])


def test_every_own_builder_is_a_tfds_builder_of_its_name():
    for name, class_name in OWN_BUILDERS.items():
        module = importlib.import_module(f"transformer_jax.data.builders.{name}")
        builder = getattr(module, class_name)
        assert issubclass(builder, tfds.core.GeneratorBasedBuilder)
        assert builder.name == name


def test_the_wmt14_recipe_states_the_papers_setting():
    config = load_recipe("wmt14_en_de")
    assert config.tokenizer.vocab_size == 37_000  # section 5.1
    assert (config.model.d_model, config.model.d_ff) == (512, 2048)  # table 3, base
    np.testing.assert_allclose(config.data.batch_tokens, 25_000, rtol=0.05)  # 5.1
    assert (config.optimizer.b2, config.optimizer.eps) == (0.98, 1e-9)  # 5.3
    assert config.optimizer.schedule == "paper"
    assert (config.train.steps, config.optimizer.warmup_steps) == (100_000, 4000)
    assert (config.search.beam_size, config.search.alpha) == (4, 0.6)  # 6.1
