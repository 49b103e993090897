"""Tiny models and clips for the tests of models, and recurrences written out step by step from their equations."""

import warnings

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    Dinov2Config,
    HubertConfig,
    PreTrainedConfig,
    ResNetConfig,
    RobertaConfig,
    ViTConfig,
    Wav2Vec2Config,
    WavLMConfig,
)

from mer_hf import (
    CMEForEmotionClassification,
    FilterbankConfig,
    LearnedAlignmentForEmotionClassification,
    MMANForEmotionClassification,
    SpectrogramConfig,
    WordTableConfig,
)
from mer_hf.models.batching import pad_examples
from mer_hf.models.layers import MaskedRNN
from mer_hf.models.modeling_mer import MerPreTrainedModel

WIDTHS = {"audio": 6, "text": 5, "vision": 4}
WIDTH_FIELDS = {f"{modality}_embed_dim": width for modality, width in WIDTHS.items()}
HEAD_SIZES = {
    "cme": {"hidden_size": 8},
    "learned_alignment": {"hidden_size": 8, "num_attention_heads": 4},
    "mman": {"hidden_size": 8, "projection_size": 6, "classifier_size": 7, "early_fusion_hidden_size": 9},
}
CLASSES = {
    "cme": CMEForEmotionClassification,
    "learned_alignment": LearnedAlignmentForEmotionClassification,
    "mman": MMANForEmotionClassification,
}
VARIANTS = {
    "cme": ("cme", {}),
    "cme_utterance": ("cme", {"word_level": False, "pooling": "max"}),
    "cme_no_excitement": ("cme", {"excitement": [], "pooling": "mean"}),
    "additive": ("learned_alignment", {}),
    "multihead": ("learned_alignment", {"rnn": "gru", "alignment": "multihead", "pooling": "attention"}),
    "pooled": ("learned_alignment", {"alignment": "none", "pooling": "attention"}),
    "mman": ("mman", {}),
    "mman_frozen": ("mman", {"freeze_branches": True}),
    "clstm_mma": ("mman", {"network": "clstm_mma"}),
    "clstm_mma_dot": ("mman", {"network": "clstm_mma", "score": "dot", "skip": "concat"}),
    "early_fusion": ("mman", {"network": "early_fusion"}),
    "late_fusion": ("mman", {"network": "late_fusion"}),
}
"""Every head over three modalities: model_type and what its configuration says beyond the sizes."""


def make_config(model_type: str, **values) -> PreTrainedConfig:
    """The configuration with a tiny head."""
    return CLASSES[model_type].config_class(**HEAD_SIZES[model_type] | values)


def make_model(model_type: str, **values) -> MerPreTrainedModel:
    """A tiny head in evaluation mode whose weights are large enough for every part to show in the logits."""
    return randomize(CLASSES[model_type](make_config(model_type, **values)).eval())


def make_variant(name: str, **values) -> MerPreTrainedModel:
    """One of VARIANTS over precomputed sequences of all three modalities."""
    model_type, overrides = VARIANTS[name]
    return make_model(model_type, **WIDTH_FIELDS | overrides | values)


@torch.no_grad()
def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Normal weights of deviation .4, so that nothing stays at zero or at a mean."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return model


def make_clip(seed: int, frames: int = 40, words: int = 4, faces: int = 3, drop: tuple[str, ...] = ()) -> dict:
    """An example with precomputed sequences; the words follow each other over the frames' 10 ms grid."""
    generator = torch.Generator().manual_seed(seed)
    edges = torch.linspace(0, frames, words + 1).round() / 100
    clip = {
        "audio_embeds": torch.randn(frames, WIDTHS["audio"], generator=generator),
        "text_embeds": torch.randn(words, WIDTHS["text"], generator=generator),
        "word_times": torch.stack([edges[:-1], edges[1:]], dim=-1),
        "vision_embeds": torch.randn(faces, WIDTHS["vision"], generator=generator),
        "vision_times": torch.linspace(0, frames / 100, faces),
        "label": seed % 4,
    }
    return {name: value for name, value in clip.items() if name not in drop}


def odd_clips() -> dict[str, dict]:
    """Clips in which something is missing or as short as can be, by what is odd about them."""
    silent_word = make_clip(5)
    silent_word["word_times"] = torch.tensor([[0.0, 0.1], [0.1, 0.1], [0.0, 0.0], [0.3, 0.4]])
    late_word = make_clip(6)
    late_word["word_times"][-1] = torch.tensor([7.0, 8.0])  # after the last frame
    return {
        "complete": make_clip(0),
        "long": make_clip(1, frames=90, words=9, faces=8),
        "no audio": make_clip(2, drop=("audio_embeds",)),
        "no text": make_clip(3, drop=("text_embeds",)),
        "no text, no times": make_clip(11, drop=("text_embeds", "word_times")),
        "no face": make_clip(4, drop=("vision_embeds", "vision_times")),
        "words without frames": silent_word,
        "a word after the end": late_word,
        "one of each": make_clip(7, frames=1, words=1, faces=1),
        "audio alone": make_clip(8, drop=("text_embeds", "word_times", "vision_embeds", "vision_times")),
        "text alone": make_clip(9, drop=("audio_embeds", "word_times", "vision_embeds", "vision_times")),
        "face alone": make_clip(10, drop=("audio_embeds", "text_embeds", "word_times")),
    }


