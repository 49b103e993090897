"""Configuration of MMAN and its sub-networks (Pan et al. 2020)."""

from typing import ClassVar, Self

from .configuration_mer import MerConfig

NETWORKS = ("mman", "clstm_mma", "unimodal", "early_fusion", "late_fusion", "linear")
UNIMODAL = ("unimodal", "linear")


class MMANConfig(MerConfig):
    """`MMANForEmotionClassification`. Defaults are the circulating code's; `paper()` adds its feature widths.

    Raises:
        ValueError: an unknown network, score or skip, or a uni-modal network over several modalities.
    """

    model_type = "mman"
    uses_context: ClassVar[bool] = True
    has_attentions: ClassVar[bool] = True

    network: str = "mman"
    """"mman", or one of its parts alone: "clstm_mma", "unimodal" (one modality); or a baseline: "early_fusion",
    "late_fusion", "linear" (one modality, no context: what a fine-tuned encoder is usually given)."""
    projection_size: int = 150  # circulating code; of x_m and of queries, keys and values
    hidden_size: int = 300  # circulating code
    classifier_size: int = 200  # circulating code
    early_fusion_hidden_size: int = 512  # circulating code
    score: str = "cosine"  # circulating code; a reader of the paper gives scaled "dot"
    skip: str = "add"  # circulating code; a reader of the paper gives "concat"
    attention_dropout: float = 0.1  # circulating code; of x_m and of the attended values
    dropout: float = 0.5  # circulating code; between LSTM layers and before the last Linear
    freeze_branches: bool = False
    """MMAN only: the four trained sub-networks stay as they are (evaluation mode) and only their fusion is trained."""

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.network not in NETWORKS:
            raise ValueError(f"network must be one of {', '.join(NETWORKS)}, found {self.network!r}")
        if self.network in UNIMODAL and len(self.modalities) != 1:
            raise ValueError(f"a uni-modal network takes one modality, found {list(self.modalities)}")
        if self.score not in ("cosine", "dot"):
            raise ValueError(f"score must be cosine or dot, found {self.score!r}")
        if self.skip not in ("add", "concat"):
            raise ValueError(f"skip must be add or concat, found {self.skip!r}")

    @classmethod
    def paper(cls, **overrides) -> Self:
        """One precomputed vector an utterance and modality: speech 100-d (openSMILE), text 100-d, face 512-d."""
        values = {"audio_embed_dim": 100, "text_embed_dim": 100, "vision_embed_dim": 512}
        return cls(**values | overrides)
