"""Prepares a pretraining run before it writes a file: images, network, plan, trainer."""

import copy
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from unfreeze.config.pretrain import PretrainSettings
from unfreeze.data.augment.multicrop import MEAN, STD
from unfreeze.data.cache.policy import PixelCachePlan
from unfreeze.data.images.intensity import format_intensity, parse_intensity
from unfreeze.data.images.preprocess import Preprocess
from unfreeze.data.index.index import Index
from unfreeze.data.loading.device_loader import DeviceImages, bytes_held
from unfreeze.data.loading.loader import Loader
from unfreeze.data.loading.sample import DatasetSample
from unfreeze.errors import UsageError, resume_command
from unfreeze.models.norm import batchnorm_process_group, convert_sync_batchnorm
from unfreeze.models.precision import pick_training_precision
from unfreeze.models.shape_trace import forward_flops, trace_forward
from unfreeze.optim.optimizer import optimizer_for_network
from unfreeze.runs.pretraining.autotune import plan_line
from unfreeze.runs.pretraining.data import UnlabelledDataset, list_images
from unfreeze.runs.pretraining.dry_run import show_plan
from unfreeze.runs.pretraining.evaluation_data import evaluation_sample
from unfreeze.runs.pretraining.initialize import (
    PretrainStart,
    has_swav_head,
    initial_network,
    initialise_stem,
)
from unfreeze.runs.pretraining.resume import describe_run
from unfreeze.runs.pretraining.teacher import Teacher, load_teacher, terms_of
from unfreeze.runs.pretraining.teacher_features import teacher_features, teacher_reasons
from unfreeze.runs.readback import check_same_images
from unfreeze.runtime.console import Console
from unfreeze.runtime.device import image_memory_budget, pick_device
from unfreeze.runtime.distributed import Distributed
from unfreeze.runtime.run_folder import RunFolder
from unfreeze.runtime.time_limit import TimeLimit
from unfreeze.swav.auto_recipe import PretrainRecipe, plan, view_specs
from unfreeze.swav.dataset_stats import DatasetStats
from unfreeze.swav.presets import check_method, with_recipe
from unfreeze.swav.throughput import StepConfig
from unfreeze.tasks.base import PretrainTask, TaskContext, TeacherFeatures
from unfreeze.tasks.registry import pretrain_task
from unfreeze.training.callbacks import (
    Callback,
    EpochCallback,
    FeatureCollapse,
    OnEpoch,
    PeriodicCheckpoints,
)
from unfreeze.training.compute import ComputeContext
from unfreeze.training.early_stopping import StopBelowStart
from unfreeze.training.feature_evaluation import (
    EvaluationSample,
    FeatureEvaluator,
    enough_labels,
)
from unfreeze.training.trainer import PretrainTrainer, TrainingPlan
from unfreeze.transfer.plan import check_normalisation, layer_lr_scales

_NOWHERE = RunFolder("", writes=False)


