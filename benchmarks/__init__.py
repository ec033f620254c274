"""Programs that compare rbee-serve with its peers; README.md says how to run them."""
