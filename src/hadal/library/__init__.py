"""The library: what MODEL means in a command, what is on this machine, and the record of a run.

`find` turns a name into a folder, `hub` downloads, `shipped` has configs by short name, `open` loads the model of a
folder, `info` says what a config alone tells, `record` reads and writes run.json. Only `open` imports torch.
"""
