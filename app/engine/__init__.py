"""From texts to vectors: admission, the queue, batches, the thread that encodes."""
