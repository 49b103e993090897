"""Who may import whom. The rules are those a checkpoint needs to travel with its code, and those that keep
`import mer_hf` light; each is tried on source that breaks it before it is trusted on ours.
"""

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mer_hf"

DATA_MAY = {
    *("data.schema", "data.scanning", "data.protocols", "data.word_times", "data.whole_files"),
    *("models.media", "models.alignment"),
}
DATA_ALSO = {
    "data.controlled": {"data.controlled_dialogues", "data.controlled_speakers", "data.speech_synthesis"},
    "data.controlled_speakers": {"data.controlled_dialogues", "data.drawn_faces", "data.speech_synthesis"},
    "data.collator": {"models.batching"},  # the one place where masks are made, a function of tensors
    "data.features": {"models.batching"},
    "data.feature_keys": {"data.feature_shards"},
    "data.feature_store": {
        *("data.collator", "data.feature_keys", "data.feature_shards", "data.features", "data.length_grouping"),
    },
    "data.length_grouping": {"data.collator"},
    "data.enrolment": {"models.speakers"},
    "data.iemocap": {"data.iemocap_tree", "data.video_clips"},
    "data.meld": {"data.damaged_text"},
    "data.augmentation": set(),
    "data.named_protocols": {"data.ravdess"},  # its published folds
    "data.class_folders": {"data.field_values", "data.manifests", "data.media_check"},
    "data.folder": {"data.class_folders", "data.field_values", "data.folder_rows", "data.manifests"},
    "data.folder_rows": {"data.field_values", "data.manifests", "data.media_check"},
}
MAY_IMPORT = {
    "intervals": set(),
    "evaluation": {"intervals"},
    "calibration": {"evaluation"},  # the calibration error
    "emotion_metric": {"evaluation"},
    "explanation": {"plots", "models.alignment", "models.batching", "models.pipeline_mer"},  # clips, as the pipeline
    "plots": set(),
    "long_recordings": {"streaming", "models.media", "models.media_files"},
    "streaming": {"models.media", "models.media_files"},
    "card_results": {"evaluation", "plots"},
    "cards": {"card_results", "models.configuration_mer", "models.pipeline_mer"},
    "logistic": {"models.layers"},  # clips values as its Standardizer does
    "export": {"onnx_model", "precision", "models.backbones"},  # how a picture becomes one vector
    "onnx_model": set(),
    "precision": set(),
    "corpus_prediction": {"data.feature_keys", "data.hub_rows", "data.length_grouping", "data.whole_files"},
    "data.whole_files": set(),
    "data.schema": set(),
    "data.scanning": {"data.schema"},
    "data.word_times": set(),
    "doctor": {"models.media", "models.alignment"},
    "data.controlled_dialogues": set(),
    "data.drawn_faces": {"data.speech_synthesis"},  # the sampling rate of a clip's sound
    "models.media_files": set(),
    "models.configuration_late_fusion": {
        *("models.configuration_mer", "models.configuration_cme", "models.configuration_mman"),
        "models.configuration_learned_alignment",
    },
    "models.modeling_late_fusion": {
        # The one model of models: only what a file imports by name travels with a checkpoint.
        *("models.modeling_mer", "models.batching", "models.configuration_late_fusion"),
        *("models.modeling_cme", "models.modeling_learned_alignment", "models.modeling_mman"),
    },
    "demo_models": {"", "training"},
    "demo_results": {"demo_models", "data.controlled_dialogues", "evaluation", "intervals"},
}
"""Modules of mer_hf that a module may import; folders and single files without an entry are treated in `permitted`."""
DEMO = {"demo", "demo_models", "demo_results"}
TOP_MAY_NOT = {
    "cli": set(),
    "cli_corpora": {"cli", *DEMO},
    "cli_predict": {"cli", "cli_corpora", *DEMO},
    "demo": {"cli"},
    "hub": {"cli", "", *DEMO},
    "publishing": {"cli", *DEMO},
    "uploads": {"cli", "publishing", "checkpoint_files", *DEMO},
    "checkpoint_files": {"cli", "publishing", *DEMO},
    "text_fine_tuning": {"cli", "hub", "text_recipes", "experiment", "checkpoints", *DEMO},
    "compact_encoders": {"cli", "hub", "corpora", "recipes", "experiment", "reporting", "checkpoints", *DEMO},
    "corpora": {"cli", "hub", "compact_encoders", "recipes", "experiment", "reporting", "checkpoints", *DEMO},
    "text_corpus": {"cli", "hub", "text_recipes", "text_fine_tuning", "experiment", "checkpoints", *DEMO},
    "text_recipes": {"cli", "hub", "compact_encoders", "checkpoints", *DEMO},
    "enrolment_rows": {"cli", "hub", "compact_encoders", "experiment", "checkpoints", *DEMO},
    "alignment_report": {"cli", "hub", "compact_encoders", "corpora", "recipes", "reporting", "experiment", *DEMO},
    "recipes": {"cli", "hub", "compact_encoders", "experiment", "reporting", "checkpoints", *DEMO},
    "reporting": {"cli", "hub", "compact_encoders", "experiment", "checkpoints", *DEMO},
    "experiment": {"cli", "compact_encoders", "checkpoints", *DEMO},
    "checkpoints": {"cli", "hub", "compact_encoders", *DEMO},
    "backbone_recipes": {"cli", "hub", "compact_encoders", "experiment", "reporting", "checkpoints", *DEMO},
}
"""What stands above everything else may import all but this; demo is the work behind `mer-hf demo`."""
CARRIED = {"torch", "transformers", "huggingface_hub", "numpy", "tokenizers"}
"""Third-party packages that whoever loads a checkpoint's code has: torch, and transformers with what it requires."""


