"""Pictures: what is drawn where, files as asked for, and what is refused."""

import builtins
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure
from PIL import Image

from mer_hf.plots import WORDS_A_ROW, check_plotting, plot_alignment, plot_modalities, plot_scores, plot_words

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


def explained(**values):
    """What the pictures read of an explanation."""
    values = {"modalities": {"audio": -1.5, "text": 2.25}, "baseline": 0.25, "total": 1.0} | values
    return SimpleNamespace(label="sad", **values)


def boxes(patches):
    return [(round(bar.get_x(), 6), round(bar.get_width(), 6)) for bar in patches]


def test_modalities_lead_from_nothing_to_all(tmp_path, drawn):
    path = plot_modalities(explained(), tmp_path / "new" / "modalities.png", "clip.wav")
    assert path.is_file()
    axes = drawn[0].axes[0]
    assert boxes(axes.patches) == [(0.25, -1.5), (-1.25, 2.25)]  # each begins where the one before it ends
    assert [bool(bar.get_hatch()) for bar in axes.patches] == [True, False]  # against, for
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["given nothing", "audio", "text", "given all"]
    assert [text.get_text() for text in axes.texts] == ["-1.50", "+2.25", "+0.25", "+1.00"]
    assert axes.yaxis_inverted() and axes.get_title() == "clip.wav" and "'sad'" in axes.get_xlabel()
    low, high = axes.get_xlim()
    assert low < -1.25 and high > 1.0
    assert pyplot.get_fignums() == []


def test_a_modality_that_does_nothing_can_be_drawn(tmp_path):
    nothing = explained(modalities={"audio": 0.0}, baseline=0.0, total=0.0)
    assert plot_modalities(nothing, tmp_path / "m.png").stat().st_size > 1000


def test_words_stand_in_their_order_with_a_bar_for_each_kind(tmp_path, drawn):
    words = [{"word": "no", "text": 0.5, "audio": -0.25, "both": 0.3}, {"word": "way", "text": -0.1}]
    assert plot_words(explained(words=words), tmp_path / "new" / "words.png", "clip.wav").is_file()
    [axes] = drawn[0].axes
    bars = sorted(axes.patches, key=lambda bar: bar.get_x())
    assert [round(bar.get_height(), 6) for bar in bars] == [0.5, -0.25, 0.3, -0.1]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["no", "way"]
    assert bars[0].get_x() < 0 < bars[2].get_x() + bars[2].get_width() < bars[3].get_x() < 1
    looks = {(bar.get_facecolor(), bar.get_hatch()) for bar in bars[:3]}
    assert len(looks) == 3  # told apart without colour
    assert all(len({*face[:3]}) == 1 for face, _ in looks)
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["its text", "its sound", "both"]
    assert pyplot.get_fignums() == []


def test_many_words_go_on_in_the_next_row_on_the_same_scale(tmp_path, drawn):
    words = [{"word": f"w{index}", "text": index / 10} for index in range(WORDS_A_ROW + 3)]
    plot_words(explained(words=words), tmp_path / "words.png")
    first, second = drawn[0].axes
    assert len(first.patches) == WORDS_A_ROW and len(second.patches) == 3
    assert first.get_ylim() == second.get_ylim() and first.get_ylim()[1] > words[-1]["text"]
    assert first.get_xlim() == second.get_xlim()
    assert second.get_xticklabels()[0].get_text() == f"w{WORDS_A_ROW}"


@pytest.mark.parametrize("words", [None, [], [{"word": "no"}]])
def test_without_masked_words_there_is_no_picture(tmp_path, words):
    with pytest.raises(ValueError, match="no words that were masked"):
        plot_words(explained(words=words), tmp_path / "words.png")


def test_a_missing_matplotlib_is_named_with_its_extra(monkeypatch, tmp_path):
    check_plotting()
    real = builtins.__import__

    def without(name, *arguments, **keywords):
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    for draw in (
        check_plotting,
        lambda: plot_scores(SCORES, tmp_path / "x.png"),
        lambda: plot_modalities(explained(), tmp_path / "x.png"),
        lambda: plot_words(explained(words=[{"word": "no", "text": 1.0}]), tmp_path / "x.png"),
    ):
        with pytest.raises(ImportError, match=r'pip install "mer-hf\[plot\]"'):
            draw()
