"""What runs inside the sandbox's own processes: nothing here imports hadal, and hadal imports nothing from here.

`boot` starts it by path, so that a keeper loads these few files and the standard library alone.
"""
