"""MMAction2's temporal adapters on the frame embeddings."""

import pytest
import reference
import torch
from helpers import make_batch, make_model
from mmengine.optim import OptimWrapper

TRANSFORMER = dict(
    type='TransformerAdapter',
    num_segs=4,
    transformer_width=32,
    transformer_heads=2,
    transformer_layers=2,
)


@pytest.fixture
def transformer(tiny_clip):
    model = make_model(tiny_clip, adapter=TRANSFORMER)
    model.init_weights()  # as the Runner does
    return model


def inputs(model):
    return model.data_preprocessor(make_batch())['inputs']


def test_the_simple_mean_is_of_embeddings_that_are_not_normalised(tiny_clip):
    model = make_model(tiny_clip, adapter=dict(type='SimpleMeanAdapter'))
    videos = inputs(model)
    mean = torch.stack(
        [reference.encode_frames(model.visual, video) for video in videos['imgs']]
    ).mean(1)
    assert mean.norm(dim=-1).sub(1).abs().min() > 0.1
    ours, _ = model(videos)
    assert torch.allclose(ours, mean / mean.norm(dim=-1, keepdim=True), atol=1e-5)
    model.normalize_video = False
    assert torch.allclose(model(videos)[0], mean, atol=1e-4)


def test_the_mean_of_the_paper_weighs_frames_alike(tiny_clip):
    paper = make_model(tiny_clip)
    simple = make_model(tiny_clip, adapter=dict(type='SimpleMeanAdapter'))
    simple.load_state_dict(paper.state_dict())
    weights = [dict(model.named_parameters()) for model in (paper, simple)]
    for name, value in weights[0].items():
        weights[1][name].data.copy_(value)
    videos = inputs(paper)
    assert not torch.allclose(paper(videos)[0], simple(videos)[0], atol=1e-4)


def test_the_transformer_gets_what_the_encoder_gives(transformer):
    videos = inputs(transformer)
    seen = []
    transformer.adapter.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    transformer.normalize_video = False
    embeddings, _ = transformer(videos)
    assert torch.equal(seen[0], transformer.visual(videos['imgs']))
    assert torch.equal(embeddings, transformer.adapter(seen[0]))


def test_with_the_transformer_the_order_of_frames_matters(tiny_clip, transformer):
    reverse = inputs(transformer)
    videos = dict(reverse, imgs=reverse['imgs'].flip(1))
    for model, matters in ((make_model(tiny_clip), False), (transformer, True)):
        same = torch.allclose(model(videos)[0], model(reverse)[0], atol=1e-5)
        assert same is not matters


def test_the_transformer_trains(transformer):
    before = {n: p.clone() for n, p in transformer.named_parameters()}
    optimizer = OptimWrapper(torch.optim.AdamW(transformer.parameters(), lr=1e-3))
    transformer.train()
    losses = [transformer.train_step(make_batch(), optimizer)['loss'].item() for _ in range(8)]
    assert losses[-1] < losses[0] * 0.9
    changed = {n for n, p in transformer.named_parameters() if not torch.equal(p, before[n])}
    adapter = {n for n in before if n.startswith('adapter.')}
    assert len(adapter) > 20
    assert changed == adapter | {'visual.prompts.0.tokens', 'text.prompts.0.tokens'}


def test_its_weights_are_part_of_the_state(tiny_clip, transformer):
    state = transformer.state_dict()
    assert 'adapter.positional_embedding' in state
    other = make_model(tiny_clip, adapter=TRANSFORMER)
    for name, value in transformer.named_parameters():
        if 'backbone' in name:  # the tests' CLIP is random
            dict(other.named_parameters())[name].data.copy_(value)
    other.load_state_dict(state)
    videos = inputs(transformer)
    assert torch.equal(other(videos)[0], transformer(videos)[0])


def test_init_weights_reaches_the_adapter(tiny_clip):
    model = make_model(tiny_clip, adapter=TRANSFORMER)
    model.adapter.positional_embedding.data.fill_(float('nan'))
    model.init_weights()
    assert 0 < model.adapter.positional_embedding.std() < 0.02