def permitted(module: str, target: str) -> bool:
    """Whether mer_hf.<module> may import mer_hf.<target> ("" is the package itself)."""
    if module in MAY_IMPORT:
        return target in MAY_IMPORT[module]
    if module in TOP_MAY_NOT:
        return target not in TOP_MAY_NOT[module]
    if module.startswith("default_model"):  # stands beside the experiments: trains, measures and loads
        return target not in {"cli", "hub_cards", *DEMO}
    if module.startswith("benchmark"):  # measures everything
        return target not in {"cli", *DEMO}
    if module == "training":  # models by their public names only
        return target in ("", "evaluation") or target.startswith("data.")
    if module == "":
        return target == "public"
    if module == "public":
        return target.startswith("models.") or target in {"default_model.loading", "explanation"}
    if module.startswith("data"):
        return target in DATA_MAY | DATA_ALSO.get(module, set())
    paper = re.fullmatch(r"models\.modeling_(?!mer$)(\w+)", module)
    if paper:
        return target in {"models.modeling_mer", "models.layers", f"models.configuration_{paper[1]}"}
    return module.startswith("models") and target.startswith("models.")


def problems(module: str, source: str, modules: frozenset[str] = frozenset()) -> list[str]:
    """What in the source of mer_hf.<module> breaks a rule; `modules` are all of mer_hf's (see `imported_from`)."""
    tree = ast.parse(source)
    found = [
        f"line {line}: mer_hf.{target} is above or beside it"
        for line, target in internal_imports(module, tree, modules)
        if not permitted(module, target)
    ]
    if module.startswith("models."):
        found += [f"line {line}: {text}" for line, text in carried_code_problems(tree)]
    return sorted(found)


def internal_imports(module: str, tree: ast.AST, modules: frozenset[str]) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = imported_from(module, node, modules)
        else:
            continue
        for name in names:
            if name.split(".")[0] == "mer_hf":
                yield node.lineno, name.removeprefix("mer_hf").removeprefix(".")


