"""The verb `swav`: the reference's command line is understood, and its files are there."""

import contextlib
import dataclasses
import io
import json
import shlex
import signal
import tomllib

import numpy as np
import pytest
import torch

from unfreeze.cli.main import main
from unfreeze.cli.parser import parse
from unfreeze.commands import swav
from unfreeze.commands.swav import run_swav, translate
from unfreeze.config.layering import build
from unfreeze.config.main_swav import ReferenceSettings
from unfreeze.config.pretrain import PretrainSettings
from unfreeze.data.augment.multicrop import MEAN, STD
from unfreeze.errors import DataError, Interrupted, UnfreezeError, UsageError, WeightsError
from unfreeze.models.build import build as network
from unfreeze.models.build import canonical_arch
from unfreeze.models.head import remove_head
from unfreeze.runtime.console import QuietConsole
from unfreeze.runtime.terminal import Environment
from unfreeze.swav.auto_recipe import plan
from unfreeze.swav.dataset_stats import DatasetStats

CPU = torch.device("cpu")
# the flags of the reference's script for 200 epochs with small batches
SCRIPT = shlex.split("""
--data_path imagenet/train --nmb_crops 2 6 --size_crops 224 96 --min_scale_crops 0.14 0.05
--max_scale_crops 1. 0.14 --crops_for_assign 0 1 --temperature 0.1 --epsilon 0.05
--sinkhorn_iterations 3 --feat_dim 128 --nmb_prototypes 3000 --queue_length 3840
--epoch_queue_starts 15 --epochs 200 --batch_size 64 --base_lr 0.6 --final_lr 0.0006
--freeze_prototypes_niters 5005 --wd 0.000001 --warmup_epochs 0 --dist_url tcp://node:40000
--arch resnet50 --use_fp16 true --sync_bn pytorch --dump_path experiments/swav
""")


def settings(**given):
    return build(ReferenceSettings, {"data_path": "pics", **given})


def test_every_flag_of_the_reference_with_its_default():
    made = dataclasses.asdict(parse("swav", []))
    assert made == {
        "config": None,
        "json": False,
        "debug": False,
        "on_collapse": "stop",  # ours
        "init": "none",
        "data_path": "",
        "nmb_crops": (2,),
        "size_crops": (224,),
        "min_scale_crops": (0.14,),
        "max_scale_crops": (1.0,),
        "crops_for_assign": (0, 1),
        "temperature": 0.1,
        "epsilon": 0.05,
        "sinkhorn_iterations": 3,
        "feat_dim": 128,
        "nmb_prototypes": 3000,
        "queue_length": 0,
        "epoch_queue_starts": 15,
        "epochs": 100,
        "batch_size": 64,
        "base_lr": 4.8,
        "final_lr": 0.0,
        "freeze_prototypes_niters": 313,
        "wd": 1e-6,
        "warmup_epochs": 10,
        "start_warmup": 0.0,
        "arch": "resnet50",
        "hidden_mlp": 2048,
        "workers": 10,
        "checkpoint_freq": 25,
        "use_fp16": True,
        "dump_path": ".",
        "seed": 31,
        "sync_bn": "pytorch",
        "syncbn_process_group_size": 8,
        # without effect: None, so that one knows whether they were given
        "improve_numerical_stability": None,
        **dict.fromkeys(("dist_url", "world_size", "rank", "local_rank")),
    }


def test_a_script_of_the_reference_is_its_recipe():
    made = translate(parse("swav", SCRIPT), CPU, processes=4)
    facts = DatasetStats(1_281_167, 375, "cuda", 2048, processes=4)
    mine = dataclasses.asdict(plan(made.settings, facts).settings)
    published = dataclasses.asdict(
        plan(PretrainSettings(recipe="swav-200ep-bs256"), facts).settings
    )
    other = {name for name in mine if mine[name] != published[name]}
    assert other == {"data", "out", "resume", "recipe", "seed", "workers", "arch", "tune"} | {
        "mean",
        "std",
    }
    assert (mine["mean"], mine["std"]) == (MEAN, STD)  # the default of a run without weights
    assert (mine["data"], mine["out"]) == (("imagenet/train",), "experiments/swav")
    assert (mine["arch"], mine["seed"], mine["workers"]) == ("resnet50", 31, 10)


