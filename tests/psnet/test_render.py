"""Rendered garments: exact labels, local edits, determinism."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from psnet.regions import NUM_REGIONS, REGIONS, Presence
from psnet.render.catalogue import write_demo_catalogue
from psnet.render.copies import KINDS, copy_design, sample_parts
from psnet.render.deepfashion2 import annotation, mask_polygons, render_pair_item, write_deepfashion2
from psnet.render.design import PATTERNS, Look, design_distance, sample_design
from psnet.render.draw import Pose, draw, sample_pose
from psnet.render.photo import mirror_drawing, photograph, photograph_design
from psnet.render.sheet import contact_sheet
from psnet.taxonomy import TORSO_CATEGORIES, Taxonomy

PART_REGIONS = {"sleeves": (1, 2), "collar": (0,), "chest": (3,), "waist": (4,)}


def grown(mask: np.ndarray, px: int) -> np.ndarray:
    return (
        np.asarray(Image.fromarray((mask * 255).astype(np.uint8)).filter(ImageFilter.MaxFilter(2 * px + 1)))
        > 127
    )


def designs(count: int, seed: int = 7):
    for k in range(count):
        yield sample_design(np.random.default_rng((seed, k)), TORSO_CATEGORIES[k % 10])


@pytest.mark.parametrize("category", TORSO_CATEGORIES)
def test_landmarks_lie_on_the_garment(category):
    names = Taxonomy.load("deepfashion2").category(category)
    for k in range(3):
        rng = np.random.default_rng((1, k))
        design = sample_design(rng, category)
        drawing = draw(design, sample_pose(rng, design), side=320)
        assert drawing.landmarks.shape == (len(names.indices), 3)
        points = drawing.landmarks[:, :2]
        x0, y0, x1, y1 = drawing.box
        assert (points >= [x0 - 3, y0 - 3]).all() and (points <= [x1 + 3, y1 + 3]).all()
        cloth = grown(drawing.parts > 0, 5)
        at = np.clip(points.astype(int), 0, [cloth.shape[1] - 1, cloth.shape[0] - 1])
        assert cloth[at[:, 1], at[:, 0]].all()
        # Left landmarks lie left of their partners: numbering and geometry agree.
        straight = draw(design, Pose(), side=320).landmarks[:, 0]
        moved = names.swap > np.arange(len(names.swap))
        moved[list(names.parts.get("opening", ()))] = False  # numbered from the right edge
        assert (straight[moved] <= straight[names.swap[moved]] + 1e-3).all()


@pytest.mark.parametrize("category", TORSO_CATEGORIES)
def test_region_boxes_cover_the_parts(category):
    design = sample_design(np.random.default_rng(3), category)
    drawing = draw(design, side=320)
    present = drawing.presence == Presence.PRESENT
    assert present.tolist() == [True, design.sleeves is not None, design.sleeves is not None, True, True]
    assert np.isnan(drawing.region_boxes[~present]).all()
    y, x = np.mgrid[0 : drawing.parts.shape[0], 0 : drawing.parts.shape[1]] + 0.5
    union = np.zeros(drawing.parts.shape, bool)
    for region in np.flatnonzero(present):
        x0, y0, x1, y1 = drawing.region_boxes[region]
        box = (x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)
        union |= box
        part = drawing.parts == region + 1
        # Chest boxes begin at the neckline's bottom, as in the hand-made labels; the shoulders lie above.
        assert box[part].mean() > (0.5 if region == 3 else 0.75), REGIONS[region]
    assert union[drawing.parts > 0].mean() > 0.8


def test_a_mirrored_drawing_mirrored_again_is_the_drawing():
    for design in designs(10):
        drawing = draw(design, sample_pose(np.random.default_rng(0), design), side=160)
        once = mirror_drawing(drawing)
        np.testing.assert_array_equal(once.pixels, drawing.pixels[:, ::-1])
        twice = mirror_drawing(once)
        for name in ("pixels", "parts", "presence"):
            np.testing.assert_array_equal(getattr(twice, name), getattr(drawing, name))
        for name in ("landmarks", "box", "region_boxes"):
            np.testing.assert_allclose(getattr(twice, name), getattr(drawing, name), atol=1e-3)


def test_a_mirrored_drawing_has_left_and_right_renamed():
    for design in designs(10):
        once = mirror_drawing(draw(design, Pose(), side=320))
        names = Taxonomy.load("deepfashion2").category(design.category)
        moved = names.swap > np.arange(len(names.swap))
        moved[list(names.parts.get("opening", ()))] = False  # numbered from the right edge
        x = once.landmarks[:, 0]
        assert (x[moved] <= x[names.swap[moved]] + 1e-3).all()
        left, right = (np.nonzero(once.parts == part)[1] for part in (2, 3))
        if len(left):
            assert left.mean() < right.mean()
            assert once.region_boxes[1, 0] < once.region_boxes[2, 0]


def test_the_front_of_a_neckline_lies_below_its_back():
    for k in range(120):
        design = sample_design(np.random.default_rng((9, k)), "vest_dress")
        drawing = draw(design, Pose(), side=200)
        back, front = drawing.landmarks[0, 1], drawing.landmarks[3, 1]
        assert back < front, k
        assert drawing.region_boxes[0, 3] - drawing.region_boxes[0, 1] > 3, k


def test_every_kind_of_edit_changes_its_part_and_nothing_else():
    done = set()
    for k, design in enumerate(designs(500)):
        for part in design.parts:
            copy, parts, kinds = copy_design(design, np.random.default_rng((k, 1)), parts=[part])
            assert parts == (part,) and kinds[0] in KINDS[part]
            if (part, kinds[0]) in done:
                continue
            done.add((part, kinds[0]))
            pair = [draw(design, side=256), draw(copy, side=256)]
            # Both in the frame of the larger one, so that pixels can be compared.
            frame = max((p.frame for p in pair), key=lambda f: f.width * f.height / f.scale**2)
            before, after = (draw(d, frame=frame) for d in (design, copy))
            changed = np.abs(before.pixels.astype(int) - after.pixels.astype(int)).max(-1) > 24
            own = np.zeros(changed.shape, bool)
            for region in PART_REGIONS[part]:
                own |= (before.parts == region + 1) | (after.parts == region + 1)
            assert changed[own].mean() > (0.008 if kinds[0] in ("text", "logo") else 0.03), (part, kinds)
            # The shade at the outline reaches a few pixels into the neighbours, and a shoulder cut elsewhere
            # by another neckline is rastered anew: a few pixels along its edge.
            assert (changed & ~grown(own, 6)).sum() <= 0.001 * changed.size, (part, kinds, design.category)
    assert done == {(part, kind) for part, kinds in KINDS.items() for kind in kinds}


def test_copies_by_relation():
    rng = np.random.default_rng(0)
    design = sample_design(rng, "long_sleeve_top")
    assert copy_design(design, rng, "identical") == (design, (), ())
    counts = {len(copy_design(design, rng, "plagiarised")[1]) for _ in range(30)}
    assert counts == {1, 2}
    assert all(len(copy_design(design, rng, "derived")[1]) >= 3 for _ in range(10))
    dress = sample_design(rng, "vest_dress")
    first = [sample_parts(rng, dress, "plagiarised") for _ in range(300)]
    waist = np.mean(["waist" in parts for parts in first])
    assert waist > 0.5 and not any("sleeves" in parts for parts in first)  # Table 1: waist 56 % on dresses
    with pytest.raises(ValueError, match="vest_dress"):
        copy_design(dress, rng, parts=["sleeves"])
    with pytest.raises(ValueError, match="plagiarised"):
        copy_design(design, rng, parts=["sleeves", "collar", "chest"])
    with pytest.raises(ValueError, match="relation"):
        copy_design(design, rng, "stolen")


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_pattern_paints(pattern):
    design = next(designs(1))
    look = Look(pattern, ((0.8, 0.2, 0.2), (0.1, 0.2, 0.6), (0.9, 0.9, 0.3)), 0.15, 0.0, 5)
    drawing = draw(replace(design, chest=replace(design.chest, look=look)), side=160)
    chest = drawing.pixels[drawing.parts == 4][:, :3]
    assert pattern == "solid" or chest.std(0).max() > 2


@pytest.mark.parametrize("category", TORSO_CATEGORIES)
def test_photographs_repeat_by_seed_and_carry_their_labels(category):
    design = sample_design(np.random.default_rng(11), category)
    one = photograph_design(design, np.random.default_rng(5), size=(150, 200))
    two = photograph_design(design, np.random.default_rng(5), size=(150, 200))
    other = photograph_design(design, np.random.default_rng(6), size=(150, 200))
    np.testing.assert_array_equal(one.pixels, two.pixels)
    np.testing.assert_array_equal(one.landmarks, two.landmarks)
    assert (one.pixels != other.pixels).any()
    assert one.pixels.shape == (200, 150, 3) and one.pixels.dtype == np.uint8 and one.mask.shape == (200, 150)
    assert one.region_boxes.shape == (NUM_REGIONS, 4)
    assert np.isnan(one.region_boxes[one.presence == Presence.ABSENT]).all()
    assert not np.isnan(one.region_boxes[one.presence == Presence.PRESENT]).any()


def test_landmarks_follow_the_drape():
    """Contour landmarks of unobstructed photographs stay on the mask's edge."""
    distances = []
    for k, design in enumerate(designs(10, seed=21)):
        photo = photograph(draw(design, side=320), np.random.default_rng(k), size=(300, 400))
        edge = grown(photo.mask > 127, 1) & grown(photo.mask <= 127, 1)
        ys, xs = np.nonzero(edge)
        names = Taxonomy.load("deepfashion2").category(design.category)
        for part in ("left_side", "right_side", "left_armpit", "right_armpit"):
            for i in names.parts.get(part, ()):
                x, y, visible = photo.landmarks[i]
                if visible == 2 and 4 < x < 296 and 4 < y < 396:
                    distances.append(np.hypot(xs - x, ys - y).min())
    assert len(distances) > 20
    assert np.median(distances) < 2


