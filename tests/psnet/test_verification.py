"""Photographs laid upon each other: found where they belong together, and what was changed is seen there."""

from collections import OrderedDict
from dataclasses import replace
from functools import partial
from itertools import combinations

import numpy as np
import pytest
import torch
from PIL import Image

from psnet.boxes import moved_boxes
from psnet.comparison import RegionComparison, boxes_to_look_at, cut_registered, log_odds
from psnet.data.edits import edit_parts
from psnet.data.photographs import read_labels, with_masks
from psnet.data.rephotograph import View, rephotograph
from psnet.homography import project
from psnet.model import PSNetConfig, build_retrieval_branch
from psnet.regions import MIRROR, Presence
from psnet.registration import find_keypoints, register, surroundings_agree
from psnet.render.labels import write_labels
from psnet.taxonomy import Taxonomy
from psnet.train.calibrate import CALIBRATION_CAMERA
from psnet.train.comparison import ComparisonSamples, comparison_batch, comparison_figures, comparison_loss
from psnet.train.landmarks import subject_of
from psnet.train.retrieval import mirror_subject
from psnet.verification import Sight, Verifier, reading_order
from psnet.warp import Warp

SWAP = Taxonomy.load("clothing11").swap
# A flat sheet, so that few points are enough.
CAMERA = replace(CALIBRATION_CAMERA, bend=0.0)
ALL = np.full(5, Presence.PRESENT, np.uint8)


@pytest.fixture(scope="module")
def garments(tmp_path_factory):
    """Rendered garments with something on them; a plain one has too few points to be laid upon anything."""
    folder = tmp_path_factory.mktemp("rendered")
    every = with_masks(read_labels(write_labels(folder, 12, seed=3)), folder / "cache")
    return [g for g in every if len(find_keypoints(g.read(), g.box).points) > 250]


def photographed(subject, seed):
    return rephotograph(subject, np.random.default_rng(seed), CAMERA, swap=SWAP)


def as_it_is(points):
    return points


def sight_of(view):
    presence = np.where(np.isnan(view.region_boxes[:, 0]), Presence.ABSENT, Presence.PRESENT)
    return Sight.of(view.pixels, view.box, view.region_boxes, presence.astype(np.uint8), view.landmarks)


def test_a_garment_photographed_again_is_laid_where_it_belongs(garments):
    assert len(garments) >= 4
    for seed, garment in enumerate(garments, 100):
        subject = subject_of(garment)
        view = photographed(subject, seed)
        one, other = find_keypoints(subject.pixels, subject.box), find_keypoints(view.pixels, view.box)
        found = register(one, other)
        assert found is not None and found.points >= 12, seed
        points = subject.landmarks[subject.landmarks[:, 2] > 0, :2]
        off = np.linalg.norm(found.warp.place(points) - view.warp.place(points), axis=1)
        assert np.median(off) < 0.02 * np.ptp(view.box.reshape(2, 2), axis=0).max(), seed
        again = register(one, other)
        assert np.array_equal(again.warp.matrix, found.warp.matrix)
        assert np.array_equal(again.warp.shifts, found.warp.shifts)


def test_bends_of_the_cloth_are_found_besides_the_homography(garments):
    """Over all landmarks at least a third nearer than the homography alone, and no worse where nothing was
    bent."""
    off = {}
    for bend in (0.0, 0.03):
        camera = replace(CAMERA, bend=bend)
        flat, bent = [], []
        for seed, garment in enumerate(garments):
            subject = subject_of(garment)
            view = rephotograph(subject, np.random.default_rng(seed), camera, swap=SWAP)
            found = register(
                find_keypoints(subject.pixels, subject.box), find_keypoints(view.pixels, view.box)
            )
            if found is None:
                continue
            points = subject.landmarks[subject.landmarks[:, 2] > 0, :2]
            size = np.ptp(view.box.reshape(2, 2), axis=0).max()
            true = view.warp.place(points)
            flat.append(np.linalg.norm(project(found.warp.matrix, points) - true, axis=1) / size)
            bent.append(np.linalg.norm(found.warp.place(points) - true, axis=1) / size)
        assert len(flat) >= 4
        off[bend] = np.median(np.concatenate(flat)), np.median(np.concatenate(bent))
    assert off[0.03][1] < off[0.03][0] * 2 / 3
    assert off[0.0][1] < 0.005


