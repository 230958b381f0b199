import numpy as np
import pytest
import torch

from psnet.group_head import GROUP_OF_CATEGORY, GroupHead, joint_opinion, shapes
from psnet.model import PSNet, PSNetConfig
from psnet.predictor import Garment, Predictor
from psnet.regions import GROUPS, MIRROR, Presence
from psnet.taxonomy import TORSO_CATEGORIES
from psnet.train.groups import GroupSamples, fit_group_head, group_figures
from psnet.weights import WeightsError, load_group_head, model_tag, save_part, save_psnet

DIM = 8


def garments(count, seed, told_by=0.8):
    """Garments of which a dress shows itself in the waist's feature and a jacket in the sleeves'."""
    rng = np.random.default_rng(seed)
    found, categories = [], np.zeros((count, len(TORSO_CATEGORIES)), np.float32)
    for row in range(count):
        category = int(rng.integers(len(TORSO_CATEGORIES)))
        categories[row, category] = 1
        features = rng.standard_normal((5, DIM))
        group = GROUPS[GROUP_OF_CATEGORY[category]]
        if group == "dress":
            features[4, 0] += 5 * told_by
        if group == "outwear":
            features[[1, 2], 1] += 5 * told_by
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        presence = np.full(5, Presence.PRESENT, np.uint8)
        presence[1] = rng.choice([Presence.ABSENT, Presence.PRESENT])
        features[presence != Presence.PRESENT] = 0
        # The landmark branch is torn between two categories.
        kinds = np.full(len(TORSO_CATEGORIES), 0.02, np.float32)
        kinds[category] += 0.4
        kinds[int(rng.integers(len(TORSO_CATEGORIES)))] += 0.4
        found.append(
            Garment(
                box=np.array([10, 10, 60 + rng.integers(40), 110], np.float32),
                score=0.9,
                category=TORSO_CATEGORIES[int(kinds.argmax())],
                group="",
                category_scores=kinds,
                landmarks=np.zeros((11, 3), np.float32),
                region_boxes=np.zeros((5, 4), np.float32),
                presence=presence,
                presence_score=np.ones(5, np.float32),
                features=features.astype(np.float32),
                mirrored_features=features[list(MIRROR)].astype(np.float32),
            )
        )
    return found, categories


def samples(count, seed, **more):
    found, categories = garments(count, seed, **more)
    return GroupSamples.of([*found, None], np.vstack([categories, categories[:1]]), np.ones(count + 1))


def test_both_opinions_together_are_right_more_often_than_either():
    head = fit_group_head(samples(400, seed=0))
    figures = group_figures(head, samples(300, seed=1))
    assert figures["joint"] > max(figures["landmarks"], figures["regions"]) + 0.02
    # What says nothing changes nothing.
    nothing = fit_group_head(samples(400, seed=0), penalty=1e6)
    figures = group_figures(nothing, samples(300, seed=1))
    assert figures["joint"] == pytest.approx(figures["landmarks"], abs=0.02)


def test_a_mirror_image_is_of_the_same_group():
    head = fit_group_head(samples(50, seed=0))
    one = samples(20, seed=2)
    chances = head.chances(one.features, one.mirrored, one.boxes, one.presence)
    np.testing.assert_allclose(chances.sum(1), 1, rtol=1e-5)
    turned = head.chances(one.mirrored, one.features, one.boxes, one.presence[:, list(MIRROR)])
    np.testing.assert_allclose(turned, chances, rtol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        again = head.chances(one.features, one.mirrored, one.boxes, one.presence)
    assert (again == chances).all()


def test_what_a_catalogue_says_by_halves_is_learnt_by_halves():
    """Labels of seven parts in ten are followed so far and no further."""
    found, categories = garments(300, seed=0, told_by=0)
    dress, top = TORSO_CATEGORIES.index("sling_dress"), TORSO_CATEGORIES.index("vest")
    categories[:] = 0
    categories[:, dress], categories[:, top] = 0.7, 0.3
    one = GroupSamples.of(found, categories, np.ones(300))
    np.testing.assert_allclose(one.groups[:, GROUPS.index("dress")], 0.7)
    chances = fit_group_head(one).chances(one.features, one.mirrored, one.boxes, one.presence)
    assert abs(chances[:, GROUPS.index("dress")].mean() - 0.7) < 0.02


def test_joint_opinion_keeps_the_order_within_a_group():
    kinds = np.array([0.3, 0.3, 0.05, 0.05, 0.05, 0.05, 0.1, 0.05, 0.03, 0.02], np.float32)
    groups = np.array([0.05, 0.05, 0.05, 0.85], np.float32)
    both = joint_opinion(kinds, groups)
    assert both.sum() == pytest.approx(1) and both.dtype == np.float32
    assert TORSO_CATEGORIES[int(both.argmax())] == "short_sleeve_dress"
    of_dress = GROUPS.index("dress") == GROUP_OF_CATEGORY
    np.testing.assert_allclose(
        both[of_dress] / both[of_dress].sum(), kinds[of_dress] / kinds[of_dress].sum(), rtol=1e-5
    )


def test_shapes_of_flat_boxes_are_finite():
    boxes = np.array([[5, 5, 5, 9], [0, 0, 10, 20]], np.float32)
    out = shapes(boxes, np.full((2, 5), Presence.ABSENT, np.uint8))
    assert np.isfinite(out).all() and (out[:, 2:] == 0).all()
    assert out[1, 0] == pytest.approx(2 * np.log(0.5))


def test_a_garment_gets_the_category_of_both_opinions(tmp_path):
    """A head that always says dress, beside the same weights without one."""
    torch.manual_seed(0)
    config = PSNetConfig.tiny()
    save_psnet(PSNet(config), tmp_path)
    picture = np.random.default_rng(0).integers(0, 256, (120, 100, 3), dtype=np.uint8)
    before = Predictor.load(tmp_path, "cpu", min_score=0.0, max_garments=1)
    (plain,) = before.predict([picture])[0]
    assert load_group_head(tmp_path) is None
    head = GroupHead(config.feature_dim)
    torch.nn.init.zeros_(head.linear.weight)
    with torch.no_grad():
        head.linear.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 9.0]))
    save_part(head, tmp_path / "groups.safetensors")
    assert model_tag(tmp_path) != before.tag
    (told,) = Predictor.load(tmp_path, "cpu", min_score=0.0, max_garments=1).predict([picture])[0]
    assert told.group == "dress" and "dress" in told.category
    expected = np.where(GROUP_OF_CATEGORY == 3, plain.category_scores * np.exp(9), plain.category_scores)
    np.testing.assert_allclose(told.category_scores, expected / expected.sum(), rtol=1e-4)
    assert (told.features == plain.features).all() and (told.region_boxes == plain.region_boxes).all()
    save_part(GroupHead(config.feature_dim + 1), tmp_path / "groups.safetensors")
    with pytest.raises(WeightsError, match=r"groups\.safetensors"):
        Predictor.load(tmp_path, "cpu")


def test_no_garment_is_one_clear_line():
    with pytest.raises(ValueError, match="no garment was found"):
        GroupSamples.of([None], np.zeros((1, len(TORSO_CATEGORIES))), [1.0])
