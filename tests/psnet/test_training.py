import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from psnet.model import PSNetConfig, heatmap_codec
from psnet.predictor import Predictor
from psnet.render.labels import write_labels
from psnet.render.plagiarized import write_plagiarized_fashion
from psnet.taxonomy import TORSO_CATEGORIES
from psnet.train.__main__ import main
from psnet.train.loop import LoopSettings, fit
from psnet.train.pseudo import category_evidence, settled_category
from psnet.train.retrieval import EDITED_FALL, region_contrast, region_triplet, retrieval_loss


class Line:
    """Noisy points of y = 3 x - 1; sample i depends on i alone."""

    def sample(self, index):
        rng = np.random.default_rng(index)
        x = rng.standard_normal(1).astype(np.float32)
        return {
            "x": torch.from_numpy(x),
            "y": torch.from_numpy(3 * x - 1 + 0.01 * rng.standard_normal(1).astype(np.float32)),
        }


def line_loss(model, batch):
    # Draws, as the detector does, which learns from some of its proposals.
    return {"error": (model(batch["x"]) - batch["y"] + 0.01 * torch.randn(())).square().mean()}


SETTINGS = LoopSettings(
    steps=150,
    batch=8,
    learning_rate=0.2,
    weight_decay=0.0,
    warmup=5,
    average=0.9,
    workers=0,
    device="cpu",
    checkpoint_every=20,
)


def line_model():
    torch.manual_seed(0)
    return nn.Linear(1, 1)


def test_a_run_that_was_killed_ends_as_if_it_had_not_been(tmp_path):
    whole = fit(line_model(), Line(), line_loss, tmp_path / "whole", SETTINGS)

    class Killed(Exception):
        pass

    def dies(model, batch):
        dies.calls += 1
        if dies.calls == 33:
            raise Killed
        return line_loss(model, batch)

    dies.calls = 0
    with pytest.raises(Killed):
        fit(line_model(), Line(), dies, tmp_path / "killed", SETTINGS)
    resumed = fit(line_model(), Line(), line_loss, tmp_path / "killed", SETTINGS)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    assert abs(whole.weight.item() - 3) < 0.1 and abs(whole.bias.item() + 1) < 0.1


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_of_fewer_steps_than_were_trained_has_nothing_to_do(tmp_path, workers):
    whole = fit(line_model(), Line(), line_loss, tmp_path, SETTINGS)
    fewer = dataclasses.replace(SETTINGS, steps=20, workers=workers)
    again = fit(line_model(), Line(), line_loss, tmp_path, fewer)
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    other = dataclasses.replace(SETTINGS, learning_rate=0.1)
    with pytest.raises(ValueError, match=r"was trained with learning_rate 0.2, not 0.1; name another out"):
        fit(line_model(), Line(), line_loss, tmp_path, other)


def plain_contrast(features, design, temperature):
    """The loss of one region, written as the paper of Khosla et al. has it."""
    items = [
        (i, int(design[i, v]), features[i, v])
        for i in range(len(design))
        for v in range(design.shape[1])
        if design[i, v] >= 0
    ]
    total, count = 0.0, 0
    for a, (i, k, f) in enumerate(items):
        others = [(j, m, g) for b, (j, m, g) in enumerate(items) if b != a]
        below = torch.logsumexp(torch.stack([f @ g / temperature for _, _, g in others]), 0)
        positive = [f @ g / temperature - below for j, m, g in others if (j, m) == (i, k)]
        if positive:
            total += -float(torch.stack(positive).mean())
            count += 1
    return total / count


def test_contrast_equals_the_plain_loop():
    generator = torch.Generator().manual_seed(0)
    features = nn.functional.normalize(torch.randn(4, 3, 5, 8, generator=generator), dim=-1)
    design = torch.tensor([[0, 0, 1], [0, 0, 0], [0, -1, 1], [0, 0, -1]]).unsqueeze(-1).expand(4, 3, 5)
    expected = np.mean([plain_contrast(features[:, :, r], design[:, :, r], 0.2) for r in range(5)])
    assert float(region_contrast(features, design, 0.2)) == pytest.approx(expected, rel=1e-4)


def test_triplet_is_zero_when_every_design_is_far_from_the_others():
    features = torch.eye(6).reshape(6, 1, 1, 6).expand(6, 3, 5, 6)
    design = torch.zeros(6, 3, 5, dtype=torch.long)
    assert float(region_triplet(features, design, 0.5)) == 0
    design[:, 2] = (
        1  # the edited view looks exactly like the original: the hardest negative sits on the anchor
    )
    assert float(region_triplet(features, design, 0.5)) == pytest.approx(5 * 0.5, abs=0.05)


