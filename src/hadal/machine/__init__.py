"""The machine: devices, cores, memory and what a container allows of it, speeds that are measured, and the environment
that the libraries under torch read. Only `device` and `speed` import torch."""
