"""Which model serves: versions of a store, watched, checked, loaded, swapped, requested by name."""
