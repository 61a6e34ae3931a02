"""Files as each tool writes them: key names and nesting are theirs, the numbers ours.

Every tensor is one number, another for each entry, so that a pair out of place shows and a file is
small: `expand` keeps one number in it.
"""

import sys
import types
from collections import OrderedDict, defaultdict
from pathlib import PurePosixPath

import pytest
import torch
from safetensors.torch import save_file

from unfreeze.checkpoints.read import UnsafeCheckpoint, read_checkpoint
from unfreeze.errors import WeightsError
from unfreeze.models.build import build
from unfreeze.models.load_weights import load_weights

ARCH = "torchvision/resnet18"


def entries(drop=("fc.",), stem="imagenet"):
    """Name -> constant tensor of every entry of a ResNet-18 but the dropped ones."""
    with torch.device("meta"):
        state = build(ARCH, stem=stem).state_dict()
    made = OrderedDict()
    for number, (name, tensor) in enumerate(state.items(), 1):
        value = torch.tensor(number, dtype=tensor.dtype)
        made[name] = value.expand(tensor.shape)
    return OrderedDict((k, v) for k, v in made.items() if not k.startswith(tuple(drop)))


def filled(*shape):
    return torch.tensor(0.5).expand(shape)


def under(prefix, state):
    return OrderedDict((prefix + name, tensor) for name, tensor in state.items())


def optimizer_of(state):
    return {"state": {0: {"momentum_buffer": filled(3, 3)}}, "param_groups": [{"lr": 0.1}]}


SWAV_HEAD = {
    "projection_head.0.weight": filled(64, 512),
    "projection_head.0.bias": filled(64),
    "projection_head.1.weight": filled(64),
    "projection_head.1.bias": filled(64),
    "projection_head.1.running_mean": filled(64),
    "projection_head.1.running_var": filled(64),
    "projection_head.1.num_batches_tracked": torch.tensor(7),
    "projection_head.3.weight": filled(16, 64),
    "projection_head.3.bias": filled(16),
    "prototypes.weight": filled(30, 16),
}
FC = {"fc.weight": filled(1000, 512), "fc.bias": filled(1000)}


def numbered(state):
    """nn.Sequential(*list(resnet.children())[:-1]): ReLU and pooling count, and hold nothing."""
    at = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    return OrderedDict(
        (f"{at[name.partition('.')[0]]}.{name.partition('.')[2]}", tensor)
        for name, tensor in state.items()
    )


def lightly_own(state):
    """lightly's own ResNet as children: no ReLU or pooling among them, `shortcut` inside."""
    at = {"conv1": 0, "bn1": 1, "layer1": 2, "layer2": 3, "layer3": 4, "layer4": 5}
    return OrderedDict(
        (
            f"{at[name.partition('.')[0]]}.{name.partition('.')[2]}".replace(
                "downsample", "shortcut"
            ),
            tensor,
        )
        for name, tensor in state.items()
    )


def lightning(state, **hyper):
    return {
        "epoch": 200,
        "global_step": 1000,
        "pytorch-lightning_version": "2.1.2",
        "state_dict": state,
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 1}}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_path": "a.ckpt"}},
        "optimizer_states": [optimizer_of(state)],
        "lr_schedulers": [{"base_lrs": [0.6], "last_epoch": 200}],
        "hparams_name": "kwargs",
        "hyper_parameters": hyper or {"lr": 0.6},
    }


LIGHTLY_HEAD = {
    "projection_head.layers.0.weight": filled(64, 512),
    "projection_head.layers.1.weight": filled(64),
    "projection_head.layers.1.bias": filled(64),
    "projection_head.layers.1.running_mean": filled(64),
    "projection_head.layers.1.running_var": filled(64),
    "projection_head.layers.1.num_batches_tracked": torch.tensor(7),
    "projection_head.layers.3.weight": filled(16, 64),
    "projection_head.layers.3.bias": filled(16),
    "prototypes.heads.0.weight": filled(30, 16),
    "prototypes.heads.0.bias": filled(30),
}
SOLO_HEAD = {
    "classifier.weight": filled(10, 512),
    "classifier.bias": filled(10),
    "projector.0.weight": filled(64, 512),
    "projector.0.bias": filled(64),
    "prototypes.weight_g": filled(30, 1),
    "prototypes.weight_v": filled(30, 16),
    "queue": filled(2, 60, 16),
}
OTHER = {name: tensor.clone() + 7 for name, tensor in entries().items()}


