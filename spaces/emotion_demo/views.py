"""The answer of `analysis.analyse` as HTML that reads without colours, by screen readers, in light and dark.

Whatever a user or a model may have written goes through `escape`.
"""

import base64
import html
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from checks import clock

from mer_hf.plots import plot_alignment

UNSURE = 0.5
"""Below this probability of the likeliest emotion the headline says that the model is unsure."""
LEAST_STRONGEST = 0.2
"""Logits; a word that moves the label by this much is coloured fully where none moves it more."""
FAINT = 0.1
"""Of the strongest word's contribution; below it a word is not coloured."""
_PLOTTING = Lock()  # pyplot keeps its figures in one place for all threads

Result = Mapping[str, Any]


def escape(text: str) -> str:
    """Text as HTML; braces, dollars and back-ticks too, which the page's templates would evaluate."""
    text = html.escape(text, quote=True)
    return "".join(f"&#{ord(char)};" if char in "{}$`\\" else char for char in text)


def percent(share: float) -> str:
    """0.624 -> 62 %; what is neither nothing nor everything is not rounded to either."""
    if 0 < share < 0.01:
        return "< 1 %"
    if 0.99 < share < 1:
        return "> 99 %"
    return f"{100 * share:.0f} %"


def show_message(text: str) -> str:
    """Why there is no result."""
    return f'<div class="mer-message" role="alert"><strong>No result.</strong> {escape(text)}</div>'


def show_hint(text: str) -> str:
    return f'<div class="mer-hint">{escape(text)}</div>'


def show_result(result: Result) -> str:
    """All of the result but the switches."""
    parts = [_headline(result), _notes(result["notes"]), _scores(result["scores"])]
    is_long = len(result["moments"]) > 1
    parts += [_timeline(result)] if is_long else [_words(result), _alignment(result)]
    parts.append(_shares(result))
    return f'<div class="mer-result">{"".join(part for part in parts if part)}</div>'


def _headline(result: Result) -> str:
    label, share = result["label"], result["scores"][result["label"]]
    shares = result["shares"]
    verbs = [verb for name, verb in (("voice", "sounds"), ("face", "looks"), ("words", "reads")) if shares.get(name)]
    lead = f"{' and '.join([', '.join(verbs[:-1]), verbs[-1]] if len(verbs) > 1 else verbs or ['is'])} most like"
    lead = f"On average it {lead}" if len(result["moments"]) > 1 else f"It {lead}"
    doubt = " That is unsure: no emotion has half of the probability." if share < UNSURE else ""
    return (
        f'<p class="mer-headline" role="status">{lead} <strong>{escape(label)}</strong> '
        f"<span>with a probability of {percent(share)}.{doubt}</span></p>"
    )


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<ul class="mer-notes" aria-label="What weakens this result">{items}</ul>'


def _bars(shares: Mapping[str, float], texts: Mapping[str, str] | None = None) -> str:
    rows = "".join(
        f'<li><span class="mer-name">{escape(name)}</span>'
        f'<span class="mer-track" aria-hidden="true"><span style="width:{100 * share:.1f}%"></span></span>'
        f'<span class="mer-value">{escape(texts[name] if texts else percent(share))}</span></li>'
        for name, share in shares.items()
    )
    return f'<ul class="mer-bars">{rows}</ul>'


def _section(title: str, body: str, explanation: str = "") -> str:
    about = f'<p class="mer-about">{explanation}</p>' if explanation else ""
    return f'<section class="mer-section"><h3>{title}</h3>{body}{about}</section>'


def _scores(scores: Mapping[str, float]) -> str:
    return _section("Probabilities", _bars(scores))


def _shares(result: Result) -> str:
    shares, support = result["shares"], result["support"]
    if len(shares) < 1:
        return ""
    texts = {name: percent(share) for name, share in shares.items()}
    if support:
        texts = {name: f"{text} {'for' if support[name] >= 0 else 'against'}" for name, text in texts.items()}
    about = "How much of what moved the answer came from each (Shapley values of the modalities)."
    if support:
        about += f" <em>For</em> and <em>against</em>: {escape(result['label'])}."
    if result["ignored"]:
        about += f" Ignored, as switched off: {escape(', '.join(result['ignored']))}."
    return _section("What it rests on", _bars(shares, texts), about)


# Words


def _words(result: Result) -> str:
    words = result["words"]
    if not words:
        return ""
    label, kinds = escape(result["label"]), _kinds(words)
    source = "Recognised, and probably wrong in places: correct it and read again. " * result["recognised"]
    about = (
        f'{source}<span class="mer-word mer-for" style="--mer-strength:100%">for</span> {label}, '
        f'<span class="mer-word mer-against" style="--mer-strength:100%">against</span> it: what changes when the '
        f"word is masked{' in text and sound' if 'both' in kinds else ''}."
    )
    spoken = f'<p class="mer-words" lang="en">{_coloured(words)}</p>'
    return _section("What each word did", spoken + _word_table(words, kinds), about)


def _kinds(words: Sequence[Mapping[str, Any]]) -> list[str]:
    return [kind for kind in ("text", "audio", "both") if any(kind in word for word in words)]


