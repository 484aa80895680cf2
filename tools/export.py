"""Make a folder of a trained model to share: weights, config as JSON, and a model card.

The config and what the card says of the run are of the folder of the checkpoint, where
training has left them; or name the config with --config.
"""

import argparse
from pathlib import Path

from mmengine.config import Config, DictAction

from projects.vop.apis import VoPInferencer
from projects.vop.engine import load_safely, merge_options, open_config
from projects.vop.errors import UserError, exit_on_user_error
from projects.vop.fileio import read_evaluations
from projects.vop.paper import TABLE_1


def config_beside(checkpoint: Path) -> Path:
    """The config that training has left beside its checkpoints."""
    configs = sorted(checkpoint.parent.glob('*.py'))
    if len(configs) != 1:
        raise UserError(
            f'{checkpoint.parent} holds {len(configs)} configs: say with --config which one is '
            f'that of {checkpoint.name}.'
        )
    return configs[0]


def metrics_of(folder: Path, step: int | None) -> dict[str, float]:
    """The metrics that the log of a run has of the checkpoint after so many epochs."""
    logged = [record for record in read_evaluations(folder) if record.get('step') == step]
    return {key: value for key, value in logged[-1].items() if '/' in key} if logged else {}


def about_run(cfg: Config, checkpoint: Path, state: dict) -> dict:
    """What the card says of the run."""
    name = Path(cfg.filename).stem
    method = next((key for key in sorted(TABLE_1, key=len)[::-1] if name.startswith(key)), None)
    data = cfg.test_dataloader.dataset.get('data_root') or ''
    training = {}
    if optimizer := cfg.get('optim_wrapper', {}).get('optimizer'):
        training['optimizer'] = f'{optimizer.type}, learning rate {optimizer.lr:g}'
        length = {key: n for key, n in cfg.train_cfg.items() if key in ('max_epochs', 'max_iters')}
        training |= {key.removeprefix('max_'): n for key, n in length.items()}
        training['batch'] = cfg.get('train_dataloader', {}).get('batch_size')
    return dict(
        method=TABLE_1[method].name if method else name,
        data=Path(data).name,
        training=training,
        metrics=metrics_of(checkpoint.parent, state.get('meta', {}).get('epoch')),
    )


def main() -> None:
    """Write the folder."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    add = parser.add_argument
    add('checkpoint', type=Path, help='of a training')
    add('folder', type=Path, help='where to write')
    add('--config', help='config file, or its name (default: the one beside the checkpoint)')
    add('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', default={})
    args = parser.parse_args()
    state = load_safely(str(args.checkpoint), map_location='cpu')
    cfg = open_config(args.config or config_beside(args.checkpoint))
    merge_options(cfg, args.cfg_options)
    inferencer = VoPInferencer(cfg, str(args.checkpoint), 'cpu', show_progress=False)
    inferencer.save_pretrained(args.folder, about_run(cfg, args.checkpoint, state))
    print(f'{args.folder} holds the model. To publish it: hf upload USER/NAME {args.folder}')


if __name__ == '__main__':
    with exit_on_user_error():
        main()