def containers():
    state = entries()
    whole = state | FC
    vissl = {
        "phase_idx": 399,
        "iteration": 10,
        "loss": 1.5,
        "iteration_num": 10,
        "train_phase_idx": 399,
        "classy_state_dict": {
            "train": True,
            "base_model": {
                "model": {
                    "trunk": under("_feature_blocks.", state),
                    "heads": {
                        "0.projection_head.0.weight": filled(64, 512),
                        "0.prototypes0.weight": filled(30, 16),
                    },
                },
                "meters": {},
            },
            "meters": [],
            "optimizer": {"optim": optimizer_of(state), "config": {"name": "sgd_fsdp"}},
            "loss": {"0": {}},
        },
    }
    dino = {
        "student": under("module.backbone.", OTHER) | {"module.head.mlp.0.weight": filled(8, 512)},
        "teacher": under("backbone.", state) | {"head.mlp.0.weight": filled(8, 512)},
        "optimizer": optimizer_of(state),
        "epoch": 100,
        "dino_loss": {"center": filled(1, 8)},
    }
    return {
        "swav, published": ("module.", "", under("module.", state | SWAV_HEAD)),
        "swav, checkpoint.pth.tar": (
            "module.",
            "state_dict",
            {
                "epoch": 3,
                "state_dict": under("module.", state | SWAV_HEAD),
                "optimizer": optimizer_of(state),
                "amp": {"loss_scaler0": {"loss_scale": 65536.0, "unskipped": 3}},
            },
        ),
        "vissl": ("_feature_blocks.", "classy_state_dict.base_model.model.trunk", vissl),
        "vissl, older": ("_feature_blocks.", "model_state_dict", {
            "model_state_dict": under("_feature_blocks.", state), "iteration": 5}),
        "vissl, converted": ("", "", state),
        "solo-learn": ("backbone.", "state_dict", lightning(
            under("backbone.", state) | SOLO_HEAD)),
        "solo-learn, older": ("encoder.", "state_dict", lightning(
            under("encoder.", state) | SOLO_HEAD)),
        "lightly": ("backbone.", "state_dict", lightning(
            under("backbone.", numbered(state)) | LIGHTLY_HEAD)),
        "lightly, backbone alone": ("", "", numbered(state)),
        "lightly, its own ResNet": ("backbone.", "state_dict", lightning(
            under("backbone.", lightly_own(state)) | LIGHTLY_HEAD)),
        "lightly, resnet with fc = Identity": ("backbone.", "state_dict", lightning(
            under("backbone.", state) | LIGHTLY_HEAD)),
        "moco": ("module.encoder_q.", "state_dict", {
            "epoch": 200, "arch": "resnet18",
            "state_dict": under("module.encoder_q.", state)
            | under("module.encoder_k.", OTHER)
            | {"module.encoder_q.fc.0.weight": filled(512, 512),
               "module.queue": filled(16, 60), "module.queue_ptr": torch.tensor([0])},
            "optimizer": optimizer_of(state)}),
        "dino": ("backbone.", "teacher", dino),
        "byol with a target": ("backbone.", "state_dict", {
            "state_dict": under("backbone.", state) | under("momentum_backbone.", OTHER)}),
        "timm, with EMA": ("", "state_dict_ema", {
            "epoch": 9, "arch": "resnet18", "state_dict": OTHER | FC, "state_dict_ema": whole,
            "optimizer": optimizer_of(state), "version": 2, "metric": 71.0}),
        "torch's averaged model": ("module.", "", {"n_averaged": torch.tensor(4)}
                                   | under("module.", whole)),
        "DDP twice": ("module.module.", "state_dict", {"state_dict": under(
            "module.module.", whole)}),
        "torch.compile": ("_orig_mod.", "model", {"model": under("_orig_mod.", whole)}),
        "DDP in torch.compile": ("_orig_mod.module.", "", under("_orig_mod.module.", whole)),
        "Lightning": ("model.", "state_dict", lightning(under("model.", whole))),
        "mmpretrain": ("backbone.", "state_dict", {
            "meta": {"epoch": 200}, "state_dict": under("backbone.", state)
            | {"neck.fc0.weight": filled(64, 512), "head.loss_module.weight": filled(30, 16)}}),
        "a detector's backbone": ("backbone.body.", "", OrderedDict(
            (f"backbone.body.{k}", v) for k, v in state.items() if "num_batches" not in k)
            | {"rpn.head.conv.0.0.weight": filled(4, 4, 3, 3)}),
    }  # fmt: skip