@dataclass(frozen=True)
class PreparedPretraining:
    """The listed images, the initial network and the plan.

    `hold`: the pixel cache. `reasons`: why a setting has its value. `teacher`: of `--teacher`.
    """

    found: UnlabelledDataset
    start: PretrainStart
    facts: DatasetStats
    plan: PretrainRecipe
    compute: ComputeContext
    hold: PixelCachePlan
    reasons: dict[str, str]
    teacher: Teacher | None = None

    def checked(
        self, processes: Distributed, console: Console, deadline: TimeLimit
    ) -> UnlabelledDataset:
        """The images after decoding each once; verified to be the same in every process.

        With the features of the teacher, if there is one.
        """
        s, side = self.start.settings, _largest(self.plan)
        # rank 0 first: the others read its pixel cache from disk
        dataset = processes.rank_zero_first(lambda: self.found.checked(s, side, self.hold, console))
        check_same_images(processes, dataset.index)
        if self.teacher is None:
            return dataset
        features = self.features_of(dataset.index, processes, console, deadline)
        return replace(dataset, teacher=features)

    def features_of(
        self,
        index: Index,
        processes: Distributed,
        console: Console,
        deadline: TimeLimit | None = None,
    ) -> TeacherFeatures:
        """The teacher's features of all images of an index. Collective."""
        if self.teacher is None:
            raise ValueError("there is no teacher")
        return teacher_features(
            self.teacher, index, self.compute.device, processes, console, deadline
        )

    def evaluation_sample(
        self, s: PretrainSettings, dataset: UnlabelledDataset, console: Console
    ) -> EvaluationSample:
        """The images of the feature evaluations, for rank 0 alone."""
        features = partial(self.features_of, processes=Distributed(), console=console)
        teacher = None if self.teacher is None else features
        return evaluation_sample(s, dataset, self.found.index, console, teacher)

    def planned(self, dataset: UnlabelledDataset) -> PretrainRecipe:
        """The plan for the usable images; the first layer gets its initial filters from them."""
        size = bytes_held(dataset.images, dataset.train)
        device_bytes = math.inf if size is None else size
        chosen = plan(
            self.start.settings, replace(self.facts, images=len(dataset.train), held=device_bytes)
        )
        self.reasons.update(
            initialise_stem(self.start, chosen.settings, dataset.images, dataset.train)
        )
        return chosen

    def operations(self, chosen: PretrainRecipe, processes: int) -> float | None:
        """FLOPs of the backbone's forward pass over one process's part of a batch.

        None if the network cannot be traced on the meta device.
        """
        s, network = chosen.settings, self.start.network
        crops = Counter(spec.size for spec in view_specs(s))
        try:
            each = sum(count * forward_flops(network, size) for size, count in crops.items())
        except UsageError:  # a crop size that the network does not support: an error of its own
            return None
        return each * (s.batch_size or 0) / processes / s.accumulate

    @property
    def terms(self) -> dict[str, str]:
        """Licences that the weights are bound to, and the teacher."""
        loaded = self.start.loaded
        return terms_of(loaded, self.teacher)

    def task(
        self, s: PretrainSettings, dataset: UnlabelledDataset, processes: Distributed
    ) -> PretrainTask:
        """The task of `--method` around a copy of the initial network, on the run's device."""
        task = pretrain_task(s.method)(
            TaskContext(
                copy.deepcopy(self.start.network),  # trainers that measure start from it too
                self.start.width,
                s,
                dataset.train,
                processes,
                dataset.teacher,
            )
        )
        if s.sync_bn in ("all", "groups"):
            size = s.syncbn_process_group_size if s.sync_bn == "groups" else 0
            group = batchnorm_process_group(size, processes.world, processes.rank)
            task.model = convert_sync_batchnorm(task.model.to(self.compute.device), group)
        return task

    def trainer(
        self,
        chosen: PretrainRecipe,
        way: StepConfig,
        *,
        dataset: UnlabelledDataset,
        processes: Distributed,
        held: DeviceImages | None,
        run: RunFolder = _NOWHERE,
        options: "CallbackOptions | None" = None,
    ) -> PretrainTrainer:
        """A trainer with the settings of `way`; without `options` it measures steps only."""
        s = chosen.settings
        compute = replace(self.compute, precision=way.precision, layout=way.layout)
        task = self.task(s, dataset, processes)
        if options is None:
            task.for_timing()
        else:
            options = replace(options, terms=self.terms)
        if not processes.is_rank_zero:
            torch.manual_seed(s.seed + 7919 * processes.rank)  # other dropout masks on each rank
        loader = dataset.loader(s, processes, workers=way.workers, held=held)
        loader.pinned = compute.device.type == "cuda"
        return build_trainer(
            task, chosen, loader, run, compute, processes=processes, options=options
        )


