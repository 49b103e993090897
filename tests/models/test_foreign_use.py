"""Models in hands that are not ours: other precisions, losses computed outside, replicas, encoders of other kinds."""

import importlib

import numpy as np
import pytest
import torch
from model_helpers import (
    CLASSES,
    TINY,
    TINY_SPEECH,
    VARIANTS,
    WIDTH_FIELDS,
    make_clip,
    make_config,
    make_model,
    make_variant,
    quiet_build,
    randomize,
    raw_clip,
    speech,
)
from transformers import (
    AutoModel,
    BertConfig,
    ConvBertConfig,
    Data2VecAudioConfig,
    SiglipVisionConfig,
    SwinConfig,
    Trainer,
    TrainingArguments,
    ViTConfig,
    Wav2Vec2Config,
)

from mer_hf import (
    CMEConfig,
    FilterbankConfig,
    FilterbankModel,
    LateFusionConfig,
    LateFusionForEmotionClassification,
    MMANForEmotionClassification,
)
from mer_hf.data.collator import EmotionCollator, ExampleDataset
from mer_hf.hub import save_checkpoint
from mer_hf.models.batching import pad_dialogues, pad_examples
from mer_hf.models.processing_mer import MerProcessor

each_model = pytest.mark.parametrize("model_type", CLASSES)
ENCODERS = {"audio_config": lambda: Wav2Vec2Config(**TINY_SPEECH), "text_config": lambda: BertConfig(**TINY)}


def trainer_for(model, clips, folder, **arguments):
    values = {"max_steps": 3, "per_device_train_batch_size": 2, "use_cpu": True, "report_to": "none"}
    values |= {"remove_unused_columns": False, "learning_rate": 0.1, "save_strategy": "no", "disable_tqdm": True}
    arguments = TrainingArguments(str(folder), **values | arguments)
    return Trainer(model, arguments, EmotionCollator(model.config), ExampleDataset(clips), ExampleDataset(clips))


# Precision


def fusion_of_encoders():
    branches = {
        "speech": make_model("cme", audio_config=Wav2Vec2Config(**TINY_SPEECH)),
        "words": make_model("mman", text_config=BertConfig(**TINY, vocab_size=30), network="unimodal"),
    }
    return randomize(LateFusionForEmotionClassification.from_branches(branches)).eval()


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask:UserWarning")
@pytest.mark.parametrize("saved", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("loaded", [None, torch.float32, torch.bfloat16])
def test_a_fusion_loads_in_one_precision_whatever_its_branches_were_saved_in(tmp_path, saved, loaded):
    fusion = fusion_of_encoders()
    batch = pad_examples([raw_clip(0, drop=("pixel_values", "vision_times"))])
    with torch.no_grad():
        expected = fusion(**batch).logits
    fusion.to(saved).save_pretrained(tmp_path)
    found = quiet_build(AutoModel.from_pretrained, tmp_path, **({} if loaded is None else {"dtype": loaded}))
    wanted = loaded or saved
    assert {parameter.dtype for parameter in found.parameters()} == {wanted}
    with torch.no_grad():
        logits = found(**batch).logits.float()
    torch.testing.assert_close(logits, expected, rtol=0.1, atol=0.15)


def test_loaded_backbones_in_half_precision_become_the_model_in_its_own():
    backbone = quiet_build(AutoModel.from_config, Wav2Vec2Config(**TINY_SPEECH)).to(torch.bfloat16)
    model = quiet_build(MMANForEmotionClassification.from_backbones, audio=backbone, network="unimodal").eval()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    with torch.no_grad():
        assert model(input_values=speech(0, 8000)[None]).logits.isfinite().all()


def test_empty_bands_stay_empty_in_half_precision(tmp_path):
    """Telephone speech has nothing above 4 kHz; rounding its samples or the window to 8 bits would put noise there."""
    config = FilterbankConfig(conv_dims=(), conv_kernels=(), conv_strides=(), normalization="none")
    spectrum = torch.fft.rfft(speech(0, 16_000))
    spectrum[len(spectrum) // 2 :] = 0
    telephone = torch.fft.irfft(spectrum)[None] * 0.5
    expected = FilterbankModel(config).log_mel(telephone)
    model = make_model("mman", audio_config=config, network="unimodal")
    model.save_pretrained(tmp_path)
    halves = {
        "loaded": AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16),
        "converted": make_model("mman", audio_config=config, network="unimodal").to(torch.bfloat16),
    }
    for name, half in halves.items():
        torch.testing.assert_close(half.audio_model.log_mel(telephone), expected, rtol=0, atol=0.05, msg=name)
        embeds = half.encode(input_values=telephone)["audio"].embeds
        assert embeds.dtype == torch.bfloat16
        assert (embeds.float() - expected).abs()[..., -8:].max() < 0.2, f"{name}: rounded once, at the end"


# Losses that forward does not compute


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "mman_frozen"])
def test_trainers_label_smoothing_trains_every_part(variant, tmp_path):
    model = make_variant(variant, dropout=0.0)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    trainer_for(model, [make_clip(seed) for seed in range(8)], tmp_path, label_smoothing_factor=0.1).train()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    parts = {name.rsplit(".", 1)[0] for name in before}
    still = parts - {name.rsplit(".", 1)[0] for name in moved}
    assert len(still) <= len(parts) // 5, f"not trained: {sorted(still)}"
    if variant == "mman":
        assert any("clstm_mma" in name for name in moved) and any("unimodal" in name for name in moved)


