"""MerProcessor: audio, words with their times and face frames of clips -> model inputs.

| | audio | text | vision |
|---|---|---|---|
| raw input | `input_values` (batch, samples), float in [-1, 1], 16 kHz | `input_ids` (batch, tokens) | `pixel_values` (batch, frames, c, h, w) |
| raw mask | `input_values_mask` | `attention_mask` | `pixel_values_mask` (batch, frames) |
| time | from the encoder's stride | `word_ids` (batch, tokens), -1 = no word; `word_times` (batch, words, 2) | `vision_times` (batch, frames) |

Masks are bool, True = real; times are seconds from the clip's start. In a dialogue every tensor has one more axis,
turns, after the batch, and there is a `turn_mask` (batch, turns).

An example may also hold `audio_speaker` and `vision_speaker` (2, dim), the statistics of an enrolled speaker that
`MerPreTrainedModel.speaker_statistics` makes of a profile; padded they are (batch, 2, dim), zeros for nobody enrolled.
"""  # noqa: E501 - a table's row is one line

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import (
    BatchFeature,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    ViTImageProcessor,
    Wav2Vec2FeatureExtractor,
)

from .alignment import Word, split_words, written_words
from .batching import pad_dialogues, pad_examples
from .configuration_front_ends import SAMPLING_RATE
from .front_ends import loud_part
from .media import NoStreamError, crop_face, load_audio, load_frames

PAD_TOKEN, UNKNOWN_TOKEN = "[PAD]", "[UNK]"
NO_LIMIT = 1_000_000
"""Tokens; transformers states "no limit" as 1e30."""
SINGLE_DIMS = {"audio": 1, "frames": 4, "frame_times": 1}
"""Dimensions of an array that is one clip's and not one a clip."""


