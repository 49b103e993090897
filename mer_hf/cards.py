"""Model and data cards: templates of `hub_cards/`, filled with what was measured and nothing else.

    card = render_model_card("runs/x/cme", "ann/cme-ravdess", results=["runs/x/results.json"])
    card.data.to_dict()["model-index"]; str(card)

Numbers reach a template only from the files that evaluation wrote (`card_results`), from the checkpoint and from the
data set itself; what those do not hold is said to be not measured. No licence is assumed: the corpus's, or one named.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import DatasetCard, DatasetCardData, EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from safetensors import safe_open
from transformers import AutoConfig

from .card_results import SCORE_NAMES, TRAINED_ON, MeasuredResults, group_rows, read_results
from .models.configuration_mer import MODALITIES, MerConfig
from .models.pipeline_mer import TASK

_BESIDE = Path(__file__).with_name("hub_cards")
TEMPLATES = _BESIDE if _BESIDE.is_dir() else Path(__file__).parents[1] / "hub_cards"
"""Beside this file in a wheel, at the top in a checkout."""
PICTURE = "confusion.png"
METRICS = {
    "wa": ("accuracy", None),
    "ua": ("balanced_accuracy", None),
    "macro_f1": ("f1", {"average": "macro"}),
    "weighted_f1": ("f1", {"average": "weighted"}),
}
"""Each score by the name, and the arguments, that the Hub's readers know it by."""
HUB_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")
SENSES = {"audio": "sound", "text": "words", "vision": "the face"}


class Terms(NamedTuple):
    """What publishing needs to know of a corpus."""

    title: str
    license: str | None
    """the Hub's identifier, None = none that it knows: it must be named"""
    publishable: bool
    """whether its rows may be passed on at all"""


TERMS = {
    "ravdess": Terms("RAVDESS", "cc-by-nc-sa-4.0", True),
    "crema_d": Terms("CREMA-D", "odbl", True),
    "meld": Terms("MELD", "gpl-3.0", True),
    "iemocap": Terms("IEMOCAP", None, False),
    "controlled": Terms("the controlled corpus of generated clips", None, True),
}
"""By the name in the schema's `corpus` column. Of one's own clips nothing is known here."""


# Models


def render_model_card(
    checkpoint: str | PathLike,
    repo_id: str,
    results: Sequence[str | PathLike] = (),
    model_name: str | None = None,
    license: str | None = None,
    datasets: Sequence[str] | None = None,
    picture: bool = False,
) -> ModelCard:
    """The card of a checkpoint, metadata and text.

    checkpoint: the folder. results: files that evaluation wrote about it, see `read_results`. model_name: its name in
        a results file of several models, None = the folder's name.
    license: the Hub's identifier, None = that of the corpus it was trained on. datasets: Hub ids of what it was
        trained on, None = the corpus's name. picture: whether `confusion.png` will lie beside the card.

    Raises:
        ValueError: no licence known; a file of results that is not about this checkpoint; a model without template.
    """
    folder = Path(checkpoint)
    measured = measure(folder, results, model_name)
    config = AutoConfig.from_pretrained(folder)
    trained = _trained_on(folder)
    corpus = None if trained is None else trained["corpus"]
    data = ModelCardData(
        license=license or _license_of(corpus, "the checkpoint"),
        language="en" if corpus in TERMS else None,
        library_name="transformers",
        pipeline_tag=_pipeline_tag(config),
        base_model=base_models(config.to_dict()) or None,
        datasets=list(datasets) if datasets is not None else [corpus] if corpus in TERMS else None,
        tags=["emotion-recognition", "multimodal", "custom_code", config.model_type],
        inference=False,  # the Hub's own widget knows neither the task nor the code
        model_name=repo_id.split("/")[-1] if measured else None,
        eval_results=[result for one in measured for result in _eval_results(one)] or None,
    )
    values = {
        "repo_id": repo_id,
        "title": repo_id.split("/")[-1],
        "task": TASK,
        "config": config,
        "license": data.license,
        "base_models": base_models(config.to_dict()),
        "labels": [config.id2label[index] for index in range(config.num_labels)],
        "senses": [SENSES[modality] for modality in config.modalities],
        "features": {m: config.width(m) for m in config.modalities if not config.reads_raw(m)},
        "arguments": _example_arguments(config),
        "weights": _count_weights(folder),
        "trained": trained,
        "terms": TERMS.get(corpus),
        "evaluations": measured,
        "picture": PICTURE if picture and measured else None,
    }
    return ModelCard(render_template(f"{config.model_type}.md", data.to_yaml(), values))


def measure(
    checkpoint: str | PathLike, results: Sequence[str | PathLike], model_name: str | None = None
) -> list[MeasuredResults]:
    """The results files about a checkpoint, read and checked; arguments and errors as `render_model_card`."""
    folder = Path(checkpoint)
    files = [results] if isinstance(results, str | PathLike) else results
    return [read_results(file, folder, model_name or folder.resolve().name) for file in files]


def base_models(config: Mapping[str, Any]) -> list[str]:
    """Hub ids of the backbones in a configuration's dict, those of a fusion's branches included, each once."""
    found = []
    for own in [config, *(config.get("branches") or ())]:
        for modality in MODALITIES:
            name = (own.get(f"{modality}_config") or {}).get("_name_or_path")
            if is_hub_id(name):
                found.append(name)
    return list(dict.fromkeys(found))


def is_hub_id(name: str | None) -> bool:
    """Whether a backbone's `_name_or_path` names a repository, and not a folder of this machine."""
    return bool(name) and HUB_ID.fullmatch(name) is not None and not Path(name).exists()


