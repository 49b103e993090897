"""When each word of a transcript is spoken, by any CTC checkpoint of transformers that reads a waveform.

wav2vec2, HuBERT, WavLM, SEW, data2vec-audio and their kin, in the language they were trained on: the most likely path
of the words' letters through the model's frames (CTC forced alignment, Kürzinger et al. 2020, arXiv:2007.09127;
torchaudio's `forced_align`). Where English is spoken and no checkpoint is at hand, `WordAligner` does without one.
"""

import hashlib
import itertools
import math
import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import AutoFeatureExtractor, AutoModelForCTC, AutoTokenizer, PreTrainedModel, ProcessorMixin
from transformers import PreTrainedTokenizerBase as Tokenizer

from .alignment import SAMPLING_RATE, AlignmentError, Word, WordAlignment, check_audio, checked_words, number_words
from .media import resample

# A CTC model announces a letter late and drops it early: so many seconds of a word lie before its first letter's
# frames and after its last one's. Set with small models on the controlled corpus; pretrained ones were not at hand.
LEAD, TAIL = 0.06, 0.02

# Where the letters score lower, the words are taken to be wrong. Of the controlled corpus's test speakers a small
# model refuses no right transcript, and of wrong ones 99 % if it was trained until it spells nearly all words, else
# half.
LOWEST_SCORE = -2.0

WINDOW = 30.0
"""Seconds of audio the model sees at once, `CONTEXT` on either side not counted: attention grows with the square."""
CONTEXT = 2.0
LONGEST = 600.0
"""Seconds of audio; the search for the path needs memory for frames times letters."""