@pytest.mark.parametrize("processes, batch", [(1, 64), (8, 512)])
def test_the_batch_is_that_of_each_process(processes, batch):
    made = translate(parse("swav", SCRIPT), CPU, processes).settings
    assert made.batch_size == batch and made.queue_length == 3840 // batch * batch


@pytest.mark.parametrize(
    "word, kept", [("pytorch", "all"), ("apex", "groups"), ("no", "none"), ("False", "none")]
)
def test_sync_bn_in_the_references_words(word, kept):
    assert translate(settings(sync_bn=word), CPU).settings.sync_bn == kept


def test_what_a_launcher_adds_is_taken_and_named_once():
    words = shlex.split(
        "--data_path pics --local-rank=3 --rank 0 --world_size -1 --sync_bn apex "
        "--syncbn_process_group_size 8 --improve_numerical_stability true"
    )
    made = translate(parse("swav", words), CPU)
    assert parse("swav", ["--local_rank", "3"]).local_rank == 3
    said = [note for note in made.notes if "Ignored: " in note]
    assert len(said) == 1 and "log domain" in said[0]
    for flag in ("--local_rank", "--rank", "--world_size", "--improve_numerical"):
        assert flag in said[0]
    assert "dist_url" not in said[0]
    assert (made.settings.sync_bn, made.settings.syncbn_process_group_size) == ("groups", 8)
    assert translate(settings(use_fp16=False), CPU).notes == ()


def test_fp16_is_for_cuda_and_said_elsewhere():
    on_cuda = translate(settings(), torch.device("cuda"))
    assert (on_cuda.settings.precision, on_cuda.notes) == ("fp16", ())
    here = translate(settings(), CPU)
    assert here.settings.precision == "auto"
    assert "--use_fp16" in here.notes[0] and ("bf16" in here.notes[0] or "fp32" in here.notes[0])
    assert translate(settings(use_fp16="false"), CPU).settings.precision == "fp32"


@pytest.mark.parametrize(
    "asked, kept, said", [(3840, 3840, ""), (3900, 3840, "3840"), (60, 0, "off")]
)
def test_the_queue_is_whole_batches(asked, kept, said):
    made = translate(settings(queue_length=asked, batch_size=64, use_fp16=False), CPU)
    assert made.settings.queue_length == kept
    assert said in " ".join(made.notes) and bool(made.notes) == bool(said)


@pytest.mark.parametrize("width", [2, 4])
def test_the_script_of_a_wide_network_is_its_recipe(width):
    words = {
        2: "--batch_size 4096",
        4: "--batch_size 2560 --queue_length 2560 --epoch_queue_starts 0 --min_scale_crops .08 .08",
    }
    given = parse(
        "swav",
        shlex.split(f"""--data_path pics --nmb_crops 2 4 --size_crops 224 96
        --min_scale_crops 0.14 0.05 --max_scale_crops 1. 0.14 --epochs 400 --base_lr 4.8
        --final_lr 0.0048 --start_warmup 0.3 --hidden_mlp 8192 --arch resnet50w{width}
        {words[width]}"""),
    )
    facts = DatasetStats(1_281_167, 375, "cuda", 2048 * width)
    mine = dataclasses.asdict(plan(translate(given, CPU).settings, facts).settings)
    recipe = PretrainSettings(recipe=f"swav-w{width}-400ep")
    published = dataclasses.asdict(plan(recipe, facts).settings)
    other = {name for name in mine if mine[name] != published[name]}
    told = {"data", "out", "resume", "recipe", "seed", "workers", "precision", "arch", "tune"}
    told |= {"mean", "std"}
    assert other <= told
    assert canonical_arch(mine["arch"]) == published["arch"]


