"""Damaged checkpoints of six writers, offered as weights: how many are taken as whole.

    python benchmarks/damage.py --files 1000 --json damage.json

Each file is one that PyTorch, safetensors, Lightning or unfreeze itself writes, with a seeded
damage: bits flipped, the end cut off, a range zeroed, or two ranges (members of an archive, where
there are some) exchanged. What becomes of it:

- refused: an error of ours that names the file.
- unharmed: taken, and every value is what was written: the damage hit nothing that counts.
- unverified: taken with other values, and the account says that the format has no checksum.
- whole: taken with other values and not a word. There must be none of these.
- crashed: anything else than an error of ours. None of these either.

Exit code 1 if there is one of the last two.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
import zipfile
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from unfreeze.backbones.build import build
from unfreeze.backbones.weights import load_weights
from unfreeze.checkpoints.modelfile import ModelCard, load_model, save_model
from unfreeze.checkpoints.state import load_state, save_state
from unfreeze.errors import WeightsError

ARCH = "unfreeze/tiny"
CARD = ModelCard("backbone", ARCH, preprocess={"image_size": 16, "resize": 16})
DAMAGES = ("flip", "cut", "zero", "swap")


def network(seed):
    """Every entry of a small network as after training: nothing is 0 or 1."""
    torch.manual_seed(seed)
    model = build(ARCH)
    for name, entry in model.state_dict().items():
        if entry.is_floating_point():
            entry.add_(torch.rand_like(entry) * 0.1 + (0.5 if name.endswith("var") else 0.0))
        else:
            entry.fill_(117)
    return model


def optimizer_of(model):
    """The state of SGD with momentum after a step, which leaves the weights as they are."""
    made = torch.optim.SGD(model.parameters(), 0.0, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    made.step()
    return made.state_dict()


def torch_zip(folder, model):
    """`torch.save` as it is today."""
    torch.save(model.state_dict(), folder / "w.pth")


def torch_legacy(folder, model):
    """`torch.save` as it was before version 1.6."""
    torch.save(model.state_dict(), folder / "w.pth", _use_new_zipfile_serialization=False)


def safetensors(folder, model):
    """Anybody's safetensors."""
    save_file(model.state_dict(), folder / "w.safetensors", metadata={"format": "pt"})


def last_ckpt(folder, model):
    """The state of a run of ours."""
    state = {"kind": "finetune", "step": 7, "card": CARD.as_dict(), "model": model.state_dict()}
    save_state(folder / "last.ckpt", state | {"optimizer": optimizer_of(model)})


def model_folder(folder, model):
    """The model that travels: two files."""
    save_model(folder / "model", model.state_dict(), CARD)


def lightning(folder, model):
    """A checkpoint of PyTorch Lightning's kind."""
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    state = {"epoch": 3, "state_dict": state, "hyper_parameters": {"lr": 0.1, "arch": "tiny"}}
    torch.save(state | {"optimizer_states": [optimizer_of(model)]}, folder / "epoch=3.ckpt")


WRITERS = {
    "torch zip": torch_zip,
    "torch legacy": torch_legacy,
    "safetensors": safetensors,
    "last.ckpt": last_ckpt,
    "model/": model_folder,
    "lightning": lightning,
}


def damaged(path, how, draw):
    """Damage a file in place."""
    data = bytearray(path.read_bytes())
    if how == "flip":
        for _ in range(int(draw.choice([1, 1, 2, 8, 64]))):
            data[int(draw.integers(len(data)))] ^= 1 << int(draw.integers(8))
    elif how == "cut":
        del data[int(draw.integers(len(data))) :]
    elif how == "zero":
        start = int(draw.integers(len(data)))
        count = int(2 ** draw.uniform(3, 16))
        data[start : start + count] = bytes(len(data[start : start + count]))
    else:
        first, second, length = _ranges(path, len(data), draw)
        a, b = data[first : first + length], data[second : second + length]
        data[first : first + length], data[second : second + length] = b, a
    path.write_bytes(data)