class CTCWordAligner:
    """Words to times, with the contract of `WordAligner`. May be called from several threads.

    model: a folder or a Hub id, or a loaded `AutoModelForCTC` with its `processor`, which is used on the device and
        in the type it has, and put into evaluation mode.
    lowest_score: below this `WordAlignment.score` words are taken not to be those that are said. Models differ;
        -math.inf refuses none.

    Raises:
        ValueError: no CTC head in the checkpoint; a model that does not read a waveform; a vocabulary of word pieces
            or phones; a blank on which model and tokenizer disagree.
    """

    def __init__(
        self,
        model: str | os.PathLike | PreTrainedModel,
        processor: ProcessorMixin | None = None,
        lowest_score: float = LOWEST_SCORE,
    ) -> None:
        if isinstance(model, PreTrainedModel):
            if processor is None:
                raise ValueError("processor is missing: a loaded model needs the one it was trained with")
            self._feature_extractor, tokenizer = processor.feature_extractor, processor.tokenizer
        else:
            # Not AutoProcessor: the one of a checkpoint with a language model would ask for pyctcdecode.
            self._feature_extractor = AutoFeatureExtractor.from_pretrained(model)
            tokenizer, model = AutoTokenizer.from_pretrained(model), _load(model)
        self._model = model.eval()
        self._frames = _frame_grid(model, self._feature_extractor.sampling_rate)
        self._alphabet = _alphabet(tokenizer, model)
        self._lowest_score = lowest_score

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the weights and of what is done with their answers: what cached times are filed under."""
        alphabet = sorted(self._alphabet.letters.items()), self._alphabet.blank, self._alphabet.delimiter
        digest = hashlib.sha256(repr((alphabet, self._frames, self._lowest_score, LEAD, TAIL)).encode())
        for name, tensor in sorted(self._model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
        return digest.hexdigest()

    def align(self, audio: np.ndarray, words: str | Sequence[str]) -> WordAlignment:
        """Place every word of a transcript.

        audio float (samples,) in [-1, 1] at 16 kHz, as `load_audio` returns it; another rate cannot be noticed.
        `words` is a transcript, or its words as `split_words` makes them. At most `LONGEST` seconds; more than
        `WINDOW` are shown to the model piece by piece.

        The result's `attempts` is 1. `score` and `word_scores` are in nats below the model's own best guess, a mean
        over the frames that hold a letter in the words or in that guess: 0 where the model hears just these letters.
        `fallback_words` are those not spelled as they stand: digits written out in English, letters that the
        vocabulary lacks left out or without their accents. An apostrophe, which has no sound, is left out unsaid.

        Raises:
            AlignmentError: no words, or one that is no single word or has no letter of the vocabulary; audio of
                another type, shape or scale, empty, silent, too short or too long; words that fit it badly.
            ImportError: where torchaudio is missing.
        """
        words = checked_words(words)
        seconds = check_audio(audio)
        if not audio.any():
            raise AlignmentError("audio is silent: every sample is zero; leave the alignment out")
        if seconds > LONGEST:
            raise AlignmentError(f"{seconds:.0f} s of audio, expected {LONGEST:.0f} or less; cut it")
        spellings = [self._alphabet.spell(word) for word in words]
        log_probs = self._log_probs(audio, words, spellings)
        path, spans = _best_path(log_probs, spellings, self._alphabet)
        loss, holds_letter = _losses(log_probs, path, self._alphabet)
        score = _mean(loss, holds_letter)
        if score < self._lowest_score:
            raise AlignmentError(
                f"the {len(words)} words fit the audio badly: score {score:.1f}, expected {self._lowest_score} or "
                "more; check that they are what is said, and that the audio is 16 kHz"
            )
        times = _widen(self._frames.seconds(spans), seconds)
        return WordAlignment(
            words=tuple(
                Word(word=word, start=round(start, 4), end=round(end, 4))
                for word, (start, end) in zip(words, times.tolist(), strict=True)
            ),
            attempts=1,
            score=score,
            fallback_words=tuple(
                dict.fromkeys(word for word, spelled in zip(words, spellings, strict=True) if not spelled.exact)
            ),
            word_scores=tuple(_mean(loss[start:end], holds_letter[start:end]) for start, end in spans.tolist()),
        )

    def _log_probs(self, audio: np.ndarray, words: list[str], spellings: list["_Spelling"]) -> Tensor:
        """(frames, vocabulary) float32 on the CPU, of audio long enough for the words."""
        values = self._input_values(audio)
        frames = self._frames.count(len(values))
        needed = _frames_needed(_letters(spellings, self._alphabet.delimiter))
        if frames < needed:
            raise AlignmentError(
                f"{len(audio) / SAMPLING_RATE:.2f} s of audio is too short: {max(frames, 0)} frames for {len(words)} "
                f"words that need {needed}; check both"
            )
        windows = math.ceil(frames * self._frames.stride / self._frames.rate / WINDOW)
        edges = [round(frames * window / windows) for window in range(windows + 1)]
        context = round(CONTEXT * self._frames.rate / self._frames.stride)
        pieces = []
        for start, end in itertools.pairwise(edges):
            first, last = max(0, start - context), min(frames, end + context)
            stop = self._frames.last_sample(last) if last < frames else len(values)
            logits = self._logits(values[first * self._frames.stride : stop])
            if len(logits) != last - first:
                raise ValueError(
                    f"model {self._model.config.model_type!r} gave {len(logits)} frames, expected {last - first} by "
                    "its conv_kernel and conv_stride; it cannot be used for alignment"
                )
            pieces.append(logits[start - first : end - first])
        log_probs = torch.cat(pieces).log_softmax(dim=-1)
        if not log_probs.isfinite().all():
            raise AlignmentError("the model's output is not finite; load it in float32")
        return log_probs

    def _input_values(self, audio: np.ndarray) -> np.ndarray:
        """(samples,) at the model's own rate, normalised over the whole clip as it was in training."""
        rate = self._frames.rate
        waveform = resample(audio.astype(np.float32), SAMPLING_RATE, rate)
        return self._feature_extractor(waveform, sampling_rate=rate, return_tensors="np").input_values[0]

    @torch.inference_mode()
    def _logits(self, values: np.ndarray) -> Tensor:
        """One clip at a time, so that group-norm encoders need no mask: (frames, vocabulary)."""
        batch = torch.from_numpy(values)[None].to(self._model.device, self._model.dtype)
        return self._model(batch).logits[0].float().cpu()


# -- The checkpoint ---------------------------------------------------------------------------------------------------


