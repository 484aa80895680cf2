"""What makes an embedding, as JSON: it can be opened without running anything of it."""

import os
from importlib import import_module
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE

from ..errors import UserError
from ..fileio import read_json
from ..registry import MODELS, TRANSFORMS

REGISTRIES = dict(model=MODELS, pipeline=TRANSFORMS)
# MMEngine's other ways to open a file take code (memcached's `sys_path`) or servers.
LOCAL_ONLY = dict(
    io_backend=('disk', 'local'),
    backend_args=(None, dict(backend='local')),
    file_client_args=(None,),
)
DEEPEST = 30
# Others of these packages load pickles, fetch files or call what their arguments name.
HOSTS = {'mmcv', 'mmengine', *MODULE2PACKAGE}
# They stay names until they are made: nothing has to be imported for a query of texts.
HARMLESS = dict(
    model={'mmaction.SimpleMeanAdapter', 'mmaction.TransformerAdapter'},
    pipeline={
        *('vop.CLIPTokenize', 'vop.TimeWindow', 'mmaction.DecordInit', 'mmaction.DecordDecode'),
        *('mmaction.OpenCVInit', 'mmaction.OpenCVDecode', 'mmaction.PyAVInit'),
        *('mmaction.PyAVDecode', 'mmaction.SampleFrames', 'mmaction.UniformSample'),
        *('mmaction.UniformSampleFrames', 'mmaction.DenseSampleFrames', 'mmaction.Resize'),
        *('mmaction.CenterCrop', 'mmaction.ThreeCrop', 'mmaction.TenCrop', 'mmaction.FormatShape'),
        'mmaction.PackActionInputs',
    },
)
FOR_READERS = (
    'Nothing of an index is run. If it is yours, name its config and checkpoint with --config and '
    '--checkpoint.'
)


def plain_config(cfg: Config) -> dict[str, Any]:
    """Take what makes an embedding from a config of retrieval.

    Args:
        cfg (Config): With ``model`` and ``test_dataloader``.

    Returns:
        dict: ``model`` and ``pipeline``, as JSON can hold them. Each ``type`` is the registered
        name of its class, such as ``'vop.LearnedPrompt'``; a tuple is ``{'tuple': [...]}``.

    Example:
        >>> plain_config(open_config('configs/vop_msrvtt.py'))['pipeline'][0]
        {'type': 'mmaction.DecordInit'}
    """
    scopes = (cfg.get('default_scope', 'mmaction'), 'mmengine')
    parts = dict(model=cfg.model, pipeline=cfg.test_dataloader.dataset.pipeline)
    return {part: _plain(value, part, scopes) for part, value in parts.items()}


def read_plain_config(path: str | Path) -> Config:
    """Open what :func:`plain_config` made, in a JSON file.

    Nothing of it is imported or run: a ``type`` must be registered already, and be of this
    project, your own, or one of the few ``HARMLESS`` ones of MMAction2.
    Each has its scope, so that there is no ``default_scope``, which MMEngine would import.

    Args:
        path (str | Path): The file.

    Returns:
        Config: With ``model`` and ``test_dataloader``, classes in place of names that are not
        ``HARMLESS``.

    Raises:
        UserError: If the file is damaged, or has more than such a config needs; the message names
            the key.

    Example:
        >>> read_plain_config('my_index/config-0123456789ab.json').model.type
        <class 'projects.vop.models.retriever.RetrievalRecognizer'>
    """
    read = check_plain_config(read_json(path), path)
    return Config(
        dict(
            default_scope=None,
            model=read['model'],
            test_dataloader=dict(dataset=dict(pipeline=read['pipeline'])),
        ),
        filename=str(path),
    )


def check_plain_config(parts: Any, path: str | Path, advice: str = FOR_READERS) -> dict[str, Any]:
    """Refuse what :func:`read_plain_config` would, before it is written.

    Args:
        parts (Any): What :func:`plain_config` made.
        path (str | Path): The file that it is of, or will be.
        advice (str): The end of the messages: what to do.

    Returns:
        dict: ``model`` and ``pipeline``, classes in place of names that are not ``HARMLESS``.

    Raises:
        UserError: If it has more than such a config needs; the message names the key.

    Example:
        >>> check_plain_config(plain_config(cfg), 'my_index/config-0123456789ab.json')
    """
    if not isinstance(parts, dict) or parts.keys() != REGISTRIES.keys():
        raise UserError(
            f'{path} is not the config of an index, which has the keys {", ".join(REGISTRIES)} '
            'and no others. Other configs are Python files.'
        )
    read = {part: _resolve(value, path, (part,), advice) for part, value in parts.items()}
    if not isinstance(read['model'], dict) or not isinstance(read['pipeline'], list):
        raise UserError(f'{path}: "model" must be an object, and "pipeline" a list.')
    return read


