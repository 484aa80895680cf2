"""Embedding one's own videos and texts."""

import copy
import hashlib
import itertools
import json
import os
import os.path as osp
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import DefaultScope, init_default_scope
from torch import Tensor
from tqdm import tqdm

from ..clip_config import (
    PAPER_CLIP,
    absolute_name,
    open_tokenizer,
    short_reason,
    tokenizer_serves,
)
from ..engine.checkpoint import check_state, load_safely
from ..engine.config import fit_pixels, fit_tokenizers, open_config
from ..engine.index_config import plain_config
from ..errors import UserError, shown, warn
from ..fileio import available_cores, is_video, walk_files
from ..isolation import check_timeout
from ..models import CLIPTowers, RetrievalRecognizer
from ..models.block_kinds import steps_of
from ..models.clip import towers_of
from ..models.encoder import weights_fingerprint
from ..registry import INFERENCERS, MODELS, class_of
from .texts import check_texts, warn_cut

# What reads videos is imported when the first one is read.
if TYPE_CHECKING:
    from mmengine.dataset import Compose

    from .reader import VideoFrames, Windows

TOKENIZE = dict(type='vop.CLIPTokenize')  # for the model's CLIP


class EncodedVideos(NamedTuple):
    """Videos as a model embeds them.

    Attributes:
        paths (list[str]): The n videos that could be read, in the order given; or, with windows,
            the video of each window.
        embeddings (Tensor): float32 on the CPU, of shape [n x e].
        failed (dict[str, str]): The other videos, and why each could not be read to its end.
        spans (list[tuple[float, float]]): When each begins and ends, in seconds. The end is nan
            if a whole video does not say how long it is.
        unfinished (str, optional): The video of which more windows follow in the next batch.

    Example:
        >>> encoded = inferencer.encode_videos(['a.mp4', 'missing.mp4'])
        >>> encoded.paths, encoded.failed
        (['a.mp4'], {'missing.mp4': 'there is no such file.'})
    """

    paths: list[str]
    embeddings: Tensor
    failed: dict[str, str]
    spans: list[tuple[float, float]]
    unfinished: str | None = None


