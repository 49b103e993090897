"""Configuration of CME (Li et al. 2021)."""

from typing import Self

from .configuration_front_ends import FilterbankConfig, WordTableConfig
from .configuration_mer import MerConfig

POOLINGS = ("mean_max", "mean", "max")


class CMEConfig(MerConfig):
    """`CMEForEmotionClassification`. Defaults are the released code's; `paper()` adds its front ends.

    Raises:
        ValueError: an unknown pooling or excitement, or a gate vector whose width is not the pooled audio's.
    """

    model_type = "cme"

    hidden_size: int = 256  # released code; of words, of pooled audio, and of each direction of the BiLSTM
    pooling: str = "mean_max"  # paper; "mean" and "max" are its ablations
    word_level: bool = True  # paper; False = every word gets the whole clip's pooled frames (ablation)
    excitement: list[str] | tuple[str, ...] | None = None
    """Directed pairs such as "audio_to_text" (audio re-scales text). None = every ordered pair; () = no excitement."""
    text_gate_dim: int = 0
    """Width of the gate vector at the end of `text_embeds` (second word table of the released code), 0 = none."""
    dropout: float = 0.0  # released code has none

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.text_config is not None:
            self.text_gate_dim = getattr(self.text_config, "gate_dim", 0)
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, found {self.pooling!r}")
        pairs = [f"{a}_to_{b}" for a in self.modalities for b in self.modalities if a != b]
        self.excitement = pairs if self.excitement is None else self.excitement
        unknown = [pair for pair in self.excitement if pair not in pairs]
        if unknown:
            raise ValueError(f"excitement names {unknown}; this model has {pairs}")
        if self.text_gate_dim and self.text_gate_dim != self.pooled_size:
            raise ValueError(
                f"the text side's gate vector has {self.text_gate_dim} values but re-scales {self.pooled_size} pooled "
                f"audio values; set gate_dim={self.pooled_size}"
            )

    @property
    def uses_word_times(self) -> bool:
        return self.word_level

    @property
    def frame_size(self) -> int:
        """Width of one audio or face frame before pooling."""
        return self.hidden_size // 2

    @property
    def pooled_size(self) -> int:
        """Width of the frames pooled over one word."""
        return self.frame_size * len(self.pooling.split("_"))

    @classmethod
    def paper(cls, vocab_size: int = 3431, **overrides) -> Self:
        """The released code's model: filterbank with convolutions, two trainable word tables, four classes."""
        values = {
            "audio_config": FilterbankConfig(),
            "text_config": WordTableConfig(vocab_size=vocab_size, gate_dim=256),
        }
        return cls(**values | overrides)
