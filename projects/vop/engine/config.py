"""Opening a config, and checking it before anything is made."""

import os
import os.path as osp
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.config.utils import ConfigParsingError
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS

from ..clip_config import PAPER_CLIP, read_clip_config, tokenizer_serves
from ..errors import UserError, warn
from ..fileio import PRETRAINED_CONFIG, ROOT
from ..registry import DATASETS, TRANSFORMS, class_of, is_kind
from .index_config import read_plain_config

# Where the transforms that set the size of pictures have it.
SIZES = {f'mmaction.{name}Crop': 'crop_size' for name in ('Center', 'Three', 'Ten')}
SIZES |= {'mmaction.Resize': 'scale', 'mmaction.MultiScaleCrop': 'input_size'}
SIZES |= {'mmaction.RandomCrop': 'size'}  # last: other crops are subclasses of it


def open_config(path: str | Path) -> Config:
    """Open a config; compose it where ``METHOD_DATASET.py`` is not a file.

    So every method can be used on every data set: ``configs/vop_fp_didemo.py`` is
    ``configs/vop_fp_msrvtt.py`` with the data of
    ``configs/_base_/datasets/didemo.py``.

    Args:
        path (str | Path): Path of the config, or its name among ``configs/`` of the current
            folder and of the package; or the folder of :meth:`.VoPInferencer.save_pretrained`. A
            ``.json`` file is that of such a folder or of an index, see :func:`.read_plain_config`.

    Returns:
        Config: The config.

    Raises:
        UserError: If there is no such file, and the name is not that of a
            known method and data set; or if its code fails on a value, such
            as that of a variable of an ablation.

    Example:
        >>> open_config('vop_fp_didemo').test_dataloader.dataset.data_root
        'data/didemo'
    """
    file = Path(path)
    if file.name and not file.suffix:
        file = file.with_suffix('.py')
    # The user's own come first.
    places = [Path(path, PRETRAINED_CONFIG), Path(path), file, 'configs' / file]
    places += [ROOT / file, ROOT / 'configs' / file]
    found = next((place for place in places if place.is_file()), None)
    if found is not None:
        return _read(found)
    methods: dict[str, Path] = {}
    datasets: dict[str, Path] = {}
    for place in reversed(places):
        bases = (parent / '_base_' / 'datasets' for parent in place.parents)
        if base := next((base for base in bases if base.is_dir()), None):
            datasets |= {data.stem: data for data in base.glob('[!_]*.py')}
            configs = place.parent.glob('*_msrvtt.py')
            methods |= {config.stem.removesuffix('_msrvtt'): config for config in configs}
    for dataset in datasets:
        method = file.stem.removesuffix(f'_{dataset}')
        if method != file.stem and method in methods:
            cfg, data = _read(methods[method]), _read(datasets[dataset])
            return Config(
                cfg.to_dict() | data.to_dict(),
                cfg_text=f'{cfg.text}\n{data.text}',
                filename=str(file),  # names the run in logs
                env_variables=cfg.env_variables,
            )
    if not methods:
        raise UserError(f'There is no config {path}.')
    raise UserError(
        f'There is no config {path}, and {file.stem} is not METHOD_DATASET with a METHOD of '
        f'{", ".join(sorted(methods))} and a DATASET of {", ".join(sorted(datasets))}.'
    )


def _read(file: Path) -> Config:
    if file.suffix == '.json':  # an index's, which may be someone else's
        return read_plain_config(file)
    try:
        return Config.fromfile(file)
    except (ConfigParsingError, OSError, SyntaxError, ValueError) as error:
        raise UserError(
            f'{file} cannot be opened: {error}. The variables that an ablation takes are listed at '
            'the top of its _base_ model.'
        ) from error


def merge_options(cfg: Config, options: dict | None) -> None:
    """Change a config by ``--cfg-options``.

    Args:
        cfg (Config): The config.
        options (dict, optional): New values by dotted keys. Defaults to none.

    Raises:
        UserError: If the config has no place for one of them.

    Example:
        >>> merge_options(cfg, {'optim_wrapper.optimizer.lr': 1e-3})
    """
    for key, value in (options or {}).items():
        try:
            cfg.merge_from_dict({key: value})
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f'--cfg-options {key}={value}: {error.args[0]}') from error


def check_data(cfg: Config, *splits: str) -> None:
    """Say which files of a data set are missing, and what makes them.

    It is called before the model is made, which can take a download.

    Args:
        cfg (Config): The config.
        splits (str): ``'train'``, ``'val'`` or ``'test'``.

    Raises:
        UserError: If an annotation file or the folder of the videos is
            missing.

    Example:
        >>> check_data(open_config('configs/vop_msrvtt.py'), 'train', 'val')
    """
    for split in splits:
        loader = cfg.get(f'{split}_dataloader') or {}
        for dataset in video_text_datasets(
            loader.get('dataset'), cfg.get('default_scope', 'mmengine')
        ):
            _check_files(dataset, split)


