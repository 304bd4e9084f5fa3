"""Pictures: files that open, sizes a viewer can show, words on the axes."""

import itertools
import json
import struct
import warnings
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from transformer_jax.analysis import plots

SOURCE = ["ich", "möchte", "ein", "großes", "·chen", "</s>"]
TARGET = ["i", "want", "a", "</s>"]


def uniform(layers, heads, rows, columns):
    return np.full((layers, heads, rows, columns), 1 / columns, np.float32)


def png_size(path):
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", header[16:24])


def shown_words(axis_labels):
    return [label.get_text() for label in axis_labels if label.get_text()]


def write_log(path, entries):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def train_entry(step, loss=2.0):
    return {"event": "train", "step": step, "loss": loss, "learning_rate": 1e-4}


def test_attention_picture_is_a_grid_of_layers_and_heads_with_words(tmp_path):
    output = tmp_path / "new" / "cross.png"
    weights = uniform(2, 3, len(TARGET), len(SOURCE))
    weights[1, 2] = np.eye(len(TARGET), len(SOURCE))
    figure: Any = plots.plot_attention(weights, TARGET, SOURCE, output, title="Cross")
    panels = [axes for axes in figure.axes if axes.images]
    assert len(panels) == 6
    assert shown_words(panels[0].get_yticklabels()) == TARGET
    assert shown_words(panels[1].get_yticklabels()) == []
    assert shown_words(panels[0].get_xticklabels()) == []
    assert shown_words(panels[5].get_xticklabels()) == SOURCE
    np.testing.assert_array_equal(panels[5].images[0].get_array(), weights[1, 2])
    assert {axes.images[0].get_clim() for axes in panels} == {(0.0, 1.0)}
    picture = matplotlib.image.imread(output)
    assert min(png_size(output)) > 300
    assert picture[..., :3].std() > 0.05


def test_labels_of_an_attention_picture_do_not_overlap_or_leave_it(tmp_path):
    words = ["Donaudampfschifffahrt", "m", "Überraschung", "</s>"] * 6
    weights = uniform(1, 2, len(words), len(words))
    figure: Any = plots.plot_attention(
        weights, words, words, tmp_path / "a.png", title="Encoder"
    )
    first, second = (axes for axes in figure.axes if axes.images)
    inside = figure.bbox
    for labels, side in (
        (first.get_yticklabels(), "y"),
        (first.get_xticklabels(), "x"),
        (second.get_xticklabels(), "x"),
    ):
        boxes = [label.get_window_extent() for label in labels]
        assert all(box.x0 >= 0 and box.y0 >= 0 for box in boxes)
        assert all(box.x1 <= inside.width and box.y1 <= inside.height for box in boxes)
        ends = [(getattr(b, f"{side}0"), getattr(b, f"{side}1")) for b in boxes]
        pairs = itertools.pairwise(sorted(ends))
        assert all(before[1] <= after[0] + 1 for before, after in pairs)


@pytest.mark.parametrize(
    ("layers", "heads", "length"), [(1, 1, 1), (6, 16, 40), (6, 16, 400)]
)
def test_sizes_stay_within_what_a_viewer_opens(layers, heads, length):
    words = ["Wort"] * length
    grid = plots._Grid(layers, heads, words, words)
    assert 3 < grid.width < 150
    assert 1 < grid.height < 150
    assert 0 < grid.font <= 9


def test_part_of_a_model_keeps_its_numbers(tmp_path):
    weights = uniform(1, 1, len(TARGET), len(SOURCE))
    figure: Any = plots.plot_attention(
        weights,
        TARGET,
        SOURCE,
        tmp_path / "a.png",
        title="Cross",
        layers=[3],
        heads=[5],
    )
    panel = figure.axes[0]
    assert (panel.get_title(), panel.get_ylabel()) == ("head 5", "layer 3")


