"""Typed configurations that need no torch: model shapes, and reading plain data into dataclasses."""
