"""CME: temporal-alignment mean-max pooling with cross modality excitement.

H. Li, W. Ding, Z. Wu, Z. Liu: Learning Fine-Grained Cross Modality Excitement for Speech Emotion Recognition,
Interspeech 2021, https://arxiv.org/abs/2010.12733

    words  (b, words, d_t) -- Linear --> s (b, words, 256) --+- s' = s + s * sigmoid(W a) ---+
                                                             x                             concat, BiLSTM, max, Linear
    frames (b, frames, 128) - mean, max -> a (b, words, 256) +- a' = a + a * sigmoid(E2[w]) -+        (b, words, 512)
                       over each word's span
    face   (b, frames, d_v) - mean, max -> f (b, words, 256) joins in the same way

    paper / released code            here
    s_i, semantic vector of word i   `vectors["text"]`
    e_t, acoustic frame              `frames["audio"]`, after `frame_projections`
    M, word x frame alignment        `spans`, [start, end) in frames
    a_i, aligned acoustic vector     `vectors["audio"]`
    sigmoid(W_s a + b)               `CMEExcitement.gates["audio_to_text"]`
    sigmoid(E2[w])                   the gate vector at the end of `text_embeds` (WordTableConfig.gate_dim)

Departures
- Spans instead of a dense word x frame matrix: memory grows with words + frames, not words x frames x dim.
- A word without frames gets zeros and excites nothing; the released code lets -1e6 through.
- The last word's span ends with the utterance; in the released code it reaches into the padding.
- Without a word table (sub-word backbones) the text vector excites audio through a Linear: E2 needs word identities.
- Audio and face frames of another width than hidden / 2 are projected to it first.
- A face stream (not in the paper) is pooled over each word's time like audio; with three modalities each is re-scaled
  by the sum of the others' gates, x' = x + sum_n x * sigmoid(W_n y_n), which for two is the paper's equation.
- A clip without words is one unit that covers all of it; an absent modality excites nothing and adds nothing to the
  BiLSTM's input sum.
- `dropout` on the BiLSTM's input and before the classifier (0 in the released code) for corpora smaller than IEMOCAP.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .configuration_cme import CMEConfig
from .layers import MaskedRNN, masked_max, zero_masked
from .modeling_mer import EmotionOutput, MerPreTrainedModel, ModalitySequence


def pool_word_frames(frames: Tensor, word_spans: Tensor, parts: tuple[str, ...] = ("mean", "max")) -> Tensor:
    """Mean and maximum of the frames each word covers.

    frames (batch, time, dim), word_spans (batch, words, 2) int64, [start, end) -> (batch, words, len(parts) * dim).
    A word without frames gets zeros. Memory is that of the covered frames: no word x frame x dim tensor is made.
    """
    batch, words = word_spans.shape[:2]
    starts, ends = word_spans.flatten(0, 1).unbind(-1)  # (batch * words,)
    lengths = ends - starts
    first = lengths.cumsum(0) - lengths  # where each word's frames begin among all covered ones
    count = lengths.sum().item()
    torch._check(count >= 0)  # torch.export cannot know
    covered = torch.arange(count, device=frames.device)
    # The word of each covered frame: how many words have begun by then. `repeat_interleave` cannot be exported.
    begun = torch.zeros(count + 1, dtype=torch.long, device=frames.device)
    word = begun.index_add(0, first, torch.ones_like(first))[:-1].cumsum(0) - 1
    starts = starts + frames.shape[1] * (torch.arange(batch * words, device=frames.device) // words)
    values = frames.flatten(0, 1).index_select(0, (starts - first)[word] + covered)  # (covered, dim)
    pooled = torch.cat([POOLED[part](values, word, lengths) for part in parts], dim=-1)
    return pooled.view(batch, words, -1)


def _means(values: Tensor, word: Tensor, lengths: Tensor) -> Tensor:
    """values (n, dim), the word each belongs to (n,), lengths (words,) -> (words, dim), zeros for a word of none."""
    dtype = torch.promote_types(values.dtype, torch.float32)  # sums over many frames
    totals = values.new_zeros(lengths.shape[0], values.shape[-1], dtype=dtype)
    means = totals.index_add(0, word, values.to(dtype)) / lengths.clamp(min=1).unsqueeze(-1)
    return means.to(values.dtype)


def _maxima(values: Tensor, word: Tensor, lengths: Tensor) -> Tensor:
    """As `_means`."""
    zeros = values.new_zeros(lengths.shape[0], values.shape[-1])
    return zeros.scatter_reduce(0, word.unsqueeze(-1).expand_as(values), values, "amax", include_self=False)


POOLED = {"mean": _means, "max": _maxima}


class CMEExcitement(nn.Module):
    """x' = x + sum_n x * sigmoid(W_n y_n) over the other modalities n that are there, word by word.

    pairs: "audio_to_text" and so on; sizes: width of each modality's vectors; looked_up: pairs whose gate comes ready
    from a table (sigmoid(E2[w])) instead of through a Linear.
    """

    def __init__(self, pairs: tuple[str, ...], sizes: dict[str, int], looked_up: tuple[str, ...] = ()):
        super().__init__()
        self.pairs = {pair: tuple(pair.split("_to_")) for pair in pairs}
        self.looked_up = tuple(pair for pair in looked_up if pair in pairs)
        self.gates = nn.ModuleDict(
            {
                pair: nn.Linear(sizes[source], sizes[target])
                for pair, (source, target) in self.pairs.items()
                if pair not in looked_up
            }
        )

    def forward(
        self, vectors: dict[str, Tensor], present: dict[str, Tensor], looked_up: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """vectors {modality: (batch, words, dim)}, present {modality: (batch, words)}, looked_up {pair: gate vectors}
        -> the re-scaled vectors."""
        excited = dict(vectors)
        for pair, (source, target) in self.pairs.items():
            gate = looked_up[pair] if pair in looked_up else self.gates[pair](vectors[source])
            gate = zero_masked(gate.sigmoid(), present[source])  # who is not there excites nothing
            excited[target] = excited[target] + vectors[target] * gate
        return excited


@dataclass
class CMEOutput(EmotionOutput):
    """word_mask (batch, words): which units the words' vectors stand for; hidden_states (batch, words, 512)."""

    hidden_states: Tensor | None = None
    word_mask: Tensor | None = None


