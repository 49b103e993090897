"""Who is enrolled from what: literal profiles, nested draws, causality, and training sets that draw anew."""

import itertools

import pytest
import torch

from mer_hf import MMANConfig, MMANForEmotionClassification, SpeakerProfile
from mer_hf.data.collator import EmotionCollator, ExampleDataset
from mer_hf.data.enrolment import EnrolledClips, enrol_earlier_turns, enrol_examples, enrolment_subsets
from mer_hf.models.batching import pad_examples
from mer_hf.training import TrainingSettings, fit

SPEAKERS = {f"{speaker}-{number}": speaker for speaker in ("ann", "bob", "cid") for number in range(30)}


@pytest.fixture
def model():
    """One number a clip, of mean 0 and deviation 10 in the training data."""
    torch.manual_seed(0)
    sizes = {"vision_embed_dim": 1, "hidden_size": 16, "classifier_size": 16}
    config = MMANConfig(network="unimodal", dropout=0.0, standardize=["vision"], **sizes)
    model = MMANForEmotionClassification(config)
    model.standardizers["vision"].set_statistics(torch.zeros(1), torch.tensor([10.0]))
    return model


def clips(*values):
    return [{"vision_embeds": torch.tensor([[float(value)]]), "label": int(value) % 4} for value in values]


def means(examples):
    """The mean that each example is given, None = not enrolled."""
    return [e["vision_speaker"][0].item() if "vision_speaker" in e else None for e in examples]


class TestSubsets:
    def test_drawn_for_every_speaker_and_nested(self):
        drawn = {size: enrolment_subsets(SPEAKERS, size, seed=0) for size in (1, 8, 20)}
        for size, subsets in drawn.items():
            assert set(subsets) == {"ann", "bob", "cid"}
            for speaker, ids in subsets.items():
                assert len(set(ids)) == size
                assert all(SPEAKERS[clip] == speaker for clip in ids)
        for small, large in itertools.pairwise((1, 8, 20)):
            assert all(set(drawn[small][name]) < set(drawn[large][name]) for name in drawn[small])

    def test_neither_order_nor_company_changes_the_draw(self):
        expected = enrolment_subsets(SPEAKERS, 8, seed=3)
        assert enrolment_subsets(dict(reversed(SPEAKERS.items())), 8, seed=3) == expected
        alone = {clip: speaker for clip, speaker in SPEAKERS.items() if speaker == "bob"}
        assert enrolment_subsets(alone, 8, seed=3) == {"bob": expected["bob"]}

    def test_seeds_differ_and_every_clip_is_drawn_about_as_often(self):
        draws = [enrolment_subsets(SPEAKERS, 10, seed)["ann"] for seed in range(300)]
        assert len(set(draws)) > 290
        counts = [sum(clip in draw for draw in draws) for clip, speaker in SPEAKERS.items() if speaker == "ann"]
        assert all(60 < count < 140 for count in counts)  # 100 expected, deviation 8

    @pytest.mark.parametrize(("size", "message"), [(0, "at least 1 clip"), (30, "'bob'.* 30 clips or fewer")])
    def test_refusals(self, size, message):
        with pytest.raises(ValueError, match=message):
            enrolment_subsets(SPEAKERS, size, seed=0)