def video_text_datasets(dataset: Any, scope: str | None) -> Iterator[dict]:
    """The data sets of videos with captions in one, such as ConcatDataset.

    Args:
        dataset (Any): The part of a config, such as ``train_dataloader.dataset``.
        scope (str, optional): ``default_scope`` of the config, in which names
            without one are.

    Yields:
        dict: Each ``vop.VideoTextDataset`` or subclass.

    Example:
        >>> [dataset] = video_text_datasets(cfg.train_dataloader.dataset, 'mmaction')
    """
    if not isinstance(dataset, dict):
        return
    if is_kind(dataset, 'vop.VideoTextDataset', DATASETS, scope):
        yield dataset
    for part in (dataset.get('dataset'), *dataset.get('datasets', ())):
        yield from video_text_datasets(part, scope)


def _check_files(dataset: dict, split: str) -> None:
    root = dataset.get('data_root') or ''
    ann_file = osp.join(root, dataset.get('ann_file') or '')
    converter = f'tools/data/{Path(root).name}.py'
    asked, by_variable = os.environ.get('DATA_ROOT'), ''
    if asked == root:
        by_variable = ' The environment variable DATA_ROOT says so.'
    elif asked is not None:
        warn(f'DATA_ROOT={asked} has no effect: {split}_dataloader reads {root or "no data_root"}.')
    if not osp.isfile(ann_file):
        how = (
            f'`python {converter}` makes it; --help says from what.'
            if (ROOT / converter).is_file()
            else 'tools/data/custom.py makes such files from a folder of videos and a csv.'
        )
        raise UserError(
            f'The annotation file {ann_file} of {split}_dataloader is '
            f'missing.{by_variable or " " + how}'
        )
    folder = osp.join(root, dataset.get('data_prefix', {}).get('video', ''))
    if '://' not in folder and not osp.isdir(folder or '.'):
        raise UserError(
            f'The folder {folder} of the videos is missing. Put or link '
            f'the videos there, or set data_prefix.{by_variable}'
        )


def fit_tokenizers(part: Any, clip: dict, scope: str | None = None) -> None:
    """Let ``vop.CLIPTokenize`` in a part of a config tokenise for a CLIP.

    Where the default tokenizer is that of the CLIP, nothing changes.

    Args:
        part (Any): A part of a config, such as a data loader; it is changed.
        clip (dict): ``name`` and ``cache_dir`` of the CLIP; others are not read.
        scope (str, optional): ``default_scope`` of the config, in which names
            without one are. Defaults to the current one.

    Raises:
        UserError: If the transform names the tokenizer of another CLIP.

    Example:
        >>> fit_tokenizers(cfg.train_dataloader, cfg.model.clip)
    """
    if isinstance(part, (list, tuple)):
        for item in part:
            fit_tokenizers(item, clip, scope)
    if not isinstance(part, dict):
        return
    for value in part.values():
        fit_tokenizers(value, clip, scope)
    kind = class_of(part, TRANSFORMS, scope)
    ours = issubclass(kind, TRANSFORMS.get('vop.CLIPTokenize'))
    if not ours and not issubclass(kind, TRANSFORMS.get('mmaction.CLIPTokenize')):
        return
    name, cache_dir = clip.get('name', PAPER_CLIP), clip.get('cache_dir')
    given = part.get('name', PAPER_CLIP)
    if tokenizer_serves(given, name, cache_dir):
        return
    if 'name' in part or not ours:
        raise UserError(
            f'The tokenizer of the CLIP {name} is not that of {given}, which a pipeline uses. '
            "Use dict(type='vop.CLIPTokenize') without `name`, which takes the CLIP's."
        )
    part.update(name=name, cache_dir=cache_dir)


