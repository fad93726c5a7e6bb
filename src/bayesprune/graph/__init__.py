"""What a model computes: one trace, one table of operations, one analysis of its channels."""