def test_with_labels_mmans_branches_are_trained_by_their_own_losses_alone():
    model = make_variant("mman", dropout=0.0, attention_dropout=0.0).train()
    batch = pad_examples([make_clip(seed) for seed in range(4)])
    model(**batch).loss.backward()
    own = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    labels = batch.pop("labels")
    logits = model(**batch).branch_logits  # (batch, branches, labels)
    sum(model.classification_loss(logits[:, index], labels) for index in range(logits.shape[1])).backward()
    for name, parameter in model.named_parameters():
        if "fusion" not in name and parameter.grad is not None:
            torch.testing.assert_close(own[name], parameter.grad, rtol=1e-4, atol=1e-5, msg=name)


@each_model
def test_a_head_that_the_stock_trainer_trained_is_trained(model_type, tmp_path):
    make_model(model_type, **WIDTH_FIELDS).save_pretrained(tmp_path / "four")
    names = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}
    model = CLASSES[model_type].from_pretrained(tmp_path / "four", ignore_mismatched_sizes=True, **names)
    assert model.untrained_keys
    clips = [make_clip(seed) | {"label": seed % 2} for seed in range(4)]
    with torch.no_grad():
        model.train()(**pad_examples(clips))
    assert model.untrained_keys, "a pass without gradients trains nothing"
    trainer_for(model, clips, tmp_path / "run").train()
    assert not model.untrained_keys
    save_checkpoint(model, MerProcessor.default(), tmp_path / "two")


# nn.DataParallel


def replica_of(model, monkeypatch):
    """What nn.DataParallel runs on a second device, made on this one."""
    module = importlib.import_module("torch.nn.parallel.replicate")
    copies = lambda tensors, devices, detach=False: [[t.clone() for t in tensors] for _ in devices]  # noqa: E731
    monkeypatch.setattr(module, "_broadcast_coalesced_reshape", copies)
    monkeypatch.setattr(module, "_get_device_index", lambda device, *_, **__: device if isinstance(device, int) else 0)
    return module.replicate(model, [0, 1])[1]


@pytest.mark.parametrize("variant", VARIANTS)
def test_replicas_answer_as_the_model(variant, monkeypatch):
    model = make_variant(variant)
    batch = pad_examples([make_clip(0), make_clip(1, drop=("text_embeds", "word_times"))])
    replica = replica_of(model, monkeypatch)
    assert not list(replica.parameters()) and replica.dtype == torch.float32 and replica.device.type == "cpu"
    with torch.no_grad():
        torch.testing.assert_close(replica(**batch).logits, model(**batch).logits, rtol=1e-4, atol=1e-5)


