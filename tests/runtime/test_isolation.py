"""A call computes in its own way, and the caller's process is as it was afterwards."""

import contextlib

import numpy as np
import pytest
import torch

import unfreeze
from unfreeze.checkpoints.model_file import load_model
from unfreeze.cli.registry import SETTINGS, command_function
from unfreeze.models.build import build
from unfreeze.models.head import replace_head
from unfreeze.runtime.isolation import isolated
from unfreeze.runtime.threads import set_threads
from unfreeze.transfer.predictor import load_features


def state():
    """Everything of a process that a call could trip over or change."""
    return {
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "anomaly": (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        "autocast": torch.is_autocast_enabled("cpu"),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "threads": torch.get_num_threads(),
        "random": torch.get_rng_state().tolist(),
        "numpy": np.geterr(),
    }


@contextlib.contextmanager
def set_and_back(put, value, before):
    put(value)
    try:
        yield
    finally:
        put(before)


ODD = {
    "gradients": lambda: torch.set_grad_enabled(False),
    "inference": lambda: torch.inference_mode(),
    "dtype": lambda: set_and_back(torch.set_default_dtype, torch.float64, torch.float32),
    "device": lambda: set_and_back(torch.set_default_device, "meta", None),
    "device, in a block": lambda: torch.device("meta"),
    "anomaly": lambda: torch.autograd.set_detect_anomaly(True),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "deterministic": lambda: set_and_back(torch.use_deterministic_algorithms, True, False),
    "numpy": lambda: np.errstate(all="raise"),
}


@pytest.fixture
def odd():
    """A process with all of that at once."""
    with contextlib.ExitStack() as stack:
        for kind in ODD.values():
            stack.enter_context(kind())
        yield


@pytest.mark.parametrize("kind", ODD)
def test_within_the_block_it_is_as_it_comes_and_after_it_as_it_was(kind):
    with isolated():
        usual = state()
    with ODD[kind]():
        before = state()
        with contextlib.suppress(KeyError), isolated():
            now = state()
            torch.manual_seed(7)
            set_threads(torch.get_num_threads() + 1)
            raise KeyError
        assert state() == before
    assert before | {"random": 0} != usual | {"random": 0}
    # who wants deterministic algorithms gets them, where torch has some
    assert now == usual | ({"deterministic": (True, True)} if kind == "deterministic" else {})


@pytest.mark.parametrize(
    "verb", sorted(SETTINGS.keys() - {"cache", "completion", "init"})
)  # they compute nothing
def test_every_verb_is_isolated(verb):
    assert hasattr(command_function(verb), "__wrapped__")


TINY = {"arch": "unfreeze/tiny", "image_size": 16, "device": "cpu", "epochs": 1, "batch_size": 8}
FINETUNE = {**TINY, "weights": "none"}
PRETRAIN = {**TINY, "nmb_prototypes": 8}


@pytest.fixture(scope="module")
def plain(colours, tmp_path_factory):
    """The images, a pretraining and a fine-tuning in a process as it comes."""
    folder = tmp_path_factory.mktemp("plain")
    data = str(colours(folder / "pics", {"red": 12, "blue": 12}))
    unfreeze.pretrain(data, out=str(folder / "pretrain"), **PRETRAIN)
    unfreeze.finetune(data, out=str(folder / "finetune"), **FINETUNE)
    unfreeze.finetune(data, out=str(folder / "finetune-bf16"), **FINETUNE, precision="bf16")
    return data, folder


@pytest.mark.parametrize(
    "verb, given, same",
    [
        ("pretrain", PRETRAIN, "pretrain"),
        ("finetune", FINETUNE, "finetune"),
        # within the caller's autocast torch would keep the first step's weights, cast to bf16
        ("finetune", {**FINETUNE, "precision": "bf16"}, "finetune-bf16"),
    ],
)
def test_training_is_the_same_in_any_process(plain, odd, tmp_path, verb, given, same):
    data, folder = plain
    before = state()
    getattr(unfreeze, verb)(data, out=str(tmp_path / "run"), **given)
    assert state() == before
    with isolated():
        (ours, _), (theirs, _) = load_model(tmp_path / "run"), load_model(folder / same)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_using_a_model_is_the_same_in_any_process(plain, tmp_path):
    data, folder = plain
    run, images = str(folder / "finetune"), f"{data}/red"

    def use(out):
        out.mkdir()
        unfreeze.embed(run, data, out=str(out / "f.npz"), device="cpu")
        return [
            unfreeze.evaluate(run, data, device="cpu").loss,
            [row.probability for row in unfreeze.predict(run, [images], device="cpu")],
            unfreeze.load(run).predict(f"{images}/000.png")[0].probability,
            np.load(out / "f.npz")["features"].tolist(),
            unfreeze.summary(run).parameters_total,
            unfreeze.inspect(f"{run}/checkpoints/last.ckpt").keys,
            bool(unfreeze.export(run, to="safetensors", out=str(out / "export"))),
        ]

    usual = use(tmp_path / "usual")
    with contextlib.ExitStack() as stack:
        for kind in ODD.values():
            stack.enter_context(kind())
        before = state()
        assert use(tmp_path / "odd") == usual
        assert state() == before


@pytest.fixture(params=ODD)
def one_odd(request):
    """A process that is odd in one way."""
    with ODD[request.param]():
        yield


def test_a_module_that_is_loaded_anywhere_computes_anywhere(plain, one_odd):
    _, folder = plain
    model, features = (unfreeze.load(folder / "finetune"), load_features(folder / "finetune"))
    assert all(p.dtype == torch.float32 and not p.is_inference() for p in model.parameters())
    batch = torch.zeros(2, 20, 20, 3, dtype=torch.uint8, device="cpu")
    for network in (model, features):
        pixels = network.prepare(batch)
        assert pixels.device.type == "cpu" and pixels.dtype == torch.float32
        assert network(pixels).isfinite().all()
    image = np.zeros((20, 20, 3), np.uint8)
    assert model.preprocess.apply(image).dtype == torch.float32
    assert len(model.label(["x"], torch.zeros(1, 2, device="cpu"))) == 1
    assert model.predict([image])[0].probability > 0


def test_a_head_is_replaced_and_proved_anywhere(one_odd):
    with torch.device("cpu"):
        model = build("unfreeze/tiny")
        names = replace_head(model, 3)
        assert model(torch.zeros(1, 3, 16, 16)).shape == (1, 3)
    assert replace_head(model, 4) == names


def test_views_are_the_same_anywhere(one_odd):
    image = np.arange(30 * 40 * 3, dtype=np.uint8).reshape(30, 40, 3)

    def views():
        return unfreeze.swav.multicrop([image], ids=[5], epoch=1, seed=2, sizes=(24, 8))

    with isolated():
        usual = views()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(views(), usual, strict=True))


@pytest.mark.parametrize("target", ["torchscript", "onnx"])
def test_exports_are_written_and_verified_anywhere(plain, odd, tmp_path, target):
    if target == "onnx":
        pytest.importorskip("onnxruntime")
    _, folder = plain
    assert unfreeze.export(str(folder / "finetune"), to=target, out=str(tmp_path / "out"))


@pytest.mark.slow
def test_the_verbs_beside_training_work_anywhere(plain, odd, tmp_path):
    data, folder = plain
    assert unfreeze.scan(data).usable == 24
    assert unfreeze.show(data, out=str(tmp_path / "page.html"))
    assert unfreeze.report(str(folder / "finetune"))
    given = {**TINY, "limit": 12, "seeds": 1}
    assert unfreeze.compare(
        data, ["none", str(folder / "pretrain")], out=str(tmp_path / "compared"), **given
    )
