"""Folders in which a trained model travels: weights, config and a model card."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..engine.checkpoint import to_safetensors
from ..engine.index_config import check_plain_config, plain_config
from ..errors import UserError
from ..fileio import PRETRAINED_CONFIG, PRETRAINED_WEIGHTS, check_writable, write_file
from ..models.encoder import weights_fingerprint

CARD = 'README.md'
TEMPLATE = Path(__file__).with_name('model_card.md.jinja')
ADVICE = 'Change the config, whose other types may be subclasses of your own.'


def find_pretrained(name: str | Path, revision: str | None = None) -> Path:
    """Find the folder of a model, here or on the Hugging Face Hub.

    Args:
        name (str | Path): A folder, or ``'user/name'`` of the Hub.
        revision (str, optional): Branch, tag or commit on the Hub.

    Returns:
        Path: The folder.

    Raises:
        UserError: If there is no such folder, and no such model can be fetched.
    """
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        files = [PRETRAINED_CONFIG, PRETRAINED_WEIGHTS]
        return Path(snapshot_download(str(name), revision=revision, allow_patterns=files))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f'There is no folder {name}, and no model {name} can be fetched from the Hugging Face '
            f'Hub: {reason[:200]}'
        ) from error


def save_pretrained(
    inferencer: Any, folder: str | Path, about: Mapping[str, Any] | None = None
) -> None:
    """Write the folder of a model.

    Args:
        inferencer (VoPInferencer): The model, with what was trained.
        folder (str | Path): Where to write ``model.safetensors``, with what was trained alone,
            ``config.json`` and ``README.md``. Files of these names are overwritten.
        about (Mapping, optional): For the card: ``name``, ``method`` and ``data``; ``metrics`` of
            the test, as the metric names them; ``training``, pairs of a setting and its value.

    Raises:
        UserError: If the folder cannot be written, or if the config could not be opened again.
    """
    folder, about = Path(folder), dict(about or {})
    for name in (PRETRAINED_CONFIG, PRETRAINED_WEIGHTS, CARD):
        check_writable(folder / name)
    config = plain_config(inferencer.cfg)
    check_plain_config(config, folder / PRETRAINED_CONFIG, ADVICE)
    card = make_card(inferencer, about | dict(name=about.get('name', folder.resolve().name)))
    write_file(folder / PRETRAINED_WEIGHTS, to_safetensors(inferencer.model.state_dict()))
    write_file(folder / CARD, card)
    write_file(folder / PRETRAINED_CONFIG, json.dumps(config, indent=1))  # last: it is whole


def make_card(inferencer: Any, about: dict[str, Any]) -> str:
    """Write the model card of a model; see :func:`save_pretrained`."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    parameters = dict(inferencer.model.named_parameters())
    trained = {name: value for name, value in parameters.items() if value.requires_grad}
    frozen = ((name, value) for name, value in parameters.items() if name not in trained)
    metrics = about.get('metrics', {})
    data = ModelCardData(
        license='apache-2.0',
        library_name='mmaction2-vop',
        tags=['video-text-retrieval', 'prompt-tuning', 'clip', 'vop'],
        model_name=about['name'],
        eval_results=[
            EvalResult('text-to-video-retrieval', 'video', about.get('data', 'unknown'), key, value)
            for key, value in metrics.items()
        ]
        or None,
    )
    clip = inferencer.cfg.model.clip
    card = ModelCard.from_template(
        data,
        template_str=TEMPLATE.read_text(encoding='utf-8'),
        clip_name=clip.get('name'),
        clip_pretrained=clip.get('pretrained'),
        fingerprint=weights_fingerprint(frozen),
        trained=sum(value.numel() for value in trained.values()),
        rows=_rows(metrics),
        **{'method': None, 'data': None, 'training': {}, **about},
    )
    return str(card)


def _rows(metrics: Mapping[str, float]) -> list[list[str]]:
    """The metrics as rows of a table: a direction, then its values."""
    rows: dict[str, dict[str, float]] = {}
    for key, value in metrics.items():
        direction, _, name = key.rpartition('/')
        if direction:
            rows.setdefault(direction, {})[name] = value
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    return [['', *columns], ['---'] * (1 + len(columns))] + [
        [direction, *(f'{row[name]:.2f}' if name in row else '' for name in columns)]
        for direction, row in rows.items()
    ]
