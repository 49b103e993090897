"""Late fusion: models that decide by themselves, each calibrated, and the weighted mean of their log-probabilities.

The logarithmic opinion pool (C. Genest, J. V. Zidek: Combining Probability Distributions, Statistical Science 1(1),
1986), the product rule of J. Kittler, M. Hatef, R. P. W. Duin, J. Matas: On Combining Classifiers, IEEE TPAMI 20(3),
1998. The temperatures are those of C. Guo et al. 2017, https://arxiv.org/abs/1706.04599.

    inputs --+- branch 1 -- logits z_1 (b, labels) -- log softmax(z_1 / T_1) -+
             |   ...                                                          +- sum_k s_k log p_k = logits (b, labels)
             +- branch K -- logits z_K (b, labels) -- log softmax(z_K / T_K) -+
                            s_k = w_k / sum of the w of the branches that have a vote on this clip, else 0;
                                  w_k itself where `config.independent`

    symbol      here
    T_k         `config.branches[k].temperature`, by `mer_hf.calibration.fit_temperature`; 1 = as trained
    w_k         `config.weights`, equal by default
    a vote      `branch_mask`: the clip has one of the branch's modalities
    z_k         `branch_logits`, before T_k

Choices
- Log-probabilities are averaged, not probabilities: given the emotion, words, voice and face are nearer to independent
  than to the same, and for independent branches the product is the rule (Kittler et al., equation 7). On the
  validation sides of RAVDESS's five folds, logistic regressions of sound and of face, calibrated on half of the
  speakers, had a UA of 68.1 % this way on the other half and 66.2 % with the mean of probabilities (49.8 and 60.1 %
  alone).
- Equal weights: calibration says already how much a branch knows.
- The shares of a clip sum to 1, so that a modality more does not by itself make surer, and the fused scores are too
  timid for independent branches: fit `config.calibration_temperature` to the fused logits as to those of any model. No
  one temperature is right for one modality and for three, so where nothing can be fitted there is `independent`: the
  weights as they are, the product rule proper. On the validation sides of RAVDESS's folds calibrated voice and face
  had a log loss of 0.73 nats this way, 0.84 with shares that sum to 1, and 0.72 with the best temperature.
- A clip on which no branch has a vote gets zeros, the uniform distribution.
- The loss is the fused scores' and, of each branch that is not frozen, its own on the clips it has a vote on: late
  fusion is of models that can stand alone, and parts of MMAN learn from its own loss only.
- It is the one model that imports others: `BRANCH_CLASSES` names them, because what is not imported by name is not
  copied along with a checkpoint, and AutoModel does not find it where this package is not installed.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from os import PathLike
from typing import Any, Self

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from .batching import IGNORED_LABEL
from .configuration_late_fusion import LateFusionConfig
from .modeling_cme import CMEForEmotionClassification
from .modeling_learned_alignment import LearnedAlignmentForEmotionClassification
from .modeling_mer import RAW_MASK_NAMES, RAW_NAMES, EmotionOutput, MerPreTrainedModel
from .modeling_mman import MMANForEmotionClassification, flatten_turns

BRANCH_CLASSES = {
    "cme": CMEForEmotionClassification,
    "learned_alignment": LearnedAlignmentForEmotionClassification,
    "mman": MMANForEmotionClassification,
}
"""The models that can be a branch, by `model_type`."""
FIELDS = {
    "audio": ("input_values", "input_values_mask", "audio_embeds", "audio_mask"),
    "text": ("input_ids", "attention_mask", "word_ids", "text_embeds", "text_mask"),
    "vision": ("pixel_values", "pixel_values_mask", "vision_embeds", "vision_mask", "vision_times"),
}
"""The inputs that belong to a modality; `word_times` goes to every branch."""
TIMES = {"vision_times": 2, "word_times": 3}
"""Dimensions of the inputs that `flatten_turns` does not know, for a batch of single clips."""

Tensors = dict[str, Tensor]


def fuse_logits(
    branch_logits: Tensor | ArrayLike,
    temperatures: Tensor | ArrayLike,
    weights: Tensor | ArrayLike | None = None,
    mask: Tensor | ArrayLike | None = None,
    independent: bool = False,
) -> Tensor:
    """sum_k s_k log softmax(z_k / T_k), s_k = w_k / the sum of w over the branches that have a vote; else s_k = 0.

    independent: s_k = w_k. Without a sum to divide by, the fused scores are as sure as all branches together.

    branch_logits (branches, batch, labels), -inf for a label that a branch rules out: then all do; temperatures and
    weights (branches,), None = all alike; mask (branches, batch), True = has a vote, None = all have -> (batch,
    labels), zeros where none has. What stands in the logits of a branch without a vote, NaN too, reaches nothing.

    Raises:
        ValueError: shapes that do not fit, a temperature that is not above 0, a weight below 0.
    """
    branch_logits = torch.as_tensor(branch_logits)
    temperatures = [float(temperature) for temperature in temperatures]
    weights = [1.0] * len(temperatures) if weights is None else [float(weight) for weight in weights]
    mask = torch.ones(branch_logits.shape[:2]) if mask is None else mask
    mask = torch.as_tensor(mask, device=branch_logits.device).bool()
    _check_fusion(branch_logits, temperatures, weights, mask)
    dtype = torch.promote_types(branch_logits.dtype, torch.float32)

    votes = branch_logits.new_tensor(weights, dtype=dtype).unsqueeze(-1) * mask  # (branches, batch)
    shares = votes if independent else votes / votes.sum(dim=0).clamp(min=torch.finfo(dtype).tiny)
    heard = branch_logits.masked_fill(shares.eq(0).unsqueeze(-1), 0.0)  # 0 * NaN and 0 * -inf would be NaN
    scaled = heard / branch_logits.new_tensor(temperatures, dtype=dtype).view(-1, 1, 1)
    fused = (scaled.log_softmax(dim=-1) * shares.unsqueeze(-1)).sum(dim=0)  # (batch, labels)
    return fused.to(branch_logits.dtype)


def _check_fusion(branch_logits: Tensor, temperatures: list[float], weights: list[float], mask: Tensor) -> None:
    if branch_logits.dim() != 3 or mask.shape != branch_logits.shape[:2]:
        raise ValueError(
            f"branch_logits {tuple(branch_logits.shape)} must be (branches, batch, labels) and mask "
            f"{tuple(mask.shape)} (branches, batch)"
        )
    if not len(temperatures) == len(weights) == len(branch_logits):
        raise ValueError(
            f"{len(branch_logits)} branches, {len(temperatures)} temperatures and {len(weights)} weights; one each"
        )
    if not all(0 < temperature < math.inf for temperature in temperatures):
        raise ValueError(f"temperatures must be above 0 and finite, found {temperatures}")
    if not all(0 <= weight < math.inf for weight in weights):
        raise ValueError(f"weights must be 0 or more and finite, found {weights}")


@dataclass
class LateFusionOutput(EmotionOutput):
    """What each branch said; for a dialogue every tensor has one more axis, turns, after the batch."""

    branch_logits: Tensor | None = None
    """(batch, branches, labels), as each branch gives them, before its temperature"""
    branch_mask: Tensor | None = None
    """(batch, branches), bool: whether the branch has a vote"""


class LateFusionForEmotionClassification(MerPreTrainedModel):
    """Trained models as branches over one set of inputs. See the module's docstring."""

    config_class = LateFusionConfig

    def __init__(self, config: LateFusionConfig):
        super().__init__(config)
        taken = [name for name in config.branch_names if hasattr(nn.ModuleDict(), name)]
        if taken:
            raise ValueError(f"branch_names {taken} cannot name parts of a torch module; choose others")
        self.branches = nn.ModuleDict(
            {
                name: BRANCH_CLASSES[branch.model_type](branch)
                for name, branch in zip(config.branch_names, config.branches, strict=True)
            }
        )
        self.post_init()

    @classmethod
    def from_branches(cls, branches: Mapping[str, str | PathLike | PreTrainedModel], **config_values: Any) -> Self:
        """Fuse trained models: `from_branches({"speech": model, "face": "folder"}, freeze_branches=["face"])`.

        Each is a Hub id, a folder or a loaded model, which becomes part of the fusion and is not copied; its
        configuration's `temperature` calibrates it. The rest are fields of the configuration.

        Raises:
            ValueError: a branch with weights that its checkpoint did not have, and what `LateFusionConfig` refuses.
        """
        loaded = {
            name: source if isinstance(source, nn.Module) else AutoModel.from_pretrained(source)
            for name, source in branches.items()
        }
        for name, branch in loaded.items():
            untrained = getattr(branch, "untrained_keys", ())
            if untrained:
                raise ValueError(
                    f"branch {name!r}: {len(untrained)} weights ({untrained[0]}, ...) are not in its checkpoint; "
                    "fine-tune it before it is fused"
                )
        configs = [branch.config for branch in loaded.values()]
        model = cls(cls.config_class(branch_names=list(loaded), branches=configs, **config_values))
        for name, branch in loaded.items():
            model.branches[name] = branch
        model._freeze()
        return model

    def fit_standardizers(self, batches: Callable[[], Iterable[Mapping[str, Tensor]]]) -> None:
        """As in `MerPreTrainedModel`, those of every branch that is not frozen."""
        for name, branch in self.branches.items():
            if name not in self.config.freeze_branches:
                branch.fit_standardizers(partial(self._batches_of, branch, batches))

    def _batches_of(self, branch: MerPreTrainedModel, batches: Callable) -> Iterator[Tensors]:
        for batch in batches():
            inputs = {n: value for n, value in batch.items() if n not in ("labels", "turn_mask") and value is not None}
            yield self._branch_inputs(branch, *self._clips(inputs), batch.get("turn_mask"))[0]

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for name in self.config.freeze_branches:
            self.branches[name].eval()
        return self

    def _freeze(self) -> None:
        for name, branch in self.branches.items():
            branch._freeze()
            if name in self.config.freeze_branches:
                branch.requires_grad_(False)
        self.train(self.training)

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
        labels: Tensor | None = None,
    ) -> LateFusionOutput:
        """Inputs as `MerProcessor` makes them, for a dialogue with a turns axis after the batch.

        Each branch gets those of its modalities; without any in the whole batch it runs on nothing, so that its
        parameters take part in every step. turn_mask (batch, turns), True = real; labels (batch,) or (batch, turns),
        -100 counts for nothing.

        Raises:
            ValueError: nothing given, or what no branch or not every branch that has the modality can read; labels
                that do not fit; and, naming the branch, what that one refuses.
        """
        inputs = {
            "input_values": input_values,
            "input_values_mask": input_values_mask,
            "audio_embeds": audio_embeds,
            "audio_mask": audio_mask,
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "word_ids": word_ids,
            "text_embeds": text_embeds,
            "text_mask": text_mask,
            "pixel_values": pixel_values,
            "pixel_values_mask": pixel_values_mask,
            "vision_embeds": vision_embeds,
            "vision_mask": vision_mask,
            "vision_times": vision_times,
            "word_times": word_times,
        }
        clips, shape = self._clips({name: value for name, value in inputs.items() if value is not None})
        for name, value in (("turn_mask", turn_mask), ("labels", labels)):
            if value is not None and value.shape != shape:
                raise ValueError(f"{name} must be {tuple(shape)}, found {tuple(value.shape)}")

        if self.untrained_keys and self.training and torch.is_grad_enabled():
            self.untrained_keys = ()  # they are being trained now
        outputs, votes = [], []
        for name, branch in self.branches.items():
            own, vote = self._branch_inputs(branch, clips, shape, turn_mask)
            if labels is not None and name not in self.config.freeze_branches:
                heard = labels.masked_fill(~vote, IGNORED_LABEL)
                own["labels"] = heard if "turn_mask" in own else heard.flatten()
            try:
                outputs.append(branch(**own))
            except ValueError as error:
                raise ValueError(f"branch {name!r}: {error}") from error
            votes.append(vote.flatten())

        branch_logits = torch.stack([output.logits.reshape(vote.numel(), -1) for output in outputs])
        mask = torch.stack(votes)  # (branches, rows), branch_logits (branches, rows, labels)
        config = self.config
        logits = fuse_logits(branch_logits, config.temperatures, config.weights, mask, config.independent)
        logits = logits.unflatten(0, shape)
        loss = None if labels is None else self.classification_loss(logits, labels)
        if loss is not None:
            loss = sum((output.loss for output in outputs if output.loss is not None), loss)
        return LateFusionOutput(
            loss=loss,
            logits=logits,
            branch_logits=branch_logits.transpose(0, 1).unflatten(0, shape),
            branch_mask=mask.T.unflatten(0, shape),
        )

    def _clips(self, inputs: Tensors) -> tuple[Tensors, torch.Size]:
        """Inputs of clips or dialogues -> of clips (rows, ...), and what rows are: (batch,) or (batch, turns)."""
        self._check_given(inputs)
        times = {name: inputs[name] for name in TIMES if name in inputs}
        clips, turns = flatten_turns(**{name: value for name, value in inputs.items() if name not in TIMES})
        for name, value in times.items():
            if value.dim() != TIMES[name] + (turns is not None):
                raise ValueError(f"{name} is {tuple(value.shape)}: inputs must all have a turns axis, or none")
            clips[name] = value if turns is None else value.flatten(0, 1)
        rows = {name: len(value) for name, value in clips.items()}
        if len(set(rows.values())) > 1:
            raise ValueError(f"batch sizes differ: {rows}")
        size = next(iter(rows.values()))
        return clips, torch.Size([size] if turns is None else [size // turns, turns])

    def _check_given(self, inputs: Tensors) -> None:
        given = [m for m in FIELDS if RAW_NAMES[m] in inputs or f"{m}_embeds" in inputs]
        for modality in given:
            name = RAW_NAMES[modality] if RAW_NAMES[modality] in inputs else f"{modality}_embeds"
            if modality not in self.config.modalities:
                raise ValueError(f"{name} given, but the branches use only {self.config.modalities}")
            if name == RAW_NAMES[modality] and not self.config.reads_raw(modality):
                raise ValueError(f"{name} given, but not every branch with {modality} has a backbone to run on it")
            if f"{modality}_embeds" in inputs:
                self._check_embeds(modality, inputs[f"{modality}_embeds"])
        if not given:
            raise ValueError(f"nothing to classify: give raw input or embeds of one of {self.config.modalities}")

    def _check_embeds(self, modality: str, embeds: Tensor) -> None:
        width = self.config.width(modality)
        if embeds.dim() not in (3, 4) or embeds.shape[-1] != width:
            raise ValueError(f"{modality}_embeds must be (batch, [turns,] time, {width}), found {tuple(embeds.shape)}")

    @staticmethod
    def _branch_inputs(
        branch: MerPreTrainedModel, clips: Tensors, shape: torch.Size, turn_mask: Tensor | None
    ) -> tuple[Tensors, Tensor]:
        """What a branch's `forward` takes, and on which clips it has a vote, `shape`."""
        names = {name for modality in branch.config.modalities for name in FIELDS[modality]} | {"word_times"}
        own = {name: value for name, value in clips.items() if name in names}
        rows = next(iter(clips.values()))
        present = [_has(branch, modality, own) for modality in branch.config.modalities]
        present = [there for there in present if there is not None]
        if not present:
            modality = branch.config.modalities[0]
            width = branch.config.width(modality)
            own[f"{modality}_embeds"] = torch.zeros(len(rows), 0, width, dtype=branch.dtype, device=rows.device)
            own.pop(f"{modality}_mask", None)
            present = [torch.zeros(len(rows), dtype=torch.bool, device=rows.device)]
        vote = torch.stack(present).any(dim=0).view(shape)
        if turn_mask is not None:
            vote = vote & turn_mask.bool()
        if branch.config.uses_context and len(shape) == 2:
            own = {name: value.unflatten(0, shape) for name, value in own.items()}
            own["turn_mask"] = torch.ones_like(vote) if turn_mask is None else turn_mask
        return own, vote


def _has(branch: MerPreTrainedModel, modality: str, inputs: Tensors) -> Tensor | None:
    """Which rows have anything of a modality that the branch can make a sequence of, (rows,); None = not given."""
    raw, mask = inputs.get(RAW_NAMES[modality]), inputs.get(RAW_MASK_NAMES[modality])
    if raw is None:
        raw, mask = inputs.get(f"{modality}_embeds"), inputs.get(f"{modality}_mask")
        if raw is None:
            return None
        return _mask_of(raw, mask).any(dim=-1)
    mask = _mask_of(raw, mask)
    if modality == "audio":  # shorter than one frame is nothing
        return branch.audio_model._get_feat_extract_output_lengths(mask.sum(dim=-1)) > 0
    word_ids = inputs.get("word_ids")
    if modality == "text" and word_ids is not None and word_ids.shape == mask.shape:  # else the branch refuses them
        mask = mask & (word_ids >= 0)
    return mask.any(dim=-1)


def _mask_of(values: Tensor, mask: Tensor | None) -> Tensor:
    return torch.ones(values.shape[:2], dtype=torch.bool, device=values.device) if mask is None else mask.bool()