def small_settings(folder, labels, **more):
    """A train.yaml in ``folder`` for the tiny network; its path."""
    settings = {
        "labels": [str(labels)],
        "masks": str(folder / "masks"),
        "out": str(folder / "out"),
        "holdout": 4,
        "workers": 0,
        "device": "cpu",
        "model": dataclasses.asdict(PSNetConfig.tiny()),
        **more,
    }
    path = folder / "train.yaml"
    path.write_text(json.dumps(settings))
    return str(path)


@pytest.mark.parametrize("kind", ["contrast", "triplet"])
@pytest.mark.parametrize("fallen", [0.1, 0.9])
def test_an_edit_has_to_lower_its_regions_cosine(kind, fallen):
    """Features stand in for pictures. The second sample's edited region is hidden: nothing can be said."""
    features = torch.zeros(2, 3, 5, 4, 1, 1)
    features[..., 0, 0, 0] = 1
    features[0, 2, 3, :2, 0, 0] = torch.tensor([1 - fallen, (1 - (1 - fallen) ** 2) ** 0.5])
    design = torch.zeros(2, 3, 5, dtype=torch.long)
    design[:, 2, 3] = 1
    design[1, 0, 3] = -1
    batch = {"regions": features * 255, "design": design}
    loss = retrieval_loss(0.07, heatmap_codec(PSNetConfig()), kind, fall=3.0)
    parts = loss(lambda pictures: pictures[..., 0, 0], batch)
    assert kind in parts
    assert float(parts["fall"]) == pytest.approx(3 * max(EDITED_FALL - fallen, 0), abs=1e-6)