def test_a_run_shorter_than_its_warmup_only_rises_as_there():
    steps, start = 7, 0.25
    made = translate(settings(epochs=4, start_warmup=start, use_fp16=False), CPU)
    (said,) = made.notes
    assert said.startswith("--warmup_epochs 10 is more than --epochs 4") and "2.07" in said
    facts = DatasetStats(images=64 * steps, side=224, device="cpu")
    mine = plan(made.settings, facts)
    theirs = np.linspace(start, 4.8, 10 * steps)[: 4 * steps]  # of its ten epochs the first four
    rates = [mine.learning_rate(step) for step in range(mine.steps)]
    assert len(rates) == len(theirs) and np.allclose(rates, theirs, atol=0.04)
    assert translate(settings(epochs=0, use_fp16=False), CPU).notes == ()
    assert translate(settings(epochs=10, use_fp16=False), CPU).settings.base_lr == 4.8


def test_the_data_must_be_named(tmp_path):
    with pytest.raises(UsageError, match="--data_path"):
        run_swav(ReferenceSettings(dump_path=str(tmp_path)), QuietConsole())


def test_b1_another_programs_run_is_refused_and_kept(tmp_path):
    theirs = tmp_path / "checkpoint.pth.tar"
    theirs.write_bytes(b"theirs")
    with pytest.raises(WeightsError, match="a run of another program") as error:
        run_swav(settings(dump_path=str(tmp_path)), QuietConsole())
    assert f"--init {theirs}" in error.value.next_step
    assert [p.name for p in tmp_path.iterdir()] == [theirs.name]
    with pytest.raises(UsageError, match="is a file"):
        run_swav(settings(dump_path=str(theirs)), QuietConsole())


FLAGS = shlex.split("""--arch unfreeze/tiny --epochs 3 --batch_size 8 --workers 0 --use_fp16 false
--size_crops 16 --nmb_crops 2 --nmb_prototypes 8 --feat_dim 8 --hidden_mlp 16 --base_lr 0.6
--warmup_epochs 1 --queue_length 18 --epoch_queue_starts 1 --freeze_prototypes_niters 3
--checkpoint_freq 2 --dist_url env://""")


@pytest.fixture(scope="module")
def run(tmp_path_factory, colours):
    """(dump folder, images, exit code, result, what was said) of one run by the command line."""
    place = tmp_path_factory.mktemp("swav")
    data = colours(place / "images", {"red": 8, "blue": 8})
    dump = place / "new" / "dump"
    world = Environment(io.StringIO(), io.StringIO())
    words = ["swav", "--data_path", str(data), "--dump_path", str(dump), *FLAGS, "--json"]
    code = main(words, world)
    said = world.stderr.getvalue()
    assert code == 0, said
    return dump, data, json.loads(world.stdout.getvalue()), said


def test_the_files_of_both_are_there(run):
    dump, _, result, said = run
    assert (result["epochs"], result["steps"], result["images"], result["processes"]) == (
        3,
        6,
        16,
        1,
    )
    written = {str(p.relative_to(dump)) for p in dump.rglob("*") if p.is_file()}
    assert {"checkpoint.pth.tar", "checkpoints/last.ckpt", "model/model.safetensors"} <= written
    # every second epoch counted from 0, and the last one
    copies = {name for name in written if name.startswith("checkpoints/ckp-")}
    assert copies == {"checkpoints/ckp-0.pth", "checkpoints/ckp-2.pth"}
    assert not [name for name in written if name.endswith(".tmp")]
    assert said.count("Ignored: --dist_url (set by the launcher's environment variables).") == 1
    assert said.count("--queue_length 18 is rounded down to 16") == 1
    assert tomllib.loads((dump / "config.toml").read_text())["queue_length"] == 16


