import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from test_fer2013 import encode, write

from mer_hf import LateFusionForEmotionClassification, MerProcessor
from mer_hf.data.fer2013 import FacePictures
from mer_hf.default_model.face import (
    LUMA,
    FaceBranch,
    face_image_processor,
    face_logits,
    finish,
    round_to_half,
    save_face_branch,
    see_colour,
    train_face,
    without_memory,
)
from mer_hf.default_model.face_pictures import augment
from mer_hf.default_model.face_results import add_margin, measure_face, write_face_branch
from mer_hf.default_model.face_training import FaceRecipe, FaceTraining, grey_logits, make_face_model
from mer_hf.default_model.frequencies import LABELS
from mer_hf.default_model.sentences import SENTENCES
from mer_hf.models.media import crop_face, load_frames

TINY = FaceRecipe(
    image_size=32,
    embedding_size=4,
    hidden_sizes=(4, 8),
    depths=(1, 1),
    head_size=8,
    dropout=0.1,
    epochs=3,
    batch_size=14,
    learning_rate=2e-2,
    averaging=0.5,
)
WORDS = {"fearful": "fear", "disgusted": "disgust", "surprised": "surprise"}


def draw_side(each: int, seed: int) -> FacePictures:
    """Pictures whose class shows: a bright bar, of which each class has its own height, on noise."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 60, (7 * each, 48, 48), dtype=np.uint8)
    for index in range(len(pixels)):
        top = 4 + 6 * (index % 7)
        pixels[index, top : top + 5] += 180
    labels = tuple(LABELS[index % 7] for index in range(len(pixels)))
    return FacePictures(tuple(f"{seed}_{index}" for index in range(len(pixels))), pixels, labels)


def write_sides(folder, each=4):
    for seed, split in enumerate(("train", "validation", "test")):
        side = draw_side(each, seed)
        rows = zip(side.ids, [WORDS.get(label, label) for label in side.labels], map(encode, side.pixels), strict=True)
        write(folder, split, list(rows))


def train(epochs: int) -> FaceTraining:
    training = FaceTraining(TINY, 0, draw_side(8, 0), draw_side(4, 1))
    for _ in range(epochs):
        training.run_epoch()
    return training


@pytest.fixture(scope="module")
def trained() -> FaceTraining:
    return train(TINY.epochs)


@pytest.fixture(scope="module")
def branch(trained) -> FaceBranch:
    return finish(trained, draw_side(8, 0), draw_side(4, 1))


def test_labels_are_the_default_checkpoints_in_its_order():
    assert LABELS == tuple(SENTENCES)


def test_augmentation_keeps_range_and_shape_and_follows_from_the_generator_alone():
    pictures = torch.from_numpy(draw_side(4, 0).pixels)
    one, again, other = (augment(pictures, 32, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))
    assert one.shape == (28, 1, 32, 32) and one.min() >= 0 and one.max() <= 1
    assert torch.equal(one, again) and not torch.allclose(one, other, atol=0.1)
    assert (one - one.roll(1, dims=0)).abs().amax(
        dim=(1, 2, 3)
    ).min() > 0.1  # every picture differs from the one before


def test_augmentation_leaves_a_picture_recognisable():
    """The brightest rows stay near where they were: not turned upside down, not moved out of the picture."""
    picture = torch.zeros(64, 48, 48, dtype=torch.uint8)
    picture[:, :12] = 255
    rows = augment(picture, 48, torch.Generator().manual_seed(0))[:, 0].mean(dim=2)
    assert (rows[:, :6].mean(1) > rows[:, -12:].mean(1)).float().mean() > 0.9


def test_tiny_training_lowers_the_loss_and_learns(trained):
    losses = [entry["loss"] for entry in train(12).history]
    assert losses[-1] < 0.9 * losses[0]
    assert len(trained.history) == 3 and all(entry["cpu_seconds"] > 0 for entry in trained.history)


def test_an_interrupted_training_ends_as_one_that_was_not(trained, tmp_path):
    first = train(1)
    first.save(tmp_path / "state.pt")
    second = FaceTraining(TINY, 0, draw_side(8, 0), draw_side(4, 1))
    second.load(tmp_path / "state.pt")
    second.run_epoch()
    second.save(tmp_path / "state.pt")
    third = FaceTraining(TINY, 0, draw_side(8, 0), draw_side(4, 1))
    third.load(tmp_path / "state.pt")
    third.run_epoch()
    for name, value in trained.average.state_dict().items():
        assert torch.equal(value, third.average.state_dict()[name]), name
    for name, value in trained.best_model().state_dict().items():
        assert torch.equal(value, third.best_model().state_dict()[name]), name
    drop = "cpu_seconds"
    assert [{k: v for k, v in e.items() if k != drop} for e in third.history] == [
        {k: v for k, v in e.items() if k != drop} for e in trained.history
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


def test_a_checkpoint_of_another_training_is_refused(trained, tmp_path):
    trained.save(tmp_path / "state.pt")
    others = {
        "seed": FaceTraining(TINY, 1, draw_side(8, 0), draw_side(4, 1)),
        "data": FaceTraining(TINY, 0, draw_side(8, 2), draw_side(4, 1)),
        "mixup": FaceTraining(replace(TINY, mixup=0.0), 0, draw_side(8, 0), draw_side(4, 1)),
    }
    for name, other in others.items():
        with pytest.raises(ValueError, match=f"differs in {name}"):
            other.load(tmp_path / "state.pt")


def test_no_epoch_no_model():
    with pytest.raises(ValueError, match="no epoch has been run yet"):
        train(0).best_model()


def test_the_kept_epoch_is_the_best_on_validation(trained):
    side = draw_side(4, 1)
    logits = grey_logits(trained.best_model(), torch.from_numpy(side.pixels), TINY.image_size)
    hits = [LABELS[k] == label for k, label in zip(logits.argmax(-1).tolist(), side.labels, strict=True)]
    assert np.mean(hits) == pytest.approx(max(entry["validation_accuracy"] for entry in trained.history))


def test_a_colour_picture_and_its_luma_give_the_same_logits(trained):
    grey = trained.best_model()
    colour = see_colour(grey, TINY)
    pixels = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    luma = sum(share * pixels[:, index] for index, share in enumerate(LUMA)).unsqueeze(1)
    with torch.no_grad():
        expected = grey(pixel_values=luma.unsqueeze(1)).logits
        found = colour(pixel_values=pixels.unsqueeze(1)).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert sum(LUMA) == pytest.approx(1)


def test_hue_does_not_matter_through_the_image_processor(branch):
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    grey = np.stack([np.asarray(Image.fromarray(frame).convert("L")) for frame in colour])
    values = branch.image_processor(list(colour), return_tensors="pt").pixel_values
    with torch.no_grad():
        found = branch.model(pixel_values=values.unsqueeze(1)).logits
    torch.testing.assert_close(found, face_logits(branch.model, branch.image_processor, grey), atol=0.03, rtol=0)


def test_the_grey_path_of_training_is_the_shipped_path(trained):
    """The validation accuracy that chose the epoch is that of the pictures through the image processor."""
    side, model = draw_side(4, 1), trained.best_model()
    shipped = face_logits(see_colour(model, TINY), face_image_processor(96), side.pixels)
    grey = grey_logits(model, torch.from_numpy(side.pixels), 96)
    torch.testing.assert_close(shipped, grey, atol=0.02, rtol=0)


def test_without_memory_nothing_changes_for_one_step_and_every_step_is_a_first_one(trained):
    torch.manual_seed(0)
    before = make_face_model(TINY).eval()
    after = make_face_model(TINY)
    after.load_state_dict(before.state_dict())
    after = without_memory(after).eval()
    frames, times = torch.rand(2, 3, 1, 32, 32), torch.tensor([[0.1, 0.5, 0.9]]).expand(2, -1)
    words = torch.tensor([[[0.0, 0.2], [0.2, 0.6], [0.6, 1.0]]]).expand(2, -1, -1)
    with torch.no_grad():
        one = before(pixel_values=frames).logits
        assert torch.equal(after(pixel_values=frames).logits, one)
        given = {"pixel_values": frames, "vision_times": times, "word_times": words}
        torch.testing.assert_close(after(**given).logits, one)
        assert not torch.allclose(before(**given).logits, one, atol=1e-3)


def test_under_equal_frequencies_probabilities_are_those_divided_by_the_frequencies(branch, trained):
    pixels = draw_side(2, 3).pixels
    logits = face_logits(branch.model, branch.image_processor, pixels)
    temperature = branch.model.config.calibration_temperature
    skewed = replace(branch, counts=(1, 2, 3, 4, 5, 6, 7))
    as_trained = ((logits + skewed.frequency_logits) / temperature).softmax(-1)
    divided = as_trained / torch.tensor([1.0, 2, 3, 4, 5, 6, 7])
    torch.testing.assert_close((logits / temperature).softmax(-1), divided / divided.sum(-1, keepdim=True))
    assert branch.counts == (8,) * 7 and torch.equal(branch.frequency_logits, torch.zeros(7))


def test_rounding_is_exact_the_second_time_and_refuses_what_half_precision_has_not(branch):
    again = round_to_half(branch.model).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in branch.model.state_dict().items())
    model = make_face_model(TINY)
    model.classifier.bias.data[0] = 1e6
    with pytest.raises(ValueError, match=r"classifier\.bias.* beyond half precision"):
        round_to_half(model)


def test_a_picture_repeated_gives_the_logits_of_one_and_padding_none(branch):
    values = torch.rand(2, 1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        one = branch.model(pixel_values=values).logits
        repeated = torch.cat([values.expand(-1, 8, -1, -1, -1), torch.full((2, 2, 3, 32, 32), float("nan"))], dim=1)
        mask = torch.tensor([[True] * 8 + [False] * 2]).expand(2, -1)
        many = branch.model(pixel_values=repeated, pixel_values_mask=mask).logits
    torch.testing.assert_close(many, one, atol=1e-5, rtol=1e-4)


def test_the_saved_branch_is_a_branch_of_a_fusion_and_loads_as_float32(branch, tmp_path):
    save_face_branch(branch, tmp_path)
    model = LateFusionForEmotionClassification.from_branches({"face": tmp_path}).eval()
    assert model.dtype == torch.float32 and list(model.config.id2label.values()) == list(LABELS)
    assert model.config.temperatures == (branch.model.config.calibration_temperature,)
    state = model.branches["face"].state_dict()
    assert all(torch.equal(value, state[name]) for name, value in branch.model.state_dict().items())
    processor = MerProcessor.default(image_processor=type(branch.image_processor).from_pretrained(tmp_path))
    picture = draw_side(1, 4).pixels[0]
    frames = np.repeat(picture[None, :, :, None], 3, axis=-1)
    batch = processor(frames=[frames, None], frame_times=[np.zeros(1, np.float32), None])
    with torch.no_grad():
        output = model(**batch)
    expected = face_logits(branch.model, branch.image_processor, picture[None])
    torch.testing.assert_close(output.branch_logits[0], expected)
    assert output.branch_mask.tolist() == [[True], [False]] and not output.logits[1].any()


def test_a_margin_mirrors_the_pictures_edge():
    picture = np.arange(9, dtype=np.uint8).reshape(1, 3, 3)
    assert add_margin(picture, 1)[0].tolist() == [
        [4, 3, 4, 5, 4],
        [1, 0, 1, 2, 1],
        [4, 3, 4, 5, 4],
        [7, 6, 7, 8, 7],
        [4, 3, 4, 5, 4],
    ]


def test_results_state_both_operating_points_and_what_was_chosen_where(tmp_path):
    write_sides(tmp_path)
    results, state = tmp_path / "results.json", tmp_path / "state.pt"
    branch = write_face_branch(tmp_path, tmp_path / "branch", results, seed=1, recipe=TINY, checkpoint=state)
    again = train_face(tmp_path, seed=1, recipe=TINY, checkpoint=state)  # every epoch is in the file
    assert all(torch.equal(v, again.model.state_dict()[k]) for k, v in branch.model.state_dict().items())
    found = json.loads(results.read_text())
    assert found["training"]["file_bytes"] == (tmp_path / "branch" / "model.safetensors").stat().st_size
    assert found["selected_on"] == "validation" and len(found["training"]["history"]) == TINY.epochs
    assert found["corpus"]["sides"]["test"]["pictures"] == 28
    for point in ("training_frequencies", "equal_frequencies"):
        test = found["operating_points"][point]["test"]
        assert test["n"] == 28 and len(test["intervals"]["wa"]) == 2 and set(test["recall"]) == set(LABELS)
        assert test["wa"] == pytest.approx(sum(test["confusion"][k][k] for k in range(7)) / 28)
        assert test["calibration"]["temperature"] == found["temperature"]
    assert found["operating_points"]["equal_frequencies"] == found["operating_points"]["training_frequencies"]


def test_the_test_side_is_not_read_in_training(tmp_path):
    write_sides(tmp_path)
    (tmp_path / "test.parquet").unlink()
    branch = train_face(tmp_path, recipe=replace(TINY, epochs=1))
    with pytest.raises(ValueError, match=r"has no test\.parquet"):
        measure_face(branch, tmp_path)


def test_faces_are_found_in_the_real_video(real_data):
    video = real_data("ravdess") / "Actor_01" / "01-01-01-01-01-01-01.mp4"
    for num_frames in (8, 32):
        assert crop_face(load_frames(video, num_frames)[0])[1].mean() >= 0.95
