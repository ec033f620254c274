"""Small models of handwritten digits, trained by the programs in this folder, for the worker types whose models no
Python package carries."""
