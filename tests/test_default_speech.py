"""The speech branches of the default checkpoint, on generated sound; real clips where MER_RAVDESS_DIR names a copy."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import AutoModel, set_seed

from mer_hf import MerProcessor
from mer_hf.data import ravdess
from mer_hf.data.collator import ClipDataset, EmotionCollator
from mer_hf.data.ravdess import EMOTION_CODES, RAVDESS_FOLDS
from mer_hf.default_model.frequencies import LABELS
from mer_hf.default_model.speech import (
    BRANCHES,
    SEVEN_EMOTIONS,
    TRIM_DB,
    SpeechBranch,
    load_speech,
    make_branch,
    speech_model,
)
from mer_hf.default_model.speech_folds import calibrate, measure_speech
from mer_hf.default_model.speech_results import train_speech
from mer_hf.default_model.speech_training import (
    LogMelChanges,
    change,
    fit_frames,
    fit_vectors,
    frame_logits,
    front_end_states,
    log_mels,
)
from mer_hf.models.modeling_late_fusion import fuse_logits
from mer_hf.training import TrainingSettings

NO_CHANGES = LogMelChanges(stretch=0.0, warp=0.0, loudness=0.0, bands=0, frames=0)
QUICK = {name: replace(branch, settings=replace(branch.settings, epochs=1)) for name, branch in BRANCHES.items()}


def sounds(count: int, seed: int = 0) -> list[torch.Tensor]:
    """Noise of different lengths and levels."""
    generator = torch.Generator().manual_seed(seed)
    return [0.01 * (k + 1) * torch.randn(3000 + 700 * k, generator=generator) for k in range(count)]


def tone(label: int, actor: int) -> np.ndarray:
    """0.3 s of a tone whose pitch is the label's, a little different for each actor."""
    time = np.arange(4800) / 16_000
    noise = np.random.default_rng(10 * actor + label).normal(size=time.size)
    return (0.3 * np.sin(2 * np.pi * (200 * 1.6**label + 3 * actor) * time) + 0.003 * noise).astype(np.float32)


