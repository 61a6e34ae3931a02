"""Training on kept features is training on images: same numbers, same order, resumable."""

import itertools
import shutil
import signal
from functools import partial

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from unfreeze.checkpoints.state import load_state
from unfreeze.data.augment.multicrop import normalize
from unfreeze.data.images.preprocess import Preprocess
from unfreeze.data.index.index import build_index
from unfreeze.data.loading.dataset import ImageDataset
from unfreeze.data.loading.loader import Loader
from unfreeze.data.sources.builtin import ArraySource
from unfreeze.models.build import build
from unfreeze.models.head import replace_head
from unfreeze.runtime.console import QuietConsole
from unfreeze.runtime.run_folder import RunFolder
from unfreeze.transfer.augment import view_maker_of
from unfreeze.transfer.feature_cache.builder import CacheConfig, FeatureCache
from unfreeze.transfer.feature_cache.store import feature_cache_folder
from unfreeze.transfer.freezing.freeze import FreezeSchedule, select_frozen
from unfreeze.transfer.freezing.schedule import ACTIVATIONS, frozen_phases
from unfreeze.transfer.linear_sweep import LinearHeadSweep, SweepPlan, SweepTrial
from unfreeze.transfer.loss import TrainingConfig
from unfreeze.transfer.training_run import FinetuneTrainer, Run
from unfreeze.transfer.validation import ValidationSet

SIDE = 32
PLAIN = Preprocess(SIDE, SIDE)
SCHEDULE = ((0, "all"), (2, "stage:2"), (4, "none"))


def noisy(count, seed):
    draw = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    pixels = draw.integers(0, 200, (count, SIDE, SIDE, 3))
    pixels[np.arange(count), :, :, labels] += 50
    source = ArraySource("toy", pixels.astype(np.uint8), [str(n) for n in labels], [""] * count)
    return ImageDataset(build_index(source))


def started(arch):
    torch.manual_seed(0)
    if arch == "vit":
        shape = {"img_size": SIDE, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3}
        model = VisionTransformer(**shape, num_classes=7, drop_rate=0.3, proj_drop_rate=0.1)
        model.default_cfg = {"input_size": (3, SIDE, SIDE)}
    else:
        model = build(arch)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # statistics as of a trained network
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    head = replace_head(model, 3)
    return model.to(memory_format=torch.channels_last), head


class Heard(QuietConsole):
    def __init__(self):
        self.said, self.work = [], []

    def say(self, text):
        self.said.append(text)

    def progress(self, label, total, done=0):
        self.work.append((label, total))
        return super().progress(label, total, done)


@pytest.fixture
def make(tmp_path):
    """`make(name, arch, freeze, cached=True, ...)`: a trainer over 22 images, 9 held out."""

    def made(name, arch, freeze, *, cached, views=1, augment="none", memory=2**30, seed=3, **how):
        network, head = started(arch)
        steps = freeze if isinstance(freeze, tuple) else ((0, freeze),)
        frozen = [(first, select_frozen(network, spec, head=head)) for first, spec in steps]
        schedule = FreezeSchedule(tuple((first, frozenset(names)) for first, names in frozen))
        prepare = partial(normalize, mean=PLAIN.mean, std=PLAIN.std)
        make_views = view_maker_of(augment, PLAIN, seed)
        loader = Loader(noisy(22, 0), make_views, batch_size=8, seed=0, drop_last=False)
        holdout = ValidationSet(noisy(9, 1), PLAIN, prepare=prepare, budget=2**24)
        fit = TrainingConfig(**{"epochs": 3, "lr": 0.02, "checkpoint_every": 1, **how})
        feature_cache = None
        if cached:
            config = CacheConfig(
                mode=ACTIVATIONS,
                views=views,
                prepare=prepare,
                side=SIDE,
                precision=fit.precision,
                memory=memory,
                disk=2**30,
                about={"augment": augment, "seed": seed},
                train=lambda: "train",
                val=lambda: "val",
            )
            parts = frozen_phases(network, schedule, fit.epochs, head)
            feature_cache = FeatureCache(network, loader, holdout, config=config, phases=parts)
        return FinetuneTrainer(
            network,
            loader,
            fit,
            Run(_folder(tmp_path / name)),
            prepare=prepare,
            validate=partial(holdout.record, network),
            freeze=schedule,
            cache=feature_cache,
        )

    return made


