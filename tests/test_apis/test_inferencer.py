"""Embedding videos and texts outside the Runner."""

import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from helpers import save_clip
from kinds import write_small_clip
from mmengine.registry import INFERENCERS
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from projects.vop.apis import VoPInferencer
from projects.vop.datasets import CLIPTokenize
from projects.vop.engine import build_runner, plain_config
from projects.vop.errors import UserError
from projects.vop.models import RetrievalRecognizer
from projects.vop.registry import MODELS
from projects.vop.search import VideoIndex, update_index

pytestmark = pytest.mark.slow

TEXTS = ['a dog', 'a cat', 'a fish']


@pytest.fixture(scope='module')
def save(tmp_path_factory):
    """Saves a model with fresh prompts."""

    def save(config, seed=1):
        torch.manual_seed(seed)
        path = tmp_path_factory.mktemp('checkpoint') / 'checkpoint.pth'
        torch.save(MODELS.build(config.model).state_dict(), path)
        return str(path)

    return save


@pytest.fixture(scope='module')
def inferencer(retrieval_config, save):
    config = retrieval_config()
    return VoPInferencer(config, save(config), 'cpu', show_progress=False)


@pytest.fixture(scope='module')
def videos(video_folder):
    return [str(video_folder / f'{i}.mp4') for i in range(5)]


def test_embeddings_are_those_of_testing(retrieval_config, save, inferencer, videos, tmp_path):
    config = retrieval_config()
    config.update(work_dir=str(tmp_path), load_from=save(config))
    runner = Runner.from_cfg(config)
    runner.load_or_resume()
    loader = runner.build_dataloader(config.test_dataloader)
    samples = [s for data in loader for s in runner.model.test_step(data)]
    encoded = inferencer.encode_videos(videos, batch_size=2, num_workers=2)
    assert encoded.paths == videos and not encoded.failed
    expected = torch.stack([s.video_feature for s in samples])
    assert torch.allclose(encoded.embeddings, expected, atol=1e-5)
    captions = [f'caption {i} of {n}' for n in range(5) for i in range(3)]
    texts = inferencer.encode_texts(captions, batch_size=4)
    assert torch.allclose(texts, torch.cat([s.text_feature for s in samples]), atol=1e-5)
    for same in (videos, encoded, encoded.embeddings):
        scores = inferencer.similarity(captions, same, num_workers=0)
        assert torch.allclose(scores, texts @ encoded.embeddings.T, atol=1e-6)


@pytest.mark.parametrize(
    'kind, words',
    [
        ('pe_core', 'causal'),
        ('siglip', 'siglip'),
        ('eva02', 'causal'),
        ('mobileclip_b', 'mobileclip2_l'),
        ('clipa', 'clipa'),
    ],
)
def test_other_clips_embed_and_search(
    retrieval_config, save, videos, tmp_path, kind, words, monkeypatch
):
    config = retrieval_config('vop_fc')
    name = write_small_clip(tmp_path, kind, words)
    config.model.clip = dict(name=name, pretrained=save_clip(name, tmp_path / 'clip.pt'))
    config.model.visual.temporal_layers = 1
    config.test_dataloader.dataset.pipeline[4].scale = (-1, 224)  # which the CLIP changes
    config.test_dataloader.dataset.pipeline[5].crop_size = 224
    checkpoint = save(config)
    config.update(work_dir=str(tmp_path), load_from=checkpoint)
    runner = build_runner(config)
    runner.load_or_resume()
    loader = runner.build_dataloader(config.test_dataloader)
    samples = [s for data in loader for s in runner.model.test_step(data)]
    inferencer = VoPInferencer(config, checkpoint, 'cpu', show_progress=False)
    encoded = inferencer.encode_videos(videos, num_workers=0)
    expected = torch.stack([s.video_feature for s in samples])
    assert torch.allclose(encoded.embeddings, expected, atol=1e-5)
    captions = [f'caption {i} of {n}' for n in range(5) for i in range(3)]
    texts = inferencer.encode_texts(captions)
    assert torch.allclose(texts, torch.cat([s.text_feature for s in samples]), atol=1e-5)
    monkeypatch.setattr('projects.vop.apis.texts.warn', (warnings := []).append)
    inferencer.encode_texts(['dog ' * 10, 'dog ' * 11])  # 20 slots, 8 of them for prompts
    assert len(warnings) == 1 and 'longer than the 12 tokens (start and end counted)' in warnings[0]

    update_index(inferencer, Path(videos[0]).parent, tmp_path / 'index', num_workers=0)
    index = VideoIndex.open(tmp_path / 'index')
    own = index.load_inferencer('cpu', show_progress=False)
    (hits,) = index.search(own.encode_videos(videos[1:2], num_workers=0).embeddings, 1)
    assert hits[0].name == '1.mp4' and hits[0].score == pytest.approx(1, abs=1e-5)


