"""A page of a template in this folder, in one file."""

from pathlib import Path
from typing import Any


def render(template: str, **values: Any) -> str:
    """Fill in a template; whatever comes from outside is escaped.

    Args:
        template (str): Name of the template, such as ``'report.html.jinja'``.
        **values (Any): What it shows.

    Returns:
        str: The page, as HTML.
    """
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(**values)
