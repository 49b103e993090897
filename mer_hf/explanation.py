"""Why a model said what it said: what each modality and each word of a clip did for a label.

Values are centred logits, v = z_label - mean_j z_j with z the model's logits over its calibration temperature: the
log-probability of the label against the geometric mean of all labels'. Unlike a probability or its logarithm, which
level off near certainty, they add up where independent evidence multiplies; what shifts all logits alike, and so no
score, leaves them alone; and 0 is the answer that favours nothing, with any number of labels, so that models compare.

Modalities: exact Shapley values (L. S. Shapley: A Value for n-Person Games, 1953), equation 4 of S. M. Lundberg, S.-I.
Lee: A Unified Approach to Interpreting Model Predictions, NeurIPS 2017, https://arxiv.org/abs/1705.07874,

    phi_m = sum over S without m of |S|! (n - |S| - 1)! / n! * (v(S + m) - v(S))

over all 2^n subsets S of the n modalities that the clip has. v(S) is what the model answers when it is given S and no
more: all models take any subset of their modalities, so absence needs no stand-in from other data. v(nothing) is what
a model leans to by its biases, 0 for late fusion, in which nobody votes then. Word times come with the words and go
with them. The values add up to v(all) - v(nothing).

Words: occlusion (M. D. Zeiler, R. Fergus: Visualizing and Understanding Convolutional Networks, ECCV 2014,
https://arxiv.org/abs/1311.2901), v(all) - v(all but the word). These do not add up to anything: two words that say the
same each lose nothing. What is masked:
- text: the word's tokens become the tokenizer's mask token (BERT), else its unknown token (our word tables), else they
  are left out. The word keeps its place and its time. Vectors computed beforehand have no token and are not masked.
- sound: the samples in the word's time become 0, behind the processor's scaling and trimming, so that these stay as
  they were. Frames computed beforehand become the mean of the clip's other frames: no vector of theirs is silence.

In a dialogue, turns are masked one at a time, within the others as they are. `mer_hf.plots` draws explanations.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

FIELDS = {
    "audio": ("input_values", "audio_embeds", "audio_speaker"),
    "text": ("input_ids", "word_ids", "text_embeds", "word_times"),
    "vision": ("pixel_values", "vision_embeds", "vision_times", "vision_speaker"),
}
"""What of an example goes with a modality."""
RAW = {"audio": "input_values", "text": "input_ids", "vision": "pixel_values"}
RAW_MASKS = {"audio": "input_values_mask", "text": "attention_mask", "vision": "pixel_values_mask"}
SAMPLING_RATE = 16_000
ROWS_AT_ONCE = 32
"""Clips, or turns of dialogues, in one pass over masked words."""
SAMPLES_AT_ONCE = 60 * SAMPLING_RATE
"""Of sound in one such pass, where a pass runs on sound."""


@dataclass(frozen=True)
class Explanation:
    """What a clip's modalities and words did for one label. All values are calibrated logits; see the module."""

    scores: list[dict[str, Any]]
    """[{"label", "score"}], best first, as the pipeline's"""
    label: str
    """the label explained: the best, or the one asked for"""
    modalities: dict[str, float]
    """Shapley value of each modality that is there; their sum is total - baseline"""
    baseline: float
    """value of the label with nothing there"""
    total: float
    """value of the label with everything there"""
    shares: dict[str, float]
    """|value| / sum of |values|, of each modality; zeros where all values are 0"""
    words: list[dict[str, Any]] | None
    """[{"word", "start", "end", "text", "audio", "both"}]: by how much the value drops when the word's text, the sound
    in its time (seconds), or both are masked; a key is absent where it does not apply, and the pipeline may add
    "written". None: no words, or not asked for"""
    alignment: dict[str, np.ndarray] | None
    """{"weights" (words, frames), "frame_times" (frames,) in seconds}: learned attention of each word over the sound,
    where the model has one"""

    def to_dict(self) -> dict[str, Any]:
        """All of it in lists, dicts, strings and numbers, ready for JSON."""
        values = asdict(self)
        if self.alignment is not None:
            values["alignment"] = {name: array.tolist() for name, array in self.alignment.items()}
        return values


def explain(
    classify: Callable[..., Any], clip: Any, label: str | None = None, *, words: bool = True, **call: Any
) -> Explanation | list[Explanation]:
    """What each modality and each word of a clip did for a label; for {"dialogue": [...]} a list, one a turn.

    classify: the pipeline; clip: as it takes it, text and words inside a dict; call: its arguments (asr, recognize,
    enrol_turns, prior_clips). label: the one to explain, default the best. words: also mask each word, three times at
    most. Each backbone runs once on each different input; in late fusion, whose branches have their own, on every row.

    Raises:
        ValueError: a list of clips, a label that the model does not have, and what the pipeline refuses.
    """
    if isinstance(clip, list):
        raise ValueError('clip is a list; explain one at a time, or the turns of a dialogue as {"dialogue": [...]}')
    labels = list(classify.model.config.id2label.values())
    if label is not None and label not in labels:
        raise ValueError(f"label is {label!r}; this model has {', '.join(labels)}")
    # The base class merges what the pipeline was made with and what this call gives in the same way.
    preprocess, _, postprocess = classify._sanitize_parameters(**call)
    prepared = classify.preprocess(clip, **{**classify._preprocess_params, **preprocess})
    postprocess = {**classify._postprocess_params, **postprocess, "return_details": True}
    backbones = _Backbones(classify, [turn.example for turn in prepared.turns])
    if classify.model.config.uses_context:
        turns = [_Turn(classify, prepared, index, backbones) for index in range(len(prepared.turns))]
    else:  # the others say nothing about a turn
        alone = [replace(prepared, turns=[turn], is_dialogue=False) for turn in prepared.turns]
        turns = [_Turn(classify, one, 0, backbones) for one in alone]
    found = [_explain_turn(turn, label, words, postprocess) for turn in turns]
    return found if prepared.is_dialogue else found[0]


