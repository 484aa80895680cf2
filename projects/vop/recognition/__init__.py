from .backbone import VideoBackbone
from .caption_head import CaptionHead

__all__ = ['CaptionHead', 'VideoBackbone']
