"""Learned alignment between speech frames and words.

H. Xu, H. Zhang, K. Han, Y. Wang, Y. Peng, X. Li: Learning Alignment for Multimodal Emotion Recognition from Speech,
Interspeech 2019, https://arxiv.org/abs/1909.05645

    frames (b, frames, d_a) - BiRNN -> H_s (b, frames, 200) --+ keys, values
                                                              attention -> A (b, words, 200) --+
    words  (b, words, d_t)  - BiRNN -> H_t (b, words, 200) ---+ queries                        concat, BiRNN, pool
                                                    |                                          |
                                                    +------------------------------------------+    then Linear
    face   (b, frames', d_v) - BiRNN -> H_v, aligned to the words by an attention of its own, concatenated likewise

    paper / released code                                      here
    s_i, h_j: hidden states of frame i, word j                 `states["audio"]`, `states["text"]`
    a_{j,i} = tanh(v . s_i + u . h_j + b), softmax over i      `AdditiveAlignment` (what the paper is said to use)
    MultiHead(q=H_t, k=H_s, v=H_s)                             `MultiHeadAlignment` (released code)
    u_j = tanh(G_j W + b) . c, z = sum_j softmax_j(u) G_j      `AttentionPooling` (released code)

Departures
- Keys and recurrences are masked; in the released code attention and recurrence run over the padding.
- Any number of words and frames; the released code cuts speech at 7 s while keeping its words.
- The additive score is v . tanh(W_1 s_i + W_2 h_j + b): second-hand accounts of the paper differ on where the vector
  stands, and a score tanh(v . s_i + u . h_j + b) in [-1, 1] cannot single out a few of hundreds of frames.
- torch's GRU has a bias in its recurrent part (1,800 parameters more in all than the released TensorFlow form).
- Face stream: a second, identical attention from words to face frames.
- `alignment_loss_weight` (0 = the paper) adds `alignment_loss` in training: from the emotion label alone, the
  attention of a model trained on a few thousand clips stayed within noise of uniform.
- The spectrogram front end takes the logarithm of the power; `frames_averaged` of its configuration shortens it.
- A clip without words is one unit that attends to all frames alike and adds no word state; an absent speech or face
  side adds nothing.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .configuration_learned_alignment import LearnedAlignmentConfig
from .layers import MaskedRNN, masked_max, masked_softmax, zero_masked
from .modeling_mer import EmotionOutput, MerPreTrainedModel, ModalitySequence


class AdditiveAlignment(nn.Module):
    """score_{j,i} = v . tanh(W_1 s_i + W_2 h_j + b), alpha_j = softmax_i, s~_j = sum_i alpha_{j,i} s_i."""

    at_once = 2**25
    """Numbers of a word x frame x d tensor that are made at a time (128 MB)."""

    def __init__(self, size: int, num_attention_heads: int):
        super().__init__()
        self.frame_projection = nn.Linear(size, size)
        self.word_projection = nn.Linear(size, size, bias=False)
        self.score = nn.Linear(size, 1, bias=False)

    def forward(self, words: Tensor, frames: Tensor, frame_mask: Tensor, attends: Tensor) -> tuple[Tensor, Tensor]:
        """words (b, words, d), frames (b, frames, d), frame_mask (b, frames), attends (b,) bool: False = every frame
        counts alike -> aligned (b, words, d), weights (b, words, frames)."""
        scores = self._scores(self.frame_projection(frames), self.word_projection(words))  # (b, words, frames)
        weights = masked_softmax(scores * attends.view(-1, 1, 1), frame_mask.unsqueeze(1))
        return weights @ frames, weights

    def _scores(self, keys: Tensor, queries: Tensor) -> Tensor:
        """keys (b, frames, d), queries (b, words, d) -> (b, words, frames), in as many parts as memory asks for.

        All words at once would take b x words x frames x d; the parts are computed again for their gradients.
        """
        if torch.compiler.is_exporting() or keys.numel() * queries.shape[1] <= self.at_once:
            return self._part(keys, queries)
        words = max(1, self.at_once // keys.numel())
        parts = [checkpoint(self._part, keys, part, use_reentrant=False) for part in queries.split(words, dim=1)]
        return torch.cat(parts, dim=1)

    def _part(self, keys: Tensor, queries: Tensor) -> Tensor:
        return self.score((keys.unsqueeze(1) + queries.unsqueeze(2)).tanh()).squeeze(-1)


class MultiHeadAlignment(nn.Module):
    """softmax(q k' / sqrt(d)) v in each head, heads concatenated and projected; weights averaged over heads."""

    def __init__(self, size: int, num_attention_heads: int):
        super().__init__()
        self.num_heads = num_attention_heads
        self.query = nn.Linear(size, size)
        self.key = nn.Linear(size, size)
        self.value = nn.Linear(size, size)
        self.output = nn.Linear(size, size)

    def forward(self, words: Tensor, frames: Tensor, frame_mask: Tensor, attends: Tensor) -> tuple[Tensor, Tensor]:
        """As `AdditiveAlignment.forward`."""
        query = self._heads(self.query(words))  # (b, heads, words, d / heads)
        key, value = self._heads(self.key(frames)), self._heads(self.value(frames))
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5  # (b, heads, words, frames)
        weights = masked_softmax(scores * attends.view(-1, 1, 1, 1), frame_mask[:, None, None])
        aligned = self.output((weights @ value).transpose(1, 2).flatten(2))  # (b, words, d)
        present = frame_mask.any(dim=-1, keepdim=True).expand(-1, words.shape[1])
        return zero_masked(aligned, present), weights.mean(dim=1)  # the projection's bias is not data

    def _heads(self, values: Tensor) -> Tensor:
        return values.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class AttentionPooling(nn.Module):
    """u_j = tanh(G_j W + b) . c, z = sum_j softmax_j(u) G_j."""

    def __init__(self, size: int):
        super().__init__()
        self.projection = nn.Linear(size, size)
        self.context = nn.Linear(size, 1, bias=False)

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        """values (batch, time, dim), mask (batch, time) -> (batch, dim)."""
        scores = self.context(self.projection(values).tanh()).squeeze(-1)
        return (masked_softmax(scores, mask).unsqueeze(-2) @ values).squeeze(-2)


class MaxPooling(nn.Module):
    """Maximum over the real places."""

    def __init__(self, size: int):
        super().__init__()

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        """values (batch, time, dim), mask (batch, time) -> (batch, dim)."""
        return masked_max(values, mask)


POOLING_CLASSES = {"max": MaxPooling, "attention": AttentionPooling}


class AlignedFusion(nn.Module):
    """Words attend to the frames of the other modalities; a recurrence over the words reads all sides together."""

    def __init__(self, config: LearnedAlignmentConfig, size: int):
        super().__init__()
        alignment = {"additive": AdditiveAlignment, "multihead": MultiHeadAlignment}[config.alignment]
        self.others = [m for m in config.modalities if m != "text"]
        self.uses_text = "text" in config.modalities
        self.alignments = nn.ModuleDict({m: alignment(size, config.num_attention_heads) for m in self.others})
        self.dropout = nn.Dropout(config.dropout)
        self.rnn = MaskedRNN(size * len(config.modalities), config.hidden_size, cell=config.rnn)
        self.pooling = POOLING_CLASSES[config.pooling](size)
        self.output_size = size

    def forward(self, states: dict[str, ModalitySequence]) -> tuple[Tensor, dict[str, Tensor]]:
        """states {modality: (batch, time, size) with mask} -> pooled (batch, size), weights {modality: (b, w, t)}."""
        words, word_mask, has_words = self._words(states)
        sides, weights = [], {}
        for modality in self.others:
            frames = states[modality]
            aligned, weights[modality] = self.alignments[modality](words, *frames, has_words)  # (b, words, 200)
            sides.append(self.dropout(aligned))
        sides += [words] if self.uses_text else []
        hidden = self.rnn(torch.cat(sides, dim=-1), word_mask)  # (b, words, 200)
        return self.pooling(hidden, word_mask), weights

    def _words(self, states: dict[str, ModalitySequence]) -> tuple[Tensor, Tensor, Tensor]:
        if self.uses_text:
            words, mask = states["text"]
        else:
            frames = states[self.others[0]].embeds
            words, mask = frames.new_zeros(len(frames), 1, frames.shape[-1]), frames.new_zeros(len(frames), 1).bool()
        has_words = mask.any(dim=-1)
        first = torch.arange(mask.shape[1], device=mask.device) == 0
        return words, mask | (~has_words.unsqueeze(-1) & first), has_words  # a clip without words is one unit


def alignment_loss(weights: Tensor, inside: Tensor) -> Tensor:
    """L = mean_j -log sum_{i in word j} alpha_{j,i}: attention that a word spends outside its own time is lost.

    weights (b, words, frames), inside (b, words, frames) bool; words without a frame do not count -> ().
    """
    spent = (weights * inside).sum(dim=-1)
    timed = inside.any(dim=-1)
    loss = -spent.clamp(min=1e-6).log()
    return torch.where(timed, loss, loss.new_zeros(())).sum() / timed.sum().clamp(min=1)


class PooledFusion(nn.Module):
    """Ablation: each side pooled by itself, no alignment."""

    def __init__(self, config: LearnedAlignmentConfig, size: int):
        super().__init__()
        self.poolings = nn.ModuleDict({m: POOLING_CLASSES[config.pooling](size) for m in config.modalities})
        self.output_size = size * len(config.modalities)

    def forward(self, states: dict[str, ModalitySequence]) -> tuple[Tensor, dict[str, Tensor]]:
        """As `AlignedFusion.forward`, pooled (batch, size * modalities), without weights."""
        return torch.cat([pooling(*states[m]) for m, pooling in self.poolings.items()], dim=-1), {}


@dataclass
class LearnedAlignmentOutput(EmotionOutput):
    """Attention of each word over the frames, where `output_attentions` asks for it."""

    audio_alignment: Tensor | None = None
    """(batch, words, audio frames); a row sums to 1, or to 0 where there is no speech"""
    vision_alignment: Tensor | None = None
    """(batch, words, face frames)"""


class LearnedAlignmentForEmotionClassification(MerPreTrainedModel):
    """Word-level fusion with attention for alignment; needs no word times. See the module's docstring."""

    config_class = LearnedAlignmentConfig

    def __init__(self, config: LearnedAlignmentConfig):
        super().__init__(config)
        size = 2 * config.hidden_size
        self.encoders = nn.ModuleDict(
            {m: MaskedRNN(config.width(m), config.hidden_size, cell=config.rnn) for m in config.modalities}
        )
        fusion = PooledFusion if config.alignment == "none" else AlignedFusion
        self.fusion = fusion(config, size)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(self.fusion.output_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_values: Tensor | None = None,
        input_values_mask: Tensor | None = None,
        audio_embeds: Tensor | None = None,
        audio_mask: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        word_ids: Tensor | None = None,
        text_embeds: Tensor | None = None,
        text_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_values_mask: Tensor | None = None,
        vision_embeds: Tensor | None = None,
        vision_mask: Tensor | None = None,
        vision_times: Tensor | None = None,
        word_times: Tensor | None = None,
        audio_speaker: Tensor | None = None,
        vision_speaker: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool = False,
    ) -> LearnedAlignmentOutput:
        """Shapes and units of the inputs: `MerProcessor`. labels (batch,). `vision_times` and
        `word_times` are taken, so that all models read the same batches; only `alignment_loss_weight` uses them.

        Raises:
            ValueError: what `MerPreTrainedModel.encode` refuses.
        """
        sequences = self.encode(
            input_values=input_values,
            input_values_mask=input_values_mask,
            audio_embeds=audio_embeds,
            audio_mask=audio_mask,
            input_ids=input_ids,
            attention_mask=attention_mask,
            word_ids=word_ids,
            text_embeds=text_embeds,
            text_mask=text_mask,
            pixel_values=pixel_values,
            pixel_values_mask=pixel_values_mask,
            vision_embeds=vision_embeds,
            vision_mask=vision_mask,
            audio_speaker=audio_speaker,
            vision_speaker=vision_speaker,
        )
        states = {
            m: ModalitySequence(self.dropout(self.encoders[m](embeds, mask)), mask)
            for m, (embeds, mask) in sequences.items()
        }
        pooled, weights = self.fusion(states)
        logits = self.classifier(self.dropout(pooled))  # (b, labels)
        loss = None if labels is None else self.classification_loss(logits, labels)
        taught = self.training and self.config.alignment_loss_weight and states["text"].mask.any()
        if loss is not None and taught:
            inside = self.frames_inside_words(word_times, states)
            loss = loss + self.config.alignment_loss_weight * alignment_loss(weights["audio"], inside)
        weights = weights if output_attentions else {}
        return LearnedAlignmentOutput(
            loss=loss,
            logits=logits,
            audio_alignment=weights.get("audio"),
            vision_alignment=weights.get("vision"),
        )

    def frames_inside_words(self, word_times: Tensor | None, states: dict[str, ModalitySequence]) -> Tensor:
        """Which speech frames have their middle in each word's time, (b, words, frames) bool.

        Raises:
            ValueError: no word_times, or not one for each word.
        """
        text, audio = states["text"], states["audio"]
        if word_times is None or word_times.shape[1] != text.mask.shape[1]:
            raise ValueError(
                f"alignment_loss_weight is {self.config.alignment_loss_weight}: training needs word_times of every "
                "word, (batch, words, 2) in seconds"
            )
        places = torch.arange(audio.mask.shape[1], device=audio.mask.device)
        middles = places * self.config.audio_frame_seconds + self.config.audio_frame_middle
        inside = (middles >= word_times[..., :1]) & (middles < word_times[..., 1:])
        return inside & audio.mask.unsqueeze(1) & text.mask.unsqueeze(-1)
