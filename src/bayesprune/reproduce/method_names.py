"""The methods of Table 4, by name: all that the command line needs to know of them."""

METHODS = ("dfp", "dpf", "true-inputs", "boosting", "lasso", "svbnn", "splbnn", "lassonet", "forest")  # by value
