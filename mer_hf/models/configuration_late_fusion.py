"""Configuration of late fusion: the configurations of its branches, and how much each counts."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from .configuration_cme import CMEConfig
from .configuration_learned_alignment import LearnedAlignmentConfig
from .configuration_mer import MODALITIES, MerConfig
from .configuration_mman import MMANConfig

BRANCH_CONFIGS = {config.model_type: config for config in (CMEConfig, LearnedAlignmentConfig, MMANConfig)}
"""Configurations of the models that can be a branch, by `model_type`."""
OWN_FIELDS = ("audio_config", "text_config", "vision_config", "standardize", "freeze_backbones")
SHARED_INPUT = {"audio": (), "text": ("vocab_size",), "vision": ("image_size", "num_channels")}
"""What backbones that read one raw input must agree on, where their configurations state it."""


class LateFusionConfig(MerConfig):
    """`LateFusionForEmotionClassification`. Each branch is calibrated by its own `calibration_temperature`.

    All branches see the same inputs: one processor, so one tokenizer and one size of image. Branches that want
    different ones cannot be one model; store their logits and use `fuse_logits`.

    Raises:
        ValueError: no branch; names that are missing, alike or no identifiers; a model that cannot be a branch;
            branches with other labels, another vocabulary or another image size than the first that has any; a
            modality that one branch reads raw and another as other features; weights that are not one
            positive number a branch; a field that belongs to the branches.
    """

    model_type = "mer_late_fusion"

    keys_to_ignore_at_inference: ClassVar[list[str]] = [*MerConfig.keys_to_ignore_at_inference, "branch_mask"]
    branches: list[Any] | tuple[Any, ...] = ()
    """Their configurations, or dicts of them with `model_type`."""
    branch_names: list[str] | tuple[str, ...] = ()
    """One a branch; the order is that of `branch_logits`."""
    weights: list[float] | tuple[float, ...] | None = None
    """One a branch, divided by the sum over those that have a vote; None = all count alike."""
    independent: bool = False
    """True: the weights are not divided, each branch that has a vote counts with all of its weight. Right for branches
    that err independently, of which two that agree are surer than one; branches that hear the same should share 1."""
    freeze_branches: list[str] | tuple[str, ...] = ()
    """Names of branches that are not trained and stay in evaluation mode."""

    def __post_init__(self, **kwargs):
        self._check_names()
        self.branches = [
            _branch_config(name, branch) for name, branch in zip(self.branch_names, self.branches, strict=True)
        ]
        if self.id2label is None:
            self.id2label = dict(self.branches[0].id2label)
        for field in OWN_FIELDS:
            if getattr(self, field):
                raise ValueError(f"{field} belongs to the branches; set it there")
        for modality in MODALITIES:
            self._take_width(modality)
        super().__post_init__(**kwargs)
        self._check_labels()
        self._check_shared_inputs()
        self.weights = [1.0] * len(self.branches) if self.weights is None else list(self.weights)
        if len(self.weights) != len(self.branches) or not all(0 < weight < math.inf for weight in self.weights):
            raise ValueError(
                f"weights must be {len(self.branches)} numbers above 0, one a branch, found {self.weights}; leave a "
                "branch out that is to count for nothing"
            )
        unknown = sorted(set(self.freeze_branches) - set(self.branch_names))
        if unknown:
            raise ValueError(f"freeze_branches names {unknown}; the branches are {list(self.branch_names)}")

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities of any branch, in the order audio, text, vision."""
        return tuple(m for m in MODALITIES if self._readers(m))

    @property
    def uses_context(self) -> bool:
        """Whether a branch reads the turns of a dialogue together."""
        return any(branch.uses_context for branch in self.branches)

    @property
    def uses_word_times(self) -> bool:
        return any(branch.uses_word_times for branch in self.branches)

    @property
    def audio_frame_seconds(self) -> float:
        """Of the first branch that hears."""
        readers = list(self._readers("audio").values())
        return readers[0].audio_frame_seconds if readers else super().audio_frame_seconds

    @property
    def audio_reach(self) -> int:
        """As `audio_frame_seconds`."""
        readers = list(self._readers("audio").values())
        return readers[0].audio_reach if readers else super().audio_reach

    @property
    def temperatures(self) -> tuple[float, ...]:
        """Those of the branches, in their order; `calibration_temperature` is for the fused scores."""
        return tuple(branch.calibration_temperature for branch in self.branches)

    def reads_raw(self, modality: str) -> bool:
        """Whether every branch that has the modality has a backbone for it."""
        readers = self._readers(modality).values()
        return bool(readers) and all(branch.reads_raw(modality) for branch in readers)

    def width(self, modality: str) -> int:
        """Width of `<modality>_embeds`.

        Raises:
            ValueError: the branches' features differ, so that the modality can only be given raw.
        """
        if getattr(self, f"{modality}_embed_dim") is None:
            widths = {name: branch.width(modality) for name, branch in self._readers(modality).items()}
            raise ValueError(
                f"{modality}_embeds: the branches want different features, of widths {widths}; give raw input"
            )
        return getattr(self, f"{modality}_embed_dim")

    def to_dict(self) -> dict[str, Any]:
        """As in transformers, which leaves configurations in a list as they are; the branches with the fusion's names
        of the labels, which may have been changed."""
        own = super().to_dict()
        names = {name: own[name] for name in ("id2label", "label2id") if name in own}
        return own | {"branches": [branch.to_dict() | names for branch in self.branches]}

    def _readers(self, modality: str) -> dict[str, MerConfig]:
        named = zip(self.branch_names, self.branches, strict=True)
        return {name: branch for name, branch in named if modality in branch.modalities}

    def _check_names(self) -> None:
        names = list(self.branch_names)
        if not self.branches or len(names) != len(self.branches):
            raise ValueError(
                f"{len(self.branches)} branches, {len(names)} branch_names; give one or more and name each"
            )
        if len(set(names)) < len(names) or not all(isinstance(name, str) and name.isidentifier() for name in names):
            raise ValueError(f"branch_names must be different identifiers such as 'speech', found {names}")

    def _check_labels(self) -> None:
        for name, branch in zip(self.branch_names, self.branches, strict=True):
            if branch.id2label != self.id2label:
                raise ValueError(
                    f"branch {name!r} has the labels {list(branch.id2label.values())}, the fusion "
                    f"{list(self.id2label.values())}; they must be the same in the same order"
                )

    def _take_width(self, modality: str) -> None:
        """Set `<modality>_embed_dim` where one sequence serves all branches; refuse what no input could serve."""
        readers = self._readers(modality)
        widths = {name: branch.width(modality) for name, branch in readers.items()}
        backbones = [
            getattr(branch, f"{modality}_config") for branch in readers.values() if branch.reads_raw(modality)
        ]
        alike = len(set(widths.values())) == 1 and all(_same(backbone, backbones[0]) for backbone in backbones)
        if readers and not alike and not self.reads_raw(modality):
            bare = [name for name, branch in readers.items() if not branch.reads_raw(modality)]
            raise ValueError(
                f"{modality}: branches want different features, of widths {widths}, and {', '.join(bare)} cannot read "
                "it raw, so no one input serves all; fuse their logits with `fuse_logits`"
            )
        common = next(iter(widths.values())) if alike else None
        given = getattr(self, f"{modality}_embed_dim")
        if given not in (None, common):
            raise ValueError(f"{modality}_embed_dim is {given} but the branches want {widths}; leave it out")
        setattr(self, f"{modality}_embed_dim", common)

    def _check_shared_inputs(self) -> None:
        for modality, fields in SHARED_INPUT.items():
            raw = {name: getattr(b, f"{modality}_config") for name, b in self._readers(modality).items()}
            for field in fields:
                found = {name: getattr(config, field, None) for name, config in raw.items()}
                found = {name: value for name, value in found.items() if value is not None}
                if len({str(value) for value in found.values()}) > 1:
                    raise ValueError(
                        f"{modality}: one processor cannot serve branches with different {field}, {found}; fuse their "
                        "logits with `fuse_logits`, or keep one of them"
                    )


def _branch_config(name: str, branch: Any) -> MerConfig:
    if not isinstance(branch, Mapping):
        model_type = getattr(branch, "model_type", type(branch).__name__)
    else:
        model_type = branch.get("model_type")
    if model_type not in BRANCH_CONFIGS:
        raise ValueError(f"branch {name!r} is a {model_type!r}; a branch is one of {', '.join(BRANCH_CONFIGS)}")
    if not isinstance(branch, Mapping):
        return branch
    values = {key: value for key, value in branch.items() if key not in ("model_type", "transformers_version")}
    return BRANCH_CONFIGS[model_type](**values)


def _same(one: PreTrainedConfig, other: PreTrainedConfig) -> bool:
    """Whether two backbones make the same kind of states, wherever they were loaded from."""
    ignored = {"_name_or_path": None, "dtype": None, "architectures": None}
    return one.to_dict() | ignored == other.to_dict() | ignored
