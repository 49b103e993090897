"""Emotion from voice, words and face: a page to try it on, and two endpoints for programs.

    python app.py                        # the checkpoint that comes with mer_hf
    MER_MODEL=runs/x/cme python app.py   # a folder, or an id on the Hub

Nothing leaves the machine: no telemetry, no fonts or scripts from elsewhere, and recordings are deleted after half an
hour. Off the Hub's ZeroGPU machines `GPU` does nothing.
"""

import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

try:
    from spaces import GPU  # before torch; another `spaces` without it, such as a folder, will not do
except ImportError:

    def GPU(function: Callable) -> Callable:
        return function


import gradio as gr
import torch
from analysis import NAMES, NOTHING_GIVEN, analyse
from checks import MAX_CHARACTERS, MAX_MEGABYTES, ClipProblem, Media, examine
from huggingface_hub import ModelCard
from views import show_hint, show_message, show_result

from mer_hf import TASK, pipeline
from mer_hf.default_model import DEFAULT_CHECKPOINT, load_default

HERE = Path(__file__).parent
EXAMPLES = HERE / "examples"
QUEUE, AT_ONCE = 64, 2
"""Requests that wait at most, and that run at the same time."""
KEEP_SECONDS = 1800
ADDRESS = os.environ.get("SPACE_ID", "http://127.0.0.1:7860")
"""What a client is pointed to; the Hub sets SPACE_ID."""


def load_classifier() -> Any:
    """The pipeline of `MER_MODEL`, else of the checkpoint that comes with mer_hf; on the GPU where there is one."""
    name = os.environ.get("MER_MODEL")
    classify = pipeline(TASK, model=name) if name else load_default()
    if torch.cuda.is_available():
        classify.device = torch.device("cuda")
        classify.model.to(classify.device)
    return classify


CLASSIFY = load_classifier()
READS = [name for modality, name in NAMES.items() if modality in CLASSIFY.model.config.modalities]
LABELS = list(CLASSIFY.model.config.id2label.values())


@GPU
def read_clip(path: str | None, transcript: str, use: Sequence[str], windows: bool = False) -> dict[str, Any]:
    """`analyse`, or {"problem": why not}: what crosses from ZeroGPU's process must be plain."""
    try:
        return analyse(CLASSIFY, path, transcript, use, windows)
    except ClipProblem as problem:
        return {"problem": str(problem)}


# -- For programs


def predict(file: str | None, transcript: str, use: list[str]) -> dict[str, Any]:
    """The emotion of a recording.

    file: audio or video, up to 10 minutes and 100 MB, or null for words alone. transcript: what is said; if it is
    empty it is recognised, badly. use: those of voice, words and face that are not ignored.

    Returns label, scores (probabilities by label), shares (how much came from each of voice, words and face), words
    (each with what masking its text, its sound or both takes from the label, in logits), moments (one, or one every 6
    seconds of a recording of more than 15), faces, notes (what weakens the result) and more. Fails with a message that
    says what to do where nothing can be said.
    """
    return _answer(read_clip(file, transcript or "", use))


def timeline(file: str, transcript: str, use: list[str]) -> dict[str, Any]:
    """The emotion over time: /predict's moments, also of a short recording. Arguments as of /predict."""
    result = _answer(read_clip(file, transcript or "", use, windows=True))
    return {name: result[name] for name in ("seconds", "moments", "notes", "transcript", "recognised")}


def _answer(result: dict[str, Any]) -> dict[str, Any]:
    if "problem" in result:
        raise gr.Error(result["problem"], print_exception=False)
    return result


# -- For people


def show(
    voice: str | None, camera: str | None, file: str | None, transcript: str, guess: str, use: list[str]
) -> tuple[str, str, str]:
    """What the page shows for its inputs, and the transcript, recognised where none was typed."""
    typed = "" if transcript.strip() == guess else transcript  # left as it was recognised
    result = read_clip(file or camera or voice, typed, use)
    if "problem" in result:
        empty = result["problem"] == NOTHING_GIVEN
        return (show_hint if empty else show_message)(result["problem"]), transcript, guess
    return show_result(result), result["transcript"], result["transcript"] if result["recognised"] else ""


def forget() -> tuple[None, None, str, str, str]:
    """A new recording came: the others, what was said and the result go."""
    return None, None, "", "", show_hint(READY)


