"""Checkpoints as files: safetensors and their headers, FP8 in blocks, adapters; reading, writing, conversion.

`header` needs no torch. What a user's MODEL means is `hadal.library`'s affair.
"""