@INFERENCERS.register_module()
class VoPInferencer:
    """Embeds videos and texts with a trained model, and compares them.

    Videos are read as the config's test pipeline reads them, by worker processes. One that cannot
    be read, even one that hangs or crashes its decoder, is reported and leaves the others alone.

    Args:
        config (str | Path | Config): A config of retrieval, or what :func:`.open_config` takes.
        checkpoint (str, optional): A checkpoint of it; by default that of a folder of
            :meth:`save_pretrained`. Without one, the model is as the config
            makes it (zero-shot CLIP without prompts).
        device (str, optional): Where to compute. Defaults to a GPU, where there is one.
        show_progress (bool): Show a progress bar. Defaults to True.
        towers (CLIPTowers, optional): An open CLIP in place of the config's; see :meth:`share`.
        timeout (float | str, optional): Seconds that reading a video may take; None is no limit.
            Defaults to ``'config'``, that of the data set in the config's test_dataloader.

    Attributes:
        cfg (Config): The config, with absolute paths of CLIP's files.
        model (RetrievalRecognizer): The model, of the CLIP ``towers``.
        pipeline (Compose): The test pipeline without its texts; ``tokenizer`` is for these. Both
            are made when they are first needed, and refused then if they are wrong.

    Raises:
        UserError: If one of these is missing, not one of retrieval, or does not fit the others.

    Example:
        >>> inferencer = VoPInferencer('configs/vop_msrvtt.py', 'vop.pth')
        >>> inferencer(['a.mp4'], texts=['a dog', 'a cat'])['predictions'][0]['texts']
        ['a cat', 'a dog']
    """

    def __init__(
        self,
        config: str | Path | Config,
        checkpoint: str | None = None,
        device: str | None = None,
        show_progress: bool = True,
        towers: CLIPTowers | None = None,
        timeout: float | str | None = 'config',
    ) -> None:
        cfg = copy.deepcopy(config) if isinstance(config, Config) else open_config(config)
        if checkpoint is None and not isinstance(config, Config) and os.path.isdir(config):
            checkpoint = str(config)
        name = cfg.filename or 'The config'
        self._name, self._scope = name, cfg.get('default_scope', 'mmaction')
        if self._scope:  # the config of an index has none
            init_default_scope(self._scope)
        is_retrieval = issubclass(class_of(cfg.get('model'), MODELS), RetrievalRecognizer)
        if not is_retrieval or not cfg.get('test_dataloader'):
            raise UserError(f'{name} needs a vop.RetrievalRecognizer and a test_dataloader.')
        self.cfg, self.show_progress = cfg, show_progress
        if timeout == 'config':
            timeout = cfg.test_dataloader.dataset.get('timeout', 60)
        self.timeout = check_timeout(timeout)
        cfg.model.clip.update(_clip_files(cfg))  # so that cfg can be kept elsewhere
        device = _check_device(device or get_device())
        self.towers = towers or towers_of(dict(cfg.model.clip))
        self.model = MODELS.build(dict(cfg.model, clip=self.towers)).to(device).eval()
        if checkpoint is not None:
            state = load_safely(checkpoint, map_location='cpu')
            check_state(self.model, state, checkpoint)
            state = state.get('state_dict', state)
            self.model.load_state_dict({k.removeprefix('module.'): v for k, v in state.items()})
        elif untrained := sum(p.numel() for p in self.model.parameters() if p.requires_grad):
            warn(
                f'{name} trains {untrained:,} parameters, and no checkpoint is given: they are as '
                'a training begins. Name the checkpoint, or take a config of zero_shot.'
            )

    @cached_property
    def tokenizer(self) -> Callable[..., Tensor]:
        """The tokenizer of the test pipeline."""
        if TOKENIZE in self.cfg.test_dataloader.dataset.pipeline:  # which need not be built
            clip = self.towers.tokenizer
            return open_tokenizer(**({} if tokenizer_serves(PAPER_CLIP, **clip) else clip))
        from ..datasets.transforms import CLIPTokenize

        for step in self._steps:
            if isinstance(step, CLIPTokenize):
                return step.tokenizer
        raise UserError(f'The test pipeline of {self._name} has no vop.CLIPTokenize.')

    @cached_property
    def pipeline(self) -> 'Compose':
        """The test pipeline without its texts, built when it is first asked for."""
        from mmengine.dataset import Compose

        from ..datasets.transforms import CLIPTokenize

        return Compose([step for step in self._steps if not isinstance(step, CLIPTokenize)])

    @cached_property
    def _steps(self) -> list[Callable]:
        from mmengine.dataset import Compose

        steps = [step for step in self.cfg.test_dataloader.dataset.pipeline if step != TOKENIZE]
        try:
            steps = copy.deepcopy(steps)
            fit_tokenizers(steps, self.towers.tokenizer, self._scope)
            fit_pixels(steps, self.cfg.model.clip, self._scope)
            with DefaultScope.overwrite_default_scope(self._scope):
                return Compose(steps).transforms
        except UserError:
            raise
        except Exception as error:  # a wrong config can raise nearly anything
            raise UserError(
                f'The test pipeline of {self._name} cannot be made: {type(error).__name__}: '
                f'{short_reason(error)}.'
            ) from error

    @property
    def model_fingerprint(self) -> str:
        """32 hexadecimal digits that change with the embeddings of videos.

        They stand for the weights, what CLIP computes with them, the config of the model and the
        test pipeline, but not for where files are. Embeddings of the same may be compared.
        """
        named = itertools.chain(self.model.named_parameters(), self.model.named_buffers())
        plain = plain_config(self.cfg)
        settings = {key: plain['model'][key] for key in plain['model'].keys() - {'clip', 'loss'}}
        # The same weights are of ViT-B-32 and of ViT-B-32-quickgelu.
        settings['blocks'] = [
            (steps.activation, steps.num_heads)
            for encoder in (self.model.visual, self.model.text)
            for steps in [steps_of(encoder.tower.blocks[0])]
        ]
        settings['pipeline'] = plain['pipeline']
        text = weights_fingerprint(named) + json.dumps(settings, sort_keys=True, default=str)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        revision: str | None = None,
        clip: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> 'VoPInferencer':
        """Open a model of :meth:`save_pretrained`. No code of it is run.

        Args:
            name (str | Path): Its folder, or ``'user/name'`` on the Hugging Face Hub.
            revision (str, optional): Branch, tag or commit on the Hub.
            clip (dict, optional): ``name``, ``pretrained`` or ``cache_dir`` of the same CLIP,
                where it is elsewhere than the config says.
            **kwargs: ``device``, ``show_progress`` and ``timeout`` of the class.

        Raises:
            UserError: If there is no such model, if it is damaged, or if the CLIP is another.

        Example:
            >>> inferencer = VoPInferencer.from_pretrained('work_dirs/shared')
        """
        from .pretrained import find_pretrained

        folder = find_pretrained(name, revision)
        cfg = open_config(folder)
        cfg.model.clip.update(clip or {})
        return cls(cfg, str(folder), **kwargs)

    def save_pretrained(self, folder: str | Path, about: dict[str, Any] | None = None) -> None:
        """Write a folder to share: what was trained, the config as JSON, and a model card.

        Args:
            folder (str | Path): Where; see :func:`.save_pretrained`.
            about (dict, optional): What the card says; likewise.

        Raises:
            UserError: If the folder cannot be written, or if the config could not be opened again.

        Example:
            >>> VoPInferencer('configs/vop_msrvtt.py', 'vop.pth').save_pretrained('shared/vop')
        """
        from .pretrained import save_pretrained

        save_pretrained(self, folder, about)

    def share(self, config: str | Path | Config, checkpoint: str | None = None) -> 'VoPInferencer':
        """Open other prompts on the same CLIP, which stays in memory once.

        Both stay in use, with the same device, progress bar and timeout.

        Args:
            config (str | Path | Config): As of the class. Its ``model.clip`` is not opened.
            checkpoint (str, optional): As of the class. That of another CLIP is refused.

        Raises:
            UserError: If one of both trains CLIP itself, or if the CLIP may be another.
        """
        other = config if isinstance(config, Config) else open_config(config)
        parts = ('visual', 'text')
        for cfg in (self.cfg, other):
            if any(cfg.model.get(part, {}).get('tuning', 'frozen') != 'frozen' for part in parts):
                name = cfg.filename or 'A config'
                raise UserError(f'{name} trains CLIP itself (tuning): its CLIP cannot be shared.')
        clip, other_clip = _clip_files(self.cfg), _clip_files(other)
        if checkpoint is None and clip != other_clip:
            raise UserError(f'Without a checkpoint, CLIP must be the same: {clip} or {other_clip}?')
        device, timeout = str(self.model.logit_scale.device), self.timeout
        return VoPInferencer(other, checkpoint, device, self.show_progress, self.towers, timeout)

    def iter_videos(
        self,
        videos: Sequence[str | Path],
        batch_size: int = 8,
        num_workers: int | None = None,
        windows: 'Windows | None' = None,
    ) -> Iterator[EncodedVideos]:
        """Embed videos, batch by batch.

        Args:
            videos (Sequence[str | Path]): Paths of videos.
            batch_size (int): Videos of a batch. Defaults to 8.
            num_workers (int, optional): Processes that read videos; 0 reads none ahead. Defaults to
                the cores that this process may use, 8 at most.
            windows (Windows, optional): Embed windows of each video, as if each were a video of
                its own. A batch is then of so many windows.

        Yields:
            EncodedVideos: Of a batch, in order.

        Raises:
            UserError: If ``batch_size``, ``num_workers`` or ``windows`` has no such value, or if
                the test pipeline cannot read windows.
        """
        if num_workers is None:
            num_workers = min(8, available_cores())
        if batch_size < 1 or num_workers < 0:
            raise UserError(f'{batch_size=} must be at least 1, and {num_workers=} at least 0.')
        from .reader import read_videos

        if windows is not None:
            windows.check()
        paths = [os.fspath(path) for path in videos]
        # So that workers read while a batch is encoded.
        ahead = num_workers if windows else 2 * max(batch_size, num_workers)
        frames = read_videos(paths, self.pipeline, num_workers, self.timeout, ahead, windows)
        bar = tqdm(total=len(paths), desc='Encoding', unit='video', disable=not self.show_progress)
        with bar, closing(frames):
            while batch := list(itertools.islice(frames, batch_size)):
                encoded = self._encode(batch)
                for path, reason in encoded.failed.items():
                    warn(f'{shown(path)} is left out: {reason}')
                yield encoded
                bar.update(sum(video.is_last for video in batch))

    @torch.inference_mode()
    def _encode(self, batch: 'list[VideoFrames]') -> EncodedVideos:
        failed = {video.path: video.error for video in batch if video.error is not None}
        unfinished = batch[-1].path if batch and not batch[-1].is_last else None
        batch = [video for video in batch if video.frames is not None]
        if batch:
            frames = [torch.from_numpy(video.frames) for video in batch]
            data = self.model.data_preprocessor(dict(inputs=dict(imgs=frames)))
            embeddings = self.model.encode_video(data['inputs']['imgs']).float().cpu()
        else:
            embeddings = torch.empty(0, self.towers.embed_dim)
        spans = [(video.start, video.end) for video in batch]
        return EncodedVideos([video.path for video in batch], embeddings, failed, spans, unfinished)

    def encode_videos(
        self,
        videos: Sequence[str | Path],
        batch_size: int = 8,
        num_workers: int | None = None,
        windows: 'Windows | None' = None,
    ) -> EncodedVideos:
        """Embed videos at once; see :meth:`iter_videos`.

        Raises:
            TypeError: If ``videos`` is a path and not a list of paths.
        """
        if isinstance(videos, (str, os.PathLike)):
            raise TypeError(f'videos must be a list of paths, got {videos}.')
        given = self.iter_videos(videos, batch_size, num_workers, windows)
        batches = list(given) or [self._encode([])]
        return EncodedVideos(
            [path for batch in batches for path in batch.paths],
            torch.cat([batch.embeddings for batch in batches]),
            {path: reason for batch in batches for path, reason in batch.failed.items()},
            [span for batch in batches for span in batch.spans],
        )

    @torch.inference_mode()
    def encode_images(self, images: Sequence[str | Path]) -> Tensor:
        """Embed pictures, each as a video in which nothing moves.

        Args:
            images (Sequence[str | Path]): Paths of n files: JPEG, PNG, WebP, GIF or BMP.

        Returns:
            Tensor: float32 on the CPU, of shape [n x e], to be compared with those of videos.

        Raises:
            VideoReadError: If one cannot be read.
        """
        from .reader import read_image

        frames = [read_image(os.fspath(path), self.pipeline) for path in images]
        return torch.cat([self._encode([image]).embeddings for image in frames])

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Embed texts. One that is longer than CLIP can read is cut, with a warning.

        Args:
            texts (Sequence[str]): n texts.
            batch_size (int): Texts of a batch. Defaults to 256.

        Returns:
            Tensor: L2-normalised, float32 on the CPU, of shape [n x e].

        Raises:
            UserError: If one of them has no words, or there are none.
        """
        texts = check_texts(texts)
        slots, device = self.model.text.slots, self.model.logit_scale.device
        embeddings = []
        for start in range(0, len(texts), batch_size):
            part = texts[start : start + batch_size]
            tokens = self.tokenizer(part)
            # One that is too long has a word where a shorter one is closed.
            shorter = self.tokenizer(part, context_length=slots)
            for number in (tokens[:, :slots] != shorter).any(1).nonzero().flatten().tolist():
                warn_cut(part[number], slots)
            embeddings.append(self.model.encode_text(tokens.to(device)).float().cpu())
        return torch.cat(embeddings)

    def similarity(
        self,
        texts: Sequence[str] | Tensor,
        videos: Sequence[str | Path] | EncodedVideos | Tensor,
        **kwargs,
    ) -> Tensor:
        """Score texts against videos: the cosine of their embeddings.

        Args:
            texts (Sequence[str] | Tensor): n texts, or their embeddings [n x e].
            videos (Sequence[str | Path] | EncodedVideos | Tensor): m videos, or embeddings [m x e].
            **kwargs: ``batch_size`` and ``num_workers`` as in :meth:`iter_videos`.

        Returns:
            Tensor: [n x m], on the CPU. A path that cannot be read has the score -inf.
        """
        if not isinstance(texts, Tensor):
            texts = self.encode_texts(texts)
        if isinstance(videos, EncodedVideos):
            videos = videos.embeddings
        if isinstance(videos, Tensor):
            return texts @ videos.T
        encoded = self.encode_videos(videos, **kwargs)
        embedded = dict(zip(encoded.paths, encoded.embeddings))
        scores = texts.new_full((len(texts), len(videos)), -torch.inf)
        for i, path in enumerate(os.fspath(video) for video in videos):
            if path in embedded:
                scores[:, i] = texts @ embedded[path]
        return scores

    def __call__(
        self,
        inputs: str | Path | Sequence[str | Path],
        return_datasamples: bool = False,
        texts: Sequence[str] | None = None,
        **kwargs,
    ) -> dict:
        """Embed videos, or score texts for them, as MMEngine's inferencers are called.

        Args:
            inputs (str | Path | Sequence): Videos, a video, or a folder of videos.
            return_datasamples (bool): Not supported, as the result is plain data.
            texts (Sequence[str], optional): Texts to score for each video.
            **kwargs: ``batch_size`` and ``num_workers`` as in :meth:`iter_videos`.

        Returns:
            dict: ``predictions``, for each video in order a dict with ``video`` and ``embedding``
            (a list of e numbers); with ``texts``, in its place ``texts`` from best to worst and
            their ``scores``; with ``error`` if it cannot be read. ``visualization`` is None.
        """
        if return_datasamples:
            raise ValueError('VoPInferencer gives plain data, not return_datasamples=True.')
        if isinstance(inputs, (str, os.PathLike)) and osp.isdir(inputs):
            inputs = [osp.join(inputs, name) for name, _ in walk_files(inputs) if is_video(name)]
        elif isinstance(inputs, (str, os.PathLike)):
            inputs = [inputs]
        text_embeddings = None if texts is None else self.encode_texts(texts)
        encoded = self.encode_videos(inputs, **kwargs)
        embedded = dict(zip(encoded.paths, encoded.embeddings))
        predictions = []
        for path in [os.fspath(video) for video in inputs]:
            if path not in embedded:
                prediction: dict = dict(error=encoded.failed[path])
            elif texts is None:
                prediction = dict(embedding=embedded[path].tolist())
            else:
                scores, order = (text_embeddings @ embedded[path]).sort(descending=True)
                prediction = dict(texts=[texts[i] for i in order], scores=scores.tolist())
            predictions.append(dict(video=path, **prediction))
        return dict(predictions=predictions, visualization=None)


def _check_device(device: str) -> str:
    """Refuse a device that is not there before a CLIP is opened."""
    try:
        return str(torch.empty(0, device=device).device)
    except (AssertionError, RuntimeError) as error:  # a torch without CUDA
        reason = str(error).partition('\n')[0]
        raise UserError(f"The device '{device}' is not there: {reason}. Take 'cpu'?") from error


def _clip_files(cfg: Config) -> dict:
    """The arguments of a CLIP, with files as absolute paths."""
    return {
        key: absolute_name(value) if isinstance(value, str) else value
        for key, value in cfg.model.clip.items()
    }