class CMEForEmotionClassification(MerPreTrainedModel):
    """Word-level fusion of speech, words and (optionally) face. See the module's docstring for the flow."""

    config_class = CMEConfig

    def __init__(self, config: CMEConfig):
        super().__init__(config)
        sizes = {m: config.hidden_size if m == "text" else config.pooled_size for m in config.modalities}
        self.frame_projections = nn.ModuleDict(
            {m: _project(config.width(m), config.frame_size) for m in config.modalities if m != "text"}
        )
        if "text" in config.modalities:
            self.text_projection = nn.Linear(config.width("text") - config.text_gate_dim, config.hidden_size)
        looked_up = ("text_to_audio",) if config.text_gate_dim else ()
        self.excitement = CMEExcitement(tuple(config.excitement), sizes, looked_up)
        self.rnn = MaskedRNN(sum(sizes.values()), config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(self.rnn.output_size, config.num_labels)
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
    ) -> CMEOutput:
        """Shapes and units of the inputs: `MerProcessor`. word_times (batch, words, 2) in seconds, labels (batch,).

        Raises:
            ValueError: words and frames without `word_times`, face frames without `vision_times`, times whose shape
                does not fit, padding before real frames, and what `MerPreTrainedModel.encode` refuses.
        """
        sequences = self.encode(
            input_values=input_values,
            input_values_mask=input_values_mask,
            audio_embeds=audio_embeds,
            audio_mask=audio_mask,
            input_ids=input_ids,
            attention_mask=attention_mask,
            word_ids=word_ids,
            num_words=None if word_times is None else word_times.shape[1],
            text_embeds=text_embeds,
            text_mask=text_mask,
            pixel_values=pixel_values,
            pixel_values_mask=pixel_values_mask,
            vision_embeds=vision_embeds,
            vision_mask=vision_mask,
            audio_speaker=audio_speaker,
            vision_speaker=vision_speaker,
        )
        self._check_times(sequences, word_times, vision_times)
        word_mask, alone = self._units(sequences, word_times)
        spans = {
            modality: self._spans(modality, sequence.mask, word_times, vision_times, word_mask, alone)
            for modality, sequence in sequences.items()
            if modality != "text"
        }

        vectors, present, looked_up = self._word_vectors(sequences, spans, word_mask)  # each (b, words, 256)
        vectors = self.excitement(vectors, present, looked_up)

        pairs = torch.cat([vectors[m] for m in self.config.modalities], dim=-1)  # (b, words, 512)
        hidden = self.rnn(self.dropout(pairs), word_mask)  # (b, words, 512)

        pooled = masked_max(hidden, word_mask)  # (b, 512)
        logits = self.classifier(self.dropout(pooled))  # (b, labels)
        loss = None if labels is None else self.classification_loss(logits, labels)
        return CMEOutput(loss=loss, logits=logits, hidden_states=hidden, word_mask=word_mask)

    def _check_times(
        self, sequences: dict[str, ModalitySequence], word_times: Tensor | None, vision_times: Tensor | None
    ) -> None:
        batch = len(next(iter(sequences.values())).mask)
        if word_times is not None and (word_times.dim() != 3 or word_times[:, 0].shape != (batch, 2)):
            raise ValueError(f"word_times must be ({batch}, words, 2), found {tuple(word_times.shape)}")
        if torch.compiler.is_exporting():  # what follows depends on values, and a graph has no branches
            return
        for modality, mask_name in (("audio", "audio_mask"), ("vision", "vision_mask or pixel_values_mask")):
            mask = sequences[modality].mask if modality in sequences else torch.ones(1, 1, dtype=torch.bool)
            if (mask[:, 1:] & ~mask[:, :-1]).any():
                raise ValueError(f"{mask_name} must have the real frames first, found padding before some")
        if "vision" in sequences and sequences["vision"].mask.any():
            self._check_vision_times(sequences["vision"].mask, word_times, vision_times)
        if "text" in sequences and self.config.word_level:
            has_text = sequences["text"].mask.any(dim=-1)
            untimed = has_text if word_times is None else has_text & ~_timed(word_times).any(dim=-1)
            self._refuse_untimed_words(sequences, untimed)
        if "text" in sequences and word_times is not None:
            self._check_every_word_is_timed(sequences["text"].mask, word_times)

    def _check_vision_times(self, mask: Tensor, word_times: Tensor | None, vision_times: Tensor | None) -> None:
        if vision_times is None and word_times is not None and self.config.word_level:
            raise ValueError("face frames without vision_times: give each frame its time in seconds")
        if vision_times is not None and vision_times.shape != mask.shape:
            raise ValueError(f"vision_times must be {tuple(mask.shape)}, found {tuple(vision_times.shape)}")

    @staticmethod
    def _check_every_word_is_timed(text_mask: Tensor, word_times: Tensor) -> None:
        texts, times = text_mask.shape[1], word_times.shape[1]
        too_many = _timed(word_times)[text_mask.any(dim=-1), texts:]
        if text_mask[:, times:].any() or too_many.any():
            raise ValueError(f"text has {texts} words but word_times {times}; give each word its time")

    def _units(self, sequences: dict[str, ModalitySequence], word_times: Tensor | None) -> tuple[Tensor, Tensor]:
        """Which units there are, (batch, words), and which clips are one unit for want of words, (batch,).

        Units are the words; where a clip has no text but word times, the timed stretches; else the whole clip.
        """
        any_sequence = next(iter(sequences.values()))
        timed = any_sequence.mask.new_zeros(len(any_sequence.mask), 1)
        if word_times is not None:
            timed = _timed(word_times)
        if "text" in sequences:
            text_mask = sequences["text"].mask
            has_text = text_mask.any(dim=-1, keepdim=True)
            words = max(text_mask.shape[1], timed.shape[1])
            timed = _pad_words(text_mask, words) | (_pad_words(timed, words) & ~has_text)
        alone = ~timed.any(dim=-1)
        first = torch.arange(timed.shape[1], device=timed.device) == 0
        return timed | (alone.unsqueeze(-1) & first), alone

    @staticmethod
    def _refuse_untimed_words(sequences: dict[str, ModalitySequence], untimed: Tensor) -> None:
        """untimed (batch,): clips none of whose words has a time. Their frames would belong to no word."""
        for modality, sequence in sequences.items():
            if modality != "text" and (sequence.mask.any(dim=-1) & untimed).any():
                raise ValueError(
                    f"words and {modality} without word_times: give each word its time (MerProcessor aligns a "
                    "transcript), or configure word_level=False"
                )

    def _spans(
        self,
        modality: str,
        mask: Tensor,
        word_times: Tensor | None,
        vision_times: Tensor | None,
        word_mask: Tensor,
        alone: Tensor,
    ) -> Tensor:
        """Frames of a modality each unit covers, (batch, words, 2), none for padding; (batch, 1, 2): all the same."""
        whole = torch.stack([torch.zeros_like(mask.sum(-1)), mask.sum(-1)], dim=-1).unsqueeze(1)  # (b, 1, 2)
        if word_times is None or not self.config.word_level:
            return whole
        if modality == "vision":
            if vision_times is None or vision_times.shape != mask.shape:  # there is no face, whatever its time
                vision_times = mask.new_zeros(mask.shape, dtype=torch.float)
            spans = self.vision_word_spans(word_times, vision_times, mask)
        else:
            spans = self.audio_word_spans(word_times, mask)
        spans = _pad_words(spans, word_mask.shape[1])
        return torch.where(alone.view(-1, 1, 1), whole, spans) * word_mask.unsqueeze(-1)

    def _word_vectors(
        self, sequences: dict[str, ModalitySequence], spans: dict[str, Tensor], word_mask: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """One vector a word and modality, where it is there, and the gates that come from a table."""
        vectors, present, looked_up = {}, {}, {}
        for modality, span in spans.items():
            frames = self.frame_projections[modality](_without_padding(*sequences[modality]))  # (b, frames, 128)
            pooled = pool_word_frames(frames, span, tuple(self.config.pooling.split("_")))
            present[modality] = word_mask & (span[..., 1] > span[..., 0])
            vectors[modality] = zero_masked(pooled.expand(-1, word_mask.shape[1], -1), present[modality])
        if "text" in sequences:
            present["text"] = _pad_words(sequences["text"].mask, word_mask.shape[1])
            embeds = _pad_words(sequences["text"].embeds, word_mask.shape[1])
            gate_dim = self.config.text_gate_dim
            words, gate = embeds.split([embeds.shape[-1] - gate_dim, gate_dim], dim=-1)
            vectors["text"] = zero_masked(self.text_projection(words), present["text"])
            looked_up = {pair: gate for pair in self.excitement.looked_up}
        return vectors, present, looked_up


def _project(width: int, frame_size: int) -> nn.Module:
    return nn.Identity() if width == frame_size else nn.Linear(width, frame_size)


def _without_padding(embeds: Tensor, mask: Tensor) -> Tensor:
    """embeds (batch, time, dim), real places first -> up to the longest row's end; an exported graph keeps all."""
    return embeds if torch.compiler.is_exporting() else embeds[:, : max(int(mask.sum(dim=-1).max()), 1)]


def _timed(word_times: Tensor) -> Tensor:
    """word_times (batch, words, 2) -> which have a duration, (batch, words)."""
    return word_times[..., 1] > word_times[..., 0]


def _pad_words(values: Tensor, words: int) -> Tensor:
    """values (batch, words', ...) extended along words with zeros or False."""
    missing = values.new_zeros(values.shape[0], words - values.shape[1], *values.shape[2:])
    return torch.cat([values, missing], dim=1)
