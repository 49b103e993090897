"""MMAN: multi-modal attention network over dialogues, with cLSTM-MMA and its uni-modal and fusion baselines.

Z. Pan, Z. Luo, J. Yang, H. Li: Multi-Modal Attention for Speech Emotion Recognition, Interspeech 2020,
https://arxiv.org/abs/2009.04107

    f_a, f_t, f_v (b, turns, d_m), one vector an utterance
      |- cLSTM-MMA: x_m = ReLU(Linear f_m), attention over the modalities, LSTM over turns ------ logits -+
      |- cLSTM of speech alone ------------------------------------------------------------------ logits -+- Linear
      |- cLSTM of text alone -------------------------------------------------------------------- logits -+  (16, 4)
      +- cLSTM of face alone -------------------------------------------------------------------- logits -+

    paper / circulating code                here
    x_m = Dropout(ReLU(Linear f_m))         `MMANMultimodalAttention.projections`
    s_{m,n} = cos(q_m, k_n)                 `scores`
    alpha_m = softmax_n s_{m,n}             `weights`, (b, turns, 3, 3)
    y_m = x_m + Dropout(sum_n alpha v_n)    `attended`, then the skip
    cLSTM                                   `MMANContextualLSTM`

Departures
- Each modality gets its own weights; the circulating code applies the first modality's to all three.
- Padded turns do not count in the loss (there as class 0), and any number of turns is taken.
- The fusion's Linear starts as the mean of the branches' logits: before its second stage the network is an ensemble.
- Training is in the paper's two stages when `freeze_branches` is set for the second; before that the branches learn
  from their own losses and the fusion from their detached logits, so one stage alone works too.
- Frozen branches are in evaluation mode (the circulating code keeps their dropout on).
- Utterance vectors of a backbone are the masked mean of its states; a single clip is a dialogue of one turn.
- An absent modality leaves the softmax over n, its own branch and the sum before the LSTM; the late fusion weighs the
  branches that remain up, so logits keep their scale.
"""

from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from transformers import initialization

from .configuration_mman import MMANConfig
from .layers import MaskedRNN, masked_mean, masked_softmax, zero_masked
from .modeling_mer import EmotionOutput, MerPreTrainedModel

Tensors = dict[str, Tensor]
Vectors = dict[str, Tensor]
"""{modality: (batch, turns, width)}; presence likewise {modality: (batch, turns)}, bool."""


class MMANContextualLSTM(nn.Module):
    """LSTM forward over the turns -> ReLU -> Linear -> ReLU -> Dropout -> Linear."""

    def __init__(self, config: MMANConfig, input_size: int, hidden_size: int, num_layers: int):
        super().__init__()
        self.rnn = MaskedRNN(input_size, hidden_size, num_layers, bidirectional=False, dropout=config.dropout)
        self.hidden = nn.Linear(hidden_size, config.classifier_size)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.classifier_size, config.num_labels)

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        """values (batch, turns, input_size), mask (batch, turns) -> logits (batch, turns, labels)."""
        states = self.rnn(values, mask)  # (b, turns, 300)
        hidden = self.hidden(states.relu()).relu()  # (b, turns, 200)
        return self.classifier(self.dropout(hidden))


class MMANMultimodalAttention(nn.Module):
    """y_m = x_m + Dropout(sum_n softmax_n(cos(q_m, k_n)) v_n), n over the modalities of the same utterance."""

    def __init__(self, config: MMANConfig):
        super().__init__()
        size, names = config.projection_size, config.modalities
        self.modalities = names
        self.projections = nn.ModuleDict({m: nn.Linear(config.width(m), size) for m in names})
        self.queries = nn.ModuleDict({m: nn.Linear(size, size) for m in names})
        self.keys = nn.ModuleDict({m: nn.Linear(size, size) for m in names})
        self.values = nn.ModuleDict({m: nn.Linear(size, size) for m in names})
        self.dropout = nn.Dropout(config.attention_dropout)
        self.score = cosine_scores if config.score == "cosine" else dot_scores
        self.skip = torch.add if config.skip == "add" else _concatenate
        self.output_size = size * len(names) * (1 if config.skip == "add" else 2)

    def forward(self, vectors: Vectors, present: Vectors) -> tuple[Tensor, Tensor]:
        """vectors and presence of each modality -> (b, turns, output_size), weights (b, turns, m, n)."""
        inputs = [self.dropout(self.projections[m](vectors[m]).relu()) for m in self.modalities]
        there = torch.stack([present[m] for m in self.modalities], dim=-1)  # (b, turns, n)
        queries = torch.stack([self.queries[m](x) for m, x in zip(self.modalities, inputs, strict=True)], dim=-2)
        keys = torch.stack([self.keys[m](x) for m, x in zip(self.modalities, inputs, strict=True)], dim=-2)
        values = torch.stack([self.values[m](x) for m, x in zip(self.modalities, inputs, strict=True)], dim=-2)

        scores = self.score(queries, keys)  # (b, turns, m, n)
        weights = masked_softmax(scores, there.unsqueeze(-2))
        attended = self.dropout(weights @ values)  # (b, turns, m, 150)

        outputs = self.skip(torch.stack(inputs, dim=-2), attended)
        return zero_masked(outputs, there).flatten(-2), weights * there.unsqueeze(-1)


