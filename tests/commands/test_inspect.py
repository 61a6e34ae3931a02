"""`inspect`: what it says of files of every kind, and that it says so with the right exit code."""

import io
import json
import shlex

import pytest
import torch
from safetensors.torch import save_file

import unfreeze
from unfreeze.cli.main import main
from unfreeze.errors import WeightsError
from unfreeze.models.build import build
from unfreeze.models.identify import build_on_meta
from unfreeze.runtime.terminal import Environment


def constant(arch, prefix="", drop=("fc.",), stem="imagenet"):
    """The entries of a network; one number stands for a whole tensor."""
    return {
        prefix + name: torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
        for name, tensor in build_on_meta(arch, stem).state_dict().items()
        if not name.startswith(drop)
    }


def call(*words):
    out, err = io.StringIO(), io.StringIO()
    code = main(list(words), Environment(out, err))
    return code, out.getvalue(), err.getvalue()


def swav_file(path, prototypes):
    state = constant("resnet50", "module.")
    state |= {
        "module.projection_head.0.weight": torch.zeros(1).expand(2048, 2048),
        "module.projection_head.3.weight": torch.zeros(1).expand(128, 2048),
        "module.prototypes.weight": prototypes,
    }
    torch.save(state, path)
    return path


def test_t9_a_published_swav_file_is_told_with_the_command_that_uses_it(tmp_path):
    path = swav_file(tmp_path / "swav_800ep_pretrain.pth.tar", torch.randn(30, 128))
    code, out, _ = call("inspect", "--json", str(path))
    told = json.loads(out)
    assert (code, told["format"], told["keys"]) == (0, "torch zip", 321)
    assert (told["prefix"], told["arch"], told["matched"]) == (
        "module.",
        "torchvision/resnet50",
        1.0,
    )
    assert told["unsafe"] == []
    first = told["tensors"][0]
    assert first == {"name": "module.conv1.weight", "shape": [64, 3, 7, 7], "dtype": "float32"}
    assert len(told["tensors"]) == told["keys"]
    assert told["unused"] == {"projection_head": 2, "prototypes": 1}
    assert "no commercial use" in told["licence"]
    assert told["commands"] == [
        f"unfreeze finetune DATA --weights {path} --arch torchvision/resnet50 --out RUN",
        f"unfreeze pretrain DATA --init {path} --arch torchvision/resnet50 "
        "--nmb-prototypes 30 --out RUN",
    ]


def test_t18_identical_prototypes_of_a_file_are_reported(tmp_path):
    torch.manual_seed(0)
    prototypes = torch.randn(40, 128)
    prototypes[3] = 2 * prototypes[9]
    found = unfreeze.inspect(swav_file(tmp_path / "w.pth", prototypes))
    assert found.prototypes == [
        {"name": "module.prototypes.weight", "count": 40, "width": 128, "near_identical": 2}
    ]
    assert "40 of dimension 128, 2 near-identical (cosine > 0.999)" in str(found)


def test_for_people_it_is_a_table_and_the_next_command(tmp_path):
    torch.save({"epoch": 9, "state_dict": constant("resnet18", "backbone.")}, tmp_path / "w.pth")
    code, out, err = call("inspect", str(tmp_path / "w.pth"))
    assert (code, err) == (0, "")
    for part in (
        "torch zip, in state_dict",
        "torchvision/resnet18: 100.0% of its backbone, no head of the standard size",
        "epoch 9",
        "layer4       30  8,398,853",
        f"unfreeze finetune DATA --weights {tmp_path / 'w.pth'} --arch torchvision/resnet18",
    ):
        assert part in " ".join(out.replace("\\\n", " ").split()) or part in out, part


def test_the_command_that_it_names_works(tmp_path, coloured):
    data = coloured("data", {"red": 4, "blue": 4})
    state = {f"net.{n}": t for n, t in build("unfreeze/tiny").state_dict().items()}
    torch.save(state, tmp_path / "a file.pth")
    (command,) = unfreeze.inspect(tmp_path / "a file.pth").commands
    words = shlex.split(command.replace("DATA", str(data)).replace("RUN", str(tmp_path / "run")))
    assert words[0] == "unfreeze"
    code, out, _ = call(*words[1:], "--epochs", "1", "--device", "cpu", "--json")
    assert code == 0 and json.loads(out)["weights_matched"] == 1.0