def _ranges(path, size, draw):
    """(first, second, length) of two ranges of a file: members of an archive where there are."""
    if zipfile.is_zipfile(path) and draw.random() < 0.7:
        with zipfile.ZipFile(path) as archive:
            members = [one for one in archive.infolist() if one.file_size > 64]
            a, b = (members[int(i)] for i in draw.choice(len(members), 2, replace=False))
            places = []
            for member in (a, b):
                with archive.open(member) as file:
                    places.append(getattr(file, "_orig_compress_start"))  # noqa: B009
        return *places, min(a.file_size, b.file_size)
    length = int(2 ** draw.uniform(4, 14))
    starts = draw.integers(max(size - length, 1), size=2)
    return int(starts[0]), int(starts[1]), length


def outcome(folder, wanted):
    """What becomes of the files in a folder, and what was said."""
    (path,) = folder.iterdir()
    try:
        if path.name == "last.ckpt":  # as a run that goes on reads it
            _same(load_state(path)["model"], wanted)
        if path.name == "model":
            _same(load_model(path)[0], wanted)
        model = build(ARCH)
        loaded = load_weights(model, str(path), arch=ARCH, skip_head=False)
    except WeightsError as refusal:
        return "refused", refusal.sentence
    except Other as other:
        return "whole", str(other)
    except Exception as error:  # whatever it is, it is a fault of ours
        return "crashed", f"{type(error).__name__}: {error}"
    try:
        _same(model.state_dict(), wanted)
    except Other as other:
        said = any("no checksum" in note for note in loaded.notes)
        return ("unverified" if said else "whole"), str(other)
    return "unharmed", ""


class Other(Exception):
    """Values that are not what was written."""


def _same(found, wanted):
    for name, tensor in wanted.items():
        if name not in found or not torch.equal(found[name], tensor):
            raise Other(f"{name} has other values")


def main() -> None:
    """Counts by writer and damage."""
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--files", type=int, default=1000)
    ask.add_argument("--seed", type=int, default=0)
    ask.add_argument("--json")
    given = ask.parse_args()
    began = time.monotonic()
    model = network(given.seed)
    wanted = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    table, bad = defaultdict(Counter), []
    with tempfile.TemporaryDirectory() as place:
        whole = {name: Path(place) / f"{i}" for i, name in enumerate(WRITERS)}
        for name, write in WRITERS.items():
            whole[name].mkdir()
            write(whole[name], network(given.seed))
            found, said = outcome(whole[name], wanted)
            if found != "unharmed":
                sys.exit(f"{name} is not read even where it is whole: {said}")
        for n in range(given.files):
            draw = np.random.default_rng((given.seed, n))
            name = list(WRITERS)[n % len(WRITERS)]
            how = DAMAGES[n // len(WRITERS) % len(DAMAGES)]
            copy = Path(place) / "copy"
            shutil.copytree(whole[name], copy)
            files = sorted(path for path in copy.rglob("*") if path.is_file())
            damaged(files[int(draw.integers(len(files)))], how, draw)
            found, said = outcome(copy, wanted)
            table[name][f"{how} {found}"] += 1
            table[name][found] += 1
            if found in ("whole", "crashed"):
                bad.append({"file": n, "writer": name, "damage": how, "said": said})
            shutil.rmtree(copy)
    ends = Counter()
    for counts in table.values():
        ends.update({k: v for k, v in counts.items() if " " not in k})
    report = {
        "files": given.files,
        "seed": given.seed,
        "ends": dict(ends.most_common()),
        "writers": {name: dict(sorted(counts.items())) for name, counts in table.items()},
        "taken_as_whole": ends["whole"],
        "crashes": ends["crashed"],
        "bad": bad[:50],
        "torch": torch.__version__,
        "seconds": round(time.monotonic() - began, 1),
    }
    print(json.dumps(report, indent=1))
    if given.json:
        Path(given.json).write_text(json.dumps(report, indent=1) + "\n")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
