import pytest
import torch
import torchinfo

from unfreeze.checkpoints.model_file import ModelCard, save_model
from unfreeze.commands.finetune import finetune
from unfreeze.commands.summary import Summary, summary
from unfreeze.errors import UsageError
from unfreeze.models.build import build
from unfreeze.models.head import remove_head, replace_head


@pytest.fixture(scope="module")
def familiar():
    return summary("resnet50", input="3x32x32", classes=10, freeze="all")


def test_the_familiar_totals(familiar):
    assert familiar.parameters_total == 23_528_522
    assert familiar.parameters_trainable == 20_490
    assert familiar.parameters_frozen == 23_508_032
    assert familiar.megabytes == pytest.approx(89.75, abs=0.01)


def test_the_familiar_table(familiar):
    text = str(familiar)
    rows = [line.split() for line in text.splitlines()]
    assert ["conv1", "(Conv2d)", "(None,", "64,", "16,", "16)", "9,408", "N"] in rows
    assert ["fc", "(Linear)", "(None,", "10)", "20,490", "Y"] in rows
    for line in (
        "· stage 4: layer4 (14,964,736 parameters)",
        "Total params: 23,528,522 (89.75 MB)",
        "Trainable params: 20,490 (0.08 MB)",
        "Non-trainable params: 23,508,032 (89.68 MB)",
    ):
        assert line in text
    assert len(repr(familiar).splitlines()) < 40 < len(text.splitlines())


@pytest.mark.parametrize("arch", ["resnet18", "vit_b_32", "squeezenet1_1", "unfreeze/tiny"])
def test_shapes_and_counts_are_torchinfos(arch):
    found = summary(arch, input="3x224x224")
    reference = torchinfo.summary(build(arch), (1, 3, 224, 224), verbose=0, mode="eval", depth=9)
    assert found.parameters_total == reference.total_params
    assert sum(layer["parameters"] for layer in found.layers) == reference.total_params
    theirs = {}
    for layer in reference.summary_list:
        if layer.is_leaf_layer and layer.output_size:
            theirs.setdefault(layer.class_name, set()).add(tuple(layer.output_size[1:]))
    for layer in found.layers:
        if layer["output"] and layer["type"] not in ("Parameter", "Identity"):
            assert tuple(layer["output"]) in theirs[layer["type"]], layer["name"]


def test_layers_stand_in_forward_order_with_their_stage(familiar):
    numbers = [layer["stage"] for layer in familiar.layers]
    assert numbers[0] == 0
    assert numbers[-1] is None
    assert numbers[:-1] == sorted(numbers[:-1])
    assert [stage["name"] for stage in familiar.stages] == [
        "stem",
        *(f"layer{n}" for n in (1, 2, 3, 4)),
    ]


@pytest.mark.parametrize(
    ("freeze", "trainable"),
    [
        ("none", {"stem", "stage1", "stage2", "stage3", "head"}),
        ("stage:2", {"stage3", "head"}),
        ("regex:^stage1", {"stem", "stage2", "stage3", "head"}),
        ("all", {"head"}),
    ],
)
def test_freezing_is_shown_as_it_will_be(freeze, trainable):
    found = summary("unfreeze/tiny", freeze=freeze)
    turning = {layer["name"].split(".")[0] for layer in found.layers if layer["trainable"]}
    assert turning == trainable
    moving = sum(layer["parameters"] for layer in found.layers if layer["trainable"])
    assert found.parameters_trainable == moving
    assert found.parameters_frozen == found.parameters_total - moving


def test_a_runs_model_has_its_own_classes(tmp_path):
    card = ModelCard("classifier", "unfreeze/tiny", classes=("a", "b", "c"))
    save_model(tmp_path / "model", build("unfreeze/tiny", classes=3).state_dict(), card)
    found = summary(str(tmp_path), input="3x16x16")
    assert isinstance(found, Summary)
    assert found.arch == "unfreeze/tiny"
    assert found.layers[-1]["output"] == [3]


@pytest.mark.parametrize("wrong", ["32x32", "1x32x32", "3x0x32", "3x32x32x32", "big"])
def test_an_input_that_is_no_size_is_refused(wrong):
    with pytest.raises(UsageError, match="not an input size"):
        summary("unfreeze/tiny", input=wrong)


def test_trap_iii_too_small_a_image_is_refused():
    with pytest.raises(UsageError, match="does not accept a 3x32x32"):
        summary("alexnet", input="3x32x32")


def test_a_pretraining_run_has_no_head(tmp_path):
    network = build("unfreeze/tiny")
    remove_head(network)
    how = {"image_size": 16, "resize": 16}
    card = ModelCard("backbone", "unfreeze/tiny", preprocess=how)
    save_model(tmp_path / "model", network.state_dict(), card)
    found = summary(str(tmp_path), input="3x16x16")
    assert found.parameters_total == sum(p.numel() for p in network.parameters())
    assert found.layers[-1]["type"] == "RemovedHead" and found.layers[-1]["parameters"] == 0
    assert summary(str(tmp_path), input="3x16x16", classes=7).layers[-1]["output"] == [7]


@pytest.mark.parametrize("head", ["replace", "mlp:8"])
def test_a_runs_summary_shows_what_the_run_froze(tmp_path, head):
    network = build("unfreeze/tiny")
    replace_head(network, 3, kind=head)
    preprocess = {"image_size": 16, "resize": 16, "interpolation": "bilinear"}
    card = ModelCard(
        kind="classifier",
        arch="unfreeze/tiny",
        stem="imagenet",
        head=head,
        classes=("a", "b", "c"),
        preprocess=preprocess,
        provenance={"freeze": "all"},
    )
    save_model(tmp_path / "model", network.state_dict(), card)
    found = summary(str(tmp_path))
    assert 0 < found.parameters_trainable < found.parameters_frozen
    assert summary(str(tmp_path), freeze="none").parameters_frozen == 0


def test_a_checkpoint_is_summed_up_like_the_run(coloured, tmp_path, no_drawing):
    data = coloured("colours", {"red": 6, "blue": 6})
    how = {"arch": "unfreeze/tiny", "weights": "none", "epochs": 1, "freeze": "all"}
    made = finetune(str(data), out=str(tmp_path / "run"), **how)
    assert summary(f"{made.run}/checkpoints/last.ckpt") == summary(made.run)
    torch.save(build("squeezenet1_1").state_dict(), tmp_path / "w.pth")
    assert summary(str(tmp_path / "w.pth")).arch == "torchvision/squeezenet1_1"


@pytest.mark.parametrize(
    "options",
    [{"head": "mlp:8", "freeze": "all"}, {"freeze": "all", "unfreeze_at": "1:stage3"}],
    ids=["two-new-layers", "thawed"],
)
def test_a_run_trains_what_it_says_it_trained(coloured, tmp_path, no_drawing, options):
    data = coloured("colours", {"red": 6, "blue": 6})
    how = {"arch": "unfreeze/tiny", "weights": "none", "epochs": 2, **options}
    made = finetune(str(data), out=str(tmp_path / "run"), **how)
    found = summary(made.run)
    assert found.parameters_trainable == made.parameters_trainable
    assert found.parameters_frozen == made.parameters_frozen
    assert summary(made.run, freeze="none").parameters_frozen == 0