def _load(name: str | os.PathLike) -> PreTrainedModel:
    model, report = AutoModelForCTC.from_pretrained(name, output_loading_info=True)
    missing = sorted(key for key in report["missing_keys"] if key.startswith("lm_head"))
    if missing:
        raise ValueError(f"{os.fspath(name)} has no CTC head ({', '.join(missing)}); name one fine-tuned for CTC")
    return model


class _FrameGrid(NamedTuple):
    """Which samples a frame of the model sees: `field` of them, from `stride` times its number on, at `rate` Hz."""

    stride: int
    field: int
    rate: int

    def count(self, samples: int) -> int:
        return (samples - self.field) // self.stride + 1

    def last_sample(self, frames: int) -> int:
        return (frames - 1) * self.stride + self.field

    def seconds(self, frames: np.ndarray) -> np.ndarray:
        """When frames begin. A frame stands for the `stride` samples in the middle of those it sees."""
        return (frames * self.stride + (self.field - self.stride) / 2) / self.rate


def _frame_grid(model: PreTrainedModel, rate: int) -> _FrameGrid:
    config = model.config
    if model.main_input_name != "input_values" or getattr(config, "conv_stride", None) is None:
        raise ValueError(
            f"model {config.model_type!r} does not read a waveform; use wav2vec2, HuBERT, WavLM or another CTC model "
            "whose configuration has conv_stride"
        )
    if getattr(config, "add_adapter", False):
        raise ValueError(f"model {config.model_type!r} has an adapter that merges frames; use one without")
    stride, field = 1, 1
    for kernel, step in zip(config.conv_kernel, config.conv_stride, strict=True):
        field += (kernel - 1) * stride
        stride *= step
    return _FrameGrid(stride, field, rate)


# -- The letters ------------------------------------------------------------------------------------------------------


class _Spelling(NamedTuple):
    """Token ids of a word, and whether they are the very characters of it."""

    ids: tuple[int, ...]
    exact: bool


@dataclass(frozen=True)
class _Alphabet:
    letters: dict[str, int]
    blank: int
    delimiter: int | None  # between words, where the model was trained to put one

    def spell(self, word: str) -> _Spelling:
        parts = [word]
        if any(char.isdecimal() and char not in self.letters for char in word):
            parts = [said for part in re.findall(r"\d+|\.|[^\d.]+", word) for said in _say(part)]
        spelled = [[self._spell_character(char) for char in part] for part in parts]
        ids = [[number for found in part for number in found.ids] for part in spelled]
        if not any(ids):
            raise AlignmentError(f"{word!r} has no letter of the model's vocabulary; take a model of its language")
        exact = parts == [word] and all(found.exact for part in spelled for found in part)
        return _Spelling(tuple(_join([part for part in ids if part], self.delimiter)), exact)

    def _spell_character(self, char: str) -> _Spelling:
        bare = "".join(c for c in unicodedata.normalize("NFKD", char) if not unicodedata.combining(c))
        for form in (char, char.upper(), char.casefold(), bare, bare.upper()):
            ids = [self.letters.get(letter) for letter in form]
            if ids and None not in ids:
                return _Spelling(tuple(ids), form in (char, char.upper()))
        return _Spelling((), exact=char == "'")


def _say(part: str) -> list[str]:
    if part == ".":
        return ["point"]
    return number_words(part) if part.isdecimal() else [part]


