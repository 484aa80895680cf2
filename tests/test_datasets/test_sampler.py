"""ReproducibleSampler around data sets of data sets."""

import pytest
from mmengine.dataset import BaseDataset, ConcatDataset, RepeatDataset

from projects.vop.datasets import ReproducibleSampler
from projects.vop.errors import UserError


class Plain(BaseDataset):
    """A data set that cannot be told the epoch."""

    def load_data_list(self):
        return [dict(), dict()]


class Told(Plain):
    """A data set that remembers what it is told."""

    told = None

    def set_epoch(self, epoch, seed):
        self.told = epoch, seed


def test_it_tells_what_wrappers_hold():
    one, two = Told(), Told()
    repeated = ReproducibleSampler(RepeatDataset(one, 1), seed=5)
    repeated.set_epoch(7)
    assert one.told == (7, 5)
    joined = ReproducibleSampler(ConcatDataset([two, Plain()]), seed=3)
    assert two.told == (0, 3)
    joined.set_epoch(1)
    assert two.told == (1, 3)


def test_items_that_would_be_the_same_several_times_an_epoch_are_refused():
    with pytest.raises(UserError, match='RepeatDataset around Told.*max_epochs'):
        ReproducibleSampler(RepeatDataset(Told(), 3), seed=5).set_epoch(0)
