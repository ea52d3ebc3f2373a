"""What a bundle takes of a machine before it is there: memory, seconds, energy, from its shape and measured rates.

May import bundle, gguf, machine, and what computes (`audio`, `text`), which only `calibrate` runs.
"""