def _folder(path):
    path.mkdir(exist_ok=True)
    return RunFolder(path)


def learnt(trainer):
    """Last weights (not the best), the numbers of the lines, what was chosen."""
    outcome = trainer.train_to_best(QuietConsole())
    last = load_state(trainer.run.file("checkpoints/last.ckpt"))["model"]
    lines = [(m["split"], m["step"], m["loss"], m["accuracy"]) for m in trainer.run.metrics()]
    return last, lines, outcome


def differing(left, right):
    return [name for name in right if not torch.equal(left[name], right[name])]


def close(left, right, share=1e-4):
    assert left.keys() == right.keys()
    for name in left:
        a, b = left[name].double(), right[name].double()
        assert (a - b).abs().max() <= share * max(1.0, float(a.abs().max())), name


@pytest.mark.parametrize(
    ("arch", "freeze"),
    [
        ("squeezenet1_1", "all"),  # convolution, ReLU, pooling: pooled features would not do
        ("resnet18", "all"),
        ("vit", "all"),  # dropout between the split and the head
        ("unfreeze/small", "stage:1"),
        ("unfreeze/small", "stage:2"),
        ("vit", "stage:1"),
        ("unfreeze/small", "regex:^stem|stage1|stage2.conv2"),  # a frozen layer inside a block
        ("unfreeze/small", SCHEDULE),
    ],
)
def test_cached_and_uncached_agree(make, arch, freeze):
    epochs = 5 if freeze is SCHEDULE else 2
    plain = learnt(make("plain", arch, freeze, cached=False, epochs=epochs))
    cached = learnt(make("cached", arch, freeze, cached=True, epochs=epochs))
    assert (
        len(list(feature_cache_folder().glob("*/*.safetensors"))) >= 2
    )  # or it was the plain loop again
    close(plain[0], cached[0])
    assert [line[:2] for line in plain[1]] == [line[:2] for line in cached[1]]
    assert np.allclose([x[2:] for x in plain[1]], [x[2:] for x in cached[1]], atol=1e-4)
    assert plain[2].best_epoch == cached[2].best_epoch


def test_the_frozen_part_sees_each_image_once_and_never_again(make):
    seen = []
    for name in ("run", "again"):
        trainer = make(name, "unfreeze/small", "all", cached=True, lr=0.5)
        trainer.network.stem.register_forward_hook(lambda m, x, y: seen.append(len(y)))
        trainer.train_to_best(QuietConsole())
    # the proof and the look at the type take two made-up images
    assert [count for count in seen if count > 2] == [22, 9]


def test_a_border_that_moves_has_its_store_cut_again(make):
    console = Heard()
    trainer = make("run", "unfreeze/small", SCHEDULE, cached=True, epochs=5)
    trainer.train_to_best(console)
    kept = [label for label, _ in console.work if label.startswith("caching")]
    assert kept == [
        *("caching mean, view 0", "caching mean, validation"),
        *("caching stage2, view 0", "caching stage2, validation"),
    ]
    assert trainer.cached is None  # in the last epoch everything learns


