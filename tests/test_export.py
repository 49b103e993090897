"""Exported graphs against their models on clips of other lengths and with something missing; int8 and bfloat16."""

import copy
import inspect
import sys

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    Dinov2Config,
    ResNetConfig,
    ViTConfig,
    ViTImageProcessor,
    Wav2Vec2Config,
    WavLMConfig,
)

from mer_hf import (
    CMEConfig,
    CMEForEmotionClassification,
    FilterbankConfig,
    FilterbankStatisticsConfig,
    LateFusionForEmotionClassification,
    LearnedAlignmentConfig,
    LearnedAlignmentForEmotionClassification,
    MerProcessor,
    MMANConfig,
    MMANForEmotionClassification,
    MultimodalEmotionRecognitionPipeline,
    SpeakerProfile,
    SpectrogramConfig,
    WordTableConfig,
    export,
    word_tokenizer,
)
from mer_hf.export import OnnxModel, autocast_bfloat16, export_onnx, quantize_int8
from mer_hf.models.batching import pad_examples

RATE = 16_000
WORDS = "kids are talking by the door".split()
TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
SPEECH = TINY | {"conv_dim": (8, 8), "conv_kernel": (20, 20), "conv_stride": (20, 16)}
SPEECH |= {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
IMAGE = TINY | {"image_size": 8, "patch_size": 4}
BERT = BertConfig(**TINY, vocab_size=30)
TABLE = WordTableConfig(vocab_size=30, embedding_dim=6)
DINO = Dinov2Config(**{name: value for name, value in IMAGE.items() if name != "intermediate_size"})
RESNET = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")


def cme():
    """wav2vec2, features of words that come from elsewhere, a ViT."""
    encoders = {"audio_config": Wav2Vec2Config(**SPEECH), "text_embed_dim": 5, "vision_config": ViTConfig(**IMAGE)}
    return CMEForEmotionClassification(CMEConfig(**encoders, hidden_size=8))


def mman():
    """A filterbank, BERT, a DINOv2."""
    encoders = {"audio_config": FilterbankConfig(conv_dims=(8, 8, 8)), "text_config": BERT, "vision_config": DINO}
    sizes = {"hidden_size": 8, "projection_size": 6, "classifier_size": 7, "early_fusion_hidden_size": 9}
    return MMANForEmotionClassification(MMANConfig(**encoders, **sizes))


def late_fusion():
    """Learned alignment over the spectrogram, a word table and a ResNet; statistics of the voice; a face."""
    encoders = {"audio_config": SpectrogramConfig(hidden_size=8), "text_config": TABLE, "vision_config": RESNET}
    voice = MMANConfig(audio_config=FilterbankStatisticsConfig(trim_db=30.0), network="unimodal", hidden_size=8)
    face = MMANConfig(vision_config=ViTConfig(**IMAGE), network="unimodal", hidden_size=8)
    branches = {
        "aligned": LearnedAlignmentForEmotionClassification(LearnedAlignmentConfig(**encoders, hidden_size=8)),
        "voice": MMANForEmotionClassification(voice),
        "face": MMANForEmotionClassification(face),
    }
    return LateFusionForEmotionClassification.from_branches(branches, weights=[2.0, 1.0, 0.5])


MAKERS = {maker.__name__: maker for maker in (cme, mman, late_fusion)}


@torch.no_grad()
def build(maker):
    """The model with weights large enough for every part to show in the logits."""
    model = maker().eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return model


@pytest.fixture(scope="module")
def processor():
    images = ViTImageProcessor(size={"height": 8, "width": 8})
    return MerProcessor.default(tokenizer=word_tokenizer([" ".join(WORDS)]), image_processor=images, num_frames=3)


def clip(model, processor, seed, seconds=1.0, words=3, frames=2):
    """An example of one clip; of 0 of anything it has none."""
    random = np.random.default_rng(seed)
    edges = np.linspace(0, seconds or 1.0, words + 1)
    spoken = [{"word": w, "start": a, "end": b} for w, a, b in zip(WORDS * 4, edges[:-1], edges[1:], strict=False)]
    pictures = random.integers(0, 256, (frames, 8, 8, 3), dtype=np.uint8) if frames else None
    example = processor.example(
        audio=random.uniform(-0.5, 0.5, int(RATE * seconds)).astype(np.float32) if seconds else None,
        words=spoken,
        frames=pictures,
        frame_times=np.linspace(0, seconds or 1.0, frames) if frames else None,
    )
    if words and not model.config.reads_raw("text"):
        example = {name: value for name, value in example.items() if name not in ("input_ids", "word_ids")}
        example["text_embeds"] = random.standard_normal((words, model.config.width("text")), dtype=np.float32)
    return example


@torch.no_grad()
def both(model, graph, examples):
    """Logits of the model and of the graph on a padded batch."""
    batch = pad_examples(examples)
    return model(**batch).logits, graph(**batch).logits


# ONNX. An export takes seconds, so a test does all there is to do with one graph.


@pytest.fixture
def exported(request, processor, tmp_path):
    """The model of that name in MAKERS, which its export left as it was, and its graph."""
    model = build(MAKERS[request.param]).train()
    before = {name: set(vars(part)) for name, part in model.named_modules()}
    graph = OnnxModel(export_onnx(model, processor, tmp_path), threads=1)
    assert {name: set(vars(part)) for name, part in model.named_modules()} == before
    assert model.training
    return model.eval(), graph


def check_comparison(model, graph, processor):
    """What `export_onnx` does last: a graph that is not the model's is refused."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(part for name, part in other.named_modules() if name.endswith("classifier")).bias[0] += 1.0
    example = export._random_clip(model, processor, 1.0, 3, 2)
    export._compare(model, graph, example)
    with pytest.raises(ValueError, match=r"off by .* on a clip of .*'input_values': \(1, 16000\)"):
        export._compare(other, graph, example)


def check_lengths(model, graph, processor):
    """The model's logits at lengths not seen at export, of single clips and of a padded batch of them."""
    sizes = [(0.31, 1, 1), (1.7, 7, 5), (3.1, 19, 9)]
    examples = [clip(model, processor, seed, *size) for seed, size in enumerate(sizes)]
    expected = []
    for example in examples:
        logits, found = both(model, graph, [example])
        torch.testing.assert_close(found, logits, atol=2e-5, rtol=0)
        expected.append(logits)
    assert torch.cat(expected).std(dim=0).max() > 1e-3  # clips differ by far more than is forgiven
    torch.testing.assert_close(both(model, graph, examples)[1], torch.cat(expected), atol=2e-5, rtol=0)


def check_absence(model, graph, processor):
    """The model's logits where a modality is absent, of a clip alone and beside complete ones."""
    others = [clip(model, processor, 4), clip(model, processor, 6, 2.0, 6, 4)]
    for lacking in ("seconds", "words", "frames"):
        odd = clip(model, processor, 3, **{lacking: 0})
        for batch in ([odd], [others[0], odd, others[1]]):
            logits, found = both(model, graph, batch)
            torch.testing.assert_close(found, logits, atol=2e-5, rtol=0)


def check_pipeline(model, graph, processor):
    """The model's scores where the graph stands in its place."""
    random = np.random.default_rng(1)
    times = [{"word": word, "start": 0.2 * index, "end": 0.2 * (index + 1)} for index, word in enumerate(WORDS)]
    face = {"frames": random.integers(0, 256, (9, 12, 12, 3), dtype=np.uint8), "times": np.linspace(0, 1.2, 9)}
    given = {"audio": (random.uniform(-0.5, 0.5, 19_000).astype(np.float32), RATE), "video": face}
    words = {"words": times}
    if not model.config.reads_raw("text"):
        words["text_embeds"] = random.standard_normal((6, 5), dtype=np.float32)
    clips = [given | words, {"audio": given["audio"], "text": ""}]
    expected, found = (MultimodalEmotionRecognitionPipeline(part, processor)(clips) for part in (model, graph))
    for one, other in zip(expected, found, strict=True):
        scores = {item["label"]: item["score"] for item in one}
        assert {item["label"]: item["score"] for item in other} == pytest.approx(scores, abs=1e-5)


def check_refusals(graph):
    """What a graph cannot do, or would get wrong without a word."""
    with pytest.raises(ValueError, match="2 turns"):
        graph(input_values=torch.zeros(1, 2, 4000), turn_mask=torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="audio_embeds given, but the exported model takes input_values"):
        graph(audio_embeds=torch.zeros(1, 4, 6))
    with pytest.raises(ValueError, match=r"a clip of \d+ samples; the exported model needs"):
        graph(input_values=torch.ones(1, graph.fewest_samples - 1))
    padded_in_front = torch.arange(4000)[None] > 100
    with pytest.raises(ValueError, match="input_values_mask: padding before"):
        graph(input_values=torch.ones(1, 4000), input_values_mask=padded_in_front)
    with pytest.raises(ValueError, match="knows no enrolled speakers"):
        graph.speaker_statistics(SpeakerProfile(streams={"audio": object()}))
    assert graph.speaker_statistics(SpeakerProfile()) == {}


@pytest.mark.long
@pytest.mark.parametrize("exported", MAKERS, indirect=True)
def test_a_graph_is_the_model(exported, processor):
    model, graph = exported
    check_lengths(model, graph, processor)
    check_absence(model, graph, processor)
    check_pipeline(model, graph, processor)
    check_comparison(model, graph, processor)
    check_refusals(graph)
    assert 0 < graph.fewest_samples < 2000
    assert graph.to("cuda") is graph and graph.device == torch.device("cpu")


def test_a_model_that_was_not_trained_is_not_exported(precise, processor, tmp_path):
    model = copy.copy(precise)
    model.untrained_keys = ("classifier.weight", "classifier.bias")
    with pytest.raises(ValueError, match=r"2 weights \(classifier.weight, ...\) were never trained"):
        export_onnx(model, processor, tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"there is no model\.onnx in .*; write one with export_onnx"):
        OnnxModel(tmp_path)


# Lower precision


@pytest.fixture(scope="module")
def precise():
    return build(cme)


@torch.no_grad()
def logits_of(model, processor):
    return model(**pad_examples([clip(model, processor, 0), clip(model, processor, 1, 2.0, 6, 4)])).logits


def test_int8_is_a_copy_whose_logits_are_near(precise, processor):
    before = logits_of(precise, processor)
    quantized = quantize_int8(precise)
    kinds = {type(part).__module__ for part in quantized.modules() if "Linear" in type(part).__name__}
    assert any("quantized" in kind for kind in kinds)
    assert type(quantized.classifier) is nn.Linear and not any(
        "quantized" in type(p).__module__ for p in precise.modules()
    )
    after = logits_of(quantized, processor)
    assert 0 < (after - before).abs().max() < 0.1 * before.abs().max()
    assert torch.equal(logits_of(precise, processor), before)


def test_int8_leaves_alone_what_reads_weights_as_tensors(processor):
    config = CMEConfig(audio_config=WavLMConfig(**SPEECH), hidden_size=8)
    model = build(lambda: CMEForEmotionClassification(config))
    quantized = quantize_int8(model)
    assert type(quantized.audio_model.encoder.layers[0].attention.q_proj) is nn.Linear
    assert type(quantized.audio_model.encoder.layers[0].feed_forward.intermediate_dense) is not nn.Linear
    batch = {"input_values": torch.sin(torch.arange(16_000.0) ** 1.1)[None]}
    with torch.no_grad():
        torch.testing.assert_close(quantized(**batch).logits, model(**batch).logits, atol=0.1, rtol=0)


def test_bfloat16_is_of_the_forward_alone_and_its_logits_are_near(precise, processor):
    before = logits_of(precise, processor)
    model = copy.deepcopy(precise)
    assert autocast_bfloat16(model) is model
    after = logits_of(model, processor)
    assert after.dtype == torch.float32 and model.dtype == torch.float32
    assert 0 < (after - before).abs().max() < 0.1 * before.abs().max()
    assert inspect.signature(model.forward) == inspect.signature(precise.forward)


def test_a_copy_in_bfloat16_runs_on_its_own_weights(precise, processor):
    model = autocast_bfloat16(copy.deepcopy(precise))
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.classifier.bias += 1.0
    torch.testing.assert_close(logits_of(other, processor) - 1.0, logits_of(model, processor), atol=0.02, rtol=0)


def test_exporting_needs_onnx_only_when_asked():
    """`mer_hf.export` is imported where the extra is not installed too, for int8 and bfloat16."""
    assert "onnxruntime" not in vars(export) and "onnxscript" not in vars(export)
    assert "mer_hf.export" in sys.modules