def cosine_scores(queries: Tensor, keys: Tensor) -> Tensor:
    """(..., m, d), (..., n, d) -> cosine of each pair (..., m, n)."""
    return nn.functional.normalize(queries, dim=-1) @ nn.functional.normalize(keys, dim=-1).transpose(-1, -2)


def dot_scores(queries: Tensor, keys: Tensor) -> Tensor:
    """(..., m, d), (..., n, d) -> dot product of each pair over sqrt(d), (..., m, n)."""
    return queries @ keys.transpose(-1, -2) * queries.shape[-1] ** -0.5


def _concatenate(inputs: Tensor, attended: Tensor) -> Tensor:
    return torch.cat([inputs, attended], dim=-1)


class NetworkResult(NamedTuple):
    """What each network of this file returns for vectors, presence and the mask of real turns."""

    logits: Tensor
    """(batch, turns, labels)"""
    weights: Tensor | None = None
    """(batch, turns, modalities, modalities)"""
    branch_logits: Tensor | None = None
    """(batch, turns, branches, labels)"""
    branch_present: Tensor | None = None
    """(batch, turns, branches)"""


class MMANEarlyAttention(nn.Module):
    """cLSTM-MMA: multi-modal attention, then a one-layer contextual LSTM."""

    def __init__(self, config: MMANConfig):
        super().__init__()
        self.attention = MMANMultimodalAttention(config)
        self.clstm = MMANContextualLSTM(config, self.attention.output_size, config.hidden_size, num_layers=1)

    def forward(self, vectors: Vectors, present: Vectors, turns: Tensor) -> NetworkResult:
        attended, weights = self.attention(vectors, present)
        return NetworkResult(self.clstm(attended, turns), weights)


class MMANUnimodal(nn.Module):
    """A two-layer contextual LSTM over one modality's vectors; a turn without it is no step of the LSTM."""

    def __init__(self, config: MMANConfig, modality: str):
        super().__init__()
        self.modality = modality
        self.clstm = MMANContextualLSTM(config, config.width(modality), config.hidden_size, num_layers=2)

    def forward(self, vectors: Vectors, present: Vectors, turns: Tensor) -> NetworkResult:
        return NetworkResult(self.clstm(vectors[self.modality], turns & present[self.modality]))


class MMANLinear(nn.Module):
    """Baseline: Dropout -> Linear over one modality's vectors, every turn by itself."""

    def __init__(self, config: MMANConfig, modality: str):
        super().__init__()
        self.modality = modality
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.width(modality), config.num_labels)

    def forward(self, vectors: Vectors, present: Vectors, turns: Tensor) -> NetworkResult:
        return NetworkResult(self.classifier(self.dropout(vectors[self.modality])))


class MMANEarlyFusion(nn.Module):
    """Baseline: a two-layer contextual LSTM over the concatenated vectors."""

    def __init__(self, config: MMANConfig):
        super().__init__()
        size = sum(config.width(m) for m in config.modalities)
        self.clstm = MMANContextualLSTM(config, size, config.early_fusion_hidden_size, num_layers=2)

    def forward(self, vectors: Vectors, present: Vectors, turns: Tensor) -> NetworkResult:
        return NetworkResult(self.clstm(torch.cat(list(vectors.values()), dim=-1), turns))


class MMANLateFusion(nn.Module):
    """Baseline: the uni-modal networks' logits -> a one-layer contextual LSTM."""

    def __init__(self, config: MMANConfig):
        super().__init__()
        self.unimodal = nn.ModuleDict({m: MMANUnimodal(config, m) for m in config.modalities})
        size = config.num_labels * len(config.modalities)
        self.clstm = MMANContextualLSTM(config, size, config.hidden_size, num_layers=1)

    def forward(self, vectors: Vectors, present: Vectors, turns: Tensor) -> NetworkResult:
        results = {m: branch(vectors, present, turns) for m, branch in self.unimodal.items()}
        logits = torch.cat([zero_masked(result.logits, present[m]) for m, result in results.items()], dim=-1)
        return NetworkResult(self.clstm(logits, turns))