def test_demo_catalogue(tmp_path):
    path = write_demo_catalogue(tmp_path / "a", garments=30, seed=4, size=(90, 120))
    rows = list(csv.DictReader(path.open(encoding="utf-8")))
    truth = list(csv.DictReader((path.parent / "truth.csv").open(encoding="utf-8")))
    by_id = {row["item_id"]: row for row in rows}
    assert len(by_id) == 30
    assert all((path.parent / row["image"]).is_file() for row in rows)
    assert list(truth[0]) == ["original", "copy", "relation", "group", "modified", "kinds", "mirrored"]
    for row in truth:
        original, copy = by_id[row["original"]], by_id[row["copy"]]
        assert original["seller_id"] != copy["seller_id"] and original["listed_at"] < copy["listed_at"]
        parts = [p for p in row["modified"].split("|") if p]
        assert len(parts) in {"identical": (0,), "plagiarised": (1, 2), "derived": (3, 4)}[row["relation"]]
    # The first block is the same however many garments follow.
    smaller = write_demo_catalogue(tmp_path / "b", garments=15, seed=4, size=(90, 120))
    for row in csv.DictReader(smaller.open(encoding="utf-8")):
        assert by_id[row["item_id"]] == row
        assert (smaller.parent / row["image"]).read_bytes() == (path.parent / row["image"]).read_bytes()
    with pytest.raises(ValueError, match="15"):
        write_demo_catalogue(tmp_path / "c", garments=3)


