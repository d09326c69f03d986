"""Which version this is; a module of its own, since whoever imports the package's name gets a tracer with it."""

__version__ = "0.1.0"