def loaded_from(path, **options):
    torch.manual_seed(0)
    model = build(ARCH)
    return model, load_weights(model, str(path), arch=ARCH, **options)


def wrong(model, but=("fc.", "num_batches_tracked")):
    """Entries that are not what the file holds."""
    want = entries(drop=())
    return [
        name
        for name, tensor in model.state_dict().items()
        if not any(part in name for part in but) and not torch.equal(tensor, want[name])
    ]


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", containers())
def test_t9_and_t14_every_entry_of_every_tools_file_finds_its_place(name, zipped, tmp_path):
    prefix, container, content = containers()[name]
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    model, loaded = loaded_from(tmp_path / "w.pth")
    assert wrong(model) == []
    assert (loaded.share, loaded.prefix, loaded.random) == (1.0, prefix, ())
    assert (f"[{container}]" in loaded.source) == bool(container)
    assert loaded.head == ("fc",)
    assert all(name.endswith("num_batches_tracked") for name in loaded.missing)
    expected = {"dino": "teacher", "timm, with EMA": "state_dict_ema"}.get(name)
    assert ("averaged (EMA) weights" in loaded.account) == bool(expected)


def test_safetensors_of_any_prefix(tmp_path):
    state = {k: v.contiguous().clone() for k, v in under("model.", entries()).items()}
    save_file(state, tmp_path / "w.safetensors", metadata={"format": "pt"})
    model, loaded = loaded_from(tmp_path / "w.safetensors")
    assert (wrong(model), loaded.prefix) == ([], "model.")


def test_vgg_wrapped_inside(tmp_path):
    # DataParallel around the features alone, as many VGG and AlexNet recipes have it
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in build("alexnet").state_dict().items()}
    state = {
        name.replace("features.", "features.module."): torch.tensor(float(number)).expand(shape)
        for number, (name, shape) in enumerate(shapes.items())
    }
    torch.save({"state_dict": state, "arch": "alexnet"}, tmp_path / "w.pth")
    model = build("alexnet")
    assert load_weights(model, str(tmp_path / "w.pth"), arch="alexnet").share == 1.0
    assert model.features[3].weight.unique().tolist() == [2.0]


def test_the_account_says_what_was_taken_and_what_was_not(tmp_path):
    torch.save(containers()["swav, published"][2], tmp_path / "w.pth")
    _, loaded = loaded_from(tmp_path / "w.pth")
    assert loaded.account.startswith("100.0% of the backbone loaded from ")
    for part in (
        "prefix 'module.' removed",
        "head fc not loaded",
        "not used: projection_head (9), prototypes (1)",
    ):
        assert part in loaded.account
    assert set(loaded.rest) >= {"module.prototypes.weight", "module.projection_head.3.bias"}


def test_a_head_in_a_container_of_its_own_is_kept(tmp_path):
    torch.save(containers()["vissl"][2], tmp_path / "w.torch")
    _, loaded = loaded_from(tmp_path / "w.torch")
    heads = "classy_state_dict.base_model.model.heads.0."
    assert set(loaded.rest) == {f"{heads}projection_head.0.weight", f"{heads}prototypes0.weight"}


