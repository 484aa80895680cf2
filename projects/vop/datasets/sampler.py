"""A sampler for runs that can be repeated and resumed exactly."""

from typing import Any

from mmengine.dataset import DefaultSampler

from ..errors import UserError
from ..registry import DATA_SAMPLERS


@DATA_SAMPLERS.register_module()
class ReproducibleSampler(DefaultSampler):
    """MMEngine's DefaultSampler, which also tells the data set the epoch.

    MMEngine seeds each worker once, so what augmentation draws depends on the
    number of workers and on how long they have been running, and a resumed
    run differs from an uninterrupted one. With this sampler it depends on the
    seed, the epoch and the item alone.

    Raises:
        UserError: If a wrapper such as RepeatDataset has items several times:
            each time they would be the very same.

    Example:
        >>> train_dataloader = dict(
        ...     sampler=dict(type='vop.ReproducibleSampler', shuffle=True),
        ...     dataset=dict(type='vop.VideoTextDataset', ...))
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Before anyone iterates: training by iterations forks its workers before it sets an epoch.
        self._tell(self.dataset, self.epoch)

    def set_epoch(self, epoch: int) -> None:
        """Called by MMEngine's ``DistSamplerSeedHook`` before each epoch."""
        super().set_epoch(epoch)
        self._tell(self.dataset, epoch)

    def _tell(self, dataset, epoch: int) -> None:
        if hasattr(dataset, 'set_epoch'):
            dataset.set_epoch(epoch, self.seed)
        elif hasattr(dataset, 'dataset'):  # a wrapper
            if len(dataset) > len(dataset.dataset):  # which asks for an item by the same index
                raise UserError(
                    f'{type(dataset).__name__} around {type(dataset.dataset).__name__} would give '
                    'the very same items several times an epoch, with the same crops, as '
                    'ReproducibleSampler makes them random by epoch and item. Remove it from '
                    'train_dataloader.dataset, and raise train_cfg.max_epochs.'
                )
            self._tell(dataset.dataset, epoch)
        for part in getattr(dataset, 'datasets', ()):  # ConcatDataset
            self._tell(part, epoch)
