from ..lazy import names_of

__getattr__, __dir__ = names_of(
    __name__,
    inferencer='EncodedVideos VoPInferencer',
    onnx_export='export_onnx',
    onnx_text='OnnxTextEncoder',
    reader='Windows',
)

__all__ = ['EncodedVideos', 'OnnxTextEncoder', 'VoPInferencer', 'Windows', 'export_onnx']
