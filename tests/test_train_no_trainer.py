"""The explicit loop in one process: what a step sees, accumulation, resuming, and which epoch is kept."""

import numpy as np
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import FullyShardedDataParallelPlugin
from rank_processes import ROOT, load_script, run_here
from torch.utils.data import Dataset

from mer_hf import CMEConfig, CMEForEmotionClassification, MMANConfig, MMANForEmotionClassification
from mer_hf.data.collator import DialogueDataset, ExampleDataset
from mer_hf.evaluation import emotion_metrics
from mer_hf.recipes import Plan
from mer_hf.training import TrainingSettings, predict_logits

script = load_script("train_no_trainer")
LABELS = {0: "neutral", 1: "happy", 2: "sad", 3: "angry"}
WIDTH = 6


def make_clips(count, seed, unlabelled=()):
    """Clips of 3 to 30 frames, four features of which point to the label."""
    generator = torch.Generator().manual_seed(seed)
    clips = []
    for index in range(count):
        frames = torch.randn(int(torch.randint(3, 31, (), generator=generator)), WIDTH, generator=generator)
        frames[:, index % 4] += 2.0
        clips.append({"audio_embeds": frames} | ({} if index in unlabelled else {"label": index % 4}))
    return ExampleDataset(clips)


class Noisy(Dataset):
    """Clips that are otherwise at every look."""

    def __init__(self, clips):
        self.clips = clips

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, index):
        frames = self.clips[index]["audio_embeds"]
        return self.clips[index] | {"audio_embeds": frames + 0.3 * torch.randn_like(frames)}


TRAIN, VALIDATION, TEST = make_clips(37, 0), make_clips(13, 1), make_clips(9, 2)


def make_plan(train=TRAIN, dropout=0.0, class_weights=None, **settings):
    torch.manual_seed(0)
    config = CMEConfig(
        audio_embed_dim=WIDTH, hidden_size=8, dropout=dropout, id2label=LABELS, class_weights=class_weights
    )
    settings = TrainingSettings(**{"epochs": 3, "batch_size": 8, "learning_rate": 3e-2, "keep": "last"} | settings)
    return Plan(CMEForEmotionClassification(config), None, train, VALIDATION, TEST, settings)


def make_dialogue_plan(**settings):
    torch.manual_seed(0)
    sizes = {"projection_size": 6, "hidden_size": 8, "classifier_size": 8, "dropout": 0.0, "attention_dropout": 0.0}
    config = MMANConfig(audio_embed_dim=WIDTH, network="clstm_mma", id2label=LABELS, **sizes)
    sides = []
    for clips, of in ((make_clips(37, 0, unlabelled=(4, 5, 30)), 3), (VALIDATION, 2), (TEST, 2)):
        # Dialogues of 1 to `of` turns and more: 0; 1 1; 2 2 2; 0 ...
        names = [f"{index // (2 * of)}-{index % of}" for index in range(len(clips))]
        sides.append(DialogueDataset(clips, names, list(range(len(clips)))))
    settings = TrainingSettings(epochs=3, batch_size=4, learning_rate=3e-2, keep="last", **settings)
    return Plan(MMANForEmotionClassification(config), None, *sides, settings)


def run(plan, folder, *arguments):
    """The finished loop, and what it went through."""
    loop = script.Loop(plan, script.make_accelerator(), folder, *arguments)
    return loop, loop.run()


def weights_of(loop):
    return loop.accelerator.get_state_dict(loop.model)


# A step


def make_weighted_plan():
    return make_plan(class_weights=[0.5, 1.0, 2.0, 1.5])


