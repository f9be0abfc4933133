"""What things cost: FLOPs from configs, prices with their dates, and the ledger.

Arithmetic only: nothing here imports torch, so that a cost is known before a model exists.
"""
