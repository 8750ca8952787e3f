"""The release of this package, as it is written into growth logs: `keras_net2net.__version__`."""

__version__ = "0.1.0"
