"""What a model can do, as statistics on held-out problems."""