@dataclass(frozen=True)
class CallbackOptions:
    """What the trainer of a run has, and one that measures steps has not.

    `fingerprint`: of rank 0's data; `sample`: images of the feature evaluations, on rank 0 alone;
    `terms`: of the weights it begins with and of its teacher (`ModelCard.terms`).
    """

    fingerprint: str = ""
    time_limit: TimeLimit = field(default_factory=TimeLimit)
    evaluates: bool = False
    sample: EvaluationSample | None = None
    on_epoch: OnEpoch | None = None
    terms: Mapping[str, str] = field(default_factory=dict)

    def callbacks(
        self,
        s: PretrainSettings,
        task: PretrainTask,
        compute: ComputeContext,
        run: RunFolder,
        processes: Distributed,
        steps_per_epoch: int,
    ) -> list[Callback]:
        """The callbacks of a run, in the order in which they are called."""
        ignore = s.on_collapse == "ignore"
        evaluator = FeatureEvaluator(
            task,
            self.sample,
            (s.watch_every or 0) if self.evaluates else 0,
            compute,
            run,
            processes=processes,
            time_limit=self.time_limit,
            continued=s.init != "none",
        )
        callbacks: list[Callback] = [
            evaluator,
            *(task.callbacks(run, steps_per_epoch) or [FeatureCollapse(run, ignore)]),
            PeriodicCheckpoints(s.checkpoint_every, s.keep_every),
            StopBelowStart(evaluator, s.patience or 0, run),
        ]
        if self.on_epoch is not None:
            callbacks.append(EpochCallback(self.on_epoch, processes))
        return callbacks


def layer_scales(task: PretrainTask, decay: float | None) -> dict[str, float]:
    """Parameter of the task's model -> factor on the learning rate; the head's is 1."""
    scales = layer_lr_scales(task.backbone, decay or 1.0, ())
    names = {id(p): name for name, p in task.model.named_parameters()}
    own = dict(task.backbone.named_parameters())
    return {names[id(own[name])]: scale for name, scale in scales.items()}


def build_trainer(
    task: PretrainTask,
    recipe: PretrainRecipe,
    loader: Loader,
    run: RunFolder,
    compute: ComputeContext,
    *,
    processes: Distributed | None = None,
    options: CallbackOptions | None = None,
) -> PretrainTrainer:
    """The trainer of a task; without `options` it has no callbacks."""
    s, processes = recipe.settings, processes or Distributed()
    steps, images = recipe.steps_per_epoch, len(loader.positions)
    callbacks: list[Callback] = []
    fingerprint, terms = "", {}
    if options is not None:
        fingerprint, terms = options.fingerprint, dict(options.terms)
        callbacks = options.callbacks(s, task, compute, run, processes, steps)
    name, decay, rate = s.optimizer or "larc", s.wd or 0.0, recipe.learning_rate
    plan = TrainingPlan(
        command="pretrain",
        epochs=s.epochs or 0,
        steps_per_epoch=steps,
        optimizer=lambda model: optimizer_for_network(
            name, model, lr=rate(0), weight_decay=decay, scales=layer_scales(task, s.layer_decay)
        ),
        learning_rate=rate,
        accumulate=s.accumulate,
        freeze_bn_statistics=s.bn_statistics == "frozen",
        # trainers that measure steps measure those of all layers
        freeze_backbone_steps=steps * (s.freeze_backbone_epochs or 0) if options else 0,
        describe=lambda step: describe_run(s, fingerprint, images, step, terms),
        resume_command=resume_command("pretrain", s.data, run.path),
    )
    return PretrainTrainer(
        task,
        plan,
        loader,
        run,
        compute,
        processes=processes,
        callbacks=callbacks,
        time_limit=options.time_limit if options else None,
    )


