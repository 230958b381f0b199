import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from psnet.boxes import mirror_boxes
from psnet.data.edits import KINDS, PART_REGIONS, edit_region, random_parts, region_mask, sample_parts
from psnet.data.photographs import label_row, load_pixels, read_labels, with_masks
from psnet.data.plagiarized_fashion import box_row
from psnet.data.rephotograph import CameraRange, Subject, rephotograph
from psnet.model import PSNetConfig
from psnet.regions import MIRROR, REGIONS
from psnet.render.labels import write_labels
from psnet.taxonomy import Taxonomy
from psnet.train.copies import CopySamples, Mixed
from psnet.train.detector import DetectorSamples
from psnet.train.landmarks import (
    NO_GARMENT,
    LandmarkSamples,
    as_photographed,
    edited,
    edited_and_photographed,
    subject_of,
)
from psnet.train.retrieval import RetrievalSamples, edited_regions, mirror_subject


@pytest.fixture(scope="module")
def garments(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rendered")
    return with_masks(read_labels(write_labels(folder, 6, seed=3)), folder / "cache")


def test_labels_survive_the_file(garments):
    assert len(garments) == 6
    for garment in garments:
        height, width = garment.read().shape[:2]
        assert garment.read_mask().shape == (height, width)
        assert garment.absent[[0, 3, 4]].sum() == 0
        assert garment.absent[1:3].all() == ("sleeve" not in garment.category)


def test_a_line_that_is_no_label_is_named(tmp_path):
    path = tmp_path / "labels.jsonl"
    path.write_text(json.dumps({"image": "a.jpg"}) + "\n")
    with pytest.raises(ValueError, match="line 1"):
        read_labels(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"category": "T-shirt"}, "no category 'T-shirt'"),
        ({"regions": {"sleeve_left": [1, 2, 3, 4]}}, "unknown region 'sleeve_left'; known: collar"),
        ({"regions": {"chest": 5}}, "chest 5 is not x0, y0, x1, y1"),
        ({"regions": None}, "regions are boxes by name"),
        ({"landmarks": None}, "not a garment label"),
    ],
)
def test_labels_that_would_teach_something_wrong_are_named(garments, tmp_path, change, said):
    row = label_row(
        image="a.jpg",
        size=(10, 10),
        category=garments[0].category,
        box=garments[0].box,
        landmarks=garments[0].landmarks,
        region_boxes=garments[0].region_boxes,
    )
    path = tmp_path / "labels.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps(row | change) + "\n")
    with pytest.raises(ValueError, match=r"line 2: .*" + re.escape(said)):
        read_labels(path)
    row["landmarks"] = {name: [1, 1, 7] for name in row["landmarks"]}
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=r"line 1: .*a visibility of 0, 1 or 2"):
        read_labels(path)


