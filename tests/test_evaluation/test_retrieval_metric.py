"""The metric as MMEngine's loops use it."""
import pytest
import torch
from mmaction.structures import ActionDataSample
from mmengine.evaluator import Evaluator
from mmengine.structures import InstanceData

from projects.vop.evaluation import evaluate_similarity
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
    evaluator = Evaluator(METRICS.build(
        dict(type='vop.RetrievalMetric', **kwargs)))
    for start in range(0, len(samples), batch_size):
        evaluator.process(samples[start:start + batch_size])
    return evaluator.evaluate(len(samples) if size is None else size)


def expected(samples, **kwargs):
    texts = [sample.text_feature for sample in samples]
    videos = torch.stack([sample.video_feature for sample in samples])
    owner = [i for i, text in enumerate(texts) for _ in text]
    return evaluate_similarity(torch.cat(texts) @ videos.T, owner, **kwargs)


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
            video_feature=sample.pop('video_feature'),
            text_feature=sample.pop('text_feature')[0])
    assert evaluate(samples) == wanted


def test_topk_and_prefix():
    samples = predictions([1] * 6)
    assert evaluate(
        samples, topk=[2], prefix='msvd') == {
            f'msvd/{key}': value
            for key, value in expected(samples, topk=[2]).items()
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
