"""Configuration of learned alignment (Xu et al. 2019)."""

from typing import ClassVar, Self

from .configuration_front_ends import SpectrogramConfig, WordTableConfig
from .configuration_mer import MerConfig

ALIGNMENTS = ("additive", "multihead", "none")
POOLINGS = ("max", "attention")


class LearnedAlignmentConfig(MerConfig):
    """`LearnedAlignmentForEmotionClassification`. Defaults follow the paper; `paper()` adds its front ends.

    Raises:
        ValueError: an unknown alignment or pooling, or heads that do not divide the width.
    """

    model_type = "learned_alignment"
    has_attentions: ClassVar[bool] = True

    hidden_size: int = 100  # of each direction; paper and released code
    rnn: str = "lstm"  # paper; the released code has "gru"
    alignment: str = "additive"  # paper; "multihead" in the released code; "none" = pooled sides concatenated
    num_attention_heads: int = 8  # released code, multihead only
    pooling: str = "max"  # paper; "attention" in the released code
    dropout: float = 0.5  # released code
    alignment_loss_weight: float = 0.0
    """Ours, 0 = none: weight of `alignment_loss`, which teaches the attention where words are said from the word times
    of the training clips. Inference needs none either way."""

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.alignment not in ALIGNMENTS:
            raise ValueError(f"alignment must be one of {', '.join(ALIGNMENTS)}, found {self.alignment!r}")
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, found {self.pooling!r}")
        if self.alignment == "multihead" and 2 * self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"{self.num_attention_heads} heads do not divide 2 * hidden_size = {2 * self.hidden_size}"
            )

        if self.alignment_loss_weight and (self.alignment == "none" or not {"audio", "text"} <= set(self.modalities)):
            raise ValueError("alignment_loss_weight needs audio, text and an alignment between them")

    @classmethod
    def paper(cls, vocab_size: int = 2570, **overrides) -> Self:
        """Spectrogram with a dense layer, trainable word table, four classes.

        The released code's form: `paper(rnn="gru", alignment="multihead", pooling="attention")`.
        """
        values = {
            "audio_config": SpectrogramConfig(),
            "text_config": WordTableConfig(vocab_size=vocab_size, dropout=0.5),
        }
        return cls(**values | overrides)