def test_other_garments_and_plain_pictures_are_laid_upon_nothing(garments):
    points = [find_keypoints(g.read(), g.box) for g in garments]
    assert all(register(a, b) is None for i, a in enumerate(points) for b in points[i + 1 :])
    grey = find_keypoints(np.full((300, 200, 3), 128, np.uint8), np.array([10.0, 10, 190, 290]))
    assert len(grey.points) == 0 and register(grey, points[0]) is None


def test_what_surrounds_two_garments_does_not_speak_for_them(garments):
    rng = np.random.default_rng(0)
    floor = np.asarray(Image.fromarray(rng.integers(0, 255, (75, 50, 3), dtype=np.uint8)).resize((400, 600)))
    box = np.array([100.0, 150, 300, 450])
    pictures = []
    for level in (90, 160):
        picture = floor.copy()
        picture[140:460, 90:310] = level
        pictures.append(find_keypoints(picture, box))
    assert register(*pictures) is None


def test_points_of_the_flipped_picture_are_those_of_a_flipped_picture(garments):
    picture = garments[0].read()
    width = picture.shape[1]
    x0, y0, x1, y1 = garments[0].box
    flipped = find_keypoints(picture, garments[0].box).flipped()
    seen = find_keypoints(np.ascontiguousarray(picture[:, ::-1]), np.array([width - x1, y0, width - x0, y1]))
    apart = np.linalg.norm(flipped.points[:, None] - seen.points[None], axis=-1)
    cosines = np.where(apart < 1.5 / seen.scale, flipped.descriptors @ seen.descriptors.T, -1).max(1)
    assert (cosines > 0.97).mean() > 0.6
    np.testing.assert_allclose(flipped.box, seen.box)


def test_boxes_are_moved_by_the_middles_of_their_sides():
    turned = np.array([[0.0, -1, 100], [1, 0, 0], [0, 0, 1]])
    np.testing.assert_allclose(
        moved_boxes(np.array([[10.0, 20, 30, 60]]), partial(project, turned)), [[40, 10, 80, 30]]
    )
    boxes, others = np.full((5, 4), np.nan, np.float32), np.full((5, 4), np.nan, np.float32)
    boxes[0], others[0], others[1] = [0, 0, 10, 10], [2, 2, 12, 12], [5, 5, 9, 9]
    places = boxes_to_look_at(boxes, others, Warp.flat(np.eye(3), np.array([0.0, 0, 20, 20])))
    alone = [5, 5, 9, 9]
    wanted = [[[1, 1, 11, 11], alone], [[0, 0, 10, 10], alone], [[2, 2, 12, 12], alone]]
    np.testing.assert_allclose(places[:, :2], wanted)
    assert np.isnan(places[:, 2:]).all()


def test_regions_are_cut_at_the_same_place(garments):
    subject = subject_of(garments[0])
    view = replace(
        photographed(subject, 1),
        pixels=np.asarray(
            Image.fromarray(subject.pixels).transform(
                subject.pixels.shape[1::-1],
                Image.Transform.AFFINE,
                (1, 0, -7, 0, 1, 5),
                Image.Resampling.NEAREST,
            )
        ),
    )
    one, inside = cut_registered(Image.fromarray(subject.pixels), subject.region_boxes, as_it_is, 32)
    other, _ = cut_registered(
        Image.fromarray(view.pixels), subject.region_boxes, lambda points: points + np.array([7, -5]), 32
    )
    for r in (0, 3, 4):
        assert inside[r] > 0.9
        assert np.abs(one[r].astype(int) - other[r]).mean() < 2
    far = np.tile(np.array([[1e4, 1e4, 1e4 + 50, 1e4 + 50]], np.float32), (5, 1))
    cut, inside = cut_registered(Image.fromarray(subject.pixels), far, as_it_is, 32)
    assert (inside == 0).all() and (cut == 128).all()


def test_the_network_does_not_mind_the_order_and_starts_from_the_retrieval_branch():
    torch.manual_seed(0)
    branch = build_retrieval_branch(PSNetConfig.tiny())
    config = PSNetConfig.tiny()
    model = RegionComparison(config.region_width, config.region_side).eval()
    model.start_from(branch)
    assert torch.equal(model.stem[0].weight, branch.stem[0].weight)
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 255, (3, 2, 5, config.region_side, config.region_side, 3), dtype=np.uint8)
    said = log_odds(model, pictures)
    assert said.shape == (3, 5) and np.isfinite(said).all()
    np.testing.assert_allclose(said, log_odds(model, pictures[:, ::-1]), atol=1e-5)


