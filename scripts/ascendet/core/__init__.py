"""What every package stands on: files, processes, manifests, stacks, options."""
