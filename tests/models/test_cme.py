"""CME against its equations, written here with loops over clips, words and frames."""

from itertools import pairwise

import pytest
import torch
from model_helpers import WIDTH_FIELDS, logits_of, make_clip, make_model, randomize, rnn_steps, speech

from mer_hf import CMEConfig, CMEForEmotionClassification, FilterbankConfig, WordTableConfig
from mer_hf.models.batching import pad_examples
from mer_hf.models.modeling_cme import CMEExcitement, pool_word_frames


def pool_words_naively(frames, spans, parts=("mean", "max")):
    """Statistics of the frames each word covers, one word after another."""
    rows = []
    for row_frames, row_spans in zip(frames, spans, strict=True):
        for start, end in row_spans.tolist():
            covered = [row_frames[t] for t in range(start, end)]
            mean = sum(covered) / len(covered) if covered else torch.zeros(frames.shape[-1])
            top = torch.stack(covered).max(dim=0).values if covered else torch.zeros(frames.shape[-1])
            rows.append(torch.cat([{"mean": mean, "max": top}[part] for part in parts]))
    return torch.stack(rows).unflatten(0, spans.shape[:2])


class TestPoolWordFrames:
    FRAMES = torch.tensor([[[1.0, -1.0], [3.0, -5.0], [8.0, -9.0]], [[2.0, 2.0], [4.0, 0.0], [9.0, 9.0]]])
    SPANS = torch.tensor([[[0, 2], [1, 1]], [[1, 3], [0, 1]]])

    def test_literal_words(self):
        pooled = pool_word_frames(self.FRAMES, self.SPANS)
        expected = [[[2, -3, 3, -1], [0, 0, 0, 0]], [[6.5, 4.5, 9, 9], [2, 2, 2, 2]]]
        assert pooled.tolist() == expected

    @pytest.mark.parametrize("parts", [("mean", "max"), ("mean",), ("max",)])
    def test_equals_the_loop(self, parts):
        generator = torch.Generator().manual_seed(0)
        frames = torch.randn(3, 11, 5, generator=generator)
        spans = torch.randint(0, 12, (3, 7, 2), generator=generator).sort(dim=-1).values  # overlapping, some empty
        torch.testing.assert_close(pool_word_frames(frames, spans, parts), pool_words_naively(frames, spans, parts))

    def test_no_word_with_a_frame(self):
        frames = self.FRAMES.clone().requires_grad_()
        pooled = pool_word_frames(frames, torch.zeros(2, 3, 2, dtype=torch.long))
        assert pooled.shape == (2, 3, 4)
        assert pooled.eq(0).all()
        pooled.sum().backward()
        assert frames.grad.eq(0).all()

    def test_gradients_reach_covered_frames_alone(self):
        frames = self.FRAMES.clone().requires_grad_()
        pool_word_frames(frames, self.SPANS)[..., :2].sum().backward()  # the means
        assert frames.grad[..., 0].tolist() == [[0.5, 0.5, 0.0], [1.0, 0.5, 0.5]]


class TestExcitement:
    VECTORS = ("audio", "text", "vision")

    def make(self, pairs, looked_up=()):
        excitement = randomize(CMEExcitement(pairs, {"audio": 4, "text": 3, "vision": 2}, looked_up))
        generator = torch.Generator().manual_seed(1)
        vectors = {m: torch.randn(2, 3, size, generator=generator) for m, size in [("audio", 4), ("text", 3)]}
        present = {m: torch.tensor([[True, True, False], [True, False, True]]) for m in vectors}
        return excitement, vectors, present

    def test_a_gate_of_zero_is_one_half(self):
        excitement = CMEExcitement(("audio_to_text",), {"audio": 2, "text": 2})
        torch.nn.init.zeros_(excitement.gates["audio_to_text"].weight)
        torch.nn.init.zeros_(excitement.gates["audio_to_text"].bias)
        vectors = {"audio": torch.ones(1, 2, 2), "text": torch.tensor([[[2.0, -4.0], [2.0, -4.0]]])}
        present = {"audio": torch.tensor([[True, False]]), "text": torch.ones(1, 2, dtype=torch.bool)}
        excited = excitement(vectors, present, {})
        assert excited["text"].tolist() == [[[3.0, -6.0], [2.0, -4.0]]]  # the second word has no frames
        assert torch.equal(excited["audio"], vectors["audio"])

    def test_two_modalities_with_the_table_equal_the_paper(self):
        """s' = s sigmoid(W_s a + b) + s, a' = a sigmoid(E2[w]) + a."""
        excitement, vectors, present = self.make(("audio_to_text", "text_to_audio"), ("text_to_audio",))
        table = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(2))
        present["text"][0, 1] = False
        excited = excitement(vectors, present, {"text_to_audio": table})
        gate = excitement.gates["audio_to_text"]
        for row in range(2):
            for word in range(3):
                a, s = vectors["audio"][row, word], vectors["text"][row, word]
                s_gate = (gate.weight @ a + gate.bias).sigmoid() if present["audio"][row, word] else 0
                a_gate = table[row, word].sigmoid() if present["text"][row, word] else 0
                torch.testing.assert_close(excited["text"][row, word], s * s_gate + s)
                torch.testing.assert_close(excited["audio"][row, word], a * a_gate + a)
        assert set(excitement.gates) == {"audio_to_text"}

    def test_three_modalities_add_their_gates(self):
        names = ("audio", "text", "vision")
        pairs = tuple(f"{a}_to_{b}" for a in names for b in names if a != b)
        excitement, vectors, present = self.make(pairs)
        vectors["vision"] = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(3))
        present["vision"] = torch.tensor([[False, True, False], [True, True, True]])
        excited = excitement(vectors, present, {})
        for row in range(2):
            for word in range(3):
                for target in names:
                    x = vectors[target][row, word]
                    expected = x
                    for source in names:
                        if source != target and present[source][row, word]:
                            gate = excitement.gates[f"{source}_to_{target}"]
                            expected = expected + x * (gate.weight @ vectors[source][row, word] + gate.bias).sigmoid()
                    torch.testing.assert_close(excited[target][row, word], expected)


