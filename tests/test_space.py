"""The Space's parts one by one, then the Space itself as programs use it: each endpoint, and fifty callers at once."""

import re
import sys
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import space_fixtures as fixtures
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from huggingface_hub import RepoCard
from space_fixtures import EVERYTHING, HAPPY, LABELS, RATE, SAD, SAID, TALK, Served

from mer_hf import TASK, WordAligner, load_audio, load_frames, pipeline, split_words

sys.path.insert(0, str(fixtures.SPACE))

import checks
import views
from analysis import analyse
from checks import ClipProblem, count_faces, examine, sounds_like_speech

ROOT = fixtures.ROOT


@pytest.fixture(scope="module")
def fusion_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fixtures.save_fusion(tmp_path_factory.mktemp("fusion"))


@pytest.fixture(scope="module")
def fusion(fusion_folder: Path) -> Any:
    return pipeline(TASK, model=str(fusion_folder))


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    return fixtures.write_bad_files(tmp_path_factory.mktemp("bad"))


@pytest.fixture(scope="module")
def melody(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fixtures.write_sound(tmp_path_factory.mktemp("music") / "melody.wav", fixtures.melody())


class TestFiles:
    def test_length_and_streams(self) -> None:
        talk, sad = examine(str(TALK)), examine(str(SAD))
        assert (talk.has_sound, talk.has_picture) == (True, True)
        assert (sad.has_sound, sad.has_picture) == (True, False)
        assert talk.seconds == pytest.approx(22.5, abs=0.2)
        assert sad.seconds == pytest.approx(len(load_audio(str(SAD), RATE)) / RATE, abs=0.01)

    @pytest.mark.parametrize("kind", ["empty", "broken", "no media", "too long"])
    def test_unusable_file_says_why_and_not_where(self, bad_files: dict[str, tuple[Path, str]], kind: str) -> None:
        path, message = bad_files[kind]
        with pytest.raises(ClipProblem, match=re.escape(message)) as problem:
            examine(str(path))
        assert str(path.parent) not in str(problem.value)

    def test_too_many_bytes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(checks, "MAX_MEGABYTES", 0.01)
        with pytest.raises(ClipProblem, match=r"takes up to 0\.01 MB"):
            examine(str(HAPPY))

    def test_too_large_a_picture(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(checks, "MAX_PIXELS", 480 * 360 - 1)
        with pytest.raises(ClipProblem, match="picture is 480 x 360"):
            examine(str(HAPPY))

    def test_too_many_samples(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(checks, "MAX_SAMPLES", 3 * RATE)
        with pytest.raises(ClipProblem, match="16000 Hz with 1 channels is too much"):
            examine(str(SAD))

    def test_deleted_file(self, tmp_path: Path) -> None:
        with pytest.raises(ClipProblem, match="deleted after half an hour"):
            examine(str(tmp_path / "gone.wav"))


class TestSoundAndPictures:
    def test_speech_and_a_melody(self) -> None:
        aligner, speech = WordAligner(), load_audio(str(SAD), RATE)
        tune = fixtures.melody().astype(np.float32)
        assert sounds_like_speech(aligner, speech, split_words(SAID["sad.flac"]))
        assert not sounds_like_speech(aligner, tune, ["she", "is", "gone", "and", "i", "feel", "so", "alone"])
        assert not sounds_like_speech(aligner, speech, ["gone"])

    @pytest.mark.parametrize("faces", [0, 1, 2])
    def test_faces_are_counted(self, tmp_path: Path, faces: int) -> None:
        frames, _ = load_frames(str(fixtures.write_pictures(tmp_path / "faces.mp4", faces)), 2)
        assert count_faces(frames) == [faces, faces]


@pytest.fixture(scope="module")
def talk(fusion: Any) -> dict[str, Any]:
    """What is made of the long example."""
    return analyse(fusion, str(TALK), SAID["talk.mp4"], EVERYTHING)


class TestAnalysis:
    @pytest.mark.parametrize("file", ["happy.mp4", "smiling_anger.mp4", "sad.flac", "talk.mp4"])
    def test_every_example_is_read_without_doubts(self, fusion: Any, talk: dict[str, Any], file: str) -> None:
        path = str(TALK.with_name(file))
        result = talk if path == str(TALK) else analyse(fusion, path, SAID[file], EVERYTHING)
        assert result["notes"] == []
        assert [word["word"] for word in result["words"]] == split_words(SAID[file])
        assert list(result["shares"]) and sum(result["shares"].values()) == pytest.approx(1)
        assert result["label"] == max(result["scores"], key=result["scores"].get)
        assert sum(result["scores"].values()) == pytest.approx(1) and set(result["scores"]) == set(LABELS)
        if file.endswith("mp4"):
            assert result["faces"]["with_face"] > result["faces"]["pictures"] / 2

    def test_scores_are_the_pipelines(self, fusion: Any) -> None:
        own = fusion(str(HAPPY), text=SAID["happy.mp4"])
        found = analyse(fusion, str(HAPPY), SAID["happy.mp4"], EVERYTHING)["scores"]
        assert found == pytest.approx({item["label"]: item["score"] for item in own}, abs=1e-6)

    def test_what_is_ignored_has_no_say(self, fusion: Any) -> None:
        sound = (load_audio(str(HAPPY), RATE), RATE)
        own = fusion({"audio": sound, "text": SAID["happy.mp4"]})
        whole = analyse(fusion, str(HAPPY), SAID["happy.mp4"], EVERYTHING)
        faceless = analyse(fusion, str(HAPPY), SAID["happy.mp4"], ["voice", "words"])
        assert faceless["scores"] == pytest.approx({item["label"]: item["score"] for item in own}, abs=1e-6)
        assert faceless["scores"] != pytest.approx(whole["scores"], abs=1e-3)
        assert faceless["ignored"] == ["face"] and set(faceless["shares"]) == {"voice", "words"}
        assert set(whole["shares"]) == {"voice", "words", "face"}

    def test_timeline_covers_the_recording(self, talk: dict[str, Any]) -> None:
        moments = talk["moments"]
        borders = [moment["start"] for moment in moments] + [moments[-1]["end"]]
        assert len(moments) == 4 and borders[0] == 0 and borders[-1] == pytest.approx(22.5, abs=0.2)
        assert borders[1:-1] == [moment["end"] for moment in moments[:-1]]
        for moment in moments:
            assert all(moment["start"] <= word["start"] < word["end"] <= moment["end"] for word in moment["words"])
        lengths = np.diff(borders)
        means = {x: np.average([m["scores"][x] for m in moments], weights=lengths) for x in LABELS}
        assert talk["scores"] == pytest.approx(means)

    def test_silence_stops_it_and_words_save_it(self, fusion: Any, bad_files: dict[str, tuple[Path, str]]) -> None:
        silent = str(bad_files["silent"][0])
        with pytest.raises(ClipProblem, match=r"recording is silent.*microphone muted"):
            analyse(fusion, silent, "", EVERYTHING)
        result = analyse(fusion, silent, "I am so happy!", EVERYTHING)
        assert list(result["shares"]) == ["words"] and "silent" in result["notes"][0]

    def test_music_gets_a_note(self, fusion: Any, melody: Path) -> None:
        notes = analyse(fusion, str(melody), "", EVERYTHING)["notes"]
        assert any("music" in note and "means nothing" in note for note in notes)

    @pytest.mark.parametrize("faces, note", [(0, "No face was found"), (2, "More than one face")])
    def test_no_face_and_two(self, fusion: Any, tmp_path: Path, faces: int, note: str) -> None:
        path = str(fixtures.write_pictures(tmp_path / "faces.mp4", faces))
        result = analyse(fusion, path, "I am so happy!", EVERYTHING)
        assert any(note in found for found in result["notes"])
        assert ("face" in result["shares"]) == (faces > 0)
        assert any("no sound track" in found for found in result["notes"])

    def test_nobody_to_see_and_nothing_else(self, fusion: Any, tmp_path: Path) -> None:
        path = str(fixtures.write_pictures(tmp_path / "wall.mp4", 0))
        with pytest.raises(ClipProblem, match=r"No face was found.*Ignored: voice, words"):
            analyse(fusion, path, "", ["face"])

    def test_another_sentence_is_doubted(self, fusion: Any) -> None:
        other = "supercalifragilistic extraordinary circumstances notwithstanding " * 4
        assert "does not fit the sound" in analyse(fusion, str(HAPPY), other, EVERYTHING)["notes"][0]

    @pytest.mark.parametrize(
        "file, said, use, message",
        [
            (None, " ... ", EVERYTHING, "nothing to read yet"),
            (None, "hello", ["voice"], "nothing of what is switched on. Ignored: words, face"),
            (None, "hello", [], "switched off; switch on one of voice, words, face"),
            (None, "hello", ["smell"], "use has smell"),
            (None, "word " * 300, EVERYTHING, "takes up to 1000"),
            (TALK, "word " * 2500, EVERYTHING, "takes up to 10000"),
        ],
    )
    def test_refusals(self, fusion: Any, file: Path | None, said: str, use: list[str], message: str) -> None:
        with pytest.raises(ClipProblem, match=re.escape(message)):
            analyse(fusion, file and str(file), said, use)

    def test_timeline_of_words_alone(self, fusion: Any) -> None:
        with pytest.raises(ClipProblem, match="timeline is of a recording"):
            analyse(fusion, None, "hello", EVERYTHING, windows=True)

    def test_words_by_frames_where_the_model_has_them(self, tmp_path: Path) -> None:
        classify = pipeline(TASK, model=str(fixtures.save_aligning(tmp_path)))
        result = analyse(classify, str(SAD), SAID["sad.flac"], ["voice", "words", "face"])
        weights = np.array(result["alignment"]["weights"])
        assert weights.shape == (8, len(result["alignment"]["frame_times"]))
        assert weights.sum(axis=1) == pytest.approx(np.ones(8), abs=1e-4)
        page = views.show_result(result)
        assert '<img class="mer-picture" src="data:image/png;base64,' in page and "A row for each of 8 words" in page


HOSTILE = "<script>alert(1)</script>${alert(2)}`\"'"


def a_result(**changes: Any) -> dict[str, Any]:
    """An utterance's result as `analyse` gives it."""
    words = [
        {"word": "so", "written": "So ", "start": 0.0, "end": 0.2, "text": 0.4, "audio": 0.0, "both": 0.5},
        {"word": "bad", "start": 0.2, "end": 0.5, "text": -1.0, "audio": 0.0, "both": -1.0},
        {"word": "a", "start": 0.5, "end": 0.6, "text": 0.0, "audio": 0.0, "both": 0.05},
    ]
    scores = {"happy": 0.7, "sad": 0.296, "angry": 0.004}
    moment = {"start": 0.0, "end": 1.0, "label": "happy", "scores": scores, "words": words, "reason": None}
    return {
        "label": "happy",
        "scores": scores,
        "shares": {"voice": 0.75, "words": 0.25},
        "support": {"voice": 1.5, "words": -0.5},
        "words": words,
        "transcript": "So bad a",
        "recognised": False,
        "ignored": [],
        "notes": [],
        "moments": [moment],
        "alignment": None,
    } | changes


class TestViews:
    def test_nothing_that_was_typed_becomes_markup(self) -> None:
        words = [{"word": HOSTILE, "written": HOSTILE, "start": 0.0, "end": 1.0, "text": 1.0}]
        scores = {HOSTILE: 1.0}
        moment = {"start": 0.0, "end": 9.0, "label": HOSTILE, "scores": scores, "words": words, "reason": None}
        unread = moment | {"scores": None, "reason": HOSTILE}
        changes = {"label": HOSTILE, "scores": scores, "words": words, "notes": [HOSTILE], "ignored": [HOSTILE]}
        pages = [
            views.show_result(a_result(**changes)),
            views.show_result(a_result(**changes, moments=[moment, unread])),
            views.show_message(HOSTILE),
            views.show_hint(HOSTILE),
        ]
        for page in pages:
            assert "<script" not in page and "${" not in page and "`" not in page
            assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page

    def test_words_are_coloured_by_the_side_they_are_on(self) -> None:
        page = views.show_result(a_result())
        assert '<span class="mer-word mer-for" style="--mer-strength:50%" title="+0.50 logits">So<sup' in page
        assert '<span class="mer-word mer-against" style="--mer-strength:100%" title="−1.00 logits">bad<sup' in page
        assert '<span class="mer-word">a</span>' in page  # faint

    def test_headline_says_what_was_read_and_how_sure(self) -> None:
        assert "It sounds and reads most like <strong>happy</strong>" in views.show_result(a_result())
        assert "unsure" not in views.show_result(a_result())
        unsure = {"happy": 0.4, "sad": 0.35, "angry": 0.25}
        assert "That is unsure" in views.show_result(a_result(scores=unsure))

    def test_modalities_for_and_against(self) -> None:
        page = views.show_result(a_result(ignored=["face"]))
        assert "75 % for" in page and "25 % against" in page and "Ignored, as switched off: face." in page

    @pytest.mark.parametrize(
        "share, text", [(0, "0 %"), (0.004, "< 1 %"), (0.62, "62 %"), (0.996, "> 99 %"), (1, "100 %")]
    )
    def test_percent(self, share: float, text: str) -> None:
        assert views.percent(share) == text

    def test_timeline_shows_each_stretch_and_why_one_is_missing(self) -> None:
        read = a_result()["moments"][0] | {"end": 5.0}
        unread = read | {"start": 5.0, "end": 10.0, "label": None, "scores": None, "words": [], "reason": "silence"}
        page = views.show_result(a_result(moments=[read, unread]))
        assert 'style="left:0.000%;width:50.000%;height:70.0%"' in page  # happy, the first half
        assert page.count("mer-unread") == 3  # in each label's row
        assert "0:05–0:10</span> <em>not read: silence</em>" in page


class TestFolder:
    def test_versions_agree(self) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        required = (fixtures.SPACE / "requirements.txt").read_text(encoding="utf-8")
        card = RepoCard.load(fixtures.SPACE / "README.md").data
        constraints = (ROOT / "scripts" / "constraints.txt").read_text(encoding="utf-8")
        assert f"=={project['version']}\n" in required
        assert f"gradio=={card.sdk_version}" in required.splitlines()
        assert f"gradio=={card.sdk_version}" in constraints.splitlines()  # the tests are of that version
        assert (fixtures.SPACE / card.app_file).is_file()

    def test_examples_are_light(self) -> None:
        assert sum(path.stat().st_size for path in TALK.parent.iterdir() if path.is_file()) < 500_000


# -- Served


@pytest.fixture(scope="module")
def space(fusion_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with fixtures.serve(fusion_folder, tmp_path_factory.mktemp("space") / "served") as served:
        yield served


@pytest.fixture(scope="module")
def client(space: Served) -> Client:
    return Client(space.url, verbose=False, max_workers=50)


def request(path: Path | None, said: str = "", use: list[str] | None = None, api: str = "/predict") -> dict[str, Any]:
    """The arguments of a call."""
    return {
        "file": path and handle_file(path),
        "transcript": said,
        "use": EVERYTHING if use is None else use,
        "api_name": api,
    }


def answer(client: Client, call: dict[str, Any]) -> Any:
    """What a call returns, or the message it fails with."""
    try:
        return client.predict(**call)
    except AppError as error:
        return str(error)


class TestEndpoints:
    def test_there_are_two_and_they_say_what_they_take(self, client: Client) -> None:
        endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
        assert set(endpoints) == {"/predict", "/timeline"}
        for endpoint in endpoints.values():
            assert [item["parameter_name"] for item in endpoint["parameters"]] == ["file", "transcript", "use"]

    def test_predict_is_the_analysis(self, client: Client, fusion: Any) -> None:
        found = client.predict(**request(HAPPY, SAID["happy.mp4"], ["voice", "words"]))
        own = analyse(fusion, str(HAPPY), SAID["happy.mp4"], ["voice", "words"])
        assert found["label"] == own["label"] and found["scores"] == pytest.approx(own["scores"], abs=1e-6)
        assert [word["word"] for word in found["words"]] == split_words(SAID["happy.mp4"])

    def test_timeline_of_a_short_clip(self, client: Client) -> None:
        found = client.predict(**request(SAD, SAID["sad.flac"], api="/timeline"))
        assert set(found) == {"seconds", "moments", "notes", "transcript", "recognised"}
        assert [moment["label"] in LABELS for moment in found["moments"]] == [True]

    @pytest.mark.parametrize("kind", ["empty", "broken", "no media", "too long", "silent"])
    def test_bad_file_fails_with_its_message(
        self, client: Client, bad_files: dict[str, tuple[Path, str]], kind: str
    ) -> None:
        path, message = bad_files[kind]
        assert message in answer(client, request(path))

    @pytest.mark.slow
    def test_fifty_at_once(self, client: Client, space: Served, bad_files: dict[str, tuple[Path, str]]) -> None:
        kinds = [
            *(request(path) for path, _ in bad_files.values()),
            request(None, "I am so happy!"),
            request(None, ""),
            request(SAD, SAID["sad.flac"]),
            request(HAPPY, SAID["happy.mp4"], ["face", "words"]),
            request(SAD, "", ["voice"]),
        ]
        alone = [answer(client, call) for call in kinds]
        assert [isinstance(found, str) for found in alone] == [True] * 5 + [False, True] + [False] * 3
        before = space.memory()
        with ThreadPoolExecutor(50) as callers:
            waiting = [callers.submit(answer, client, kinds[index % len(kinds)]) for index in range(50)]
            together = [future.result(timeout=300) for future in waiting]
        assert together == alone * 5
        assert space.memory("VmHWM") < before + 300

    def test_it_asked_no_other_machine_and_raised_nothing(self, client: Client, space: Served) -> None:
        assert answer(client, request(None, "I am so happy!"))["label"] in LABELS
        assert space.outside.read_text(encoding="utf-8") == ""
        assert "Traceback" not in space.log.read_text(encoding="utf-8")
