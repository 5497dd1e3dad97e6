"""make_loader: the one place that knows every loader by name."""

from typing import Literal

from lion_fast.config import Impl
from lion_fast.data.batches import BatchSpec, Loader
from lion_fast.data.dataset import DataSet
from lion_fast.data.encoded import EncodedSet
from lion_fast.data.images import DecodedSet
from lion_fast.data.plan import BatchPlan
from lion_fast.errors import UserError


def make_loader(
    name: Literal["resident", "dali", "workers"],
    image_set: DataSet,
    plan: BatchPlan,
    spec: BatchSpec,
    *,
    impl: Impl = "auto",
    steps_per_run: int = 16,
    num_workers: int = 2,
    fewer_workers: bool = False,
) -> Loader:
    """Return the named loader over the training images of `image_set`, at step 0 of `plan`.

    `impl` steers resident, `steps_per_run` dali, and `num_workers` workers (processes) and dali
    (threads); fewer_workers: workers may go on with less than that. The loader's module is imported
    here, so that only dali needs DALI. Raises UserError where the loader delivers no masks and the
    set has them.
    """
    if name not in ("resident", "dali", "workers"):
        raise ValueError(f"loader is {name!r}: take one of resident, dali, workers")
    if isinstance(image_set, EncodedSet):
        if name != "dali":
            raise ValueError(f"loader is {name!r}: an encoded folder needs dali")
        from lion_fast.data.dali_folder import DaliFolderLoader

        return DaliFolderLoader(
            image_set.listing.train,
            plan,
            spec,
            image_size=image_set.image_size,
            skip_corrupt=image_set.skip_corrupt,
            steps_per_run=steps_per_run,
            num_threads=num_workers,
        )
    if not isinstance(image_set, DecodedSet):
        raise TypeError(f"{type(image_set).__name__} is neither decoded nor an EncodedSet")
    if image_set.has_masks and name != "resident":
        raise UserError(
            f"loader {name} delivers a label an image, and {image_set.name} has masks: take"
            " --loader resident"
        )
    images, labels = image_set.train_images, image_set.train_labels
    if name == "resident":
        from lion_fast.data.resident import ResidentLoader

        return ResidentLoader(images, labels, plan, spec, impl=impl)
    if name == "workers":
        from lion_fast.data.workers import WorkersLoader

        return WorkersLoader(
            images, labels, plan, spec, num_workers=num_workers, fewer=fewer_workers
        )
    from lion_fast.data.dali import DaliLoader

    return DaliLoader(
        images, labels, plan, spec, steps_per_run=steps_per_run, num_threads=num_workers
    )