def test_bad_videos_are_reported_and_not_fatal(inferencer, videos, tmp_path, logged_warnings):
    broken, missing = tmp_path / 'broken.mp4', tmp_path / 'missing.mp4'
    broken.write_bytes(b'no video')
    given = [videos[0], broken, videos[1], missing, videos[0]]
    encoded = inferencer.encode_videos(given, 2, num_workers=0)
    assert encoded.paths == [videos[0], videos[1], videos[0]]
    assert encoded.failed.keys() == {str(broken), str(missing)}
    assert torch.equal(encoded.embeddings[0], encoded.embeddings[2])
    assert any(str(broken) in message for message in logged_warnings)
    scores = inferencer.similarity(['a dog'], given, num_workers=0)
    assert scores.isneginf().tolist() == [[False, True, False, True, False]]
    for none in ([missing], []):
        assert inferencer.encode_videos(none, num_workers=0).embeddings.shape == (0, 32)


def misbehave(results):
    """A transform that acts by the name of the video."""
    name = Path(results['filename']).stem
    if name == 'crash':
        os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(60 if name == 'hang' else 0)
    return results


@pytest.fixture(scope='module')
def misbehaving(retrieval_config):
    config = retrieval_config()
    config.test_dataloader.dataset.timeout = 3
    inferencer = VoPInferencer(config, device='cpu', show_progress=False)
    inferencer.pipeline.transforms.insert(0, misbehave)
    return inferencer


def encode_misbehaving(num_workers, inferencer, paths):
    encoded = inferencer.encode_videos(paths, 2, num_workers)
    return [Path(path).stem for path in encoded.paths], sorted(encoded.failed.values())


def test_videos_that_hang_or_crash_are_reported_wherever_it_runs(misbehaving, videos, tmp_path):
    paths = [videos[0], *(str(tmp_path / f'{name}.mp4') for name in ('crash', 'hang')), videos[1]]
    for path in paths[1:3]:
        Path(path).symlink_to(videos[0])
    os.mkfifo(tmp_path / 'pipe.mp4')
    paths.append(str(tmp_path / 'pipe.mp4'))
    # torch raises in the main thread for each process that ends, if it is one of these workers.
    workers = DataLoader(range(9), num_workers=1)
    begun = iter(workers)
    here = [encode_misbehaving(n, misbehaving, paths) for n in (0, 2)]
    INHERITED.append(misbehaving)
    with multiprocessing.get_context('fork').Pool(1) as pool:  # a daemonic process, as Celery's
        here.append(pool.apply(encode_daemonic, [paths]))
    assert len(list(begun)) == 9
    crashed = 'its decoder ended the process (signal 11, Segmentation fault).'
    reasons = ['it is not a regular file.', 'it took longer than 3 s.', crashed]
    assert here == [(['0', '1'], reasons)] * 3


def encode_daemonic(paths):
    return encode_misbehaving(2, INHERITED[0], paths)


INHERITED: list = []


def test_it_is_called_as_inferencers_of_mmengine_are(retrieval_config, videos, video_folder):
    inferencer = INFERENCERS.build(dict(type='vop.VoPInferencer', config=retrieval_config()))
    result = inferencer([videos[1], 'missing.mp4'], texts=TEXTS, num_workers=0)
    good, bad = result['predictions']
    scores = inferencer.similarity(TEXTS, [videos[1]], num_workers=0)[:, 0]
    order = scores.argsort(descending=True)
    assert (good['texts'], good['scores']) == ([TEXTS[i] for i in order], scores[order].tolist())
    assert bad.keys() == {'video', 'error'} and result['visualization'] is None
    json.dumps(result)
    (prediction,) = inferencer(videos[2], num_workers=0)['predictions']
    assert torch.tensor(prediction['embedding']).norm() == pytest.approx(1)
    folder = inferencer(video_folder, num_workers=0)['predictions']  # with other files in it
    assert [each['video'] for each in folder] == videos


