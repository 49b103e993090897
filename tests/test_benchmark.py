"""The benchmark measures what it says: verdicts, both sides of each ratio, memory, and the clips it makes."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mer_hf import benchmark, benchmark_cache, benchmark_cme, benchmark_gpu, benchmark_precision
from mer_hf.benchmark import Figure, Options
from mer_hf.benchmark_clips import RATE, backbone_model, small_configs, speaking_face, timed_words
from mer_hf.benchmark_measure import in_process, peak_growth, ratio
from mer_hf.data.collator import EmotionCollator
from mer_hf.models.media import crop_face, load_audio, load_frames
from mer_hf.models.modeling_cme import pool_word_frames

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "benchmark.py"


@pytest.mark.parametrize(
    ("value", "bars", "verdict"),
    [
        (10.0, {"at_least": 10}, "ok"),
        (9.99, {"at_least": 10}, "short"),
        (1.1, {"at_most": 1.1}, "ok"),
        (1.11, {"at_most": 1.1}, "short"),
        (1.0, {"at_least": 1, "at_most": 1}, "ok"),
        (0.9, {"at_least": 1, "at_most": 1}, "short"),
        (float("nan"), {"at_most": 1}, "short"),
        (3.0, {}, ""),
        (None, {"at_most": 1}, "not measured"),
    ],
)
def test_a_figure_is_judged_by_its_bars(value, bars, verdict):
    assert Figure("it", value, "x", **bars).verdict == verdict


def test_a_line_has_the_figure_its_bar_and_what_it_was_measured_on():
    line = str(Figure("speed", 12.3456, "x", at_least=10, note="batch 2"))
    assert line == "ok           speed: 12.35 x (bar >= 10) [batch 2]"
    assert str(Figure("speed", None, "x", note="no GPU")) == "not measured speed:  [no GPU]"


# Measuring


def work(amount):
    return sum(index * index for index in range(amount))


def test_the_ratio_is_of_cpu_time():
    assert 2 < ratio(lambda: work(400_000), lambda: work(100_000), rounds=5) < 8


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak can be reset on Linux alone")
def test_the_peak_is_of_what_a_call_held_at_once():
    def hold():
        for _ in range(3):
            held = np.ones(10_000_000)  # 80 MB, given back before the next
            del held

    assert 75e6 < peak_growth(hold) < 130e6


def test_another_process_answers_or_says_what_went_wrong():
    assert in_process("math", "hypot", 3, 4) == 5
    with pytest.raises(RuntimeError, match="math domain error"):
        in_process("math", "sqrt", -1)


# What is measured


def test_the_dense_form_is_the_model():
    model = benchmark_cme.make_model()
    batch = benchmark_cme.make_batch(3, 120)
    assert batch["word_times"].shape == (3, 4, 2)
    torch.testing.assert_close(benchmark_cme.dense_forward(model, batch), model(**batch).logits, atol=1e-5, rtol=0)


def test_dense_pooling_by_hand():
    frames = torch.tensor([[[1.0, -2.0], [3.0, 0.0], [5.0, 4.0]]])
    spans = torch.tensor([[[0, 2], [2, 3]]])
    pooled = benchmark_cme.dense_pool(frames, spans)
    assert pooled.tolist() == [[[2.0, -1.0, 3.0, 0.0], [5.0, 4.0, 5.0, 4.0]]]
    assert torch.equal(pool_word_frames(frames, spans), pooled)


def test_both_sides_train_alike():
    moved = []
    for dense in (False, True):
        model, batch = benchmark_cme.make_model(), benchmark_cme.make_batch(2, 60)
        before = model.classifier.weight.detach().clone()
        benchmark_cme.step(model, batch, torch.optim.SGD(model.parameters(), lr=1.0), dense)
        moved.append(model.classifier.weight.detach() - before)
    assert moved[0].abs().max() > 1e-3
    torch.testing.assert_close(moved[0], moved[1], atol=1e-5, rtol=0)


def test_the_clip_has_a_face_in_every_frame_that_is_taken_and_sound(tmp_path):
    file = speaking_face(tmp_path / "clip.mp4", seconds=1.2)
    frames, times = load_frames(file, 8)
    assert crop_face(frames)[1].all() and len(times) == 8
    assert len(load_audio(file)) == pytest.approx(1.2 * RATE, abs=0.1 * RATE)
    assert [len(timed_words(1.2)), timed_words(1.2)[-1]["end"]] == [20, pytest.approx(1.2)]


def test_padding_is_measured_for_every_way_of_making_batches():
    found = benchmark_cache.measure_padding(clips=400, processes=2, epochs=1)
    assert 1 <= found["grouped"] < found["random"]
    assert found["random"] > 1.5


def test_extractions_are_counted_by_backbone():
    assert benchmark_cache.count_extractions(clips=2, folds=2, seeds=2) == {
        "clips": 2,
        "jobs": 4,
        "runs_a_clip": {"audio": 1.0, "text": 1.0, "vision": 1.0},
        "entries": 6,
    }


def test_the_change_of_accuracy_is_of_the_clips_of_all_folds():
    labels, right, wrong = np.array([0, 1]), np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([[1.0, 0.0], [0.5, 0.0]])
    folds = [
        {
            "float32": {"logits": right, "labels": labels, "seconds": 3.0},
            "int8": {"logits": changed, "labels": labels, "seconds": 1.0},
        }
        for changed in (right, wrong)
    ]
    (figure,) = benchmark_precision.real_figures("cme", folds, [1, 2])
    assert figure.value == pytest.approx(-25)
    assert "WA 100.00 to 75.00 over 4 clips of folds [1, 2]" in figure.note and "3.00 times as fast" in figure.note
    assert "logits up to 2.0 change by at most 1.0e+00" in figure.note


def test_without_real_clips_their_figures_are_not_measured():
    for options, why in ((Options(quick=True), "full run"), (Options(), "--ravdess")):
        figures = list(benchmark_precision.real_clips(options))
        assert {figure.verdict for figure in figures} == {"not measured"} and len(figures) == 3
        assert all(why in figure.note for figure in figures)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_its_figures_are_not_measured():
    assert {figure.note for figure in benchmark_gpu.figures(Options())} == {"no GPU"}


def test_the_clips_for_a_gpu_are_what_a_model_reads():
    model, _ = backbone_model(small_configs())
    clips = benchmark_gpu.NoiseClips(np.array([0.5, 1.0]))
    batch = EmotionCollator()([clips[0], clips[1]])
    assert batch["input_values"].shape == (2, 16_000)
    assert model(**batch).loss.isfinite()


# Writing


def figures():
    return {
        "cme": [Figure("speed", 12.34567, "x", at_least=10, note="a|b"), Figure("memory", 0.2, "", at_most=0.1)],
        "gpu": [Figure("rate", None, "TFLOP/s", note="no GPU")],
    }


def test_the_table_and_the_plot_come_from_the_json_file(tmp_path):
    file = tmp_path / "made" / "benchmark.json"
    benchmark.write_json(file, benchmark.results(figures(), Options()))
    values = json.loads(file.read_text())
    assert values["setting"]["versions"]["torch"] == torch.__version__.split("+")[0]
    assert values["figures"]["cme"][0]["value"] == 12.35 and values["figures"]["cme"][1]["verdict"] == "short"
    table = benchmark.results_table(values).splitlines()
    assert table[2] == r"| cme | speed | 12.35 x | >= 10 | ok | a\|b |"
    assert table[4] == "| gpu | rate | – |  | not measured | no GPU |"
    benchmark.plot(values, tmp_path / "benchmark.png")
    assert (tmp_path / "benchmark.png").stat().st_size > 5000


def test_groups_measured_before_are_kept_where_the_setting_is_the_same():
    before = benchmark.results(figures(), Options())
    after = benchmark.results({"gpu": [Figure("rate", 3.0, "TFLOP/s")]}, Options(), before)
    assert list(after["figures"]) == ["cme", "gpu"]
    assert after["figures"]["cme"] == before["figures"]["cme"] and after["figures"]["gpu"][0]["value"] == 3.0
    with pytest.raises(ValueError, match="another quick; measure everything anew"):
        benchmark.results({}, Options(quick=True), before)


def test_a_group_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="there is no sound; choose from start, cme, clip"):
        benchmark.run(Options(), ["sound"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, and this would measure it")
def test_the_script_writes_what_it_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--quick", "--only", "gpu", "--output_dir", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert ended.value.code == 0
    assert "not measured GPU: CME" in capsys.readouterr().out
    assert {file.name for file in tmp_path.iterdir()} == {"benchmark.json", "benchmark.md", "benchmark.png"}
