"""The metric as MMEngine's loops use it."""

import logging
import resource

import pytest
import torch
from mmaction.structures import ActionDataSample
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.structures import InstanceData

from projects.vop.errors import UserError
from projects.vop.evaluation import DSL, QBNorm, evaluate_similarity
from projects.vop.registry import METRICS


def predictions(captions):
    """Data samples as the model predicts them, of random embeddings."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for number, count in enumerate(captions):
        sample = ActionDataSample(metainfo=dict(video_id=f'{number}.mp4'))
        video = torch.randn(8, generator=generator)
        noise = torch.randn(count, 8, generator=generator)
        sample.video_feature = video
        sample.text_feature = video + 2 * noise
        samples.append(sample)
    return samples


def evaluate(samples, size=None, batch_size=4, **kwargs):
    evaluator = Evaluator(METRICS.build(dict(type='vop.RetrievalMetric', **kwargs)))
    for start in range(0, len(samples), batch_size):
        evaluator.process(samples[start : start + batch_size])
    return evaluator.evaluate(len(samples) if size is None else size)


def expected(samples, **kwargs):
    texts = [sample.text_feature for sample in samples]
    videos = torch.stack([sample.video_feature for sample in samples])
    video_of_text = [i for i, text in enumerate(texts) for _ in text]
    return evaluate_similarity(torch.cat(texts) @ videos.T, video_of_text, **kwargs)


@pytest.mark.parametrize('captions', [[1] * 10, [3, 1, 2, 5, 1, 4, 2]])
def test_scores_the_similarities_of_all_batches(captions):
    samples = predictions(captions)
    assert evaluate(samples) == expected(samples)


@pytest.mark.parametrize('nested', [False, True])
def test_takes_one_text_without_a_dimension(nested):
    """And features where MMAction2's CLIPSimilarity puts them."""
    samples = predictions([1] * 6)
    wanted = expected(samples)
    for sample in samples:
        sample.text_feature = sample.text_feature[0]
        if nested:
            sample.features = InstanceData(
                video_feature=sample.pop('video_feature'), text_feature=sample.pop('text_feature')
            )
    assert evaluate(samples) == wanted


def test_topk_and_prefix():
    samples = predictions([1] * 6)
    assert evaluate(samples, topk=[2], prefix='msvd') == {
        f'msvd/{key}': value for key, value in expected(samples, topk=[2]).items()
    }


def test_drops_what_pads_the_last_batch():
    """All processes get equally many videos: the first are given out again."""
    samples = predictions([2, 1, 3, 1, 2])
    assert evaluate(samples + samples[:3], size=5) == expected(samples)


@pytest.mark.parametrize('feature', ['video_feature', 'text_feature'])
@pytest.mark.parametrize('value', [torch.nan, torch.inf])
def test_nan_names_the_video(feature, value):
    samples = predictions([2] * 6)
    samples[4].get(feature)[..., 0] = value
    with pytest.raises(UserError, match=r'4\.mp4.*NaN'):
        evaluate(samples)


def test_half_precision_is_ranked_in_full():
    samples, rounded = predictions([1] * 6), predictions([1] * 6)
    for half, full in zip(samples, rounded):
        for key in ('video_feature', 'text_feature'):
            half.set_field(half.get(key).half(), key)
            full.set_field(full.get(key).half().float(), key)
    assert evaluate(samples) == expected(rounded)


def build(**kwargs):
    return METRICS.build(dict(type='vop.RetrievalMetric', **kwargs))


def qb_norm(path, **kwargs):
    return dict(rescoring=[dict(type='vop.QBNorm', bank=str(path), **kwargs)])


@pytest.fixture
def bank(tmp_path):
    """Embeddings of training videos, as the metric dumps them."""
    path = tmp_path / 'bank.pt'
    samples = predictions([2, 3, 1])
    for number, sample in enumerate(samples):
        sample.set_metainfo(dict(video_id=f'train{number}.mp4'))
        sample.video_feature = sample.video_feature.flip(0)
    evaluate(samples, dump=str(path))
    return path, samples


@pytest.fixture
def logged(caplog):
    """What MMEngine's logger gets, which does not propagate."""
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def test_a_dump_holds_the_embeddings(tmp_path):
    samples = predictions([2, 1, 3])
    path = tmp_path / 'new' / 'folder' / 'dump.pt'
    evaluate(samples + samples[:1], size=3, dump=str(path))
    dump = torch.load(path, weights_only=True)
    assert dump['video_id'] == ['0.mp4', '1.mp4', '2.mp4']
    assert dump['video_of_text'].tolist() == [0, 0, 1, 2, 2, 2]
    assert dump['video'].equal(torch.stack([s.video_feature for s in samples]))
    assert dump['text'].equal(torch.cat([s.text_feature for s in samples]))
    assert [p.name for p in path.parent.iterdir()] == ['dump.pt']


