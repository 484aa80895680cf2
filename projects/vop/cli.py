"""The command ``vop``: the tools by their names, wherever the package is installed."""

import ast
import os
import runpy
import sys
from pathlib import Path

from .fileio import ROOT

USAGE = """usage: vop TOOL [arguments]
       vop TOOL --help

A config is a file, or the name of one of the package: vop train vop_fp_didemo
"""


def find_tools() -> dict[str, Path]:
    """The tools by name, such as ``'train'`` and ``'data msrvtt'``.

    Example:
        >>> find_tools()['data msrvtt'].name
        'msrvtt.py'
    """
    folder = ROOT / 'tools'
    tools = {}
    for path in sorted(folder.rglob('*.py')):
        if "if __name__ == '__main__'" in path.read_text(encoding='utf-8'):
            tools[' '.join(path.relative_to(folder).with_suffix('').parts)] = path
    launchers = (path for kind in ('dist', 'slurm') for path in folder.glob(f'{kind}_*.sh'))
    return tools | {path.stem: path for path in sorted(launchers)}


def describe(tools: dict[str, Path]) -> str:
    """A line for each tool."""
    width = max(map(len, tools))
    lines = []
    for name, path in tools.items():
        text = path.read_text(encoding='utf-8')
        if path.suffix == '.py':
            about = (ast.get_docstring(ast.parse(text)) or name).splitlines()[0]
        else:
            about = text.splitlines()[1].lstrip('# ')
        lines.append(f'  {name:{width}}  {about}')
    return '\n'.join(lines)


def main() -> None:
    """Run the tool that the command line names."""
    words, tools = sys.argv[1:], find_tools()
    name = next((name for name in (' '.join(words[:2]), *words[:1]) if name in tools), None)
    if name is None and words and words[0] not in ('-h', '--help'):
        print(f'There is no tool {words[0]}; `vop` lists those there are.', file=sys.stderr)
        raise SystemExit(2)
    if name is None:
        print(f'{USAGE}\n{describe(tools)}')
        return
    path, arguments = tools[name], words[len(name.split()) :]
    if path.suffix == '.sh':
        # Which starts this Python, whatever is first in PATH.
        os.environ['PATH'] = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
        os.execvp('bash', ['bash', str(path), *arguments])
    sys.path.insert(0, str(path.parent))  # as for a script
    sys.argv[1:] = arguments
    runpy.run_path(str(path), run_name='__main__')
