"""`make report`: what the stages left behind, as one page with a verdict."""
