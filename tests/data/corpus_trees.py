"""Small trees in the layouts in which IEMOCAP and CREMA-D are published, for tests of their builders."""

import io
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import soundfile

# -- Media ------------------------------------------------------------------------------------------------------------


def wav_bytes(samples: int = 1600) -> bytes:
    """A wav file of 16 kHz mono noise, as short as asked."""
    file = io.BytesIO()
    noise = np.random.default_rng(samples).uniform(-0.5, 0.5, samples)
    soundfile.write(file, noise, 16_000, subtype="PCM_16", format="WAV")
    return file.getvalue()


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_split_screen(path: Path, seconds: float, rate: int = 5, b_frames: int = 2) -> Path:
    """An mpeg4 avi, 64 x 32: left half red, right half blue; the green in both tells the time, 40 a second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate, options={"bf": str(b_frames), "qmin": "1", "qmax": "1"})
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 64, 32, "yuv420p", 2_000_000
        for index in range(round(seconds * rate)):
            picture = np.zeros((32, 64, 3), np.uint8)
            picture[:, :32, 0] = picture[:, 32:, 2] = 255
            picture[..., 1] = min(40 * index / rate, 255)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


# -- IEMOCAP ----------------------------------------------------------------------------------------------------------


class IemocapTurn(NamedTuple):
    """One turn of a dialogue; name is its end, such as F000. text or words None = left out of the tree."""

    name: str
    start: float
    end: float
    emotion: str = "neu"
    ratings: tuple[float, float, float] = (2.5, 2.5, 2.5)
    text: str | None = "Excuse me."
    words: tuple[tuple[int, int, str], ...] | None = ((0, 9, "<s>"), (10, 39, "EXCUSE(8)"), (40, 59, "ME"))


LABEL_HEADER = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]"
RATERS = ["C-E2:\tNeutral;\t()", "C-F1:\tNeutral;\t(curious)", "A-E3:\tval 3; act 2; dom  2;\t()"]


def label_line(dialogue: str, turn: IemocapTurn) -> str:
    v, a, d = turn.ratings
    return f"[{turn.start:.4f} - {turn.end:.4f}]\t{dialogue}_{turn.name}\t{turn.emotion}\t[{v:.4f}, {a:.4f}, {d:.4f}]"


def text_line(dialogue: str, turn: IemocapTurn) -> str:
    return f"{dialogue}_{turn.name} [{turn.start:08.4f}-{turn.end:08.4f}]: {turn.text}"


def wdseg(words: tuple[tuple[int, int, str], ...]) -> str:
    lines = ["\tSFrm\tEFrm\t   SegAScr Word"]
    lines += [f"\t{first:4}\t{last:4}\t{-1000 * (last - first):10} {word}" for first, last, word in words]
    return "\n".join([*lines, " Total score:     -123456", ""])


def write_iemocap(root: Path, dialogue: str, *turns: IemocapTurn, newline: str = "\n") -> Path:
    """A dialogue as the release has it; returns its session's folder."""
    session = root / f"Session{int(dialogue[3:5])}"
    labels = [LABEL_HEADER, ""]
    for turn in turns:
        labels += [label_line(dialogue, turn), *RATERS, ""]
    write(session / "dialog" / "EmoEvaluation" / f"{dialogue}.txt", newline.join([*labels, ""]))
    texts = [text_line(dialogue, turn) for turn in turns if turn.text is not None]
    write(session / "dialog" / "transcriptions" / f"{dialogue}.txt", newline.join([*texts, ""]))
    for turn in turns:
        write(session / "sentences" / "wav" / dialogue / f"{dialogue}_{turn.name}.wav", wav_bytes())
        if turn.words is not None:
            file = session / "sentences" / "ForcedAlignment" / dialogue / f"{dialogue}_{turn.name}.wdseg"
            write(file, wdseg(turn.words))
    return session


# -- CREMA-D ----------------------------------------------------------------------------------------------------------