def test_words_that_do_not_fit_the_weights_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="4 words down and 6 across"):
        plots.plot_attention(
            uniform(1, 1, 6, 4), TARGET, SOURCE, tmp_path / "a.png", title=""
        )


def test_letters_without_a_font_give_one_warning(tmp_path):
    words = ["\U0001f37a", "\ue000"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plots.plot_attention(
            uniform(1, 1, 2, 2), words, words, tmp_path / "a.png", title=""
        )
    assert len(caught) == 1
    assert "Install a font" in str(caught[0].message)


def test_curves_show_what_the_log_says(tmp_path):
    log = [train_entry(step, loss=9 / step) for step in (10, 20, 30)]
    scores = {"loss": 0.5, "bleu": 31.0, "chrf": 50.0}
    log.append({"event": "evaluate", "step": 30, **scores})
    log.append({"event": "start", "step": 0})
    output = tmp_path / "curves.png"
    figure: Any = plots.plot_curves(write_log(tmp_path / "log.jsonl", log), output)
    loss, rate, quality = figure.axes
    curves = {line.get_label(): line.get_xydata() for line in loss.lines}
    np.testing.assert_allclose(curves["train"], [[10, 0.9], [20, 0.45], [30, 0.3]])
    np.testing.assert_allclose(curves["dev"], [[30, 0.5]])
    np.testing.assert_allclose(rate.lines[0].get_ydata(), 1e-4)
    scored = {line.get_label(): line.get_ydata().tolist() for line in quality.lines}
    assert scored == {"BLEU": [31.0], "chrF": [50.0]}
    assert png_size(output)[0] > png_size(output)[1] > 300


def test_curves_without_any_evaluation(tmp_path):
    log = write_log(tmp_path / "log.jsonl", [train_entry(step) for step in range(90)])
    figure: Any = plots.plot_curves(log, tmp_path / "curves.png")
    assert [text.get_text() for text in figure.axes[2].texts] == ["not evaluated yet"]


def test_curves_of_a_run_that_was_evaluated_before_it_logged(tmp_path):
    log = [{"event": "evaluate", "step": 5, "loss": 3.0, "bleu": None}]
    output = tmp_path / "curves.png"
    figure: Any = plots.plot_curves(write_log(tmp_path / "log.jsonl", log), output)
    assert [len(line.get_xdata()) for line in figure.axes[0].lines] == [0, 1]
    assert output.exists()


def test_one_wild_loss_does_not_flatten_the_curve(tmp_path):
    losses = [1e6, *[2.0] * 99]
    log = [train_entry(step, loss=loss) for step, loss in enumerate(losses)]
    figure: Any = plots.plot_curves(
        write_log(tmp_path / "log.jsonl", log), tmp_path / "c.png"
    )
    assert figure.axes[0].get_ylim()[1] < 10


def test_a_step_logged_twice_counts_as_logged_last(tmp_path):
    log = [train_entry(1, 5.0), train_entry(2, 4.0), train_entry(2, 3.0)]
    train, dev = plots.read_log(write_log(tmp_path / "log.jsonl", log))
    assert [entry["loss"] for entry in train] == [5.0, 3.0]
    assert dev == []


def test_half_a_last_line_is_left_out_and_a_broken_line_named(tmp_path):
    path = write_log(tmp_path / "log.jsonl", [train_entry(1)])
    path.write_text(path.read_text() + '{"event": "tra')
    assert len(plots.read_log(path)[0]) == 1
    path.write_text(path.read_text() + "\n" + json.dumps(train_entry(2)) + "\n")
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        plots.read_log(path)


def test_no_log_and_an_empty_log_are_errors(tmp_path):
    with pytest.raises(ValueError, match="No log"):
        plots.plot_curves(tmp_path / "none.jsonl", tmp_path / "c.png")
    with pytest.raises(ValueError, match="no training steps"):
        plots.plot_curves(write_log(tmp_path / "log.jsonl", []), tmp_path / "c.png")
    assert not (tmp_path / "c.png").exists()
