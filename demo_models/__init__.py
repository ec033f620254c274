"""Small models of handwritten digits, trained by the programs in this folder, for the worker types of which no
Python package has a model."""
