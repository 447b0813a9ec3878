"""Installs `valle`; `pip install -e .` is all a user needs."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "valle/__init__.py").read_text()).group(1)
REQUIREMENTS = [
    line
    for line in (HERE / "requirements.txt").read_text().splitlines()
    if line and not line.startswith("#")
]
PLOT = ["matplotlib>=3.8"]
MIDI = ["mido>=1.3"]
TEXT = ["phonemizer>=3.3", "espeakng-loader>=0.2.4"]  # GPL-3, therefore never required
HDF5 = ["h5py>=3.10"]
DEV = ["pytest>=8", "hypothesis>=6", "ruff==0.17.6", "mypy==2.4.1", "pre-commit>=4"]

setup(
    name="valle",
    version=VERSION,
    description="Train and run codec language models (AudioLM) that continue music and speech",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["valle", "valle.*"]),
    package_data={"valle": ["py.typed", "modules/*.cpp", "modules/*.h"]},
    python_requires=">=3.10",
    install_requires=REQUIREMENTS,
    extras_require={
        "plot": PLOT,
        "midi": MIDI,
        "text": TEXT,
        "hdf5": HDF5,
        "demo": PLOT + MIDI,
        "dev": DEV + PLOT + MIDI + TEXT + HDF5,
    },
)
