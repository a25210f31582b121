"""Ways in which rows are written: one file each, with `SHAPE = Shape(...)` at its end (pipeline/formats/contract.py).

A file that is put here is found: data=files tries it on every row.
"""