def test_views_are_those_of_the_plain_loops_first_epochs(make):
    options = {"augment": "photo", "epochs": 5}
    trainer = make("cached", "unfreeze/small", "all", cached=True, views=3, **options)
    cached = trainer.freezing.cache.at(0, QuietConsole(), lambda: False)
    everything = torch.arange(22)
    views = [cached.views[v].take(everything) for v in range(3)]
    assert not torch.allclose(views[0], views[1]) and not torch.allclose(views[1], views[2])
    plain = make("plain", "unfreeze/small", "all", cached=False, **options)
    for epoch in range(5):
        theirs, ours = (
            source.stream(3 * epoch, 3 * epoch + 3) for source in (plain.loader, cached)
        )
        for batch, other in zip(theirs, ours, strict=True):
            assert np.array_equal(batch.ids, other.ids) and batch.step == other.step
            assert torch.equal(batch.target, other.target)
            if epoch >= 3:
                continue
            with torch.inference_mode():
                features = cached.split_point.before(plain.task.prepare(batch.views[0]))
            assert torch.allclose(features, other.views[0], atol=1e-5)
    with_three = learnt(trainer)[0]
    # as many views as epochs: nothing differs from the plain loop
    close(learnt(plain)[0], learnt(make("five", "unfreeze/small", "all", cached=True, views=5,
                                        **options))[0])  # fmt: skip
    plain_weights = load_state(plain.run.file("checkpoints/last.ckpt"))["model"]
    assert (with_three["head.weight"] - plain_weights["head.weight"]).abs().max() > 1e-4


def stop_at(trainer, step):
    before = trainer.train_step

    def stepping(batch):
        loss = before(batch)
        if trainer.step + 1 == step:
            signal.raise_signal(signal.SIGTERM)
        return loss

    trainer.train_step = stepping


@pytest.mark.parametrize(
    ("arch", "freeze", "purge", "every"),
    [
        ("vit", "all", False, None),
        ("vit", "all", True, 1),
        ("unfreeze/small", SCHEDULE, True, None),
        ("unfreeze/small", SCHEDULE, False, 1),
    ],
)
def test_stopped_and_resumed_is_the_straight_run_bit_for_bit(make, arch, freeze, purge, every):
    how = {"cached": True, "epochs": 5, "augment": "photo", "views": 2, "checkpoint_every": every}
    straight = make("straight", arch, freeze, **how)
    wanted = learnt(straight)
    best = load_state(straight.run.file("checkpoints/best.ckpt"))["model"]
    for step in (4, 8):  # in the first phase and in the second, inside an epoch
        first = make(f"broken{step}", arch, freeze, **how)
        stop_at(first, step)
        assert first.train_to_best(QuietConsole()).interrupted
        if purge:
            shutil.rmtree(feature_cache_folder())
        second = make(f"broken{step}", arch, freeze, **how)
        second.load_state_dict(load_state(second.run.file("checkpoints/last.ckpt")))
        second.run.rewind_metrics(second.step)
        found = learnt(second)
        assert [
            name for name in wanted[0] if not torch.equal(found[0][name], wanted[0][name])
        ] == []
        written = load_state(second.run.file("checkpoints/best.ckpt"))["model"]
        assert [name for name in best if not torch.equal(written[name], best[name])] == []
        assert found[1] == wanted[1] and found[2].best_epoch == wanted[2].best_epoch


def test_stopped_while_features_are_computed_goes_on_after_the_last_chunk(make, monkeypatch):
    monkeypatch.setattr("unfreeze.data.cache.chunk_store.CHUNK_BYTES", 1)
    monkeypatch.setattr("unfreeze.transfer.feature_cache.builder.PASS_PIXELS", {"cpu": 1})
    wanted = learnt(make("straight", "unfreeze/small", "all", cached=True))
    shutil.rmtree(feature_cache_folder())
    first = make("broken", "unfreeze/small", "all", cached=True)
    rows = []
    row = type(first.freezing.cache)

    def stopping(self, images, precision):
        rows.append(len(images))
        if len(rows) == 2:
            signal.raise_signal(signal.SIGTERM)
        return before(self, images, precision)

    from unfreeze.transfer.feature_cache import builder as keeper_module

    before = keeper_module._PhaseCache._rows
    with monkeypatch.context() as patch:
        patch.setattr(keeper_module._PhaseCache, "_rows", stopping)
        assert first.train_to_best(QuietConsole()).interrupted and first.step == 0
    assert rows == [16, 6] and row is not None
    second = make("broken", "unfreeze/small", "all", cached=True)
    second.load_state_dict(load_state(second.run.file("checkpoints/last.ckpt")))
    console, passes = Heard(), []
    these = second.loader.these
    second.loader.these = lambda batches, epoch: (
        passes.append([len(b) for b in batches]) or these(batches, epoch)
    )
    second.freezing.cache.at(0, console, lambda: False)
    assert passes == []  # both chunks of the view were whole
    found = learnt(second)
    assert all(torch.equal(found[0][name], wanted[0][name]) for name in wanted[0])


