"""Build our wheels, for this or another architecture, audit and install them."""