# Clips without what others have


def test_untimed_words_beside_timed_ones_are_refused_as_they_are_alone():
    model = make_model("cme", **WIDTH_FIELDS)
    untimed = make_clip(1, drop=("word_times",))
    for clips in ([untimed], [make_clip(0), untimed]):
        with pytest.raises(ValueError, match="without word_times: give each word its time"):
            model(**pad_examples(clips))
    text_alone = make_clip(2, drop=("word_times", "audio_embeds", "vision_embeds", "vision_times"))
    with torch.no_grad():
        assert model(**pad_examples([make_clip(0), text_alone])).logits.isfinite().all()


@pytest.mark.parametrize("variant", ["cme", "additive", "mman"])
def test_a_clip_with_nothing_is_answered_alone_as_among_others(variant):
    model = make_variant(variant)
    nothing = {"label": 1}
    with pytest.raises(ValueError, match="nothing to classify"):
        model(**EmotionCollator()([nothing]))
    with torch.no_grad():
        alone = model(**EmotionCollator(model.config)([nothing, nothing])).logits
        among = model(**EmotionCollator(model.config)([nothing, make_clip(0)])).logits
    torch.testing.assert_close(alone[0], among[0], rtol=1e-5, atol=1e-5)
    if variant == "mman":
        with torch.no_grad():
            turns = model(**EmotionCollator(model.config)([[nothing, nothing], [nothing]])).logits
        assert turns.shape[:2] == (2, 2) and turns.isfinite().all()


def test_a_batch_in_which_no_clip_has_a_label_costs_nothing(tmp_path):
    clips = [make_clip(seed) | {"label": None if seed < 4 else seed % 4} for seed in range(8)]
    assert pad_examples(clips[:2])["labels"].tolist() == [-100, -100]
    assert pad_dialogues([clips[:2], clips[2:3]])["labels"].tolist() == [[-100, -100], [-100, -100]]
    assert "labels" not in pad_examples([make_clip(0, drop=("label",))])
    model = make_model("cme", **WIDTH_FIELDS)
    assert model(**pad_examples(clips[:2])).loss.item() == 0.0
    trainer = trainer_for(model, clips, tmp_path)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > 0


# Encoders of other kinds


def other_encoder(name):
    sizes = TINY | {"conv_dim": (8, 8), "conv_kernel": (20, 20), "conv_stride": (20, 16)}
    positions = {"num_conv_pos_embeddings": 5, "num_conv_pos_embedding_groups": 2, "conv_pos_kernel_size": 5}
    return {
        "data2vec": lambda: {"audio_config": Data2VecAudioConfig(**sizes, **positions)},
        "convbert": lambda: {"text_config": ConvBertConfig(**TINY, vocab_size=30, embedding_size=32)},
    }[name]()


@pytest.mark.parametrize("name", ["data2vec", "convbert"])
def test_states_do_not_depend_on_batch_mates(name):
    model = quiet_build(make_model, "mman", network="unimodal", **other_encoder(name))
    drop = ("pixel_values", "vision_times", "word_times", *(("input_ids", "word_ids") if name == "data2vec" else ()))
    drop += ("input_values",) if name == "convbert" else ()
    short, long = raw_clip(0, samples=4000, tokens=4, drop=drop), raw_clip(1, samples=9000, tokens=9, drop=drop)
    modality = model.config.modalities[0]
    with torch.no_grad():
        fields = [
            {k: v for k, v in pad_examples(clips).items() if k != "labels"} for clips in ([short], [short, long])
        ]
        alone, among = (model.encode(**inputs)[modality] for inputs in fields)
    real = int(alone.mask.sum())
    assert real and int(among.mask[0].sum()) == real
    torch.testing.assert_close(among.embeds[0, :real], alone.embeds[0, :real], rtol=1e-4, atol=1e-4)


PICTURES = {
    "swin": lambda: SwinConfig(
        image_size=16, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 1], window_size=2
    ),
    "siglip": lambda: SiglipVisionConfig(**TINY, image_size=16, patch_size=8),
}