def test_features_that_memory_does_not_hold_are_read_from_the_map(make, monkeypatch):
    wanted = learnt(make("held", "unfreeze/small", "stage:1", cached=True))
    mapped = make("mapped", "unfreeze/small", "stage:1", cached=True, memory=0)
    found = learnt(mapped)
    assert all(torch.equal(found[0][name], wanted[0][name]) for name in wanted[0])
    shutil.rmtree(feature_cache_folder())
    monkeypatch.setattr("unfreeze.data.cache.chunk_store.CHUNK_BYTES", 1)
    monkeypatch.setattr("unfreeze.transfer.feature_cache.builder.PASS_PIXELS", {"cpu": 1})
    cut = make("cut", "unfreeze/small", "stage:1", cached=True, memory=0)
    found = learnt(cut)
    close(found[0], wanted[0])
    assert len(cut.cached.views[0].kept.parts) == 2


def test_what_is_kept_in_bf16_is_what_the_plain_loop_computes(make):
    plain = learnt(make("plain", "unfreeze/small", "all", cached=False, precision="bf16"))
    trainer = make("cached", "unfreeze/small", "all", cached=True, precision="bf16")
    cached = learnt(trainer)
    close(plain[0], cached[0], share=2e-2)
    assert np.allclose([x[2] for x in plain[1]], [x[2] for x in cached[1]], atol=2e-2)
    [batch] = trainer.loader.these([np.arange(22)], 0)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        features = trainer.cached.split_point.before(trainer.task.prepare(batch.views[0]))
    kept = trainer.cached.views[0].take(torch.arange(22))
    assert kept.dtype == torch.bfloat16 and torch.equal(kept, features)
    assert trainer.cached.held_out.take(torch.arange(9)).dtype == torch.float32


@pytest.mark.parametrize(
    ("arch", "optimizer", "rates"),
    [
        ("vit", "sgd", (0.02, 0.2)),  # with dropout before the head
        ("unfreeze/small", "adamw", (1e-3, 1e-2)),
        ("unfreeze/small", "lars", (1.0, 3.0)),
    ],
)
def test_a_head_of_the_sweep_is_trained_as_if_it_were_alone(make, arch, optimizer, rates):
    how = {"cached": True, "optimizer": optimizer, "warmup_epochs": 1}
    first = make("grid", arch, "all", **how)
    trials = [SweepTrial(rate, decay) for rate in rates for decay in (1e-4, 1e-1)]
    trials.insert(1, SweepTrial(1e18, 0.0))  # it diverges, alone
    cached = first.freezing.cache.at(0, QuietConsole(), lambda: False)
    grid = LinearHeadSweep(first.network, cached, SweepPlan(trials, epochs=3), first.task.fit)
    name = cached.split_point.learner
    untouched = first.network.get_submodule(name).weight.detach().clone()
    found = grid.run(QuietConsole(), lambda: False)
    assert torch.equal(first.network.get_submodule(name).weight, untouched)
    chosen = [place for place, trial in enumerate(found) if trial.lr != 1e18]
    for place in chosen:
        trial = found[place]
        pair = {"lr": trial.lr, "weight_decay": trial.weight_decay}
        last, _, outcome = learnt(make(f"alone{place}", arch, "all", **how, **pair))
        ours = {"w": grid.weights[place].detach(), "b": grid.biases[place].detach()}
        close({"w": last[f"{name}.weight"], "b": last[f"{name}.bias"]}, ours)
        assert (trial.epoch, trial.accuracy) == (outcome.best_epoch, outcome.val_accuracy)
    heads = [grid.weights[place] for place in chosen]
    assert not any(torch.equal(a, b) for a, b in itertools.pairwise(heads))
