import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from psnet.crops import cut_regions, to_tensor
from psnet.model import PSNet, PSNetConfig
from psnet.predictor import Predictor, _Placed, _Reading
from psnet.regions import MIRROR, Presence
from psnet.weights import WeightsError, load_psnet, model_tag, save_psnet


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    save_psnet(PSNet(PSNetConfig.tiny()), folder)
    return folder


def pictures(count, seed=0):
    rng = np.random.default_rng(seed)
    return [
        rng.integers(0, 256, (int(rng.integers(80, 140)), int(rng.integers(80, 140)), 3), dtype=np.uint8)
        for _ in range(count)
    ]


def test_garments_are_well_formed(tiny):
    predictor = Predictor.load(tiny, "cpu", min_score=0.0, max_garments=2)
    for image, garments in zip(pictures(3), predictor.predict(pictures(3)), strict=True):
        assert 0 < len(garments) <= 2
        height, width = image.shape[:2]
        for g in garments:
            assert (g.box >= 0).all() and (g.box <= [width, height, width, height]).all()
            assert g.landmarks.shape == (11, 3) and g.region_boxes.shape == (5, 4)
            norms = np.linalg.norm(g.features, axis=-1)
            np.testing.assert_allclose(norms, g.presence == Presence.PRESENT, atol=1e-5)
            np.testing.assert_allclose(
                np.linalg.norm(g.mirrored_features, axis=-1), norms[list(MIRROR)], atol=1e-5
            )


def test_nothing_is_seen_in_a_line(tiny):
    shapes = [(1, 1), (1, 100), (100, 1), (3, 2000), (5000, 20)]
    lines = [np.zeros((*shape, 3), np.uint8) for shape in shapes]
    (whole,) = pictures(1)
    predictor = Predictor.load(tiny, "cpu", min_score=0.0)
    *nothing, found = predictor.predict([*lines, whole])
    assert nothing == [[]] * len(lines) and len(found) == len(predictor.predict([whole])[0]) > 0


def test_the_surest_comes_first_by_the_score_that_is_told(tiny):
    predictor = Predictor.load(tiny, "cpu", min_score=0.0)
    every = [[garment.score for garment in found] for found in predictor.predict(pictures(12))]
    assert any(len(scores) > 1 for scores in every)
    assert all(scores == sorted(scores, reverse=True) for scores in every)


def test_results_do_not_depend_on_the_batch(tiny):
    images = pictures(5)
    together = Predictor.load(tiny, "cpu", min_score=0.0, batch=16).predict(images)
    alone = [Predictor.load(tiny, "cpu", min_score=0.0, batch=1).predict([image])[0] for image in images]
    for one, other in zip(together, alone, strict=True):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(a.box, b.box, atol=1e-3)
            np.testing.assert_allclose(a.features, b.features, atol=1e-4)


@pytest.mark.parametrize("retrieval", ["crop", "roi"])
def test_mirrored_features_are_those_of_the_flipped_picture(tmp_path, retrieval):
    torch.manual_seed(0)
    config = dataclasses.replace(PSNetConfig.tiny(), retrieval=retrieval)
    save_psnet(PSNet(config), tmp_path)
    predictor = Predictor.load(tmp_path, "cpu", min_score=0.0, max_garments=1)
    # A smooth picture: the boxes of random weights are small, and resampling must not be what is compared.
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8))
    picture = np.asarray(coarse.resize((100, 120), Image.Resampling.BICUBIC))
    garment = predictor.predict([picture])[0][0]
    # The branch itself, on the flipped picture with the boxes flipped along: the detector is left out of it.
    if retrieval == "crop":
        width = picture.shape[1]
        boxes = garment.region_boxes[list(MIRROR)]
        boxes = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], -1)
        cut = cut_regions(Image.fromarray(np.ascontiguousarray(picture[:, ::-1])), boxes, config.region_side)
        with torch.inference_mode():
            expected = predictor.model.retrieval(to_tensor(cut)[None])[0].numpy()
        seen = (garment.presence == Presence.PRESENT)[list(MIRROR)]
        np.testing.assert_allclose(garment.mirrored_features, expected * seen[:, None], atol=5e-3)
    assert garment.mirrored_features.shape == (5, config.feature_dim)


def test_a_flipped_picture_gets_the_same_regions_and_features(tiny):
    """What a copyist does first must not change what is seen: the branch looks at both, and means both."""
    predictor = Predictor.load(tiny, "cpu")
    (image,) = pictures(1, seed=4)
    height, width = image.shape[:2]
    box = np.array([0.1 * width, 0.1 * height, 0.7 * width, 0.9 * height], np.float32)
    turned = np.array([width - box[2], box[1], width - box[0], box[3]], np.float32)
    (one,) = predictor.describe([image], box[None])
    (other,) = predictor.describe([np.ascontiguousarray(image[:, ::-1])], turned[None])
    boxes = other.region_boxes[list(MIRROR)]
    back = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], -1)
    # Pillow rounds resized pixels from left to right and from right to left alike, to within one grey level.
    np.testing.assert_allclose(back, one.region_boxes, atol=0.05)
    assert (other.presence[list(MIRROR)] == one.presence).all() and other.category == one.category
    np.testing.assert_allclose(other.features, one.mirrored_features, atol=0.02)