@pytest.mark.parametrize(
    ("make", "accumulation"), [(make_plan, 2), (make_plan, 4), (make_weighted_plan, 2), (make_dialogue_plan, 2)]
)
def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path, make, accumulation):
    whole, progress = run(make(), tmp_path / "whole")
    parts, of_parts = run(make(), tmp_path / "parts", accumulation)
    assert len(progress.losses) == 3 * -(-len(whole.plan.train) // whole.settings.batch_size)
    np.testing.assert_allclose(of_parts.losses, progress.losses, rtol=1e-5)
    before = make().model.state_dict()
    for name, value in weights_of(whole).items():
        torch.testing.assert_close(weights_of(parts)[name], value, rtol=1e-4, atol=1e-5)
    assert max((weights_of(whole)[name] - before[name]).abs().max() for name in before) > 0.05, "hardly trained"


def test_losses_are_means_over_all_labels_of_a_step(tmp_path):
    """With a last step of five clips in two pieces, three and two; against the model's own loss of all five."""
    plan = make_plan(learning_rate=0.0, epochs=1)
    loop, progress = run(plan, tmp_path, 2)
    for loss, step in zip(progress.losses, loop.steps_of(0), strict=True):
        clips = [TRAIN[index] for batch in step for index in batch]
        logits, labels = predict_logits(plan.model, ExampleDataset(clips))
        expected = torch.nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels))
        assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert {len(batch) for step in loop.steps_of(0) for batch in step} == {3, 4}


def test_the_learning_rate_rises_and_falls_to_zero_at_the_last_step(tmp_path):
    rates = []
    loop = script.Loop(make_plan(warmup=0.2), script.make_accelerator(), tmp_path, 1, None, 40.0)
    step = loop.optimizer.step
    loop.optimizer.step = lambda: (rates.append(loop.optimizer.param_groups[0]["lr"]), step())
    loop.run()
    assert rates[0] == 0.0 and max(rates) == pytest.approx(3e-2)
    assert rates[-1] == pytest.approx(3e-2 / (0.8 * len(rates)), rel=0.2)


def test_batches_may_be_bounded_by_what_is_in_them(tmp_path):
    loop, progress = run(make_plan(epochs=2), tmp_path, 2, None, 60.0)
    frames = np.array([len(clip["audio_embeds"]) for clip in TRAIN])
    for epoch in range(2):
        batches = [batch for step in loop.steps_of(epoch) for batch in step]
        assert sorted(index for batch in batches for index in batch) == list(range(len(TRAIN)))
        assert all(len(batch) * frames[batch].max() <= 60 for batch in batches)
    assert len(progress.losses) == sum(len(loop.steps_of(epoch)) for epoch in range(2))


# Resuming


@pytest.mark.parametrize("stop_at", [3, 5, 9])
def test_a_resumed_run_is_the_one_that_nothing_interrupted(tmp_path, stop_at):
    """Bit for bit, dropout and random changes to the clips included; five steps an epoch, saved every second one."""

    def plan():
        return make_plan(Noisy(TRAIN), dropout=0.5)

    whole, progress = run(plan(), tmp_path / "whole", 1, 2)
    loop = script.Loop(plan(), script.make_accelerator(), tmp_path / "again", 1, 2)
    step = loop.train_step

    def stop(share):
        if loop.progress.total == stop_at:
            raise KeyboardInterrupt
        step(share)

    loop.train_step = stop
    with pytest.raises(KeyboardInterrupt):
        loop.run()
    saved = int(loop.saved()[-1].name.rpartition("-")[2])
    assert stop_at - 2 <= saved <= stop_at
    (loop.checkpoints / "unfinished").mkdir(exist_ok=True)
    (loop.checkpoints / "unfinished" / "model.safetensors").write_bytes(b"half")  # as if killed while saving
    torch.manual_seed(99)
    again, resumed = run(plan(), tmp_path / "again", 1, 2)
    assert resumed.losses == progress.losses and resumed.epochs == progress.epochs
    for name, value in weights_of(whole).items():
        assert torch.equal(weights_of(again)[name], value)


def test_a_finished_run_is_not_trained_again(tmp_path):
    _, progress = run(make_plan(), tmp_path)
    loop = script.Loop(make_plan(), script.make_accelerator(), tmp_path)
    loop.train_epoch = None
    assert loop.run().losses == progress.losses


# Validation