def _effect(word: Mapping[str, Any]) -> float | None:
    return next((word[kind] for kind in ("both", "text", "audio") if kind in word), None)


def _coloured(words: Sequence[Mapping[str, Any]]) -> str:
    effects = [_effect(word) for word in words]
    strongest = max([LEAST_STRONGEST, *(abs(effect) for effect in effects if effect is not None)])
    shown = []
    for word, effect in zip(words, effects, strict=True):
        text = escape(word.get("written", word["word"]).strip() or word["word"])
        if effect is None or abs(effect) < FAINT * strongest:
            shown.append(f'<span class="mer-word">{text}</span>')
            continue
        side, sign = ("for", "+") if effect > 0 else ("against", "−")
        shown.append(
            f'<span class="mer-word mer-{side}" style="--mer-strength:{100 * abs(effect) / strongest:.0f}%" '
            f'title="{sign}{abs(effect):.2f} logits">{text}<sup aria-label="{side}">{sign}</sup></span>'
        )
    return " ".join(shown)


def _word_table(words: Sequence[Mapping[str, Any]], kinds: Sequence[str]) -> str:
    titles = {"text": "text", "audio": "sound", "both": "both"}
    head = "".join(f'<th scope="col">{title}</th>' for title in ["word", "seconds", *(titles[k] for k in kinds)])
    rows = "".join(
        f'<tr><th scope="row">{escape(word["word"])}</th><td>{_span(word)}</td>'
        + "".join(f"<td>{word[kind]:+.2f}</td>" if kind in word else "<td></td>" for kind in kinds)
        + "</tr>"
        for word in words
    )
    return _details("Numbers", f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody>")


def _span(word: Mapping[str, Any]) -> str:
    return f"{word['start']:.2f}–{word['end']:.2f}" if "start" in word else ""


def _details(summary: str, table: str) -> str:
    return (
        f'<details class="mer-details"><summary>{summary}</summary><div class="mer-scroll" tabindex="0">'
        f"<table>{table}</table></div></details>"
    )


def _alignment(result: Result) -> str:
    alignment = result["alignment"]
    if not alignment or not result["words"]:
        return ""
    with tempfile.TemporaryDirectory() as folder, _PLOTTING:
        path = Path(folder) / "alignment.png"
        plot_alignment(alignment["weights"], alignment["frame_times"], result["words"], path)
        picture = base64.b64encode(path.read_bytes()).decode()
    text = f"A row for each of {len(result['words'])} words, a column for each moment of the sound; dark is attention."
    image = f'<img class="mer-picture" src="data:image/png;base64,{picture}" alt="{text}">'
    return _section("Which sound each word attends to", image, "Dashed: when the word is said.")


# Timeline


def _timeline(result: Result) -> str:
    moments, labels = result["moments"], list(result["scores"])
    length = max(moment["end"] for moment in moments)
    rows = "".join(_timeline_row(label, moments, length) for label in labels)
    ticks = "".join(
        f'<span style="left:{100 * second / length:.2f}%">{clock(second)}</span>' for second in _ticks(length)
    )
    about = "Height: probability in that stretch; dark: the likeliest emotion there. Stretches end at pauses."
    chart = (
        f'<div class="mer-timeline" aria-hidden="true">{rows}<div class="mer-axis"><span></span><div>{ticks}</div>'
        "</div></div>"
    )
    return _section("Over time", chart + _moment_list(moments), about)


def _timeline_row(label: str, moments: Sequence[Result], length: float) -> str:
    bars = []
    for moment in moments:
        place = (
            f"left:{100 * moment['start'] / length:.3f}%;width:{100 * (moment['end'] - moment['start']) / length:.3f}%"
        )
        if moment["scores"] is None:
            bars.append(f'<i class="mer-unread" style="{place}"></i>')
            continue
        best = " mer-best" if moment["label"] == label else ""
        bars.append(f'<i class="mer-bar{best}" style="{place};height:{100 * moment["scores"][label]:.1f}%"></i>')
    return f'<div class="mer-row"><span>{escape(label)}</span><div>{"".join(bars)}</div></div>'


def _ticks(length: float) -> list[float]:
    step = next(step for step in (5, 10, 15, 30, 60, 120, 300) if length / step <= 5 or step == 300)
    return [float(second) for second in range(0, int(length) + 1, step)]


def _moment_list(moments: Sequence[Result]) -> str:
    items = []
    for moment in moments:
        when = f'<span class="mer-when">{clock(moment["start"])}–{clock(moment["end"])}</span>'
        if moment["scores"] is None:
            items.append(f"<li>{when} <em>not read: {escape(moment['reason'] or 'nothing to read')}</em></li>")
            continue
        likeliest = f"<strong>{escape(moment['label'])}</strong> {percent(moment['scores'][moment['label']])}"
        words = f'<span class="mer-words" lang="en">{_coloured(moment["words"])}</span>' if moment["words"] else ""
        items.append(f"<li>{when} {likeliest} {words}</li>")
    opened = " open" if len(moments) <= 12 else ""
    return (
        f'<details class="mer-details"{opened}><summary>Each stretch, with its words</summary>'
        f'<ol class="mer-moments">{"".join(items)}</ol></details>'
    )