def _explain_turn(turn: "_Turn", label: str | None, words: bool, postprocess: Mapping[str, Any]) -> Explanation:
    players = turn.prepared.turns[turn.index].modalities
    subsets = [subset for size in range(len(players) + 1) for subset in combinations(players, size)]
    outputs = turn.outputs([_without(turn.example, set(players) - set(subset)) for subset in subsets])
    result = turn.classify.postprocess(outputs[-1], **postprocess)
    result = result[turn.index] if turn.prepared.is_dialogue else result
    label = label or result["scores"][0]["label"]

    values = dict(zip(subsets, turn.values(outputs, label), strict=True))
    modalities = _shapley_values(players, values)
    size = sum(map(abs, modalities.values()))
    spoken = result["words"]
    return Explanation(
        scores=result["scores"],
        label=label,
        modalities=modalities,
        baseline=values[()],
        total=values[tuple(players)],
        shares={modality: abs(value) / size if size else 0.0 for modality, value in modalities.items()},
        words=_word_effects(turn, spoken, label, values[tuple(players)]) if words and spoken else None,
        alignment=result.get("alignment") if spoken else None,
    )


def _shapley_values(players: Sequence[str], values: Mapping[tuple[str, ...], float]) -> dict[str, float]:
    """values: of every subset, its members in the order of `players` -> the Shapley value of each player."""
    found = dict.fromkeys(players, 0.0)
    for subset, value in values.items():
        for player in players:
            others = len(subset) - (player in subset)
            weight = math.factorial(others) * math.factorial(len(players) - others - 1) / math.factorial(len(players))
            found[player] += weight * value if player in subset else -weight * value
    return found


def _word_effects(turn: "_Turn", words: Sequence[Mapping[str, Any]], label: str, total: float) -> list[dict[str, Any]]:
    """Each word with what masking its text, its sound and both takes from `total`."""
    model, example = turn.classify.model, turn.example
    has_text = "input_ids" in example and "text" in turn.prepared.turns[turn.index].modalities
    has_sound = "start" in words[0] and "audio" in turn.prepared.turns[turn.index].modalities
    stand_in = stand_in_token(turn.classify.processor.tokenizer)
    effects = [dict(word) for word in words]
    for start in range(0, len(words), turn.words_at_once):
        masked = []
        for index in range(start, min(start + turn.words_at_once, len(words))):
            text = _masked_text(example, index, stand_in) if has_text else {}
            sound = _masked_sound(model, example, index) if has_sound else {}
            kinds = {"text": text, "audio": sound, "both": text | sound if text and sound else {}}
            masked += [(effects[index], kind, example | changed) for kind, changed in kinds.items() if changed]
        if masked:
            outputs = turn.outputs([edited for _, _, edited in masked])
            for (effect, kind, _), value in zip(masked, turn.values(outputs, label), strict=True):
                effect[kind] = total - value
    return effects


def stand_in_token(tokenizer: Any) -> int | None:
    """The token a masked word's become: the mask token, else the unknown token; None = they are left out.

    GPT-2's tokenizer calls the end of a text its unknown token; that one would cut the text in two.
    """
    if tokenizer.mask_token_id is not None:
        return tokenizer.mask_token_id
    ends = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    return None if tokenizer.unk_token_id in ends else tokenizer.unk_token_id


def _masked_text(example: Mapping[str, Any], word: int, stand_in: int | None) -> dict[str, Tensor]:
    tokens, word_ids = example["input_ids"], example["word_ids"]
    if stand_in is None:
        return {"input_ids": tokens[word_ids != word], "word_ids": word_ids[word_ids != word]}
    return {"input_ids": tokens.masked_fill(word_ids == word, stand_in)}


def _masked_sound(model: Any, example: Mapping[str, Any], word: int) -> dict[str, Tensor]:
    times = example["word_times"][word]
    if "input_values" in example:
        start, end = (times * SAMPLING_RATE).round().long().tolist()
        samples = example["input_values"].clone()
        samples[start:end] = 0.0
        return {"input_values": samples}
    frames = torch.as_tensor(example["audio_embeds"], dtype=torch.float32).clone()
    inside = torch.zeros(len(frames), dtype=torch.bool)
    start, end = model.audio_word_spans(times.view(1, 1, 2), torch.ones(1, len(frames), dtype=torch.bool))[
        0, 0
    ].tolist()
    inside[start:end] = True
    frames[inside] = frames[~inside].mean(dim=0) if (~inside).any() else 0.0
    return {"audio_embeds": frames}


