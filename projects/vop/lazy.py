"""Names of a subpackage whose modules are imported when a name is asked for."""

from collections.abc import Callable
from importlib import import_module
from typing import Any


def names_of(package: str, **modules: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make ``__getattr__`` and ``__dir__`` of a package, by which Python looks for names.

    Args:
        package (str): Its ``__name__``.
        **modules (str): The names that each of its modules has, with spaces between.

    Returns:
        tuple[Callable, Callable]: The first takes a name that the module lacks and gives what it
        stands for, the second lists these names.

    Example:
        >>> __getattr__, __dir__ = names_of(__name__, read='Hit VideoIndex', update='Summary')
    """
    module_of = {name: module for module, names in modules.items() for name in names.split()}

    def find(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f'module {package!r} has no attribute {name!r}')
        return getattr(import_module(f'{package}.{module_of[name]}'), name)

    return find, lambda: sorted(module_of)
