"""Sounds, videos and manifests as people have them, for tests of the folder corpus.

Sound is written by soundfile and video by PyAV, so that what is opened in tests is what those libraries open.
"""

import json

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

RATE = 16_000


def write_sound(path, seconds=0.5):
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.3 * np.sin(2 * np.pi * 220 * np.arange(round(seconds * RATE)) / RATE)
    soundfile.write(path, samples, RATE)
    return path


def write_video(path, sound=True, pictures=True, seconds=1.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(path, "w") as container:
        codecs = ("libvpx", "libopus") if path.suffix == ".webm" else ("mpeg4", "aac")
        if pictures:
            video = container.add_stream(codecs[0], rate=10, width=64, height=48, pix_fmt="yuv420p")
        if sound:
            audio = container.add_stream(codecs[1], rate=48_000, layout="mono")
        for shade in range(round(10 * seconds)) if pictures else ():
            picture = np.full((48, 64, 3), shade, dtype=np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        if pictures:
            container.mux(video.encode())
        if sound:
            tone = np.sin(np.arange(round(48_000 * seconds)) / 30)[None].astype(np.float32)
            for start in range(0, tone.shape[1], 960):
                frame = av.AudioFrame.from_ndarray(tone[:, start : start + 960], format="fltp", layout="mono")
                frame.sample_rate, frame.pts = 48_000, start
                container.mux(audio.encode(frame))
            container.mux(audio.encode())
    return path


def cut(path, keep):
    data = path.read_bytes()
    path.write_bytes(data[: round(len(data) * keep)])


def write_text(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def write_records(path, records):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    elif path.suffix == ".jsonl":
        write_text(path, "\ufeff" + "\n\n".join(json.dumps(record) for record in records) + "\n")
    elif path.suffix == ".json":
        write_text(path, json.dumps(records, indent=1))
    else:
        delimiter = "\t" if path.suffix == ".tsv" else ";"
        lines = [list(records[0])] + [
            [json.dumps(v) if isinstance(v, list) else "" if v is None else str(v) for v in record.values()]
            for record in records
        ]
        quoted = [['"' + field.replace('"', '""') + '"' for field in line] for line in lines]
        write_text(path, "\r\n".join(delimiter.join(line) for line in quoted))
    return path


def values(row):
    return {name: value for name, value in row.items() if value is not None}


def ids(found):
    return [row["id"] for row in found.rows]
