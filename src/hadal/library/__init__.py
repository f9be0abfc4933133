"""What is on the machine: the record of a run. Nothing here imports torch."""
