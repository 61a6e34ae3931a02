"""Only plain, finite numbers are taken for weights; everything else is refused by name."""

import warnings

import pytest
import torch
from safetensors.torch import save_file

from unfreeze.checkpoints.read import read_checkpoint
from unfreeze.checkpoints.tensor_values import damage_sign, quantisation_scales, why_unusable
from unfreeze.commands.inspect import inspect
from unfreeze.errors import WeightsError
from unfreeze.models.build import build
from unfreeze.models.load_weights import load_strict, load_weights

TINY = "unfreeze/tiny"
NAME = "stage3.conv2.weight"
STATE = build(TINY).state_dict()


def with_one(change):
    return STATE | {NAME: change(STATE[NAME])}


def _quantised(tensor):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch will drop them; files stay
        return torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)


def put(value):
    def change(tensor):
        other = tensor.clone()
        other.view(-1)[7] = value
        return other

    return change


ODD = {
    "NaN": (with_one(put(float("nan"))), "is not finite .*NaN"),
    "infinite": (with_one(put(float("-inf"))), "is not finite .*infinite"),
    "a flipped exponent": (with_one(put(1e37)), "an impossible weight"),
    "int8": (with_one(lambda t: (t * 100).to(torch.int8)), "holds int8"),
    "int32": (with_one(lambda t: (t * 100).to(torch.int32)), "holds int32"),
    "bool": (with_one(lambda t: t > 0), "holds bool"),
    "fp8": (with_one(lambda t: t.to(torch.float8_e4m3fn)), "holds float8_e4m3fn"),
    "quantised": (
        with_one(_quantised), "is quantised"),
    "sparse": (with_one(lambda t: t.to_sparse()), "is not dense"),
    "complex": (with_one(lambda t: t.to(torch.complex64)), "holds complex"),
    "meta": (with_one(lambda t: t.to("meta")), "no values"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # torch's own, of quantised tensors
@pytest.mark.parametrize("kind", ODD)
def test_what_holds_no_weights_is_refused_by_name(tmp_path, kind):
    state, says = ODD[kind]
    torch.save(state, tmp_path / "w.pth")
    model = build(TINY)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for partial in (False, True):
        with pytest.raises(WeightsError, match=rf"stage3\.conv2\.weight .*{says}"):
            load_weights(model, str(tmp_path / "w.pth"), arch=TINY, allow_partial=partial)
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())
    found = inspect(tmp_path / "w.pth")
    assert NAME in found.problem and found.commands == [] and found.arch == TINY


@pytest.mark.parametrize(
    "beside",
    [
        "stage3.conv2.SCB", "stage3.conv2.weight.SCB", "stage3.conv2.weight_scale",
        "stage3.conv2.scale_weight", "scaled_fp8", "stage3.conv2.weight_scale_inv",
        "stage3.conv2.qweight", "stage3.conv2.weight.absmax",
        "stage3.conv2.weight.quant_state.bitsandbytes__nf4", "stage3.conv2.zero_point",
    ],
)  # fmt: skip
def test_a_scale_beside_the_codes_gives_a_quantised_file_away(tmp_path, beside):
    # the codes may be of the very type of the weights
    save_file({n: t.clone() for n, t in STATE.items()} | {beside: torch.ones(1)},
              tmp_path / "w.safetensors")  # fmt: skip
    with pytest.raises(WeightsError, match=f"is quantised: {beside}"):
        load_weights(build(TINY), str(tmp_path / "w.safetensors"), arch=TINY)


def test_no_plain_network_looks_quantised():
    for arch in ("resnet18", "timm/vit_tiny_patch16_224", "timm/swinv2_tiny_window8_256"):
        with torch.device("meta"):
            assert quantisation_scales(build(arch).state_dict()) == []


def test_half_precision_whole_counts_and_what_no_entry_wants_are_fine(tmp_path):
    state = {n: t.bfloat16() if t.is_floating_point() else t for n, t in STATE.items()}
    state["mask"] = torch.full((3,), float("-inf"))  # of another program: nothing takes it
    torch.save(state, tmp_path / "w.pth")
    assert load_weights(build(TINY), str(tmp_path / "w.pth"), arch=TINY).share == 1.0
    count = torch.ones((), dtype=torch.int64)
    assert why_unusable(count, count) == ""


def test_a_saved_model_that_is_not_finite_is_refused():
    with pytest.raises(WeightsError, match=r"stage3\.conv2\.weight is not finite"):
        load_strict(build(TINY), with_one(put(float("nan"))))


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(0)
    return torch.randn(64, 32, 3, 3) * 0.02


def test_a_hole_in_the_middle_of_filters_is_a_scar(weights):
    for start, count in ((1000, 700), (288 * 5 + 40, 200), (0, 288 * 2 + 150)):
        hurt = weights.clone()
        hurt.view(-1)[start : start + count] = 0
        assert "zeros in a row in the middle of a filter" in damage_sign(hurt), (start, count)
    hurt = weights.clone()
    hurt.view(-1)[77] = 4e4
    assert "4.0e+04, where 99 % of its values are below" in damage_sign(hurt)


def test_what_people_do_to_weights_is_no_scar(weights):
    dead = weights.clone()
    dead[3:9] = 0  # whole filters
    faded = weights.clone()
    faded[3] *= 1e-9
    faded.view(-1)[288 * 3 + 20 : 288 * 5] = 0  # what half precision leaves of a dying one
    decayed = weights.clone()
    decayed[:50] *= 1e-12  # most filters dead, as weight decay leaves them
    pruned = weights * (torch.rand_like(weights) > 0.9)
    blocks = torch.block_diag(*torch.randn(6, 40, 200))
    for plain in (weights, dead, faded, decayed, pruned, blocks, torch.zeros(64, 64), torch.eye(64),
                  torch.ones(9), weights.half()):  # fmt: skip
        assert damage_sign(plain) == ""


@pytest.mark.parametrize("kind", ["legacy", "safetensors", "zip"])
def test_a_scar_refuses_only_files_without_a_checksum(tmp_path, kind):
    change = STATE[NAME].clone()
    change.view(-1)[1000:1500] = 0
    path = tmp_path / "w.safetensors"
    if kind == "safetensors":
        save_file({n: t.clone() for n, t in STATE.items()} | {NAME: change}, path)
    else:
        torch.save(STATE | {NAME: change}, path, _use_new_zipfile_serialization=kind == "zip")
    if kind == "zip":
        path = path.rename(tmp_path / "w.pth")
        assert load_weights(build(TINY), str(path), arch=TINY).share == 1.0
        return
    path = path if kind == "safetensors" else path.rename(tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"500 zeros in a row .* the file is damaged"):
        load_weights(build(TINY), str(path), arch=TINY)


@pytest.mark.parametrize("name", ["squeezenet1_1-imagenet.pth", "efficientnet-lite0-imagenet.pth",
                                  "minilm-l6/model.safetensors"])  # fmt: skip
def test_real_weights_have_no_scar(shared, name):
    tensors = read_checkpoint(shared / "weights" / name).tensors
    assert [name for name, tensor in tensors.items() if damage_sign(tensor)] == []