def _registered(part: str, everything: bool) -> dict[str, Any]:
    """What is registered so far, or everything that can be, by names with a scope."""
    if everything:
        import_module('mmaction.registry')
    found: dict[str, Any] = {}
    root = REGISTRIES[part].root
    for each in (root, *root.children.values()):
        if everything:
            each.import_from_location()
        found |= {f'{each.scope}.{name}': kind for name, kind in each.module_dict.items()}
    return found


def _find(name: str, part: str) -> Any:
    """What is registered by a name with a scope. Registry.get would import by names, too."""
    return _registered(part, False).get(name) or _registered(part, True).get(name)


def _came_along(clip: Any, path: str | Path) -> bool:
    """Whether a CLIP is in the folder of an index, or wherever one works: ours are absolute."""
    if not isinstance(clip, str):
        return False
    name = clip.removeprefix('local-dir:')
    if not (os.path.isfile(name) or (name != clip and os.path.isdir(name))):
        return False
    folder = Path(path).resolve().parent
    return not os.path.isabs(name) or Path(name).resolve().is_relative_to(folder)


def _plain(value: Any, part: str, scopes: tuple[str | None, ...]) -> Any:
    if isinstance(value, dict):
        value = {
            key: _plain(each, part, scopes)
            for key, each in value.items()
            if key != 'cache_dir'  # of this machine
        }
        kind = value.get('type')
        if not isinstance(kind, str):
            return value
        for name in (kind, *(f'{scope}.{kind}' for scope in scopes)):
            if name in HARMLESS[part]:
                return dict(value, type=name)
            if '.' in name and (found := _find(name, part)):
                return dict(value, type=_name_of(found, part))
        return value
    if isinstance(value, tuple):
        return dict(tuple=[_plain(each, part, scopes) for each in value])
    if isinstance(value, list):
        return [_plain(each, part, scopes) for each in value]
    return _name_of(value, part) if callable(value) else value


def _name_of(kind: Any, part: str) -> str:
    for everything in (False, True):
        found = _registered(part, everything)
        if names := [name for name, each in found.items() if each is kind]:
            return min(names)
    return f'{kind.__module__}.{kind.__qualname__}'


def _package(part: Any) -> str:
    return getattr(part, '__module__', '').partition('.')[0]


def _resolve(value: Any, path: str | Path, place: tuple[str, ...], advice: str) -> Any:
    def refuse(reason: str, *key: str) -> UserError:
        return UserError(f'{path}, {".".join([*place, *key])[:200]}: {reason}. {advice}')

    def resolve(value: Any, *key: str) -> Any:
        return _resolve(value, path, (*place, *key), advice)

    if len(place) > DEEPEST:
        raise refuse('it is nested too deeply')
    if isinstance(value, list):
        return [resolve(each, str(number)) for number, each in enumerate(value)]
    if not isinstance(value, dict):
        return value
    if value.keys() == {'tuple'} and isinstance(value['tuple'], list):
        return tuple(resolve(value['tuple']))
    for key, each in value.items():
        if key.startswith('_'):  # _base_, _delete_, _scope_
            raise refuse('keys that begin with _ have no meaning here', key)
        if key in LOCAL_ONLY and each not in LOCAL_ONLY[key]:
            raise refuse('only local files are read here', key)
        if key in ('name', 'pretrained') and _came_along(each, path):
            raise refuse('CLIP is not opened from a relative path or a file of the index', key)
        if key == 'cache_dir' and each is not None:  # the folder of the index would be one, too
            raise refuse('where CLIP is kept is not for an index to say', key)
    value = {key: resolve(each, key) for key, each in value.items()}
    if 'type' in value:
        kind, part = value['type'], place[0]
        if isinstance(kind, str) and kind in HARMLESS[part]:
            return value
        value['type'] = _find(kind, part) if isinstance(kind, str) else None
        if value['type'] is None:
            raise refuse(f'{str(kind)[:80]!r} is not registered', 'type')
        if _package(value['type']) in HOSTS:
            raise refuse(f'{kind!r} is not among the types that an index may name', 'type')
    return value