@pytest.fixture(scope="module")
def corpus_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree named as RAVDESS: the actors of three folds, a tone an emotion."""
    folder = tmp_path_factory.mktemp("ravdess")
    for actor in (actor for fold in RAVDESS_FOLDS["emobox"][:3] for actor in fold):
        for code in EMOTION_CODES:
            name = f"03-01-{code}-01-0{1 + actor % 2}-01-{actor:02}.wav"
            soundfile.write(folder / name, tone(int(code), actor), 16_000)
    return folder


# Log-mels kept and changed


@pytest.mark.parametrize("samples", [400, 1100, 8000])
def test_states_from_log_mels_are_those_from_the_waveform(samples: int) -> None:
    set_seed(0)
    model = make_branch("frames").eval()
    waveforms = [wave[:samples] for wave in sounds(3)]
    mels = list(log_mels(dict(enumerate(waveforms)), 40).values())
    batch = EmotionCollator()([{"input_values": wave} for wave in waveforms])
    with torch.no_grad():
        states, mask = front_end_states(model.audio_model, mels)
        raw = model.run_backbone("audio", batch["input_values"], batch["input_values_mask"])
        logits = model(**batch).logits
    assert torch.equal(mask, raw.mask)
    assert torch.allclose(states[mask], raw.embeds[mask], atol=1e-4)
    assert np.allclose(frame_logits(model, mels), logits.numpy(), atol=1e-4)


def test_a_clip_that_nothing_changes_is_itself() -> None:
    clip = torch.randn(30, 40)
    assert torch.allclose(change(clip, NO_CHANGES, torch.Generator()), clip, atol=1e-6)


def test_louder_adds_one_constant() -> None:
    clip = torch.randn(30, 40)
    added = change(clip, replace(NO_CHANGES, loudness=1.0), torch.Generator().manual_seed(1)) - clip
    assert added.std() < 1e-5
    assert added.abs().min() > 0.01


def test_stretched_clips_stay_within_bounds() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = {len(change(torch.randn(100, 40), LogMelChanges(), generator)) for _ in range(60)}
    assert 82 <= min(sizes) < 90
    assert 110 < max(sizes) <= 122


def test_warping_moves_a_band() -> None:
    clip = torch.zeros(5, 40)
    clip[:, 20] = 1.0
    moved = change(clip, replace(NO_CHANGES, warp=0.3), torch.Generator().manual_seed(0))
    assert moved.amax(0).argmax() != 20
    assert moved.shape == clip.shape


# Training


def test_the_frames_branch_learns_tones() -> None:
    waveforms = {(label, actor): torch.from_numpy(tone(label, actor)) for label in range(7) for actor in range(6)}
    mels = log_mels(waveforms, 40)
    heard = [key for key in mels if key[1] < 4]
    set_seed(0)
    model = make_branch("frames")
    settings = TrainingSettings(epochs=15, batch_size=14, learning_rate=4e-3)
    fit_frames(model, [mels[key] for key in heard], [label for label, _ in heard], settings, LogMelChanges(warp=0.02))
    unheard = [key for key in mels if key not in heard]
    answers = frame_logits(model, [mels[key] for key in unheard]).argmax(-1)
    assert np.mean(answers == [label for label, _ in unheard]) >= 0.8


@pytest.mark.parametrize("reads", ["frames", "vector"])
def test_training_repeats_itself_for_a_seed(reads: str) -> None:
    settings = TrainingSettings(epochs=2, batch_size=4)

    def trained(seed: int) -> torch.Tensor:
        set_seed(seed)
        model = make_branch(reads)
        if reads == "frames":
            clips = list(log_mels(dict(enumerate(sounds(6))), 40).values())
            fit_frames(model, clips, [0, 1, 2, 3, 4, 5], replace(settings, seed=seed), LogMelChanges())
        else:
            vectors = list(torch.randn(6, 1, 240, generator=torch.Generator().manual_seed(0)))
            fit_vectors(model, vectors, [0, 1, 2, 3, 4, 5], ["a", "b"] * 3, range(40), settings)
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    first = trained(0)
    assert torch.equal(first, trained(0))
    assert not torch.equal(first, trained(1))


# Seven emotions, calibration, equal frequencies


def test_calm_counts_as_neutral_on_the_published_folds(corpus_dir: Path) -> None:
    rows = ravdess.scan(corpus_dir).rows
    merged, splits, left_out = SEVEN_EMOTIONS.apply(rows)
    assert {row["label"] for row in merged} == set(LABELS)
    assert sum(row["label"] == "neutral" for row in merged) == 2 * 12
    assert left_out == {}
    assert [split.sides for split in splits] == [split.sides for split in ravdess.ravdess_splits(rows, "emobox")]


def test_stored_temperatures_hold_what_all_branches_know_together() -> None:
    """The mean of log-probabilities at the stored temperatures is the calibrated mean of the calibrated ones."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 7, 300)
    records = {}
    for number, name in enumerate(["a", "b", "c"]):
        logits = random.normal(size=(300, 7)) * 2
        logits[np.arange(300), labels] += 2 + number
        parts = [
            {"labels": labels[part].tolist(), "logits": logits[part].tolist()} for part in np.split(np.arange(300), 2)
        ]
        records[name] = [{"validation": part} for part in parts]
    found = calibrate(records, ["a", "b", "c"])
    logits = np.stack([[row for record in own for row in record["validation"]["logits"]] for own in records.values()])
    twice = fuse_logits(logits, list(found.alone.values())) / found.together
    once = fuse_logits(logits, list(found.temperatures.values()))
    assert found.together < 0.9  # independent branches: their mean is too timid
    assert torch.allclose(once.softmax(-1), twice.softmax(-1), atol=1e-9)


# The whole way


