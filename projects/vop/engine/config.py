"""Opening a config, and checking it before anything is made."""

import logging
import os
import os.path as osp
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.logging import print_log

CHECKOUT = Path(__file__).resolve().parents[3]


def open_config(path: str | Path) -> Config:
    """Open a config; compose it where ``METHOD_DATASET.py`` is no file.

    So any method is there on any data set: ``configs/vop_fp_didemo.py`` is
    ``configs/vop_fp_msrvtt.py`` with the data of
    ``configs/_base_/datasets/didemo.py``.

    Args:
        path (str | Path): Path of the config.

    Returns:
        Config: The config.

    Raises:
        FileNotFoundError: If there is no such file, and the name is not of a
            method and a data set that are there.
        ValueError: If its code fails on a value, such as that of a variable
            of an ablation.
    """
    file = Path(path)
    if file.is_file():
        try:
            return Config.fromfile(file)
        except ValueError as error:
            raise ValueError(
                f'{path} cannot be opened: {error}. The variables that it '
                'takes are said at the top of its _base_ model.'
            ) from error
    base = next(
        (
            parent / '_base_' / 'datasets'
            for parent in file.parents
            if (parent / '_base_' / 'datasets').is_dir()
        ),
        None,
    )
    if base is None:
        raise FileNotFoundError(f'There is no config {path}.')
    datasets = sorted(data.stem for data in base.glob('[!_]*.py'))
    methods = sorted(
        config.stem.removesuffix('_msrvtt') for config in file.parent.glob('*_msrvtt.py')
    )
    for dataset in datasets:
        method = file.stem.removesuffix(f'_{dataset}')
        if method != file.stem and method in methods:
            cfg = open_config(file.with_name(f'{method}_msrvtt.py'))
            data = Config.fromfile(base / f'{dataset}.py')
            return Config(
                cfg.to_dict() | data.to_dict(),
                cfg_text=f'{cfg.text}\n{data.text}',
                filename=str(file),  # names the run in logs
                env_variables=cfg.env_variables,
            )
    raise FileNotFoundError(
        f'There is no config {path}, and {file.stem} is not METHOD_DATASET '
        f'with a METHOD of {file.parent}, which are {", ".join(methods)}, and '
        f'a DATASET of {base}, which are {", ".join(datasets)}.'
    )


def check_data(cfg: Config, *splits: str) -> None:
    """Say which files of a data set are missing, and what makes them.

    This comes before the model is made, which can take a download.

    Args:
        cfg (Config): The config.
        splits (str): ``'train'``, ``'val'`` or ``'test'``.

    Raises:
        FileNotFoundError: If an annotation file or the folder of the videos
            is missing.
    """
    for split in splits:
        dataset = (cfg.get(f'{split}_dataloader') or {}).get('dataset', {})
        if dataset.get('type') != 'vop.VideoTextDataset':
            continue
        root = dataset.get('data_root') or ''
        ann_file = osp.join(root, dataset.ann_file)
        converter = f'tools/data/{Path(root).name}.py'
        asked, by_variable = os.environ.get('DATA_ROOT'), ''
        if asked == root:
            by_variable = ' The environment variable DATA_ROOT says so.'
        elif asked is not None:
            print_log(
                f'DATA_ROOT={asked} has no effect: {split}_dataloader reads '
                f'{root or "no data_root"}.',
                'current',
                logging.WARNING,
            )
        if not osp.isfile(ann_file):
            how = (
                f'`python {converter}` makes it; --help says from what.'
                if (CHECKOUT / converter).is_file()
                else 'tools/data/custom.py makes such files from a folder of videos and a csv.'
            )
            raise FileNotFoundError(
                f'The annotation file {ann_file} of {split}_dataloader is '
                f'missing.{by_variable or " " + how}'
            )
        folder = osp.join(root, dataset.get('data_prefix', {}).get('video', ''))
        if '://' not in folder and not osp.isdir(folder):
            raise FileNotFoundError(
                f'The folder {folder} of the videos is missing. Put or link '
                f'the videos there, or set data_prefix.{by_variable}'
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
    """Let a config train in mixed precision.

    Args:
        cfg (Config): The config.

    Raises:
        ValueError: If its optimizer wrapper is a special one.
    """
    kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
    if kind not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise ValueError(
            f'--amp cannot be combined with the optimizer wrapper {kind} of the config.'
        )
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