def test_samples_of_the_comparison(garments):
    none = np.zeros((1, 2, 5, 4), np.float32)
    one, again, other = (ComparisonSamples(garments, seed, 32, none).sample(3) for seed in (5, 5, 6))
    assert all(torch.equal(one[k], again[k]) for k in one)
    assert not torch.equal(one["pictures"], other["pictures"])
    batch = comparison_batch(garments, 0, 32, none, 24)
    assert batch["pictures"].shape == (24, 2, 5, 3, 32, 32) and batch["pictures"].dtype == torch.uint8
    assert set(batch["changed"].unique().tolist()) == {-1, 0, 1}
    # Changed regions differ more from picture to picture than those that were left alone.
    apart = (batch["pictures"][:, 0].float() - batch["pictures"][:, 1].float()).abs().mean((2, 3, 4))
    assert apart[batch["changed"] == 1].median() > apart[batch["changed"] == 0].median()
    model = RegionComparison(8, 32).eval()
    assert torch.isfinite(comparison_loss(model, batch)["changed"])
    figures = comparison_figures(model, batch)
    assert 0 <= figures["auc"] <= 1 and 0 <= figures["whole"] <= 1


def test_the_shipped_network_names_the_edited_region(garments):
    """The chest of each garment is edited: its log-odds rise above those of the unedited copy's."""
    verifier = Verifier.load()
    assert verifier is not None
    rises = []
    for seed, garment in enumerate(garments):
        subject = subject_of(garment)
        donor = subject_of(garments[seed - 1])
        edited, _ = edit_parts(subject, ["chest"], np.random.default_rng(seed), donor)
        original = sight_of(View.itself(subject))
        kept = verifier.verify(original, sight_of(photographed(subject, seed)))
        changed = verifier.verify(original, sight_of(photographed(edited, seed)))
        if kept is not None and changed is not None:
            rises.append(changed.changed - kept.changed)
    assert len(rises) >= 3
    rise = np.nanmedian(np.array(rises), axis=0)
    assert rise[3] > 2 and rise[3] > rise[0] + 1


def test_of_two_ways_to_lie_upon_each_other_the_better_one_counts(garments, monkeypatch):
    from psnet import verification

    verifier = Verifier.load()
    subject = subject_of(garments[0])
    one, other = sight_of(View.itself(subject)), sight_of(photographed(subject, 5))
    plain = verifier.verify(one, other)
    assert plain is not None and not plain.mirrored
    # Something of the garment fits its mirror image too, by fewer points or by more.
    found = verification.register(one.keypoints, other.keypoints)
    for points, mirrored in ((found.points - 1, False), (found.points + 1, True)):
        at = np.resize(found.at, (points, 2))
        flipped = replace(found, at=at, onto=np.resize(found.onto, (points, 2)))
        monkeypatch.setattr(
            verification,
            "register",
            lambda a, b, flipped=flipped: found if b is other.keypoints else flipped,
        )
        monkeypatch.setattr(verification, "are_the_garments", lambda *_: True)
        said = verifier.verify(one, other)
        assert (said.mirrored, said.points) == (mirrored, max(points, found.points))


def test_a_flipped_copy_is_found_and_its_sleeves_keep_the_first_ones_names(garments):
    verifier = Verifier.load()
    sleeved = next(g for g in garments if not g.absent.any())
    subject = subject_of(sleeved)
    copy = photographed(subject, 2)
    plain = verifier.verify(sight_of(View.itself(subject)), sight_of(copy))
    flipped = sight_of(View.itself(mirror_subject(subject, SWAP)))
    found = verifier.verify(sight_of(copy), flipped)
    assert found is not None and found.mirrored and plain is not None and not plain.mirrored
    # The matrix holds the flip: a landmark of the copy lands on its partner in the flipped photograph.
    mirrored = mirror_subject(subject, SWAP)
    points = project(found.matrix, copy.landmarks[:, :2])
    seen = (copy.landmarks[:, 2] > 0) & (mirrored.landmarks[:, 2] > 0)
    partners = mirrored.landmarks[SWAP][:, :2]
    off = np.linalg.norm(points - partners, axis=1)[seen]
    assert np.median(off) < 0.03 * max(subject.pixels.shape)