DEMOGRAPHICS = """"ActorID","Age","Sex","Race","Ethnicity"
1001,51,"Male","Caucasian","Not Hispanic"
1002,21,"Female","Caucasian","Not Hispanic"
"""
SUMMARY_HEADER = '"","FileName","VoiceVote","VoiceLevel","FaceVote","FaceLevel","MultiModalVote","MultiModalLevel"'
TABULATED_HEADER = (
    '"","A","D","F","H","N","S","fileName","numResponses","agreement","emoVote","meanEmoResp","meanAngerResp",'
    '"meanDisgustResp","meanFearResp","meanHappyResp","meanNeutralResp","meanSadResp","medianEmoResp",'
    '"meanEmoRespNorm","meanAngerRespNorm","meanDisgustRespNorm","meanFearRespNorm","meanHappyRespNorm",'
    '"meanNeutralRespNorm","meanSadRespNorm","medianEmoRespNorm"'
)


def write_crema_d(root: Path, *clips: str, video: bool = True) -> Path:
    """Clips by name, with the tables that need no votes."""
    for clip in clips:
        write(root / "AudioWAV" / f"{clip}.wav", wav_bytes())
        if video:
            write(root / "VideoFlash" / f"{clip}.flv", b"FLV\x01\x05 and so on")
    write(root / "VideoDemographics.csv", DEMOGRAPHICS)
    names = [f'{number},"{clip}"' for number, clip in enumerate(clips, start=1)]
    write(root / "SentenceFilenames.csv", "\n".join(['"Stimulus_Number","Filename"', *names, ""]))
    return root


def write_summary(root: Path, votes: dict[str, tuple[str, str, str]]) -> Path:
    """votes: clip -> letters of voice, face and both."""
    lines = [
        f'"{number}","{clip}","{voice}","69.1","{face}","92.22","{both}","64.78"'
        for number, (clip, (voice, face, both)) in enumerate(votes.items(), start=1)
    ]
    return write(root / "processedResults" / "summaryTable.csv", "\n".join([SUMMARY_HEADER, *lines, ""]))


def write_tabulated(root: Path, votes: dict[tuple[int, str], tuple[int, ...]]) -> Path:
    """votes: (row number, clip) -> raters of A, D, F, H, N, S."""
    lines = []
    for (number, clip), counts in votes.items():
        most = ":".join(letter for letter, count in zip("ADFHNS", counts, strict=True) if count == max(counts))
        share = max(counts) / sum(counts)
        rest = ",".join(["-1"] * 16)
        lines.append(f'"{number}",{",".join(map(str, counts))},"{clip}",{sum(counts)},{share},"{most}",{rest}')
    return write(root / "processedResults" / "tabulatedVotes.csv", "\n".join([TABULATED_HEADER, *lines, ""]))


# -- Both -------------------------------------------------------------------------------------------------------------


def disorder(monkeypatch: Any) -> None:
    """Make the file system list everything backwards, by whatever way it is asked."""
    import os

    walk, listdir, scandir = os.walk, os.listdir, os.scandir

    class Backwards:
        def __init__(self, path: Any = ".") -> None:
            with scandir(path) as found:
                self.entries = iter(sorted(found, key=lambda entry: entry.name, reverse=True))

        def __enter__(self) -> "Backwards":
            return self

        def __exit__(self, *error: Any) -> None:
            pass

        def __iter__(self) -> "Backwards":
            return self

        def __next__(self) -> Any:
            return next(self.entries)

        def close(self) -> None:
            pass

    def walk_backwards(*args: Any, **options: Any) -> list[Any]:
        return [(folder, inner, names[::-1]) for folder, inner, names in reversed(list(walk(*args, **options)))]

    monkeypatch.setattr(os, "walk", walk_backwards)
    monkeypatch.setattr(os, "listdir", lambda path=".": sorted(listdir(path), reverse=True))
    monkeypatch.setattr(os, "scandir", Backwards)