def logits_of(model: nn.Module, clips: list[dict], **inputs) -> Tensor:
    """The logits of a batch of clips, without gradients."""
    with torch.no_grad():
        return model(**pad_examples(clips), **inputs).logits


def assert_same(found: Tensor, expected: Tensor) -> None:
    """Equal but for rounding: which kernel multiplies depends on where in memory the weights lie, on some CPUs."""
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def speech(seed: int, samples: int) -> Tensor:
    """A loud random waveform (samples,) in [-1, 1]."""
    return torch.rand(samples, generator=torch.Generator().manual_seed(seed)) * 2 - 1


TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
TINY_SPEECH = TINY | {
    "conv_dim": (8, 8),
    "conv_kernel": (20, 20),
    "conv_stride": (20, 16),  # 320 samples a frame, as the real ones
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}
LAYER_NORM = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
TINY_IMAGE = TINY | {"image_size": 8, "patch_size": 4, "num_channels": 3}

AUDIO_CONFIGS = {
    "wav2vec2_group": lambda: Wav2Vec2Config(**TINY_SPEECH),
    "wav2vec2_layer": lambda: Wav2Vec2Config(**TINY_SPEECH, **LAYER_NORM),
    "hubert": lambda: HubertConfig(**TINY_SPEECH),
    "hubert_layer": lambda: HubertConfig(**TINY_SPEECH, **LAYER_NORM),
    "wavlm": lambda: WavLMConfig(**TINY_SPEECH),
    "wavlm_layer": lambda: WavLMConfig(**TINY_SPEECH, **LAYER_NORM),
    "mer_filterbank": lambda: FilterbankConfig(conv_dims=(8, 8, 8)),
    "mer_spectrogram": lambda: SpectrogramConfig(hidden_size=8),
}
TEXT_CONFIGS = {
    "bert": lambda: BertConfig(**TINY, vocab_size=30, max_position_embeddings=20),
    "roberta": lambda: RobertaConfig(**TINY, vocab_size=30, max_position_embeddings=20, pad_token_id=1),
    "mer_word_table": lambda: WordTableConfig(vocab_size=30, embedding_dim=7),
}
VISION_CONFIGS = {
    "vit": lambda: ViTConfig(**TINY_IMAGE),
    "dinov2": lambda: Dinov2Config(**{k: v for k, v in TINY_IMAGE.items() if k != "intermediate_size"}),
    "resnet": lambda: ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic"),
}


def raw_clip(seed: int, samples: int = 8000, tokens: int = 4, faces: int = 2, drop: tuple[str, ...] = ()) -> dict:
    """An example of raw input for the tiny backbones; two tokens make a word, the first token belongs to none."""
    generator = torch.Generator().manual_seed(seed)
    words = 1 + (tokens - 2) // 2
    edges = torch.linspace(0, samples / 16_000, words + 1)
    clip = {
        "input_values": speech(seed, samples),
        "input_ids": torch.randint(3, 30, (tokens,), generator=generator),
        "word_ids": torch.tensor([-1] + [index // 2 for index in range(tokens - 1)]),
        "word_times": torch.stack([edges[:-1], edges[1:]], dim=-1),
        "pixel_values": torch.randn(faces, 3, 8, 8, generator=generator),
        "vision_times": torch.linspace(0, samples / 16_000, faces),
        "label": seed % 4,
    }
    return {name: value for name, value in clip.items() if name not in drop}


def quiet_build(build, *args, **kwargs):
    """Call `build`, without the deprecation warnings that backbones raise when they are built."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return build(*args, **kwargs)


def lstm_steps(layer: nn.LSTM, inputs: list[Tensor]) -> list[Tensor]:
    """One direction of an LSTM, step by step: c = f c + i g, h = o tanh(c)."""
    hidden = cell = torch.zeros(layer.hidden_size)
    states = []
    for value in inputs:
        gates = layer.weight_ih_l0 @ value + layer.bias_ih_l0 + layer.weight_hh_l0 @ hidden + layer.bias_hh_l0
        i, f, g, o = gates.chunk(4)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        hidden = o.sigmoid() * cell.tanh()
        states.append(hidden)
    return states


def gru_steps(layer: nn.GRU, inputs: list[Tensor]) -> list[Tensor]:
    """One direction of a GRU, step by step: h = (1 - z) n + z h."""
    hidden = torch.zeros(layer.hidden_size)
    states = []
    for value in inputs:
        reset_i, update_i, new_i = (layer.weight_ih_l0 @ value + layer.bias_ih_l0).chunk(3)
        reset_h, update_h, new_h = (layer.weight_hh_l0 @ hidden + layer.bias_hh_l0).chunk(3)
        reset, update = (reset_i + reset_h).sigmoid(), (update_i + update_h).sigmoid()
        hidden = (1 - update) * (new_i + reset * new_h).tanh() + update * hidden
        states.append(hidden)
    return states


def rnn_steps(rnn: MaskedRNN, inputs: list[Tensor]) -> list[Tensor]:
    """All layers and directions of a MaskedRNN over one row's real places."""
    for index, layer in enumerate(rnn.forward_layers):
        steps = lstm_steps if isinstance(layer, nn.LSTM) else gru_steps
        outputs = steps(layer, inputs)
        if len(rnn.backward_layers):
            backward = steps(rnn.backward_layers[index], inputs[::-1])[::-1]
            outputs = [torch.cat(pair) for pair in zip(outputs, backward, strict=True)]
        inputs = outputs
    return inputs