def test_t9_below_nine_tenths_is_refused_unless_allowed_and_then_said(tmp_path):
    part = {k: v for k, v in entries().items() if not k.startswith("layer4")}
    torch.save(under("module.", part), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"holds 24\.\d%") as refused:
        loaded_from(tmp_path / "w.pth")
    assert "--allow-partial" in refused.value.next_step
    model, loaded = loaded_from(tmp_path / "w.pth", allow_partial=True)
    assert wrong(model, but=("fc.", "layer4.", "num_batches_tracked")) == []
    assert loaded.share == pytest.approx(0.249, abs=0.001)
    assert {name.partition(".")[0] for name in loaded.random} == {"layer4"}
    assert "NOT LOADED (random): layer4 (15)" in loaded.account
    torch.manual_seed(0)
    assert torch.equal(model.layer4[1].conv2.weight, build(ARCH).layer4[1].conv2.weight)


def test_another_shape_stays_random_only_where_allowed(tmp_path):
    state = entries() | {"conv1.weight": filled(64, 3, 5, 5)}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="first convolution"):
        loaded_from(tmp_path / "w.pth")
    _, loaded = loaded_from(tmp_path / "w.pth", allow_partial=True)
    assert loaded.random == ("conv1.weight",)


def test_nothing_that_fits_is_refused_even_where_parts_are_allowed(tmp_path):
    torch.save({"a.weight": torch.zeros(3, 4)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"holds 0\.0%"):
        loaded_from(tmp_path / "w.pth", allow_partial=True)


@pytest.fixture
def foreign(monkeypatch):
    """`foreign(module, name, base)`: a class of a framework that is installed while saving only."""
    made = []

    def make(module, name, base=object):
        parts = module.split(".")
        for end in range(1, len(parts) + 1):
            path = ".".join(parts[:end])
            if path not in sys.modules:
                monkeypatch.setitem(sys.modules, path, types.ModuleType(path))
                made.append(path)
        kind = type(name, (base,), {"__module__": module, "__init__": base.__init__})
        setattr(sys.modules[module], name, kind)
        return kind

    make.gone = lambda: [monkeypatch.delitem(sys.modules, path) for path in made]
    return make


@pytest.mark.parametrize("zipped", [True, False])
def test_pain_16_bookkeeping_of_frameworks_is_passed_over(tmp_path, foreign, zipped):
    attributes = foreign("pytorch_lightning.utilities.parsing", "AttributeDict", dict)
    tree = foreign("omegaconf.dictconfig", "DictConfig")
    history = foreign("mmengine.logging.history_buffer", "HistoryBuffer")
    config, buffer = tree(), history()
    config.content = defaultdict(dict, {"lr": 0.1, "kind": int})
    buffer.values = __import__("numpy").zeros(3)
    content = lightning(
        under("backbone.", entries()),
        cfg=attributes(lr=0.6, root=PurePosixPath("/data")),
        tree=config,
    )
    content["message_hub"] = {"loss": buffer}
    torch.save(content, tmp_path / "w.ckpt", _use_new_zipfile_serialization=zipped)
    foreign.gone()
    model, loaded = loaded_from(tmp_path / "w.ckpt")
    assert (wrong(model), loaded.share) == ([], 1.0)
    assert "omegaconf" not in sys.modules


def test_trap_ix_code_beside_bookkeeping_is_still_refused(tmp_path, foreign):
    class Runs:
        def __reduce__(self):
            return exec, (f"open({str(tmp_path / 'mark')!r}, 'w')",)

    tree = foreign("omegaconf.dictconfig", "DictConfig")
    torch.save({"state_dict": entries(), "cfg": tree(), "x": Runs()}, tmp_path / "w.ckpt")
    with pytest.raises(UnsafeCheckpoint, match="exec") as refused:
        read_checkpoint(tmp_path / "w.ckpt")
    assert not (tmp_path / "mark").exists()
    assert any("exec" in name for name in refused.value.names)


def test_a_whole_pickled_network_is_named(tmp_path):
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "w.pth")
    with pytest.raises(UnsafeCheckpoint, match="a pickled model, not a state dict"):
        read_checkpoint(tmp_path / "w.pth")
