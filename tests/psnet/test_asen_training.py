"""Training and measuring ASEN from the command line, on a small data set of coloured squares."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from psnet.asen import AsenConfig
from psnet.asen_weights import load_asen, read_asen
from psnet.data.attributes import AttributeMeta, read_training, write_meta
from psnet.evaluation.__main__ import main as evaluation_main
from psnet.evaluation.tables import read_tables
from psnet.train.__main__ import main as train_main
from psnet.train.asen import batch_triplets, drawn_triplets
from psnet.train.asen_data import BalancedTriplets, ListedTriplets, TripletSamples
from tests.psnet.test_attributes import write_zappos

COLOURS = ((220, 40, 40), (40, 200, 60), (50, 60, 220))
META = AttributeMeta(
    "Squares",
    ("upper", "lower"),
    (("red", "green", "blue"),) * 2,
    {"upper": ("collar",), "lower": ("waist",)},
)
SMALL = [
    "trunk=resnet10t",
    "channels=16",
    "hidden=8",
    "side=64",
    "start=random",
    "fit=stretch",
    "loop.workers=0",
]
LOOP = "loop={steps: 30, batch: 18, learning_rate: 5e-3, warmup: 2, average: 0.5, checkpoint_every: 10}"


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Squares whose upper and lower half have a colour each: two attributes that do not hang together."""
    root = tmp_path_factory.mktemp("squares")
    rng = np.random.default_rng(0)
    for split, count in (("train", 45), ("valid", 27), ("test", 36)):
        folder = root / "Squares" / split
        folder.mkdir(parents=True)
        labels = np.array([(i % 3, i // 3 % 3) for i in range(count)])
        for i, (upper, lower) in enumerate(labels):
            pixels = np.zeros((48, 40, 3), np.uint8)
            pixels[:24], pixels[24:] = COLOURS[upper], COLOURS[lower]
            noisy = np.clip(pixels + rng.normal(0, 12, pixels.shape), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder / f"{i}.png")
        names = "".join(f"{split}/{i}.png\n" for i in range(count))
        (root / "Squares" / f"filenames_{split}.txt").write_text(names)
        boxes = json.dumps({"collar": [0, 0, 40, 24], "waist": [0, 24, 40, 48]})
        (root / "Squares" / f"regions_{split}.jsonl").write_text(f"{boxes}\n" * count)
        if split == "train":
            lines = "".join(f"{i} 0 {u} 1 {v}\n" for i, (u, v) in enumerate(labels))
            (root / "Squares" / "label_train.txt").write_text(lines)
        else:
            rows = [f"{i} {a} {labels[i, a]}\n" for i in range(count) for a in (0, 1)]
            (root / "Squares" / f"query_{split}.txt").write_text("".join(rows[:18]))
            (root / "Squares" / f"candidate_{split}.txt").write_text("".join(rows[18:]))
    write_meta(root, META)
    return root


def samples(squares: Path, augment: float = 0.0) -> TripletSamples:
    images = read_training(squares, "Squares")
    config = AsenConfig(side=32, fit="stretch", attributes=META.names)
    return TripletSamples(images, BalancedTriplets(images, 3), config, 3, augment)


def test_triplets_share_a_value_and_differ_and_are_balanced(squares: Path) -> None:
    images = read_training(squares, "Squares")
    labels = images.labels.copy()
    labels[5:, 0] = 1  # one value of an attribute is rare, and one is nearly gone
    labels[:5, 0] = [0, 0, 0, 0, 2]
    drawn = BalancedTriplets(images.__class__(images.meta, images.paths, labels, None), 1)
    met = []
    for number in range(400):
        attribute, anchor, positive, negative = drawn.triplet(number)
        assert anchor != positive
        assert labels[anchor, attribute] == labels[positive, attribute] != labels[negative, attribute]
        met.append((attribute, labels[anchor, attribute]))
    assert drawn.triplet(7) == BalancedTriplets(
        images.__class__(images.meta, images.paths, labels, None), 1
    ).triplet(7)
    count = {key: met.count(key) for key in set(met)}
    assert set(count) == {(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)}  # a single image is no anchor
    assert 60 < count[0, 0] < 140 and 60 < count[0, 1] < 140


def test_listed_triplets_come_from_the_list() -> None:
    listed = np.array([[0, 1, 2, 3]] * 50 + [[2, 4, 5, 6]])
    drawn = [ListedTriplets(listed, 0).triplet(i) for i in range(60)]
    assert set(drawn) == {(0, 1, 2, 3), (2, 4, 5, 6)}
    assert drawn.count((2, 4, 5, 6)) > 15  # attributes are equally frequent, not lines


def test_samples_are_deterministic_and_their_regions_move_with_them(squares: Path) -> None:
    one, again = samples(squares, 0.2).sample(10), samples(squares, 0.2).sample(10)
    for key in one:
        assert torch.equal(one[key].nan_to_num(), again[key].nan_to_num())
    assert one["image"].shape == (3, 32, 32) and one["image"].dtype == torch.uint8
    plain = samples(squares)
    for index in range(6):
        sample = plain.sample(index)
        np.testing.assert_allclose(sample["regions"][0], [0, 0, 1, 0.5], atol=1e-6)
        assert torch.isnan(sample["regions"][1:4]).all()
        upper = sample["image"][:, :16].float().mean((1, 2))
        assert int(upper.argmax()) == sample["labels"][0]


def test_losses_against_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.nn.functional.normalize(torch.randn(9, 2, 5, generator=generator), dim=-1)
    attribute = torch.tensor([0, 0, 0, 1, 1, 1, 0, 0, 0])
    total = 0.0
    for t in range(3):
        a, p, n = (embeddings[3 * t + k, attribute[3 * t]] for k in range(3))
        total += max(0.0, 0.2 + float(a @ n) - float(a @ p)) / 3
    assert float(drawn_triplets(embeddings, attribute, 0.2)) == pytest.approx(total, abs=1e-6)

    labels = torch.tensor([[0, -1], [0, 1], [1, 1], [1, 0], [2, 0], [-1, 0], [0, -1], [1, 1], [0, -1]])
    of_attribute = []
    for a in range(2):
        of_value: dict[int, list[float]] = {}
        for i in range(9):
            positives = [j for j in range(9) if j != i and labels[j, a] == labels[i, a] != -1]
            negatives = [j for j in range(9) if labels[j, a] not in (-1, int(labels[i, a]))]
            if labels[i, a] == -1 or not positives or not negatives:
                continue
            e = embeddings[:, a]
            over = [0.2 + float(e[i] @ e[n]) - float(e[i] @ e[p]) for p in positives for n in negatives]
            over = [v for v in over if v > 0]
            of_value.setdefault(int(labels[i, a]), []).append(sum(over) / max(len(over), 1))
        of_attribute.append(np.mean([np.mean(v) for v in of_value.values()]))
    expected = float(np.mean(of_attribute))
    assert float(batch_triplets(embeddings, labels, 0.2)) == pytest.approx(expected, abs=1e-5)
    assert float(batch_triplets(embeddings, torch.full((9, 2), -1), 0.2)) == 0


def options(*values: str) -> list[str]:
    return [part for value in values for part in ("--set", value)]


METHODS = "methods={asen: {guidance: 0.3, title: ASEN}, shared: {method: shared, title: one}}"


@pytest.fixture(scope="module")
def trained(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options of a finished training."""
    out = tmp_path_factory.mktemp("asen")
    chosen = options(f"root={squares}", "dataset=Squares", f"out={out}", METHODS, LOOP, *SMALL)
    assert train_main(["asen", *chosen]) == 0
    return chosen


def test_training_tells_attributes_apart_and_one_embedding_cannot(
    trained: list[str], squares: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluation_main(["asen", *trained]) == 0
    assert "Mean average precision" in capsys.readouterr().out
    out = Path(next(v for v in trained if v.startswith("out=")).removeprefix("out="))
    tables, _ = read_tables(out / "asen.json")
    found = {row[0]: row[1] for row in tables[0].rows}
    assert found["ASEN"].value > 0.9  # type: ignore[union-attr]
    assert found["ASEN"].value > found["one"].value + 0.1  # type: ignore[operator, union-attr]
    better = tables[1].rows[0][1]
    assert better.low > 0  # type: ignore[union-attr]
    assert set(read_asen(out / "asen")["thresholds"]) == set(META.names)
    rows = [json.loads(line) for line in (out / "asen" / "log.jsonl").read_text().splitlines()]
    inside = [row["guidance"] for row in rows if "guidance" in row]
    assert inside[-1] < inside[0]  # the attention moves into the regions


def test_a_stopped_training_goes_on_to_the_same_weights(trained: list[str], tmp_path: Path) -> None:
    out = next(v for v in trained if v.startswith("out="))
    # A course that does not depend on the training's length.
    more = options("methods={asen: {guidance: 0.3}}", "loop.decay_every=1000", "loop.checkpoint_every=4")
    for folder, lengths in (("once", (8,)), ("twice", (4, 8))):
        call = [v.replace(out, f"out={tmp_path / folder}") for v in trained]
        for steps in lengths:
            assert train_main(["asen", *call, *more, *options(f"loop.steps={steps}")]) == 0
            if steps == 4:
                half = load_asen(tmp_path / folder / "asen").state_dict()
    once, twice = (load_asen(tmp_path / folder / "asen").state_dict() for folder in ("once", "twice"))
    for name, value in once.items():
        torch.testing.assert_close(value, twice[name])
    assert any(not torch.equal(half[name], value) for name, value in once.items())


def test_pictures_and_attention_of_labelled_photographs(
    trained: list[str], squares: Path, tmp_path: Path
) -> None:
    photograph = tmp_path / "images" / "0.png"
    photograph.parent.mkdir()
    Image.open(squares / "Squares/test/1.png").resize((80, 96)).save(photograph)
    row = {
        "image": "images/0.png",
        "split": "test",
        "category": "short_sleeve_top",
        "bbox": [0, 0, 80, 96],
        "landmarks": {
            f"{side}{point}": [1, 1, 2]
            for side in ("left_", "right_")
            for point in ("collar", "armpit", "sleeve", "waistline", "hem")
        }
        | {"collar_bottom": [1, 1, 2]},
        "regions": {"collar": [0, 0, 80, 48], "waist": [0, 48, 80, 96]},
    }
    (tmp_path / "labels.jsonl").write_text(json.dumps(row) + "\n")
    shown = options(f"labels={tmp_path / 'labels.jsonl'}", f"pictures={tmp_path / 'pictures'}")
    assert evaluation_main(["asen", *trained, *shown]) == 0
    out = Path(next(v for v in trained if v.startswith("out=")).removeprefix("out="))
    tables, _ = read_tables(out / "asen.json")
    attention = next(table for table in tables if table.title == "Attention on photographs")
    assert [row[1] for row in attention.rows] == ["upper", "lower"]  # one embedding has no attention
    for row in attention.rows:
        assert row[4] == pytest.approx(0.5, abs=0.01)
        assert row[3].value > 0.6  # type: ignore[union-attr]
    for name in ("asen_attention.jpg", "asen_retrieval.jpg"):
        with Image.open(tmp_path / "pictures" / name) as picture:
            assert np.asarray(picture).std() > 10


def test_zappos_is_trained_on_and_scored_by_triplets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_zappos(tmp_path)
    chosen = options(f"root={tmp_path}", "dataset=Zappos50k", f"out={tmp_path / 'out'}", LOOP, *SMALL)
    assert train_main(["asen", *chosen]) == 2
    assert "set triplets=drawn" in capsys.readouterr().err
    chosen += options("triplets=drawn", "loop.steps=2")
    assert train_main(["asen", *chosen]) == 0
    assert evaluation_main(["asen", *chosen]) == 0
    assert "5 triplets" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("main=other", "main: no method 'other'; known: asen"),
        ("methods={asen: {methd: v1}}", "methods.asen: "),
        ("dataset=DARN", "no data set 'DARN'"),
        ("start=imagenet", "start: imagenet is for resnet18"),
        ("start=landmarks", "start: landmarks is for the trunk hrnet_w18_small, not resnet10t"),
        ("trunk=nope", "backbone 'nope': Unknown model"),
        ("device=gpu", "device 'gpu': choose auto, cpu, cuda"),
        ("precision=bf16", "precision: "),
        ("loop.batch=50", "loop.batch: counts images, 3 a triplet: a multiple of 3, not 50"),
    ],
)
def test_mistakes_are_one_line(
    squares: Path, tmp_path: Path, change: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = options(
        f"root={squares}", "dataset=Squares", f"out={tmp_path}", LOOP, *SMALL, "triplets=drawn", change
    )
    assert train_main(["asen", *chosen]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_a_picture_that_cannot_be_read_is_named_by_the_loaders_processes_too(
    squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    shutil.copytree(squares, root)
    for number in range(45):
        (root / "Squares" / "train" / f"{number}.png").write_text("<html>gone</html>")
    chosen = options(
        f"root={root}", "dataset=Squares", f"out={tmp_path / 'out'}", LOOP, *SMALL, "loop.workers=1"
    )
    assert train_main(["asen", *chosen]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"psnet train: {root}/Squares/train/") and "no image that can be read" in error
    assert error.count("\n") == 1


def test_one_folder_holds_one_training(
    trained: list[str], squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(next(v for v in trained if v.startswith("out=")).removeprefix("out="))
    for change, said in (
        ("margin=0.5", "was trained with margin 0.2, not 0.5"),
        ("seed=3", "was trained with seed 0, not 3"),
        ("hidden=4", "was trained with config "),
    ):
        assert train_main(["asen", *trained, *options(change)]) == 2
        error = capsys.readouterr().err
        assert f"{out / 'asen'}: {said}" in error and error.count("\n") == 1
    # Fewer steps than were taken: what is told is what was taken.
    assert train_main(["asen", *trained, *options("loop.steps=20")]) == 0
    assert read_asen(out / "asen")["provenance"]["steps"] == 30
    # A data set of other attributes is not measured with these weights.
    shutil.copytree(squares / "Squares", tmp_path / "Others")
    write_meta(tmp_path, dataclasses.replace(META, dataset="Others", names=("first", "second"), regions={}))
    assert evaluation_main(["asen", *trained, *options(f"root={tmp_path}", "dataset=Others")]) == 2
    assert "was trained on upper, lower; Others has first, second" in capsys.readouterr().err


def test_methods_that_were_not_trained_alike_are_not_compared(
    trained: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert evaluation_main(["asen", *trained, *options(f"out={tmp_path}")]) == 2
    assert "no ASEN weights there" in capsys.readouterr().err
    out = Path(next(v for v in trained if v.startswith("out=")).removeprefix("out="))
    path = out / "shared" / "asen.json"
    text = path.read_text()
    try:
        path.write_text(text.replace('"steps": 30', '"steps": 31'))
        assert evaluation_main(["asen", *trained]) == 2
        assert "not trained equally long" in capsys.readouterr().err
    finally:
        path.write_text(text)
