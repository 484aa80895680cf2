"""The metric as MMEngine's loops use it."""

import logging

import pytest
import torch
from mmaction.structures import ActionDataSample
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.structures import InstanceData

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


def test_takes_one_text_without_a_dimension():
    samples = predictions([1] * 6)
    wanted = expected(samples)
    for sample in samples:
        sample.text_feature = sample.text_feature[0]
    assert evaluate(samples) == wanted


def test_takes_features_where_clip_similarity_puts_them():
    samples = predictions([1] * 6)
    wanted = expected(samples)
    for sample in samples:
        sample.features = InstanceData(
            video_feature=sample.pop('video_feature'), text_feature=sample.pop('text_feature')[0]
        )
    assert evaluate(samples) == wanted


def test_topk_and_prefix():
    samples = predictions([1] * 6)
    assert evaluate(samples, topk=[2], prefix='msvd') == {
        f'msvd/{key}': value for key, value in expected(samples, topk=[2]).items()
    }


def test_drops_what_pads_the_last_batch():
    """Ranks get equally many videos: the first are given out again."""
    samples = predictions([2, 1, 3, 1, 2])
    assert evaluate(samples + samples[:3], size=5) == expected(samples)


def test_starts_anew_after_each_evaluation():
    samples = predictions([1] * 5)
    evaluator = Evaluator(METRICS.build(dict(type='vop.RetrievalMetric')))
    for _ in range(2):
        evaluator.process(samples)
        assert evaluator.evaluate(5) == expected(samples)


@pytest.mark.parametrize('feature', ['video_feature', 'text_feature'])
@pytest.mark.parametrize('value', [torch.nan, torch.inf])
def test_nan_names_the_video(feature, value):
    samples = predictions([2] * 6)
    samples[4].get(feature)[..., 0] = value
    with pytest.raises(ValueError, match=r'4\.mp4.*NaN'):
        evaluate(samples)


def test_half_precision_is_ranked_in_full():
    samples, rounded = predictions([1] * 6), predictions([1] * 6)
    for half, full in zip(samples, rounded):
        for key in ('video_feature', 'text_feature'):
            half.set_field(half.get(key).half(), key)
            full.set_field(full.get(key).half().float(), key)
    assert evaluate(samples) == expected(rounded)


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
def logged():
    messages = []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: messages.append(record)
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)
    logger.setLevel(level)


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


def test_a_dump_that_fails_costs_nothing(tmp_path, monkeypatch, logged):
    path = tmp_path / 'dump.pt'
    path.write_text('before')

    def disk_full(content, file):
        open(file, 'w').write('half')
        raise OSError('no space left')

    monkeypatch.setattr(torch, 'save', disk_full)
    metrics = evaluate(predictions([1, 1]), dump=str(path))
    assert metrics == evaluate(predictions([1, 1]))
    assert any('no space' in record.getMessage() for record in logged)
    assert path.read_text() == 'before'
    assert list(tmp_path.iterdir()) == [path]


def test_rescored_metrics_stand_beside_the_plain_ones(bank, logged):
    path, training = bank
    logged.clear()
    samples = predictions([3, 1, 2, 5, 1, 4, 2])
    videos = torch.stack([s.video_feature for s in samples])
    texts = torch.cat([s.text_feature for s in samples])
    captions = torch.cat([s.text_feature for s in training])
    footage = torch.stack([s.video_feature for s in training])
    result = evaluate(samples, dsl=50.0, qb_norm=str(path), beta=0.5)
    assert result == expected(
        samples, rescoring=[DSL(50.0), QBNorm(captions @ videos.T, footage @ texts.T, 0.5)]
    )
    assert {key: result[key] for key in expected(samples)} == expected(samples)
    said = [r.getMessage() for r in logged if 'compare' in r.getMessage()]
    assert len(said) == 1
    assert 'dsl/... looks at all queries of the test set' in said[0]
    assert 'qb_norm/... looks at the training queries of the bank' in said[0]
    assert not any(r.levelno >= logging.WARNING for r in logged)