def test_photographs_stand_upright_and_masks_belong_to_them(garments, tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(np.zeros((120, 160, 3), np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    assert load_pixels(tmp_path / "a.jpg").shape == (160, 120, 3)
    (tmp_path / "b.jpg").write_text("<html>")
    with pytest.raises(ValueError, match=r"b\.jpg: no image that can be read"):
        load_pixels(tmp_path / "b.jpg")
    Image.fromarray(np.zeros((80, 60), np.uint8)).save(tmp_path / "half.png")
    turned = replace(garments[0], image_path=tmp_path / "a.jpg", mask_path=tmp_path / "half.png", polygons=())
    with pytest.raises(ValueError, match=r"half\.png: 60 x 80 px, but its photograph has 120 x 160"):
        turned.read_mask()
    with pytest.raises(ValueError, match=r"gone\.png: no image that can be read"):
        replace(turned, mask_path=tmp_path / "gone.png").read_mask()
    damaged = bytearray((tmp_path / "half.png").read_bytes())
    damaged[11] = 1  # a header of one byte
    (tmp_path / "damaged.png").write_bytes(damaged)
    with pytest.raises(ValueError, match=r"damaged\.png: no image that can be read"):
        replace(turned, mask_path=tmp_path / "damaged.png").read_mask()


@pytest.mark.parametrize(
    "box", [[10, 10, 10, 90], [90, 10, 10, 90], [10, 10, 90], [10, 10, 90, float("nan")]]
)
def test_a_box_that_is_none_is_named(garments, tmp_path, box):
    row = json.loads((garments[0].image_path.parents[1] / "labels.jsonl").read_text().splitlines()[0])
    path = tmp_path / "labels.jsonl"
    path.write_text("\n" + json.dumps(row | {"bbox": box}) + "\n")
    with pytest.raises(ValueError, match=r"line 2: .*x0, y0, x1, y1"):
        read_labels(path)


def test_a_garment_of_no_size_is_photographed_all_the_same(garments):
    """What a network that has learnt nothing takes for a garment, and labels for itself."""
    subject = subject_of(garments[0])
    x0, y0 = subject.box[:2]
    for thin in ([x0, y0, x0 + 0.1, y0], [x0, y0, x0 + 50, y0 + 0.1]):
        view = rephotograph(
            replace(subject, box=np.array(thin, np.float32)),
            np.random.default_rng(0),
            CameraRange(bend=0.02),
            swap=Taxonomy.load("clothing11").swap,
        )
        assert np.isfinite(view.box).all() and (view.box[2:] - view.box[:2]).min() >= 8


def test_an_edit_changes_its_region_and_nothing_outside_it(garments):
    subject, donor = subject_of(garments[0]), subject_of(garments[1])
    for part, kinds in KINDS.items():
        for kind in kinds:
            for region in PART_REGIONS[part]:
                if kind == "shorten" or np.isnan(subject.region_boxes[REGIONS.index(region), 0]):
                    continue
                edited = edit_region(subject, region, kind, np.random.default_rng(1), donor)
                difference = np.abs(edited.pixels.astype(int) - subject.pixels).max(-1)
                outside = region_mask(subject, region) < 0.004
                assert difference[outside].max(initial=0) <= 1, (region, kind)


def test_shortening_takes_the_hem_off(garments):
    subject = subject_of(garments[0])
    shorter = edit_region(subject, "waist", "shorten", np.random.default_rng(0))
    assert shorter.box[3] < subject.box[3]
    assert shorter.region_boxes[4, 3] < subject.region_boxes[4, 3]
    assert edited_regions(subject, shorter, ["waist"]).tolist() == [0, 0, 0, 0, 1]


def test_a_shorter_hem_ends_on_the_cloth(tmp_path):
    """Of a flared dress the old hem's corners would lie beside the new one."""
    dresses = read_labels(write_labels(tmp_path, 30, seed=8))
    dresses = [garment for garment in dresses if garment.category in ("sling_dress", "vest_dress")]
    assert len(dresses) >= 5
    for number, garment in enumerate(dresses):
        shorter = edit_region(subject_of(garment), "waist", "shorten", np.random.default_rng(number))
        ys, xs = np.nonzero(shorter.mask > 127)
        cloth, width = np.stack([xs, ys], 1), garment.box[2] - garment.box[0]
        for corner in shorter.landmarks[[9, 10], :2]:
            assert np.linalg.norm(cloth - corner, axis=1).min() < 0.035 * width, garment.image_path
        row = xs[ys == int(shorter.region_boxes[4, 3]) - 2]
        assert abs(shorter.region_boxes[4, [0, 2]] - [row.min(), row.max()]).max() < 0.2 * width


def test_parts_follow_table_1():
    rng = np.random.default_rng(0)
    drawn = [sample_parts("T-shirts", 1, rng)[0] for _ in range(2000)]
    assert abs(drawn.count("chest") / 2000 - 0.72) < 0.04
    assert all("sleeves" not in sample_parts("dress", 3, rng, sleeveless=True) for _ in range(50))


def test_parts_drawn_evenly_are_different_ones_that_the_garment_has():
    rng = np.random.default_rng(0)
    drawn = [random_parts(False, 2, rng) for _ in range(2000)]
    assert all(len(set(parts)) == 2 for parts in drawn)
    assert all(abs(sum(part in parts for parts in drawn) / 2000 - 0.5) < 0.05 for part in PART_REGIONS)
    assert all("sleeves" not in random_parts(True, 3, rng) for _ in range(50))


def test_mirroring_twice_is_nothing(garments):
    swap = Taxonomy.load("clothing11").swap
    subject = subject_of(garments[0])
    twice = mirror_subject(mirror_subject(subject, swap), swap)
    np.testing.assert_array_equal(twice.pixels, subject.pixels)
    np.testing.assert_allclose(twice.landmarks, subject.landmarks, atol=1e-3)
    np.testing.assert_allclose(twice.region_boxes, subject.region_boxes, atol=1e-3)


def test_labels_follow_the_camera():
    # A bright spot stays under its landmark, whatever the camera does.
    pixels = np.zeros((200, 150, 3), np.uint8)
    Image.Image.paste(image := Image.fromarray(pixels), (255, 255, 255), (70, 90, 81, 101))
    points = np.zeros((11, 3), np.float32)
    points[:] = [75.5, 95.5, 2]
    boxes = np.tile(np.array([60, 80, 91, 111], np.float32), (5, 1))
    subject = Subject(np.asarray(image), None, np.array([10, 10, 140, 190], np.float32), points, boxes)
    camera = CameraRange(side=200, new_background=0, colour=0, light=0, blur=0, occlusion=0, fill=(0.7, 0.9))
    for seed in range(12):
        view = rephotograph(
            subject, np.random.default_rng(seed), camera, swap=Taxonomy.load("clothing11").swap
        )
        ys, xs = np.nonzero(view.pixels.max(-1) > 150)
        middle = np.array([xs.mean() + 0.5, ys.mean() + 0.5])
        assert np.linalg.norm(middle - view.landmarks[0, :2]) < 1.5, seed
        box = view.region_boxes[MIRROR[1]]
        assert box[0] < middle[0] < box[2] and box[1] < middle[1] < box[3]


def test_a_mirrored_photograph_has_left_and_right_renamed():
    """Every landmark and region with a colour of its own is found under its partner's name."""
    swap = Taxonomy.load("clothing11").swap
    pixels = np.zeros((240, 200, 3), np.uint8)
    at = np.array([[20 + 40 * (i % 5), 30 + 80 * (i // 5)] for i in range(11)])
    levels = 40 + 19 * np.arange(11)
    for (x, y), level in zip(at, levels, strict=True):
        pixels[y - 8 : y + 9, x - 8 : x + 9] = level
    points = np.column_stack([at + 0.5, np.full(11, 2)]).astype(np.float32)
    boxes = np.array([[x - 8, y - 8, x + 9, y + 9] for x, y in at[:5]], np.float32)
    subject = Subject(pixels, None, np.array([0, 0, 200, 240], np.float32), points, boxes)
    camera = CameraRange(
        side=240, mirror=1, new_background=0, colour=0, light=0, blur=0, occlusion=0, rotation=2
    )
    camera = replace(camera, fill=(0.8, 0.85), shift=0, wild_rotation=0, perspective=0.01)
    for seed in range(6):
        view = rephotograph(subject, np.random.default_rng(seed), camera, swap=swap)
        assert view.mirrored
        for i, (x, y, _) in enumerate(view.landmarks):
            seen = np.median(view.pixels[int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 2])
            assert abs(int(seen) - levels[swap[i]]) < 9, (seed, i)
        for r, (x, y) in enumerate(0.5 * (view.region_boxes[:, :2] + view.region_boxes[:, 2:])):
            assert abs(int(view.pixels[int(y), int(x), 0]) - levels[MIRROR[r]]) < 9, (seed, r)


@pytest.mark.parametrize("branch", ["crop", "roi"])
def test_samples_depend_on_seed_and_index_alone(garments, branch):
    config = replace(PSNetConfig.tiny(), retrieval=branch)
    one, two, other = (RetrievalSamples(garments, seed, config).sample(17) for seed in (5, 5, 6))
    assert all((one[k] == two[k]).all() for k in one)
    picture = "regions" if branch == "crop" else "crops"
    assert (one[picture] != other[picture]).any()
    assert one["design"].shape == (3, 5) and set(one["design"].unique().tolist()) <= {-1, 0, 1}


def test_boxes_and_points_lie_in_the_crop_they_came_with(garments):
    sample = RetrievalSamples(garments, 5, replace(PSNetConfig.tiny(), retrieval="roi"), box_noise=0.0)
    for index in range(4):
        one = sample.sample(index)
        assert one["crops"].shape == (3, 3, 64, 64)
        assert (one["boxes"] >= 0).all() and (one["boxes"] <= 64).all()
        chest, hems = one["boxes"][:, 3], one["points"][:, 9:11]
        assert (chest[:, 2] - chest[:, 0] > 8).all()
        assert (hems[..., 1] > chest[:, None, 1]).all()  # the hem is below the chest's top


def test_for_a_branch_without_regions_a_plagiarised_copy_is_the_same_design(garments):
    samples = RetrievalSamples(garments, 5, replace(PSNetConfig.tiny(), retrieval="global"))
    seen = set()
    for index in range(12):
        one = samples.sample(index)
        seen.add(int(one["parts"]) > 2)
        assert (one["design"][:2] == 0).all()
        assert (one["design"][2] == int(one["parts"] > 2)).all()
    assert seen == {True, False}


def test_a_quarter_of_the_landmark_samples_show_no_garment(garments, tmp_path):
    empty = tmp_path / "trousers.png"
    Image.new("RGB", (90, 120), (40, 60, 90)).save(empty)
    samples = LandmarkSamples(garments, 3, 64, [empty])
    rows = [samples.sample(i) for i in range(80)]
    without = [row for row in rows if row["category"] == NO_GARMENT]
    assert 0.1 < len(without) / len(rows) < 0.4
    assert all((row["weight"] == 0).all() and (row["visible"] == 0).all() for row in without)
    assert all(row["boxes"].shape == (6, 4) for row in rows)


def test_an_edited_garment_keeps_its_labels_unless_it_was_shortened(garments):
    changed = 0
    for seed in range(12):
        garment = garments[seed % len(garments)]
        subject = edited(garment, garments[(seed + 1) % len(garments)], np.random.default_rng(seed))
        changed += bool(
            (subject.pixels != garment.read()).any() or (subject.mask != garment.read_mask()).any()
        )
        moved = ~np.isclose(subject.landmarks[:, :2], garment.landmarks[:, :2]).all(-1)
        assert not moved[:5].any()  # neckline and armpits: only sleeves and the hem are ever cut
        assert (np.isnan(subject.region_boxes) == np.isnan(garment.region_boxes)).all()
    assert changed >= 10


def test_samples_of_edited_garments_show_the_edits_and_repeat(garments):
    for make in (
        lambda share: LandmarkSamples(garments, 3, 64, edited=share).sample(1)["crop"],
        lambda share: DetectorSamples(garments, (), 3, edited=share).sample(1)["image"],
    ):
        again, as_it_is = make(1.0), make(0.0)
        assert (make(1.0) == again).all()
        assert again.shape != as_it_is.shape or (again != as_it_is).any()


def test_garments_are_judged_as_they_are_and_edited(garments):
    shown = as_photographed(garments)
    assert [category for _, category in shown] == [g.category for g in garments]
    assert all((view.pixels == g.read()).all() for (view, _), g in zip(shown, garments, strict=True))
    once, twice = edited_and_photographed(garments, 5), edited_and_photographed(garments, 5)
    assert all((a.pixels == b.pixels).all() for (a, _), (b, _) in zip(once, twice, strict=True))


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """A benchmark of one design with sleeves, its identical copy and a flipped one with another collar. A dot
    is where the region is: red on the left sleeve, green on the right, blue elsewhere."""
    folder = tmp_path_factory.mktemp("copies")
    boxes = np.array(
        [[40, 5, 60, 20], [70, 20, 95, 60], [5, 20, 30, 60], [35, 25, 65, 60], [35, 65, 65, 95]], np.float32
    )
    colours = [(0, 0, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 255)]
    lines = []
    for item, mirrored in (("q", False), ("same", False), ("copy", True)):
        picture = Image.new("RGB", (100, 100))
        for box, colour in zip(boxes, colours, strict=True):
            picture.paste(colour, tuple(int(v) for v in box))
        shown = boxes
        if mirrored:
            picture, shown = ImageOps.mirror(picture), mirror_boxes(boxes, 100)[list(MIRROR)]
        picture.save(folder / f"{item}.png")
        lines.append(json.dumps(box_row(item, np.array([5, 5, 95, 95]), shown)) + "\n")
    (folder / "boxes.jsonl").write_text("".join(lines))
    items = "item_id,image,category,group\n"
    (folder / "query.csv").write_text(f"{items}q,q.png,long_sleeve_top,tops\n")
    (folder / "gallery.csv").write_text(
        f"{items}same,same.png,long_sleeve_top,tops\ncopy,copy.png,long_sleeve_top,tops\n"
    )
    (folder / "relations.csv").write_text(
        "query,gallery,relation,modified,group,kinds,mirrored\n"
        "q,same,identical,,tops,,0\nq,copy,plagiarised,collar,tops,collar,1\n"
    )
    return folder


def test_copies_are_shown_beside_two_photographs_of_their_original(copies):
    one = CopySamples([copies], 3, 16, 0.0).sample(5)
    assert one["regions"].shape == (3, 5, 3, 16, 16) and int(one["parts"]) == 1
    assert one["design"].tolist() == [[0] * 5, [0] * 5, [1, 0, 0, 0, 0]]
    # Flipped back, each sleeve is on its own side again.
    for view in one["regions"]:
        assert view[1, 0].float().mean() > 150 > view[1, 1].float().mean()
        assert view[2, 1].float().mean() > 150 > view[2, 0].float().mean()


def test_no_batch_of_copies_shows_one_original_twice(copies, tmp_path):
    folder = tmp_path / "copies"
    shutil.copytree(copies, folder)
    for name, text in (
        ("gallery.csv", "other,copy.png,long_sleeve_top,tops\n"),
        ("relations.csv", "q,other,plagiarised,waist,tops,hem,1\n"),
    ):
        with (folder / name).open("a") as file:
            file.write(text)
    boxes = (folder / "boxes.jsonl").read_text().splitlines()
    boxes.append(boxes[-1].replace(json.loads(boxes[-1])["item_id"], "other"))
    (folder / "boxes.jsonl").write_text("\n".join(boxes))
    samples = CopySamples([folder], 3, 16, 0.0)
    assert [len(design.copies) for design in samples.designs] == [2]
    edited = {tuple(samples.sample(i)["design"][2].tolist()) for i in range(20)}
    assert edited == {(1, 0, 0, 0, 0), (0, 0, 0, 0, 1)}


def test_copies_without_boxes_cannot_be_cut_out(copies, tmp_path):
    shutil.copytree(copies, tmp_path / "copies")
    (tmp_path / "copies" / "boxes.jsonl").unlink()
    with pytest.raises(ValueError, match="no boxes of"):
        CopySamples([tmp_path / "copies"], 3, 16, 0.0)


def test_a_mixture_takes_its_share_from_the_second_source():
    class Numbers:
        def __init__(self, number):
            self.number = number

        def sample(self, index):
            return {"number": self.number, "index": index}

    drawn = [Mixed(Numbers(0), Numbers(1), 0.3, 2).sample(i) for i in range(2000)]
    assert all(row["index"] == i for i, row in enumerate(drawn))
    assert abs(np.mean([row["number"] for row in drawn]) - 0.3) < 0.04