def imported_from(module: str, node: ast.ImportFrom, modules: frozenset[str]) -> list[str]:
    """The absolute modules of a from-import: `from mer_hf.data import schema` imports mer_hf.data.schema."""
    base = node.module or ""
    if node.level:
        package = ["mer_hf", *module.split(".")[:-1]]
        package = package[: len(package) - node.level + 1] or ["<beyond the package>"]
        base = ".".join([*package, *([node.module] if node.module else [])])
    inner = base.removeprefix("mer_hf").removeprefix(".")
    return [
        f"{base}.{alias.name}" if f"{inner}.{alias.name}".removeprefix(".") in modules else base
        for alias in node.names
    ]


def carried_code_problems(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Rules for files that are copied to the Hub one by one and loaded where mer_hf is not installed."""
    guarded = {id(node) for node in guarded_imports(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            if node.level > 1 or node.module is None or "." in node.module or node.names[0].name == "*":
                yield node.lineno, "only `from .sibling import Name` survives save_pretrained"
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            for top in sorted({name.split(".")[0] for name in names}):
                if top == "mer_hf":
                    yield node.lineno, "mer_hf is not installed where a checkpoint's code runs"
                elif top not in CARRIED | sys.stdlib_module_names and id(node) not in guarded:
                    yield node.lineno, f"{top} must be imported inside try/except ImportError"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if re.search(r"^\s*(from|import)\s+\.", node.value, flags=re.MULTILINE):
                yield node.lineno, "a line of text that begins `from .` is taken for an import"


def guarded_imports(tree: ast.Module) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Try) and any(catches_import_error(handler) for handler in node.handlers):
            for statement in node.body:
                yield from ast.walk(statement)


def catches_import_error(handler: ast.ExceptHandler) -> bool:
    types = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(isinstance(kind, ast.Name) and kind.id in ("ImportError", "ModuleNotFoundError") for kind in types)


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@pytest.mark.parametrize("module", SOURCES)
def test_module_imports_only_what_it_may(module):
    source = SOURCES[module].read_text(encoding="utf-8")
    if SOURCES[module].name == "__init__.py":
        module = f"{module}.__init__" if module else module
    assert problems(module, source, frozenset(SOURCES)) == []


def test_models_is_flat():
    nested = [path.relative_to(PACKAGE).as_posix() for path in (PACKAGE / "models").rglob("*/*.py")]
    assert nested == [], "save_pretrained copies siblings only"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("", "from .public import *"),
        ("public", "from .models.layers import a\nfrom mer_hf.models import layers"),
        ("cli", "from .hub import push\nfrom .training import train\nfrom .demo import main\nimport mer_hf"),
        ("demo", "from .hub import push\nfrom .data.controlled import build\nfrom . import CMEConfig"),
        ("demo", "from .demo_models import plans\nfrom .demo_results import summarize"),
        ("demo_models", "from . import CMEForEmotionClassification\nfrom .training import TrainingSettings"),
        ("demo_results", "from .demo_models import plans\nfrom .evaluation import paired_difference"),
        ("hub", "from .models import pipeline_mer\nfrom .evaluation import compute_metrics"),
        ("doctor", "from .models.media import load_audio\nfrom .models.alignment import WordAligner"),
        ("training", "from mer_hf.data import collator\nfrom .evaluation import compute_metrics"),
        ("training", "from . import CMEConfig\nfrom mer_hf import MerProcessor\nfrom .data.ravdess import rows"),
        ("data.controlled", "from .speech_synthesis import say\nfrom .schema import make_row"),
        ("data.controlled", "from .controlled_dialogues import Turn\nfrom .controlled_speakers import Performer"),
        ("data.drawn_faces", "from .speech_synthesis import SAMPLE_RATE\nimport av"),
        ("data.collator", "from ..models.batching import pad_examples"),
        ("data.meld", "from .schema import make_row\nfrom mer_hf.models.media import load_audio\nimport datasets"),
        ("evaluation", "import numpy as np\nfrom sklearn import metrics"),
        (
            "models.modeling_mman",
            "from .layers import a\nfrom .modeling_mer import b\nfrom .configuration_mman import c",
        ),
        ("models.modeling_late_fusion", "from .modeling_cme import a\nfrom .modeling_mman import b"),
        ("calibration", "from .evaluation import expected_calibration_error"),
        ("emotion_metric", "from mer_hf.evaluation import emotion_metrics\nimport evaluate"),
        ("models.media", "try:\n    import av\nexcept ImportError:\n    av = None"),
        ("models.media", "def f():\n    try:\n        import cv2\n    except (ImportError, OSError):\n        pass"),
        ("models.media", "from .media_files import MediaError"),
        ("models.layers", "import math\nfrom torch import nn\nimport torch.nn.functional as F"),
        ("models.processing_mer", "from tokenizers import Tokenizer"),
        ("models.pipeline_mer", '"""Say it as in: from .layers import a."""\nfrom .media import a'),
    ],
)
def test_allowed_imports_pass(module, source):
    modules = frozenset({"data", "data.collator", "models", "models.layers"})
    assert problems(module, source, modules) == []


@pytest.mark.parametrize(
    ("module", "source", "problem"),
    [
        ("", "from .training import a", "mer_hf.training"),
        ("", "import mer_hf.data.schema", "mer_hf.data.schema"),
        ("hub", "from .cli import main", "mer_hf.cli"),
        ("hub", "from .demo import main", "mer_hf.demo"),
        ("hub", "from . import CMEConfig", "mer_hf. is"),
        ("demo", "from .cli import main", "mer_hf.cli"),
        ("demo_models", "from .demo import run_demo", "mer_hf.demo"),
        ("demo_models", "from .demo_results import summarize", "mer_hf.demo_results"),
        ("demo_results", "from .demo import run_demo", "mer_hf.demo"),
        ("demo_results", "from .training import fit", "mer_hf.training"),
        ("hub", "from .demo_models import plans", "mer_hf.demo_models"),
        ("experiment", "from .demo_results import summarize", "mer_hf.demo_results"),
        ("doctor", "from .models.pipeline_mer import a", "mer_hf.models.pipeline_mer"),
        ("doctor", "from .evaluation import a", "mer_hf.evaluation"),
        ("training", "from .hub import a", "mer_hf.hub"),
        ("training", "from .demo import a", "mer_hf.demo"),
        ("evaluation", "from .data.schema import EMOTIONS", "mer_hf.data.schema"),
        ("evaluation", "def f():\n    from mer_hf import training", "line 2: mer_hf.training"),
        ("training", "from .models.modeling_mman import a", "mer_hf.models.modeling_mman"),
        ("data.meld", "from .ravdess import a", "mer_hf.data.ravdess"),
        ("data.meld", "from . import ravdess", "mer_hf.data.ravdess"),
        ("data.meld", "from ..models.layers import a", "mer_hf.models.layers"),
        ("data.meld", "from ..models.batching import a", "mer_hf.models.batching"),
        ("data.meld", "from .speech_synthesis import a", "mer_hf.data.speech_synthesis"),
        ("data.meld", "from .drawn_faces import a", "mer_hf.data.drawn_faces"),
        ("data.drawn_faces", "from .controlled import a", "mer_hf.data.controlled"),
        ("data.controlled_dialogues", "from .controlled import a", "mer_hf.data.controlled"),
        ("data.controlled_dialogues", "from .speech_synthesis import a", "mer_hf.data.speech_synthesis"),
        ("data.collator", "from ..models.backbones import a", "mer_hf.models.backbones"),
        ("data.schema", "from mer_hf import MerProcessor", "mer_hf. is"),
        ("data.features", "from mer_hf.models.backbones import a", "mer_hf.models.backbones"),
        ("models.modeling_mman", "from .modeling_cme import a", "mer_hf.models.modeling_cme"),
        ("models.modeling_mman", "from .configuration_cme import a", "mer_hf.models.configuration_cme"),
        ("models.modeling_mman", "from .backbones import a", "mer_hf.models.backbones"),
        ("models.layers", "from ..evaluation import a", "mer_hf.evaluation"),
        ("models.layers", "from . import masks", "only `from .sibling"),
        ("models.layers", "from .a.b import c", "only `from .sibling"),
        ("models.layers", "from .media import *", "only `from .sibling"),
        ("models.layers", "from ..models.media import a", "only `from .sibling"),
        ("models.layers", "from mer_hf.models.media import a", "mer_hf is not installed"),
        ("models.media_files", "from .media import a", "mer_hf.models.media"),
        ("models.modeling_late_fusion", "from .backbones import a", "mer_hf.models.backbones"),
        ("models.modeling_cme", "from .modeling_late_fusion import a", "mer_hf.models.modeling_late_fusion"),
        ("models.configuration_late_fusion", "from .modeling_cme import a", "mer_hf.models.modeling_cme"),
        ("calibration", "from .models.modeling_late_fusion import a", "mer_hf.models.modeling_late_fusion"),
        ("emotion_metric", "from mer_hf import CMEConfig", "mer_hf. is"),
        ("models.media_files", "import av", "av must be"),
        ("models.media", "import soundfile", "soundfile must be"),
        ("models.media", "import datasets", "datasets must be"),
        ("models.media", "def f():\n    import cv2.data", "cv2 must be"),
        ("models.media", "try:\n    import av\nexcept ValueError:\n    pass", "av must be"),
        ("models.media", "try:\n    pass\nexcept ImportError:\n    import av", "av must be"),
        ("models.layers", '"""Use\n    from .layers import a\n"""', "a line of text"),
    ],
)
def test_forbidden_imports_are_found(module, source, problem):
    modules = frozenset({"training", "data.ravdess"})
    found = problems(module, source, modules)
    assert any(problem in text for text in found), found


# Names in scripts/


def shadowed(stem: str) -> bool:
    """Whether a script of this name would be imported in place of a dependency or a standard module."""
    return stem in sys.stdlib_module_names or stem in dependency_names()


def dependency_names() -> set[str]:
    """Import names of everything pyproject.toml declares; the distribution's own name where it is not installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = project["dependencies"] + [line for extra in project["optional-dependencies"].values() for line in extra]
    declared = {normal(re.match(r"[\w.-]+", line)[0]) for line in lines}
    installed = {top for top, owners in packages_distributions().items() if declared & {normal(o) for o in owners}}
    return installed | {name.replace("-", "_") for name in declared}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_no_script_bears_a_dependencys_name():
    assert [path.name for path in (ROOT / "scripts").glob("*.py") if shadowed(path.stem)] == []


@pytest.mark.parametrize(("stem", "bad"), [("evaluate", True), ("sklearn", True), ("json", True), ("train", False)])
def test_shadowing_is_recognised(stem, bad):
    assert shadowed(stem) is bad


# Weight of `import mer_hf`

HEAVY = ("datasets", "evaluate", "gradio", "av", "cv2", "sklearn", "pocketsphinx", "soundfile")
PROBE = f"""
import json, sys
from transformers import Pipeline, PreTrainedModel, ProcessorMixin
before = set(sys.modules)
import mer_hf
print(json.dumps([name for name in {HEAVY} if name in sys.modules and name not in before]))
"""


def test_importing_the_package_loads_nothing_heavy_of_its_own():
    """What plain transformers loads already is not held against us."""
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.strip().splitlines()[-1]) == []


COMMAND_LINE = """
import json, sys
sys.argv[0] = "/somewhere/bin/mer-hf"
import mer_hf.cli
light = "torch" not in sys.modules and "transformers" not in sys.modules
try:
    mer_hf.no_such_name
except AttributeError as error:
    refused = str(error)
print(json.dumps([light, refused, mer_hf.CMEConfig.model_type, mer_hf.TASK]))
"""


def test_the_command_line_waits_for_torch_only_when_a_name_is_asked_for():
    done = subprocess.run([sys.executable, "-c", COMMAND_LINE], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    light, refused, model_type, task = json.loads(done.stdout.strip().splitlines()[-1])
    assert light
    assert "no_such_name" in refused
    assert (model_type, task) == ("cme", "multimodal-emotion-recognition")
