"""Fine-tuning the upper layers of a small BERT on labelled transcripts, cheaply enough for one CPU core.

    tokens -- embeddings, lower layers (frozen, no dropout) -- states, computed once a text and kept
    states -- upper layers (trained) -- mean over words -- Dropout -- Linear ------ logits (b, labels)

- The network is MMAN's baseline "linear": what follows the encoder must learn as fast as the encoder, in three passes.
  On MELD's validation side MMAN's cLSTM in its place was at a weighted F1 of 49.3 by then. Trained on the finished
  encoder's vectors it reached 56.2 to 57.6 with a dialogue's turns and 54.5 to 55.5 with single ones, where the Linear
  had 57.3 with either (exploratory runs).
- Kept states make a pass over MELD cost what the upper layers cost: a third of the encoder for two of six.
- A text is read in two forms: as written, and as its bare words. `MerProcessor(keep_punctuation=True)` gives the first
  for a transcript that somebody wrote, and the second is what speech recognisers give.

Deterministic for a seed, on one kind of CPU with one thread.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike

import torch
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    get_linear_schedule_with_warmup,
    set_seed,
)
from transformers.masking_utils import create_bidirectional_mask

from . import MerProcessor, MMANForEmotionClassification
from .models.backbones import ModalitySequence, pool_tokens
from .models.batching import pad_examples
from .training import TrainingSettings, parameter_groups

logger = logging.getLogger(__name__)

FORMS = ("written", "spoken")
TEXTS_AT_ONCE = 64
"""Texts of like length in one call of the frozen layers, and of the whole model when it answers."""
CHUNK = 16
"""Texts of a step that are padded together: the longest of 32 would be twice the mean."""

Turn = dict[str, Tensor]
"""`text_embeds` (tokens, width), the lower layers' states in half precision, and `word_ids` (tokens,)."""


@dataclass(frozen=True)
class FineTuning:
    """What a run needs to be repeated, but for its seed. "validation" = by MELD's, in exploratory runs of one seed."""

    trained_layers: int = 2
    """The last ones; validation: weighted F1 57.3, with 1 (of written texts alone) 55.5. More were not tried."""
    epochs: int = 3
    """Validation: each of three was better than the one before; more were not tried. The last one is kept."""
    batch_size: int = 32
    """Texts; BERT's own 16 or 32."""
    learning_rate: float = 1e-3
    """Of the Linear; untuned"""
    layer_learning_rate: float = 2e-4
    """Of the trained layers; untuned"""
    weight_decay: float = 0.01
    warmup: float = 0.1
    """Share of the steps; then the rates fall linearly to 0, as BERT's."""
    max_grad_norm: float = 1.0
    dropout: float = 0.3
    """Before the Linear; untuned. Inside the trained layers it is the encoder's own, 0.1."""
    spoken: float = 0.3
    """Share of the steps that read bare words; untuned. Validation: 46.8 on those, 45.5 without (of one layer)."""


def make_text_model(
    encoder_dir: str | PathLike, labels: Sequence[str], settings: FineTuning
) -> MMANForEmotionClassification:
    """The pretrained encoder under a new Linear; its upper layers want gradients, the rest of it none."""
    model = MMANForEmotionClassification.from_backbones(
        text=encoder_dir,
        network="linear",
        dropout=settings.dropout,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )
    model.text_model.requires_grad_(False)
    for layer in upper_layers(model, settings):
        layer.requires_grad_(True)
    return model


def upper_layers(model: MMANForEmotionClassification, settings: FineTuning) -> nn.ModuleList:
    """Those that are trained."""
    return model.text_model.encoder.layer[-settings.trained_layers :]


# States of the lower layers


def text_examples(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, form: str = "written") -> list[Turn]:
    """Examples as `MerProcessor` makes them: "written", with punctuation, or "spoken", the bare words.

    A text of punctuation alone, which is nothing to a processor, is in both forms one word.

    Raises:
        ValueError: another form.
    """
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, found {form!r}")
    processor = MerProcessor.default(tokenizer=tokenizer, keep_punctuation=form == "written")
    examples = [processor.example(text=text) for text in texts]
    return [example or _one_word(tokenizer, text) for example, text in zip(examples, texts, strict=True)]


def _one_word(tokenizer: PreTrainedTokenizerBase, text: str) -> Turn:
    ids = torch.tensor(tokenizer(text)["input_ids"])
    return {"input_ids": ids, "word_ids": torch.tensor([-1, *[0] * (len(ids) - 2), -1])}


def text_forms(
    texts: Sequence[str], encoder_dir: str | PathLike, model: MMANForEmotionClassification, settings: FineTuning
) -> dict[str, list[Turn]]:
    """The lower layers' states of each text in each of FORMS."""
    tokenizer = AutoTokenizer.from_pretrained(encoder_dir)
    return {form: lower_states(model, text_examples(texts, tokenizer, form), settings) for form in FORMS}