def test_design_distance():
    some = list(designs(20))
    assert all(design_distance(d, d) == 0 for d in some)
    copy, _, _ = copy_design(some[0], np.random.default_rng(0), parts=["chest"])
    assert 0 < design_distance(some[0], copy) < 2


def test_deepfashion2_layout(tmp_path):
    write_deepfashion2(tmp_path, 4, seed=1, size=(150, 200))
    assert sorted(p.name for p in (tmp_path / "image").iterdir()) == [f"{k:06d}.jpg" for k in range(1, 5)]
    data = [json.loads((tmp_path / "annos" / f"{k:06d}.json").read_text()) for k in range(1, 5)]
    assert [d["pair_id"] for d in data] == [1, 1, 2, 2]
    assert [d["source"] for d in data] == ["shop", "user"] * 2
    item = data[0]["item1"]
    assert item["category_name"] == "short sleeve top" and item["category_id"] == 1
    assert len(item["landmarks"]) == 3 * 25 and set(item["landmarks"][2::3]) <= {0, 1, 2}
    assert all(len(p) >= 6 and len(p) % 2 == 0 for p in item["segmentation"])


def test_polygons_cover_the_mask():
    item, _ = render_pair_item(0, 2, size=(150, 200))
    canvas = Image.new("1", (150, 200))
    for polygon in mask_polygons(item.mask):
        ImageDraw.Draw(canvas).polygon(polygon, fill=1)
    filled, mask = np.asarray(canvas), item.mask > 127
    assert (filled & mask).sum() / (filled | mask).sum() > 0.9
    assert annotation(item)["category_name"] == item.category.replace("_", " ")


def test_contact_sheet():
    photos = [photograph_design(d, np.random.default_rng(0), size=(90, 120)) for d in designs(3)]
    sheet = contact_sheet(photos, columns=2, tile=(90, 120), captions=["a", "b", "c"])
    assert sheet.size == (180, 240)
