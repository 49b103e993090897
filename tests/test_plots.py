"""Pictures: what is drawn where, files as asked for, and what is refused."""

import builtins

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure
from PIL import Image

from mer_hf.plots import check_plotting, plot_alignment, plot_scores

WORDS = [{"word": "no", "start": 0.0, "end": 0.1}, {"word": "no", "start": 0.1, "end": 0.3}, {"word": "way"}]
TIMES = np.arange(5) * 0.1
SCORES = [{"label": "angry", "score": 0.75}, {"label": "sad", "score": 0.25}]


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were written."""
    figures, save = [], Figure.savefig

    def watch(figure, *arguments, **keywords):
        figures.append(figure)
        return save(figure, *arguments, **keywords)

    monkeypatch.setattr(Figure, "savefig", watch)
    return figures


def test_alignment_shows_weights_over_time_with_true_spans(tmp_path, drawn):
    weights = np.random.default_rng(0).dirichlet(np.ones(5), size=3)
    path = plot_alignment(weights, TIMES, WORDS, tmp_path / "new" / "alignment.png", "a title")
    assert path == tmp_path / "new" / "alignment.png"
    with Image.open(path) as picture:
        assert picture.format == "PNG" and np.asarray(picture.convert("L")).std() > 10
    axes = drawn[0].axes[0]
    image = axes.get_images()[0]
    np.testing.assert_array_equal(image.get_array(), weights)
    assert image.get_extent() == pytest.approx([0.0, 0.5, 2.5, -0.5])
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["no", "no", "way"]
    spans = [(patch.get_x(), patch.get_y(), patch.get_width(), patch.get_height()) for patch in axes.patches]
    np.testing.assert_allclose(spans, [(0.0, -0.5, 0.1, 1), (0.1, 0.5, 0.2, 1)])
    assert axes.get_title() == "a title" and axes.get_xlabel() == "seconds"
    assert pyplot.get_fignums() == []


def test_one_frame_can_be_drawn(tmp_path):
    assert plot_alignment([[1.0]], [0.2], WORDS[:1], tmp_path / "one.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("shape", "words", "frames"), [((2, 5), 3, 5), ((3, 4), 3, 5), ((5, 3), 3, 5), ((3, 0), 3, 0), ((0, 5), 0, 5)]
)
def test_weights_that_do_not_fit_are_refused(tmp_path, shape, words, frames):
    with pytest.raises(ValueError, match=r"words.*frames"):
        plot_alignment(np.ones(shape), TIMES[:frames], WORDS[:words], tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def test_scores_are_bars_best_on_top(tmp_path, drawn):
    path = plot_scores(SCORES, str(tmp_path / "new" / "scores.png"), "clip.wav")
    assert path.is_file()
    axes = drawn[0].axes[0]
    assert [bar.get_width() for bar in axes.patches] == [0.75, 0.25]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["angry", "sad"]
    assert axes.yaxis_inverted() and axes.get_title() == "clip.wav"
    assert {text.get_text() for text in axes.texts} == {"0.75", "0.25"}
    assert pyplot.get_fignums() == []


def test_a_missing_matplotlib_is_named_with_its_extra(monkeypatch, tmp_path):
    check_plotting()
    real = builtins.__import__

    def without(name, *arguments, **keywords):
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    for draw in (check_plotting, lambda: plot_scores(SCORES, tmp_path / "x.png")):
        with pytest.raises(ImportError, match=r'pip install "mer-hf\[plot\]"'):
            draw()
