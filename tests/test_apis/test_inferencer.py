"""Embedding videos and texts outside the Runner."""

import json
import os
import shutil
import signal

import pytest
import torch
from helpers import TINY_CLIP
from mmcv.transforms import BaseTransform
from mmengine.infer import BaseInferencer
from mmengine.registry import INFERENCERS
from mmengine.runner import Runner

from projects.vop.apis import VoPInferencer
from projects.vop.registry import MODELS, TRANSFORMS


@TRANSFORMS.register_module()
class KillOn(BaseTransform):
    """Ends the process at some videos, as a crashing decoder does."""

    def __init__(self, word: str) -> None:
        self.word = word

    def transform(self, results: dict) -> dict:
        if self.word in results['filename']:
            os.kill(os.getpid(), signal.SIGKILL)
        return results


@pytest.fixture(scope='module')
def save(tmp_path_factory):
    """Saves a model with fresh prompts."""

    def save(config, seed, name='checkpoint.pth'):
        torch.manual_seed(seed)
        model = MODELS.build(config.model)
        path = tmp_path_factory.mktemp('checkpoint') / name
        torch.save(dict(state_dict=model.state_dict()), path)
        return str(path)

    return save


@pytest.fixture(scope='module')
def checkpoint(retrieval_config, save):
    return save(retrieval_config(), seed=1)


@pytest.fixture(scope='module')
def inferencer(retrieval_config, checkpoint):
    return VoPInferencer(retrieval_config(), checkpoint, 'cpu', show_progress=False)


@pytest.fixture(scope='module')
def videos(video_folder):
    return [str(video_folder / f'{i}.mp4') for i in range(5)]


def test_it_is_an_inferencer_of_mmengine(inferencer):
    assert isinstance(inferencer, BaseInferencer)
    assert INFERENCERS.get('vop.VoPInferencer') is VoPInferencer


def test_embeddings_are_those_of_testing(
    retrieval_config, checkpoint, inferencer, videos, tmp_path
):
    config = retrieval_config()
    config.work_dir = str(tmp_path)
    config.load_from = checkpoint
    runner = Runner.from_cfg(config)
    runner.load_or_resume()
    loader = runner.build_dataloader(config.test_dataloader)
    samples = [s for data in loader for s in runner.model.test_step(data)]
    encoded = inferencer.encode_videos(videos, batch_size=2, num_workers=2)
    assert encoded.paths == videos and not encoded.failed
    expected = torch.stack([s.video_feature for s in samples])
    assert torch.allclose(encoded.embeddings, expected, atol=1e-5)
    captions = [f'caption {i} of {n}' for n in range(5) for i in range(3)]
    expected = torch.cat([s.text_feature for s in samples])
    texts = inferencer.encode_texts(captions, batch_size=4)
    assert torch.allclose(texts, expected, atol=1e-5)
    scores = inferencer.similarity(captions, videos, num_workers=0)
    assert torch.allclose(scores, texts @ encoded.embeddings.T, atol=1e-6)
    for same in (encoded, encoded.embeddings):
        assert torch.equal(inferencer.similarity(texts, same), texts @ encoded.embeddings.T)


@pytest.mark.parametrize('num_workers', [0, 2])
def test_bad_videos_are_reported_and_not_fatal(
    inferencer, videos, tmp_path, num_workers, logged_warnings
):
    broken, missing = tmp_path / 'broken.mp4', tmp_path / 'missing.mp4'
    broken.write_bytes(b'no video')
    given = [videos[0], str(broken), videos[1], str(missing), videos[0]]
    encoded = inferencer.encode_videos(given, 2, num_workers)
    assert encoded.paths == [videos[0], videos[1], videos[0]]
    assert encoded.failed.keys() == {str(broken), str(missing)}
    assert 'no such file' in encoded.failed[str(missing)]
    assert len(encoded.embeddings) == 3
    assert torch.equal(encoded.embeddings[0], encoded.embeddings[2])
    assert any(str(broken) in message for message in logged_warnings)
    scores = inferencer.similarity(['a dog'], given, num_workers=num_workers)
    assert scores.isneginf().tolist() == [[False, True, False, True, False]]


