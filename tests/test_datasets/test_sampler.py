"""ReproducibleSampler around data sets of data sets."""

from mmengine.dataset import BaseDataset, ConcatDataset, RepeatDataset

from projects.vop.datasets import ReproducibleSampler


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
    repeated = ReproducibleSampler(RepeatDataset(one, 2), seed=5)
    repeated.set_epoch(7)
    assert one.told == (7, 5)
    joined = ReproducibleSampler(ConcatDataset([two, Plain()]), seed=3)
    assert two.told == (0, 3)
    joined.set_epoch(1)
    assert two.told == (1, 3)
