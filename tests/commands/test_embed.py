import numpy as np
import pytest
import torch

from unfreeze.commands.embed import embed
from unfreeze.commands.finetune import finetune
from unfreeze.commands.predict import load
from unfreeze.errors import DataError, UsageError, WeightsError

TINY = {"arch": "unfreeze/tiny", "weights": "none", "augment": "none", "precision": "fp32"}


@pytest.fixture(scope="module")
def run(colours, tmp_path_factory):
    folder = tmp_path_factory.mktemp("done")
    data = colours(folder / "colours", {"red": 6, "green": 5})
    return data, finetune(str(data), out=str(folder / "run"), epochs=1, **TINY).run


def test_features_are_what_the_head_is_fed(run, tmp_path):
    data, model = run
    result = embed(model, str(data), str(tmp_path / "f.npz"), batch_size=4)
    assert (result.images, result.width, result.classes) == (11, 128, ["green", "red"])
    with np.load(tmp_path / "f.npz") as held:
        features, labels, paths = held["features"], held["labels"], held["paths"]
        assert held["classes"].tolist() == ["green", "red"]
    assert features.shape == (11, 128) and features.dtype == np.float32
    assert labels.tolist() == [0] * 5 + [1] * 6 and paths[0] == "green/000.png"
    classifier = load(model)
    head = classifier.network.head
    with torch.no_grad():
        chances = head(torch.from_numpy(features)).softmax(1).max(1)
    found = classifier.predict([str(data / path) for path in paths])
    assert [p.label for p in found] == [classifier.classes[i] for i in chances.indices]
    assert np.allclose([p.probability for p in found], chances.values, atol=1e-6)


def test_unlabelled_images_have_no_class(run, coloured, tmp_path):
    _, model = run
    embed(model, str(coloured("flat", {".": 3})), str(tmp_path / "f.npz"))
    with np.load(tmp_path / "f.npz") as held:
        assert held["labels"].tolist() == [-1] * 3 and held["classes"].shape == (0,)


def test_the_last_checkpoint_of_a_run_serves_as_its_model_does(run, tmp_path):
    data, model = run
    last = f"{model}/checkpoints/last.ckpt"
    for weights, name in ((model, "a.npz"), (last, "b.npz")):
        embed(weights, str(data), str(tmp_path / name), device="cpu")
    with np.load(tmp_path / "a.npz") as a, np.load(tmp_path / "b.npz") as b:
        assert np.array_equal(a["features"], b["features"])


def test_splits_can_be_chosen(run, coloured, tmp_path):
    _, model = run
    data = coloured("split", {"train/red": 3, "train/blue": 3, "test/red": 2})
    assert embed(model, str(data), str(tmp_path / "a.npz")).images == 8
    assert embed(model, str(data), str(tmp_path / "b.npz"), split="test").images == 2
    with pytest.raises(DataError, match="no split 'val'"):
        embed(model, str(data), str(tmp_path / "c.npz"), split="val")


def test_a_checkpoint_needs_no_architecture_where_it_tells_its_network(run, tmp_path):
    from unfreeze.models.build import build

    data, _ = run
    network = build("resnet18")
    torch.save(network.state_dict(), tmp_path / "plain.pth")
    for how in ({}, {"arch": "resnet18"}):
        found = embed(str(tmp_path / "plain.pth"), str(data), str(tmp_path / "f.npz"), **how)
        assert (found.width, found.arch) == (512, "torchvision/resnet18")
    torch.save({"a": torch.ones(3, 3)}, tmp_path / "odd.pth")
    with pytest.raises(WeightsError, match="matches no known architecture"):
        embed(str(tmp_path / "odd.pth"), str(data), str(tmp_path / "f.npz"))
    with pytest.raises(UsageError, match="does not name its architecture"):
        embed("imagenet", str(data), str(tmp_path / "f.npz"))
    with pytest.raises(WeightsError):
        embed(str(tmp_path / "none.pth"), str(data), str(tmp_path / "f.npz"), arch="resnet18")


def test_real_weights_give_the_features_of_torchvision(shared, tmp_path):
    import torchvision

    from unfreeze.data.sources.open import open_source

    weights = str(shared / "weights/squeezenet1_1-imagenet.pth")
    source = open_source(str(shared / "data/nasty-images.zip"))
    names = [name for name in source.names if name.endswith(".jpg")][:4]
    folder = tmp_path / "some"
    folder.mkdir()
    for place, name in enumerate(names):
        data = source.read(source.names.index(name))
        (folder / f"{place}.jpg").write_bytes(bytes(data))
    embed(weights, str(folder), str(tmp_path / "f.npz"), arch="squeezenet1_1")
    with np.load(tmp_path / "f.npz") as held:
        features, paths = held["features"], held["paths"]
    model = torchvision.models.squeezenet1_1()
    model.load_state_dict(torch.load(weights, weights_only=True))
    model.eval()
    preset = torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1.transforms(antialias=True)
    from PIL import Image, ImageOps

    for row, path in zip(features, paths, strict=True):
        image = ImageOps.exif_transpose(Image.open(folder / str(path))).convert("RGB")
        with torch.no_grad():
            expected = model.features(preset(image)[None]).mean(dim=(2, 3))[0]
        assert np.abs(row - expected.numpy()).max() < 1e-3 * expected.abs().max()
