"""Container images, what runs in them, and bundles for sites without a network."""