def fit_pixels(part: Any, clip: dict, scope: str | None = None) -> None:
    """Let the pipelines in a part of a config make pictures as a CLIP takes them.

    All sizes of ``Resize`` and of crops are scaled so that what comes out is of the CLIP's
    size, as it takes no other; where the CLIP was trained with another interpolation than
    ``'bicubic'``, ``Resize`` uses that in its place.

    Args:
        part (Any): A part of a config, such as a data loader; it is changed.
        clip (dict): ``name``, ``pretrained`` and ``cache_dir`` of the CLIP; others are not read.
        scope (str, optional): ``default_scope`` of the config, in which names
            without one are. Defaults to the current one.

    Example:
        >>> fit_pixels(cfg.test_dataloader, dict(name='PE-Core-L-14-336'))
    """
    if isinstance(part, dict):
        for value in part.values():
            fit_pixels(value, clip, scope)
    if not isinstance(part, (list, tuple)):
        return
    sized = []
    for item in part:
        fit_pixels(item, clip, scope)
        key = _size_key(item, scope)
        if key and key in item:
            sized.append((item, key))
    if not sized:
        return
    name = clip.get('name', PAPER_CLIP)
    config = read_clip_config(name, clip.get('pretrained'), clip.get('cache_dir'))
    for step, _ in sized:
        if step.get('interpolation') == 'bicubic':
            step['interpolation'] = config.interpolation
    if any(
        isinstance(step[key], float) or np.inf in np.atleast_1d(step[key]) for step, key in sized
    ):
        return  # of the size of the video
    step, key = sized[-1]
    size, last = min(config.size), np.max(step[key])
    if size == last:
        return
    for step, key in sized:
        sizes = step[key]
        if isinstance(sizes, int):
            step[key] = round(sizes * size / last)
        else:
            step[key] = tuple(n if n < 0 else round(n * size / last) for n in sizes)
    print_log(
        f'{name} takes pictures of {size} pixels: sizes in a pipeline are scaled from {last}.',
        'current',
    )


def _size_key(step: Any, scope: str | None) -> str | None:
    """Where a transform has the size that it gives pictures, if it does."""
    kind = class_of(step, TRANSFORMS, scope) if isinstance(step, dict) else object
    keys = (key for name, key in SIZES.items() if issubclass(kind, TRANSFORMS.get(name)))
    return next(keys, None)


def check_pixels(model: dict) -> None:
    """Refuse a recognizer that normalises frames for another CLIP than its backbone's.

    Args:
        model (dict): Config of a model; only a recognizer of MMAction2, which
            normalises frames itself, can be refused.

    Raises:
        UserError: If mean or deviation are not those of the CLIP.

    Example:
        >>> check_pixels(open_config('configs/mix/vop_recognizer_kinetics400.py').model)
    """
    clip = (model.get('backbone') or {}).get('clip')
    pixels = model.get('data_preprocessor') or {}
    if not isinstance(clip, dict) or not isinstance(pixels.get('mean'), (list, tuple)):
        return
    config = read_clip_config(
        clip.get('name', PAPER_CLIP), clip.get('pretrained'), clip.get('cache_dir')
    )
    for key, wanted in (('mean', config.mean), ('std', config.std)):
        values = [255 * value for value in wanted]
        given = pixels.get(key, values)
        if any(abs(one - other) > 0.5 for one, other in zip(given, values)):
            raise UserError(
                f'model.data_preprocessor.{key} is {list(given)}, but the CLIP of the backbone '
                f'was trained with {[round(value, 2) for value in values]}. Set that.'
            )


def pin_memory(cfg: Config) -> None:
    """Let data loaders pin memory where there is a GPU.

    Batches then travel to the GPU faster, and the process does not wait for
    them. A loader that says ``pin_memory`` itself keeps what it says; without
    a GPU nothing changes, as torch would warn of it.

    Args:
        cfg (Config): The config.
    """
    if torch.cuda.is_available():
        for split in ('train', 'val', 'test'):
            if cfg.get(f'{split}_dataloader'):
                cfg[f'{split}_dataloader'].setdefault('pin_memory', True)


def use_amp(cfg: Config) -> None:
    """Let a config train in mixed precision (``--amp``).

    Args:
        cfg (Config): The config.

    Raises:
        UserError: If its optimizer wrapper is a special one.
    """
    cfg.optim_wrapper.setdefault('type', 'OptimWrapper')
    kind = class_of(cfg.optim_wrapper, OPTIM_WRAPPERS, cfg.get('default_scope', 'mmengine'))
    if kind is OptimWrapper:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
    elif not issubclass(kind, AmpOptimWrapper):
        name = cfg.optim_wrapper.type if kind is object else kind.__name__
        raise UserError(
            f'--amp cannot be combined with the optimizer wrapper {name} of the config.'
        )
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')


def check_amp() -> None:
    """Refuse ``--amp`` where there is no GPU.

    Raises:
        UserError: If there is none.
    """
    if get_device() == 'cpu':
        raise UserError(
            "--amp needs a GPU: MMEngine's AmpOptimWrapper does not run on CPUs. Leave it out here."
        )


def work_dir_of(cfg: Config, config: str, work_dir: str | None) -> str:
    """Choose where a run writes: ``--work-dir``, or the config's, or its name.

    Args:
        cfg (Config): The config.
        config (str): Path of its file.
        work_dir (str, optional): What the command line says.

    Returns:
        str: The folder.

    Example:
        >>> work_dir_of(Config(), 'configs/vop_msrvtt.py', None)
        'work_dirs/vop_msrvtt'
    """
    return work_dir or cfg.get('work_dir') or osp.join('work_dirs', Path(config).stem)
