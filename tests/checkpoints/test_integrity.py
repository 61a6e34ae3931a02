"""What was changed after it was written is noticed, wherever a checksum can be."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from unfreeze.checkpoints.integrity import archive_fault, file_sha256, tensors_sha256
from unfreeze.checkpoints.model_file import (
    CARD,
    TENSORS,
    ModelCard,
    load_model,
    read_card,
    save_model,
    write_card,
)
from unfreeze.checkpoints.read import read_checkpoint
from unfreeze.errors import WeightsError

STATE = {"conv.weight": torch.randn(8, 3, 3, 3), "conv.bias": torch.randn(8)}
OURS = ModelCard("classifier", "unfreeze/tiny", classes=("a", "b"), preprocess={"image_size": 16})


def flipped(path, where, count=1, mask=0x40):
    data = bytearray(path.read_bytes())
    for place in range(where, where + count):
        data[place] ^= mask
    path.write_bytes(data)


@pytest.mark.parametrize("count", [1, 64])
def test_a_flipped_bit_in_an_archive_is_noticed(tmp_path, count):
    torch.save({"state_dict": STATE, "epoch": 3}, tmp_path / "w.pth")
    assert read_checkpoint(tmp_path / "w.pth").verified == "CRC-32"
    place = (tmp_path / "w.pth").read_bytes().index(STATE["conv.weight"].numpy().tobytes())
    flipped(tmp_path / "w.pth", place + 100, count)
    torch.load(tmp_path / "w.pth", weights_only=True)  # torch alone does not notice
    with pytest.raises(WeightsError, match=r"w\.pth is damaged: .*data/0 has a different checksum"):
        read_checkpoint(tmp_path / "w.pth")


def test_an_archive_without_checksums_is_read_and_not_called_verified(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(STATE, tmp_path / "w.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert archive_fault(tmp_path / "w.pth") == ("", False)
    assert read_checkpoint(tmp_path / "w.pth").verified == ""


def test_formats_without_checksums_are_not_called_verified(tmp_path):
    torch.save(STATE, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    save_file(STATE, tmp_path / "w.safetensors")
    for name in ("w.pth", "w.safetensors"):
        assert read_checkpoint(tmp_path / name).verified == ""


def test_our_own_safetensors_carry_a_digest_wherever_they_go(tmp_path):
    save_model(tmp_path / "model", STATE, OURS)
    shutil.copy(tmp_path / "model" / TENSORS, tmp_path / "alone.safetensors")
    found = read_checkpoint(tmp_path / "alone.safetensors")
    assert found.verified == "SHA-256" and set(found.meta) == {"format"}
    for path in (tmp_path / "alone.safetensors", tmp_path / "model" / TENSORS):
        flipped(path, path.stat().st_size - 9)
        with pytest.raises(WeightsError, match="checksum of its tensors does not match"):
            read_checkpoint(path)
    with pytest.raises(WeightsError, match="checksum of its tensors does not match"):
        load_model(tmp_path)


def test_a_card_that_was_changed_is_refused_unless_that_is_said(tmp_path):
    save_model(tmp_path, STATE, OURS)
    written = json.loads((tmp_path / CARD).read_text())
    (tmp_path / CARD).write_text(json.dumps(written | {"classes": ["b", "a"]}))
    with pytest.raises(WeightsError, match="damaged or edited") as refused:
        load_model(tmp_path)
    assert '"checksum": null' in refused.value.next_step
    edited = written | {"classes": ["b", "a"], "checksum": None}
    (tmp_path / CARD).write_text(json.dumps(edited))
    assert load_model(tmp_path)[1].classes == ("b", "a")
    (tmp_path / CARD).write_text(json.dumps({k: v for k, v in written.items() if k != "checksum"}))
    with pytest.raises(WeightsError, match="damaged or edited"):
        read_card(tmp_path)


def test_a_card_with_names_of_any_bytes_is_known_again(tmp_path):
    save_model(tmp_path, STATE, replace(OURS, classes=("\udce9", "고양이")))
    assert load_model(tmp_path)[1].classes == ("\\xe9", "고양이")


def test_tensors_of_another_run_are_not_taken_for_these(tmp_path):
    save_model(tmp_path / "a", STATE, OURS)
    save_model(tmp_path / "b", {n: t + 1 for n, t in STATE.items()}, OURS)
    shutil.copy(tmp_path / "b" / TENSORS, tmp_path / "a" / TENSORS)
    with pytest.raises(WeightsError, match=r"not the file that .* beside it"):
        load_model(tmp_path / "a")


@pytest.mark.parametrize("writes", [1, 2])
def test_a_crash_while_a_model_is_replaced_leaves_a_pair_that_fits(tmp_path, monkeypatch, writes):
    """`writes`: how many of the three files are written before the end."""
    save_model(tmp_path, STATE, OURS)
    left = [writes]
    from unfreeze.checkpoints import model_file

    plain = model_file.replacing

    def counted(path):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return plain(path)

    monkeypatch.setattr(model_file, "replacing", counted)
    monkeypatch.setattr("unfreeze.runtime.atomic.replacing", counted)
    new = {name: tensor + 1 for name, tensor in STATE.items()}
    with pytest.raises(KeyboardInterrupt):
        save_model(tmp_path, new, OURS)
    found, _ = load_model(tmp_path)
    assert tensors_sha256(found) == tensors_sha256(new if writes == 2 else STATE)


def test_a_digest_sees_names_types_shapes_and_values():
    base = {"a": torch.zeros(4), "b": torch.ones((), dtype=torch.int64)}
    same = {"b": torch.ones((), dtype=torch.int64), "a": torch.zeros(4)}
    assert tensors_sha256(base) == tensors_sha256(same)
    for other in (
        {**base, "a": torch.zeros(2, 2)},
        {**base, "a": torch.zeros(4, dtype=torch.int32)},
        {**base, "a": torch.tensor([0.0, 0, 0, -0.0])},
        {"c": base["a"], "b": base["b"]},
    ):
        assert tensors_sha256(other) != tensors_sha256(base)
    assert (
        len(tensors_sha256({"x": torch.ones(3, dtype=torch.bfloat16), "e": torch.empty(0)})) == 64
    )


def test_a_rewritten_card_keeps_the_digests_of_its_tensors(tmp_path):
    save_model(tmp_path, STATE, OURS)
    _, card = load_model(tmp_path)
    write_card(tmp_path, card)
    assert load_model(tmp_path)[1] == card


def test_a_published_file_is_compared_with_the_hash_in_its_name(tmp_path):
    old = {"_use_new_zipfile_serialization": False}  # as torchvision's older files are
    path = tmp_path / "resnet18-f37072fd.pth"
    torch.save(STATE, path, **old)
    with pytest.raises(WeightsError, match="not the published file of that name") as refused:
        read_checkpoint(path)
    assert "another name" in refused.value.next_step
    torch.save(STATE, tmp_path / "mine-20240101.pth", **old)  # no hash, though it looks like one
    assert read_checkpoint(tmp_path / "mine-20240101.pth").verified == ""


def test_a_blob_of_the_hub_is_compared_with_its_name(tmp_path):
    save_file(STATE, tmp_path / "blob")
    blob = tmp_path / file_sha256(tmp_path / "blob")
    (tmp_path / "blob").rename(blob)
    (tmp_path / "model.safetensors").symlink_to(blob)
    assert read_checkpoint(tmp_path / "model.safetensors").verified == "SHA-256"
    flipped(blob, blob.stat().st_size - 9)
    with pytest.raises(WeightsError, match="does not begin with"):
        read_checkpoint(tmp_path / "model.safetensors")