@torch.inference_mode()
def lower_states(model: MMANForEmotionClassification, examples: Sequence[Turn], settings: FineTuning) -> list[Turn]:
    """Examples of `MerProcessor` -> what the trained layers read of each, in half precision."""
    model.eval()
    encoder, found = model.text_model, [{}] * len(examples)
    lower = encoder.encoder.layer[: -settings.trained_layers]
    for rows in _alike([len(example["input_ids"]) for example in examples], TEXTS_AT_ONCE):
        batch = pad_examples([examples[row] for row in rows])
        states = encoder.embeddings(input_ids=batch["input_ids"])
        states = _run_layers(encoder, lower, states, batch["attention_mask"])
        for row, own, mask in zip(rows, states.half(), batch["attention_mask"], strict=True):
            found[row] = {"text_embeds": own[mask].clone(), "word_ids": examples[row]["word_ids"]}
    return found


def _alike(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Places in groups of like length."""
    order = sorted(range(len(lengths)), key=lambda place: lengths[place])
    return [order[start : start + size] for start in range(0, len(order), size)]


def _run_layers(encoder: PreTrainedModel, layers: nn.ModuleList, states: Tensor, mask: Tensor) -> Tensor:
    """states (batch, tokens, width) through some of a BERT's layers; mask (batch, tokens)."""
    attention = create_bidirectional_mask(config=encoder.config, inputs_embeds=states, attention_mask=mask)
    for layer in layers:
        states = layer(states, attention_mask=attention)
    return states


# Training and answering


def fine_tune(
    model: MMANForEmotionClassification,
    turns: dict[str, list[Turn]],
    labels: Sequence[int],
    settings: FineTuning,
    seed: int,
    after_epoch: Callable[[int, float], None] = lambda epoch, loss: None,
) -> None:
    """Train the upper layers and the Linear; afterwards the model is in evaluation mode and reads raw input as ever.

    turns: each form of every text, as `text_forms` gives them; labels: ids, one a text. after_epoch: called with the
    epoch, from 1, and the mean loss of its steps.

    Raises:
        ValueError: no text, or another number of labels.
    """
    if not labels or any(len(own) != len(labels) for own in turns.values()):
        raise ValueError(f"labels: {len(labels)}, but turns { {form: len(own) for form, own in turns.items()} }")
    set_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    targets = torch.tensor(labels)
    rates = TrainingSettings(
        learning_rate=settings.learning_rate,
        backbone_learning_rate=settings.layer_learning_rate,
        weight_decay=settings.weight_decay,
    )
    optimizer = torch.optim.AdamW(parameter_groups(model, rates))
    steps = settings.epochs * -(-len(labels) // settings.batch_size)
    schedule = get_linear_schedule_with_warmup(optimizer, int(settings.warmup * steps), steps)
    for epoch in range(1, settings.epochs + 1):
        model.train()
        losses = []
        for rows in torch.randperm(len(labels), generator=generator).split(settings.batch_size):
            form = "spoken" if torch.rand((), generator=generator) < settings.spoken else "written"
            losses.append(_backward(model, [turns[form][row] for row in rows], targets[rows], settings))
            nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        model.eval()
        after_epoch(epoch, sum(losses) / len(losses))


def _backward(
    model: MMANForEmotionClassification, turns: Sequence[Turn], targets: Tensor, settings: FineTuning
) -> float:
    """Gradients of a step's mean loss, and that loss."""
    total = 0.0
    for rows in _alike([len(turn["word_ids"]) for turn in turns], CHUNK):
        logits = _logits(model, [turns[row] for row in rows], settings)
        loss = model.classification_loss(logits, targets[rows]) * (len(rows) / len(turns))
        loss.backward()
        total += loss.item()
    return total


def _logits(model: MMANForEmotionClassification, turns: Sequence[Turn], settings: FineTuning) -> Tensor:
    """What `model.forward` gives for the raw texts, but from the lower layers' states on; (turns, labels)."""
    batch = pad_examples(turns)
    states, mask = batch["text_embeds"], batch["text_mask"]
    states = _run_layers(model.text_model, upper_layers(model, settings), states, mask)
    words: ModalitySequence = pool_tokens(states, mask, batch["word_ids"])
    return model(text_embeds=words.embeds, text_mask=words.mask).logits


@torch.inference_mode()
def turn_logits(model: MMANForEmotionClassification, turns: Sequence[Turn], settings: FineTuning) -> Tensor:
    """Logits (turns, labels) of kept states, in their order."""
    model.eval()
    found = torch.zeros(len(turns), model.config.num_labels)
    for rows in _alike([len(turn["word_ids"]) for turn in turns], TEXTS_AT_ONCE):
        found[rows] = _logits(model, [turns[row] for row in rows], settings)
    return found


@torch.inference_mode()
def text_logits(
    model: MMANForEmotionClassification,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    form: str = "written",
) -> Tensor:
    """Logits (texts, labels) from the raw texts, in their order, as the pipeline gives them.

    Raises:
        ValueError: as `text_examples`.
    """
    model.eval()
    examples = text_examples(texts, tokenizer, form)
    found = torch.zeros(len(texts), model.config.num_labels)
    for rows in _alike([len(example["input_ids"]) for example in examples], TEXTS_AT_ONCE):
        found[rows] = model(**pad_examples([examples[row] for row in rows])).logits
    return found
