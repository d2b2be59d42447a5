"""The ``fastrnn bench`` command: the layers beside every peer that is installed, with ratio and error.

`shapes` says what is measured and what would be ideal, `peers` who takes part, `worker` is the process that holds one
peer, `harness` lets the workers take turns, `machine` records where all this happened, `report` shows it.
"""