def project(module, value):
    return module.weight @ value + module.bias if isinstance(module, torch.nn.Linear) else value


def frames_in(seconds, last):
    start, end = (round(float(time) / 0.01) for time in seconds)
    return [frame for frame in range(last) if start <= frame < end]


def faces_in(seconds, times):
    """Faces whose stretch of time, up to half way to their neighbours, meets the word."""
    start, end = (float(time) for time in seconds)
    edges = [-1e9, *((a + b) / 2 for a, b in pairwise(times)), 1e9]
    return [i for i in range(len(times)) if edges[i] < end and start < edges[i + 1]]


def cme_naively(model, clip):
    """The whole network on one complete clip, word by word."""
    config = model.config
    words = []
    for text, seconds in zip(clip["text_embeds"], clip["word_times"], strict=True):
        vectors, covered = {"text": project(model.text_projection, text)}, {"text": True}
        found = {"audio": frames_in(seconds, len(clip["audio_embeds"]))}
        if "vision" in config.modalities:
            found["vision"] = faces_in(seconds, clip["vision_times"].tolist())
        for modality, places in found.items():
            values = [project(model.frame_projections[modality], clip[f"{modality}_embeds"][i]) for i in places]
            size = config.frame_size
            mean = sum(values) / len(values) if values else torch.zeros(size)
            top = torch.stack(values).max(dim=0).values if values else torch.zeros(size)
            vectors[modality], covered[modality] = torch.cat([mean, top]), bool(values)
        excited = {}
        for target, x in vectors.items():
            others = [m for m in vectors if m != target and covered[m]]
            gates = [project(model.excitement.gates[f"{m}_to_{target}"], vectors[m]).sigmoid() for m in others]
            excited[target] = x + sum((x * gate for gate in gates), torch.zeros_like(x))
        words.append(torch.cat([excited[m] for m in config.modalities]))
    pooled = torch.stack(rnn_steps(model.rnn, words)).max(dim=0).values
    return project(model.classifier, pooled)


