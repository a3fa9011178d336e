"""The contracts: what a model, a dataset and a trainer have to provide."""
