"""What opens a model in a runtime setting and runs it."""