def test_a_text_of_2000_words_is_cut_and_said(inferencer, logged_warnings):
    slots = inferencer.model.text.slots
    # As it would be read if it ended where it is cut.
    cut = inferencer.encode_texts([' '.join(['word'] * (slots - 2))])
    assert not logged_warnings
    assert torch.allclose(inferencer.encode_texts([' '.join(['word'] * 2000)]), cut, atol=1e-6)
    assert len(logged_warnings) == 1 and f'{slots} tokens' in logged_warnings[0]


def test_wrong_arguments(inferencer, videos):
    for texts in ([], ['a dog', ' '], [3]):
        with pytest.raises(UserError, match='text'):
            inferencer.encode_texts(texts)
    for sizes in (dict(batch_size=0), dict(num_workers=-1)):
        with pytest.raises(UserError, match=next(iter(sizes))):
            inferencer.encode_videos(videos, **sizes)
    for encode in (inferencer.encode_texts, inferencer.encode_videos):
        with pytest.raises(TypeError, match='list'):
            encode(videos[0])


def test_several_prompt_sets_share_one_clip(retrieval_config, save, inferencer, videos):
    config = retrieval_config('vop_p')
    alone = VoPInferencer(config, save(config, seed=2), 'cpu', show_progress=False)
    before = inferencer.encode_videos(videos, num_workers=0).embeddings
    shared = inferencer.share(config, save(config, seed=2))
    ours = {p.data_ptr() for p in inferencer.model.parameters()}
    own = [p for p in shared.model.parameters() if p.data_ptr() not in ours]
    prompts = [*shared.model.visual.prompts.parameters(), *shared.model.text.prompts.parameters()]
    assert sorted(map(id, own)) == sorted(map(id, prompts))
    theirs, expected = (each.encode_videos(videos, num_workers=0) for each in (shared, alone))
    assert torch.allclose(theirs.embeddings, expected.embeddings, atol=1e-6)
    assert torch.equal(before, inferencer.encode_videos(videos, num_workers=0).embeddings)
    assert shared.model_fingerprint == alone.model_fingerprint != inferencer.model_fingerprint


def test_a_clip_that_is_not_shared(retrieval_config, save, inferencer, tiny_clip):
    bias = VoPInferencer(retrieval_config('bias'), device='cpu')
    for one, other in ((inferencer, bias), (bias, inferencer)):
        with pytest.raises(UserError, match='tuning'):
            one.share(other.cfg)
    config = retrieval_config(clip=dict(name=tiny_clip))
    for checkpoint, reason in ((None, 'Without a checkpoint'), (save(config), 'on the CLIP')):
        with pytest.raises(ValueError, match=reason):
            inferencer.share(config, checkpoint)


def test_the_fingerprint_is_of_all_that_makes_embeddings(
    retrieval_config, save, inferencer, tiny_clip, tmp_path, monkeypatch
):
    def same(config, weights=save(retrieval_config())):
        other = VoPInferencer(config, weights, 'cpu')
        return other.model_fingerprint == inferencer.model_fingerprint

    config = retrieval_config()
    assert same(config) and not same(config, save(config, seed=9))
    assert not same(retrieval_config(normalize_video=False))
    config.test_dataloader.dataset.pipeline[2].clip_len = 3
    assert not same(config)
    # The same weights with GELU in place of QuickGELU, or with other heads.
    clip = json.loads(Path(tiny_clip).read_text())
    config = retrieval_config(loss=dict(type='vop.ContrastiveLoss'))
    config.test_dataloader.dataset.ann_file = 'elsewhere.json'
    config.model.clip.name = 'another.json'
    monkeypatch.chdir(tmp_path)
    for change in (dict(quick_gelu=False), dict(text_cfg=clip['text_cfg'] | dict(heads=2))):
        Path('another.json').write_text(json.dumps(clip | change))
        assert not same(config)
    Path('another.json').write_text(json.dumps(clip))  # with another loss and other texts
    assert same(config)
    opened = VoPInferencer(config, device='cpu').cfg
    monkeypatch.chdir('/')
    opened.dump(tmp_path / 'config.py')  # it opens the model again from anywhere
    assert same(tmp_path / 'config.py')


