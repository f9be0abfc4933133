"""The library: what is on this machine. `record` reads and writes the record of a run, run.json."""