class TestExamples:
    def test_all_clips_of_the_speaker(self, model):
        enrolled = enrol_examples(model, clips(1, 10, 3), ["ann", "bob", "ann"], prior_clips=0)
        assert means(enrolled) == [2, 10, 2]
        assert [e["vision_speaker"][1].item() for e in enrolled] == [1, 10, 1]  # bob's one clip keeps the scale
        assert [e["vision_embeds"].item() for e in enrolled] == [1, 10, 3]
        assert [e["label"] for e in enrolled] == [1, 2, 3]

    def test_the_prior_draws_towards_the_training_data(self, model):
        enrolled = enrol_examples(model, clips(1, 3), ["ann", "ann"], prior_clips=2)
        assert means(enrolled) == [1, 1]
        torch.testing.assert_close(enrolled[0]["vision_speaker"][1], torch.tensor([50.5]).sqrt())  # (1 + 100) / 2
        default = enrol_examples(model, clips(1, 3), ["ann", "ann"])
        assert means(default) == pytest.approx([4 / 7] * 2)  # 2 clips of hers against 5

    def test_the_clip_itself_left_out(self, model):
        enrolled = enrol_examples(
            model, clips(1, 10, 3, 8), ["ann", "bob", "ann", "ann"], leave_out=True, prior_clips=0
        )
        assert means(enrolled) == [5.5, None, 4.5, 2]

    def test_from_clips_that_are_not_scored(self, model):
        enrolment = {"ann": clips(2, 4), "cid": clips(100)}
        enrolled = enrol_examples(model, clips(1, 10, 3), ["ann", "bob", "ann"], enrolment, prior_clips=0)
        assert means(enrolled) == [3, None, 3]

    def test_whoever_is_unknown_is_not_enrolled(self, model):
        assert means(enrol_examples(model, clips(1, 2, 3), [None, "ann", None], prior_clips=0)) == [None, 2, None]

    def test_a_clip_without_a_face_gets_the_statistics_of_the_others(self, model):
        enrolled = enrol_examples(model, [{"label": 0}, *clips(3, 5)], ["ann"] * 3, prior_clips=0)
        assert means(enrolled) == [4, 4, 4]

    def test_refusals(self, model):
        with pytest.raises(ValueError, match="2 examples but 1 speakers"):
            enrol_examples(model, clips(1, 2), ["ann"])
        with pytest.raises(ValueError, match="leave_out is for enrolment from the examples themselves"):
            enrol_examples(model, clips(1), ["ann"], {"ann": clips(2)}, leave_out=True)


class TestDialogues:
    WHO = ("ann", "bob", "ann", "ann", "bob")

    def test_only_earlier_turns_of_the_same_speaker_and_dialogue(self, model):
        dialogues = [clips(1, 20, 3, 5, 30), clips(7)]
        enrolled = enrol_earlier_turns(model, dialogues, [self.WHO, ["ann"]], prior_clips=0)
        assert [means(turns) for turns in enrolled] == [[None, None, 1, 2, 20], [None]]

    @pytest.mark.parametrize("changed", range(5))
    def test_a_later_turn_changes_nothing_before_it(self, model, changed):
        values = [1, 20, 3, 5, 30]
        expected = means(enrol_earlier_turns(model, [clips(*values)], [self.WHO])[0])
        values[changed] = 99
        found = means(enrol_earlier_turns(model, [clips(*values)], [self.WHO])[0])
        assert found[: changed + 1] == expected[: changed + 1]
        later = [name == self.WHO[changed] for name in self.WHO[changed + 1 :]]
        assert [one != other for one, other in zip(found, expected, strict=True)][changed + 1 :] == later

    def test_refusals(self, model):
        with pytest.raises(ValueError, match="1 dialogues but speakers of 2"):
            enrol_earlier_turns(model, [clips(1)], [["ann"], ["bob"]])
        with pytest.raises(ValueError, match="2 examples but 1 speakers"):
            enrol_earlier_turns(model, [clips(1, 2)], [["ann"]])