def test_measured_trained_and_written_down(corpus_dir: Path, tmp_path: Path) -> None:
    done: list[str] = []
    file = tmp_path / "speech.json"
    folders = train_speech(corpus_dir, tmp_path / "run", file, branches=QUICK, progress=done.append)
    results = json.loads(file.read_text(encoding="utf-8"))
    assert set(results["models"]) == {*BRANCHES, "speech", "speech_equal", "lr_audio"}
    assert results["corpus"]["labels"] == list(LABELS)
    assert results["models"]["speech"]["pooled"]["n"] == 96
    assert "lr_audio" in results["models"]["speech"]["wa_minus"]
    assert results["shipped"]["frequencies_folded_out"]["neutral"] == 0.25
    assert set(results["transcripts"]["largest_change_of_a_score"].values()) == {0.0}
    assert sum(results["shipped"]["bytes"].values()) < 3e6
    assert len(done) == 3 + len(BRANCHES)

    loaded = AutoModel.from_pretrained(folders["speech_frames"])
    assert loaded.config.calibration_temperature == results["shipped"]["temperatures"]["speech_frames"]
    assert loaded.untrained_keys == ()
    fused = speech_model(folders)
    assert not fused.config.uses_context
    assert not fused.config.uses_word_times

    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "folds").iterdir()}
    train_speech(corpus_dir, tmp_path / "run", file, branches=QUICK)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "folds").iterdir()} == stamps
    with pytest.raises(ValueError, match=r"was made with another branches \(settings.json tells\)"):
        measure_speech(load_speech(corpus_dir, tmp_path / "run" / "cache"), tmp_path / "run")


def test_a_branch_reads_what_its_log_mels_were_made_of(corpus_dir: Path, tmp_path: Path) -> None:
    """The processor's sound, given raw, and what the branch was trained on are the same."""
    clips = load_speech(corpus_dir, tmp_path)
    rows = clips.corpus.rows[:3]
    examples = list(ClipDataset(rows, MerProcessor.default(trim_db=TRIM_DB), modalities=("audio",)))
    batch = EmotionCollator()(examples)
    for reads in ("frames", "vector"):
        set_seed(0)
        model = make_branch(reads).eval()
        raw = model(**batch).logits.detach().numpy()
        if reads == "frames":
            kept = frame_logits(model, [clips.mels[row["id"]] for row in rows])
        else:
            vectors = torch.stack([clips.vectors[row["id"]] for row in rows])
            kept = model(audio_embeds=vectors).logits.detach().numpy()
        assert np.allclose(raw, kept, atol=1e-4)


def test_a_copy_without_an_emotion_is_refused(corpus_dir: Path, tmp_path: Path) -> None:
    for path in corpus_dir.iterdir():
        if path.name[6:8] != "07":
            (tmp_path / path.name).symlink_to(path)
    with pytest.raises(ValueError, match="no clip that is disgusted"):
        load_speech(tmp_path, tmp_path / "cache")


# Real clips


def test_real_folds_hold_twenty_actors(ravdess_dir: Path) -> None:
    rows, splits, _ = SEVEN_EMOTIONS.apply(ravdess.scan(ravdess_dir).rows)
    assert sorted({split.fold for split in splits}) >= [1, 2, 3, 4, 5]
    counts = {label: sum(row["label"] == label for row in rows) for label in LABELS}
    assert all(2 * counts["neutral"] == 3 * counts[label] for label in LABELS[1:])


def test_branches_answer_on_a_real_clip(ravdess_dir: Path) -> None:
    row = ravdess.scan(ravdess_dir).rows[0]
    processor = MerProcessor.default(trim_db=TRIM_DB)
    batch = processor.pad([processor.example(**processor.load(audio=row["audio"]))])
    for branch in (SpeechBranch("frames", TrainingSettings()), SpeechBranch("vector", TrainingSettings())):
        set_seed(0)
        logits = make_branch(branch.reads).eval()(**batch).logits
        assert logits.shape == (1, 7)
        assert logits.isfinite().all()