def prepare_pretraining(
    settings: PretrainSettings,
    console: Console,
    processes: int,
    budgeted: dict[str, str] | None = None,
) -> PreparedPretraining:
    """List the images, build the network, plan the run, and show the plan.

    `budgeted`: reasons of the values that `--time-budget` selected.
    """
    device = pick_device(settings.device)
    check_method(settings)
    settings, named = with_recipe(settings)
    dataset = list_images(settings, console)
    prepared = prepared_for(settings, named, dataset, device, processes)
    prepared.reasons.update(budgeted or {})
    if settings.teacher is not None:
        teacher = load_teacher(settings)
        prepared = replace(prepared, teacher=teacher)
        prepared.reasons.update(teacher_reasons(teacher, len(dataset.train), device))
    show_plan(prepared.plan, prepared.reasons, prepared.facts, console)
    if dataset.sample.cropped is not None and dataset.sample.cropped.warning is not None:
        console.warn(dataset.sample.cropped.warning)
    return prepared


def prepared_for(
    settings: PretrainSettings,
    named: dict[str, str],
    dataset: UnlabelledDataset,
    device: torch.device,
    processes: int,
) -> PreparedPretraining:
    """The network and the plan for listed images; `named`: reasons of the values of a recipe."""
    torch.manual_seed(settings.seed)
    start = initial_network(settings, dataset.side, len(dataset.train), device)
    start = _with_range(start, dataset.sample)
    start = _with_normalisation(start)
    dataset.index.source.intensity = format_intensity(start.settings.range, start.settings.channels)
    precision, why = pick_training_precision(settings.precision, device, start.network)
    room = image_memory_budget(device)
    facts = DatasetStats(
        len(dataset.train), dataset.side, device.type, start.width, processes, room=room,
        labelled=enough_labels(dataset.index.labels[dataset.train]),
        own_head=has_swav_head(start),
    )  # fmt: skip
    chosen = plan(start.settings, facts)
    for size in sorted(set(chosen.settings.size_crops or ())):
        trace_forward(
            start.network, (size, size)
        )  # an unsupported size fails here, also in a dry run
    hold = dataset.holding(settings, _largest(chosen), processes)
    reasons = {**named, **start.reasons, **chosen.reasons, "precision": f"{precision}: {why}"}
    reasons["store"] = f"{hold.place}: {hold.reason}"
    reasons |= plan_line(chosen.settings, device, processes)
    s = chosen.settings
    compute = ComputeContext(device, precision, s.mean or MEAN, s.std or STD)
    return PreparedPretraining(dataset, start, facts, chosen, compute, hold, reasons)


def _with_range(start: PretrainStart, sample: DatasetSample) -> PretrainStart:
    """The start with range and channels as given, else of the weights, else of the data."""
    preprocess, s = start.loaded.preprocess if start.loaded else None, start.settings
    rule_given = format_intensity(
        s.range, s.channels, preprocess.intensity if preprocess else "auto"
    )
    rule_text, why = sample.intensity(rule_given)
    rule, channels = parse_intensity(rule_text)
    reasons = start.reasons | ({"range": why} if why else {})
    return replace(start, settings=replace(s, range=rule, channels=channels), reasons=reasons)


def _with_normalisation(start: PretrainStart) -> PretrainStart:
    """The start with mean and std as given, else of the weights, else ImageNet's."""
    s = start.settings
    known = start.loaded.preprocess if start.loaded and s.recipe == "auto" else None
    used = replace(
        known or Preprocess(1, 1, mean=MEAN, std=STD),
        **{name: value for name in ("mean", "std") if (value := getattr(s, name))},
    )
    check_normalisation(used)
    reasons = dict(start.reasons)
    if used.mean != MEAN and s.mean is None:
        reasons["mean"] = "that of the weights"
    settings = replace(s, mean=tuple(used.mean), std=tuple(used.std))
    return replace(start, settings=settings, reasons=reasons)


def _largest(chosen: PretrainRecipe) -> int:
    """The shorter side that images are resized to: twice the largest crop size."""
    return 2 * max(chosen.settings.size_crops or ())
