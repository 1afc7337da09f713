"""Facts about this machine: its architecture, NPUs, driver, CANN and container engine."""