@pytest.mark.parametrize("modalities", [("audio", "text"), ("audio", "text", "vision")])
@torch.no_grad()
def test_whole_forward_equals_the_equations(modalities):
    model = make_model("cme", **{f"{m}_embed_dim": WIDTH_FIELDS[f"{m}_embed_dim"] for m in modalities})
    drop = () if "vision" in modalities else ("vision_embeds", "vision_times")
    clips = [make_clip(seed, 40 + 7 * seed, 3 + seed, 2 + seed, drop=drop) for seed in range(3)]
    clips[1]["word_times"][2] = clips[1]["word_times"][2].new_tensor([0.9, 0.9])  # a word without frames
    logits = logits_of(model, clips)
    for row, clip in enumerate(clips):
        torch.testing.assert_close(logits[row], cme_naively(model, clip), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_papers_model_equals_the_equations_from_the_waveform():
    """Kaldi frames, convolutions that see seven of them, two word tables."""
    model = CMEForEmotionClassification(
        CMEConfig(
            hidden_size=8,
            audio_config=FilterbankConfig(conv_dims=(5, 5, 4)),
            text_config=WordTableConfig(vocab_size=9, embedding_dim=6, gate_dim=8),
        )
    )
    randomize(model.eval())
    waveform, ids = speech(0, 8000), [3, 8, 4]
    times = torch.tensor([[0.02, 0.11], [0.2, 0.3], [0.4, 0.5]])
    logits = logits_of(model, [{"input_values": waveform, "input_ids": ids, "word_times": times}])[0]

    states = model.audio_model(waveform.unsqueeze(0)).last_hidden_state[0]
    words = []
    for word, (start, end) in zip(ids, times.div(0.01).round().tolist(), strict=True):
        covered = [states[t] for t in range(len(states)) if any(start <= t + k < end for k in range(7))]
        a = torch.cat([sum(covered) / len(covered), torch.stack(covered).max(dim=0).values])
        s = project(model.text_projection, model.text_model.word_embeddings.weight[word])
        s_excited = s * project(model.excitement.gates["audio_to_text"], a).sigmoid() + s
        a_excited = a * model.text_model.gate_embeddings[0].weight[word].sigmoid() + a
        words.append(torch.cat([a_excited, s_excited]))
    pooled = torch.stack(rnn_steps(model.rnn, words)).max(dim=0).values
    torch.testing.assert_close(logits, project(model.classifier, pooled), atol=1e-4, rtol=1e-4)


def test_parameters_of_the_released_code():
    with torch.device("meta"):
        model = CMEForEmotionClassification(CMEConfig.paper(vocab_size=3431))

    def count(module):
        return sum(parameter.numel() for parameter in module.parameters())

    assert model.num_parameters() == 3_691_768
    assert {
        "word table": count(model.text_model.word_embeddings),
        "second word table": count(model.text_model.gate_embeddings),
        "text linear": count(model.text_projection),
        "convolutions": count(model.audio_model),
        "frame projection": count(model.frame_projections),
        "excitement": count(model.excitement),
        "BiLSTM": count(model.rnn),
        "classifier": count(model.classifier),
    } == {
        "word table": 1_029_300,
        "second word table": 878_336,
        "text linear": 77_056,
        "convolutions": 12_864 + 16_512 + 32_896,
        "frame projection": 0,
        "excitement": 65_792,
        "BiLSTM": 1_576_960,
        "classifier": 2_052,
    }


class TestUnits:
    def test_a_clip_without_words_is_one_unit_of_all_its_frames(self):
        model = make_model("cme", audio_embed_dim=6, text_embed_dim=5)
        clip = make_clip(0, drop=("text_embeds", "vision_embeds", "vision_times"))
        whole = clip | {"word_times": torch.tensor([[0.0, 0.4]])}
        clip.pop("word_times")
        torch.testing.assert_close(logits_of(model, [clip]), logits_of(model, [whole]))

    def test_timed_stretches_without_text_are_units(self):
        model = make_model("cme", audio_embed_dim=6, text_embed_dim=5)
        clip = make_clip(0, drop=("text_embeds", "vision_embeds", "vision_times"))
        with torch.no_grad():
            output = model(**pad_examples([clip, make_clip(1, drop=("vision_embeds", "vision_times"))]))
        assert output.word_mask.tolist() == [[True] * 4] * 2
        assert not torch.allclose(output.logits[:1], logits_of(model, [clip | {"word_times": torch.zeros(1, 2)}]))

    def test_clips_with_more_stretches_than_others_have_words(self):
        """Three timed stretches without text beside a clip of two words."""
        model = make_model("cme", audio_embed_dim=6, text_embed_dim=5)
        drop = ("vision_embeds", "vision_times")
        clips = [make_clip(0, words=2, drop=drop), make_clip(1, words=3, drop=(*drop, "text_embeds"))]
        batch = logits_of(model, clips)
        for row, clip in enumerate(clips):
            torch.testing.assert_close(batch[row], logits_of(model, [clip])[0], atol=1e-5, rtol=1e-5)

    def test_tokens_padded_to_a_fixed_length(self):
        """Every row shorter than the padding, as a tokenizer's padding="max_length" makes it."""
        model = make_model("cme", audio_embed_dim=6, text_config=WordTableConfig(vocab_size=9, embedding_dim=4))
        batch = {"audio_embeds": make_clip(0)["audio_embeds"].unsqueeze(0)}
        batch |= {"input_ids": torch.tensor([[3, 4]]), "word_times": torch.tensor([[[0.0, 0.1], [0.1, 0.4]]])}
        padded = batch | {
            "input_ids": torch.tensor([[3, 4, 0, 0]]),
            "attention_mask": torch.tensor([[1, 1, 0, 0]]),
            "word_times": torch.tensor([[[0.0, 0.1], [0.1, 0.4], [0.0, 0.0], [0.0, 0.0]]]),
        }
        with torch.no_grad():
            torch.testing.assert_close(model(**padded).logits, model(**batch).logits)

    def test_whole_utterance_pooling_gives_every_word_the_clip(self):
        model = make_model("cme", audio_embed_dim=6, text_embed_dim=5, word_level=False)
        clip = make_clip(0, drop=("vision_embeds", "vision_times"))
        everywhere = clip | {"word_times": torch.tensor([[0.0, 0.4]] * 4)}
        word_level = make_model("cme", audio_embed_dim=6, text_embed_dim=5)
        torch.testing.assert_close(logits_of(model, [clip]), logits_of(word_level, [everywhere]))
        untimed = {name: value for name, value in clip.items() if name != "word_times"}
        torch.testing.assert_close(logits_of(model, [untimed]), logits_of(model, [clip]))


def test_faces_belong_to_the_words_they_are_seen_in():
    model = make_model("cme", audio_embed_dim=6, vision_embed_dim=4)
    times = torch.tensor([[0.0, 1.0, 2.0, 9.0]])
    mask = torch.tensor([[True, True, True, False]])
    words = torch.tensor([[[0.0, 0.4], [0.4, 1.6], [1.6, 8.0], [30.0, 31.0], [0.5, 0.5]]])
    spans = model.vision_word_spans(words, times, mask)
    assert spans.tolist() == [[[0, 1], [0, 3], [2, 3], [2, 3], [1, 1]]]
    assert model.vision_word_spans(words, times, mask & False).eq(0).all()


def test_cached_states_know_how_far_each_sees():
    """Filterbank states cover seven frames each; their width alone does not say so."""
    raw = CMEConfig(audio_config=FilterbankConfig())
    cached = CMEConfig(audio_embed_dim=128, audio_frame_reach=7)
    times, mask = torch.tensor([[[0.1, 0.2], [0.2, 0.9]]]), torch.ones(1, 60, dtype=torch.bool)
    spans = [CMEForEmotionClassification(config).audio_word_spans(times, mask).tolist() for config in (raw, cached)]
    assert spans == [[[[4, 20], [14, 60]]]] * 2
    assert CMEForEmotionClassification(CMEConfig(audio_embed_dim=128)).audio_word_spans(times, mask).tolist() == [
        [[10, 20], [20, 60]]
    ]


@pytest.mark.parametrize("stride", [0.01, 0.02])
def test_the_stride_of_cached_frames(stride):
    model = make_model("cme", audio_embed_dim=6, audio_frame_stride=stride)
    spans = model.audio_word_spans(torch.tensor([[[0.1, 0.3]]]), torch.ones(1, 99, dtype=torch.bool))
    assert spans.tolist() == [[[round(0.1 / stride), round(0.3 / stride)]]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pooling": "median"}, "pooling must be one of mean_max, mean, max, found 'median'"),
        ({"excitement": ["audio_to_vision"]}, r"excitement names \['audio_to_vision'\]"),
        ({"excitement": ["audio"]}, r"excitement names \['audio'\]"),
        ({"excitement": ["audio_to_audio"]}, r"excitement names \['audio_to_audio'\]"),
        ({"text_gate_dim": 3}, "gate vector has 3 values but re-scales 256 pooled audio values; set gate_dim=256"),
    ],
)
def test_configurations_refuse(values, message):
    with pytest.raises(ValueError, match=message):
        CMEConfig(audio_embed_dim=6, text_embed_dim=5, **values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"word_times": None}, "words and audio without word_times"),
        ({"word_times": torch.zeros(1, 4, 2)}, r"word_times must be \(2, words, 2\), found \(1, 4, 2\)"),
        ({"word_times": torch.zeros(2, 4)}, r"word_times must be \(2, words, 2\), found \(2, 4\)"),
        ({"word_times": torch.tensor([[[0.0, 0.1]]] * 2)}, "text has 4 words but word_times 1"),
        ({"word_times": torch.tensor([[[0.0, 0.1]] * 6] * 2)}, "text has 4 words but word_times 6"),
        ({"vision_times": None}, "face frames without vision_times"),
        ({"vision_times": torch.zeros(2, 2)}, r"vision_times must be \(2, 3\), found \(2, 2\)"),
        ({"audio_mask": torch.tensor([[0, 1] * 20] * 2)}, "audio_mask must have the real frames first"),
        (
            {"vision_mask": torch.tensor([[1, 0, 1]] * 2)},
            "vision_mask or pixel_values_mask must have the real frames first",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_named(change, message):
    model = make_model("cme", **WIDTH_FIELDS)
    batch = pad_examples([make_clip(0), make_clip(1)]) | change
    with pytest.raises(ValueError, match=message):
        model(**batch)