def seen_by_camera(camera: str | None) -> tuple[Any, ...]:
    """As `forget` once the camera's recording has come; it goes, too, when another takes its place."""
    return forget() if camera else (gr.skip(),) * len(forget())


def receive(file: str | None) -> tuple[Any, ...]:
    """A file came, or went: the players for it, and what is wrong with it before anybody waits for that."""
    message = show_hint(READY if file else WELCOME)
    try:
        media = examine(file) if file else None
    except ClipProblem as problem:
        media, message = None, show_message(str(problem))
    return *_players(media), None, None, "", "", message


def _players(media: Media | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """For sound and for video, one of them visible; a file that cannot be read is given to neither."""
    is_video = media is not None and media.has_picture
    heard, seen = (None, media.path) if is_video else (media and media.path, None)
    return gr.update(value=heard, visible=heard is not None), gr.update(value=seen, visible=seen is not None)


READY = "Ready. Type what is said, or leave that to the recogniser; then read the emotion."
WELCOME = "The result will be here. Record or choose a clip, or type a sentence, and read it; or try an example."
RECOGNISED = (
    "Left empty, it is recognised: more than half of the words of emotional speech come out wrong. Correct them and "
    "read again."
)
PLAIN = {"editable": False, "buttons": []}
EXAMPLES_TITLE = (
    "<h2 class='mer-examples'>Examples</h2><p>Of a speech synthesiser and a drawn face, no real people. They show how "
    "the page works; the model learnt from people, and often misreads these.</p>"
)
HEADER = """
<header class="mer-header"><h1>Emotion from voice, words and face</h1>
<p>Say something, or show it, and see what a small model makes of it and why. It is a demonstration of a method, not an
instrument: it was trained on actors and television, and often errs.</p></header>"""
OTHER_MODEL = """*Another model than the default checkpoint runs here. What it learnt from and how often it is right,
its own card says; the rest of this page holds for it too.*

"""
EXAMPLE_CLIPS = json.loads((EXAMPLES / "examples.json").read_text(encoding="utf-8"))


def example(clip: str | None, transcript: str) -> tuple[Any, ...]:
    """The inputs as an example fills them, and the tab that shows them."""
    path = str(EXAMPLES / clip) if clip else None
    players = _players(examine(path) if path else None)
    return None, None, path, transcript, "", list(READS), *players, gr.Tabs(selected="file") if path else gr.skip()


def build() -> gr.Blocks:
    """The page and the endpoints."""
    with gr.Blocks(title="Emotion from voice, words and face", delete_cache=(600, KEEP_SECONDS)) as demo:
        gr.HTML(HEADER)
        with gr.Tabs(elem_classes="mer-pages"):
            with gr.Tab("Try it"):
                _try_it()
            with gr.Tab("What this can't do"):
                gr.Markdown(_limits(), elem_classes="mer-page")
            with gr.Tab("API"):
                use = ", ".join(f'"{name}"' for name in READS)
                facts = {"address": ADDRESS, "use": use, "at_once": AT_ONCE, "queue": QUEUE}
                gr.Markdown(_page("api.md", **facts), elem_classes="mer-page")
        _endpoints()
    demo.queue(max_size=QUEUE, default_concurrency_limit=AT_ONCE)
    return demo


def _limits() -> str:
    """The page on limits, which is the default checkpoint's, with the accuracies in its card."""
    results = ModelCard.load(DEFAULT_CHECKPOINT / "README.md").data.eval_results or ()
    rights = [
        f"{result.task_name.rpartition(', ')[2]} {result.metric_value:.0%} ({result.dataset_name})"
        for result in results
        if result.metric_type == "accuracy"
    ]
    page = _page("limits.md", labels=", ".join(LABELS), accuracies=", ".join(rights))
    return OTHER_MODEL * ("MER_MODEL" in os.environ) + page


def _page(name: str, **facts: Any) -> str:
    return (HERE / name).read_text(encoding="utf-8").format(**facts)


def _try_it() -> None:
    with gr.Row(elem_classes="mer-columns"):
        with gr.Column(scale=5, min_width=320):
            with gr.Tabs() as tabs:
                with gr.Tab("Microphone", id="voice"):
                    voice = gr.Audio(sources=["microphone"], type="filepath", label="Your voice", **PLAIN)
                with gr.Tab("Camera", id="camera"):
                    # Mirroring would need a system's FFmpeg; the largest picture a camera has would only take longer.
                    size = {"video": {"width": {"ideal": 640}, "height": {"ideal": 480}}}
                    options = gr.WebcamOptions(mirror=False, constraints=size)
                    camera = gr.Video(
                        sources=["webcam"], label="Your voice and face", include_audio=True, webcam_options=options
                    )
                with gr.Tab("File", id="file"):
                    file = gr.File(label="Sound or video, up to 10 minutes and 100 MB", height=140)
                    heard = gr.Audio(interactive=False, visible=False, label="Your sound", **PLAIN)
                    seen = gr.Video(interactive=False, visible=False, label="Your video", buttons=[], height=280)
            transcript = gr.Textbox(label="What is said", info=RECOGNISED, lines=2, max_length=MAX_CHARACTERS)
            use = gr.CheckboxGroup(
                READS, value=list(READS), label="Use", info="Switch one off to see what the others say by themselves."
            )
            read = gr.Button("Read the emotion", variant="primary", size="lg")
            gr.HTML(EXAMPLES_TITLE)
            with gr.Row(elem_classes="mer-chips"):
                chips = [gr.Button(clip["title"], size="sm") for clip in EXAMPLE_CLIPS]
        with gr.Column(scale=6, min_width=320):
            result = gr.HTML(show_hint(WELCOME), elem_id="result", js_on_load=None)

    guess = gr.State("")
    inputs, outputs = [voice, camera, file, transcript, guess, use], [result, transcript, guess]
    private = {"api_visibility": "private"}
    model = {**private, "concurrency_id": "model", "concurrency_limit": AT_ONCE}
    gr.on([read.click, transcript.submit], show, inputs, outputs, scroll_to_output=True, trigger_mode="once", **model)
    use.input(show, inputs, outputs, trigger_mode="always_last", **model)
    fresh = [transcript, guess, result]
    gr.on([voice.input, voice.clear], forget, None, [camera, file, *fresh], queue=False, **private)
    camera.clear(forget, None, [voice, file, *fresh], queue=False, **private)
    # A video component calls what its camera recorded a change, and no input.
    camera.change(seen_by_camera, camera, [voice, file, *fresh], queue=False, **private)
    gr.on([file.upload, file.clear], receive, file, [heard, seen, voice, camera, *fresh], **private)
    filled = [voice, camera, file, transcript, guess, use, heard, seen, tabs]
    for clip, chip in zip(EXAMPLE_CLIPS, chips, strict=True):
        fill = partial(example, clip["file"], clip["transcript"])
        chosen = chip.click(fill, None, filled, queue=False, **private)
        chosen.then(show, inputs, outputs, scroll_to_output=True, **model)


def _endpoints() -> None:
    """Components nobody sees, because theirs are the checks of what a client may send."""
    file, transcript = gr.File(visible=False, label="file"), gr.Textbox(visible=False, label="transcript")
    use = gr.CheckboxGroup(READS, value=list(READS), visible=False, label="use")
    answer = gr.JSON(visible=False, label="answer")
    for function in (predict, timeline):
        gr.Button(visible=False).click(
            function,
            [file, transcript, use],
            answer,
            api_name=function.__name__,
            api_description=function.__doc__,
            concurrency_id="model",
            concurrency_limit=AT_ONCE,
        )


def theme() -> gr.themes.Base:
    """The default one with the system's own fonts, and grey texts and indigo buttons that stand out by 4.5 : 1."""
    fonts = {"font": ("system-ui", "sans-serif"), "font_mono": ("ui-monospace", "monospace")}
    grey = {"body_text_color_subdued": "*neutral_600", "body_text_color_subdued_dark": "*neutral_300"}
    info = {"block_info_text_color": "*neutral_600", "block_info_text_color_dark": "*neutral_300"}
    indigo = {"color_accent": "*primary_600", "button_primary_background_fill": "*primary_600"}
    base = gr.themes.Default(primary_hue="indigo", secondary_hue="indigo", neutral_hue="slate", **fonts)
    return base.set(**grey, **info, **indigo, button_primary_background_fill_hover="*primary_700")


if __name__ == "__main__":
    build().launch(
        max_file_size=f"{MAX_MEGABYTES}mb",
        allowed_paths=[str(EXAMPLES)],
        run_history=False,
        footer_links=["api", "settings"],
        theme=theme(),
        css_paths=HERE / "style.css",
    )
