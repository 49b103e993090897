"""The models of the demo: the rows of its table by name, and how each is made.

Every number beside a model below was chosen on corpora with seeds from 100 on: on their validation session, and for
the last choices (weight and epochs of the alignment) with the test sessions of seeds 102 and 103 in sight. Those the
results are reported for (0, 1, 2) were not looked at before.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from . import (
    CMEForEmotionClassification,
    LearnedAlignmentForEmotionClassification,
    MerPreTrainedModel,
    MMANForEmotionClassification,
)
from .training import TrainingSettings

MODALITIES = ("audio", "text", "vision")


@dataclass(frozen=True)
class ModelPlan:
    """How one row of the table is made."""

    kind: type[MerPreTrainedModel]
    modalities: tuple[str, ...] = MODALITIES
    values: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the configuration."""
    settings: TrainingSettings = field(
        default_factory=lambda: TrainingSettings(epochs=25, learning_rate=2e-3, weight_decay=0.05, patience=8)
    )

    @property
    def uses_context(self) -> bool:
        return self.kind.config_class.uses_context


CME_VALUES = {"hidden_size": 64, "dropout": 0.4}
MMAN_VALUES = {"projection_size": 64, "hidden_size": 64, "classifier_size": 64, "dropout": 0.2}
ALIGNMENT_VALUES = {"hidden_size": 32, "dropout": 0.3, "alignment": "multihead", "num_attention_heads": 1}
ALIGNING = TrainingSettings(epochs=18, learning_rate=2e-3, weight_decay=0.05, patience=8)
CONTEXT = TrainingSettings(epochs=30, batch_size=8, learning_rate=4e-3, weight_decay=0.05, patience=30)


def plans() -> dict[str, ModelPlan]:
    """The rows of the table by name."""
    one = {m: ModelPlan(CMEForEmotionClassification, (m,), CME_VALUES) for m in MODALITIES}
    return {
        **one,
        "text, context": ModelPlan(
            MMANForEmotionClassification, ("text",), MMAN_VALUES | {"network": "unimodal"}, CONTEXT
        ),
        "CME": ModelPlan(CMEForEmotionClassification, values=CME_VALUES),
        "CME, whole clip": ModelPlan(CMEForEmotionClassification, values=CME_VALUES | {"word_level": False}),
        "learned alignment": ModelPlan(
            LearnedAlignmentForEmotionClassification,
            values=ALIGNMENT_VALUES | {"alignment_loss_weight": 0.2},
            settings=ALIGNING,
        ),
        "alignment from labels": ModelPlan(
            LearnedAlignmentForEmotionClassification, values=ALIGNMENT_VALUES, settings=ALIGNING
        ),
        "MMAN": ModelPlan(MMANForEmotionClassification, values=MMAN_VALUES, settings=CONTEXT),
    }


CONTEXT_MODEL, WORD_MODEL, WORD_ABLATION = "MMAN", "CME", "CME, whole clip"
ALIGNING_MODEL, LABELS_ALONE = "learned alignment", "alignment from labels"
