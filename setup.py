import shutil
from pathlib import Path

from setuptools import find_namespace_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
VERSION = next(
    line.split("'")[1]
    for line in (HERE / 'projects/vop/__init__.py').read_text().splitlines()
    if line.startswith('__version__')
)

# Of the documentation as a site, which a test builds.
DOCS = ['furo', 'myst-parser', 'sphinx']
ONNX = ['onnx', 'onnxruntime', 'onnxscript', 'tokenizers']


class BuildWithTools(build_py):
    """Puts configs and tools where MIM and ``vop`` look for them: by its top-level folder."""

    def run(self):
        super().run()
        if not self.editable_mode:
            for folder in ('configs', 'tools'):
                target = Path(self.build_lib, 'projects/.mim', folder)
                shutil.rmtree(target, ignore_errors=True)  # of an earlier build
                # Scripts for a checkout, which they install.
                scripts = 'env.sh', 'run_tests.sh', 'quickstart.sh'
                ignored = shutil.ignore_patterns('__pycache__', *scripts)
                shutil.copytree(HERE / folder, target, ignore=ignored)


setup(
    name='mmaction2-vop',
    version=VERSION,
    description='VoP: text-video co-operative prompt tuning (CVPR 2023) for MMAction2',
    long_description=(HERE / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    # `projects` has no __init__.py, so that other projects can live in it.
    packages=find_namespace_packages(include=['projects.vop*']),
    package_data={
        'projects.vop': ['py.typed'],
        'projects.vop.apis': ['model_card.md.jinja'],
        'projects.vop.report': ['*.css', '*.jinja'],
    },
    cmdclass={'build_py': BuildWithTools},
    entry_points={'console_scripts': ['vop = projects.vop.cli:main']},
    python_requires='>=3.10',
    install_requires=[
        'torch>=2.4',
        'torchvision',
        'open_clip_torch>=3.3,<4',
        'timm>=1.0.20',  # rotary positions in halves (open_clip asks for 1.0.17)
        'mmengine>=0.10.7,<1.0',
        'mmaction2>=1.2,<1.3',
        'importlib_metadata',  # MMAction2 1.2.0 needs it without saying so
        # decord has wheels for x86-64 on Linux and Windows alone. decord2 is the same module.
        'decord>=0.6; sys_platform != "darwin" and platform_machine in "x86_64 AMD64"',
        'decord2>=3; sys_platform == "darwin" or platform_machine not in "x86_64 AMD64"',
        'av',
        'safetensors',
        'numpy',
        'matplotlib',
        'tqdm',
        'opencv-python',
        'jinja2',  # the report
        'portalocker>=4',
        'submitit>=1.5.2',  # tools/reproduce.py
    ],
    extras_require={
        # MMAction2 needs mmcv >= 2.0 and < 2.2. The full mmcv must fit torch
        # and CUDA, so it is the user's to choose; mmcv-lite is the same
        # without compiled operators, of which this project uses none.
        'mmcv-lite': ['mmcv-lite>=2.0,<2.2'],
        # Not required, as faiss-gpu will do, too.
        'search': ['faiss-cpu'],
        'demo': ['faiss-cpu', 'gradio>=6'],
        'docs': DOCS,
        'onnx': ONNX,
        'lint': ['ruff>=0.17,<0.18', 'mypy', 'pre-commit'],
        'test': [
            *DOCS,
            *ONNX,
            'pytest',
            'pytest-xdist',
            'pytest-cov',
            'clip-anytorch',
            'faiss-cpu',
            'gradio>=6',
            'playwright',
            'tensorboard',
            'ipykernel',
            'nbclient',
        ],
    },
    classifiers=[
        'License :: OSI Approved :: Apache Software License',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
    ],
)
