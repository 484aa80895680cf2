"""The documentation as a site: ``sphinx-build -W -c docs . work_dirs/site``.

Its source is the checkout, in which links between the pages lead where they do on GitHub, and to
configs, too. Nothing on it comes from another host.
"""

import re
import sys
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from projects.vop import __version__  # noqa: E402

project, copyright = 'VoP for MMAction2', 'the authors of VoP for MMAction2, Apache-2.0'
version = release = __version__
extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'sphinx.ext.viewcode']
root_doc = 'README'
include_patterns = ['*.md', 'docs/**']
# Folders in which a user has much, where no page is looked for.
exclude_patterns = ['.*', 'data', 'downloads', 'work_dirs', 'build']

html_theme = 'furo'
html_title = project
html_show_sphinx = html_copy_source = False
myst_heading_anchors = 4
# What a subclass in torch or MMEngine says is written for other tools.
autodoc_inherit_docstrings = False
napoleon_use_ivar = True
autodoc_typehints = 'none'  # the docstrings say more of them
python_maximum_signature_line_length = 80


def add_navigation(app: Sphinx, page: str, source: list[str]) -> None:
    """Put the pages that a list of pages links to into the navigation, in its order.

    GitHub would show the directive.
    """
    if page == root_doc:
        # What the README names in passing has its place in docs/README.md.
        pages = [HERE / 'README.md', *linked(HERE / 'README.md')]
    elif page in ('docs/models/README', 'docs/api/README'):
        listing = Path(app.srcdir, f'{page}.md')
        pages = [path for path in linked(listing) if path.parent == listing.parent]
    else:
        return
    names = [f'/{path.relative_to(app.srcdir).with_suffix("")}' for path in pages]
    names = [name for name in dict.fromkeys(names) if name != f'/{root_doc}']
    source[0] += '\n\n```{toctree}\n:hidden:\n\n' + '\n'.join(names) + '\n```\n'


def linked(listing: Path) -> list[Path]:
    """The pages that one links to."""
    names = re.findall(r'\]\(([^)#:]+\.(?:md|rst))', listing.read_text(encoding='utf-8'))
    return [Path(listing.parent, name).resolve() for name in names]


def show_math(translator: nodes.NodeVisitor, node: nodes.math | nodes.math_block) -> None:
    """Write a formula as MathML, which browsers show without a script."""
    block = isinstance(node, nodes.math_block)
    math = tex2mathml(node.astext(), as_block=block)
    translator.body.append(f'<div class="math">{math}</div>' if block else math)
    raise nodes.SkipNode


def add_start(app: Sphinx, error: Exception | None) -> None:
    """Let the address of the folder lead to the first page."""
    refresh = f'<meta http-equiv="refresh" content="0; url={root_doc}.html">'
    Path(app.outdir, 'index.html').write_text(refresh, encoding='utf-8')


def setup(app: Sphinx) -> None:
    """Connect these to Sphinx."""
    app.connect('source-read', add_navigation)
    app.connect('build-finished', add_start)
    app.add_html_math_renderer('mathml', (show_math, None), (show_math, None))
    app.config.html_math_renderer = 'mathml'
