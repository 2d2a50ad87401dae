"""Many documents at once: files to vectors in files or in an index, without a service and without a queue."""