def test_the_best_epoch_is_kept_and_training_stops_without_gain(tmp_path):
    loop, progress = run(make_plan(epochs=30, keep="best", patience=3, learning_rate=0.05), tmp_path)
    scores = [scores["wa"] for scores in progress.epochs]
    best = int(np.argmax(scores))
    assert len(scores) == best + 4 < 30 and best > 0 and progress.best_epoch == best + 1
    assert len(loop.saved()) <= 2
    logits, labels = predict_logits(loop.plan.model, VALIDATION)
    assert emotion_metrics(labels, logits.argmax(1), 4) == progress.epochs[best]


@pytest.mark.parametrize("make", [make_plan, make_dialogue_plan])
def test_answers_are_in_the_order_of_the_clips(tmp_path, make):
    loop, _ = run(make(), tmp_path)
    labels, predictions = loop.answers("test")
    logits, expected = predict_logits(loop.plan.model, loop.plan.test)
    assert labels.tolist() == expected.tolist() and predictions.tolist() == logits.argmax(1).tolist()


# Refusals


def test_what_it_cannot_train_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"batch_size 8 is no multiple of the 3 .* give --batch_size 9"):
        run(make_plan(), tmp_path, 3)
    config = MMANConfig(audio_embed_dim=WIDTH, vision_embed_dim=3, id2label=LABELS)
    plan = make_plan()._replace(model=MMANForEmotionClassification(config))
    with pytest.raises(ValueError, match="two stages; use scripts/train"):
        run(plan, tmp_path)


def test_the_fsdp_configuration_is_one_that_accelerate_reads():
    config = load_config_from_file(str(ROOT / "scripts" / "fsdp.yaml"))
    assert config.distributed_type == "FSDP" and config.num_processes == 2
    values = {name.removeprefix("fsdp_"): value for name, value in config.fsdp_config.items()}
    version = values.pop("version")
    plugin = FullyShardedDataParallelPlugin(fsdp_version=version, **values)
    assert plugin.fsdp_version == 2 and plugin.min_num_params == 5_000_000 and plugin.reshard_after_forward


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "resnet"], "a recipe is one of audio"),
        (["--model", "mman", "--audio", "x"], "a head over backbones is one of cme"),
        (["--model", "cme", "--store", "x"], "name some by --audio"),
        (["--model", "cme", "--audio", "x", "--store", "y", "--train_backbones"], "not both"),
    ],
)
def test_a_wrong_command_line_is_told(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit):
        script.main(["--corpus", "ravdess", "--data_dir", "x", "--output_dir", str(tmp_path), *arguments])
    assert message in capsys.readouterr().err


def test_a_mistake_of_the_users_is_one_line(tmp_path, capsys):
    arguments = ["--corpus", "ravdess", "--data_dir", str(tmp_path / "gone"), "--model", "cme"]
    assert run_here("train_no_trainer", [*arguments, "--output_dir", tmp_path]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and "gone" in printed and "Traceback" not in printed


def test_another_fold_does_not_go_on_from_this_ones_checkpoints(tmp_path, capsys):
    manifest = tmp_path / "clips.csv"
    lines = [f"{word},{label},s{s}" for s in range(6) for word, label in (("yes", "happy"), ("no", "sad")) * 3]
    manifest.write_text("\n".join(["text,emotion,speaker", *lines]) + "\n")
    command = ["--corpus", "folder", "--data_dir", manifest, "--model", "text", "--epochs", "1"]
    command += ["--output_dir", tmp_path / "out", "--cache_dir", tmp_path / "cache"]
    assert run_here("train_no_trainer", [*command, "--fold", "1"]) == 0
    model = (tmp_path / "out" / "model" / "model.safetensors").read_bytes()
    for other, differing in ((["--fold", "2"], "fold, split_sha256"), (["--fold", "1", "--seed", "1"], "seed")):
        assert run_here("train_no_trainer", [*command, *other]) == 1
        assert f"was made with another {differing}" in capsys.readouterr().err
    assert (tmp_path / "out" / "model" / "model.safetensors").read_bytes() == model
    assert run_here("train_no_trainer", [*command, "--fold", "1"]) == 0, "the same goes on"
