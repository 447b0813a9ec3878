"""valle: codec language models that continue music and speech from a few seconds of it."""

__version__ = "0.1.0"
