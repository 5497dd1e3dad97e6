"""From a run that has ended to its Summary."""

from lion_fast.figures import drawn
from lion_fast.training.folder.masks import NUM_DRAWN, plot_masks
from lion_fast.training.folder.summary import Summary
from lion_fast.training.loop import Training
from lion_fast.training.machine.environment import (
    environment,
    peak_memory_mib,
    seconds_since_process_start,
)
from lion_fast.training.measure.validate import Validation, masks_of_heads
from lion_fast.training.stages import Equipped


def draw_masks(training: Training) -> list[str]:
    """Draw what every head makes of the first test images, of a network on masks, to masks.png.

    Returns notes on what is missing.
    """
    images, model = training.images, training.step.model
    notes: list[str] = []
    if not model.heads.is_dense:
        return notes
    with drawn("masks.png", notes.append):
        pixels, truth = next(iter(images.test_chunks(NUM_DRAWN)))
        levels = masks_of_heads(model, pixels, images, training.resolved)
        path = training.record.folder.path / "masks.png"
        plot_masks(pixels.numpy(), truth.numpy(), levels, images.class_names, path)
    return notes


def summarize(
    equipped: Equipped,
    validation: Validation,
    *,
    setup_seconds: float,
    total_seconds: float,
    data_wait_percent: float,
    stopped_seconds: float,
) -> Summary:
    """Return the outcome of a run that has ended, its last validation included."""
    supplied, settled = equipped.supplied, equipped.supplied.settled
    config, resolved, world_size = settled.config, settled.resolved, supplied.plan.world_size
    history, loader = supplied.record.history, equipped.loader
    target = history.target_record
    images_per_second = len(history) * config.batch_size / history.seconds
    side = supplied.images.image_size[0]
    host_bytes, device_bytes = loader.memory_bytes()
    return Summary(
        run=supplied.record.folder.path,
        steps=len(history),
        target_accuracy=config.target_accuracy,
        window=config.window,
        steps_to_target=target.step if target else None,
        seconds_to_target=target.seconds if target else None,
        init_seconds=supplied.init_seconds,
        setup_seconds=setup_seconds,
        train_seconds=history.seconds,
        total_seconds=total_seconds,
        process_seconds=seconds_since_process_start(),
        train_accuracy=history.recent_accuracy(),
        val_accuracy=validation.accuracy,
        val_accuracy_per_head=list(validation.accuracy_per_head),
        val_loss=validation.loss,
        val_iou_per_class=validation.iou_per_class,
        images_per_second=images_per_second,
        step_milliseconds_median=history.median_step_milliseconds(),
        data_wait_percent=data_wait_percent,
        loader_host_mib=host_bytes / 2**20,
        loader_device_mib=device_bytes / 2**20,
        peak_memory_mib=peak_memory_mib(resolved.device),
        num_parameters=sum(parameter.numel() for parameter in equipped.step.model.parameters()),
        num_skipped_images=supplied.images.num_skipped + loader.num_skipped,
        resolved=resolved.to_dict(),
        config=config.to_dict(),
        environment=environment(resolved.device),
        world_size=world_size,
        images_per_second_per_device=images_per_second / world_size,
        data_fingerprint=supplied.images.facts().fingerprint,
        stopped_seconds=stopped_seconds,
        resumed=supplied.resumed,
        cost=history.resolutions.cost(len(history), side),
        cost_to_target=history.resolutions.cost(target.step, side) if target else None,
        reused=settled.prepared is not None,
    )
