"""What is asked of texts before they are embedded."""

from collections.abc import Sequence

from ..errors import UserError, warn


def check_texts(texts: Sequence[str]) -> list[str]:
    """Refuse what cannot be embedded as texts.

    Raises:
        UserError: If one of them has no words, or there are none.
    """
    if isinstance(texts, str):
        raise TypeError('texts must be a list of texts, got one text.')
    texts = list(texts)
    if not texts:
        raise UserError('There are no texts to encode.')
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str) or not text.strip():
            raise UserError(f'Text {number} is {text!r}; it must be a text with words.')
    return texts


def warn_cut(text: str, slots: int) -> None:
    """Say that a text is too long for a model."""
    warn(
        f'The text "{text[:40]}..." is longer than the {slots} tokens (start and end counted) that '
        'this model reads; the rest of it is left out.'
    )
