"""Embedding texts with an exported encoder. Nothing here imports torch."""

import html
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..fileio import read_json
from .texts import check_texts, warn_cut

# What `export_onnx` writes.
ABOUT, VIDEO, TEXT, TOKENIZER = 'encoders.json', 'video.onnx', 'text.onnx', 'tokenizer.json'
FORMAT = 1
INSTALL = 'pip install onnxruntime tokenizers'
TEXT_FIELDS: dict[str, Any] = dict(
    length=(int, type(None)), slots=int, clean=str, tokenizer=(str, type(None))
)


def clean_text(text: str, how: str) -> str:
    """Clean a text as the tokenizers of open_clip do before they look at words.

    Args:
        text (str): The text.
        how (str): ``'lower'``, ``'whitespace'`` or ``'canonicalize'``, as open_clip names them.

    Example:
        >>> clean_text(' A dog &amp;  a CAT', 'lower')
        'a dog & a cat'
    """
    import ftfy  # which open_clip needs

    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    if how == 'canonicalize':
        text = text.replace('_', ' ').translate(str.maketrans('', '', string.punctuation))
    text = ' '.join(text.split())
    return text if how == 'whitespace' else text.lower()


def open_session(path: Path) -> Any:
    """Open an ONNX file with onnxruntime on the CPU.

    Raises:
        UserError: If it is missing or damaged, or onnxruntime is not installed.
    """
    if not path.is_file():
        raise UserError(f'There is no file {path}: tools/deployment/export_onnx.py writes it.')
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(f'{path} needs onnxruntime: {INSTALL}.') from error
    try:
        return onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    except Exception as error:  # of a damaged file, which onnxruntime has many kinds for
        raise UserError(f'{path} cannot be opened: {str(error)[:200]}. Export it again.') from error


class OnnxTextEncoder:
    """Embeds texts as the model does that was exported.

    Args:
        path (str | Path): The folder of :func:`.export_onnx`, or a text encoder in it, such as
            ``text_int8.onnx``.

    Attributes:
        model_fingerprint (str): Of the model; see :class:`.VoPInferencer`.
        slots (int): How many tokens of a text it reads.

    Raises:
        UserError: If there is no such encoder, it is damaged, or has no tokenizer.

    Example:
        >>> OnnxTextEncoder('exported/vop').encode_texts(['a dog', 'a cat']).shape
        (2, 512)
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        file = path if path.suffix == '.onnx' else path / TEXT
        about_file = file.parent / ABOUT
        if not about_file.is_file():
            raise UserError(
                f'There is no {about_file}: name a folder of tools/deployment/export_onnx.py.'
            )
        about = read_json(about_file)
        if not isinstance(about, dict) or about.get('format') != FORMAT:
            raise UserError(f'{about_file} is not of version {FORMAT} of exported encoders.')
        text = about.get('text')
        if not isinstance(text, dict) or not all(
            isinstance(text.get(key), kind) for key, kind in TEXT_FIELDS.items()
        ):
            raise UserError(f'{about_file} is damaged: see "text". Export the model again.')
        self.model_fingerprint = str(about.get('model_fingerprint'))
        self.slots, self.clean = text['slots'], text['clean']
        if text['tokenizer'] is None:
            raise UserError(
                f'{file} has no tokenizer that works without torch: leave --text-encoder out.'
            )
        self.session = open_session(file)
        if [each.name for each in self.session.get_inputs()] != ['tokens']:
            raise UserError(f'{file} is no text encoder: name the folder, or {TEXT} in it.')
        self.tokenizer = _open_tokenizer(file.with_name(TOKENIZER))

    def tokenize(self, texts: Sequence[str]) -> np.ndarray:
        """Make the token ids of texts as the file takes them, int64 [n x t].

        A text that is longer than the model reads is cut, with a warning.
        """
        encoded = self.tokenizer.encode_batch([clean_text(text, self.clean) for text in texts])
        for text, each in zip(texts, encoded):
            if each.overflowing or sum(each.attention_mask) > self.slots:
                warn_cut(text, self.slots)
        return np.array([each.ids for each in encoded], np.int64)

    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> np.ndarray:
        """Embed texts; see :meth:`.VoPInferencer.encode_texts`.

        Returns:
            np.ndarray: L2-normalised, float32 [n x e].
        """
        texts = check_texts(texts)
        parts = [texts[start : start + batch_size] for start in range(0, len(texts), batch_size)]
        return np.concatenate(
            [self.session.run(None, dict(tokens=self.tokenize(part)))[0] for part in parts]
        )


def _open_tokenizer(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f'There is no file {path}: export the model again.')
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise UserError(f'{path} needs tokenizers: {INSTALL}.') from error
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the package has no other kind
        raise UserError(
            f'{path} is damaged: {str(error)[:200]}. Export the model again.'
        ) from error
