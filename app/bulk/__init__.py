"""Many documents at once: files to vectors in files or in an index, without a service and without a queue."""

from app.bulk.encoding import ModelChoice, VectorChoice
from app.bulk.library import Encode

__all__ = ["Encode", "ModelChoice", "VectorChoice"]
