"""CME over spans against CME over a dense word x frame x dim tensor, which is how its paper's code pools frames."""

from collections.abc import Iterator
from functools import partial
from statistics import median

import torch
from torch import Tensor

from . import CMEConfig, CMEForEmotionClassification
from .benchmark import Figure, Options
from .benchmark_measure import cpu_seconds, in_process, peak_growth, ratio

BATCH, FRAMES, WORDS = 32, 600, 20
SHORT, MIDDLE, LONG = 200, 2000, 20_000
FRAMES_A_WORD = FRAMES / WORDS
FRAME_SIZE, WORD_SIZE = 128, 300


def figures(options: Options) -> Iterator[Figure]:
    """Forward, training step, growth with the frames, memory."""
    model, batch = make_model(), make_batch(BATCH, FRAMES)
    on = f"batch {BATCH}, {FRAMES} frames, {WORDS} words"
    with torch.no_grad():
        off = float((model(**batch).logits - dense_forward(model, batch)).abs().max())
    yield Figure("CME: logits off the dense form's by", off, "", at_most=1e-5, note=on)
    rounds = 3 if options.quick else 15
    times = ratio(*[partial(infer, model, batch, dense) for dense in (True, False)], rounds)
    yield Figure("CME: forward, times faster than the dense form", times, "x", at_least=10, note=on)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    batch["audio_embeds"].requires_grad_()
    sides = [partial(step, model, batch, optimizer, dense) for dense in (True, False)]
    note = f"{on}; the frames have gradients, as the paper's trained front end needs them"
    yield Figure("CME: training step, times faster", ratio(*sides, rounds), "x", at_least=6, note=note)
    yield growth(model, rounds)
    for name, ours, dense in in_process(__name__, "peaks"):
        note = f"batch 4, {MIDDLE} frames: {ours / 1e6:.0f} MB, dense {dense / 1e6:.0f} MB"
        yield Figure(f"CME: peak memory of a {name}, of the dense form's", ours / dense, "", at_most=0.05, note=note)


def growth(model: CMEForEmotionClassification, rounds: int) -> Figure:
    """Time a frame at the most frames over that at the fewest; words grow with the frames."""
    few, many = (make_batch(4, frames) for frames in (SHORT, LONG))
    calls = partial(model, **many), partial(model, **few)
    with torch.inference_mode():
        for call in calls:
            call()
        longer = median(cpu_seconds(calls[0]) / cpu_seconds(calls[1], 10) for _ in range(rounds))
    name = f"CME: growth of time from {SHORT} to {LONG} frames, of linear growth"
    note = f"batch 4, a word every {FRAMES_A_WORD:g} frames: {longer:.1f} times the time"
    return Figure(name, longer * SHORT / LONG, "", at_most=1.1, note=note)


def make_model() -> CMEForEmotionClassification:
    """Two modalities over features, sizes of the paper."""
    torch.manual_seed(0)
    return CMEForEmotionClassification(CMEConfig(audio_embed_dim=FRAME_SIZE, text_embed_dim=WORD_SIZE)).eval()


def make_batch(batch: int, frames: int) -> dict[str, Tensor]:
    """Random features whose words follow each other over all frames."""
    generator, words = torch.Generator().manual_seed(0), round(frames / FRAMES_A_WORD)
    edges = torch.linspace(0, frames, words + 1).round() * 0.01  # the frames of features are 10 ms
    times = torch.stack([edges[:-1], edges[1:]], dim=-1)
    return {
        "audio_embeds": torch.randn(batch, frames, FRAME_SIZE, generator=generator),
        "text_embeds": torch.randn(batch, words, WORD_SIZE, generator=generator),
        "word_times": times.expand(batch, -1, -1).contiguous(),
    }


def dense_forward(model: CMEForEmotionClassification, batch: dict[str, Tensor]) -> Tensor:
    """Logits with the model's weights, for clips of equal lengths, from dense tensors alone."""
    embeds = batch["audio_embeds"]
    spans = model.audio_word_spans(batch["word_times"], torch.ones_like(embeds[..., 0], dtype=torch.bool))
    audio = dense_pool(model.frame_projections["audio"](embeds), spans)
    text = model.text_projection(batch["text_embeds"])
    gates = model.excitement.gates
    excited_audio = audio + audio * gates["text_to_audio"](text).sigmoid()
    excited_text = text + text * gates["audio_to_text"](audio).sigmoid()
    pairs = torch.cat([excited_audio, excited_text], dim=-1)
    forwards = model.rnn.forward_layers[0](pairs)[0]
    backwards = model.rnn.backward_layers[0](pairs.flip(1))[0].flip(1)
    return model.classifier(torch.cat([forwards, backwards], dim=-1).amax(dim=1))


def dense_pool(frames: Tensor, spans: Tensor) -> Tensor:
    """frames (b, frames, d), spans (b, words, 2) -> (b, words, 2 d), over an alignment (b, words, frames, 1)."""
    places = torch.arange(frames.shape[1], device=frames.device)
    alignment = ((places >= spans[..., :1]) & (places < spans[..., 1:])).unsqueeze(-1)
    aligned = frames.unsqueeze(1) * alignment  # (b, words, frames, d)
    mean = aligned.sum(dim=2) / alignment.sum(dim=2)
    highest = frames.unsqueeze(1).masked_fill(~alignment, -1e6).amax(dim=2)
    return torch.cat([mean, highest], dim=-1)


def step(
    model: CMEForEmotionClassification, batch: dict[str, Tensor], optimizer: torch.optim.Optimizer, dense: bool
) -> None:
    """A training step to labels that are all of the first class."""
    logits = dense_forward(model, batch) if dense else model(**batch).logits
    labels = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    torch.nn.functional.cross_entropy(logits, labels).backward()
    optimizer.step()
    optimizer.zero_grad()


def peaks() -> list[tuple[str, int, int]]:
    """(what, bytes that a batch adds, bytes it adds in the dense form); called in a process of its own."""
    torch.set_num_threads(1)
    model, found = make_model(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5)
    for name, training in (("forward", False), ("training step", True)):
        small, batch = make_batch(2, 60), make_batch(4, MIDDLE)
        for inputs in (small, batch):
            inputs["audio_embeds"].requires_grad_(training)
        run = partial(step, model, optimizer=optimizer) if training else partial(infer, model)
        for dense in (False, True):
            run(batch=small, dense=dense)  # what libraries keep for themselves
        found.append((name, *[peak_growth(partial(run, batch=batch, dense=dense)) for dense in (False, True)]))
    return found


def infer(model: CMEForEmotionClassification, batch: dict[str, Tensor], dense: bool) -> None:
    """A forward without gradients."""
    with torch.inference_mode():
        dense_forward(model, batch) if dense else model(**batch)
