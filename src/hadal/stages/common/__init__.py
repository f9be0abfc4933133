"""What stages of any kind work with: the run in progress, its view, the watch over training, and what work takes."""
