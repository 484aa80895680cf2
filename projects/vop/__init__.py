"""VoP: Text-Video Co-operative Prompt Tuning (CVPR 2023) for MMAction2.

Importing this package registers everything it has under the MMEngine scope
``vop``. In a config::

    custom_imports = dict(
        imports=['projects.vop'], allow_failed_imports=False)
"""

from . import compat

__version__ = '0.1.0'

compat.apply()

from . import datasets, engine, evaluation, models, recognition, report  # noqa: E402

__all__ = ['datasets', 'engine', 'evaluation', 'models', 'recognition', 'report', '__version__']
