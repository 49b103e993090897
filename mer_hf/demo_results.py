"""What came of the demo: scores of each model, the claims with their intervals, and both as a table."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .data.controlled_dialogues import LABELS
from .demo_models import ALIGNING_MODEL, CONTEXT_MODEL, LABELS_ALONE, WORD_ABLATION, WORD_MODEL, plans
from .evaluation import evaluation_report
from .intervals import paired_difference


def summarize(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Scores of each model over all seeds' unseen speakers, and the claims, each with its interval over speakers.

    The best single modality, the best fusion and the best context-free model are chosen by validation accuracy.
    """
    pooled = {key: [value for record in records for value in record[key]] for key in ("labels", "speakers", "items")}
    names = list(records[0]["models"])
    answers = {n: np.array([p for record in records for p in record["models"][n]["predictions"]]) for n in names}
    validation = {n: float(np.mean([record["models"][n]["validation_wa"] for record in records])) for n in names}
    labels, items = np.array(pooled["labels"]), np.array(pooled["items"])
    correct = {n: answers[n] == labels for n in names}
    models = {
        n: {
            **evaluation_report(labels, answers[n], pooled["speakers"], dict(enumerate(LABELS))),
            "validation_wa": validation[n],
            "parameters": records[0]["models"][n]["parameters"],
            "seconds": float(np.mean([record["models"][n]["seconds"] for record in records])),
            "by_item": {item: float(correct[n][items == item].mean()) for item in sorted(set(items))},
            "by_seed": [
                float(np.mean(np.array(r["models"][n]["predictions"]) == np.array(r["labels"]))) for r in records
            ],
        }
        for n in names
    }

    def best(candidates: Sequence[str]) -> str:
        return max(candidates, key=lambda name: validation[name])

    def gap(better: str, other: str, item: str | None = None) -> dict[str, Any]:
        chosen = items == item if item else np.ones(len(items), dtype=bool)
        speakers = [speaker for speaker, kept in zip(pooled["speakers"], chosen, strict=True) if kept]
        difference = paired_difference(correct[better][chosen], correct[other][chosen], speakers)._asdict()
        return {"model": better, "against": other, "items": item or "all", "clips": int(chosen.sum()), **difference}

    single = [n for n in names if len(plans()[n].modalities) == 1]
    fusions = [n for n in names if n not in single]
    context_free = [n for n in fusions if not plans()[n].uses_context]

    def attention(name: str) -> dict[str, float]:
        clips = [clip for record in records for clip in record["models"][name]["attention"]]
        inside, uniform = (float(np.mean([clip[key] for clip in clips])) for key in ("inside", "uniform"))
        return {"inside": inside, "uniform": uniform, "ratio": inside / uniform}

    return {
        "seeds": [record["seed"] for record in records],
        "clips": len(labels),
        "speakers": len(set(pooled["speakers"])),
        "selected_on": "validation session",
        "models": models,
        "claims": {
            "fusion_over_single": gap(best(fusions), best(single)),
            # against the baseline that turned out strongest on the test itself, which nobody could have chosen
            "fusion_over_strongest_single": gap(best(fusions), max(single, key=lambda name: models[name]["wa"])),
            "word_times_over_whole_clip": gap(WORD_MODEL, WORD_ABLATION, "stressed_word"),
            "context_over_context_free": gap(CONTEXT_MODEL, best(context_free), "cueless"),
            "attention_inside_word": attention(ALIGNING_MODEL),
            "attention_inside_word_from_labels_alone": attention(LABELS_ALONE),
        },
        "seconds": [record["seconds"] for record in records],
    }


def results_table(results: Mapping[str, Any]) -> str:
    """The results as a Markdown table and one line a claim."""
    items = list(next(iter(results["models"].values()))["by_item"])
    lines = [
        f"| model | WA | 95 % | UA | {' | '.join(items)} |",
        f"|---|---|---|---|{'---|' * len(items)}",
    ]
    for name, model in results["models"].items():
        low, high = model["intervals"]["wa"]
        cells = " | ".join(f"{model['by_item'][item]:.2f}" for item in items)
        lines.append(f"| {name} | {model['wa']:.3f} | {low:.3f}-{high:.3f} | {model['ua']:.3f} | {cells} |")
    lines.append("")
    for claim, found in results["claims"].items():
        if "ratio" in found:
            lines.append(
                f"- {claim}: {found['inside']:.3f} of a word's attention inside its true span, {found['ratio']:.2f} "
                f"times the uniform share ({found['uniform']:.3f})"
            )
        else:
            lines.append(
                f"- {claim} ({found['items']}, {found['clips']} clips): {found['model']} minus {found['against']} "
                f"{100 * found['estimate']:+.1f} points WA ({100 * found['low']:+.1f} to {100 * found['high']:+.1f})"
            )
    return "\n".join(lines)