def test_nothing_but_bad_videos(inferencer, tmp_path):
    encoded = inferencer.encode_videos([tmp_path / 'missing.mp4'])
    assert encoded.embeddings.shape == (0, 32)
    assert inferencer.encode_videos([]).embeddings.shape == (0, 32)


def test_a_video_that_kills_its_reader_is_reported(
    retrieval_config, checkpoint, inferencer, videos, tmp_path
):
    config = retrieval_config()
    config.test_dataloader.dataset.pipeline.insert(0, dict(type='vop.KillOn', word='killer'))
    killer = VoPInferencer(config, checkpoint, 'cpu', show_progress=False)
    paths = []
    for number in range(12):
        name = 'killer' if number in (3, 7) else 'good'
        paths.append(str(tmp_path / f'{name}{number}.mp4'))
        shutil.copy(videos[number % 5], paths[-1])
    encoded = killer.encode_videos(paths, batch_size=2, num_workers=2)
    assert encoded.failed.keys() == {paths[3], paths[7]}
    assert encoded.paths == [p for p in paths if 'good' in p]
    expected = inferencer.encode_videos([videos[n % 5] for n in range(12) if n not in (3, 7)])
    assert torch.allclose(encoded.embeddings, expected.embeddings, atol=1e-6)


def test_predictions(inferencer, videos, tmp_path):
    result = inferencer(
        [videos[1], str(tmp_path / 'missing.mp4')], texts=['a dog', 'a cat', 'a fish']
    )
    assert result['visualization'] is None
    good, bad = result['predictions']
    scores = inferencer.similarity(['a dog', 'a cat', 'a fish'], [videos[1]])[:, 0]
    order = scores.argsort(descending=True).tolist()
    assert good['texts'] == [['a dog', 'a cat', 'a fish'][i] for i in order]
    assert good['scores'] == pytest.approx(scores[order].tolist())
    assert bad.keys() == {'video', 'error'}
    (prediction,) = inferencer(videos[2])['predictions']
    assert torch.tensor(prediction['embedding']).norm() == pytest.approx(1)
    json.dumps(result)


def test_a_text_of_2000_words_is_cut_and_said(inferencer, logged_warnings):
    words = ' '.join(['word'] * 2000)
    slots = inferencer.model.text.slots
    # As it would be read if it ended where it is cut.
    fits = ' '.join(['word'] * (slots - 2))
    cut = inferencer.encode_texts([fits])
    assert not logged_warnings
    assert torch.allclose(inferencer.encode_texts([words]), cut, atol=1e-6)
    assert len(logged_warnings) == 1
    assert f'longer than the {slots - 2} tokens' in logged_warnings[0]


@pytest.mark.parametrize(
    'texts, error',
    [('a text', TypeError), ([], ValueError), (['a dog', ' '], ValueError), ([3], ValueError)],
)
def test_texts_that_are_none(inferencer, texts, error):
    with pytest.raises(error, match='text'):
        inferencer.encode_texts(texts)


def test_a_path_is_not_a_list_of_videos(inferencer, videos):
    with pytest.raises(TypeError, match='list of paths'):
        inferencer.encode_videos(videos[0])


def test_several_prompt_sets_share_one_clip(retrieval_config, save, inferencer, videos):
    config = retrieval_config('vop_p')
    other = save(config, seed=2)
    alone = VoPInferencer(config, other, 'cpu', show_progress=False)
    before = inferencer.encode_videos(videos).embeddings
    shared = inferencer.share(retrieval_config('vop_p'), other)
    ours = {p.data_ptr() for p in inferencer.model.parameters()}
    own = [p for p in shared.model.parameters() if p.data_ptr() not in ours]
    prompts = [*shared.model.visual.prompts.parameters(), *shared.model.text.prompts.parameters()]
    assert sorted(map(id, own)) == sorted(map(id, prompts))
    texts = ['a dog', 'a cat']
    assert torch.allclose(
        shared.similarity(texts, videos), alone.similarity(texts, videos), atol=1e-6
    )
    after = inferencer.encode_videos(videos).embeddings
    assert torch.equal(before, after)
    assert not torch.allclose(before, shared.encode_videos(videos).embeddings)
    assert shared.fingerprint == alone.fingerprint != inferencer.fingerprint


