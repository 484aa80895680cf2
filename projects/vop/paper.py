"""What the paper prints, for results to be held against.

Table 1: MSR-VTT-9k, ViT-B/32. Rows that Table 1 lacks are from Table 2, which
prints text-to-video alone.
"""

from typing import NamedTuple

METRICS = ('R@1', 'R@5', 'R@10', 'MnR', 'MdR')


class Row(NamedTuple):
    """A row of Table 1.

    Attributes:
        name (str): The paper's name of the method.
        params (str, optional): Trained parameters, as printed.
        t2v (tuple[float, ...], optional): ``METRICS``, text to video.
        v2t (tuple[float, ...], optional): ``METRICS``, video to text.
    """

    name: str
    params: str | None = None
    t2v: tuple[float, ...] | None = None
    v2t: tuple[float, ...] | None = None


# By the name of the method's config.
TABLE_1: dict[str, Row] = dict(
    zero_shot=Row('zero-shot CLIP', None, (31.5, 52.8, 63.6, 42.9, 5)),
    full=Row('Full', '119.8M (100%)', (41.7, 69.2, 79.0, 16.5, 2), (42.5, 70.9, 81.4, 11.0, 2)),
    bias=Row('Bias', '0.1M (0.104%)', (39.7, 66.5, 77.3, 17.3, 2), (41.1, 68.4, 79.2, 13.6, 2)),
    proj=Row('Proj', '0.7M (0.547%)', (37.1, 63.0, 76.1, 20.5, 3), (37.2, 64.6, 75.9, 16.7, 3)),
    partial=Row(
        'Partial', '7.7M (6.410%)', (39.8, 65.3, 75.9, 19.3, 2), (37.9, 66.1, 77.4, 15.5, 3)
    ),
    adapter_attn=Row(
        'Adapter^ATTN', '2.0M (1.655%)', (37.6, 63.2, 75.8, 18.7, 3), (39.6, 66.5, 76.8, 14.7, 2)
    ),
    adapter_ffn=Row(
        'Adapter^FFN', '2.0M (1.655%)', (38.2, 63.5, 76.4, 17.9, 3), (39.9, 66.8, 77.7, 14.2, 2)
    ),
    vop_text=Row('text prompts', None, (36.5, 62.7, 75.1, 18.3, 3)),
    vop_visual=Row('visual prompts', None, (36.3, 63.4, 75.0, 20.3, 3)),
    vop=Row('VoP', '0.1M (0.103%)', (39.6, 66.7, 77.8, 17.2, 2), (42.1, 68.8, 80.7, 12.4, 2)),
    vop_p=Row('VoP^P', '0.5M (0.441%)', (40.1, 65.7, 77.7, 16.9, 2), (42.5, 70.0, 79.9, 12.4, 2)),
    vop_c=Row('VoP^C', '14.3M (11.898%)', (40.8, 68.1, 79.0, 15.8, 2), (42.3, 70.1, 81.1, 11.4, 2)),
    vop_f=Row('VoP^F', '0.1M (0.103%)', (42.6, 68.4, 78.7, 15.8, 2), (42.4, 70.5, 81.0, 11.0, 2)),
    vop_fp=Row(
        'VoP^F+P', '0.4M (0.328%)', (43.5, 69.3, 79.3, 14.8, 2), (43.6, 71.2, 81.2, 11.0, 2)
    ),
    vop_fc=Row(
        'VoP^F+C', '14.1M (11.785%)', (44.6, 69.9, 80.3, 16.3, 2), (44.5, 70.7, 80.6, 11.5, 2)
    ),
)
