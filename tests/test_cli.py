import subprocess
import sys
from pathlib import Path

import jax
import pytest

import transformer_jax
from transformer_jax.__main__ import VERBS, main
from transformer_jax.cli import train as train_verb
from transformer_jax.recipes import load_recipe, recipe_names

ROOT = Path(__file__).parent.parent


def usage_error(words: list[str], capsys) -> str:
    """What `main` prints before it exits with code 2."""
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    captured = capsys.readouterr()
    return " ".join((captured.err + captured.out).replace("│", "").split())


def test_help_names_every_verb(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(verb in text for verb in VERBS)


def test_nothing_at_all_shows_the_help_and_is_a_wrong_usage(capsys):
    assert main([]) == 2
    assert "usage:" in capsys.readouterr().out


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb, capsys):
    with pytest.raises(SystemExit) as caught:
        main([verb, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: transformer-jax {verb}" in text
    assert "(required)" in text or "default" in text


def test_version_tells_package_jax_and_devices(capsys):
    assert main(["--version"]) == 0
    text = capsys.readouterr().out
    assert f"transformer_jax {transformer_jax.__version__}" in text
    assert f"jax {jax.__version__}" in text
    assert "8 × cpu" in text


def test_help_does_not_load_jax():
    program = (
        "import sys; from transformer_jax.__main__ import main; main(['--help']); "
        "sys.exit('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True)
    assert done.returncode == 0


def test_a_misspelt_verb_is_corrected(capsys):
    assert main(["trian"]) == 2
    assert "Did you mean train?" in capsys.readouterr().err


def test_train_help_lists_every_section_and_the_recipes(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out
    for flag in ("--model.dropout", "--data.train-source", "--train.steps", "--seed"):
        assert flag in text
    assert all(name in text for name in recipe_names())


def test_train_help_shows_the_defaults_of_the_recipe(tmp_path, capsys):
    recipe = tmp_path / "mine.py"
    recipe.write_text(
        "from transformer_jax.config import Config\n"
        "def get_config(): return Config(seed=4711)\n"
    )
    with pytest.raises(SystemExit):
        main(["train", "--config", str(recipe), "--help"])
    assert "default: 4711" in capsys.readouterr().out


def test_options_override_the_recipe():
    line = (
        "--config phrasebook --workdir runs/x --model.dropout 0.3 --data.train-source "
        "a.de b.de --train.no-curves --evaluation.search.beam-size 2"
    )
    args = train_verb.parse(line.split())
    recipe, settings = load_recipe("phrasebook"), args.settings
    assert settings.model.dropout == 0.3
    assert settings.model.d_model == recipe.model.d_model
    assert settings.data.train_source == (Path("a.de"), Path("b.de"))
    assert not settings.train.curves
    assert settings.evaluation.search.beam_size == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--model.dropuot 0.3", "Perhaps you meant: --model.dropout"),
        ("--model.dropout 3", "model.dropout is 3.0: it must be less than 1."),
        ("--model.num-heads 7", "num_heads is 7 and d_model is"),
        ("--train.steps many", "many"),
        ("--model.norm-position mid", "mid"),
    ],
)
def test_a_wrong_setting_is_one_message_and_code_2(words, message, capsys):
    text = usage_error(["train", "--config", "phrasebook", *words.split()], capsys)
    assert message in text
    assert "pydantic" not in text
    assert "http" not in text
    assert "Traceback" not in text


def test_train_without_a_recipe_asks_for_one(capsys):
    assert "--config" in usage_error(["train"], capsys)


def test_an_unknown_recipe_is_one_message_and_code_1(capsys):
    assert main(["train", "--config", "phrasbook"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: No recipe is named 'phrasbook'")
    assert captured.err.count("\n") == 1


def test_debug_shows_the_traceback(capsys):
    assert main(["train", "--config", "phrasbook", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["translate", "inspect"])
def test_a_folder_that_is_no_run_is_one_message_and_code_1(verb, tmp_path, capsys):
    assert main([verb, "--checkpoint", str(tmp_path / "nothing")]) == 1
    captured = capsys.readouterr()
    assert "nothing" in captured.err
    assert "Traceback" not in captured.err


def test_train_py_is_the_verb_train():
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "--config", "phrasbook"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 1
    assert "Did you mean phrasebook?" in done.stderr