class TestEnrolledClips:
    VALUES = (1, 2, 4, 8, 100, 200)
    WHO = ("ann",) * 4 + ("bob",) * 2

    def dataset(self, model, **values):
        return EnrolledClips(model, clips(*self.VALUES), self.WHO, prior_clips=0, **values)

    def test_by_default_all_clips_at_every_look(self, model):
        dataset = self.dataset(model)
        assert len(dataset) == 6
        for _ in range(2):
            assert means(dataset[index] for index in range(6)) == [3.75] * 4 + [150] * 2

    def test_so_many_others_drawn_anew(self, model):
        dataset = self.dataset(model, sizes=(2,))
        seen = {dataset[0]["vision_speaker"][0].item() for _ in range(60)}
        assert seen == {3, 5, 6}  # of 2, 4 and 8 any two; never its own 1
        assert {dataset[4]["vision_speaker"][0].item() for _ in range(9)} == {200}  # there is one other

    def test_sizes_and_the_share_of_the_unenrolled(self, model):
        dataset = self.dataset(model, sizes=(1, None), unenrolled=0.5)
        looks = means(dataset[0] for _ in range(2000))
        assert set(looks) == {None, 2, 4, 8, 3.75}
        assert looks.count(None) == pytest.approx(1000, abs=100)
        assert looks.count(3.75) == pytest.approx(500, abs=80)
        assert looks.count(2) == pytest.approx(500 / 3, abs=50)
        assert set(means(self.dataset(model, unenrolled=1.0))) == {None}

    def test_one_seed_gives_one_sequence_of_draws(self, model):
        def looks(seed):
            dataset = self.dataset(model, sizes=(1, 2), unenrolled=0.3, seed=seed)
            return means(dataset[index % 6] for index in range(50))

        assert looks(1) == looks(1)
        assert looks(1) != looks(2)

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"sizes": ()}, r"sizes must be .* found \[\]"),
            ({"sizes": (8, 0)}, r"at least 1, or None for all; found \[8, 0\]"),
            ({"unenrolled": 1.5}, "share of the looks, 0 to 1; found 1.5"),
        ],
    )
    def test_refusals(self, model, values, message):
        with pytest.raises(ValueError, match=message):
            self.dataset(model, **values)

    def test_an_unfitted_model_is_named(self, model):
        model.standardizers["vision"].fitted.fill_(False)
        with pytest.raises(ValueError, match="never fitted; call fit_standardizers"):
            self.dataset(model)[0]

    def test_training_where_only_enrolment_tells_the_labels(self, model, tmp_path):
        """Of every speaker the label is whether the value is above or below the speaker's own mean, and the speakers
        are far apart: who is not enrolled cannot be told, who is can, also whom training never saw."""
        random = torch.Generator().manual_seed(0)

        def side(names):
            found = [(name, 50 * torch.randn((), generator=random).item()) for name in names]
            made = []
            for name, centre in found:
                offsets = torch.randn(30, generator=random) * 5
                made += [
                    (name, {"vision_embeds": torch.tensor([[centre + offset]]), "label": int(offset > 0)})
                    for offset in offsets.tolist()
                ]
            return [name for name, _ in made], [example for _, example in made]

        who, train = side([f"train-{n}" for n in range(10)])
        new, unseen = side([f"new-{n}" for n in range(5)])
        model.fit_standardizers(lambda: iter([pad_examples(train)]))
        dataset = EnrolledClips(model, train, who, sizes=(20, None), unenrolled=0.2)
        subsets = enrolment_subsets({str(n): name for n, name in enumerate(new)}, 10, seed=0)
        enrolment = {name: [unseen[int(clip)] for clip in ids] for name, ids in subsets.items()}
        scored = [n for n in range(len(new)) if str(n) not in {clip for ids in subsets.values() for clip in ids}]
        rest = [unseen[n] for n in scored]
        enrolled = enrol_examples(model, rest, [new[n] for n in scored], enrolment, prior_clips=0)
        settings = TrainingSettings(epochs=8, learning_rate=0.01)
        fit(model, dataset, ExampleDataset(enrolled), settings, tmp_path)

        def accuracy(examples):
            batch = EmotionCollator()(examples)
            labels = batch.pop("labels")
            with torch.no_grad():
                return (model(**batch).logits.argmax(-1) == labels).float().mean().item()

        assert accuracy(enrolled) > 0.8
        assert accuracy(rest) < 0.7


def test_profiles_are_made_once_and_add_up(model):
    profiles = model.clip_profiles(clips(1, 2, 3))
    total = sum(profiles, SpeakerProfile()).streams["vision"]
    assert (total.clips, total.moments.total.item(), total.moments.squares.item()) == (3, 6.0, 14.0)
