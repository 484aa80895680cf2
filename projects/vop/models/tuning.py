"""Which parameters of a CLIP's tower train: the paper's baselines."""

from torch import nn

from ..errors import UserError
from .towers import tower_of


def unfreeze(backbone: nn.Module, tuning: str) -> None:
    """Let a part of a tower train, and freeze the rest.

    Args:
        backbone (nn.Module): A tower as
            :func:`.clip.open_towers` gives it.
        tuning (str): What trains (the baselines of Table 1): ``'frozen'``,
            nothing; ``'full'``, everything; ``'bias'``, all bias terms;
            ``'proj'``, the projection into the joint space (of SigLIP's
            image tower, the pooling that ends there); ``'partial'``, the
            last layer.

    Raises:
        UserError: If there is no such value, or the tower has no such
            parameters.
    """
    tower = tower_of(backbone)
    last = f'{tower.blocks_name}.{len(tower.blocks) - 1}.'
    trains = dict(
        frozen=lambda name: False,
        full=lambda name: True,
        bias=lambda name: name.endswith('bias'),
        proj=lambda name: name.startswith(tower.projection),
        partial=lambda name: name.startswith(last),
    )
    if tuning not in trains:
        raise UserError(f'tuning must be one of {", ".join(trains)}, got {tuning!r}.')
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(trains[tuning](name))
    if tuning != 'frozen' and not any(p.requires_grad for p in backbone.parameters()):
        raise UserError(
            f"tuning='{tuning}': this tower ({type(backbone).__name__}) has no such parameters."
        )
