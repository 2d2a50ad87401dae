"""`sparse_encoder.client`, by the name under which the service ships it."""

from sparse_encoder.client import (
    AsyncSparseEncoderClient,
    Encoded,
    Options,
    ServiceUnavailable,
    SparseEncoderClient,
    SparseEncoderError,
    Vector,
)

__all__ = [
    "AsyncSparseEncoderClient",
    "Encoded",
    "Options",
    "ServiceUnavailable",
    "SparseEncoderClient",
    "SparseEncoderError",
    "Vector",
]