def test_a_clip_that_is_not_shared(retrieval_config, save, inferencer, tiny_clip):
    with pytest.raises(ValueError, match='trains CLIP itself'):
        inferencer.share(retrieval_config('bias'))
    bias = VoPInferencer(retrieval_config('bias'), device='cpu')
    with pytest.raises(ValueError, match='trains CLIP itself'):
        bias.share(retrieval_config())
    config = retrieval_config(clip=dict(name=tiny_clip))
    torch.manual_seed(5)
    with pytest.raises(ValueError, match='must be the same'):
        inferencer.share(config)
    with pytest.raises(ValueError, match='trained on the CLIP'):
        inferencer.share(config, save(config, seed=6))


def test_the_fingerprint_is_of_all_that_makes_embeddings(
    retrieval_config, checkpoint, save, inferencer, tmp_path
):

    def of(config, weights=checkpoint):
        return VoPInferencer(config, weights, 'cpu').fingerprint

    assert of(retrieval_config()) == inferencer.fingerprint
    config = retrieval_config()
    assert of(config, save(config, seed=9)) != inferencer.fingerprint
    config = retrieval_config(normalize_video=False)
    assert of(config) != inferencer.fingerprint
    config = retrieval_config()
    config.test_dataloader.dataset.pipeline[2].clip_len = 3
    assert of(config) != inferencer.fingerprint
    # The same weights with GELU in place of QuickGELU, or with other heads.
    for change in (dict(quick_gelu=False), dict(text_cfg=dict(TINY_CLIP['text_cfg'], heads=2))):
        path = tmp_path / 'another.json'
        path.write_text(json.dumps(TINY_CLIP | change))
        config = retrieval_config()
        config.model.clip.name = str(path)
        assert of(config) != inferencer.fingerprint
    path.write_text(json.dumps(TINY_CLIP))  # elsewhere, and the same
    assert of(config) == inferencer.fingerprint
    config = retrieval_config(loss=dict(type='vop.ContrastiveLoss'))
    config.test_dataloader.dataset.ann_file = 'elsewhere.json'
    assert of(config) == inferencer.fingerprint


def test_its_config_opens_it_again_from_anywhere(
    retrieval_config, checkpoint, inferencer, tmp_path, monkeypatch
):
    config = retrieval_config()
    monkeypatch.chdir(os.path.dirname(config.model.clip.pretrained))
    config.model.clip.pretrained = 'tiny-clip.pt'
    relative = VoPInferencer(config, checkpoint, 'cpu')
    relative.cfg.dump(str(tmp_path / 'config.py'))
    monkeypatch.chdir(tmp_path)
    again = VoPInferencer('config.py', checkpoint, 'cpu')
    assert again.fingerprint == inferencer.fingerprint


@pytest.mark.parametrize('method, said', [('vop', True), ('zero_shot', False)])
def test_untrained_prompts_are_said(retrieval_config, method, said, logged_warnings):
    VoPInferencer(retrieval_config(method), device='cpu')
    assert said == any('parameters, and no checkpoint is given' in text for text in logged_warnings)


@pytest.mark.parametrize('device', ['nonsense', 'cuda:99'])
def test_a_device_that_is_not_there(retrieval_config, checkpoint, device):
    with pytest.raises(ValueError, match=f"'{device}': .*Take 'cpu'"):
        VoPInferencer(retrieval_config(), checkpoint, device)


def test_configs_and_checkpoints_that_do_not_fit(retrieval_config, checkpoint):
    config = retrieval_config()
    config.model.type = 'Recognizer2D'
    with pytest.raises(ValueError, match='not one of retrieval'):
        VoPInferencer(config)
    with pytest.raises(FileNotFoundError, match='nowhere.pth'):
        VoPInferencer(retrieval_config(), 'nowhere.pth')
    with pytest.raises(ValueError, match='does not fit the config'):
        VoPInferencer(retrieval_config('vop_p'), checkpoint)
    config = retrieval_config()
    pipeline = config.test_dataloader.dataset.pipeline
    config.test_dataloader.dataset.pipeline = [
        step for step in pipeline if step.type != 'vop.CLIPTokenize'
    ]
    with pytest.raises(ValueError, match='no vop.CLIPTokenize'):
        VoPInferencer(config)
