"""All metadata of lion-fast; static, no hardware is probed at install time.

`kernels/` stands at the top of the repository but installs as `lion_fast.kernels`, because the
top-level import name `kernels` belongs to another distribution on the package index, whose files a
plain install would overwrite.
"""

from pathlib import Path

from setuptools import setup

setup(
    name="lion-fast",
    version="0.2.0",
    description="Fast, trustworthy training of deeply-supervised classifiers with LION-DG",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[
        "lion_fast",
        "lion_fast.data",
        "lion_fast.init",
        "lion_fast.kernels",
        "lion_fast.kernels.augment",
        "lion_fast.kernels.dense",
        "lion_fast.kernels.dense_heads",
        "lion_fast.kernels.heads",
        "lion_fast.kernels.muon",
        "lion_fast.kernels.persistent",
        "lion_fast.models",
        "lion_fast.report",
        "lion_fast.study",
        "lion_fast.study.pools",
        "lion_fast.training",
        "lion_fast.training.folder",
        "lion_fast.training.machine",
        "lion_fast.training.measure",
        "lion_fast.training.ranks",
        "lion_fast.training.screen",
        "lion_fast.training.step",
    ],
    package_dir={"lion_fast.kernels": "kernels"},
    package_data={
        "lion_fast": ["__init__.pyi", "py.typed"],
        "lion_fast.kernels.persistent": ["csrc/*"],
        "lion_fast.data": ["digits.npz", "digits.md"],
    },
    install_requires=[
        "torch>=2.11",
        "torchvision>=0.26",
        "triton>=3.6; platform_system == 'Linux'",
        "numpy>=1.26",
        "pillow>=10",
        "markdown-it-py>=3",
        "matplotlib>=3.8",
        "rich>=13.7",
        "scipy>=1.12",
        "tyro>=1.0",
    ],
    extras_require={
        "dali": ["nvidia-dali-cuda130>=2.2"],
        "dali-cu12": ["nvidia-dali-cuda120>=2.2"],
        "examples": [
            "accelerate>=1.1",
            "dynamic-network-architectures>=0.4",
            "lightning>=2.5",
            "monai>=1.5",
            "transformers>=5.0",
        ],
        "foreign": [
            "dynamic-network-architectures>=0.4",
            "monai>=1.5",
            "segmentation-models-pytorch>=0.5",
            "timm>=1.0",
            "transformers>=5.0",
        ],
        "ray": ["ray>=2.60"],
        "tensorboard": ["tensorboard>=2.16"],
        "dev": [
            "hypothesis>=6.100",
            "mypy>=1.10",
            "pre-commit>=3.7",
            "pytest>=8.2",
            "pytest-benchmark>=5.1",
            "pytest-xdist>=3.6",
            "ruff>=0.14",
        ],
    },
    entry_points={"console_scripts": ["lion-fast = lion_fast.__main__:main"]},
    classifiers=[
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
