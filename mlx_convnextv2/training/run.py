"""A whole run: folders of pictures in, a checkpoint folder out."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..checkpoints.hub import check_repo_id, upload
from ..checkpoints.processor import ConvNextImageProcessor
from ..files.atomic_folder import check_target, check_writable
from ..images.class_folders import Splits, find_splits
from ..messages import some
from ..model.convnextv2 import ConvNextV2ForImageClassification
from .data import fingerprint, left_out, place, warn_of_duplicates, warn_of_few_images
from .frozen import fit_on_frozen_features, set_head, set_small_head
from .full import FullTraining, limit_cache
from .options import RUN_ONLY, Options, warn_of_unused
from .output import account_of, write_checkpoint
from .pictures import pictures_of
from .plan import Plan
from .progress import Progress, Row
from .recipe import Recipe, make_recipe, published
from .reports import Reported
from .run_folder import RunFolder, open_run, read_run
from .start import Origin, Start, open_start
from .state import TrainingState
from .step import first_state
from .world import Watchdog, Watched, World


@dataclass(frozen=True)
class Trained:
    """The result of a run: the folder, its classes, all rows, and the row of the weights that were kept.

    `rank` is the number of this process among those that trained together. Process 0 has written the folder.
    """

    path: Path
    classes: tuple[str, ...]
    rows: list[Row]
    best: Row
    rank: int = 0

    def __str__(self) -> str:
        return (
            f"{self.path}: {len(self.classes)} classes, validation top-1 {self.best.val_top1:.2%}, "
            f"top-5 {self.best.val_top5:.2%}"
        )


def train(
    data: str | os.PathLike[str],
    model: str | os.PathLike[str] | Start,
    output: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    upload_repo: str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Trained:
    """Train a classifier on folders of pictures and write it as a checkpoint folder.

    By default only the head is trained, on features that the frozen body computes once. `full=True` then trains all
    weights. Until it ends, such a run is kept beside `output`, in a folder whose name ends in ".run". `resume` can
    go on with it.

    Args:
        data: a folder with a folder for each class, or with train/ and val/ above them.
        model: a Hub id, a folder, or a pair of model and processor. The body of a given model is changed.
        output: the checkpoint folder to write, which must not exist.
        overwrite: replace an existing checkpoint folder and an unfinished run.
        upload_repo: publish the result in this Hub repository.
        progress: is told of phases, steps and epochs.
        options: those of `Options`.

    Raises:
        FileExistsError: `output` or an unfinished run exists.
        FileNotFoundError, OSError, ValueError: the data, the model or an option cannot be used.
        KeyboardInterrupt: after the run's state has been saved.
    """
    name = os.fspath(model) if isinstance(model, str | os.PathLike) else None
    places = (os.path.expanduser(data), name, os.path.expanduser(output))
    plan = Plan(*places, overwrite, upload_repo, Options.of(options))
    return _run(plan, model, progress)


def resume(
    output: str | os.PathLike[str], *, model: Start | None = None, progress: Progress | None = None, **options: Any
) -> Trained:
    """Go on with an unfinished run of all weights. The result is the same as without the interruption.

    Args:
        output: the `output` that `train` was given.
        model: the pair that `train` was given, unchanged, if it was given one.
        progress: as for `train`.
        options: those of `RUN_ONLY`, which change no numbers. The run keeps its other options.

    Raises:
        FileNotFoundError: there is no unfinished run.
        ValueError: the data has changed since, or another option is given.
    """
    started = read_run(output)
    plan = Plan.from_dict(started)
    others = [name for name in options if name not in RUN_ONLY]
    if others:
        raise ValueError(f"a run that is resumed has its options already: leave {some(others)} out")
    plan = replace(plan, output=os.path.expanduser(output), options=Options.of({**plan.options.to_dict(), **options}))
    start = plan.model if model is None else model
    if start is None:
        raise ValueError("the run began with a model in memory: give it again")
    return _run(plan, start, progress, resuming=True)


@dataclass
class _Job:
    """The data that the parts of a run share."""

    plan: Plan
    model: ConvNextV2ForImageClassification
    processor: ConvNextImageProcessor
    origin: Origin
    splits: Splits
    progress: Progress
    world: World

    @property
    def options(self) -> Options:
        return self.plan.options


def _run(
    plan: Plan, start: str | os.PathLike[str] | Start, progress: Progress | None, resuming: bool = False
) -> Trained:
    options = plan.options
    world = World.join()
    progress = progress or Progress()
    if not resuming:
        check_target(plan.output, plan.overwrite)
        if world.rank == 0:
            check_writable(plan.output)
    if plan.upload_repo is not None:
        check_repo_id(plan.upload_repo)
    with ExitStack() as stack:
        if world.rank > 0:  # only the first process warns
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        if not options.full:
            warn_of_unused(options)
        splits = find_splits(plan.data, options.val_split, options.seed)
        watchdog = Watchdog(options.watchdog)
        if world.size > 1:
            stack.enter_context(watchdog.watch())
            progress = Watched(progress if world.rank == 0 else Progress(), watchdog)
        if options.report_to is not None and world.rank == 0:
            progress = Reported(progress, options.report_to, plan)
        stack.callback(progress.close)
        run = None
        if options.full and world.rank == 0:
            run = stack.enter_context(open_run(plan.output, plan.to_dict(), resuming, plan.overwrite))
        elif options.full and resuming:
            run = RunFolder.of(plan.output)
        if world.rank == 0 and not resuming:
            warn_of_few_images(splits)
            warn_of_duplicates(splits, options.workers)
        model, processor, origin = open_start(start, splits.train.classes, options)
        if not world.agree(f"{plan.numbers()} {fingerprint(splits)}" if world.size > 1 else ""):
            raise ValueError("the processes have other images or options than one another: give all of them the same")
        job = _Job(plan, model, processor, origin, splits, progress, world)
        if options.full:
            recipe, rows, best = _all_weights(job, run)
            how = recipe.describe()
        else:
            rows, best = _head_alone(job)
            how = f"the head alone on frozen features, logistic regression with an l2 penalty of {best.l2:.0e}"
        progress.close()
        watchdog.rest()  # the other processes are done
        if world.rank == 0:
            _write(job, rows, best, how, resuming)
            if run is not None:
                run.remove()
    if plan.upload_repo is not None and world.rank == 0:
        upload(plan.output, plan.upload_repo)
    return Trained(Path(plan.output), splits.train.classes, rows, best, world.rank)


def _head_alone(job: _Job) -> tuple[list[Row], Row]:
    job.splits, head, rows, best = fit_on_frozen_features(
        job.model, job.processor, job.splits, job.options, job.progress, job.world, job.options.label_smoothing or 0.0
    )
    set_head(job.model, head)
    return rows, best


def _all_weights(job: _Job, run: RunFolder | None) -> tuple[Recipe, list[Row], Row]:
    """Train all weights from the run's last state, or from its beginning."""
    options, world = job.options, job.world
    loaded = run.load() if run is not None else None
    if not world.agree("" if loaded is None else f"{loaded[0].step} {loaded[1]}"):
        raise ValueError(
            f"the processes have other saved states than one another: let all of them see {job.plan.output}.run, or "
            "copy that of the first"
        )
    if loaded is not None:
        state, description = loaded
        job.splits = left_out(job.splits, job.plan.data, description["broken"])
        if description["data"] != fingerprint(job.splits):
            raise ValueError(
                f"the images in {job.plan.data} are not those of the run any more: put them back, or begin anew "
                "with --overwrite"
            )
        recipe = make_recipe(options, job.model.config, len(job.splits.train), world.size)
    else:
        state, recipe, description = _beginning(job)
    state = replace(state, weights=world.from_first(state.weights))

    def save(state: TrainingState) -> None:
        if run is not None and world.rank == 0:
            run.save(state, description)

    if loaded is None:
        save(state)
    training = FullTraining(
        job.model, job.processor, job.splits.train, job.splits.val, recipe, options, save, job.progress, world
    )
    with _bounded_cache():
        state = training.run(state)
    if state.best is None:
        raise ValueError("no epoch was finished")
    return recipe, list(state.rows), state.best


