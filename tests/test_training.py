"""Training by the stock Trainer: what is learned, which epoch is kept, what it is chosen by, several processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from test_experiment import ACTORS, EvenAligner
from transformers import Trainer

from mer_hf import (
    CMEConfig,
    CMEForEmotionClassification,
    FilterbankConfig,
    MMANConfig,
    MMANForEmotionClassification,
    WordTableConfig,
)
from mer_hf import training as training_module
from mer_hf.corpora import align_rows
from mer_hf.data.collator import DialogueDataset, EmotionCollator, ExampleDataset
from mer_hf.data.length_grouping import iemocap_like_seconds, padding_ratio
from mer_hf.data.ravdess import scan
from mer_hf.models.batching import pad_dialogues, pad_examples
from mer_hf.training import TrainingSettings, batches, fit, make_trainer, parameter_groups, predict_logits

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 6
LABELS = {0: "neutral", 1: "happy", 2: "sad", 3: "angry"}


def make_clips(count, seed, flipped=False):
    """Clips whose first four audio features point to the label; `flipped` labels are all wrong."""
    generator = torch.Generator().manual_seed(seed)
    clips = []
    for index in range(count):
        label = index % 4
        audio = torch.randn(5 + index % 3, WIDTH, generator=generator)
        audio[:, label] += 3.0
        clips.append({"audio_embeds": audio, "label": (label + 1) % 4 if flipped else label})
    return clips


def make_cme(**values):
    torch.manual_seed(0)
    sizes = {"audio_embed_dim": WIDTH, "hidden_size": 8, "dropout": 0.0, "id2label": LABELS}
    return CMEForEmotionClassification(CMEConfig(**sizes | values))


def make_mman(**values):
    torch.manual_seed(0)
    sizes = {"projection_size": 6, "hidden_size": 8, "classifier_size": 8, "dropout": 0.0, "attention_dropout": 0.0}
    return MMANForEmotionClassification(
        MMANConfig(audio_embed_dim=WIDTH, vision_embed_dim=3, id2label=LABELS, **sizes | values)
    )


TRAIN, VALIDATION = ExampleDataset(make_clips(48, 1)), ExampleDataset(make_clips(20, 2))
SETTINGS = TrainingSettings(epochs=6, batch_size=8, learning_rate=1e-2)


def accuracy(model, dataset):
    logits, labels = predict_logits(model, dataset)
    return float((logits.argmax(-1) == labels).mean())


@pytest.fixture
def evaluated(monkeypatch):
    """Logits on the validation set after every epoch of every trainer that `fit` makes, one list a stage."""
    stages = []

    class Watched(Trainer):
        def __init__(self, **arguments):
            super().__init__(**arguments)
            stages.append([])

        def evaluate(self, *arguments, **keywords):
            stages[-1].append(predict_logits(self.model, self.eval_dataset)[0])
            return super().evaluate(*arguments, **keywords)

    monkeypatch.setattr(training_module, "Trainer", Watched)
    return stages


# Parameters


def test_backbones_have_their_own_rate_and_biases_no_decay():
    model = CMEForEmotionClassification(
        CMEConfig(
            audio_config=FilterbankConfig(conv_dims=(4, 4, 4)),
            text_config=WordTableConfig(vocab_size=5, embedding_dim=6, gate_dim=8),
            freeze_backbones=("text",),
            hidden_size=8,
        )
    )
    settings = TrainingSettings(learning_rate=0.5, backbone_learning_rate=0.25, weight_decay=0.125)
    found = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in parameter_groups(model, settings)
        for parameter in group["params"]
    }
    expected = {
        id(parameter): (0.25 if name.startswith("audio_model") else 0.5, 0.125 if parameter.dim() > 1 else 0.0)
        for name, parameter in model.named_parameters()
        if not name.startswith("text_model")
    }
    assert found == expected
    assert set(found.values()) == {(0.25, 0.125), (0.25, 0.0), (0.5, 0.125), (0.5, 0.0)}
    same = parameter_groups(model, TrainingSettings(learning_rate=0.5))
    assert {group["lr"] for group in same} == {0.5}


def test_overrides_reach_the_arguments(tmp_path):
    arguments = SETTINGS.arguments(tmp_path, per_device_train_batch_size=3)
    assert (arguments.per_device_train_batch_size, arguments.per_device_eval_batch_size) == (3, 8)
    assert (arguments.metric_for_best_model, arguments.num_train_epochs) == ("wa", 6)


# What fit leaves behind


def test_what_can_be_learned_is_learned(tmp_path):
    model = make_cme()
    assert accuracy(model, VALIDATION) < 0.6
    done = fit(model, TRAIN, VALIDATION, SETTINGS, tmp_path)
    assert accuracy(model, VALIDATION) >= 0.9
    assert not model.training
    stage = done["stages"][0]
    assert len(done["stages"]) == 1 and stage["validation_wa"] == accuracy(model, VALIDATION)
    assert stage["settings"]["learning_rate"] == 1e-2
    json.dumps(done)


def test_the_best_epoch_is_kept_not_the_last(tmp_path, evaluated):
    # A model that knows other labels unlearns them: the more it is trained, the lower its validation accuracy.
    wrong = ExampleDataset(make_clips(40, 3, flipped=True))
    model = make_cme()
    fit(model, ExampleDataset(make_clips(48, 4, flipped=True)), wrong, SETTINGS, tmp_path / "before")
    evaluated.clear()
    settings = TrainingSettings(epochs=5, batch_size=8, learning_rate=3e-3)
    done = fit(model, TRAIN, wrong, settings, tmp_path / "run")
    labels = np.array([clip["label"] for clip in wrong.examples])
    scores = [float((logits.argmax(-1) == labels).mean()) for logits in evaluated[0]]
    best = int(np.argmax(scores))
    assert best < len(scores) - 1 and scores[best] > scores[-1], scores
    np.testing.assert_allclose(predict_logits(model, wrong)[0], evaluated[0][best], rtol=1e-5, atol=1e-6)
    assert done["stages"][0]["epoch_kept"] == best + 1
    assert done["stages"][0]["validation_wa"] == pytest.approx(scores[best])


def test_the_last_epoch_is_kept_where_asked_for_and_nothing_is_saved_on_the_way(tmp_path, evaluated):
    wrong = ExampleDataset(make_clips(40, 3, flipped=True))
    model = make_cme()
    fit(model, ExampleDataset(make_clips(48, 4, flipped=True)), wrong, SETTINGS, tmp_path / "before")
    evaluated.clear()
    settings = TrainingSettings(epochs=5, batch_size=8, learning_rate=3e-3, keep="last", patience=1)
    done = fit(model, TRAIN, wrong, settings, tmp_path / "run")
    assert len(evaluated[0]) == 5, "it does not stop early"
    np.testing.assert_allclose(predict_logits(model, wrong)[0], evaluated[0][-1], rtol=1e-5, atol=1e-6)
    assert (done["stages"][0]["epoch_kept"], done["stages"][0]["epochs_run"]) == (5, 5)
    assert not list((tmp_path / "run").glob("checkpoint-*"))
    with pytest.raises(ValueError, match="keep must be best or last, found 'first'"):
        TrainingSettings(keep="first")


def test_statistics_come_from_the_clean_set(tmp_path):
    moved = ExampleDataset([clip | {"audio_embeds": clip["audio_embeds"] + 7.0} for clip in TRAIN.examples])
    settings = TrainingSettings(epochs=1, batch_size=8, learning_rate=0.0)
    means = []
    for statistics in (TRAIN, None):
        model = make_cme(standardize=("audio",))
        fit(model, moved, VALIDATION, settings, tmp_path / str(len(means)), statistics)
        means.append(model.standardizers["audio"].mean)
    torch.testing.assert_close(means[1] - means[0], torch.full_like(means[0], 7.0))


def test_training_stops_after_epochs_without_improvement(tmp_path):
    settings = TrainingSettings(epochs=9, batch_size=16, learning_rate=0.0, patience=2)
    done = fit(make_cme(), TRAIN, VALIDATION, settings, tmp_path)
    assert done["stages"][0]["epochs_run"] == 3 and done["stages"][0]["epoch_kept"] == 1.0


def test_the_metric_asked_for_decides(tmp_path):
    done = fit(make_cme(), TRAIN, VALIDATION, TrainingSettings(epochs=1, metric="macro_f1"), tmp_path)
    assert "validation_macro_f1" in done["stages"][0]


def test_a_seed_repeats_a_run(tmp_path):
    logits = []
    for name in ("a", "b"):
        model = make_cme(dropout=0.5)
        fit(model, TRAIN, VALIDATION, TrainingSettings(epochs=2, batch_size=8, seed=7), tmp_path / name)
        logits.append(predict_logits(model, VALIDATION)[0])
    np.testing.assert_array_equal(*logits)


def test_a_head_that_its_checkpoint_lacked_counts_as_trained(tmp_path):
    model = make_cme()
    model.untrained_keys = ("classifier.weight",)
    fit(model, TRAIN, VALIDATION, TrainingSettings(epochs=1), tmp_path)
    assert model.untrained_keys == ()


@pytest.mark.parametrize("name", ["train_dataset", "validation_dataset"])
def test_an_empty_set_is_refused_before_training(tmp_path, name):
    sets = {"train_dataset": TRAIN, "validation_dataset": VALIDATION, name: ExampleDataset([])}
    with pytest.raises(ValueError, match=f"{name} is empty"):
        fit(make_cme(), settings=SETTINGS, output_dir=tmp_path / "run", **sets)
    assert not (tmp_path / "run").exists()


def test_statistics_are_of_the_training_set(tmp_path):
    train = ExampleDataset([{**clip, "audio_embeds": 4 * clip["audio_embeds"] + 2} for clip in TRAIN.examples])
    model = make_cme(standardize=("audio",))
    fit(model, train, VALIDATION, TrainingSettings(epochs=1, batch_size=7), tmp_path)
    frames = torch.cat([clip["audio_embeds"] for clip in train.examples])
    torch.testing.assert_close(model.standardizers["audio"].mean, frames.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.standardizers["audio"].std, frames.std(0, correction=0), rtol=1e-2, atol=1e-2)


# MMAN's two stages


def with_faces(clips):
    generator = torch.Generator().manual_seed(9)
    return ExampleDataset([clip | {"vision_embeds": torch.randn(2, 3, generator=generator)} for clip in clips])


def test_mman_trains_its_branches_and_then_their_fusion_alone(tmp_path, monkeypatch):
    stages = []
    make = training_module.make_trainer

    def watch(model, *arguments, **keywords):
        trainer = make(model, *arguments, **keywords)
        train = trainer.train

        def run():
            before = {name: value.clone() for name, value in model.state_dict().items()}
            train()
            after = model.state_dict()
            stages.append({name for name in before if not torch.equal(before[name], after[name])})

        trainer.train = run
        return trainer

    monkeypatch.setattr(training_module, "make_trainer", watch)
    model = make_mman()
    settings = TrainingSettings(epochs=4, batch_size=8, learning_rate=1e-2, patience=9)
    done = fit(model, with_faces(TRAIN.examples), with_faces(VALIDATION.examples), settings, tmp_path)
    assert [stage["settings"]["epochs"] for stage in done["stages"]] == [4, 1]
    assert [stage["settings"]["weight_decay"] for stage in done["stages"]] == [0.01, 0.0]
    assert any(not name.startswith("network.fusion") for name in stages[0])
    assert stages[1] and all(name.startswith("network.fusion") for name in stages[1])
    assert model.config.freeze_branches


@pytest.mark.parametrize("values", [{"network": "clstm_mma"}, {"freeze_branches": True}])
def test_other_networks_have_one_stage(tmp_path, values):
    settings = TrainingSettings(epochs=1, batch_size=16)
    done = fit(make_mman(**values), with_faces(TRAIN.examples), with_faces(VALIDATION.examples), settings, tmp_path)
    assert len(done["stages"]) == 1


# Clips of like length


class Watched(EmotionCollator):
    """Remembers the lengths of the clips, or the numbers of turns, of every batch."""

    def __init__(self):
        self.batches = []

    def __call__(self, examples):
        clips = [len(e) if isinstance(e, list) else len(e["audio_embeds"]) for e in examples]
        self.batches.append(clips)
        return super().__call__(examples)


def uneven_clips(count, seed):
    frames = (10 * iemocap_like_seconds(count, seed)).astype(int)
    generator = torch.Generator().manual_seed(seed)
    clips = [torch.randn(int(length), WIDTH, generator=generator) for length in frames]
    return ExampleDataset([{"audio_embeds": clip, "label": index % 4} for index, clip in enumerate(clips)])


def padding(batches):
    lengths = [length for batch in batches for length in batch]
    ends = np.cumsum([len(batch) for batch in batches])
    return padding_ratio(lengths, np.split(np.arange(len(lengths)), ends[:-1]))


def test_the_trainer_groups_clips_by_length(tmp_path):
    train, validation = uneven_clips(300, 0), uneven_clips(90, 1)
    ratios = {}
    for grouped in (False, True):
        settings = TrainingSettings(epochs=2, batch_size=8, learning_rate=1e-3, keep="last")
        trainer = make_trainer(make_cme(), train, validation, settings, tmp_path / str(grouped), grouped)
        trainer.data_collator = watched = Watched()
        trainer.train()
        steps = -(-300 // 8)
        first, second = watched.batches[:steps], watched.batches[steps + 12 : 2 * steps + 12]
        tested = watched.batches[steps : steps + 12]
        for seen, dataset in ((first, train), (second, train), (tested, validation)):
            expected = sorted(len(clip["audio_embeds"]) for clip in dataset.examples)
            assert sorted(length for batch in seen for length in batch) == expected, "each clip once"
        assert first != second, "every epoch has the same batches"
        ratios[grouped] = padding(first), padding(tested)
    # Of so few clips the longest batch is a large share; of as many as IEMOCAP has see test_length_grouping.
    assert max(ratios[True]) <= 1.2 < 1.7 < min(ratios[False])


def test_the_trainer_groups_dialogues_too(tmp_path):
    clips = with_faces(uneven_clips(60, 0).examples)
    dialogues = DialogueDataset(clips, [str(int(index**0.5)) for index in range(60)], range(60))
    model = make_mman(network="clstm_mma")
    settings = TrainingSettings(epochs=1, batch_size=2, keep="last")
    trainer = make_trainer(model, dialogues, dialogues, settings, tmp_path, True)
    trainer.data_collator = watched = Watched()
    trainer.train()
    assert sorted(turns for batch in watched.batches[:4] for turns in batch) == [1, 3, 5, 7, 9, 11, 11, 13]


def test_accumulation_in_the_grouped_trainer_sees_the_whole_batch(tmp_path):
    """Batches of 4, two a step, against batches of 8; sizes of pieces are equal, so means of means are the mean."""
    logits = []
    for size, accumulation in ((8, 1), (4, 2)):
        model = make_cme()
        settings = TrainingSettings(
            epochs=3, batch_size=size, learning_rate=1e-2, keep="last", gradient_accumulation_steps=accumulation
        )
        fit(model, uneven_clips(80, 0), VALIDATION, settings, tmp_path / str(size), group_by_length=True)
        logits.append(predict_logits(model, VALIDATION)[0])
    np.testing.assert_allclose(*logits, rtol=1e-3, atol=1e-4)


# Predictions


def test_logits_come_in_the_datasets_order(tmp_path):
    model = make_cme().train()
    logits, labels = predict_logits(model, VALIDATION, batch_size=3)
    assert labels.tolist() == [clip["label"] for clip in VALIDATION.examples]
    for index in (0, 7, 19):
        with torch.no_grad():
            alone = model(**pad_examples([VALIDATION[index]])).logits[0]
        np.testing.assert_allclose(logits[index], alone, rtol=1e-5, atol=1e-5)
    assert not model.training


def test_logits_of_dialogues_are_those_of_their_real_turns():
    clips = with_faces(VALIDATION.examples[:7])
    dialogues = DialogueDataset(clips, ["b", "a", "b", None, "b", "a", None], [2, 1, 1, 5, 3, 0, 0])
    assert dialogues.dialogues == [[2, 0, 4], [5, 1], [3], [6]]
    model = make_mman(network="clstm_mma").eval()
    logits, labels = predict_logits(model, dialogues, batch_size=3)
    assert labels.tolist() == [clips[index]["label"] for index in (2, 0, 4, 5, 1, 3, 6)]
    with torch.no_grad():
        expected = [model(**pad_dialogues([dialogue])).logits[0] for dialogue in dialogues]
    np.testing.assert_allclose(logits, torch.cat(expected), rtol=1e-4, atol=1e-5)


def test_batches_hold_every_clip_once_in_order():
    sizes = [len(batch["labels"]) for batch in batches(VALIDATION, 8)]
    assert sizes == [8, 8, 4]
    labels = torch.cat([batch["labels"] for batch in batches(VALIDATION, 8)]).tolist()
    assert labels == [clip["label"] for clip in VALIDATION.examples]


# Several processes


@pytest.mark.long
def test_two_processes_train_together_and_one_writes(tmp_path):
    tree = write_tree(tmp_path / "ravdess")
    align_rows(scan(tree).rows, tmp_path / "words" / "words.json", EvenAligner())
    printed = {}
    for processes in (1, 2):
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        launcher = torchrun if processes > 1 else []
        arguments = ["--corpus", "ravdess", "--data_dir", tree, "--output_dir", tmp_path / f"run-{processes}"]
        arguments += ["--cache_dir", tmp_path / "words", "--models", "lr_audio,mman", "--test_folds", "2"]
        arguments += ["--epochs", "1"]
        command = [sys.executable, *launcher, ROOT / "scripts" / "train.py", *arguments]
        done = subprocess.run(
            list(map(str, command)),
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        )
        assert done.returncode == 0, done.stderr[-3000:]
        printed[processes] = done.stdout
    one, two = (json.loads((tmp_path / f"run-{processes}" / "results.json").read_text()) for processes in (1, 2))
    assert list(one["models"]) == list(two["models"]) == ["lr_audio", "mman"]
    assert [model["folds"][0]["processes"] for model in two["models"].values()] == [2, 2]
    assert one["models"]["lr_audio"]["mean"] == two["models"]["lr_audio"]["mean"]
    assert one["models"]["mman"]["mean"].keys() == two["models"]["mman"]["mean"].keys()
    assert printed[2].count("mman-seed0-fold2: WA") == printed[1].count("mman-seed0-fold2: WA") == 1
    assert not (tmp_path / "run-2" / "unfinished").exists()
    assert (tmp_path / "run-2" / "mman" / "model.safetensors").is_file()


def write_tree(folder):
    """Three of EmoBox's folds; loud noise is angry, quiet noise neutral."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for actor in ACTORS:
        for emotion, loudness in (("01", 0.005), ("05", 0.5)):
            audio = loudness * rng.standard_normal(9_600).clip(-2, 2) / 2
            soundfile.write(folder / f"03-01-{emotion}-01-01-01-{actor:02}.wav", audio, 16_000, subtype="FLOAT")
    return folder
