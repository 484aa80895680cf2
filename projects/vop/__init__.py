"""VoP: Text-Video Co-operative Prompt Tuning (CVPR 2023) for MMAction2.

Importing this package makes everything it has known under the MMEngine scope
``vop``. In a config::

    custom_imports = dict(
        imports=['projects.vop'], allow_failed_imports=False)
"""

from . import compat

compat.apply()

# A registry imports its subpackages when it is first asked for something of
# them, so that a tool which needs none of them starts at once.
from . import registry  # noqa: E402

__version__ = '0.1.0'

__all__ = ['__version__', 'compat', 'registry']