def _beginning(job: _Job) -> tuple[TrainingState, Recipe, dict[str, Any]]:
    """The state before the first step, with the row of the fitted head."""
    options = job.options
    before = {*job.splits.train.files, *job.splits.val.files}
    smoothing = (
        published(job.model.config).label_smoothing if options.label_smoothing is None else options.label_smoothing
    )
    quiet = Watched.without_rows(job.progress)
    job.splits, head, _, row = fit_on_frozen_features(
        job.model, job.processor, job.splits, options, quiet, job.world, smoothing
    )
    recipe = make_recipe(options, job.model.config, len(job.splits.train), job.world.size)
    if options.head == "fitted":
        set_head(job.model, head)
    else:
        set_small_head(job.model, options.seed)
    state = first_state(job.model, recipe)
    if options.head == "fitted":
        row = replace(row, epoch=0, l2=None)
        state = replace(state, rows=(row,), best=row, best_weights=state.weights)
        job.progress.row(row)
    broken = before - {*job.splits.train.files, *job.splits.val.files}
    return (
        state,
        recipe,
        {"broken": sorted(place(file, job.plan.data) for file in broken), "data": fingerprint(job.splits)},
    )


def _write(job: _Job, rows: list[Row], best: Row, how: str, resuming: bool) -> None:
    plan = job.plan
    write_checkpoint(
        plan.output,
        job.model,
        job.processor,
        rows=rows,
        args=plan.as_options(),
        account=account_of(plan, job.splits, how, rows, best),
        pictures=pictures_of(job.model, job.processor, job.splits.val, rows, best, Path(plan.output).name),
        origin=job.origin,
        # a run killed after it had written everything writes it again
        overwrite=plan.overwrite or (resuming and Path(plan.output).exists()),
    )


@contextmanager
def _bounded_cache() -> Iterator[None]:
    before = limit_cache()
    try:
        yield
    finally:
        mx.set_cache_limit(before)