def _trained_on(folder: Path) -> dict[str, Any] | None:
    file = folder / TRAINED_ON
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _license_of(corpus: str | None, what: str) -> str:
    found = TERMS[corpus].license if corpus in TERMS else None
    if found is None:
        reason = f"{corpus} has none that the Hub knows" if corpus else f"nothing says what {what} was made from"
        raise ValueError(f"license: {reason}; name one, such as 'cc-by-4.0' or 'other' (--license)")
    return found


def _pipeline_tag(config: MerConfig) -> str:
    # The Hub has a fixed list, and the pipeline's own task is not in it.
    if "audio" in config.modalities:
        return "audio-classification"
    return "text-classification" if "text" in config.modalities else "video-classification"


def _example_arguments(config: MerConfig) -> str:
    """What a call of the pipeline on a clip may look like, by what the model reads."""
    raw = [modality for modality in config.modalities if config.reads_raw(modality)]
    file = "clip.mp4" if "vision" in raw else "clip.wav"
    arguments = [f'"{file}"'] if {"audio", "vision"} & set(raw) else []
    if "text" in raw:
        arguments.append('text="what is said"')
    for modality in config.modalities:
        if modality not in raw:
            arguments.append(f"{modality}_embeds={modality}_embeds")
    if "vision_embeds=vision_embeds" in arguments and config.uses_word_times:
        arguments.append("vision_times=vision_times")
    return ", ".join(arguments)


def _count_weights(folder: Path) -> int:
    """Numbers in the weight files."""
    count = 0
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="np") as weights:
            count += sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())
    return count


def _eval_results(measured: MeasuredResults) -> list[EvalResult]:
    hashes = {f"fold {fold['fold']}": fold["sha256"] for fold in measured.folds}
    title = TERMS[measured.corpus].title if measured.corpus in TERMS else measured.corpus
    results = []
    for key, (metric, arguments) in METRICS.items():
        score = measured.scores[key]
        spread = {} if score.low is None else {"interval": [score.low, score.high], "level": measured.level}
        results.append(
            EvalResult(
                task_type="audio-classification",
                task_name="Emotion recognition",
                dataset_type=measured.corpus,
                dataset_name=title,
                dataset_config=measured.name,
                dataset_split="test",
                dataset_args={"protocol": measured.protocol, "sha256": hashes},
                metric_type=metric,
                metric_name=SCORE_NAMES[key],
                metric_value=score.value,
                metric_args=(arguments or {}) | spread or None,
            )
        )
    return results


# Data sets


def render_dataset_card(
    parts: Mapping[str, Any],
    info: Any,
    repo_id: str,
    license: str | None = None,
    with_media: bool = False,
    skipped: Mapping[str, int] | None = None,
) -> DatasetCard:
    """The card of a data set whose splits are published as `data/<split>-*.parquet`.

    parts: `datasets.Dataset`s with the schema's columns, by split. info: the builder's `DatasetInfo`. license: the
        Hub's identifier, None = the corpus's. with_media: whether sound and pictures are inside. skipped: what of the
        copy gave no row, by reason.

    Raises:
        ValueError: no licence known.
    """
    corpora = sorted({corpus for part in parts.values() for corpus in part.unique("corpus")})
    rows = sum(len(part) for part in parts.values())
    data = DatasetCardData(
        license=license or _license_of(corpora[0] if len(corpora) == 1 else None, "the data set"),
        language="en" if set(corpora) <= set(TERMS) else None,
        pretty_name=" and ".join(TERMS[name].title if name in TERMS else name for name in corpora),
        size_categories=_size_category(rows),
        task_categories=["audio-classification"],
        tags=["emotion-recognition", "multimodal"],
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"data/{split}-*.parquet"} for split in parts],
            }
        ],
    )
    values = {
        "repo_id": repo_id,
        "title": data.pretty_name,
        "info": info,
        "license": data.license,
        "corpora": corpora,
        "columns": list(next(iter(parts.values())).column_names),
        "splits": [_split_row(split, part, with_media) for split, part in parts.items()],
        "labels": _label_counts(parts),
        "speakers": len({speaker for part in parts.values() for speaker in part.unique("speaker") if speaker}),
        "with_media": with_media,
        "skipped": dict(skipped or {}),
    }
    return DatasetCard(render_template("dataset_card.md", data.to_yaml(), values))


def _split_row(split: str, part: Any, with_media: bool) -> dict[str, Any]:
    present = {name: len(part) - part.data.column(name).null_count for name in ("audio", "video", "text", "words")}
    return {"split": split, "rows": len(part), **present, **({} if with_media else {"audio": 0, "video": 0})}


def _label_counts(parts: Mapping[str, Any]) -> dict[str, int]:
    labels = [label for part in parts.values() for label in part["label"]]
    return {str(label): labels.count(label) for label in sorted(set(labels), key=str)}


def _size_category(rows: int) -> str:
    names = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M")
    return names[min(sum(rows >= 10**power for power in range(3, 7)), len(names) - 1)]


# Templates


def render_template(template: str, metadata: str, values: Mapping[str, Any]) -> str:
    """A template of `hub_cards/`, filled in; a name that values lack is an error. metadata: YAML."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # the answer is Markdown, not HTML
    )
    environment.filters |= {"measured": measured_number, "count": "{:,}".format}
    environment.globals |= {"group_rows": group_rows}
    text = environment.get_template(template).render(metadata=metadata, **values)
    return re.sub(r"[ \t]+$", "", re.sub(r"\n{3,}", "\n\n", text), flags=re.MULTILINE)


def measured_number(value: float | None) -> str:
    """A score with three decimals, or that there is none."""
    return "not measured" if value is None else f"{value:.3f}"