class LateLinear(nn.Module):
    """logits = Linear(concat of the branches' logits), scaled to the branches that are there.

    Starts as their mean. With B branches of which P are present the sum is multiplied by B / P, so that the logits,
    and with them the confidence, do not shrink because a modality is missing.
    """

    def __init__(self, num_branches: int, num_labels: int):
        super().__init__()
        self.num_branches, self.num_labels = num_branches, num_labels
        self.weight = nn.Parameter(torch.empty(num_labels, num_branches * num_labels))
        self.bias = nn.Parameter(torch.empty(num_labels))

    def start_as_mean(self) -> None:
        """Set the parameters so that the output is the mean of the branches' logits."""
        initialization.copy_(self.weight, torch.eye(self.num_labels).repeat(1, self.num_branches) / self.num_branches)
        initialization.zeros_(self.bias)

    def forward(self, logits: Tensor, present: Tensor) -> Tensor:
        """logits (b, turns, branches, labels), present (b, turns, branches) -> (b, turns, labels)."""
        scale = self.num_branches / present.sum(dim=-1, keepdim=True).clamp(min=1).to(logits.dtype)
        return nn.functional.linear(zero_masked(logits, present).flatten(-2), self.weight) * scale + self.bias


class MMANNetwork(nn.Module):
    """MMAN: cLSTM-MMA and the uni-modal networks, fused late by one Linear over their logits.

    Where the branches are trained by losses of their own, the fusion reads their logits without a gradient.
    """

    def __init__(self, config: MMANConfig):
        super().__init__()
        self.clstm_mma = MMANEarlyAttention(config)
        self.unimodal = nn.ModuleDict({m: MMANUnimodal(config, m) for m in config.modalities})
        self.fusion = LateLinear(1 + len(config.modalities), config.num_labels)

    def forward(self, vectors: Vectors, present: Vectors, turns: Tensor, trained_apart: bool = False) -> NetworkResult:
        early = self.clstm_mma(vectors, present, turns)
        alone = [branch(vectors, present, turns) for branch in self.unimodal.values()]
        logits = torch.stack([result.logits for result in (early, *alone)], dim=-2)  # (b, turns, 4, labels)
        there = torch.stack([present[m] for m in self.unimodal], dim=-1)
        there = torch.cat([there.any(dim=-1, keepdim=True), there], dim=-1)  # (b, turns, 4)
        fused = self.fusion(logits.detach() if trained_apart else logits, there)
        return NetworkResult(fused, early.weights, logits, there)


def make_network(config: MMANConfig) -> nn.Module:
    """The network `config.network` names, the whole or one of its parts."""
    classes = {
        "mman": MMANNetwork,
        "clstm_mma": MMANEarlyAttention,
        "early_fusion": MMANEarlyFusion,
        "late_fusion": MMANLateFusion,
        "unimodal": lambda config: MMANUnimodal(config, config.modalities[0]),
        "linear": lambda config: MMANLinear(config, config.modalities[0]),
    }
    return classes[config.network](config)


@dataclass
class MMANOutput(EmotionOutput):
    """For a single clip every tensor comes without the turns axis."""

    attentions: Tensor | None = None
    """(batch, turns, modalities, modalities): how much modality m takes from n; networks with attention only"""
    branch_logits: Tensor | None = None
    """(batch, turns, branches, labels) of MMAN: cLSTM-MMA, then each modality alone"""