@pytest.mark.parametrize("name", PICTURES)
def test_encoders_without_a_class_token_see_the_whole_picture(name):
    model = quiet_build(make_model, "mman", vision_config=PICTURES[name](), network="unimodal")
    picture = torch.randn(1, 1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = model.encode(pixel_values=picture)["vision"].embeds[0, 0]
        states = model.vision_model(pixel_values=picture[0]).last_hidden_state
    torch.testing.assert_close(found, states[0].mean(0), rtol=1e-4, atol=1e-5)


def test_a_vits_class_token_stands_for_the_picture():
    model = make_model("mman", vision_config=ViTConfig(**TINY, image_size=8, patch_size=4), network="unimodal")
    picture = torch.randn(1, 1, 3, 8, 8)
    with torch.no_grad():
        found = model.encode(pixel_values=picture)["vision"].embeds[0, 0]
        own = model.vision_model(pixel_values=picture[0]).last_hidden_state[0, 0]
    torch.testing.assert_close(found, own, rtol=1e-4, atol=1e-5)


def test_an_adapters_frames_are_as_long_as_they_are():
    config = Wav2Vec2Config(**TINY_SPEECH, add_adapter=True, num_adapter_layers=2, output_hidden_size=12)
    model = quiet_build(make_model, "cme", audio_config=config)
    assert model.config.audio_frame_seconds == pytest.approx(0.08)
    with torch.no_grad():
        frames = model.encode(input_values=speech(0, 32_000)[None])["audio"]
    assert frames.embeds.shape[-1] == model.config.width("audio") == 12
    assert frames.embeds.shape[1] == pytest.approx(2 / 0.08, abs=2)


# Labels and weights


def test_labels_may_be_given_by_name_alone():
    config = CMEConfig(audio_embed_dim=6, label2id={"neg": 0, "pos": 1})
    assert config.id2label == {0: "neg", 1: "pos"} and config.num_labels == 2


@pytest.mark.parametrize("make", [np.array, torch.tensor, tuple])
def test_class_weights_of_any_kind_are_saved(make, tmp_path):
    make_config("cme", audio_embed_dim=6, class_weights=make([1.0, 2.0, 0.5, 1.0])).save_pretrained(tmp_path)
    assert CMEConfig.from_pretrained(tmp_path).class_weights == [1.0, 2.0, 0.5, 1.0]


def test_a_batch_whose_classes_weigh_nothing_costs_nothing():
    model = make_model("cme", **WIDTH_FIELDS, class_weights=[0.0, 1.0, 1.0, 1.0], label_smoothing=0.1)
    clips = [make_clip(0), make_clip(4)]  # both of class 0
    assert model(**pad_examples(clips)).loss.item() == 0.0
    assert model(**pad_examples([*clips, make_clip(1)])).loss.item() > 0


def test_a_fusion_whose_labels_are_renamed_is_saved_and_loaded(tmp_path):
    branch = make_model("mman", audio_embed_dim=6, network="unimodal")
    fusion = LateFusionForEmotionClassification.from_branches({"voice": branch})
    fusion.config.id2label = dict(enumerate(["Wut", "Freude", "nichts", "Trauer"]))
    fusion.config.label2id = {name: index for index, name in fusion.config.id2label.items()}
    fusion.save_pretrained(tmp_path)
    found = LateFusionConfig.from_pretrained(tmp_path)
    assert list(found.id2label.values()) == ["Wut", "Freude", "nichts", "Trauer"]
    assert found.branches[0].id2label == found.id2label


def test_word_times_are_only_wanted_of_batches_with_words():
    model = make_model("learned_alignment", audio_embed_dim=6, text_embed_dim=5, alignment_loss_weight=1.0).train()
    drop = ("vision_embeds", "vision_times", "text_embeds", "word_times")
    assert model(**pad_examples([make_clip(0, drop=drop)])).loss.isfinite()
    with pytest.raises(ValueError, match="training needs word_times"):
        model(**pad_examples([make_clip(0, drop=("vision_embeds", "vision_times", "word_times"))]))
