"""What this machine is and offers: architecture, NPUs, driver and CANN, the container engine."""