class MMANForEmotionClassification(MerPreTrainedModel):
    """MMAN, its parts and its baselines over dialogues or single clips. See the module's docstring."""

    config_class = MMANConfig

    def __init__(self, config: MMANConfig):
        super().__init__(config)
        self.network = make_network(config)
        if config.freeze_branches and config.network != "mman":
            raise ValueError(f"network {config.network!r} has no branches to freeze; use network='mman'")
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, LateLinear):
            module.start_as_mean()

    def freeze_branches(self) -> None:
        """Second stage of MMAN: keep the trained sub-networks (and backbones) as they are, train their fusion alone.

        Raises:
            ValueError: the network is not "mman".
        """
        if self.config.network != "mman":
            raise ValueError(f"network {self.config.network!r} has no branches to freeze; use network='mman'")
        self.config.freeze_branches = True
        self._freeze()

    def _freeze(self) -> None:
        super()._freeze()
        if self.config.freeze_branches:
            self.requires_grad_(False)
            self.network.fusion.requires_grad_(True)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.config.freeze_branches:
            for part in self.children():
                part.eval()
        return self

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
        turn_mask: Tensor | None = None,
        audio_speaker: Tensor | None = None,
        vision_speaker: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool = False,
    ) -> MMANOutput:
        """Inputs as `MerProcessor` makes them, for a dialogue with a turns axis after the batch.

        turn_mask (batch, turns), True = real, default all; labels (batch, turns) padded with -100, or (batch,).
        `vision_times` and `word_times` are taken, so that all models read the same batches, and not used.

        Raises:
            ValueError: some inputs with a turns axis and some without, turns, `turn_mask` or `labels` that do not fit
                each other, and what `MerPreTrainedModel.encode` refuses.
        """
        inputs, turns = flatten_turns(
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
        sequences = self.encode(**inputs)
        vectors = {m: masked_mean(*s).unflatten(0, (-1, turns or 1)) for m, s in sequences.items()}  # (b, turns, d_m)
        present = {m: s.mask.any(dim=-1).unflatten(0, (-1, turns or 1)) for m, s in sequences.items()}
        if turn_mask is None:
            turn_mask = torch.ones_like(next(iter(present.values())))
        for name, value in (("turn_mask", turn_mask), ("labels", labels)):
            expected = next(iter(present.values())).shape
            if value is not None and value.shape not in (expected, expected[: 1 if turns is None else 2]):
                raise ValueError(f"{name} must be {tuple(expected)}, found {tuple(value.shape)}")
        turn_mask = turn_mask.reshape(next(iter(present.values())).shape)
        present = {m: there & turn_mask.bool() for m, there in present.items()}
        vectors = {m: zero_masked(vector, present[m]) for m, vector in vectors.items()}

        # A loss that is computed elsewhere (Trainer's label smoothing, a compute_loss of one's own) sees the fused
        # logits alone, and must reach the branches through them.
        apart = {"trained_apart": labels is not None} if isinstance(self.network, MMANNetwork) else {}
        result = self.network(vectors, present, turn_mask.bool(), **apart)
        loss = None if labels is None else self._loss(result, labels.reshape(turn_mask.shape))
        tensors = [result.logits, result.weights if output_attentions else None, result.branch_logits]
        if turns is None:
            tensors = [None if tensor is None else tensor.squeeze(1) for tensor in tensors]
        return MMANOutput(loss=loss, logits=tensors[0], attentions=tensors[1], branch_logits=tensors[2])

    def _loss(self, result: NetworkResult, labels: Tensor) -> Tensor:
        loss = self.classification_loss(result.logits, labels)
        if result.branch_logits is None or self.config.freeze_branches:
            return loss
        for index in range(result.branch_logits.shape[-2]):
            heard = labels.masked_fill(~result.branch_present[..., index], -100)
            loss = loss + self.classification_loss(result.branch_logits[..., index, :], heard)
        return loss


CLIP_DIMS = {
    "input_values": 2,
    "input_values_mask": 2,
    "audio_embeds": 3,
    "audio_mask": 2,
    "input_ids": 2,
    "attention_mask": 2,
    "word_ids": 2,
    "text_embeds": 3,
    "text_mask": 2,
    "pixel_values": 5,
    "pixel_values_mask": 2,
    "vision_embeds": 3,
    "vision_mask": 2,
    "audio_speaker": 3,
    "vision_speaker": 3,
}
"""Dimensions of each input for a batch of single clips; a dialogue has one more."""


def flatten_turns(**inputs: Tensor | None) -> tuple[Tensors, int | None]:
    """Inputs of dialogues (batch, turns, ...) -> of single clips (batch * turns, ...), and the number of turns.

    Inputs of single clips come back as they are, with None.
    """
    given = {name: value for name, value in inputs.items() if value is not None}
    extra = {name: value.dim() - CLIP_DIMS[name] for name, value in given.items()}
    if set(extra.values()) == {1}:
        turns = {name: tuple(value.shape[:2]) for name, value in given.items()}
        if len(set(turns.values())) > 1:
            raise ValueError(f"inputs must all have the same batch and turns; found {turns}")
        return {name: value.flatten(0, 1) for name, value in given.items()}, next(iter(given.values())).shape[1]
    wrong = {name: tuple(given[name].shape) for name, more in extra.items() if more}
    if wrong:
        raise ValueError(
            f"inputs must all have a turns axis after the batch, or none; found {wrong} among {list(given)}"
        )
    return given, None
