"""Scripts in several processes, which start where all libraries are imported already, and a corpus that suits them."""

import multiprocessing
import os
import socket
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import soundfile
import torch
from transformers import (
    BertConfig,
    BertModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
)
from transformers.utils import logging

from mer_hf import AlignmentError, WordAlignment, split_words, word_tokenizer
from mer_hf.corpora import load_corpus

ROOT = Path(__file__).resolve().parents[1]
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["rank_processes", "mer_hf.backbone_recipes", "mer_hf.corpus_prediction"])
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def load_script(name):
    """scripts/<name>.py as a module."""
    if name not in sys.modules:
        spec = spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
        sys.modules[name] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def run_here(script, arguments):
    """What the script's main returns; it makes transformers quiet, which it is not to be afterwards."""
    before = logging.get_verbosity()
    try:
        return load_script(script).main([str(argument) for argument in arguments])
    finally:
        logging.set_verbosity(before)


def start_ranks(script, arguments, folder, world=2):
    """As `torchrun` starts a script: processes by rank, which print to folder/rank-<rank>.log."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(world)}
    started = []
    for rank in range(world):
        environment = meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        given = script, [str(argument) for argument in arguments], environment, folder / f"rank-{rank}.log"
        started.append(FORKED.Process(target=_run, args=given))
        started[-1].start()
    return started


def _run(script, arguments, environment, log):
    os.environ.update(environment)
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    sys.exit(load_script(script).main(arguments))


def finish(started, folder):
    """Waits for them; returns exit codes and what each printed."""
    for process in started:
        process.join(120)
    codes = [process.exitcode for process in started]
    for process in started:
        process.close()
    return codes, [(folder / f"rank-{rank}.log").read_text() for rank in range(len(started))]


class ShortWordAligner:
    """Words of equal length within a clip's first 0.25 s; refuses clips longer than 0.8 s."""

    def align(self, audio, text):
        if len(audio) > 12_800:
            raise AlignmentError("too long")
        words = split_words(text)
        times = [
            {"word": word, "start": 0.25 * index / len(words), "end": 0.25 * (index + 1) / len(words)}
            for index, word in enumerate(words)
        ]
        return WordAlignment(tuple(times), 1, -1.0, ())


def write_corpus(folder, actors=range(1, 25)):
    """Clips of 0.3 to 0.9 s named as RAVDESS names its own, two an actor: quiet ones neutral, loud ones angry."""
    (folder / "clips").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for actor in actors:
        for emotion, loudness in (("01", 0.01), ("05", 0.3)):
            samples = loudness * rng.standard_normal(rng.integers(4_800, 14_400)).clip(-3, 3)
            name = f"03-01-{emotion}-01-01-01-{actor:02}.wav"
            soundfile.write(folder / "clips" / name, samples, 16_000, subtype="FLOAT")
    return load_corpus("ravdess", folder / "clips", folder / "cache", "speakers-5fold", aligner=ShortWordAligner())


def corpus_arguments(folder):
    return ["--corpus", "ravdess", "--data_dir", folder / "clips", "--cache_dir", folder / "cache"]


def write_backbones(folder):
    """A tiny wav2vec2 and a tiny BERT with what is saved beside such checkpoints: folders by modality."""
    torch.manual_seed(0)
    audio = Wav2Vec2Config(
        **SIZES,
        conv_dim=[8, 8],
        conv_kernel=[10, 8],
        conv_stride=[10, 16],
        num_feat_extract_layers=2,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        **{name: 0.0 for name in ("hidden_dropout", "attention_dropout", "feat_proj_dropout", "layerdrop")},
    )
    model = Wav2Vec2Model(audio)
    # As in fine-tuned checkpoints: what is missing is drawn at loading.
    used = {name: value for name, value in model.state_dict().items() if name != "masked_spec_embed"}
    model.save_pretrained(folder / "audio", state_dict=used)
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder / "audio")
    tokenizer = word_tokenizer(["kids are talking by the door dogs are sitting"])
    text = BertConfig(**SIZES, vocab_size=len(tokenizer), max_position_embeddings=20)
    BertModel(text, add_pooling_layer=False).save_pretrained(folder / "text")
    tokenizer.save_pretrained(folder / "text")
    return {"audio": str(folder / "audio"), "text": str(folder / "text")}
