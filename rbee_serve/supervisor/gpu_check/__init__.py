"""`rbee-serve gpu-check FILE`: starts each worker of a configuration alone, then all together, and measures them.

For the first start on a new machine: a worker that fails alone has a fault of its own; one that fails only beside the
others lacks memory that they take. It works on a CPU too.
"""
