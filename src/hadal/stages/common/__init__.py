"""What stages of any kind work with: the run in progress, its view, and the watch over training."""