def test_fingerprints_stay_what_they_are(retrieval_config, tmp_path):
    """That of an index is on disks: with another one, each index would have to be made anew."""
    config = retrieval_config('vop_fc', adapter=dict(type='SimpleMeanAdapter'))
    config.model.visual.temporal_layers = 1
    (tmp_path / 'config.json').write_text(json.dumps(plain_config(config)))
    for each in (config, tmp_path / 'config.json'):
        inferencer = VoPInferencer(each, device='cpu')
        model = inferencer.model
        with torch.no_grad():
            for value in (*model.parameters(), *model.buffers()):
                value.copy_((torch.arange(value.numel()) % 7).view_as(value))
        assert inferencer.model_fingerprint == '3e3653d3097a357cda3c66931f2d149c'


def test_the_clip_of_a_folder_brings_its_tokenizer(retrieval_config, videos, tmp_path, monkeypatch):
    """And its mean and deviation; the config serves from anywhere."""
    config = retrieval_config('zero_shot')
    clip = json.loads(Path(config.model.clip.name).read_text())
    clip['text_cfg']['tokenizer_kwargs'] = dict(clean='whitespace')  # capitals stay
    monkeypatch.chdir(tmp_path)
    Path('a').mkdir()
    pixels = dict(mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7])
    Path('a/open_clip_config.json').write_text(
        json.dumps(dict(model_cfg=clip, preprocess_cfg=pixels))
    )
    shutil.copy(config.model.clip.pretrained, 'a/open_clip_pytorch_model.bin')
    folder = retrieval_config('zero_shot', clip=dict(name='local-dir:a'))
    one, other = (VoPInferencer(each, device='cpu') for each in (config, folder))
    captions = ['a dog', 'A Dog']
    texts = [each.encode_texts(captions) for each in (one, other)]
    assert texts[0][0].equal(texts[1][0]) and not texts[0][1].equal(texts[1][1])
    frames = [each.encode_videos(videos[:1], num_workers=0).embeddings for each in (one, other)]
    assert not torch.allclose(*frames)
    other.cfg.dump('config.py')
    monkeypatch.chdir('/')
    again = VoPInferencer(tmp_path / 'config.py', device='cpu')
    assert again.encode_texts(captions).equal(texts[1])
    assert again.model_fingerprint == other.model_fingerprint
    assert again.share(again.cfg).encode_texts(captions).equal(texts[1])


def test_what_does_not_fit(retrieval_config, save, inferencer, videos, logged_warnings):
    checkpoint = save(retrieval_config())
    with pytest.raises(UserError, match='cuda:99'):
        VoPInferencer(retrieval_config(), checkpoint, 'cuda:99')
    with pytest.raises(ValueError, match='checkpoint.pth'):
        VoPInferencer(retrieval_config('vop_p'), checkpoint)
    config = retrieval_config()
    config.model.type = RetrievalRecognizer  # classes serve as well as their names
    steps = config.test_dataloader.dataset.pipeline
    steps[-2].type = CLIPTokenize
    same = VoPInferencer(config, checkpoint, 'cpu', show_progress=False)
    one, other = (each.encode_videos(videos[:1], num_workers=0) for each in (same, inferencer))
    assert torch.equal(one.embeddings, other.embeddings)
    steps[-2].name = 'ViT-H-14-worldwide'
    with pytest.raises(UserError, match='ViT-H-14-worldwide'):
        VoPInferencer(config).encode_texts(TEXTS)
    del steps[-2]
    with pytest.raises(UserError, match='CLIPTokenize'):
        VoPInferencer(config).encode_texts(TEXTS)
    for wrong in ('Recognizer2D', CLIPTokenize):
        config.model.type = wrong
        with pytest.raises(UserError, match='RetrievalRecognizer'):
            VoPInferencer(config)
    # Texts need not the pipeline, which is said when there are videos.
    config = retrieval_config()
    config.test_dataloader.dataset.pipeline[2].nothing = 1
    same = VoPInferencer(config, checkpoint, 'cpu', show_progress=False)
    assert same.encode_texts(TEXTS).equal(inferencer.encode_texts(TEXTS))
    with pytest.raises(UserError, match=r'pipeline of .*vop_msrvtt\.py .*UniformSample.*nothing'):
        same.encode_videos(videos[:1])
    logged_warnings.clear()
    VoPInferencer(retrieval_config('zero_shot'), device='cpu')
    VoPInferencer(retrieval_config(), device='cpu')  # with prompts at random
    assert len(logged_warnings) == 1
