"""The hook that stops a training which diverges, on models of MMEngine and MMAction2."""

from types import SimpleNamespace

import pytest
import torch
from helpers import make_batch, make_model, make_recognizer
from mmaction.structures import ActionDataSample
from mmengine.config import Config

from projects.vop.engine import FiniteHook
from projects.vop.errors import NotFiniteError, UserError


def watch(model):
    """A hook on a model, in a training that has made 6 steps."""
    hook = FiniteHook()
    runner = SimpleNamespace(model=model.train(), iter=6, cfg=Config(), work_dir='run')
    hook.before_train(runner)
    return hook, runner


def run(model, batch):
    return model(**model.data_preprocessor(batch, True), mode='loss')


@pytest.fixture
def batch():
    batch = make_batch(3)
    for number, sample in enumerate(batch['data_samples']):
        sample.set_metainfo(dict(video_id=f'v{number}'))
    return batch


def test_names_the_video_whose_frames_are_not_finite(tiny_clip, batch):
    model = make_model(tiny_clip)
    watch(model)
    run(model, batch)
    batch['inputs']['imgs'] = [frames.float() for frames in batch['inputs']['imgs']]
    batch['inputs']['imgs'][1][2, 0, 5, 5] = torch.inf
    with pytest.raises(UserError, match='step 7 is nan: frames of v1 are not finite') as error:
        run(model, batch)
    assert error.value.exit_code == 2  # it did not diverge


def test_names_the_batch_before_if_its_step_spoilt_the_weights(tiny_clip, batch):
    model = make_model(tiny_clip)
    watch(model)
    run(model, batch)
    model.visual.prompts[0].tokens.data[0] = torch.nan
    other = make_batch(2)
    with pytest.raises(NotFiniteError, match='visual.prompts.0.tokens not finite, with v0, v1, v2'):
        run(model, other)


def test_weights_that_are_not_finite_from_the_start(tiny_clip, batch):
    model = make_model(tiny_clip)
    watch(model)
    model.visual.backbone.proj.data[0] = torch.nan
    with pytest.raises(UserError, match='backbone.proj is not finite from the start') as error:
        run(model, batch)
    assert error.value.exit_code == 2  # it did not diverge


def test_names_the_batch_of_a_loss_that_overflows(tiny_clip, batch):
    model = make_model(tiny_clip)
    hook, runner = watch(model)
    model.logit_scale.fill_(200)
    with pytest.raises(NotFiniteError, match='its batch is v0, v1, v2') as error:
        run(model, batch)
    assert error.value.exit_code == 3
    model.eval()(**model.data_preprocessor(batch), mode='predict')  # is no loss
    hook.after_train(runner)
    run(model.train(), batch)  # is not looked at


def test_works_with_recognizers(tiny_clip):
    backbone = dict(type='vop.VideoBackbone', clip=dict(name=tiny_clip), num_frames=4)
    head = dict(type='I3DHead', num_classes=3, in_channels=32)
    model = make_recognizer(3, backbone, head)
    watch(model)
    samples = [ActionDataSample(metainfo=dict(filename=f'{i}.mp4')) for i in '12']
    for sample in samples:
        sample.set_gt_label(1)
    clips = [torch.zeros(1, 3, 4, 32, 32) for _ in samples]
    run(model, dict(inputs=clips, data_samples=samples))
    clips[1][..., 3] = torch.nan
    with pytest.raises(UserError, match='frames of 2.mp4 are'):
        run(model, dict(inputs=clips, data_samples=samples))


@pytest.mark.parametrize('content', [[1], {}, dict(epoch=3, model={}), {'a.weight': torch.ones(2)}])
def test_a_checkpoint_with_no_weights_of_the_model_is_refused(tiny_clip, content):
    """MMEngine would train from scratch."""
    hook, runner = watch(make_model(tiny_clip))
    runner.cfg.load_from = 'other.pth'
    for checkpoint in (content, dict(state_dict=content)):
        with pytest.raises(UserError, match='other.pth holds no state dict .* such as visual'):
            hook.after_load_checkpoint(runner, checkpoint)


def test_a_mask_of_infinity_is_no_fault(tiny_clip):
    """Only parameters are looked at."""
    model = make_model(tiny_clip)
    hook, runner = watch(model)
    state = dict(model.state_dict(), mask=torch.full((2,), -torch.inf))
    for prefix in ('', 'module.'):
        checkpoint = dict(state_dict={f'{prefix}{name}': value for name, value in state.items()})
        hook.after_load_checkpoint(runner, checkpoint)
        hook.before_save_checkpoint(runner, checkpoint)
        tokens = checkpoint['state_dict'][f'{prefix}text.prompts.0.tokens'] * torch.inf
        checkpoint['state_dict'][f'{prefix}text.prompts.0.tokens'] = tokens
        for moment in (hook.after_load_checkpoint, hook.before_save_checkpoint):
            with pytest.raises(NotFiniteError, match='text.prompts.0.tokens'):
                moment(runner, checkpoint)