def word_tokenizer(transcripts: Iterable[str | None], max_words: int | None = None) -> PreTrainedTokenizerFast:
    """A word table's tokenizer: every word of the transcripts, most frequent first, after padding and unknown.

    Pass the transcripts of the training split only: a word that training never saw must be unknown at test too.

    Raises:
        ValueError: one string in place of many.
    """
    if isinstance(transcripts, str):
        raise ValueError("transcripts is one string, whose letters would be the words; pass a list of transcripts")
    counts: dict[str, int] = {}
    for transcript in transcripts:
        for word in split_words(transcript or ""):
            counts[word] = counts.get(word, 0) + 1
    words = sorted(counts, key=lambda word: (-counts[word], word))[:max_words]
    table = {token: index for index, token in enumerate([PAD_TOKEN, UNKNOWN_TOKEN, *words])}
    tokenizer = Tokenizer(models.WordLevel(table, unk_token=UNKNOWN_TOKEN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD_TOKEN, unk_token=UNKNOWN_TOKEN)


def clean_words(words: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Words, as recognisers and corpora write them, to words as `split_words` makes them, which models are trained on.

    words [{"word", "start", "end"}], in seconds, all with times or all without (absent or None). What is no word
    ("--", "...") goes with its time; "Well-known" is one entry "well known" where it has a time, else two. A
    `written` that an entry has, its stretch of the transcript as `written_words` gives it, stays with it.

    Raises:
        ValueError: an entry that is no such dict, times for some words only, or times that are no stretch of the clip.
    """
    _check_words(words)
    untimed = [word.get("start") is None or word.get("end") is None for word in words]
    if any(untimed) and not all(untimed):
        raise ValueError(f"words: {words[untimed.index(True)]} has no start or no end, others do; time all or none")
    if any(untimed):
        return [part for word in words for part in _parts(word)]
    cleaned = []
    for word in words:
        text, start, end = " ".join(split_words(word["word"])), *_seconds(word)
        if not 0 <= start <= end < math.inf:
            raise ValueError(f"words: {text!r} is from {start:g} to {end:g}; give seconds from the clip's start")
        if text:
            written = {"written": word["written"]} if "written" in word else {}
            cleaned.append({"word": text, "start": start, "end": end} | written)
    return cleaned


def _check_words(words: Any) -> None:
    """Raise ValueError for what is no list of {"word": a string}."""
    entries = [] if isinstance(words, str) else words
    if isinstance(words, str) or not all(
        isinstance(word, Mapping) and isinstance(word.get("word"), str) for word in entries
    ):
        raise ValueError(f'words is a list of {{"word", "start", "end"}}; found {str(words)[:80]}')


def _seconds(word: Mapping[str, Any]) -> tuple[float, float]:
    try:
        return float(word["start"]), float(word["end"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"words: start and end of {dict(word)} must be numbers, seconds of the clip") from error


def _parts(word: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The words of an entry without a time; where their spelling is not that of its `written`, the first has it."""
    parts = split_words(word["word"])
    if "written" not in word:
        return [{"word": part} for part in parts]
    own = written_words(word["written"])
    if [part["word"] for part in own] == parts:
        return own
    return [{"word": part, "written": word["written"] * (index == 0)} for index, part in enumerate(parts)]


class MerProcessor(ProcessorMixin):
    """One processor for all three modalities, saved and loaded as one.

    All three parts are always there (they are small); `default` fills in what a model does not use.
    num_frames: face frames sampled uniformly from a video; crop_faces: cut the largest face out of each frame and
    leave frames without one out (needs the extra `mer-hf[video]`); trim_db: cut what is quieter than this many
    decibels under the loudest 10 ms off both ends of the sound, and count all times from where it then begins;
    keep_punctuation: give the tokenizer the words as they are written, case and punctuation included, the latter as
    part of the word it stands at. For tokenizers that were trained on text; a table of words knows no "Hello,".

    Raises:
        ValueError: a trim_db of 0 or less; a feature extractor for another rate; a tokenizer that cannot say which
            word a token belongs to.
    """

    def __init__(
        self,
        feature_extractor: Wav2Vec2FeatureExtractor,
        tokenizer: PreTrainedTokenizerBase,
        image_processor: ViTImageProcessor,
        num_frames: int = 8,
        crop_faces: bool = False,
        trim_db: float | None = None,
        keep_punctuation: bool = False,
        **kwargs,
    ):
        super().__init__(feature_extractor, tokenizer, image_processor, **kwargs)
        if feature_extractor.sampling_rate != SAMPLING_RATE:
            raise ValueError(
                f"feature_extractor must be for {SAMPLING_RATE} Hz, not {feature_extractor.sampling_rate}"
            )
        if not tokenizer.is_fast:
            raise ValueError(f"tokenizer {type(tokenizer).__name__} knows no word_ids; use its fast version")
        self.num_frames = num_frames
        if trim_db is not None and not trim_db > 0:
            raise ValueError(f"trim_db must be above 0 decibels, found {trim_db}")
        self.crop_faces = crop_faces
        self.trim_db = trim_db
        self.keep_punctuation = keep_punctuation

    @classmethod
    def default(
        cls,
        feature_extractor: Any = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        image_processor: Any = None,
        **values: Any,
    ) -> "MerProcessor":
        """A processor with simple parts where none is given: audio as it is, an empty word table, 224 x 224 images."""
        return cls(
            feature_extractor or Wav2Vec2FeatureExtractor(do_normalize=False),
            tokenizer if tokenizer is not None else word_tokenizer([]),
            image_processor or ViTImageProcessor(),
            **values,
        )

    def load(self, audio: Any = None, video: Any = None, optional: bool = False) -> dict[str, np.ndarray]:
        """Sources as `load_audio` and `load_frames` take them -> `audio`, `frames` and `frame_times` for `example`.

        With crop_faces, frames without a face are left out; where none has one there are no frames. optional: leave
        out what a readable source does not have, instead of NoStreamError.

        Raises:
            MediaError: naming the file and the remedy; NoStreamError where it has no sound or no picture.
        """
        decoded = {}
        lacking = NoStreamError if optional else ()
        with suppress(lacking):
            decoded |= {} if audio is None else {"audio": load_audio(audio, SAMPLING_RATE)}
        with suppress(lacking):
            decoded |= {} if video is None else self._decode_video(video)
        return decoded

    def _decode_video(self, video: Any) -> dict[str, np.ndarray]:
        frames, times = load_frames(video, self.num_frames)
        if self.crop_faces:
            crops, found = crop_face(frames)
            frames, times = crops[found], times[found]
        return {"frames": frames, "frame_times": times} if len(frames) else {}

    def example(
        self,
        audio: np.ndarray | None = None,
        text: str | None = None,
        words: Sequence[Word | Mapping[str, Any]] | None = None,
        frames: np.ndarray | None = None,
        frame_times: np.ndarray | None = None,
    ) -> dict[str, torch.Tensor]:
        """One clip, decoded -> an example without padding, as `pad` takes it.

        audio float (samples,) at 16 kHz; text a transcript, or words [{"word", "start", "end"}] with times in seconds
        or without; frames uint8 (frames, height, width, 3) with frame_times (frames,) in seconds. None = the clip has
        none. With trim_db, `begins` is the second that the times count from. `word_times` has a row for every word,
        also for those beyond the tokenizer's limit, without tokens.

        Raises:
            ValueError: audio with channels, frames without times or with another number of them, and what
                `clean_words` refuses.
        """
        example, begins = {}, 0.0
        if audio is not None:
            if np.ndim(audio) != 1:
                raise ValueError(f"audio of one clip is (samples,), mono; found {np.shape(audio)}")
            if self.trim_db is not None:
                kept = loud_part(audio, self.trim_db)
                audio, begins = audio[kept], kept.start / SAMPLING_RATE
                example["begins"] = begins
            values = self.feature_extractor(audio, sampling_rate=SAMPLING_RATE, return_tensors="pt").input_values
            example["input_values"] = values[0].float()
        words = self.words(text, words)
        if words:
            example |= self._tokens(words)
        if words and "start" in words[0]:
            times = torch.tensor([[word["start"], word["end"]] for word in words], dtype=torch.float32)
            example["word_times"] = (times - begins).clamp(min=0)
        if (frames is None) != (frame_times is None) or (frames is not None and len(frames) != len(frame_times)):
            raise ValueError("frames and frame_times go together, one time a frame")
        if frames is not None and len(frames):
            example["pixel_values"] = self.image_processor(list(frames), return_tensors="pt").pixel_values
            example["vision_times"] = torch.as_tensor(frame_times, dtype=torch.float32) - begins
        return example

    def words(self, text: str | None, words: Sequence[Word | Mapping[str, Any]] | None = None) -> list[dict[str, Any]]:
        """The words of a transcript, or given ones cleaned: {"word"} with "start" and "end" where these are known,
        and with "written" where this processor keeps punctuation. Given words that are those of the text are written
        as there, others as they are.

        Raises:
            ValueError: as `clean_words`.
        """
        if not self.keep_punctuation:
            return clean_words(words) if words else [{"word": word} for word in split_words(text or "")]
        written = written_words(text or "")
        if not words:
            return written
        _check_words(words)
        own = [word if "written" in word else {**word, "written": f"{word['word'].strip()} "} for word in words]
        cleaned = clean_words(own)
        if [word for entry in cleaned for word in entry["word"].split()] != [word["word"] for word in written]:
            return cleaned
        stretches = iter(word["written"] for word in written)
        return [entry | {"written": "".join(next(stretches) for _ in entry["word"].split())} for entry in cleaned]

    def _tokens(self, words: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        # As one text, not word by word: byte-level tokenizers (RoBERTa) glue a list of words together.
        stretches = [entry.get("written", f"{entry['word']} ") for entry in words]
        spaces = [len(stretch) - len(stretch.rstrip()) for stretch in stretches]  # each belongs to the word after it
        word_of_character = [
            index
            for index, (stretch, after, before) in enumerate(zip(stretches, spaces, [0, *spaces], strict=False))
            for _ in range(len(stretch) - after + before)
        ]
        encoded = self.tokenizer(
            "".join(stretches).rstrip(),
            truncation=self.tokenizer.model_max_length < NO_LIMIT,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
        )
        word_ids = [
            -1 if special else word_of_character[min(start, len(word_of_character) - 1)]
            for (start, _), special in zip(encoded["offset_mapping"], encoded["special_tokens_mask"], strict=True)
        ]
        if max(word_ids, default=-1) < 0:
            return {}
        return {"input_ids": torch.tensor(encoded["input_ids"]), "word_ids": torch.tensor(word_ids)}

    def __call__(
        self,
        audio: Sequence[np.ndarray | None] | np.ndarray | None = None,
        text: Sequence[str | None] | str | None = None,
        words: Sequence[Sequence[Word] | None] | Sequence[Word] | None = None,
        frames: Sequence[np.ndarray | None] | np.ndarray | None = None,
        frame_times: Sequence[np.ndarray | None] | np.ndarray | None = None,
    ) -> BatchFeature:
        """Decoded clips -> a padded batch. Each argument is a list with one entry a clip; None = it has none.

        One clip need not be in lists: audio (samples,), a string, a list of words, frames (frames, height, width, 3)
        with their times are a batch of one. Entries: see `example`. For paths, bytes and dialogues use the pipeline.

        Raises:
            ValueError: lists of different lengths, nothing at all, and what `example` refuses.
        """
        columns = {"audio": audio, "text": text, "words": words, "frames": frames, "frame_times": frame_times}
        columns = {
            name: [values] if _is_one_clip(name, values) else list(values)
            for name, values in columns.items()
            if values is not None
        }
        lengths = {name: len(values) for name, values in columns.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(
                f"give at least one of audio, text, words, frames, all for the same clips; found {lengths}"
            )
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        return BatchFeature(self.pad([self.example(**row) for row in rows]))

    def pad(self, examples: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
        """Examples of clips, or of dialogues (lists of examples) -> a padded batch with masks."""
        if examples and not isinstance(examples[0], Mapping):
            return pad_dialogues(examples)
        return pad_examples(examples)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_values", "input_ids", "pixel_values"]


def _is_one_clip(name: str, values: Any) -> bool:
    if name in SINGLE_DIMS:
        return isinstance(values, np.ndarray) and values.ndim == SINGLE_DIMS[name]
    return isinstance(values, str) or (name == "words" and len(values) > 0 and isinstance(values[0], Mapping))
