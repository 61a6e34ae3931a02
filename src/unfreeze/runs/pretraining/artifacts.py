"""Files of a pretraining run beside its checkpoints: config.toml, views.npz, model/."""

from functools import partial
from typing import Any

import numpy as np
import torch

from unfreeze import __version__
from unfreeze.checkpoints.model_file import ModelCard, save_model
from unfreeze.config.layering import as_dict, to_toml
from unfreeze.config.pretrain import PretrainSettings
from unfreeze.data.augment.multicrop import MultiCropTransform
from unfreeze.data.images.preprocess import Preprocess
from unfreeze.models.load_weights import LoadedWeights
from unfreeze.runs.pretraining.data import UnlabelledDataset
from unfreeze.runs.readback import check_names_read_back
from unfreeze.runtime.after_run import warn_on_failure
from unfreeze.runtime.atomic import replacing, write_text
from unfreeze.runtime.console import Console
from unfreeze.runtime.run_folder import RESULT, RunFolder
from unfreeze.runtime.threads import processors
from unfreeze.swav.auto_recipe import view_specs
from unfreeze.swav.device_context import evaluation_preprocess
from unfreeze.swav.prototype_images import make_gallery, save_gallery
from unfreeze.swav.trainer import PretrainTrainer

GALLERY_IMAGES = 4_000


def facts_of(trainer: PretrainTrainer, dataset: UnlabelledDataset) -> dict[str, Any]:
    """The table `facts` of config.toml: versions, device, sizes."""
    plan, compute = trainer.plan, trainer.place
    return {
        "unfreeze": __version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "workers": trainer.loader.workers,
        "processors": processors(),
        "processes": trainer.processes.world,
        "device": str(compute.device),
        "precision": compute.precision,
        "store": dataset.images.held,
        "views": plan.settings.views_on,
        "images": len(dataset.train),
        "side": dataset.side,
        "fingerprint": dataset.fingerprint,
        "steps": plan.steps,
        "steps_per_epoch": plan.steps_per_epoch,
    }


def write_initial_config(run: RunFolder, settings: PretrainSettings) -> None:
    """Write config.toml with the given settings, so that a run stopped before step 0 can resume."""
    config = run.file("config.toml")
    if not config.exists():
        write_text(config, to_toml(as_dict(settings), {}))


def write_start(
    trainer: PretrainTrainer,
    dataset: UnlabelledDataset,
    reasons: dict[str, str],
    extra: dict[str, dict[str, Any]],
) -> None:
    """Write config.toml (with `more` tables), problems.csv, split.csv and views.npz."""
    run, plan = trainer.run, trainer.plan
    run.file(RESULT).unlink(missing_ok=True)  # a resumed run is not finished
    tables: dict[str, dict[str, Any]] = {
        "reasons": reasons,
        "facts": facts_of(trainer, dataset),
        **extra,
    }
    write_text(run.file("config.toml"), to_toml(as_dict(plan.settings), tables))
    dataset.write(run)
    check_names_read_back(run, as_dict(plan.settings), dataset.rows(), dataset.problems)
    positions = dataset.train[:8]
    cut = MultiCropTransform(plan.settings.seed, view_specs(plan.settings))
    views = cut([dataset.images[int(i)] for i in positions], positions, 0)
    large = [v.numpy() for v in views if v.shape == views[0].shape]
    with replacing(run.file("views.npz")) as path, path.open("wb") as stream:
        np.savez_compressed(stream, views=np.stack(large, 1))


def write_model(
    trainer: PretrainTrainer,
    dataset: UnlabelledDataset,
    loaded: LoadedWeights | None,
    console: Console,
) -> None:
    """Write model/ (last epoch or best checkpoint) and the images nearest to each prototype."""
    run, plan = trainer.run, trainer.plan
    s, model, compute = plan.settings, trainer.model, trainer.place
    preprocess = evaluation_preprocess(s)
    best = trainer.watch.best if s.keep == "best" else None
    card = ModelCard(
        kind="backbone",
        arch=s.arch or "",
        stem=s.stem,
        preprocess=preprocess.as_dict(),
        provenance={
            "verb": "pretrain",
            "method": s.method,
            "epochs": best.epoch if best else s.epochs,
            "steps": best.step if best else trainer.step,
            "images": len(dataset.train),
            "fingerprint": dataset.fingerprint,
            "init": loaded.source if loaded else "none",
            **({"licence": loaded.licence} if loaded and loaded.licence else {}),
            "seed": s.seed,
        },
    )
    save_model(run.file("model"), model.backbone.state_dict(), card)
    if not trainer.step:
        return
    positions = dataset.train[:GALLERY_IMAGES]
    cut = partial(_views_of, dataset, preprocess, positions)
    how: dict[str, Any] = {"device": compute.device, "mean": compute.mean, "std": compute.std}
    with warn_on_failure("The images nearest to each prototype could not be written", run, console):
        gathered = make_gallery(model, cut, len(positions), **how)
        save_gallery(run.file("prototypes.npz"), gathered, cut)


def _views_of(
    dataset: UnlabelledDataset, preprocess: Preprocess, positions: Any, indices: Any
) -> Any:
    return np.stack([preprocess.pixels(dataset.images[int(positions[i])]) for i in indices])
