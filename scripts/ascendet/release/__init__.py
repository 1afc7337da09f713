"""Make and check a release: the stacks' audited wheels as a static package index, with what proves its content."""
