"""The service: HTTP outside, a queue in the middle, an encoder inside. `main.create_app` puts it together."""

__version__ = "0.1.0"
