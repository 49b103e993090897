"""New heads over pretrained backbones: frozen ones run once a clip, whatever folds and seeds, and change nothing."""

import logging

import pytest
import torch
from rank_processes import write_backbones, write_corpus
from torch import nn
from transformers import BertModel, Wav2Vec2Model

from mer_hf.backbone_recipes import backbone_model, backbone_plan, stored_plan
from mer_hf.data.feature_keys import backbone_hash
from mer_hf.data.features import take_head
from mer_hf.experiment import Job, run_job
from mer_hf.training import predict_logits


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("recipes")


@pytest.fixture(scope="module")
def corpus(folder):
    return write_corpus(folder)


@pytest.fixture(scope="module")
def backbones(folder):
    return write_backbones(folder)


@pytest.fixture(autouse=True)
def _quiet():
    logging.getLogger("transformers").setLevel(logging.ERROR)
    yield
    logging.getLogger("transformers").setLevel(logging.WARNING)


@pytest.fixture
def ran():
    """How many clips each backbone has run on, in whatever model."""
    counts = {Wav2Vec2Model: 0, BertModel: 0}

    def count(module, arguments, output):
        if type(module) in counts:
            counts[type(module)] += len(output.last_hidden_state)

    handle = nn.modules.module.register_module_forward_hook(count)
    yield counts
    handle.remove()


@pytest.mark.slow
def test_five_folds_and_three_seeds_run_each_clip_once(corpus, backbones, ran, tmp_path):
    audio = {"audio": backbones["audio"]}
    reports = []

    def frozen(corpus, split, seed):
        found = stored_plan("learned_alignment", audio, corpus, split, seed, tmp_path / "store")
        reports.append(found.report)
        return found.plan._replace(settings=found.plan.settings.__class__(epochs=1, seed=seed))

    assert len(corpus.splits) == 5
    for split in corpus.splits:
        for seed in range(3):
            record, _ = run_job(corpus, Job("frozen", seed, split), tmp_path / "run", recipes={"frozen": frozen})
            assert len(record["predictions"]) == len(split.test)
    assert ran[Wav2Vec2Model] == len(corpus.rows) == 48
    assert [report["misses"] for report in reports] == [48] + [0] * 14
    assert reports[-1]["hit_rate"] == 1.0 and reports[-1]["entries"] == 48 and reports[-1]["stale"] == 0


@pytest.mark.parametrize("head", ["cme", "learned_alignment"])
def test_a_stored_plan_answers_as_the_frozen_backbones_do(corpus, backbones, ran, tmp_path, head):
    split = corpus.splits[0]
    stored = stored_plan(head, backbones, corpus, split, 3, tmp_path / "store")
    once = dict(ran)
    direct = backbone_plan(head, backbones, corpus, split, 3, train_backbones=False)
    take_head(direct.model, stored.plan.model)
    for side in ("train", "validation", "test"):
        logits, labels = predict_logits(stored.plan.model, getattr(stored.plan, side))
        assert ran == once, "a head over stored states ran a backbone"
        raw, raw_labels = predict_logits(direct.model, getattr(direct, side))
        assert labels.tolist() == raw_labels.tolist()
        assert raw.std(0).min() > 1e-3, "the clips hardly differ"
        torch.testing.assert_close(torch.from_numpy(logits), torch.from_numpy(raw), rtol=0, atol=2e-3)
        once = dict(ran)
    take_head(stored.whole, stored.plan.model)
    whole = predict_logits(stored.whole, direct.test)[0]
    torch.testing.assert_close(torch.from_numpy(whole), torch.from_numpy(raw), rtol=0, atol=2e-3)


def test_cme_hears_a_clip_whose_words_have_no_times_as_a_whole(corpus, backbones):
    untimed = {row["id"] for row in corpus.rows if not row["words"]}
    assert 0 < len(untimed) < len(corpus.rows)
    plan = backbone_plan("cme", backbones, corpus, corpus.splits[0], 0)
    for row, example in zip(plan.train.rows, plan.train, strict=True):
        assert ("word_times" in example) == ("input_ids" in example) == (row["id"] not in untimed)


def test_weights_that_are_drawn_at_loading_and_never_used_make_no_other_backbone(backbones):
    models = [backbone_model("cme", {"audio": backbones["audio"]}, seed).audio_model for seed in (0, 1)]
    assert not torch.equal(models[0].masked_spec_embed, models[1].masked_spec_embed)
    assert backbone_hash(models[0]) == backbone_hash(models[1])


def test_trained_backbones_have_a_learning_rate_of_their_own(corpus, backbones):
    plan = backbone_plan("cme", backbones, corpus, corpus.splits[0], 0)
    assert plan.settings.backbone_learning_rate == 1e-5 and plan.model.config.freeze_backbones == ()
    frozen = backbone_plan("cme", backbones, corpus, corpus.splits[0], 0, train_backbones=False)
    assert not any(parameter.requires_grad for parameter in frozen.model.audio_model.parameters())


def test_what_is_not_there_is_named(backbones):
    with pytest.raises(ValueError, match=r"audio: no folder ./gone; name one that a backbone was saved to, or a Hub"):
        backbone_model("cme", {"audio": "./gone"})
    with pytest.raises(ValueError, match="one of cme, learned_alignment; found 'mman'"):
        backbone_model("mman", backbones)