def laid_on(floor, garment, *, plain, aside=0):
    """A garment, as it is or in one plain colour, 400 px wide on a floor, so far from its middle."""
    subject = subject_of(garment)
    shape = Image.fromarray(subject.mask).convert("L")
    scale = 400 / (subject.box[2] - subject.box[0])
    size = [round(side * scale) for side in shape.size]
    middle = (0.5 * scale * (subject.box[:2] + subject.box[2:])).astype(int)
    corner = np.array(floor.size) // 2 + (aside, 0) - middle
    cloth = Image.new("RGB", size, (120, 125, 130)) if plain else Image.fromarray(subject.pixels).resize(size)
    picture = floor.copy()
    picture.paste(cloth, tuple(corner.tolist()), shape.resize(size))
    place = np.tile(corner, 2)
    return Sight.of(
        np.asarray(picture),
        (subject.box * scale + place).astype(np.float32),
        (subject.region_boxes * scale + place).astype(np.float32),
        np.where(np.isnan(subject.region_boxes[:, 0]), Presence.ABSENT, Presence.PRESENT).astype(np.uint8),
        (subject.landmarks[:, :2] * scale + corner).astype(np.float32),
    )


@pytest.mark.parametrize("aside", [0, 90])
def test_what_lies_on_one_floor_is_not_laid_upon_each_other_by_the_floor(garments, aside):
    """Its points do agree, and where both lie in one place the landmarks do too; points on the cloth tell."""
    rng = np.random.default_rng(0)
    floor = Image.fromarray(rng.integers(0, 255, (70, 70, 3), np.uint8)).resize((700, 700), Image.BICUBIC)
    garment = max(garments, key=lambda g: np.ptp(g.landmarks[:, 0]) / np.ptp(g.landmarks[:, 1]))
    one, other = laid_on(floor, garment, plain=True), laid_on(floor, garment, plain=True, aside=aside)
    found = register(one.keypoints, other.keypoints)
    assert found is not None and found.points >= 12
    np.testing.assert_allclose(found.onto, found.at, atol=3)
    around = [find_keypoints(sight.pixels, sight.keypoints.box, around=True) for sight in (one, other)]
    for points, sight in zip(around, (one, other), strict=True):
        box = sight.keypoints.box
        assert not ((points.points > box[:2]) & (points.points < box[2:])).all(1).any()
    assert surroundings_agree(*around, found.warp) > 20
    verifier = Verifier.load()
    assert verifier.verify(one, other) is None and verifier.verify(other, one) is None
    if aside == 0:
        printed = [laid_on(floor, garment, plain=False) for _ in range(2)]
        assert verifier.verify(*printed) is not None


def test_a_region_that_only_one_photograph_shows_is_compared_and_one_that_none_shows_is_not(garments):
    verifier = Verifier.load()
    subject = subject_of(garments[0])
    view = photographed(subject, 4)
    hidden = ALL.copy()
    hidden[0] = Presence.HIDDEN
    one = Sight.of(subject.pixels, subject.box, subject.region_boxes, hidden, subject.landmarks)
    other = Sight.of(view.pixels, view.box, view.region_boxes, hidden, view.landmarks)
    whole = Sight.of(view.pixels, view.box, view.region_boxes, ALL, view.landmarks)
    assert np.isnan(verifier.verify(one, other).changed[0])
    assert np.isfinite(verifier.verify(one, whole).changed[0])
    assert list(MIRROR) == [0, 2, 1, 3, 4]


def test_pairs_that_share_photographs_stand_together():
    """Designs of five photographs each, all pairs of a design, in an order that says nothing."""
    rng = np.random.default_rng(0)
    designs = rng.permutation(200).reshape(-1, 5)
    pairs = np.array([pair for design in designs for pair in combinations(design, 2)])
    pairs = pairs[rng.permutation(len(pairs))]
    order = reading_order(*pairs.T)
    assert sorted(order) == list(range(len(pairs)))
    held: OrderedDict[int, None] = OrderedDict()
    read = 0
    for photograph in pairs[order].ravel().tolist():
        read += photograph not in held
        held[photograph] = None
        held.move_to_end(photograph)
        if len(held) > 8:
            held.popitem(last=False)
    assert read == designs.size
    assert reading_order(*np.zeros((2, 0), int)).tolist() == []