def test_our_own_runs_are_read_whole(tmp_path, coloured):
    options = {"epochs": 1, "limit": 64, "nmb_prototypes": 8, "device": "cpu"}
    unfreeze.pretrain("digits", out=str(tmp_path / "swav"), **options)
    for place in (
        "swav",
        "swav/model",
        "swav/model/model.safetensors",
        "swav/checkpoints/last.ckpt",
    ):
        found = unfreeze.inspect(tmp_path / place)
        assert (found.arch, found.matched) == ("unfreeze/tiny", 1.0), place
        assert found.format == ("torch zip" if "last" in place else "unfreeze model")
    whole = unfreeze.inspect(tmp_path / "swav")
    assert [one["count"] for one in whole.prototypes] == [8]
    assert any("--nmb-prototypes 8" in command for command in whole.commands)
    assert unfreeze.inspect(tmp_path / "swav/model").prototypes == []
    # a run that has not ended has its last checkpoint only
    (tmp_path / "swav/model").rename(tmp_path / "elsewhere")
    assert unfreeze.inspect(tmp_path / "swav").file.endswith("last.ckpt")
    data = coloured("data", {"red": 4, "blue": 4})
    unfreeze.finetune(str(data), out=str(tmp_path / "parts"), weights="none", arch="unfreeze/tiny",
                      epochs=1, device="cpu")  # fmt: skip
    found = unfreeze.inspect(tmp_path / "parts")
    assert found.commands == [f"unfreeze predict {tmp_path / 'parts'} IMAGE..."]
    assert found.matched == 1.0


def test_what_is_readable_but_unknown_is_no_error(tmp_path):
    save_file({"a.b.weight": torch.zeros(3, 4), "a.c.bias": torch.zeros(3, dtype=torch.float16)},
              tmp_path / "w.safetensors")  # fmt: skip
    code, out, _ = call("inspect", "--json", str(tmp_path / "w.safetensors"))
    told = json.loads(out)
    assert (code, told["arch"], told["matched"], told["keys"]) == (0, None, 0.0, 2)
    assert told["prefix"] == "a." and told["commands"] == []
    assert told["tensors"][1] == {"name": "a.c.bias", "shape": [3], "dtype": "float16"}


def test_half_a_network_names_the_closest_or_the_flag(tmp_path):
    torch.save(constant("resnet18", drop=("layer4", "fc.")), tmp_path / "w.pth")
    found = unfreeze.inspect(tmp_path / "w.pth")
    assert found.arch is None and "torchvision/resnet18, 24.9% of its backbone" in found.closest
    torch.save(constant("resnet18", drop=("layer3", "fc.")), tmp_path / "w.pth")
    found = unfreeze.inspect(tmp_path / "w.pth")
    assert found.matched == pytest.approx(0.812, abs=0.001)
    assert "--allow-partial" in found.commands[0]
    assert {name.partition(".")[0] for name in found.missing} == {"layer3"}


def test_t14_a_detectors_backbone_and_a_small_stem_are_known(tmp_path):
    torch.save(constant("resnet50", "backbone.body."), tmp_path / "w.pth")
    found = unfreeze.inspect(tmp_path / "w.pth")
    assert (found.arch, found.prefix) == ("torchvision/resnet50", "backbone.body.")
    torch.save(constant("resnet18", "backbone.", stem="small"), tmp_path / "w.pth")
    found = unfreeze.inspect(tmp_path / "w.pth")
    assert found.stem == "small" and "--stem small" in found.commands[0]


def test_the_architecture_that_a_file_or_its_neighbour_names_is_believed_where_it_fits(tmp_path):
    state = constant("timm/resnet18")
    torch.save({"arch": "resnet18", "state_dict": state}, tmp_path / "w.pth")
    assert unfreeze.inspect(tmp_path / "w.pth").arch == "torchvision/resnet18"
    (tmp_path / "hub").mkdir()
    save_file({n: t.contiguous() for n, t in state.items()}, tmp_path / "hub/model.safetensors")
    (tmp_path / "hub/config.json").write_text('{"architecture": "timm/resnet18"}')
    assert unfreeze.inspect(tmp_path / "hub/model.safetensors").arch == "timm/resnet18"
    (tmp_path / "hub/config.json").write_text("{")
    assert unfreeze.inspect(tmp_path / "hub/model.safetensors").arch == "torchvision/resnet18"


class Runs:
    def __reduce__(self):
        return print, ("ran",)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_named_not_run_and_refused(tmp_path, zipped, capsys):
    torch.save({"a": torch.zeros(2), "b": Runs()}, tmp_path / "w.pth",
               _use_new_zipfile_serialization=zipped)  # fmt: skip
    code, out, err = call("inspect", "--json", str(tmp_path / "w.pth"))
    assert code == 4 and json.loads(out)["unsafe"] == ["builtins.print"]
    assert "could run code" in err and "state_dict()" in err
    assert capsys.readouterr().out == ""
    found = unfreeze.inspect(tmp_path / "w.pth")
    assert found.unsafe == ["builtins.print"] and isinstance(found.refused, WeightsError)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n", "LFS pointer"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 600, "HDF5"),
        (b"some words", "not a checkpoint"),
        (b"PK\x03\x04 and no more", "truncated"),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path, content, says):
    (tmp_path / "w.pth").write_bytes(content)
    code, out, err = call("inspect", str(tmp_path / "w.pth"))
    assert (code, out) == (4, "") and says in err


def test_a_file_that_is_not_there_is_refused(tmp_path):
    assert call("inspect", str(tmp_path / "none.pth"))[0] == 4
    assert call("inspect")[0] == 2