@pytest.mark.parametrize('what', ['dump.pt', 'dump.pkl'])
@pytest.mark.parametrize('cause', ['no space', 'no folder'])
def test_a_dump_that_fails_does_not_lose_the_metrics(tmp_path, logged, what, cause):
    """A limit on the size of files stands for a full disk, as a user meets it."""
    path = tmp_path / 'folder' / what
    samples = predictions([1, 1])
    for sample in samples:
        sample.video_feature = torch.randn(100_000)
        sample.text_feature = torch.randn(1, 100_000)
    if what == 'dump.pt':
        metrics = [build(dump=str(path))]
    else:
        writer = METRICS.build(dict(type='vop.DumpPredictions', out_file_path=str(path)))
        metrics = [writer, build()]
    evaluator = Evaluator(metrics)
    evaluator.process(samples)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if cause == 'no space':
        path.write_text('before')
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    else:
        path.parent.rmdir()
        path.parent.write_text('before')
    try:
        result = evaluator.evaluate(2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert result == expected(samples)
    [error] = (r.getMessage() for r in logged.records if r.levelno == logging.ERROR)
    assert str(path) in error and metrics[0].lost == error
    [left] = (p for p in tmp_path.rglob('*') if p.is_file())
    assert left.read_text() == 'before'


def test_rescored_metrics_are_added_to_the_plain_ones(bank, logged):
    path, training = bank
    logged.clear()
    samples = predictions([3, 1, 2, 5, 1, 4, 2])
    rescoring = [dict(type='vop.DSL', scale=50.0), *qb_norm(path, beta=0.5)['rescoring']]
    result = evaluate(samples, rescoring=rescoring)
    texts = torch.cat([s.text_feature for s in training])
    videos = torch.stack([s.video_feature for s in training])
    assert result == evaluate(samples, rescoring=[DSL(50.0), QBNorm(texts, videos, 0.5)])
    assert result != evaluate(samples, rescoring=[DSL(50.0), QBNorm(texts, videos, 0.01)])
    assert expected(samples).items() <= result.items()
    assert not any(r.levelno >= logging.WARNING for r in logged.records)
    for method in (DSL, QBNorm):
        assert f'{method.name}/... looks at {method.looks_at}' in logged.text
    logged.clear()
    evaluate(samples)
    assert 'compared' not in logged.text


def test_warns_of_test_videos_in_the_bank(tmp_path, logged_warnings):
    samples = predictions([1] * 4)
    evaluate(samples[1:3], dump=str(tmp_path / 'bank.pt'))
    evaluate(samples, **qb_norm(tmp_path / 'bank.pt'))
    [warning] = logged_warnings
    assert '2 test videos' in warning and 'bank.pt' in warning and '1.mp4' in warning


@pytest.mark.parametrize(
    'change',
    [
        lambda path, content: path.unlink(),
        lambda path, content: path.write_bytes(b'PK no archive'),
        lambda path, content: torch.save([1, 2], path),
        lambda path, content: torch.save(dict(a=1), path),
        lambda path, content: torch.save({**content, 'owner': 0}, path),
        lambda path, content: torch.save(dict(list(content.items())[:-1]), path),
        lambda path, content: torch.save({**content, 'text': content['text'] * torch.nan}, path),
        *(
            lambda path, content, wrong=wrong: torch.save({**content, **wrong}, path)
            for wrong in (
                *(dict(text=value) for value in (None, [1], torch.ones(6, 4), torch.ones(0, 8))),
                *(dict(video=value) for value in (torch.ones(3), torch.ones(3, 8).int())),
                *(dict(video_id=value) for value in (5, ['a'], [['a'], 'b', 'c'])),
                dict(video_of_text=torch.zeros(2)),
            )
        ),
    ],
)
def test_a_wrong_bank_is_refused_at_once(bank, change):
    change(bank[0], torch.load(bank[0], weights_only=True))
    with pytest.raises(UserError, match=r'bank\.pt'):
        build(**qb_norm(bank[0]))


def test_a_bank_of_another_model_is_refused(tmp_path, bank):
    sample = dict(video_feature=torch.ones(16), text_feature=torch.ones(16))
    unnamed = build(**qb_norm(bank[0]))  # made without set_model
    unnamed.set_model('abc')
    with pytest.raises(UserError, match=r'bank\.pt have 8 numbers, .* 16'):
        unnamed.process({}, [sample])
    metric = build(dump=str(tmp_path / 'named.pt'))
    metric.set_model('abc')
    metric.process({}, [sample])
    metric.evaluate(1)
    metric = build(**qb_norm(tmp_path / 'named.pt'))
    metric.set_model('abc')
    with pytest.raises(UserError, match=r'named\.pt'):
        metric.set_model('def')


@pytest.mark.parametrize(
    'kwargs, fault',
    [
        (dict(device='cuda:99'), 'cuda:99'),
        (dict(dump='/'), '/'),
        (dict(dump='/dev/null/dump.pt'), '/dev/null'),
        (dict(rescoring=[dict(type='vop.DSL'), DSL(30.0)]), 'dsl, dsl'),
        (dict(rescoring=[dict(type='vop.DSL', scale=0)]), 'dsl'),
    ],
)
def test_wrong_arguments_are_refused_at_once(kwargs, fault):
    with pytest.raises(UserError, match=fault):
        build(**kwargs)