def test_a_garment_described_in_its_own_boxes_is_the_garment_found(tiny):
    predictor = Predictor.load(tiny, "cpu", min_score=0.0, max_garments=1)
    images = pictures(3)
    found = [garments[0] for garments in predictor.predict(images)]
    boxes = np.stack([g.box for g in found])
    regions = np.stack([g.region_boxes for g in found])
    regions[0, 2] = np.nan
    described = predictor.describe(images, boxes, regions)
    for i, (one, other) in enumerate(zip(found, described, strict=True)):
        seen = ~np.isnan(regions[i, :, 0])
        assert (other.presence == np.where(seen, Presence.PRESENT, Presence.ABSENT)).all()
        np.testing.assert_allclose(other.region_boxes[seen], regions[i, seen], atol=1e-2)
        np.testing.assert_allclose(other.box, boxes[i])
        np.testing.assert_allclose(np.linalg.norm(other.features, axis=-1), seen, atol=1e-5)
        both = seen & (one.presence == Presence.PRESENT)
        np.testing.assert_allclose(other.features[both], one.features[both], atol=5e-3)
        flipped = both[list(MIRROR)]
        np.testing.assert_allclose(
            other.mirrored_features[flipped], one.mirrored_features[flipped], atol=5e-3
        )
    assert predictor.describe([], np.zeros((0, 4))) == []
    with pytest.raises(ValueError, match="3 images need as many boxes"):
        predictor.describe(images, boxes[:2])


@pytest.mark.parametrize("retrieval", ["roi", "pcb", "global"])
def test_branches_that_see_the_whole_garment_describe_too(tmp_path, retrieval):
    torch.manual_seed(0)
    config = dataclasses.replace(PSNetConfig.tiny(), retrieval=retrieval)
    save_psnet(PSNet(config), tmp_path)
    predictor = Predictor.load(tmp_path, "cpu")
    box = np.array([[10, 10, 70, 75]], np.float32)
    regions = np.tile(box, (1, 5, 1)).reshape(1, 5, 4)
    regions[0, 1:3] = np.nan
    (garment,) = predictor.describe(pictures(1), box, regions)
    assert np.isfinite(garment.features).all() and np.isfinite(garment.region_boxes).all()
    norms = np.linalg.norm(garment.features, axis=-1)
    expected = [1, 0, 0, 1, 1] if retrieval == "roi" else [1] * 5
    np.testing.assert_allclose(norms, expected, atol=1e-5)
    (again,) = predictor.describe(pictures(1), box)
    np.testing.assert_allclose(again.box, box[0])


@pytest.mark.parametrize(
    ("part", "whole", "kept"), [(0.9, 0.8, "whole"), (0.9999, 0.99, "part"), (0.6, 0.9, "whole")]
)
def test_a_part_gives_way_to_the_whole_unless_it_is_much_surer(tiny, part, whole, kept):
    predictor = Predictor.load(tiny, "cpu")
    boxes = {"part": [30, 30, 60, 60], "whole": [0, 0, 90, 90]}

    def placed(name, score):
        points = np.zeros((11, 2), np.float32)
        reading = _Reading(
            score, points, np.zeros((6, 4)), points[:, 0], np.eye(5, 3), np.ones(10), torch.zeros(11, 4, 4)
        )
        box = np.array(boxes[name], np.float32)
        return _Placed(0, box, torch.zeros(3, 64, 64), reading, box, np.zeros((5, 4)))

    for found in (
        [placed("part", part), placed("whole", whole)],
        [placed("whole", whole), placed("part", part)],
    ):
        (one,) = predictor._decide(found)
        assert one.box.tolist() == boxes[kept]


def test_saving_and_loading_keeps_the_function(tiny):
    model, again = load_psnet(tiny), load_psnet(tiny)
    x, shape = torch.rand(1, 3, 64, 64), torch.zeros(1)
    with torch.inference_mode():
        assert torch.equal(model.landmarks(x, shape).heatmaps, again.landmarks(x, shape).heatmaps)
    assert model_tag(tiny) == model_tag(tiny) and model_tag(tiny).startswith("psnet-")


def test_tag_follows_the_weights_not_the_calibration(tiny, tmp_path):
    model = load_psnet(tiny)
    save_psnet(model, tmp_path, {"calibration": {}})
    assert model_tag(tmp_path) == model_tag(tiny)
    with torch.no_grad():
        model.retrieval.stem[0].weight += 0.1
    save_psnet(model, tmp_path)
    assert model_tag(tmp_path) != model_tag(tiny)


def test_weights_of_another_model_give_one_clear_line(tiny, tmp_path):
    save_psnet(load_psnet(tiny), tmp_path)
    other = dataclasses.replace(PSNetConfig.tiny(), feature_dim=24)
    description = json.loads((tmp_path / "model.json").read_text())
    description["config"]["feature_dim"] = other.feature_dim
    (tmp_path / "model.json").write_text(json.dumps(description))
    with pytest.raises(WeightsError, match=r"retrieval.*another model") as caught:
        load_psnet(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: (d / "detector.safetensors").unlink(), "detector.safetensors missing"),
        (lambda d: (d / "landmarks.safetensors").write_bytes(b"not weights"), "damaged"),
        (lambda d: (d / "model.json").write_text("{"), "cannot be read"),
        (lambda d: (d / "model.json").write_text('{"format": 99}'), "format 99"),
    ],
)
def test_damaged_weights_give_one_clear_line(tiny, tmp_path, change, message):
    save_psnet(load_psnet(tiny), tmp_path)
    change(tmp_path)
    with pytest.raises(WeightsError, match=message) as caught:
        load_psnet(tmp_path)
    assert "\n" not in str(caught.value)
