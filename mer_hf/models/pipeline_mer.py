"""The pipeline: clips, or a dialogue, in; labels with scores, and on request word times and alignment, out."""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from os import PathLike, fspath
from typing import Any

import numpy as np
import torch
from transformers import Pipeline

from .alignment import AlignmentError, WordAligner, split_words
from .configuration_front_ends import SAMPLING_RATE
from .media import is_silent
from .processing_mer import clean_words
from .speakers import PRIOR_CLIPS, SpeakerProfile, earlier_turns

TASK = "multimodal-emotion-recognition"

EMBEDS = ("audio_embeds", "text_embeds", "vision_embeds", "vision_times", "word_times")
CLIP_KEYS = ("path", "audio", "text", "words", "video", "speaker", "speaker_id", *EMBEDS)
RAW_FIELDS = {"audio": "input_values", "text": "input_ids", "vision": "pixel_values"}
RAW_KEYS = {"audio": "audio=", "text": "text= or words=", "vision": "video="}
ONE_CLIP = (str, bytes, bytearray, tuple, PathLike, Mapping, np.ndarray, torch.Tensor)
"""Types of an input that is one clip and not several."""


@dataclass(frozen=True)
class PreparedClip:
    """One clip, or one turn of a dialogue, ready for the model."""

    example: dict[str, Any]
    words: list[dict[str, Any]] | None
    """{"word"} or {"word", "start", "end"}, those the model read, and "written" where the processor keeps
    punctuation; None = the clip has no text."""
    modalities: list[str]


@dataclass(frozen=True)
class PreparedInput:
    """What one input of the pipeline became."""

    turns: list[PreparedClip]
    is_dialogue: bool


