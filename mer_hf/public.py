"""The public names, and what importing the package does: its classes become known to transformers.

`AutoConfig`, `AutoModel`, `AutoModelForAudioClassification`, `AutoProcessor` and
`pipeline("multimodal-emotion-recognition")` then load them.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForAudioClassification,
    AutoProcessor,
    pipeline,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .default_model.loading import load_default
from .explanation import Explanation, explain
from .models.alignment import AlignmentError, WordAligner, WordAlignment, split_words
from .models.configuration_cme import CMEConfig
from .models.configuration_front_ends import (
    FilterbankConfig,
    FilterbankStatisticsConfig,
    SpectrogramConfig,
    WordTableConfig,
)
from .models.configuration_late_fusion import LateFusionConfig
from .models.configuration_learned_alignment import LearnedAlignmentConfig
from .models.configuration_mer import MerConfig
from .models.configuration_mman import MMANConfig
from .models.ctc_alignment import CTCWordAligner
from .models.front_ends import FilterbankModel, FilterbankStatisticsModel, SpectrogramModel, WordTableModel
from .models.media import MediaError, NoStreamError, load_audio, load_frames
from .models.modeling_cme import CMEForEmotionClassification
from .models.modeling_late_fusion import LateFusionForEmotionClassification, fuse_logits
from .models.modeling_learned_alignment import LearnedAlignmentForEmotionClassification
from .models.modeling_mer import EmotionOutput, MerPreTrainedModel
from .models.modeling_mman import MMANForEmotionClassification
from .models.pipeline_mer import TASK, MultimodalEmotionRecognitionPipeline
from .models.processing_mer import MerProcessor, word_tokenizer
from .models.speakers import SpeakerProfile

MODEL_CLASSES = {
    "cme": CMEForEmotionClassification,
    "learned_alignment": LearnedAlignmentForEmotionClassification,
    "mer_late_fusion": LateFusionForEmotionClassification,
    "mman": MMANForEmotionClassification,
}
"""The fusion models by `model_type`."""

for _model_type, _model in MODEL_CLASSES.items():
    AutoConfig.register(_model_type, _model.config_class, exist_ok=True)
    AutoModel.register(_model.config_class, _model, exist_ok=True)
    AutoModelForAudioClassification.register(_model.config_class, _model, exist_ok=True)
    AutoProcessor.register(_model.config_class, MerProcessor, exist_ok=True)

MerConfig.pipeline_is_registered = True
PIPELINE_REGISTRY.register_pipeline(
    TASK, pipeline_class=MultimodalEmotionRecognitionPipeline, pt_model=AutoModelForAudioClassification
)

__all__ = [
    "MODEL_CLASSES",
    "TASK",
    "AlignmentError",
    "CMEConfig",
    "CMEForEmotionClassification",
    "CTCWordAligner",
    "EmotionOutput",
    "Explanation",
    "FilterbankConfig",
    "FilterbankModel",
    "FilterbankStatisticsConfig",
    "FilterbankStatisticsModel",
    "LateFusionConfig",
    "LateFusionForEmotionClassification",
    "LearnedAlignmentConfig",
    "LearnedAlignmentForEmotionClassification",
    "MMANConfig",
    "MMANForEmotionClassification",
    "MediaError",
    "MerConfig",
    "MerPreTrainedModel",
    "MerProcessor",
    "MultimodalEmotionRecognitionPipeline",
    "NoStreamError",
    "SpeakerProfile",
    "SpectrogramConfig",
    "SpectrogramModel",
    "WordAligner",
    "WordAlignment",
    "WordTableConfig",
    "WordTableModel",
    "explain",
    "fuse_logits",
    "load_audio",
    "load_default",
    "load_frames",
    "pipeline",
    "split_words",
    "word_tokenizer",
]