def test_beta_reaches_the_formula(bank):
    samples = predictions([3, 1, 2, 5, 1, 4, 2])
    assert evaluate(samples, qb_norm=str(bank[0]), beta=0.01) != evaluate(
        samples, qb_norm=str(bank[0])
    )


def test_plain_metrics_say_nothing_of_comparing(logged):
    evaluate(predictions([1, 1]))
    assert not any('compare' in r.getMessage() for r in logged)


def test_warns_of_test_videos_in_the_bank(tmp_path, logged_warnings):
    samples = predictions([1] * 4)
    evaluate(samples[1:3], dump=str(tmp_path / 'bank.pt'))
    evaluate(samples, qb_norm=str(tmp_path / 'bank.pt'))
    assert ['2 test videos are in the bank' in m for m in logged_warnings] == [True]
    assert '1.mp4' in logged_warnings[0]


def build(**kwargs):
    return METRICS.build(dict(type='vop.RetrievalMetric', **kwargs))


def test_a_missing_bank_is_refused_at_once(tmp_path):
    with pytest.raises(FileNotFoundError, match='--dump-embeddings'):
        build(qb_norm=str(tmp_path / 'bank.pt'))


@pytest.mark.parametrize('content', [b'', b'PK no archive', dict(a=1), [1, 2], logging.Handler])
def test_a_foreign_bank_is_refused_at_once(tmp_path, content):
    path = tmp_path / 'bank.pt'
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match='bank.pt .*holds no embeddings'):
        build(qb_norm=str(path))


@pytest.mark.parametrize('what', ['video', 'text'])
def test_a_bank_that_is_not_finite_is_refused_at_once(bank, what):
    content = torch.load(bank[0], weights_only=True)
    content[what][1, 0] = torch.nan
    torch.save(content, bank[0])
    with pytest.raises(ValueError, match=f'{what}s in .*bank.pt are not fini'):
        build(qb_norm=str(bank[0]))


def test_a_bank_of_another_width_is_refused_at_the_first_video(bank):
    sample = predictions([1])[0]
    sample.video_feature = torch.ones(16)
    sample.text_feature = torch.ones(1, 16)
    with pytest.raises(ValueError, match='have 8 numbers, .* 16'):
        build(qb_norm=str(bank[0])).process({}, [sample.to_dict()])


def test_a_bank_of_another_model_is_refused(tmp_path, bank):
    metric = build(dump=str(tmp_path / 'named.pt'))
    metric.set_model('abc')
    evaluator = Evaluator(metric)
    evaluator.process(predictions([1, 1]))
    evaluator.evaluate(2)
    metric = build(qb_norm=str(tmp_path / 'named.pt'))
    metric.set_model('abc')
    with pytest.raises(ValueError, match='named.pt .*another model'):
        metric.set_model('def')
    build(qb_norm=str(bank[0])).set_model('def')  # it does not say which


@pytest.mark.parametrize(
    'kwargs',
    [
        dict(dsl=0.0),
        dict(dsl=True),
        dict(dsl=float('nan')),
        dict(beta=-1.0),
        dict(beta=float('inf')),
    ],
)
def test_refuses_scales_that_are_not_positive(kwargs):
    with pytest.raises(ValueError, match=f'{list(kwargs)[0]} must be'):
        build(**kwargs)


def test_a_dump_that_cannot_be_written_is_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match='can be written'):
        build(dump=str(tmp_path))
    (tmp_path / 'file').write_text('')
    with pytest.raises(ValueError, match='There can be no folder'):
        build(dump=str(tmp_path / 'file' / 'dump.pt'))


def test_a_device_that_is_not_there_is_refused_at_once():
    with pytest.raises(ValueError, match='There is no device cuda:99'):
        build(device='cuda:99')