def _without(example: Mapping[str, Any], modalities: set[str]) -> dict[str, Any]:
    gone = {name for modality in modalities for name in FIELDS[modality]}
    return {name: value for name, value in example.items() if name not in gone}


class _Turn:
    """One turn of an input, and what the model answers when that turn's example is another."""

    def __init__(self, classify: Any, prepared: Any, index: int, backbones: "_Backbones"):
        self.classify, self.prepared, self.index, self.backbones = classify, prepared, index, backbones
        self.example = prepared.turns[index].example
        samples = len(self.example.get("input_values", ()))
        rows = min(ROWS_AT_ONCE // len(prepared.turns), SAMPLES_AT_ONCE // max(samples, 1))
        self.words_at_once = max(1, rows // 3)

    def outputs(self, examples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The pipeline's outputs with each of the examples in this turn, in one pass."""
        contexts = self.backbones([turn.example for turn in self.prepared.turns])
        turns = [replace(turn, example=e) for turn, e in zip(self.prepared.turns, contexts, strict=True)]
        inputs = []
        for example in self.backbones(examples):
            turns[self.index] = replace(turns[self.index], example=example)
            inputs.append(replace(self.prepared, turns=list(turns)))
        return self.classify.forward(inputs)

    def values(self, outputs: Sequence[Mapping[str, Any]], label: str) -> list[float]:
        """The label's centred, calibrated logit in this turn of each output."""
        config = self.classify.model.config
        place = next(index for index, name in config.id2label.items() if name == label)
        logits = [output["outputs"][self.index]["logits"].double() for output in outputs]
        return [float(row[place] - row.mean()) / config.calibration_temperature for row in logits]


class _Backbones:
    """Examples with raw input -> with the states of the backbones, each of which runs once on each different input.

    Examples that share a tensor share its states; those of the examples it is made with are kept. A modality stays raw
    where states would not be the same to the model: without a backbone of its own (late fusion), with a speaker's
    statistics, which may belong inside, and with words that have no token.
    """

    def __init__(self, classify: Any, examples: Sequence[Mapping[str, Any]]):
        self.model, self.pad = classify.model, classify.processor.pad
        stand_in = stand_in_token(classify.processor.tokenizer)
        self.modalities = [
            modality
            for modality, raw in RAW.items()
            if getattr(self.model, f"{modality}_model", None) is not None
            and not any({f"{modality}_embeds", f"{modality}_speaker"} & set(example) for example in examples)
            and (modality != "text" or (stand_in is not None and all(map(_every_word_has_a_token, examples))))
        ]
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}
        self.kept = self._states(examples)

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        states = self._states(examples)
        return [self._with_states(example, states) for example in examples]

    def _with_states(self, example: Mapping[str, Any], states: Mapping[int, tuple[Tensor, Tensor]]) -> dict[str, Any]:
        example = dict(example)
        for modality in self.modalities:
            if RAW[modality] in example:
                example[f"{modality}_embeds"] = states[id(example.pop(RAW[modality]))][1]
                if modality == "text":
                    example.pop("word_ids")
        return example

    def _states(self, examples: Sequence[Mapping[str, Any]]) -> dict[int, tuple[Tensor, Tensor]]:
        """{id of a raw tensor: (the tensor, so that no other gets its id, and its states (time, dim))}."""
        found = dict(self.kept)
        for modality in self.modalities:
            raw = RAW[modality]
            new = {id(e[raw]): e for e in examples if raw in e and id(e[raw]) not in found}
            rows = list(new.values())
            longest = max((len(e["input_values"]) for e in rows), default=1) if modality == "audio" else 1
            at_once = max(1, min(ROWS_AT_ONCE, SAMPLES_AT_ONCE // longest))
            for start in range(0, len(rows), at_once):
                found |= self._run(modality, rows[start : start + at_once])
        return found

    @torch.inference_mode()
    def _run(self, modality: str, examples: Sequence[Mapping[str, Any]]) -> dict[int, tuple[Tensor, Tensor]]:
        raw = RAW[modality]
        names = [raw, "word_ids"] if modality == "text" else [raw]
        batch = self.pad([{name: example[name] for name in names} for example in examples])
        batch = {name: value.to(self.model.device) for name, value in batch.items()}
        states, masks = self.model.run_backbone(
            modality, batch[raw], batch[RAW_MASKS[modality]], batch.get("word_ids")
        )
        return {
            id(example[raw]): (example[raw], row[mask].float().cpu())
            for example, row, mask in zip(examples, states, masks, strict=True)
        }


def _every_word_has_a_token(example: Mapping[str, Any]) -> bool:
    """Whether states of words can stand for tokens: one a word, without a gap and without a word time more."""
    if "input_ids" not in example:
        return True
    words = int(example["word_ids"].max()) + 1
    return (
        set(range(words)) <= set(example["word_ids"].tolist())
        and len(example.get("word_times", [()] * words)) == words
    )
