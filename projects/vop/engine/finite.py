"""Training that diverges stops, before anything of it is kept."""

from collections.abc import Iterable, Sequence
from typing import Any

from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn

from ..errors import NotFiniteError, UserError
from ..registry import HOOKS
from .checkpoint import is_whole, tensors_of, unwrap


@HOOKS.register_module()
class FiniteHook(Hook):
    """Stops a training at the first loss that is not finite, before the step.

    It works with every model of MMEngine. It reads the loss of each step as soon as the forward
    pass is done; MMEngine reads it, too, after the backward pass, to log it. Gradients may
    overflow, as they do in mixed precision, whose scaler then leaves out the step.

    No checkpoint of weights that are not finite is written, and none is loaded.
    ``build_runner`` adds this hook to all runners that have none.

    Raises:
        NotFiniteError: The message names the videos of the batch, by ``video_id`` or ``filename``
            of their data samples (``meta_keys`` of ``PackActionInputs``).
        UserError: If frames, or the weights at the start, are not finite, or a checkpoint has no
            weights of the model.

    Example:
        >>> custom_hooks = [dict(type='vop.FiniteHook')]
    """

    def before_train(self, runner: Runner) -> None:
        """Look at each loss that the model gives."""
        self.before: list[str] = []  # videos of the last step

        def check(model: Any, args: tuple, kwargs: dict, losses: Any) -> None:
            if not (model.training and isinstance(losses, dict)):
                return  # a prediction
            samples = kwargs['data_samples'] if 'data_samples' in kwargs else args[1:2]
            names = _names(samples[0] if isinstance(samples, tuple) and samples else samples)
            loss = model.parse_losses(losses)[0]
            if not loss.isfinite().all():
                inputs = kwargs.get('inputs', args[0] if args else None)
                self._stop(runner, model, loss.item(), names, _not_finite_rows(inputs))
            self.before = names

        self.handle = unwrap(runner.model).register_forward_hook(check, with_kwargs=True)

    def _stop(
        self, runner: Runner, model: nn.Module, loss: float, names: list[str], bad: Sequence[int]
    ) -> None:
        where = f'The loss of step {runner.iter + 1} is {loss}'
        name = _not_finite(dict(model.named_parameters()))
        if bad:  # which is no divergence, nor is the next
            videos = _listed(names[i] for i in bad if i < len(names))
            raise UserError(
                f'{where}: frames of {videos} are not finite. Take them out of the annotation '
                'file, or mend the pipeline, and resume.'
            )
        if name and not self.before:
            raise UserError(
                f'{where}: {name} is not finite from the start. Take other weights of CLIP, or an '
                'earlier checkpoint.'
            )
        if name:
            cause = f'the step before made {name} not finite, with {_listed(self.before)}'
            advice = 'Training diverged: lower the learning rate, or clip gradients'
        else:
            whose = '' if get_world_size() == 1 else f' of process {get_rank()}, one of several,'
            cause = f'its batch{whose} is {_listed(names)}'
            advice = 'Training diverged, or overflows in fp16: lower the learning rate'
        raise NotFiniteError(f'{where}: {cause}. {advice}, and resume from an earlier checkpoint.')

    def after_train(self, runner: Runner) -> None:
        """Look no longer."""
        self.handle.remove()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Write no checkpoint that is of no use."""
        self._check_weights(runner, checkpoint, f'so there is none of step {runner.iter}')

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Start from no checkpoint that is of no use."""
        ours, theirs = dict(unwrap(runner.model).named_parameters()), tensors_of(checkpoint)
        name = runner.cfg.get('load_from') or f'the latest in {runner.work_dir}'
        # MMEngine would load nothing, and train from scratch. A zero-shot CLIP has a name alone.
        if is_whole(runner) and not any(k in ours or k.endswith('_extra_state') for k in theirs):
            raise UserError(
                f'{name} holds no state dict with weights of the model, such as '
                f'{next(iter(ours), "none")}. Weights of a CLIP go to model.clip.pretrained.'
            )
        self._check_weights(runner, checkpoint, f'so {name} cannot be used: take an earlier one')

    def _check_weights(self, runner: Runner, checkpoint: dict, what: str) -> None:
        # Not buffers: some hold infinity on purpose, such as masks.
        ours = dict(unwrap(runner.model).named_parameters())
        tensors = tensors_of(checkpoint)
        name = _not_finite({key: value for key, value in tensors.items() if key in ours})
        if name:
            raise NotFiniteError(f'The weights {name} of the checkpoint are not finite, {what}.')


def _not_finite(tensors: dict[str, Tensor]) -> str | None:
    return next((name for name, value in tensors.items() if not value.isfinite().all()), None)


def _not_finite_rows(inputs: Any) -> list[int]:
    """Which items of a batch have values that are not finite."""
    rows: set[int] = set()
    for value in inputs.values() if isinstance(inputs, dict) else [inputs]:
        if isinstance(value, Tensor) and value.dim() > 1 and value.is_floating_point():
            rows.update((~value.flatten(1).isfinite().all(1)).nonzero()[:, 0].tolist())
    return sorted(rows)


def _names(samples: Any) -> list[str]:
    """Names of the videos of a batch, if it has data samples."""
    named = [s for s in samples if hasattr(s, 'get')] if isinstance(samples, (list, tuple)) else []
    return [str(s.get('video_id') or s.get('filename') or 'an unnamed one') for s in named]


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f' and {len(names) - 64} more' if len(names) > 64 else ''
    return (', '.join(names[:64]) or 'videos without names') + more
