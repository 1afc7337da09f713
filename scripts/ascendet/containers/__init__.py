"""Container images, containers, and bundles for sites without a network."""
