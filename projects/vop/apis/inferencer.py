"""Embedding one's own videos and texts."""

import hashlib
import itertools
import json
import logging
import os
import os.path as osp
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.infer import BaseInferencer
from mmengine.logging import print_log
from mmengine.registry import init_default_scope
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..engine import check_fit, load_safely, open_config
from ..models import CLIPTowers, RetrievalRecognizer
from ..models.clip import towers_of
from ..models.encoder import weights_fingerprint
from ..registry import INFERENCERS, MODELS, TRANSFORMS

# Seconds that a batch of videos may take to read. A decoder can wait for ever
# on a damaged file.
READ_TIMEOUT = 300


class EncodedVideos(NamedTuple):
    """Videos as a model embeds them.

    Attributes:
        paths (list[str]): The n videos that could be read, in the order in
            which they were given.
        embeddings (Tensor): float32 on the CPU, of shape [n x e].
        failed (dict[str, str]): The other videos, and why each could not be
            read.
    """

    paths: list[str]
    embeddings: Tensor
    failed: dict[str, str]


class Frames(NamedTuple):
    """A video as the test pipeline gives it, or why it cannot."""

    path: str
    frames: Tensor | None  # uint8, [f x 3 x h x w]
    error: str | None = None


@INFERENCERS.register_module()
class VoPInferencer(BaseInferencer):
    """Embeds videos and texts with a trained model, and compares them.

    .. code-block:: python

        inferencer = VoPInferencer('configs/vop_msrvtt.py', 'vop.pth')
        inferencer.similarity(['a man cleans a pool'], ['a.mp4', 'b.mp4'])

    As MMEngine's inferencers do, it also takes videos when it is called:
    ``inferencer(['a.mp4'], texts=['a dog', 'a cat'])['predictions']`` has the
    score of every text for each video.

    Videos are read as the config's test pipeline reads them, by worker
    processes. One that cannot be read, be it that it kills its worker, is
    reported and leaves the others alone.

    Args:
        config (str | Path | Config): A config of retrieval, or its path. The
            name of a method and a data set will do; see
            :func:`.open_config`.
        checkpoint (str, optional): A checkpoint of it. Defaults to none: the
            model as the config makes it (zero-shot CLIP without prompts).
        device (str, optional): Where to compute. Defaults to a GPU, where
            there is one.
        show_progress (bool): Show a progress bar. Defaults to True.
        towers (CLIPTowers, optional): An open CLIP to use in place of the
            config's; see :meth:`share`.

    Attributes:
        cfg (Config): The config, with absolute paths of CLIP's files.
        model (RetrievalRecognizer): The model.
        towers (CLIPTowers): Its CLIP.
        pipeline (Compose): The test pipeline without its texts.

    Raises:
        FileNotFoundError: If the config or the checkpoint is missing.
        ValueError: If the config is not one of retrieval, or the checkpoint
            does not fit it or its CLIP.
    """

    preprocess_kwargs = {'num_workers'}
    postprocess_kwargs = {'texts'}

    def __init__(
        self,
        config: str | Path | Config,
        checkpoint: str | None = None,
        device: str | None = None,
        show_progress: bool = True,
        towers: CLIPTowers | None = None,
    ) -> None:
        cfg = config if isinstance(config, Config) else open_config(config)
        if cfg.get('model', {}).get('type') != 'vop.RetrievalRecognizer' or not cfg.get(
            'test_dataloader'
        ):
            raise ValueError(
                f'{cfg.filename or "The config"} is not one of retrieval: it '
                "needs a model of type='vop.RetrievalRecognizer' and a "
                'test_dataloader, whose pipeline reads the videos.'
            )
        if device is not None:
            _check_device(device)
        init_default_scope(cfg.get('default_scope', 'mmaction'))
        self.towers = towers
        super().__init__(cfg, checkpoint, device, scope='vop', show_progress=show_progress)

    def _init_model(self, cfg: Config, weights: str | None, device: str) -> RetrievalRecognizer:
        for key in ('name', 'pretrained'):  # so that cfg can be kept elsewhere
            value = cfg.model.clip.get(key)
            if value and osp.isfile(value):
                cfg.model.clip[key] = osp.abspath(value)
        if self.towers is None:
            self.towers = towers_of(dict(cfg.model.clip))
        model = MODELS.build(dict(cfg.model, clip=self.towers))
        if weights is not None:
            check_fit(model, weights)
            state = load_safely(weights, map_location='cpu')
            model.load_state_dict(state.get('state_dict', state))
        else:
            untrained = sum(p.numel() for p in model.parameters() if p.requires_grad)
            if untrained:
                print_log(
                    f'{cfg.filename or "The config"} trains {untrained:,} '
                    'parameters, and no checkpoint is given: they are as a '
                    'training begins, prompts at random. Name the checkpoint, '
                    'or take a config of zero_shot.',
                    'current',
                    logging.WARNING,
                )
        model.cfg = cfg
        return model.to(device).eval()

    def _init_pipeline(self, cfg: Config) -> Compose:
        steps, self.tokenizer = [], None
        for step in cfg.test_dataloader.dataset.pipeline:
            if step.type.endswith('CLIPTokenize'):
                self.tokenizer = TRANSFORMS.build(step).tokenizer
            elif step.type.endswith('PackActionInputs'):
                steps.append(dict(step, collect_keys=('imgs',)))
            else:
                steps.append(step)
        if self.tokenizer is None:
            raise ValueError('The test pipeline has no vop.CLIPTokenize.')
        return Compose(steps)

    def _init_collate(self, cfg: Config) -> None:
        """Not used: batches are made of what could be read."""

    def _init_visualizer(self, cfg: Config) -> None:
        """Not used: there is nothing to draw."""

    @property
    def model_fingerprint(self) -> str:
        """32 hexadecimal digits that change with the embeddings of videos.

        They stand for the weights, what CLIP computes with them, the config
        of the model and the test pipeline: embeddings may be compared where
        these are the same. Where CLIP's files lie does not matter.
        """
        model = self.model
        weights = weights_fingerprint(itertools.chain(model.named_parameters(), model.named_buffers()))
        settings = {
            key: value
            for key, value in self.cfg.model.to_dict().items()
            if key not in ('clip', 'loss')
        }
        # The same weights are of ViT-B-32 and of ViT-B-32-quickgelu.
        settings['blocks'] = [
            (type(block.mlp.gelu).__name__, block.attn.num_heads)
            for tower in (self.towers.visual, self.towers.text)
            for block in tower.transformer.resblocks[:1]
        ]
        settings['pipeline'] = [dict(step) for step in self.cfg.test_dataloader.dataset.pipeline]
        text = weights + json.dumps(settings, sort_keys=True, default=str)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def share(self, config: str | Path | Config, checkpoint: str | None = None) -> 'VoPInferencer':
        """Open other prompts on the same CLIP, which stays in memory once.

        For VoP at ViT-B/32 this takes half a megabyte and some milliseconds,
        and both inferencers stay in use.

        Args:
            config (str | Path | Config): As of the class. Its ``model.clip``
                is not opened.
            checkpoint (str, optional): As of the class. One that belongs to
                another CLIP is refused.

        Returns:
            VoPInferencer: Its own prompts, this one's CLIP, device and
            progress bar.

        Raises:
            ValueError: If one of both has changed weights of CLIP itself
                (``tuning``), or if the CLIP may be another.
        """
        other = config if isinstance(config, Config) else open_config(config)
        for cfg in (self.cfg, other):
            tunings = [
                cfg.model.get(part, {}).get('tuning', 'frozen') for part in ('visual', 'text')
            ]
            if tunings != ['frozen', 'frozen']:
                raise ValueError(
                    f'{cfg.filename or "A config"} trains CLIP itself (tuning='
                    f'{", ".join(tunings)}): its CLIP is its own and cannot '
                    'be shared. Open it with VoPInferencer(...).'
                )
        if checkpoint is None and _clip_files(other) != _clip_files(self.cfg):
            raise ValueError(
                f'Without a checkpoint, model.clip must be the same to share '
                f'it; got {dict(other.model.clip)} beside '
                f'{dict(self.cfg.model.clip)}.'
            )
        device = next(self.model.parameters()).device
        return VoPInferencer(other, checkpoint, str(device), self.show_progress, self.towers)

    def preprocess(
        self,
        inputs: Sequence[str | Path],
        batch_size: int = 8,
        num_workers: int | None = None,
    ) -> Iterator[list[Frames]]:
        """Read videos in worker processes.

        Args:
            inputs (Sequence[str | Path]): Paths of videos.
            batch_size (int): Videos of a batch. Defaults to 8.
            num_workers (int, optional): Worker processes; 0 reads in this
                one, which a video that kills its decoder ends. Defaults to
                the cores that this process may use, 8 at most.

        Yields:
            list[Frames]: Batches, in order.
        """
        paths = [os.fspath(path) for path in inputs]
        if num_workers is None:
            # Slurm lends a job some cores of a machine.
            cores = (
                len(os.sched_getaffinity(0))
                if hasattr(os, 'sched_getaffinity')
                else os.cpu_count() or 1
            )
            num_workers = min(8, cores)
        done = 0
        suspects = 0  # videos at the front, one of which killed its worker
        while done < len(paths):
            size = 1 if suspects else batch_size
            part = paths[done : done + suspects] if suspects else paths[done:]
            workers = min(num_workers, -(-len(part) // size))
            # A suspect has a worker of its own, which nothing else can kill.
            if suspects:
                part, workers = part[:1], 1
            loader = DataLoader(
                _Reader(part, self.pipeline),
                size,
                num_workers=workers,
                collate_fn=list,
                timeout=READ_TIMEOUT if workers else 0,
            )
            try:
                for batch in loader:
                    yield batch
                    done += len(batch)
                    suspects = max(0, suspects - len(batch))
            except RuntimeError as error:
                if 'DataLoader' not in str(error):
                    raise
                if not suspects:  # all that was under way
                    suspects = min(loader.prefetch_factor * workers * size, len(part))
                    continue
                yield [Frames(paths[done], None, f'reading it fails: {error}')]
                done += 1
                suspects -= 1

    @torch.inference_mode()
    def forward(self, inputs: list[Frames]) -> EncodedVideos:
        """Embed a batch that :meth:`preprocess` gave."""
        good = [item for item in inputs if item.frames is not None]
        if not good:
            embeddings = torch.empty(0, self._width())
        else:
            data = self.model.data_preprocessor(
                dict(inputs=dict(imgs=[item.frames for item in good]))
            )
            embeddings = self.model.encode_video(data['inputs']['imgs'])
        return EncodedVideos(
            [item.path for item in good],
            embeddings.float().cpu(),
            {item.path: item.error for item in inputs if item.frames is None},
        )

    def _width(self) -> int:
        """Width of an embedding."""
        return self.encode_texts(['width']).shape[1]

    def iter_videos(
        self,
        videos: Sequence[str | Path],
        batch_size: int = 8,
        num_workers: int | None = None,
    ) -> Iterator[EncodedVideos]:
        """Embed videos, batch by batch.

        Args:
            videos (Sequence[str | Path]): Paths of videos.
            batch_size (int): Videos of a batch. Defaults to 8.
            num_workers (int, optional): See :meth:`preprocess`.

        Yields:
            EncodedVideos: Of a batch, in order.
        """
        with tqdm(
            total=len(videos), desc='Encoding', unit='video', disable=not self.show_progress
        ) as bar:
            for batch in self.preprocess(videos, batch_size, num_workers):
                encoded = self.forward(batch)
                for path, reason in encoded.failed.items():
                    print_log(f'{path} is left out: {reason}', 'current', logging.WARNING)
                yield encoded
                bar.update(len(batch))

    def encode_videos(
        self,
        videos: Sequence[str | Path],
        batch_size: int = 8,
        num_workers: int | None = None,
    ) -> EncodedVideos:
        """Embed videos.

        Args:
            videos (Sequence[str | Path]): Paths of videos.
            batch_size (int): Videos of a batch. Defaults to 8.
            num_workers (int, optional): See :meth:`preprocess`.

        Returns:
            EncodedVideos: The videos that could be read, and the others.

        Raises:
            TypeError: If ``videos`` is a path and not a list of paths.
        """
        if isinstance(videos, (str, os.PathLike)):
            raise TypeError(f'videos must be a list of paths, got {videos}.')
        result = EncodedVideos([], [], {})
        for part in self.iter_videos(videos, batch_size, num_workers):
            result.paths.extend(part.paths)
            result.embeddings.append(part.embeddings)
            result.failed.update(part.failed)
        embeddings = result.embeddings or [torch.empty(0, self._width())]
        return result._replace(embeddings=torch.cat(embeddings))

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Embed texts.

        One that is longer than CLIP can read is cut, with a warning.

        Args:
            texts (Sequence[str]): n texts.
            batch_size (int): Texts of a batch. Defaults to 256.

        Returns:
            Tensor: L2-normalised, float32 on the CPU, of shape [n x e].

        Raises:
            TypeError: If ``texts`` is a text and not a list of texts.
            ValueError: If one of them has no words, or there are none.
        """
        if isinstance(texts, str):
            raise TypeError('texts must be a list of texts, got one text.')
        texts = list(texts)
        if not texts:
            raise ValueError('There are no texts to encode.')
        for number, text in enumerate(texts, start=1):
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f'Text {number} is {text!r}; it must be a text with words.')
        slots = self.model.text.slots
        device = self.model.logit_scale.device
        embeddings = []
        for start in range(0, len(texts), batch_size):
            part = texts[start : start + batch_size]
            # With one slot more than fits, what is too long shows.
            tokens = self.tokenizer(part, context_length=slots + 1)
            for number in tokens[:, slots].nonzero().flatten().tolist():
                print_log(
                    f'The text "{part[number][:40]}..." is longer than the '
                    f'{slots - 2} tokens that this model reads; what stands '
                    'behind them is left out.',
                    'current',
                    logging.WARNING,
                )
            embeddings.append(self.model.encode_text(tokens.to(device)).float().cpu())
        return torch.cat(embeddings)

    def similarity(
        self,
        texts: Sequence[str] | Tensor,
        videos: Sequence[str | Path] | EncodedVideos | Tensor,
        batch_size: int = 8,
        num_workers: int | None = None,
    ) -> Tensor:
        """Score texts against videos: the cosine of their embeddings.

        Args:
            texts (Sequence[str] | Tensor): n texts, or their embeddings
                [n x e].
            videos (Sequence[str | Path] | EncodedVideos | Tensor): Paths of m
                videos, what :meth:`encode_videos` made of them, or
                embeddings [m x e].
            batch_size (int): Videos of a batch. Defaults to 8.
            num_workers (int, optional): See :meth:`preprocess`.

        Returns:
            Tensor: Of shape [n x m], on the CPU. A path that cannot be read
            has the score -inf, which ranks it last.
        """
        if not isinstance(texts, Tensor):
            texts = self.encode_texts(texts)
        if isinstance(videos, EncodedVideos):
            videos = videos.embeddings
        if isinstance(videos, Tensor):
            return texts @ videos.T
        encoded = self.encode_videos(videos, batch_size, num_workers)
        column = {path: i for i, path in enumerate(encoded.paths)}
        scores = texts.new_full((len(texts), len(videos)), -torch.inf)
        for i, path in enumerate(map(os.fspath, videos)):
            if path in column:
                scores[:, i] = texts @ encoded.embeddings[column[path]]
        return scores

    def __call__(
        self,
        inputs: str | Path | Sequence[str | Path],
        return_datasamples: bool = False,
        batch_size: int = 8,
        num_workers: int | None = None,
        texts: Sequence[str] | None = None,
    ) -> dict:
        """Embed videos, or score texts for them.

        Args:
            inputs (str | Path | Sequence): A video, a folder or videos.
            return_datasamples (bool): Not supported.
            batch_size (int): Videos of a batch. Defaults to 8.
            num_workers (int, optional): See :meth:`preprocess`.
            texts (Sequence[str], optional): Texts to score for each video.

        Returns:
            dict: ``predictions``, for each video in order a dict with
            ``video`` and ``embedding`` (a list of e numbers); with ``texts``,
            ``texts`` from best to worst and their ``scores`` in its place.
            What cannot be read has ``error`` instead. ``visualization`` is
            None.
        """
        if return_datasamples:
            raise ValueError(
                'VoPInferencer gives plain data: return_datasamples=True is not supported.'
            )
        if isinstance(inputs, os.PathLike):
            inputs = os.fspath(inputs)
        inputs = [os.fspath(path) for path in self._inputs_to_list(inputs)]
        texts_embedded = None if texts is None else self.encode_texts(texts)
        encoded = self.encode_videos(inputs, batch_size, num_workers)
        embedded = dict(zip(encoded.paths, encoded.embeddings))
        predictions = []
        for path in inputs:
            if path not in embedded:
                predictions.append(dict(video=path, error=encoded.failed[path]))
            elif texts_embedded is None:
                predictions.append(dict(video=path, embedding=embedded[path].tolist()))
            else:
                scores, order = (texts_embedded @ embedded[path]).sort(descending=True)
                predictions.append(
                    dict(video=path, texts=[texts[i] for i in order], scores=scores.tolist())
                )
        return dict(predictions=predictions, visualization=None)

    def visualize(self, *args, **kwargs) -> None:
        """There is nothing to draw."""

    def postprocess(self, *args, **kwargs) -> None:
        """Not used: :meth:`__call__` makes the predictions."""


class _Reader(Dataset):
    """Videos as frames; what cannot be read is an item, too."""

    def __init__(self, paths: list[str], pipeline: Compose) -> None:
        self.paths, self.pipeline = paths, pipeline

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Frames:
        path = self.paths[index]
        if not osp.isfile(path):
            return Frames(path, None, 'there is no such file.')
        try:
            data = self.pipeline(dict(filename=path, start_index=0, modality='RGB'))
        except Exception as error:  # a damaged file can raise nearly anything
            return Frames(path, None, f'{type(error).__name__}: {error}')
        return Frames(path, data['inputs']['imgs'])


def _check_device(device: str) -> None:
    """Refuse a device that is not there before a CLIP is opened.

    Raises:
        ValueError: If no tensor can be there.
    """
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:  # a torch without CUDA
        reason = str(error).partition('\n')[0]
        raise ValueError(
            f"Nothing can be computed on the device '{device}': {reason}. "
            "Take 'cpu', or 'cuda' where there is a GPU."
        ) from error


def _clip_files(cfg: Config) -> dict:
    """The arguments of a CLIP, with files as absolute paths."""
    return {
        key: osp.abspath(value) if isinstance(value, str) and osp.isfile(value) else value
        for key, value in cfg.model.clip.items()
    }
