"""ASEN against a plain re-implementation of the published functions, its checkpoints, its shipped weights."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import Tensor

from psnet import asen_weights
from psnet.asen import AsenConfig, build_asen
from psnet.asen_attention import attention_inside
from psnet.asen_predictor import AttributePredictor
from psnet.asen_weights import asen_tag, load_asen, load_checkpoint, read_asen, read_checkpoint, save_asen
from psnet.backbone import IMAGENET_MEAN, IMAGENET_STD
from psnet.data.attributes import AttributeMeta, write_meta
from psnet.weights import WeightsError

NAMES = ("skirt_length", "collar_design", "neckline_design")
VALUES = dict.fromkeys(NAMES, ("a", "b"))
TINY = AsenConfig(
    trunk="resnet10t", channels=16, hidden=8, side=64, fit="stretch", attributes=NAMES, values=VALUES
)


def trunk_state(seed: int) -> dict[str, Tensor]:
    """ResNet-50 whole, as the authors' checkpoints hold it, with statistics that are not the start's."""
    torch.manual_seed(seed)
    trunk = torchvision.models.resnet50(weights=None)
    state = trunk.state_dict()
    for name, value in state.items():
        if name.endswith("running_mean"):
            value.normal_(0, 0.1)
        if name.endswith("running_var"):
            value.uniform_(0.8, 1.2)
    return {f"backbonenet.{name}": value for name, value in state.items()}


def attribute_state(variant: str, seed: int) -> dict[str, Tensor]:
    """Random parameters under the names and in the shapes of the authors' released models."""
    shapes = {
        "v1": {
            "mask_fc1.weight": (512, 3),
            "mask_fc2.weight": (1024, 3),
            "fc1.weight": (512, 2048),
            "fc1.bias": (512,),
            "fc2.weight": (1024, 512),
            "fc2.bias": (1024,),
            "feature_fc.weight": (1024, 1024),
            "feature_fc.bias": (1024,),
            "conv1.weight": (512, 1024, 1, 1),
            "conv1.bias": (512,),
            "conv2.weight": (1, 512, 1, 1),
            "conv2.bias": (1,),
        },
        "v2": {
            "attr_embedding.weight": (3, 512),
            "attr_transform1.weight": (512, 512),
            "attr_transform1.bias": (512,),
            "conv1.weight": (512, 1024, 1, 1),
            "conv1.bias": (512,),
            "img_bn1.weight": (512,),
            "img_bn1.bias": (512,),
            "img_bn1.running_mean": (512,),
            "img_bn1.running_var": (512,),
            "attr_transform2.weight": (512, 512),
            "attr_transform2.bias": (512,),
            "fc1.weight": (512, 1536),
            "fc1.bias": (512,),
            "fc2.weight": (1024, 512),
            "fc2.bias": (1024,),
        },
    }[variant]
    generator = torch.Generator().manual_seed(seed)
    state = {name: 0.05 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    if variant == "v2":
        state["img_bn1.running_var"] = 0.5 + torch.rand(512, generator=generator)
        state["img_bn1.num_batches_tracked"] = torch.tensor(7)
        # Large enough for the attention to be far from even; so below.
        state["attr_embedding.weight"] *= 20
        state["img_bn1.weight"] *= 20
    else:
        state["mask_fc1.weight"] *= 20
        state["conv2.weight"] *= 10
    return state


def trunk_map(state: dict[str, Tensor], images: Tensor) -> Tensor:
    trunk = torchvision.models.resnet50(weights=None)
    trunk.load_state_dict({k.removeprefix("backbonenet."): v for k, v in state.items()})
    trunk.eval()
    x = (images - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]
    x = trunk.maxpool(trunk.relu(trunk.bn1(trunk.conv1(x))))
    return trunk.layer3(trunk.layer2(trunk.layer1(x)))


def published_v1(p: dict[str, Tensor], x: Tensor, attribute: int) -> tuple[Tensor, Tensor]:
    """One attribute at a time, as the paper's section 3.2 goes."""
    one_hot = torch.zeros(len(x), p["mask_fc1.weight"].shape[1])
    one_hot[:, attribute] = 1
    image = torch.tanh(F.conv2d(x, p["conv1.weight"], p["conv1.bias"]))
    mask = torch.tanh(one_hot @ p["mask_fc1.weight"].T)[:, :, None, None]
    logits = torch.tanh(F.conv2d(mask * image, p["conv2.weight"], p["conv2.bias"]))
    attention = torch.softmax(logits.flatten(1), 1).view_as(logits)
    seen = (x * attention).sum((2, 3))
    view = torch.relu(one_hot @ p["mask_fc2.weight"].T)
    hidden = torch.relu(F.linear(torch.cat([seen, view], 1), p["fc1.weight"], p["fc1.bias"]))
    gated = seen * torch.sigmoid(F.linear(hidden, p["fc2.weight"], p["fc2.bias"]))
    out = F.linear(gated, p["feature_fc.weight"], p["feature_fc.bias"])
    return out / out.pow(2).sum(1, keepdim=True).sqrt(), attention[:, 0]


def published_v2(p: dict[str, Tensor], x: Tensor, attribute: int) -> tuple[Tensor, Tensor]:
    embedding = p["attr_embedding.weight"][attribute].expand(len(x), -1)
    image = F.conv2d(x, p["conv1.weight"], p["conv1.bias"])
    norm = [p[f"img_bn1.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
    image = torch.tanh(F.batch_norm(image, *norm))
    key = torch.tanh(F.linear(embedding, p["attr_transform1.weight"], p["attr_transform1.bias"]))
    logits = (key[:, :, None, None] * image).sum(1) / 512**0.5
    attention = torch.softmax(logits.flatten(1), 1).view_as(logits)
    seen = (x * attention[:, None]).sum((2, 3))
    view = torch.relu(F.linear(embedding, p["attr_transform2.weight"], p["attr_transform2.bias"]))
    hidden = torch.relu(F.linear(torch.cat([seen, view], 1), p["fc1.weight"], p["fc1.bias"]))
    out = seen * torch.sigmoid(F.linear(hidden, p["fc2.weight"], p["fc2.bias"]))
    return out / out.pow(2).sum(1, keepdim=True).sqrt(), attention


@pytest.mark.parametrize(
    ("variant", "published", "wrapped"), [("v1", published_v1, True), ("v2", published_v2, False)]
)
def test_a_checkpoint_of_the_authors_computes_the_published_function(
    tmp_path: Path, variant: str, published: object, wrapped: bool
) -> None:
    trunk, attributes = trunk_state(1), attribute_state(variant, 2)
    state = {**trunk, **attributes}
    path = tmp_path / "model_best.pth.tar"
    if wrapped:
        content = {"state_dict": {f"embeddingnet.{k}": v for k, v in state.items()}, "epoch": 3, "prec": 0.6}
        torch.save(content, path)
    else:
        torch.save(state, path)
    model = load_checkpoint(path, NAMES, VALUES)
    images = torch.rand((2, 3, 96, 128), generator=torch.Generator().manual_seed(3))  # no side is 224
    with torch.inference_mode():
        out = model(images)
        x = trunk_map(trunk, images)
        for a in range(len(NAMES)):
            embedding, attention = published(attributes, x, a)  # type: ignore[operator]
            torch.testing.assert_close(out.embeddings[:, a], embedding, atol=1e-5, rtol=0)
            assert out.attention is not None
            torch.testing.assert_close(out.attention[:, a], attention, atol=1e-5, rtol=0)
            assert attention.max() > 1.5 * attention.mean()  # a map that is even would show nothing


def test_conversion_keeps_the_function(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_meta(tmp_path, AttributeMeta("FashionAI", NAMES, tuple(VALUES.values())))
    checkpoint = tmp_path / "v2.pth"
    torch.save({**trunk_state(1), **attribute_state("v2", 2)}, checkpoint)
    out = tmp_path / "converted"
    assert asen_weights.main([str(checkpoint), str(tmp_path), "FashionAI", str(out)]) == 0
    before, after = load_checkpoint(checkpoint, NAMES, VALUES), load_asen(out)
    images = torch.rand((1, 3, 64, 64), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        cosine = (before(images).embeddings * after(images).embeddings).sum(-1)
    assert cosine.min() > 0.9999  # matrices are stored in float16
    assert read_asen(out)["config"]["attributes"] == list(NAMES)
    capsys.readouterr()
    assert asen_weights.main([str(checkpoint), str(tmp_path), "DARN", str(out)]) == 2
    assert "no data set 'DARN'" in capsys.readouterr().err


class Surprise:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("unpickled",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (Surprise(), "holds tensors alone"),
        ({"state_dict": {"a": 1}}, "no state dict"),
        ({"backbonenet.conv1.weight": torch.zeros(1)}, "not an ASEN"),
        ({"attr_embedding.weight": torch.zeros(5, 512)}, "5 attributes, but 3 named"),
        ({"attr_embedding.weight": torch.zeros(3, 512)}, "not the parameters of ASEN v2"),
    ],
)
def test_other_checkpoints_are_refused(
    tmp_path: Path, content: object, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "some.pth"
    torch.save(content, path)
    with pytest.raises(WeightsError, match=said):
        load_checkpoint(path, NAMES, VALUES)
    assert "unpickled" not in capsys.readouterr().out


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.pth"
    path.write_text("no checkpoint")
    with pytest.raises(WeightsError, match=r"text\.pth"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"method": "v1"},
        {"spatial": False},
        {"channel": False},
        {"method": "shared"},
        {"method": "masks"},
        {"trunk": "resnet18", "channels": 256},
    ],
)
def test_every_method_gives_unit_embeddings_and_keeps_them_on_disk(
    tmp_path: Path, change: dict[str, object]
) -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(TINY, **change)
    model = build_asen(config).eval()
    save_asen(model, tmp_path, {"collar_design": 0.8}, {"steps": 1})
    again = load_asen(tmp_path)
    images = torch.rand((2, 3, 70, 64), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        out, same = model(images), again(images)
    assert out.embeddings.shape == (2, 3, config.channels)
    torch.testing.assert_close(out.embeddings.norm(dim=-1), torch.ones(2, 3))
    assert (out.embeddings * same.embeddings).sum(-1).min() > 0.999
    pooled = config.method in ("shared", "masks")
    if pooled or not config.spatial:
        assert out.attention is None
    else:
        assert out.attention is not None
        torch.testing.assert_close(out.attention.sum((-2, -1)), torch.ones(2, 3))
    one_for_all = torch.equal(out.embeddings[:, 0], out.embeddings[:, 1])
    assert one_for_all == (config.method == "shared")
    assert read_asen(tmp_path)["thresholds"] == {"collar_design": 0.8}


def test_an_attribute_does_not_depend_on_the_others() -> None:
    torch.manual_seed(0)
    model = build_asen(TINY).eval()
    fewer = build_asen(dataclasses.replace(TINY, attributes=NAMES[1:2])).eval()
    state = model.state_dict()
    state["attr_embedding.weight"] = state["attr_embedding.weight"][1:2]
    fewer.load_state_dict(state)
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(model(images).embeddings[:, 1], fewer(images).embeddings[:, 0])


def test_wrong_configurations_are_refused() -> None:
    with pytest.raises(ValueError, match="none named"):
        build_asen(dataclasses.replace(TINY, attributes=()))
    with pytest.raises(ValueError, match="resnet18 has 256"):
        build_asen(dataclasses.replace(TINY, trunk="resnet18", channels=99))


def test_attention_inside_counts_overlapping_regions_once() -> None:
    attention = torch.full((1, 2, 4, 4), 1 / 16)
    regions = torch.full((1, 5, 4), torch.nan)
    regions[0, 0] = torch.tensor([0.0, 0.0, 0.5, 0.5])
    regions[0, 3] = torch.tensor([0.0, 0.0, 0.5, 1.0])
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask[0, [0, 3]] = True
    mask[1, 1] = True
    share, known = attention_inside(attention, regions, mask)
    assert share[0, 0] == pytest.approx(0.5) and share[0, 1] == 0
    assert known.tolist() == [[True, False]]
    regions[0, 0] = torch.tensor([0.0, 0.0, 0.125, 1.0])  # half a cell wide
    assert attention_inside(attention, regions[:, :1], mask[:, :1])[0][0, 0] == pytest.approx(0.125)


def test_the_predictor_sees_the_garment_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_asen(build_asen(TINY), tmp_path)
    predictor = AttributePredictor.load(tmp_path, "cpu", batch=2)
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, (120, 100, 3), dtype=np.uint8)
    other = picture.copy()
    other[:, 80:] = 0
    box = np.array([[10, 20, 70, 90]], np.float32)
    nothing = np.zeros((0, 4), np.float32)
    one, none, same, two = predictor.describe(
        [picture, picture, other, other], [box, nothing, box, np.concatenate([box, box + 25])]
    )
    assert one.shape == (1, 3, 16) and none.shape == (0, 3, 16) and two.shape == (2, 3, 16)
    np.testing.assert_allclose(one, same, atol=1e-5)
    np.testing.assert_allclose(two[0], one[0], atol=1e-5)
    assert abs(two[1] - one[0]).max() > 1e-3
    assert predictor.crop(Image.fromarray(picture), box[0]).shape == (64, 64, 3)


def test_weights_that_are_not_there_are_said_so(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"asen\.json missing"):
        load_asen(tmp_path)
    (tmp_path / "asen.json").write_text("{")
    with pytest.raises(WeightsError, match="cannot be read"):
        load_asen(tmp_path)
    (tmp_path / "asen.json").write_text(json.dumps({"format": 9}))
    with pytest.raises(WeightsError, match="format"):
        load_asen(tmp_path)
    save_asen(build_asen(TINY), tmp_path)
    tag = asen_tag(tmp_path)
    (tmp_path / "asen.safetensors").write_bytes(b"damaged")
    assert asen_tag(tmp_path) != tag
    with pytest.raises(WeightsError, match="damaged"):
        load_asen(tmp_path)