class MultimodalEmotionRecognitionPipeline(Pipeline):
    """`pipeline("multimodal-emotion-recognition", model=...)`.

    A clip is a path, bytes, an (array, rate) pair, or a dict with any of `path` (sound and picture of one file),
    `audio`, `video`, `text`, `words` ([{"word", "start", "end"}], seconds) and precomputed `*_embeds`; the same names
    work as keywords. What `datasets` yields for an Audio or Video column is a clip too. A list is a list of clips, and
    any other iterable gives its results one by one. `dialogue=` takes the turns of one dialogue, each a clip, and lets
    a model with context use it; a list may hold dialogues too, as {"dialogue": [...]}.

    `speaker` of a clip or turn is the profile of who speaks, from `enrol`, or the path it was saved to: sound and face
    are then seen against this speaker's own usual and not against everybody's. With enrol_turns=True the turns of a
    dialogue that have a `speaker_id` enrol their speaker for the turns after them; no turn counts for itself.

    A transcript without word times is aligned to the audio when the model needs times. Without a transcript: `asr`, a
    speech-recognition pipeline or what can be called like one (see `transcribe`), when configured; else, with
    recognize=True, PocketSphinx with a warning; else there is no text. `text=""` says that nothing is said.

    Arguments (on construction or per call): top_k: labels returned, default all; return_details: a dict with `scores`,
    `words`, `modalities` and what alignment the model has instead of the list of labels; asr; recognize, default True;
    enrol_turns; prior_clips: how many clips everybody's usual counts for beside a speaker's own, default 5.

    Raises:
        ValueError: a model whose head was never trained; an unknown key; a clip in which nothing is left that the
            model uses, or whose words the model needs times of and cannot get; a profile made with other features;
            enrol_turns without a speaker_id. MediaError and AlignmentError (both ValueErrors) name the file and the
            remedy.
    """

    _load_processor = True
    _load_tokenizer = False
    _load_feature_extractor = False
    _load_image_processor = False

    def __init__(self, model, processor=None, **kwargs):
        if processor is None:
            raise ValueError("pass processor= along with a model object (MerProcessor.from_pretrained(...))")
        untrained = getattr(model, "untrained_keys", ())
        if untrained:
            raise ValueError(
                f"{len(untrained)} weights of this model ({', '.join(untrained[:3])}, ...) are not in its checkpoint "
                "and would be random; load a checkpoint that was fine-tuned for emotion recognition"
            )
        self.aligner = WordAligner()
        kwargs.pop("local_files_only", None)  # of loading; transformers.pipeline hands it on
        super().__init__(model=model, processor=processor, **kwargs)
        self.model.eval()

    def _sanitize_parameters(
        self,
        asr=None,
        recognize=None,
        enrol_turns=None,
        prior_clips=None,
        top_k=None,
        return_details=None,
        **unknown,
    ):
        if unknown:
            raise ValueError(f"unknown argument(s) {', '.join(sorted(unknown))}; see {type(self).__name__}")
        if top_k is not None and (not isinstance(top_k, int) or top_k < 1):
            raise ValueError(f"top_k is {top_k!r}; it is a number of labels, at least 1")
        preprocess = {
            "asr": asr,
            "recognize": recognize,
            "enrol_turns": enrol_turns,
            "prior_clips": prior_clips,
        }
        postprocess = {"top_k": top_k, "return_details": return_details}
        return tuple({k: v for k, v in part.items() if v is not None} for part in (preprocess, {}, postprocess))

    def __call__(self, inputs: Any = None, **kwargs: Any) -> Any:
        """Classify a clip, a list of clips, or (`dialogue=`) the turns of a dialogue; see the class."""
        clip = {key: kwargs.pop(key) for key in (*CLIP_KEYS, "dialogue") if key in kwargs}
        if inputs is None and not clip:
            raise ValueError("no clip: give a path, bytes, (array, rate), a dict, or audio=, text=, video=, words=")
        if inputs is not None and clip:
            if not isinstance(inputs, ONE_CLIP):
                raise ValueError(f"{', '.join(clip)} as keywords belong to one clip; put them into each clip's dict")
            clip = as_clip(inputs) | clip
        if clip:
            return super().__call__(clip, **kwargs)
        if isinstance(inputs, list) and not inputs:
            return []
        if isinstance(inputs, Iterable) and not isinstance(inputs, (*ONE_CLIP, list)):
            inputs = (item for item in inputs)  # the base class knows a `datasets.Dataset` for several only this way
        return super().__call__(inputs, **kwargs)

    def get_iterator(
        self, inputs, num_workers: int, batch_size: int, preprocess_params, forward_params, postprocess_params
    ) -> Iterator[Any]:
        # The base class would pad batches by the tokenizer's rules; ours are padded, with masks, in _forward.
        clips = iter(inputs)
        while batch := [self.preprocess(clip, **preprocess_params) for clip in islice(clips, batch_size)]:
            for output in self.forward(batch, **forward_params):
                yield self.postprocess(output, **postprocess_params)

    def run_single(self, inputs, preprocess_params, forward_params, postprocess_params):
        prepared = self.preprocess(inputs, **preprocess_params)
        return self.postprocess(self.forward([prepared], **forward_params)[0], **postprocess_params)

    def enrol(self, clips: Any) -> SpeakerProfile:
        """The profile of a speaker from a list of his or her clips (or one), in any order; nothing is classified.

        Clips as for classification. Words are not needed, nor is any label. Profiles of the same speaker add up with
        `+`; `save` and `SpeakerProfile.load` keep them.

        Raises:
            ValueError: no clip, a clip with nothing to enrol from, a model that cannot enrol (see `enrollable`).
        """
        clips = [as_clip(clip) for clip in ([clips] if isinstance(clips, ONE_CLIP) else clips)]
        profiles = self.model.clip_profiles(self._enrolment_example(clip) for clip in clips)
        for clip, profile in zip(clips, profiles, strict=True):
            if not profile.streams:
                kinds = " and no ".join(self.model.enrollable)
                raise ValueError(f"{describe(clip)}: no {kinds} in it to enrol a speaker from; leave it out")
        if not profiles:
            raise ValueError("no clip to enrol a speaker from; give at least one")
        return sum(profiles, SpeakerProfile())

    def _enrolment_example(self, clip: dict[str, Any]) -> dict[str, Any]:
        """What the model enrols a speaker from, without the words."""
        names = [f"{modality}_embeds" for modality in self.model.enrollable]
        precomputed = {name: clip[name] for name in names if clip.get(name) is not None}
        wanted = [m for m in self.model.enrollable if f"{m}_embeds" not in precomputed]
        raw = {modality for modality in wanted if self.model.config.reads_raw(modality)}
        return self.processor.example(**self._decode(clip, raw)) | precomputed

    def preprocess(
        self,
        inputs: Any,
        asr: Any = None,
        recognize: bool = True,
        enrol_turns: bool = False,
        prior_clips: float = PRIOR_CLIPS,
    ) -> PreparedInput:
        """A clip or {"dialogue": [clip, ...]} -> its turns, one for a clip."""
        is_dialogue = isinstance(inputs, Mapping) and "dialogue" in inputs
        turns = inputs["dialogue"] if is_dialogue else [inputs]
        if is_dialogue and (len(inputs) > 1 or not isinstance(turns, list | tuple) or not turns):
            raise ValueError("dialogue= takes a list of one or more clips, and nothing beside it")
        clips = [as_clip(turn) for turn in turns]
        prepared = [self._prepare(clip, asr, recognize) for clip in clips]
        profiles = [given_profile(clip) for clip in clips]
        if enrol_turns and is_dialogue:
            profiles = self._with_earlier_turns(profiles, clips, prepared)
        enrolled = [
            replace(turn, example=turn.example | self.model.speaker_statistics(profile, prior_clips))
            for turn, profile in zip(prepared, profiles, strict=True)
        ]
        return PreparedInput(enrolled, is_dialogue)

    def _with_earlier_turns(
        self, profiles: list[SpeakerProfile], clips: Sequence[Mapping[str, Any]], prepared: Sequence[PreparedClip]
    ) -> list[SpeakerProfile]:
        speakers = [clip.get("speaker_id") for clip in clips]
        if all(speaker is None for speaker in speakers):
            raise ValueError("enrol_turns, but no turn of the dialogue says who speaks; give turns a speaker_id")
        before = earlier_turns(self.model.clip_profiles(turn.example for turn in prepared), speakers)
        return [given + earlier for given, earlier in zip(profiles, before, strict=True)]

    def _prepare(self, clip: dict[str, Any], asr: Any, recognize: bool) -> PreparedClip:
        config = self.model.config
        precomputed = {name: clip[name] for name in EMBEDS if clip.get(name) is not None}
        raw = {m for m in config.modalities if f"{m}_embeds" not in precomputed and config.reads_raw(m)}
        decoded = self._decode(clip, raw)
        words = self._words(clip, decoded.get("audio"), asr, recognize, "text" in raw)
        example = self.processor.example(words=words, **decoded) | precomputed
        read = words if "word_ids" not in example else words[: int(example["word_ids"].max()) + 1]
        for modality, name in RAW_FIELDS.items():
            if modality not in raw:  # decoded for the words' sake, or words given for their times
                example.pop(name, None)
        if "input_values" in example and not self._audio_frames(example):
            example.pop("input_values")  # shorter than one frame of the model
        heard = [m for m in config.modalities if len(example.get(RAW_FIELDS[m], example.get(f"{m}_embeds", ())))]
        if not heard:
            ways = [RAW_KEYS[m] if config.reads_raw(m) else f"{m}_embeds=" for m in config.modalities]
            raise ValueError(f"{describe(clip)}: nothing in it is what this model reads; give {', '.join(ways)}")
        if config.uses_word_times:
            self._time(example, heard, clip)
        self._warn_of_what_is_not_read(clip, words, read, decoded.get("audio") if "audio" in raw else None)
        return PreparedClip(example, read or None, heard)

    def _warn_of_what_is_not_read(
        self, clip: dict[str, Any], words: Sequence[Any], read: Sequence[Any], audio: np.ndarray | None
    ) -> None:
        """What is given but cannot count is never dropped in silence."""
        if split_words(clip.get("text") or "") and "text" not in self.model.config.modalities:
            kinds = ", ".join(self.model.config.modalities)
            warnings.warn(f"{describe(clip)}: the transcript is not read; this model reads {kinds}", stacklevel=2)
        if len(read) < len(words):
            warnings.warn(
                f"{describe(clip)}: the first {len(read)} of {len(words)} words are read, which is all that the "
                "model's tokenizer takes; give shorter clips",
                stacklevel=2,
            )
        end = None if audio is None else len(audio) / SAMPLING_RATE
        late = [word for word in read if end is not None and word.get("start", 0.0) >= end]
        if late:
            warnings.warn(
                f"{describe(clip)}: ends at {end:.2f} s and {len(late)} words begin later, {late[0]['word']!r} at "
                f"{late[0]['start']:g} the first, so no sound belongs to them; word times are seconds from the clip's "
                "start",
                stacklevel=2,
            )
        if audio is not None and is_silent(audio):
            warnings.warn(f"{describe(clip)}: the sound is silent, so what is made of it means nothing", stacklevel=2)

    def _time(self, example: dict[str, Any], heard: list[str], clip: dict[str, Any]) -> None:
        """Refuse a clip without the times the model needs, alone or in a batch with clips that have them."""
        if "vision" in heard and "vision_times" not in example:
            raise ValueError(f"{describe(clip)}: vision_embeds without vision_times; give each frame its time")
        if "text" not in heard or "word_times" in example:
            return
        if len(heard) > 1:
            raise ValueError(
                f"{describe(clip)}: the model needs to know when each word is said, and there is no sound to align "
                'them to; give words=[{"word", "start", "end"}] or word_times='
            )
        words = len(example["text_embeds"]) if "text_embeds" in example else int(example["word_ids"].max()) + 1
        example["word_times"] = torch.zeros(words, 2)  # no frames to time: any do, but a batch needs the right number

    def _decode(self, clip: dict[str, Any], raw: set[str]) -> dict[str, np.ndarray]:
        """Sound and picture of a clip. A file given as a whole may lack either; one named audio= or video= may not."""
        wanted = {"audio": bool({"audio", "text"} & raw), "video": "vision" in raw}
        named = {kind: clip[kind] for kind, wants in wanted.items() if wants and clip.get(kind) is not None}
        whole = {kind: clip.get("path") for kind, wants in wanted.items() if wants and kind not in named}
        # The processor forgives a missing stream, not the pipeline by catching NoStreamError: of a checkpoint loaded
        # with its own code each of the two has its own copy of that class.
        return self.processor.load(**named) | self.processor.load(**whole, optional=True)

    def _words(
        self, clip: dict[str, Any], audio: np.ndarray | None, asr: Any, recognize: bool, needed: bool
    ) -> list[dict[str, Any]]:
        """The words of a clip, with times where they are given, recognised, or needed and so aligned; [] = none.

        needed: whether the model runs on them; else they are only those given for their times.
        """
        words, text = clip.get("words"), clip.get("text")
        if not needed:
            return clean_words(words or [])
        if words is None and text is None and audio is not None:
            words = self._recognized(audio, asr, recognize)
        words = self.processor.words(text, words)
        if words and "start" not in words[0] and audio is not None and self.model.config.uses_word_times:
            try:
                times = self.aligner.align(audio, [word["word"] for word in words]).words
            except AlignmentError as error:
                raise AlignmentError(f"{describe(clip)}: {error}; or give words= with their times") from error
            words = [{**word, **time} for word, time in zip(words, times, strict=True)]
        return words

    def _recognized(self, audio: np.ndarray, asr: Any, recognize: bool) -> list[dict[str, Any]]:
        if asr is not None:
            return transcribe(asr, audio)
        if not recognize:
            return []
        warnings.warn(
            "no transcript: the words are PocketSphinx's guess, and on emotional speech most of them are wrong. Give "
            "text= (or words=), an asr= pipeline, or recognize=False to leave the words out.",
            stacklevel=2,
        )
        return list(self.aligner.recognize(audio))

    def _forward(self, batch: list[PreparedInput]) -> list[dict[str, Any]]:
        turns = [turn for item in batch for turn in item.turns]
        if self.model.config.uses_context:
            outputs = self._run(self.processor.pad([[turn.example for turn in item.turns] for item in batch]))
            real = [(row, turn) for row, item in enumerate(batch) for turn in range(len(item.turns))]
        else:
            outputs = self._run(self.processor.pad([turn.example for turn in turns]))
            real = [(row,) for row in range(len(turns))]
        per_turn = iter([{name: value[index] for name, value in outputs.items()} for index in real])
        return [{"input": item, "outputs": [next(per_turn) for _ in item.turns]} for item in batch]

    def _run(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        inputs = {name: value.to(self.device) for name, value in inputs.items()}
        wants = {"output_attentions": True} if self.model.config.has_attentions else {}
        outputs = self.model(**inputs, **wants)
        return {name: value.float().cpu() for name, value in outputs.items() if name in ("logits", *ALIGNMENTS)}

    def postprocess(self, output: dict[str, Any], top_k: int | None = None, return_details: bool = False) -> Any:
        """Scores, best first; a list of those, one a turn, for a dialogue."""
        turns = zip(output["input"].turns, output["outputs"], strict=True)
        results = [self._result(turn, tensors, top_k, return_details) for turn, tensors in turns]
        return results if output["input"].is_dialogue else results[0]

    def _result(self, turn: PreparedClip, tensors: dict[str, torch.Tensor], top_k: int | None, details: bool) -> Any:
        probabilities = (tensors["logits"] / self.model.config.calibration_temperature).softmax(dim=-1).tolist()
        labels = self.model.config.id2label
        scores = [{"label": labels[index], "score": score} for index, score in enumerate(probabilities)]
        scores = sorted(scores, key=lambda item: -item["score"])[:top_k]
        if not details:
            return scores
        result = {"scores": scores, "words": turn.words, "modalities": turn.modalities}
        for name, kind in ALIGNMENTS.items():
            if name in tensors:
                result[kind] = self._alignment(name, tensors[name], turn)
        return result

    def _alignment(self, name: str, weights: torch.Tensor, turn: PreparedClip) -> dict[str, Any]:
        """Attention without padding, with what its rows and columns are."""
        names = list(self.model.config.modalities)
        if name == "attentions":
            return {"weights": weights.numpy(), "modalities": names}
        rows = max(len(turn.words or ()), 1)
        if name == "audio_alignment":
            times = np.arange(self._audio_frames(turn.example)) * self.model.config.audio_frame_seconds
        else:
            frames = turn.example.get("pixel_values", turn.example.get("vision_embeds", ()))
            times = torch.as_tensor(turn.example.get("vision_times", range(len(frames)))).numpy()
        times = times + turn.example.get("begins", 0.0)  # of the whole clip, as its words' times are
        return {"weights": weights[:rows, : len(times)].numpy(), "frame_times": times}

    def _audio_frames(self, example: Mapping[str, Any]) -> int:
        """Frames the model, or that of its branches which makes the most, makes of a clip's sound."""
        if "input_values" in example:
            samples = torch.tensor(len(example["input_values"]))
            encoders = [part for name, part in self.model.named_modules() if name.split(".")[-1] == "audio_model"]
            return max([0, *(int(encoder._get_feat_extract_output_lengths(samples)) for encoder in encoders)])
        return len(example.get("audio_embeds", ()))

    def save_pretrained(self, save_directory: str | PathLike, **kwargs: Any) -> None:
        """Model and processor; transformers' own leaves the processor out."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)


ALIGNMENTS = {"audio_alignment": "alignment", "vision_alignment": "face_alignment", "attentions": "modality_attention"}
"""Outputs of the models that explain them, and their names in a detailed result."""


def as_clip(source: Any) -> dict[str, Any]:
    """A path, bytes, (array, rate) or dict -> a dict with `CLIP_KEYS`.

    Raises:
        ValueError: a dict with another key, or an empty one; a text that is no string.
    """
    if isinstance(source, Mapping):
        if "array" in source:  # an Audio of `datasets`, decoded
            return {"audio": dict(source)}
        if "bytes" in source:  # an Audio or Video of `datasets`, as stored
            return {"path": dict(source)}
        if "raw" in source:  # as other audio pipelines take an array
            return {"audio": {"array" if name == "raw" else name: value for name, value in source.items()}}
        unknown = sorted(set(source) - set(CLIP_KEYS))
        if unknown or not source:
            raise ValueError(f"a clip has keys among {', '.join(CLIP_KEYS)}; found {', '.join(unknown) or 'none'}")
        if not isinstance(source.get("text"), str | None):
            raise ValueError(f"text is one clip's transcript, a string; found {str(source['text'])[:80]!r}")
        return dict(source)
    if isinstance(source, str | PathLike):
        return {"path": fspath(source)}
    if isinstance(source, bytes | bytearray):
        return {"path": source}
    return {"audio": source}


def given_profile(clip: Mapping[str, Any]) -> SpeakerProfile:
    """The profile a clip comes with as `speaker`, an empty one where it has none.

    Raises:
        ValueError: something else than a profile or the path of one.
    """
    speaker = clip.get("speaker")
    if speaker is None:
        return SpeakerProfile()
    if isinstance(speaker, str | PathLike):
        return SpeakerProfile.load(speaker)
    if type(speaker).__name__ != SpeakerProfile.__name__:  # by name: a checkpoint's own code has a class of its own
        raise ValueError(f"speaker is a profile from enrol(), or the path of one; found {type(speaker).__name__}")
    return speaker


def describe(clip: Mapping[str, Any]) -> str:
    """A clip for an error message: its file where it has one, else what it consists of."""
    for key in ("path", "audio", "video"):
        source = clip.get(key)
        if isinstance(source, Mapping):
            source = source.get("path")
        if isinstance(source, str | PathLike):
            return fspath(source)
    given = ["bytes" if key == "path" else key for key, value in clip.items() if value is not None]
    return f"a clip of {', '.join(given) or 'nothing'}"


def transcribe(asr: Any, audio: np.ndarray) -> list[dict[str, Any]]:
    """Words from an automatic-speech-recognition pipeline, with times where it gives them for every word.

    asr is called as `asr({"raw": audio, "sampling_rate": 16000}, return_timestamps="word")` and returns {"text"} and,
    where it knows times, "chunks" [{"text", "timestamp": (start, end)}] in seconds.
    """
    result = asr({"raw": audio, "sampling_rate": SAMPLING_RATE}, return_timestamps="word")
    chunks = result.get("chunks") or []
    words = [{"word": chunk["text"], "start": chunk["timestamp"][0], "end": chunk["timestamp"][1]} for chunk in chunks]
    if words and all(None not in word.values() and word["start"] <= word["end"] for word in words):
        return words
    return [{"word": word} for word in split_words(result["text"])]