def test_the_training_command_makes_a_weights_folder(tmp_path, capsys):
    labels = write_labels(tmp_path / "rendered", 12, seed=1)
    shutil.copytree(tmp_path / "rendered" / "images", tmp_path / "unlabelled")
    unlabelled = tmp_path / "catalogue.csv"
    names = [
        path.rename(path.with_stem(f"other-{path.stem}")) for path in (tmp_path / "unlabelled").iterdir()
    ]
    unlabelled.write_text(
        "item_id,image,seller_id,category\n"
        + "".join(f"{p.stem},unlabelled/{p.name},s,Tee\n" for p in sorted(names))
        + "".join(
            f"{p.stem},rendered/images/{p.name},s,{['Tee', 'Frock'][i % 2]}\n"
            for i, p in enumerate(sorted((tmp_path / "rendered" / "images").iterdir()))
        )
    )
    schedule = {"steps": 2, "batch": 4, "warmup": 1, "checkpoint_every": 2}
    config = small_settings(
        tmp_path,
        labels,
        **dict.fromkeys(("detector", "landmarks", "self_training", "retrieval"), schedule),
        edited_detector=schedule,
        edited_landmarks=schedule,
        edited_rounds=2,
        edited_again=schedule,
        copies=[str(write_plagiarized_fashion(tmp_path / "copies", 10, seed=2, size=(90, 120)))],
        copies_share=0.5,
        copies_retrieval=schedule,
        region_weight_samples=12,
        unlabelled=str(unlabelled),
        pseudo_score=0.0,
        pseudo_presence=0.0,
        pseudo_group=0.0,
    )
    for part in ("detector", "landmarks", "self-training", "retrieval", "copies", "edited", "region-weights"):
        assert main([part, "--config", config]) == 0
        if part == "landmarks":
            # The same seed, the same networks: they are random at first.
            for name in ("detector", "landmarks"):
                assert main([name, "--config", config, "--set", f"out={tmp_path / 'again'}"]) == 0
                file = f"{name}.safetensors"
                assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "out" / file).read_bytes()
    # A run that was killed between two rounds of the part edited ends as if it had not been.
    landmarks = (tmp_path / "out" / "landmarks.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "out" / "edited-landmarks-2")
    (tmp_path / "out" / "pseudo-labels-2.jsonl").unlink()
    assert main(["edited", "--config", config]) == 0
    assert (tmp_path / "out" / "landmarks.safetensors").read_bytes() == landmarks
    made = (tmp_path / "out" / "retrieval.safetensors").read_bytes()
    assert main(["copies", "--config", config, "--set", "copies_step=0"]) == 0
    before = load_file(tmp_path / "out" / "copies" / "retrieval.safetensors")
    for name, value in load_file(tmp_path / "out" / "retrieval.safetensors").items():
        if value.is_floating_point():  # not how many batches the normalisation has seen
            torch.testing.assert_close(value, before[name])
    assert main(["copies", "--config", config]) == 0
    assert (tmp_path / "out" / "retrieval.safetensors").read_bytes() == made
    without = Predictor.load(tmp_path / "out", "cpu")
    groups = ["groups", "--config", config]
    assert main(groups) == 0
    learnt = (tmp_path / "out" / "groups.safetensors").read_bytes()
    assert main(groups) == 0 and (tmp_path / "out" / "groups.safetensors").read_bytes() == learnt
    both = Predictor.load(tmp_path / "out", "cpu")
    assert without.groups is None and both.groups is not None and both.tag != without.tag
    assert main(["calibration", "--config", config]) in (
        0,
        2,
    )  # two steps may find no garment at all
    assert Predictor.load(tmp_path / "out", "cpu").tag.startswith("psnet-")
    weights = json.loads((tmp_path / "out" / "region-weights.json").read_text())
    for table in weights["tables"].values():
        assert np.allclose(np.sum(table, 1), 1) and np.shape(table) == (4, 5)
    assert all((tmp_path / "out" / f"pseudo-labels-{time}.jsonl").exists() for time in (1, 2))
    for part, figure in (
        ("edited-detector", "edited_recall"),
        ("edited-landmarks", "edited_nme"),
        ("edited-landmarks-2", "edited_nme"),
    ):
        rows = [json.loads(row) for row in (tmp_path / "out" / part / "log.jsonl").read_text().splitlines()]
        assert figure in rows[-1]["validation"]


@pytest.mark.parametrize("branch", ["roi", "pcb", "global"])
def test_every_branch_is_trained_by_the_same_command(tmp_path, branch):
    labels = write_labels(tmp_path / "rendered", 8, seed=1)
    model = dataclasses.asdict(PSNetConfig.tiny()) | {"retrieval": branch}
    schedule = {"steps": 2, "batch": 3, "warmup": 1, "checkpoint_every": 2}
    config = small_settings(tmp_path, labels, model=model, retrieval=schedule)
    assert main(["retrieval", "--config", config]) == 0
    assert (tmp_path / "out" / "retrieval.safetensors").exists()
    assert main(["copies", "--config", config, "--set", "copies_retrieval.steps=1"]) == 0
    assert main(["copies", "--config", config, "--set", f"copies=[{tmp_path}]"]) == 2


def test_mistakes_are_one_line(tmp_path, capsys):
    assert main(["retrieval", "--set", "labels=[]", "--set", f"out={tmp_path}"]) == 2
    assert main(["retrieval", "--set", "stepz=3"]) == 2
    assert main(["retrieval", "--set", f"labels=[{tmp_path}/none.jsonl]", "--set", f"out={tmp_path}"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 3 and all(line.startswith("psnet train: ") for line in lines)


def test_a_catalogues_own_names_say_what_its_garments_are():
    """Of ten garments called "Tee" nine were labelled short-sleeved tops."""
    tee = TORSO_CATEGORIES.index("short_sleeve_top")
    known = [("Tee", "short_sleeve_top")] * 9 + [("Tee", "vest")] + [("Tank", "vest")] * 10
    evidence = category_evidence(known, strength=1.0)
    assert set(evidence) == {"Tee", "Tank"}
    usual = np.full(10, 0.5)
    usual[tee], usual[TORSO_CATEGORIES.index("vest")] = 9.5, 11.5
    usual /= usual.sum()
    assert evidence["Tee"][tee] == pytest.approx((9 + usual[tee]) / 11 / usual[tee])
    assert (evidence["Tee"] * usual).sum() == pytest.approx(1)

    # The network leans to a vest; the catalogue settles it.
    chances = np.full(10, 0.01)
    chances[tee], chances[TORSO_CATEGORIES.index("vest")] = 0.4, 0.52
    assert settled_category(chances, None, min_group=0.8) is None
    assert settled_category(chances, None, min_group=0.5) == "vest"
    assert settled_category(chances, evidence["Tee"], min_group=0.8) == "short_sleeve_top"
    # A dress by the catalogue, a top by the network: whose regions the network has seen is not known.
    dress = category_evidence([("Frock", "sling_dress")] * 50 + known)["Frock"]
    chances[TORSO_CATEGORIES.index("sling_dress")] = 0.1
    assert (chances * dress).argmax() == TORSO_CATEGORIES.index("sling_dress")
    assert settled_category(chances, dress, min_group=0.0) is None