def _alphabet(tokenizer: Tokenizer, model: PreTrainedModel) -> _Alphabet:
    blank = model.config.pad_token_id
    if blank is None or blank != tokenizer.pad_token_id:
        raise ValueError(
            f"the blank is token {blank} for the model (config.pad_token_id) and {tokenizer.pad_token_id} for the "
            "tokenizer (pad_token_id); set both to the one of the training"
        )
    vocabulary, outputs = tokenizer.get_vocab(), model.config.vocab_size
    named = [getattr(tokenizer, "word_delimiter_token", None), "|", " "]
    # wav2vec2's tokenizer adds a delimiter of its own, beyond the model's outputs, where the vocabulary has none.
    present = (vocabulary[token] for token in named if token in vocabulary)
    delimiter = next((number for number in present if number < outputs and number != blank), None)
    apart = {blank, delimiter, *tokenizer.all_special_ids}
    plain = {
        token: number
        for token, number in vocabulary.items()
        if number not in apart and token not in named and token[:1] not in "<["
    }
    long = [token for token in plain if len(token) > 1]
    if len(long) > len(plain) / 5:
        raise ValueError(
            f"the tokenizer has word pieces or phones ({', '.join(long[:3])}, ...); alignment needs a CTC model of "
            "single characters"
        )
    letters = {token: number for token, number in plain.items() if len(token) == 1}
    if not letters or max(letters.values()) >= outputs:
        raise ValueError(
            f"the tokenizer has {len(letters)} characters with ids up to {max(letters.values(), default=-1)}, the "
            f"model {outputs} outputs; take the processor that belongs to the model"
        )
    return _Alphabet(letters, blank, delimiter)


def _join(parts: list[list[int]] | list[tuple[int, ...]], delimiter: int | None) -> list[int]:
    joined = list(parts[0])
    for part in parts[1:]:
        joined += [*([] if delimiter is None else [delimiter]), *part]
    return joined


def _letters(spellings: list[_Spelling], delimiter: int | None) -> list[int]:
    return _join([spelling.ids for spelling in spellings], delimiter)


def _frames_needed(letters: list[int]) -> int:
    """One a letter, and a blank between equal ones, which would else be taken for one."""
    return len(letters) + sum(before == after for before, after in itertools.pairwise(letters))


# -- The path ---------------------------------------------------------------------------------------------------------


def _best_path(log_probs: Tensor, spellings: list[_Spelling], alphabet: _Alphabet) -> tuple[Tensor, np.ndarray]:
    """The token of each frame, (frames,), and from which to which frame each word's letters go, (words, 2)."""
    try:
        from torchaudio.functional import forced_align, merge_tokens
    except ImportError as error:
        raise ImportError("CTC alignment needs torchaudio: pip install torchaudio") from error
    letters = torch.tensor([_letters(spellings, alphabet.delimiter)])
    paths, scores = forced_align(log_probs[None], letters, blank=alphabet.blank)
    tokens = merge_tokens(paths[0], scores[0], blank=alphabet.blank)
    spans, position = [], 0
    for spelling in spellings:
        last = position + len(spelling.ids) - 1
        spans.append((tokens[position].start, tokens[last].end))
        position = last + 1 + (alphabet.delimiter is not None)
    return paths[0], np.array(spans)


def _losses(log_probs: Tensor, path: Tensor, alphabet: _Alphabet) -> tuple[Tensor, Tensor]:
    """(frames,) nats by which the path is below the best token, and which frames hold a letter in one of the two."""
    best, guess = log_probs.max(dim=-1)
    loss = log_probs.gather(1, path[:, None])[:, 0] - best
    silent = torch.tensor([alphabet.blank, alphabet.blank if alphabet.delimiter is None else alphabet.delimiter])
    return loss, ~(torch.isin(path, silent) & torch.isin(guess, silent))


def _mean(values: Tensor, chosen: Tensor) -> float:
    return float(values[chosen].mean())


def _widen(times: np.ndarray, seconds: float) -> np.ndarray:
    """Give each word the LEAD and TAIL of its letters; a shorter gap between two words is shared in proportion.

    times (words, 2) of the letters, in order; seconds: the length of the clip.
    """
    times = times.clip(0.0, seconds)
    share = np.minimum((times[1:, 0] - times[:-1, 1]) / (LEAD + TAIL), 1.0)
    widened = times.copy()
    widened[:-1, 1] += TAIL * share
    # Words that meet share one edge to the last digit, or rounding would make some overlap.
    widened[1:, 0] = np.where(share < 1.0, widened[:-1, 1], times[1:, 0] - LEAD)
    widened[0, 0] = max(times[0, 0] - LEAD, 0.0)
    widened[-1, 1] = min(times[-1, 1] + TAIL, seconds)
    return widened
