"""The default checkpoint as a pipeline: emotion from speech, face and, where their encoder is installed, words.

`mer_hf/default_checkpoint/` is a checkpoint of late fusion over the branches that need nothing else, which
`from_pretrained` loads like any other. Its folder `words` holds the branch that reads transcripts, without the weights
of MiniLM: these come with the extra `words`, and the branch joins the fusion where it is installed.
"""

import logging
from os import PathLike
from pathlib import Path

from transformers import AutoModel, AutoProcessor

from ..models.modeling_late_fusion import LateFusionForEmotionClassification
from ..models.pipeline_mer import MultimodalEmotionRecognitionPipeline
from ..models.processing_mer import MerProcessor

logger = logging.getLogger(__name__)

DEFAULT_CHECKPOINT = Path(__file__).resolve().parents[1] / "default_checkpoint"
WORDS = "words"
"""Name of the branch that reads transcripts, and of its folder."""


def load_default(
    words: bool | None = None, device: str = "cpu", checkpoint: str | PathLike = DEFAULT_CHECKPOINT
) -> MultimodalEmotionRecognitionPipeline:
    """The default checkpoint in a pipeline, from this package's own files alone.

    words: whether transcripts are read; None = where the extra `words` is installed. checkpoint: another folder of
    the same making. A clip without a transcript is answered without words, unless the call has recognize=True or
    asr=: words count as much as the voice, and PocketSphinx's guesses only mislead (on the 240 clips of RAVDESS's
    first validation fold the voice's WA fell from .558 to .542, and its log loss rose from 1.20 to 1.36 nats).

    Raises:
        ValueError: the folder is not there or is not whole.
        ImportError: words=True, and MiniLM is not installed.
    """
    from .words import words_available

    if words is None:
        words = words_available()
        if not words:
            logger.warning("transcripts are not read: MiniLM is not installed; pip install 'mer-hf[words]'")
    model, processor = default_model(words, checkpoint)
    return MultimodalEmotionRecognitionPipeline(model=model, processor=processor, device=device, recognize=False)


def default_model(
    words: bool, checkpoint: str | PathLike = DEFAULT_CHECKPOINT
) -> tuple[LateFusionForEmotionClassification, MerProcessor]:
    """The default checkpoint's model, with or without the branch for words, and its processor; as `load_default`."""
    checkpoint = Path(checkpoint)
    if not (checkpoint / "config.json").is_file():
        raise ValueError(f"checkpoint: {checkpoint} holds no checkpoint; install the package anew, or name a model")
    model = AutoModel.from_pretrained(checkpoint)
    processor = AutoProcessor.from_pretrained(checkpoint)
    if not words or WORDS in model.config.branch_names:  # it has been put in and saved with the others
        return model.eval(), processor
    from .words import load_words  # the package's trainings import one another, and none of them this

    branch, tokenizer = load_words(checkpoint / WORDS)
    weights = [*model.config.weights, 1.0]  # speech, face and words count alike
    branches = {**dict(model.branches.items()), WORDS: branch}
    model = LateFusionForEmotionClassification.from_branches(branches, weights=weights, independent=True)
    parts = processor.feature_extractor, tokenizer, processor.image_processor
    settings = {name: getattr(processor, name) for name in ("num_frames", "crop_faces", "trim_db")}
    return model.eval(), MerProcessor(*parts, keep_punctuation=True, **settings)
