"""What a bundle takes in time and memory.

Every module here is a benchmark: a program that writes a record, and a `BENCHMARK` that shows and judges it.
"""
