"""Basic modules that every other package may import: files, processes, manifests, stacks, options."""