def test_the_checkpoint_is_the_references(run):
    dump, _, _, _ = run
    saved = torch.load(dump / "checkpoint.pth.tar", weights_only=True)
    assert set(saved) == {"epoch", "state_dict", "optimizer"} and saved["epoch"] == 3
    own = torch.load(dump / "checkpoints/last.ckpt", weights_only=True)
    tensors = saved["state_dict"]
    assert {"prototypes.weight", "projection_head.0.weight", "projection_head.3.bias"} <= set(
        tensors
    )
    assert not [name for name in tensors if name.startswith(("module.", "backbone."))]
    assert torch.equal(tensors["prototypes.weight"], own["model"]["prototypes.weight"])
    backbone = network("unfreeze/tiny")
    remove_head(backbone)
    mine = {n: t for n, t in tensors.items() if not n.startswith(("projection", "prototypes"))}
    backbone.load_state_dict(mine, strict=True)
    first = torch.load(dump / "checkpoints/ckp-0.pth", weights_only=True)
    assert first["epoch"] == 1
    assert saved["optimizer"]["param_groups"][0]["weight_decay"] == 1e-6


class StopsAfter(QuietConsole):
    """Asks the run to stop once it made `steps` steps."""

    def __init__(self, steps):
        self.left, self.said = steps, []

    def say(self, text):
        self.said.append(text)

    @contextlib.contextmanager
    def progress(self, label, total, done=0):
        def advance(steps, text=""):
            self.left -= steps if label == "pretrain" else 0
            if self.left == 0:
                signal.raise_signal(signal.SIGTERM)

        yield advance


def test_the_same_command_goes_on_exactly(run, tmp_path):
    straight, data, _, _ = run
    dump = tmp_path / "dump"
    dump.mkdir()
    (dump / "slurm-1.out").write_text("a log that was there before")
    (dump / "queue0.pth").write_bytes(b"a leftover queue is never read")
    given = parse("swav", ["--data_path", str(data), "--dump_path", str(dump), *FLAGS])
    with pytest.raises(Interrupted) as stopped:
        run_swav(given, StopsAfter(5))
    assert stopped.value.next_step == "Resume with the same command."
    assert torch.load(dump / "checkpoint.pth.tar", weights_only=True)["epoch"] == 2
    again = StopsAfter(99)
    assert run_swav(given, again).steps == 6
    assert any("Resuming from step 5" in line for line in again.said)
    for name in ("checkpoint.pth.tar", "checkpoints/ckp-2.pth"):
        a, b = (torch.load(f / name, weights_only=True) for f in (straight, dump))
        assert a["epoch"] == b["epoch"] == 3
        assert all(torch.equal(a["state_dict"][n], b["state_dict"][n]) for n in a["state_dict"])
    # a run that is done stays as it is, and what a kill cut short is written again
    (dump / "checkpoint.pth.tar").unlink()
    assert run_swav(given, QuietConsole()).steps == 6
    assert torch.load(dump / "checkpoint.pth.tar", weights_only=True)["epoch"] == 3


@pytest.mark.parametrize(
    "advice, said",
    [
        ("Free some space, then continue with --resume.", "continue with the same command."),
        ("Use another --out.", "Use another --dump_path."),
        ("Lower --base-lr, or use --precision fp32.", "or use --use_fp16 false."),
    ],
)
def test_advice_names_flags_that_this_verb_has(monkeypatch, tmp_path, advice, said):
    def fails(*_, **__):
        raise DataError("It broke.", advice)

    monkeypatch.setattr(swav, "run_pretrain", fails)
    with pytest.raises(DataError) as error:
        run_swav(settings(dump_path=str(tmp_path)), QuietConsole())
    assert error.value.next_step.endswith(said)


def test_other_settings_are_no_resume(run):
    dump, data, _, _ = run
    given = parse(
        "swav", ["--data_path", str(data), "--dump_path", str(dump), *FLAGS, "--epsilon=1"]
    )
    with pytest.raises(UnfreezeError, match=r"epsilon 0\.05 -> 1"):
        run_swav(given, QuietConsole())
